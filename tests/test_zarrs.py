"""Zarr in and out: the pixels, the coordinates and the products of FITS."""

import numpy as np
import pytest
from astropy.io import fits

from probablend.emulate.blend import FieldConfig, draw_field
from probablend.images import ImageFile, read_image
from probablend.infer.stream import StreamSettings, stream
from probablend.zarrs import HEADER

zarr = pytest.importorskip("zarr")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def image(galaxies, wcs, tmp_path_factory):
    """The same pixels as FITS and as Zarr."""
    scene = draw_field(galaxies, FieldConfig(size=200), generator=np.random.default_rng(3))
    header = wcs.to_header()
    header["MAGZERO"] = 25.0
    folder = tmp_path_factory.mktemp("image")
    fits.writeto(folder / "image.fits", scene.image, header)
    group = zarr.create_group(folder / "image.zarr")
    array = group.create_array("SCI", data=scene.image, chunks=(64, 64))
    array.attrs[HEADER] = header.tostring(sep="\n")
    return folder, scene


def test_an_array_is_read_whole_and_in_parts(image):
    folder, scene = image
    whole = read_image(folder / "image.zarr")
    np.testing.assert_array_equal(whole.data, scene.image)
    assert whole.zeropoint == 25.0
    assert whole.wcs.pixel_to_world(99, 99).ra.deg == pytest.approx(150.0)
    part = ImageFile(f"{folder}/image.zarr[SCI]").read(slice(3, 90), slice(60, 70))
    np.testing.assert_array_equal(part, scene.image[3:90, 60:70])


def test_what_is_no_array_is_said(image, tmp_path):
    folder, _ = image
    with pytest.raises(ValueError, match="no array VAR; it has SCI"):
        read_image(folder / "image.zarr", ext="VAR")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ValueError, match="cannot be read as Zarr"):
        read_image(tmp_path / "empty.zarr")
    zarr.create_array(tmp_path / "line.zarr", data=np.zeros(5))
    with pytest.raises(ValueError, match="1-dimensional"):
        ImageFile(tmp_path / "line.zarr")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_image(tmp_path / "none.zarr")


def test_products_as_zarr_hold_what_those_as_fits_hold(image, field_weights, tmp_path):
    folder, scene = image
    for kind in ("fits", "zarr"):
        settings = StreamSettings(
            image=str(folder / f"image.{kind}"), rms=scene.rms, background="none", n_samples=2,
            psf_fwhm=1.7, model=str(field_weights), maps_format=kind, block=96, keep_samples=True,
        )  # fmt: skip
        summary = stream(settings, tmp_path / kind)
        assert f"maps.{kind}" in summary["files"]
        assert {p.name for p in (tmp_path / kind).iterdir()} == set(summary["files"])
    maps = zarr.open_group(tmp_path / "zarr" / "maps.zarr", mode="r")
    cube = zarr.open_group(tmp_path / "zarr" / "samples.zarr", mode="r")["SAMPLES"]
    with fits.open(tmp_path / "fits" / "maps.fits") as hdus:
        for hdu in hdus[1:]:
            np.testing.assert_array_equal(maps[hdu.name][...], hdu.data)
        header = fits.Header.fromstring(maps.attrs[HEADER], sep="\n")
        for key in ("PBHASH", "PBNMASK", "PBSEED"):
            assert header[key] == hdus[0].header[key]
        coordinates = fits.Header.fromstring(maps["P_BLEND"].attrs[HEADER], sep="\n")
        assert coordinates["CRVAL1"] == hdus["P_BLEND"].header["CRVAL1"]
    np.testing.assert_array_equal(cube[...], fits.getdata(tmp_path / "fits" / "samples.fits"))
    assert maps["P_BLEND"].metadata.dimension_names == ("y", "x")
    # A block is whole chunks: no two workers write the same one.
    assert maps["P_BLEND"].chunks == (96, 96)
    catalogs = [(tmp_path / k / "catalog.fits") for k in ("fits", "zarr")]
    assert fits.getdata(catalogs[0]).tobytes() == fits.getdata(catalogs[1]).tobytes()
    # Again over what is there.
    stream(settings, tmp_path / "zarr", overwrite=True)
    with pytest.raises(FileExistsError, match="already"):
        stream(settings, tmp_path / "zarr")
