"""Arcseconds per pixel: of the coordinates, or said by the user."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from probablend import cli, segment
from probablend.images import ImageData, ImageFile, read_image
from probablend.infer.plan import StreamSettings
from probablend.infer.stream import stream

SCALE = (0.19 * 0.21) ** 0.5  # a circle of as many arcsec²


@pytest.fixture(scope="module")
def coordinates():
    """Turned by 30 degrees, pixels a little higher than wide."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = [150.0, 2.0], [50.0, 40.0]
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    wcs.wcs.cd = np.array([[-c, s], [s, c]]) @ np.diag([0.19, 0.21]) / 3600
    return wcs


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(4)
    image = rng.normal(size=(96, 112)).astype(np.float32)
    y, x = np.indices(image.shape)
    for _ in range(8):
        a, b = rng.uniform(10, 86), rng.uniform(10, 102)
        image += 60 * np.exp(-0.5 * ((y - a) ** 2 + (x - b) ** 2) / 3).astype(np.float32)
    return image


def ratio(catalog):
    hlr = np.asarray(catalog["hlr"], float)
    assert len(hlr)
    return np.asarray(catalog["hlr_arcsec"], float) / hlr


def test_it_is_that_of_the_coordinates(pixels, coordinates, tmp_path):
    fits.writeto(tmp_path / "image.fits", pixels, coordinates.to_header())
    for opened in (read_image(tmp_path / "image.fits"), ImageFile(tmp_path / "image.fits")):
        assert opened.pixel_scale == pytest.approx(SCALE, rel=1e-3)
    assert ImageData(data=pixels).pixel_scale is None
    assert ImageData(data=pixels, wcs=WCS(naxis=2)).pixel_scale is None  # of no sky


def test_sizes_are_in_arcseconds_where_it_is_known(pixels, how, coordinates):
    assert np.isnan(ratio(segment(pixels, **how).catalog)).all()
    for image, given, wanted in (
        (pixels, {"pixel_scale": 0.3}, 0.3),
        (ImageData(data=pixels, wcs=coordinates), {}, SCALE),
        (ImageData(data=pixels, wcs=coordinates), {"pixel_scale": 0.3}, 0.3),
    ):
        catalog = segment(image, **how, **given).catalog
        np.testing.assert_allclose(ratio(catalog), wanted, rtol=1e-3)


@pytest.mark.parametrize("given", [None, 0.3])
def test_block_by_block_too(given, pixels, how, coordinates, tmp_path):
    fits.writeto(tmp_path / "image.fits", pixels, coordinates.to_header())
    settings = StreamSettings(
        image=str(tmp_path / "image.fits"), block=64, pixel_scale=given,
        **how | {"model": str(how["model"])},
    )  # fmt: skip
    stream(settings, tmp_path / "out")
    with fits.open(tmp_path / "out" / "catalog.fits") as hdus:
        np.testing.assert_allclose(ratio(hdus[1].data), given or SCALE, rtol=1e-3)


@pytest.mark.parametrize("command", ["segment", "measure"])
def test_the_command_line_passes_it_on(command, pixels, how, tmp_path, monkeypatch):
    fits.writeto(tmp_path / "image.fits", pixels)
    (tmp_path / "at.csv").write_text("x,y\n20,22\n60,50\n")
    out = tmp_path / ("out" if command == "segment" else "out.fits")
    more = {"segment": ["--min-p-source", 0.0], "measure": ["--positions", tmp_path / "at.csv"]}
    words = [command, tmp_path / "image.fits", "--model", how["model"], "--rms", 1.0,
             "--background", "none", "--psf-fwhm", 3.0, "--samples", 1, "--pixel-scale", 0.3,
             "-o", out, *more[command]]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["probablend", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    with fits.open(out / "catalog.fits" if command == "segment" else out) as hdus:
        np.testing.assert_allclose(ratio(hdus[1].data), 0.3, rtol=1e-3)


@pytest.mark.parametrize("scale", [0.0, -0.2, np.nan, np.inf])
def test_one_that_is_none_is_refused(pixels, how, scale):
    with pytest.raises(ValueError, match="pixel_scale must be positive, arcsec"):
        segment(pixels, **how, pixel_scale=scale)


def test_the_quicklook_of_a_masked_middle_warns_of_nothing(pixels, how, tmp_path, recwarn):
    image = np.full((300, 300), np.nan, np.float32)
    image[:40, :40] = pixels[:40, :40]
    fits.writeto(tmp_path / "image.fits", image)
    settings = StreamSettings(
        image=str(tmp_path / "image.fits"), block=96, **how | {"model": str(how["model"])}
    )
    summary = stream(settings, tmp_path / "out")
    assert "quicklook" in summary["products"]
    assert not [w for w in recwarn if "All-NaN" in str(w.message)]
