import astropy.units as u
import numpy as np
import pytest
from scipy import ndimage

from probablend.background import level_of_empty_pixels
from probablend.correlation import correlation_factor, roughness_factor
from probablend.prepare import prepare_image, usable_at


@pytest.fixture
def sky(generator):
    return generator.normal(0, 2.0, size=(300, 280)).astype(np.float32)


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
        ({"background": "yes"}, "background must be auto, subtract, none or a level"),
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


@pytest.mark.parametrize("level", [-0.06, 0.06])
def test_a_level_is_seen_where_nothing_else_is(scene, level):
    """As pipelines leave it that subtract a little too much, or too little."""
    image = scene.image + np.float32(level * scene.rms)
    prepared = prepare_image(image, rms=scene.rms)
    assert prepared.flat
    assert prepared.background == pytest.approx(level * scene.rms, abs=0.02 * scene.rms)
    # Whatever lies in the image, what is left is its noise and its galaxies.
    left = prepared.signal * scene.rms - scene.image
    assert np.abs(left).max() < 0.025 * scene.rms
    assert not prepare_image(image, rms=scene.rms, background="none").background


@pytest.mark.parametrize("width", [0.0, 1.0])
@pytest.mark.parametrize("level", [-0.1, 0.0, 0.1])
def test_the_level_of_empty_pixels_of_noise(width, level):
    white = np.random.default_rng(3).normal(size=(400, 380))
    noise = ndimage.gaussian_filter(white, width)
    over_psf = ndimage.gaussian_filter(noise, 1.0).std() * np.sqrt(4 * np.pi)
    signal = (noise / over_psf + level).astype(np.float32)
    mask = np.zeros(signal.shape, dtype=bool)
    mask[50:90] = True
    signal[mask] = 0
    found = level_of_empty_pixels(signal, mask)
    # Peaks of the noise count as galaxies; where there are none the level is low.
    assert level - 0.03 < found < level + 0.01


def test_without_empty_pixels_there_is_no_level():
    full = np.full((64, 64), 40.0, dtype=np.float32)
    assert level_of_empty_pixels(full, np.zeros(full.shape, dtype=bool)) == 0


def test_a_level_that_is_told_is_what_is_taken_out(sky):
    prepared = prepare_image(sky + 7, rms=2.0, background=7.0)
    np.testing.assert_allclose(prepared.signal, sky / 2, atol=1e-5)
    assert prepared.background == 7
    with pytest.raises(ValueError, match="auto, subtract, none or a level; got nan"):
        prepare_image(sky, background=float("nan"))


def test_a_mask_that_leaves_out_the_sources_is_warned_of(caplog):
    generator = np.random.default_rng(3)
    y, x = np.indices((200, 200))
    image = generator.normal(size=y.shape).astype(np.float32)
    for a, b in generator.uniform(20, 180, size=(20, 2)):
        image += 40 * np.exp(-0.5 * ((y - a) ** 2 + (x - b) ** 2) / 6)
    of_sources = ndimage.binary_dilation(image > 5, iterations=2)
    of_rows = np.zeros(image.shape, bool)
    of_rows[80:90] = True
    hot = generator.uniform(size=image.shape) < 0.01
    empty = generator.normal(size=image.shape).astype(np.float32) + 1000 * hot
    for pixels, mask, warned in (
        (image, of_sources, True), (image, of_rows, False), (empty, hot, False),
    ):  # fmt: skip
        caplog.clear()
        prepare_image(pixels, rms=1.0, mask=mask, background="none")
        assert ("marks what was detected" in caplog.text) == warned


def test_noise_with_a_unit_is_a_number():
    image = np.random.default_rng(3).normal(size=(50, 50)).astype(np.float32)
    for rms in (2 * u.nJy, np.full(image.shape, 2.0) * u.nJy):
        assert prepare_image(image, rms=rms, background="none").signal == pytest.approx(image / 2)


def test_a_map_of_noise_with_the_photons_of_sources_is_that_of_the_sky(generator):
    y, x = np.indices((256, 256)) - 128
    light = 300 * np.exp(-np.hypot(y, x) / 12) + 40 * np.exp(-np.hypot(y - 70, x + 60) / 3)
    with_photons = np.sqrt(1 + 0.1 * light)
    image = light + generator.standard_normal(light.shape)
    assert with_photons.max() > 5
    noise = prepare_image(image, rms=with_photons, background="none").rms
    assert np.abs(noise - 1).max() < 0.1
    # A smaller depth is none of theirs, beside them or under them.
    seam = np.where(np.arange(256) < 128, 1.0, 2.0)
    image = light + seam * generator.standard_normal(light.shape)
    noise = prepare_image(image, rms=np.sqrt(seam**2 + 0.1 * light), background="none").rms
    assert np.abs(noise / seam - 1)[:, :100].max() < 0.15
    assert np.abs(noise / seam - 1)[:, 156:].max() < 0.15


def test_a_map_of_noise_loses_its_scatter_and_keeps_its_seams_and_its_bad_pixels(generator):
    true = np.where(np.arange(200) < 80, 1.0, 2.0) * np.ones((200, 1))
    given = true * generator.normal(1, 0.1, true.shape)
    given[50, 50], given[60, 60], given[120, 30:32] = 1e5, 0, np.nan
    image = true * generator.standard_normal(true.shape)
    prepared = prepare_image(image, rms=given, background="none")
    assert prepared.rms[50, 50] == pytest.approx(1e5)
    assert prepared.mask.sum() == 3
    other = np.ones(true.shape, dtype=bool)
    other[50, 50] = other[:, 78:82] = False
    assert np.abs(prepared.rms / true - 1)[other].max() < 0.13


@pytest.mark.parametrize(("times", "warned"), [(1.0, True), (2.0, False)])
def test_noise_of_pixels_is_noticed_where_it_is_correlated(times, warned, caplog, generator):
    noise = ndimage.gaussian_filter(generator.standard_normal((300, 300)), 1.2)
    noise /= noise.std()
    prepare_image(noise, rms=times)
    assert ("correlated" in caplog.text) == warned


def test_white_noise_is_not_taken_for_correlated(caplog, generator):
    prepare_image(generator.standard_normal((300, 300)), rms=1.0)
    assert not caplog.text


def test_a_source_is_lost_under_a_mask_not_under_a_hole():
    mask = np.zeros((20, 20), dtype=bool)
    mask[5, 5] = mask[:, 10] = True
    mask[12:, 12:] = mask[0, 0] = True
    at = np.array([[5, 5], [8, 10], [12, 15], [15, 15], [0, 0], [0, 19]])
    assert usable_at(at, mask).tolist() == [True, True, False, False, True, True]


def test_a_star_keeps_its_profile_under_a_map_that_counts_its_photons():
    y, x = np.indices((64, 64)) - 32
    star = 5e4 * np.exp(-(y**2 + x**2) / (2 * 0.9**2))
    with_photons = np.sqrt(20 + star)
    image = star + with_photons * np.random.default_rng(1).standard_normal(star.shape)
    noise = prepare_image(image, rms=with_photons, background="none").rms
    assert np.abs(noise / np.sqrt(20) - 1).max() < 0.1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_noisy_pixels_keep_their_noise_however_bright_they_are(size, generator):
    noise = np.ones((200, 200))
    for y in range(10, 190, 20):
        for x in range(10, 190, 20):
            noise[y : y + size, x : x + size] = 10.0
    image = noise * generator.standard_normal(noise.shape)
    prepared = prepare_image(image, rms=noise, background="none")
    assert (prepared.rms[noise > 1] > 9).mean() > 0.97
    assert np.abs(prepared.signal).max() < 8


def test_a_weak_gradient_is_no_correlated_noise(caplog, generator):
    image = generator.standard_normal((512, 512)) + np.linspace(-0.45, 0.45, 512)
    prepare_image(image, rms=1.0)
    assert "correlated" not in caplog.text
