from dataclasses import replace

import numpy as np
import pytest
from astropy.table import Table

from probablend.emulate.blend import Placed, make_scene
from probablend.emulate.stamps import Stamp
from probablend.evaluate.photometry import (
    BINS,
    binned_scatter,
    coverage_scores,
    fisher_limit,
    flux_scores,
    matched_sources,
    photometry,
    shape_scores,
    unrecognised_blends,
)
from probablend.models.source import PARAMETERS

SIGMA = 3.0  # pixels, of Gaussian galaxies


def gaussian_scene(survey, centres, fluxes, size=96):
    n = 48
    y, x = np.mgrid[: n + 1, : n + 1] - n / 2
    shape = np.exp(-(y**2 + x**2) / (2 * SIGMA**2)) / (2 * np.pi * SIGMA**2)
    placed = []
    for k, ((cy, cx), flux) in enumerate(zip(centres, fluxes, strict=True)):
        stamp = Stamp(image=(flux * shape).astype(np.float32), flux=flux, y=n / 2, x=n / 2,
                      hlr=3.0, g1=0.0, g2=0.0, galaxy=k)  # fmt: skip
        placed.append(Placed(stamp, cy - n // 2, cx - n // 2))
    return make_scene(placed, survey, (size, size), generator=np.random.default_rng(0))


@pytest.fixture
def quiet(survey):
    """A survey whose sources bring no noise of their own."""
    return replace(survey, gain=1e9)


def test_the_fisher_limit_of_one_source_is_one_over_its_signal_to_noise(quiet):
    flux = 200 * quiet.sky_rms
    scene = gaussian_scene(quiet, [(48, 48)], [flux])
    snr = 200 / (2 * np.sqrt(np.pi) * SIGMA)  # of a Gaussian on white noise
    np.testing.assert_allclose(fisher_limit(scene), 1 / snr, rtol=1e-3)


def test_the_fisher_limit_of_a_pair_is_the_closed_form(quiet):
    """Correlation of two equal Gaussians at distance d: ρ = exp(−d²/4σ²); limit ∝ 1/√(1 − ρ²)."""
    flux = 400 * quiet.sky_rms
    for d in (2, 5, 9):
        scene = gaussian_scene(quiet, [(48, 44), (48, 44 + d)], [flux, flux])
        rho = np.exp(-(d**2) / (4 * SIGMA**2))
        alone = 2 * np.sqrt(np.pi) * SIGMA / 400
        np.testing.assert_allclose(fisher_limit(scene), alone / np.sqrt(1 - rho**2), rtol=2e-3)


def test_the_fisher_limit_of_a_bright_source_is_its_photon_noise(survey):
    flux = 1e7 * survey.sky_rms
    limit = fisher_limit(gaussian_scene(survey, [(48, 48)], [flux]))
    np.testing.assert_allclose(limit, 1 / np.sqrt(flux * survey.gain), rtol=1e-2)


def test_flux_scores_are_what_their_names_say():
    rng = np.random.default_rng(1)
    true = 10 ** rng.uniform(2, 4, 20_000)
    error = 0.1 * rng.standard_normal(len(true)) + 0.03
    error[:400] = 2.0
    table = Table({"flux": true * 10 ** (0.4 * error), "flux_true": true})
    scores = flux_scores(table)
    assert scores["nmad"] == pytest.approx(0.1, abs=0.005)
    assert scores["bias"] == pytest.approx(0.03, abs=0.005)
    assert scores["outliers"] == pytest.approx(0.02, abs=1e-6)
    perfect = flux_scores(Table({"flux": true, "flux_true": true}))
    assert perfect["nmad"] == perfect["bias"] == perfect["mean_relative"] == 0
    negative = flux_scores(Table({"flux": -true, "flux_true": true}))
    assert negative["outliers"] == 1


def ranks(draw, n=4000):
    rng = np.random.default_rng(2)
    values = {f"rank_{k}": draw(rng, n) for k in ("flux", "hlr", "g1", "g2")}
    return Table(
        values | {"is_star": np.zeros(n, bool), "snr": rng.uniform(3, 100, n),
                  "separation": rng.uniform(0, 20, n)}
    )  # fmt: skip


def test_coverage_of_a_calibrated_posterior_and_of_narrow_ones():
    fair = coverage_scores(ranks(lambda rng, n: rng.uniform(size=n)))
    for name in ("flux", "g2"):
        for level in (50, 68, 90, 95):
            assert fair[name][f"{level}"] == pytest.approx(level / 100, abs=0.03)
        assert abs(fair[name]["68_worst_bin"]) < 0.06
        assert fair[name]["kolmogorov"] < 0.03
    narrow = coverage_scores(ranks(lambda rng, n: rng.beta(0.4, 0.4, size=n)))
    assert narrow["flux"]["68"] < 0.6
    assert narrow["flux"]["68_worst_bin"] < -0.08


def test_coverage_is_told_bin_by_bin():
    table = ranks(lambda rng, n: rng.uniform(size=n))
    close = np.asarray(table["separation"]) < 5
    table["rank_flux"][close] = 0.5 + 0.2 * (np.asarray(table["rank_flux"])[close] - 0.5)
    coverage = coverage_scores(table)["flux"]
    low, *others = [b for b in coverage["bins"] if b["bin"] == "separation"]
    assert (low["low"], low["high"], low["n"]) == (0.0, 5.0, close.sum())
    assert low["50"] == 1
    assert coverage["50_worst_bin"] == 0.5
    assert all(b["50"] == pytest.approx(0.5, abs=0.06) for b in others)
    assert others[-1]["high"] is None


def test_errors_are_binned_by_what_makes_them():
    rng = np.random.default_rng(3)
    n = 3000
    table = Table({"flux_true": np.ones(n), "flux": np.ones(n), "fisher": np.full(n, 0.1),
                   "snr": rng.uniform(3, 100, n), "separation": rng.uniform(0, 20, n),
                   "relative": rng.uniform(0, 6, n),
                   "delta_mag": rng.uniform(-3, 3, n)})  # fmt: skip
    faint = np.asarray(table["delta_mag"]) >= 2
    table["flux"][faint] = 1.5
    rows = [r for r in binned_scatter(table) if r["bin"] == "delta_mag"]
    assert [r["low"] for r in rows] == [None, -2, -1, 0, 1, 2]
    assert [r["mean_relative"] for r in rows] == [0, 0, 0, 0, 0, 0.5]
    assert rows[-1]["n"] == faint.sum()
    assert {r["bin"] for r in binned_scatter(table)} == set(BINS)


def test_shape_scores_are_what_their_names_say():
    rng = np.random.default_rng(4)
    n = 20_000
    true = {name: rng.normal(0, 0.3, n) for name in ("g1", "g2")}
    table = Table({"hlr_true": np.full(n, 3.0), "hlr": 3 * np.exp(0.1 + 0.2 * rng.normal(size=n))})
    for name, slope in (("g1", 1.0), ("g2", 0.8)):
        table[f"{name}_true"] = true[name]
        table[name] = slope * true[name] + 0.01 + 0.05 * rng.normal(size=n)
    table["hlr"][0] = table["g1"][1] = np.nan
    scores = shape_scores(table)
    assert scores["ln_hlr_bias"] == pytest.approx(0.1, abs=0.01)
    assert scores["ln_hlr_nmad"] == pytest.approx(0.2, abs=0.01)
    assert scores["g1_multiplicative_bias"] == pytest.approx(0, abs=0.01)
    assert scores["g2_multiplicative_bias"] == pytest.approx(-0.2, abs=0.01)
    assert scores["g1_nmad"] == pytest.approx(0.05, abs=0.005)
    assert scores["g1_additive_bias"] == pytest.approx(0.01, abs=0.003)


def test_ranks_are_those_of_the_truth_among_the_draws(survey):
    scene = gaussian_scene(survey, [(30, 30), (60, 60)], [300 * survey.sky_rms] * 2)
    catalog = Table({"x": [60.2, 30.1], "y": [60.0, 30.0], "flux": [1.0, 2.0]})
    draws = np.zeros((4, 2, len(PARAMETERS)))
    flux = 300 * survey.sky_rms
    draws[:, 0, 0] = flux * np.array([0.5, 0.6, 0.7, 1.5])
    draws[:, 1, 0] = flux * np.array([1.1, 1.2, 1.3, 1.5])
    table = matched_sources(scene, catalog, draws)
    by_flux = dict(zip(table["flux"], table["rank_flux"], strict=True))
    assert 0.6 <= by_flux[1.0] <= 0.8  # the fourth of five places
    assert 0.0 <= by_flux[2.0] <= 0.2
    np.testing.assert_allclose(table["separation"], np.hypot(30, 30))
    np.testing.assert_allclose(table["relative"], np.hypot(30, 30) / 3)  # half-light radii of 3
    np.testing.assert_allclose(table["delta_mag"], 0, atol=1e-6)


def test_a_pair_seen_as_one_is_unrecognised_until_it_is_announced(survey):
    flux = 2000 * survey.sky_rms
    scene = gaussian_scene(survey, [(48, 44), (48, 50), (20, 20)], [flux] * 3)
    one = Table({"x": [46.0, 20.0], "y": [48.0, 20.0], "p_blend": [0.9, 0.0], "flux": [1.0, 1.0]})
    sky = np.zeros(scene.image.shape, int)
    both = {"pairs": 1, "unrecognised": 1, "announced": 1}
    assert unrecognised_blends(scene, one, sky) == both
    between = one.copy()
    between["x"] = [47.0, 20.0]
    between["y"] = [53.0, 20.0]  # too far from either, but it covers them
    assert unrecognised_blends(scene, between, sky)["unrecognised"] == 0
    covered = sky.copy()
    covered[40:60, 36:58] = 1
    assert unrecognised_blends(scene, between, covered) == both
    one["p_blend"] = 0.1
    assert unrecognised_blends(scene, one, sky)["announced"] == 0
    two = Table({"x": [44.0, 50.0], "y": [48.0, 48.0], "p_blend": [1.0, 1.0], "flux": [1.0, 1.0]})
    assert unrecognised_blends(scene, two, covered) == {
        "pairs": 1,
        "unrecognised": 0,
        "announced": 0,
    }


def test_the_truth_as_catalogue_scores_perfectly(scene):
    catalog = scene.catalog["x", "y", "flux"]
    catalog["p_blend"] = 1.0
    scores = photometry([scene], [catalog], [np.zeros(scene.image.shape, int)], [None])
    assert scores["flux_all_snr10"]["nmad"] == pytest.approx(0, abs=1e-9)
    assert scores["pairs"]["unrecognised"] == 0
    assert scores["coverage"] == {}
