import gzip

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from probablend.images import ImageFile, number_or_map, read_image


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


HUBBLE = {"PHOTFLAM": 7.07236e-20, "PHOTPLAM": 8059.7598, "EXPTIME": 1000.0}


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
        ({"MAGZERO": "25.0"}, 25.0),
        ({"MAGZERO": -99.0}, None),
        ({"MAGZERO": -99.0, "BUNIT": "nJy"}, 31.4),
        ({"MAG_ZERO": 26.5}, 26.5),
        ({"MAGZPT": 24.6}, 24.6),
        ({"MAGZPT": 24.6, "EXPTIME": 60.0}, None),  # of one second, or of all
        ({"MAGZPT": 24.6, "PHOTZP": 28.9, "EXPTIME": 60.0}, 28.9),  # INT
        ({"FLUXMAG0": 63095734448.0194}, 27.0),
        ({"FLUXMAG0": 0.0}, None),
        # ACS F814W: −2.5 log₁₀ PHOTFLAM − 5 log₁₀ PHOTPLAM − 2.408 (ACS data handbook)
        (HUBBLE | {"BUNIT": "ELECTRONS/S"}, 25.936),
        (HUBBLE | {"BUNIT": "ELECTRONS"}, 25.936 + 2.5 * 3),
        (HUBBLE | {"BUNIT": "ELECTRONS", "D001OUUN": "cps"}, 25.936),
        (HUBBLE | {"BUNIT": "COUNTS/S", "D001OUUN": "counts"}, 25.936 + 2.5 * 3),
        (HUBBLE | {"BUNIT": "electron / s"}, 25.936),
        (HUBBLE | {"BUNIT": "electron s-1"}, 25.936),
        (HUBBLE | {"BUNIT": "cps"}, 25.936),
        (HUBBLE | {"BUNIT": "counts/second"}, 25.936),
        (HUBBLE | {"BUNIT": "nJy"}, 31.4),
        (HUBBLE | {"BUNIT": "10.0*nanoJansky"}, 28.9),
        (HUBBLE | {"BUNIT": "ELECTRONS", "EXPTIME": 0.0}, None),
        (HUBBLE, None),
        (HUBBLE | {"BUNIT": "ELECTRONS/S", "PHOTFLAM": 0.0}, None),
        (HUBBLE | {"BUNIT": "ELECTRONS/S", "MAGZERO": 30.0}, 30.0),
    ],
)
def test_the_zero_point_is_in_the_header_or_in_its_unit(tmp_path, cards, zeropoint):
    header = fits.Header(list(cards.items()))
    fits.writeto(tmp_path / "a.fits", np.zeros((9, 9)), header)
    for found in (read_image(tmp_path / "a.fits"), ImageFile(tmp_path / "a.fits")):
        assert found.zeropoint == (zeropoint and pytest.approx(zeropoint, abs=1e-3))


def test_the_header_of_the_file_speaks_for_its_extensions(tmp_path):
    said = [({}, 27.0), ({"MAGZERO": 25.0}, 25.0), ({"BUNIT": "nJy"}, 31.4)]
    for own, zeropoint in said:
        image = fits.ImageHDU(np.zeros((9, 9)), fits.Header(list(own.items())))
        first = fits.PrimaryHDU(header=fits.Header([("MAGZERO", 27.0)]))
        fits.HDUList([first, image]).writeto(tmp_path / "a.fits", overwrite=True)
        for found in (read_image(tmp_path / "a.fits"), ImageFile(tmp_path / "a.fits")):
            assert found.zeropoint == pytest.approx(zeropoint, abs=1e-3)


def test_cards_of_the_file_that_cannot_be_read_are_no_hindrance(tmp_path):
    first = fits.PrimaryHDU(header=fits.Header([("EXPTIME", 1000.0), ("MAGZERO", 27.0)]))
    image = fits.ImageHDU(np.ones((9, 9)), fits.Header([("MAGZPT", 24.0)]))
    fits.HDUList([first, image]).writeto(tmp_path / "a.fits")
    raw = (tmp_path / "a.fits").read_bytes()
    for bad in (b"MAGZERO =             12:34:56", b"MAGZERO =                  NaN"):
        (tmp_path / "b.fits").write_bytes(raw.replace(b"MAGZERO =                 27.0", bad))
        for found in (read_image(tmp_path / "b.fits"), ImageFile(tmp_path / "b.fits")):
            assert found.zeropoint is None  # MAGZPT may be of one second of the file's thousand
    assert read_image(tmp_path / "a.fits").zeropoint == 27.0


def test_a_flux_per_solid_angle_is_one_with_the_pixels_of_the_coordinates(tmp_path, wcs):
    header = wcs.to_header()
    header["BUNIT"] = "MJy/sr"
    fits.writeto(tmp_path / "a.fits", np.zeros((9, 9)), header)
    found = read_image(tmp_path / "a.fits")
    area = (found.pixel_scale / 206264.806) ** 2  # sr
    assert found.zeropoint == pytest.approx(8.9 - 2.5 * np.log10(1e6 * area), abs=2e-3)


def test_pixels_that_are_not_linear_are_refused(tmp_path):
    header = fits.Header([("BSOFTEN", 100.0), ("BOFFSET", 3.0)])
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(np.zeros((9, 9)), header)]).writeto(
        tmp_path / "a.fits"
    )
    for read in (read_image, ImageFile):
        with pytest.raises(ValueError, match=r"compressed.*BOFFSET \+ 2 BSOFTEN sinh"):
            read(tmp_path / "a.fits")


def test_an_extension_of_several_of_one_name_is_found_by_its_version(tmp_path):
    hdus = [fits.PrimaryHDU()]
    hdus += [fits.ImageHDU(np.full((4, 5), k, np.float32), name="SCI", ver=k) for k in (1, 2)]
    fits.HDUList(hdus).writeto(tmp_path / "a.fits")
    for k in (1, 2):
        assert (read_image(f"{tmp_path}/a.fits[SCI,{k}]").data == k).all()
        assert (ImageFile(tmp_path / "a.fits", ext=f"SCI,{k}").read_all() == k).all()
    with pytest.raises(ValueError, match="no extension SCI,3; it has 0:PRIMARY, 1:SCI, 2:SCI"):
        read_image(tmp_path / "a.fits", ext="SCI,3")
