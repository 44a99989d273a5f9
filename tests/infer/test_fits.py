"""Networks that look twice: profiles fitted to what was seen first."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import QTable

from probablend.checkpoint import load_model
from probablend.emulate.bank import draw_bank
from probablend.emulate.compose import draw_batch
from probablend.emulate.psf import survey_psf
from probablend.emulate.scenes import SceneConfig
from probablend.infer.scan import scan_image
from probablend.infer.segment import segment
from probablend.infer.stream import StreamSettings, stream
from probablend.infer.tiles import Window
from probablend.models.field import FieldNetwork
from probablend.models.start import take_over
from probablend.psf import PSF

COLUMNS = ("flux", "hlr", "g1", "g2", "x", "y")


@pytest.fixture(scope="module")
def look(scene, fitting_weights):
    def look(model=fitting_weights, **settings):
        return segment(
            scene.image, rms=scene.rms, n_samples=2, model=model, background="none",
            **({"psf": survey_psf(scene.survey)} | settings),
        )  # fmt: skip

    return look


@pytest.fixture(scope="module")
def result(look):
    return look()


def off(first, second):
    """The largest difference of each column, in half widths of the 68 % intervals."""
    seen = {}
    for name in COLUMNS:
        a, b = (np.asarray(getattr(t[name], "value", t[name]), float) for t in (first, second))
        width = np.asarray(getattr(first[f"{name}_err"], "value", first[f"{name}_err"]), float)
        seen[name] = float((np.abs(a - b) / width).max())
    return seen


def test_tiles_and_blocks_change_nothing(scene, look, result, fitting_weights, tmp_path):
    """Fits are done when all tiles have been seen: no neighbour is missed at a border."""
    tiled = look(tile_size=64)
    np.testing.assert_allclose(tiled.p_blend, result.p_blend, atol=1e-5)
    assert len(tiled.catalog) == len(result.catalog) > 5
    assert max(off(result.catalog, tiled.catalog).values()) < 0.01
    fits.writeto(tmp_path / "image.fits", scene.image)
    fits.writeto(tmp_path / "psf.fits", survey_psf(scene.survey).image)
    settings = StreamSettings(
        image=str(tmp_path / "image.fits"), rms=scene.rms, model=str(fitting_weights),
        n_samples=2, background="none", psf=str(tmp_path / "psf.fits"), block=96,
    )  # fmt: skip
    stream(settings, tmp_path / "out")
    rows = QTable.read(tmp_path / "out" / "catalog.fits")
    whole = look(psf=PSF.read(tmp_path / "psf.fits"))
    assert len(rows) == len(whole.catalog)
    assert max(off(whole.catalog, rows).values()) < 0.01


def test_what_lies_around_a_block_is_a_neighbour_of_its_sources(scene, fitting_weights):
    """It is not fitted itself, and what is said of the others stays the same."""
    network, _ = load_model(fitting_weights)
    psf = survey_psf(scene.survey)

    def found(wanted=None):
        scan = scan_image(
            network, (scene.image / scene.rms).astype(np.float32), n_samples=1, seed=0,
            psf_fwhm=psf.fwhm, psf_wings=psf.wings, psf_image=psf.image, tile_size=200,
            device=torch.device("cpu"), window=Window(wanted=wanted),
        )  # fmt: skip
        return scan.found

    rows, columns = slice(40, 150), slice(60, 160)
    every, some = found(), found((rows, columns))
    y, x = every.pixel.T
    inside = (y >= 40) & (y < 150) & (x >= 60) & (x < 160)
    assert 3 < inside.sum() < len(every) - 3
    np.testing.assert_array_equal(some.pixel, every.pixel[inside])
    np.testing.assert_allclose(some.p_source, every.p_source[inside], atol=1e-4)
    # Sums in another order end elsewhere in the last hundredth of χ²; these are of order one.
    torch.testing.assert_close(some.context, every.context[inside], rtol=0, atol=1e-2)


def test_the_image_of_the_psf_counts_for_sources_not_for_maps(scene, look, result):
    plain = replace(survey_psf(scene.survey), image=None)
    other = look(psf=plain)
    np.testing.assert_array_equal(other.p_blend, result.p_blend)
    y, x = np.mgrid[-20:21, -20:21]
    wide = np.exp(-0.5 * (x**2 + y**2) / 2.5**2)
    odd = look(psf=replace(plain, image=(wide / wide.sum()).astype(np.float32)))
    np.testing.assert_array_equal(odd.p_blend, result.p_blend)
    assert (
        len(odd.catalog) != len(result.catalog)
        or max(off(result.catalog, odd.catalog).values()) > 0.1
    )


def test_positions_that_are_asked_for_are_fitted_in_their_order(look, result):
    at = np.stack([result.catalog["y"].value, result.catalog["x"].value], axis=1)[::-1]
    asked = look(positions=at).catalog
    assert len(asked) == len(at)
    np.testing.assert_allclose(asked["x"].value, at[:, 1], atol=1.5)
    assert np.isfinite(np.asarray(asked["flux"])).all()
    again = look(positions=at[:3]).catalog  # what else is there is found, not asked for
    assert max(off(asked[:3], again).values()) < 0.01


def test_without_fits_it_says_what_it_said_before(field_weights):
    before, _ = load_model(field_weights)
    network = FieldNetwork(replace(before.config, fits=True))
    take_over(network, before, [])
    network.eval()
    image = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    image[0, 0, 30:34, 30:34] += 20
    scene, at = torch.zeros(1, dtype=torch.int64), torch.tensor([31.4])
    with torch.no_grad():
        wanted = before(image).context(scene, at, at, detected=True)
        said = replace(network(image), fitting=False).context(scene, at, at, detected=True)
        fitted = network(image).context(scene, at, at, detected=True)
    n = wanted.shape[1]
    torch.testing.assert_close(said[:, :n], wanted)
    assert not torch.allclose(fitted[:, n - 1], wanted[:, n - 1])
    values = torch.zeros(1, 10)
    torch.testing.assert_close(
        network.flow(said).log_prob(values), before.flow(wanted).log_prob(values)
    )


def test_trust_in_fits_is_learnt(fitting_weights, survey):
    network, _ = load_model(fitting_weights)
    network.train()
    bank = draw_bank(
        "parametric", [survey], "train", n_galaxies=30, n_stars=3, mag_range=(20.0, 24.0), seed=2
    )
    scenes = SceneConfig(size=48, mag_range=(20.0, 24.0), psf_fraction=1.0, isolated_fraction=0.5)
    batch = draw_batch(bank, scenes, n=6, seed=1, index=0)
    assert batch.psf_image.isfinite().all()
    learnt = []
    for seed in range(8):  # one step in four is without fits
        network.zero_grad()
        terms = network.training_loss(
            batch, generator=torch.Generator().manual_seed(seed), beta=1.0
        )
        terms["loss"].backward()
        rows = network.photometry.outer.weight.grad[len(network.config.apertures) + 1 :]
        learnt.append(bool((rows != 0).any()))
    assert 0 < sum(learnt) < len(learnt)
