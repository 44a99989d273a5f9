"""A PSF that changes over the image is that of each place, whatever the tiling."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable

from probablend.flags import Flag
from probablend.infer.segment import segment
from probablend.infer.stream import StreamSettings, stream


@pytest.fixture(scope="module")
def scene(galaxies):
    from probablend.emulate.blend import FieldConfig, draw_field

    config = FieldConfig(size=288, mag_range=(20.5, 25.0), companion_fraction=0.4)
    return draw_field(galaxies, config, generator=np.random.default_rng(4))


@pytest.fixture(scope="module")
def look(scene, field_weights):
    def look(psf_fwhm, **settings):
        return segment(
            scene.image, rms=scene.rms, model=field_weights, background="none", n_samples=2,
            psf_fwhm=psf_fwhm, **settings,
        )  # fmt: skip

    return look


def test_a_map_of_one_value_is_that_value(scene, look):
    one, everywhere = look(1.7), look(np.full(scene.image.shape, 1.7))
    np.testing.assert_allclose(everywhere.p_blend, one.p_blend, atol=1e-5)
    np.testing.assert_allclose(everywhere.catalog["flux"], one.catalog["flux"], rtol=1e-4)
    assert everywhere.meta["psf_fwhm"] == pytest.approx(1.7)


def test_each_side_is_seen_with_its_own_psf(scene, look):
    n = scene.image.shape[1]
    widths = np.full(scene.image.shape, 1.5)
    widths[:, n // 2 :] = 2.5
    both, left, right = look(widths), look(1.5), look(2.5)
    reach = 110  # of the small network, and more
    np.testing.assert_allclose(
        both.p_galaxy[:, : n // 2 - reach], left.p_galaxy[:, : n // 2 - reach], atol=1e-5
    )
    np.testing.assert_allclose(
        both.p_galaxy[:, n // 2 + reach :], right.p_galaxy[:, n // 2 + reach :], atol=1e-5
    )
    assert abs(left.p_galaxy - right.p_galaxy).max() > 0.01


def test_tiles_and_blocks_change_nothing(scene, look, field_weights, tmp_path):
    y, x = np.indices(scene.image.shape)
    widths = (1.4 + 0.003 * x + 0.001 * y).astype(np.float32)
    whole, tiled = look(widths, tile_size=512), look(widths, tile_size=64)
    np.testing.assert_allclose(tiled.p_galaxy, whole.p_galaxy, atol=1e-4)
    np.testing.assert_allclose(tiled.catalog["flux"], whole.catalog["flux"], rtol=1e-3)
    fits.writeto(tmp_path / "image.fits", scene.image)
    fits.writeto(tmp_path / "psf.fits", widths)
    settings = StreamSettings(
        image=str(tmp_path / "image.fits"), rms=scene.rms, model=str(field_weights), n_samples=2,
        background="none", psf_fwhm=str(tmp_path / "psf.fits"), block=96,
    )  # fmt: skip
    stream(settings, tmp_path / "out")
    streamed = fits.getdata(tmp_path / "out" / "maps.fits", "P_GALAXY")
    np.testing.assert_allclose(streamed, whole.p_galaxy, atol=1e-4)
    rows = QTable.read(tmp_path / "out" / "catalog.fits")
    np.testing.assert_allclose(rows["flux"], whole.catalog["flux"], rtol=2e-3)
    # What the small weights were not trained on is flagged where it is.
    wide = np.asarray(whole.catalog["x"].value) * 0.003 + 1.4 > 2.1
    flagged = (np.asarray(whole.catalog["flags"]) & Flag.OUT_OF_RANGE) > 0
    assert flagged[wide].all()
    assert not flagged[~wide].all()


def test_maps_that_make_no_sense(scene, look, field_weights, tmp_path):
    with pytest.raises(ValueError, match="shape"):
        look(np.ones((3, 3)))
    bad = np.full(scene.image.shape, 1.7)
    bad[4, 5] = 0
    with pytest.raises(ValueError, match="1 pixels where it is not"):
        look(bad)
    masked = np.zeros(bad.shape, bool)
    masked[4, 5] = True
    look(bad, mask=masked)
    fits.writeto(tmp_path / "image.fits", scene.image)
    fits.writeto(tmp_path / "psf.fits", bad[:100])
    settings = StreamSettings(
        image=str(tmp_path / "image.fits"), model=str(field_weights),
        psf_fwhm=str(tmp_path / "psf.fits"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="psf_fwhm must have the image's shape"):
        stream(settings, tmp_path / "out")
