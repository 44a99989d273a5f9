import gzip

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image
from scipy import ndimage

from probablend.correlation import correlation_factor, roughness_factor
from probablend.images import ImageFile, number_or_map, prepare_image, read_image


@pytest.fixture
def sky(generator):
    return generator.normal(0, 2.0, size=(300, 280)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["uint8", ">i2", "int32", ">f4", "float64", "int64"])
def test_any_numeric_type_is_read(tmp_path, dtype):
    data = np.arange(12).reshape(3, 4).astype(dtype)
    fits.PrimaryHDU(data).writeto(tmp_path / "a.fits")
    read = read_image(tmp_path / "a.fits").data
    assert read.dtype == np.float32
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, np.arange(12).reshape(3, 4))


def test_unsigned_integers_with_an_offset_are_read(tmp_path):
    data = np.array([[0, 40_000], [65_535, 7]], dtype=np.uint16)
    fits.PrimaryHDU(data).writeto(tmp_path / "u.fits")
    np.testing.assert_array_equal(read_image(tmp_path / "u.fits").data, data)


def test_scaled_integers_are_read(tmp_path):
    hdu = fits.PrimaryHDU(np.array([[1, 2], [3, 4]], dtype=np.float32))
    hdu.scale("int16", bscale=0.001, bzero=2.0)
    hdu.writeto(tmp_path / "s.fits")
    np.testing.assert_allclose(read_image(tmp_path / "s.fits").data, [[1, 2], [3, 4]], atol=1e-3)


def test_compressed_files_are_read(tmp_path, sky):
    fits.PrimaryHDU(sky).writeto(tmp_path / "a.fits")
    (tmp_path / "a.fits.gz").write_bytes(gzip.compress((tmp_path / "a.fits").read_bytes()))
    np.testing.assert_array_equal(read_image(tmp_path / "a.fits.gz").data, sky)
    packed = fits.CompImageHDU(sky, compression_type="RICE_1", quantize_level=16)
    fits.HDUList([fits.PrimaryHDU(), packed]).writeto(tmp_path / "a.fits.fz")
    np.testing.assert_allclose(read_image(tmp_path / "a.fits.fz").data, sky, atol=0.5)


def test_the_first_image_is_taken_or_the_one_that_is_named(tmp_path):
    one, two = np.ones((3, 3)), np.full((4, 5), 2.0)
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(one, name="SCI"), fits.ImageHDU(two, name="RMS")]
    path = tmp_path / "a.fits"
    fits.HDUList(hdus).writeto(path)
    assert read_image(path).data.shape == (3, 3)
    for ext in (2, "2", "RMS", "rms"):
        assert read_image(path, ext=ext).data.shape == (4, 5)
    with pytest.raises(ValueError, match=r"no extension 7; it has 0:PRIMARY, 1:SCI, 2:RMS"):
        read_image(path, ext=7)
    with pytest.raises(ValueError, match="holds no image"):
        read_image(path, ext=0)


def test_a_plane_in_a_cube_of_one_is_an_image(tmp_path):
    fits.PrimaryHDU(np.zeros((1, 4, 5))).writeto(tmp_path / "a.fits")
    assert read_image(tmp_path / "a.fits").data.shape == (4, 5)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4), (2, 2, 3, 4)])
def test_other_dimensions_are_refused(tmp_path, shape):
    fits.PrimaryHDU(np.zeros(shape)).writeto(tmp_path / "a.fits")
    with pytest.raises(ValueError, match=f"{len(shape)}-dimensional .* a 2-D image"):
        read_image(tmp_path / "a.fits")


def test_files_that_are_no_images_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_image(tmp_path / "none.fits")
    (tmp_path / "t.fits").write_text("hello")
    with pytest.raises(ValueError, match="cannot be read as FITS"):
        read_image(tmp_path / "t.fits")
    (tmp_path / "p.png").write_text("hello")
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        read_image(tmp_path / "p.png")
    fits.HDUList([fits.PrimaryHDU()]).writeto(tmp_path / "e.fits")
    with pytest.raises(ValueError, match="no image in any extension"):
        read_image(tmp_path / "e.fits")
    with pytest.raises(ValueError, match="is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize("keep", [2000, 5000, 100_000])
def test_a_truncated_file_is_refused(tmp_path, sky, keep):
    fits.PrimaryHDU(sky).writeto(tmp_path / "a.fits")
    (tmp_path / "b.fits").write_bytes((tmp_path / "a.fits").read_bytes()[:keep])
    with pytest.raises(ValueError, match="cannot be read as FITS"):
        read_image(tmp_path / "b.fits")


def test_pictures_are_read_as_grey(tmp_path):
    rgb = np.full((5, 6, 3), 100, dtype=np.uint8)
    rgb[0] = 200  # the top row of a picture is the last row of an image
    Image.fromarray(rgb).save(tmp_path / "a.png")
    expected = np.full((5, 6), 100.0)
    expected[4] = 200
    np.testing.assert_allclose(read_image(tmp_path / "a.png").data, expected, atol=1)


def test_noise_is_a_number_or_a_map(tmp_path):
    assert number_or_map("0.25") == 0.25
    fits.PrimaryHDU(np.full((2, 2), 3.0)).writeto(tmp_path / "r.fits")
    assert number_or_map(str(tmp_path / "r.fits")).shape == (2, 2)


def test_the_noise_is_estimated_under_sources(sky):
    sky[100:130, 100:130] += 200
    prepared = prepare_image(sky)
    assert prepared.rms == pytest.approx(2.0, rel=0.03)
    assert prepared.signal.std() > 1


@pytest.mark.parametrize("deeper", [1 / 4, 1 / 1.5, 1.5, 4])
def test_noise_that_changes_over_the_image_is_a_map(deeper, generator):
    true = np.where(np.arange(1152) < 576, 1.0, deeper).astype(np.float32)
    image = (true * generator.standard_normal((640, 1152))).astype(np.float32)
    noise = prepare_image(image).rms
    assert isinstance(noise, np.ndarray)
    assert np.abs(noise / true - 1)[:, :256].max() < 0.1
    assert np.abs(noise / true - 1)[:, -256:].max() < 0.1


@pytest.mark.parametrize("peak", [0.0, 300.0])
def test_even_noise_is_a_number_whatever_lies_in_it(peak, generator):
    y, x = np.indices((640, 768)) - np.array([[[300]], [[400]]])
    image = generator.standard_normal((640, 768)) + peak * np.exp(-np.hypot(y, x) / 30)
    noise = prepare_image(image.astype(np.float32)).rms
    assert isinstance(noise, float)
    assert noise == pytest.approx(1, abs=0.1)


def test_noise_is_found_where_pixels_are_coarse_steps(generator):
    """Most rounded numbers are 0, most of a frame without data is of one value."""
    image = np.round(generator.normal(0, 0.4, (500, 500))).astype(int)
    assert np.all(prepare_image(image).rms == pytest.approx(image.std(), rel=0.4))
    half = np.full((100, 100), 7.7)
    half[:, :33] = generator.standard_normal((100, 33))
    assert prepare_image(half).mask.mean() < 0.1


def test_correlated_noise_is_recognised_around_a_large_hole(generator):
    noise = ndimage.gaussian_filter(generator.standard_normal((1500, 1500)), 1.0)
    noise /= noise.std()
    whole = np.median(prepare_image(noise).rms)
    noise[200:1300, 200:1300] = np.nan
    assert np.median(prepare_image(noise).rms) == pytest.approx(whole, rel=0.1)


def test_a_background_without_any_noise_is_subtracted():
    y, x = np.indices((100, 100)) - 50
    image = 5 + 9 * np.exp(-(y**2 + x**2) / 20)
    assert prepare_image(image, rms=1.0).background == pytest.approx(5, abs=0.1)


@pytest.mark.filterwarnings("error")
def test_damage_does_not_reach_the_estimates(generator):
    image = generator.normal(0, 0.01, (400, 400)).astype(np.float32)
    image[100, 100], image[100, 101] = 3e38, -3e38
    prepared = prepare_image(image)
    assert prepared.rms == pytest.approx(0.01, rel=0.05)
    assert prepared.noise_factors[0] < 1.1


def test_a_background_is_subtracted_when_there_is_one(sky):
    gradient = np.linspace(900, 1100, sky.shape[1])[None, :]
    with_sky = prepare_image(sky + gradient)
    assert abs(np.median(with_sky.signal)) < 0.1
    assert with_sky.background == pytest.approx(1000, rel=0.02)
    assert prepare_image(sky).background == 0
    assert prepare_image(sky + gradient, background="none").background == 0


@pytest.mark.parametrize("rms", [None, 1.0])
def test_a_small_level_is_seen_between_the_galaxies_of_a_crowded_field(scene, rms):
    image = scene.image / scene.rms
    for level in (0.0, 0.2, -0.2):
        prepared = prepare_image(image + np.float32(level), rms=rms)
        assert prepared.background == pytest.approx(level, abs=0.05)


def test_an_emulated_field_keeps_its_zero(scene):
    assert prepare_image(scene.image, rms=scene.rms).background == 0


def test_missing_pixels_are_masked_and_do_not_spread(sky):
    sky[10, 20], sky[50:60] = np.nan, np.inf
    mask = np.zeros(sky.shape, dtype=bool)
    mask[0, 0] = True
    noise = np.full(sky.shape, 2.0)
    noise[5, 5], noise[5, 6] = 0, np.nan
    prepared = prepare_image(sky, rms=noise, mask=mask)
    assert prepared.mask.sum() == 1 + 10 * sky.shape[1] + 1 + 2
    assert np.isfinite(prepared.signal).all()
    assert (prepared.signal[prepared.mask] == 0).all()


def test_a_noise_map_divides_pixel_by_pixel(sky):
    noise = np.full(sky.shape, 2.0)
    noise[:, 140:] = 4.0
    prepared = prepare_image(sky, rms=noise, background="none")
    np.testing.assert_allclose(prepared.signal, sky / noise, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rms": 0.0}, "rms must be positive; got 0"),
        ({"rms": -1.0}, "rms must be positive; got -1"),
        ({"rms": 1e-30}, "every pixel exceeds .* is rms in the image's unit"),
        ({"rms": float("nan")}, "rms must be positive"),
        ({"rms": np.zeros((300, 280))}, "no positive pixel"),
        ({"rms": np.ones((3, 3))}, r"rms must have the image's shape \(300, 280\); got \(3, 3\)"),
        ({"mask": np.ones((300, 280))}, "no usable pixel"),
        ({"mask": np.ones((3, 3))}, "mask must have the image's shape"),
        ({"background": "yes"}, "background must be auto, subtract or none"),
    ],
)
def test_bad_arguments_are_refused_in_words(sky, change, said):
    with pytest.raises(ValueError, match=said):
        prepare_image(sky, **change)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.full((50, 50), np.nan), "no usable pixel"),
        (np.full((50, 50), 3.0), "constant"),
        (np.zeros(5), "1-dimensional"),
        (np.array([["a", "b"]]), "numbers are wanted"),
        (np.zeros((0, 5)), "empty"),
    ],
)
def test_images_with_nothing_in_them_are_refused(image, said):
    with pytest.raises(ValueError, match=said):
        prepare_image(image)


def test_an_area_without_data_is_masked_and_does_not_touch_the_noise(generator):
    for shape in ((300, 280), (120, 130)):  # both estimators
        image = generator.normal(5, 2.0, size=shape).astype(np.float32)
        image[:, : shape[1] * 2 // 3] = 0
        prepared = prepare_image(image)
        np.testing.assert_array_equal(prepared.mask, image == 0)
        assert prepared.rms == pytest.approx(2.0, rel=0.1)
        assert np.abs(prepared.signal[:, shape[1] * 2 // 3 :]).max() < 8


def test_zeros_in_counts_are_data(generator):
    assert not prepare_image(generator.poisson(0.3, size=(80, 80))).mask.any()


def test_a_masked_array_keeps_its_mask(sky):
    mask = np.zeros(sky.shape, dtype=bool)
    mask[:5, :5] = True
    np.testing.assert_array_equal(prepare_image(np.ma.array(sky, mask=mask)).mask, mask)


def test_damage_beyond_any_light_is_masked(sky):
    sky[3, 4] = -3.4e38
    prepared = prepare_image(sky, rms=0.01, background="none")
    assert prepared.mask.sum() == 1
    assert np.isfinite(prepared.signal).all()


def test_images_in_physical_units_are_small(generator):
    image = generator.normal(0, 1e-23, size=(90, 90))
    assert prepare_image(image).rms == pytest.approx(1e-23, rel=0.1)


def test_an_extension_can_be_named_with_the_file(tmp_path):
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(np.zeros((3, 3)), name="SCI"),
            fits.ImageHDU(np.full((3, 3), 2.0), name="RMS")]  # fmt: skip
    fits.HDUList(hdus).writeto(tmp_path / "a.fits")
    assert number_or_map(f"{tmp_path}/a.fits[RMS]")[0, 0] == 2
    assert read_image(f"{tmp_path}/a.fits[2]").data[0, 0] == 2
    with pytest.raises(ValueError, match="no extension WHT"):
        read_image(f"{tmp_path}/a.fits[WHT]")


def test_the_image_is_found_behind_a_table_and_a_spectrum(tmp_path):
    hdus = [fits.PrimaryHDU(np.zeros(7)), fits.ImageHDU(np.ones((4, 4)))]
    fits.HDUList(hdus).writeto(tmp_path / "a.fits")
    assert read_image(tmp_path / "a.fits").data.shape == (4, 4)


def test_a_noise_map_with_negative_pixels_is_refused(sky):
    noise = np.full(sky.shape, 2.0)
    noise[0, :7] = -1
    with pytest.raises(ValueError, match="7 negative pixels"):
        prepare_image(sky, rms=noise)


@pytest.mark.parametrize("width", [0.6, 1.0, 1.5])
def test_correlated_noise_is_counted_as_what_it_is_over_a_psf(width):
    """Noise smoothed with a Gaussian of width s has ρ(l) = exp(−l²/4s²)."""
    generator = np.random.default_rng(3)
    noise = ndimage.gaussian_filter(generator.standard_normal((600, 600)), width)
    noise /= noise.std()
    # What smoothing with σ = 1 leaves of it, against what it leaves of white noise.
    white = ndimage.gaussian_filter(generator.standard_normal((600, 600)), 1.0).std()
    wanted = ndimage.gaussian_filter(noise, 1.0).std() / white
    found = correlation_factor(noise.astype(np.float32), np.zeros(noise.shape, bool))
    assert found == pytest.approx(wanted, rel=0.03)


def test_white_noise_is_left_alone_however_crowded_the_image(scene):
    assert correlation_factor(scene.image / scene.rms, np.zeros(scene.image.shape, bool)) < 1.02
    # Nor are holes correlated noise, as in a difference of images or a negative.
    assert correlation_factor(-scene.image / scene.rms, np.zeros(scene.image.shape, bool)) < 1.05
    estimated = prepare_image(scene.image).rms
    assert estimated == pytest.approx(scene.rms, rel=0.03)


def test_a_rough_sky_is_told_from_a_smooth_one_however_crowded_the_image(scene):
    """Waves of a width and strength, under the galaxies of a field and without any."""
    signal, blank = scene.image / scene.rms, np.zeros(scene.image.shape, bool)
    assert roughness_factor(signal, blank) < 1.05
    generator = np.random.default_rng(5)
    width, strength = 6.0, 0.15
    waves = ndimage.gaussian_filter(generator.standard_normal(signal.shape), width, mode="wrap")
    waves *= strength / waves.std()
    assert 1.2 < roughness_factor(signal + waves, blank) < 2.0
    # Of noise alone: what is left of both by the difference of two Gaussians.
    noise = generator.standard_normal((1500, 1500))
    waves = ndimage.gaussian_filter(generator.standard_normal(noise.shape), width, mode="wrap")
    noise = (noise + strength * waves / waves.std()) / np.hypot(1, strength)
    left = [
        (ndimage.gaussian_filter(each, 4) - ndimage.gaussian_filter(each, 16)).std()
        for each in (noise, generator.standard_normal(noise.shape))
    ]
    found = roughness_factor(noise.astype(np.float32), np.zeros(noise.shape, bool))
    assert found == pytest.approx(left[0] / left[1], rel=0.05)


def test_the_wings_of_a_large_galaxy_are_no_rough_sky():
    y, x = np.mgrid[:200, :200]
    galaxy = 200 * np.exp(-np.hypot(y - 100, x - 100) / 12)
    image = (galaxy + np.random.default_rng(2).standard_normal(galaxy.shape)).astype(np.float32)
    assert roughness_factor(image, np.zeros(image.shape, bool)) < 1.3


def test_noise_is_found_however_correlated_and_crowded_the_image(scene):
    """As strong over a PSF as the white noise of the scene was, in pixels that scatter by less."""
    generator = np.random.default_rng(3)
    noise = ndimage.gaussian_filter(generator.standard_normal(scene.image.shape), 0.8)
    over_psf = ndimage.gaussian_filter(noise, 1.0).std() * np.sqrt(4 * np.pi)
    image = (scene.noiseless + scene.rms * noise / over_psf).astype(np.float32)
    assert prepare_image(image).rms == pytest.approx(scene.rms, rel=0.05)


def test_only_an_estimated_noise_is_raised():
    generator = np.random.default_rng(4)
    noise = ndimage.gaussian_filter(generator.standard_normal((300, 300)), 1.0)
    noise /= noise.std()
    assert prepare_image(noise).rms > 1.5
    assert prepare_image(noise, rms=1.0).rms == 1.0


@pytest.mark.parametrize(
    ("rms", "warned"), [(1.0, False), (2.5, False), (0.01, True), (40.0, True)]
)
def test_noise_of_another_convention_is_noticed(rms, warned, caplog, generator):
    image = generator.normal(size=(200, 200)).astype(np.float32)
    with caplog.at_level("WARNING", logger="probablend"):
        prepare_image(image, rms=rms)
    assert ("times what the pixels scatter by" in caplog.text) == warned


def test_of_several_images_it_is_said_which_is_taken(tmp_path, caplog):
    plane = np.ones((8, 8), np.float32)
    hdus = [
        fits.PrimaryHDU(),
        fits.ImageHDU(plane, name="SCI_G"),
        fits.ImageHDU(plane, name="IVAR"),
    ]
    fits.HDUList(hdus).writeto(tmp_path / "cube.fits")
    with caplog.at_level("INFO", logger="probablend"):
        read_image(tmp_path / "cube.fits")
    assert "SCI_G is taken" in caplog.text
    assert "2:IVAR" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", logger="probablend"):
        read_image(tmp_path / "cube.fits", ext="IVAR")
    assert "is taken" not in caplog.text


@pytest.mark.parametrize(
    ("cards", "zeropoint"),
    [
        ({"BUNIT": "nJy"}, 31.4),
        ({"BUNIT": "uJy"}, 23.9),
        ({"BUNIT": "nanomaggy"}, 22.5),
        ({"BUNIT": "MJy/sr", "PIXAR_SR": 1e-13}, 8.9 + 2.5 * 7),  # 1e-7 Jy
        ({"BUNIT": "MJy/sr"}, None),
        ({"BUNIT": "electron/s"}, None),
        ({"BUNIT": "what is it"}, None),
        ({"BUNIT": "nJy", "MAGZERO": 27.0}, 27.0),
        ({"MAGZERO": "abc"}, None),
    ],
)
def test_the_zero_point_is_in_the_header_or_in_its_unit(tmp_path, cards, zeropoint):
    header = fits.Header(list(cards.items()))
    fits.writeto(tmp_path / "a.fits", np.zeros((9, 9)), header)
    for found in (read_image(tmp_path / "a.fits"), ImageFile(tmp_path / "a.fits")):
        assert found.zeropoint == (zeropoint and pytest.approx(zeropoint, abs=1e-3))
