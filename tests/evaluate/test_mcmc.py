"""The reference posterior: its images, its prior, and what compares it with the network."""

import galsim
import numpy as np
import pytest
from scipy.stats import norm

from probablend.emulate.parametric import sersic_profile
from probablend.emulate.psf import psf_profile
from probablend.evaluate.mcmc import (
    NAMES,
    Renderer,
    compare_posteriors,
    draw_blend,
    log_prior,
    run_ensemble,
    sample_network,
    two_sample_accuracy,
)
from probablend.survey import get_survey


@pytest.fixture(scope="module")
def renderer():
    return Renderer(get_survey("euclid-vis"), 64)


@pytest.mark.parametrize(("index", "radius"), [(0.5, 3.0), (1.1, 2.0), (4.0, 1.5)])
def test_images_are_those_of_galsim(renderer, survey, index, radius):
    y, x, shear = 30.2, 34.7, (0.3, -0.2)
    parameters = np.array([np.log(500.0), np.log(radius), *shear, y, x, np.log(index)])
    ours = renderer(np.stack([parameters, parameters])[None])[0] / 2
    profile = sersic_profile(index, radius * survey.scale).shear(g1=shear[0], g2=shear[1]) * 500
    theirs = galsim.Convolve(profile, psf_profile(survey)).drawImage(
        nx=64, ny=64, scale=survey.scale, offset=(x - 31.5, y - 31.5), dtype=float
    )
    assert np.abs(ours - theirs.array).max() < 0.02 * theirs.array.max()
    assert ours.sum() == pytest.approx(500, rel=1e-3)


def test_blends_are_drawn_from_the_prior_and_seen(survey):
    blends = [draw_blend(survey, generator=np.random.default_rng([1, k])) for k in range(8)]
    for blend in blends:
        assert np.isfinite(log_prior(blend.truth[None], survey)).all()
        assert (blend.snr >= 10).all()
        assert 2 <= blend.separation <= 12
        flux = np.exp(blend.truth[:, 0]).sum()
        outside = 4 * blend.survey.sky_rms * blend.image.shape[0]
        assert blend.image.sum() == pytest.approx(flux, abs=outside + 0.05 * flux)


def test_what_cannot_be_has_no_probability(survey):
    blend = draw_blend(survey, generator=np.random.default_rng(3))
    for name, value in (("g1", 0.9), ("ln_n", np.log(9.0)), ("ln_hlr", 5.0), ("y", 2.0)):
        parameters = blend.truth[None].copy()
        parameters[0, 1, NAMES.index(name)] = value
        assert log_prior(parameters, survey)[0] == -np.inf


def test_the_walk_samples_a_gaussian_as_wide_as_it_is():
    scale = np.geomspace(0.1, 10.0, 14)
    start = scale * 3 * np.random.default_rng(1).normal(size=(64, 14))
    chain, effective = run_ensemble(
        lambda x: -0.5 * ((x / scale) ** 2).sum(axis=1), start, n_steps=4000, seed=2
    )
    assert effective > 1000
    np.testing.assert_allclose((chain / scale).std(axis=0).mean(), 1.0, atol=0.025)
    np.testing.assert_allclose((chain / scale).mean(axis=0), 0.0, atol=0.15)


def test_the_classifier_finds_what_it_should():
    generator = np.random.default_rng(4)
    first, second = generator.normal(size=(2, 4000, 3))
    assert two_sample_accuracy(first, second) == pytest.approx(0.5, abs=0.03)
    # The best classifier of two unit Gaussians d apart is right in Φ(d/2) of the cases.
    moved = second + np.array([1.0, 0.0, 0.0])
    assert two_sample_accuracy(first, moved) == pytest.approx(norm.cdf(0.5), abs=0.02)
    assert two_sample_accuracy(first, 3 * second) > 0.75


def test_the_network_speaks_of_the_same_quantities(survey, field_weights):
    blend = draw_blend(survey, generator=np.random.default_rng(6))
    drawn = sample_network(blend, model=field_weights, n=50, seed=0)
    assert drawn.shape == (50, 2, 6)
    assert np.isfinite(drawn).all()
    assert np.abs(np.median(drawn, axis=0)[:, 4:] - blend.truth[:, 4:6]).max() < 5  # pixels


def test_a_comparison_goes_on(survey, field_weights, small_weights, tmp_path):
    settings = {"n_steps": 24, "seed": 2, "model": field_weights}
    seen = []
    compare_posteriors(survey, tmp_path, n_blends=1, **settings)
    report = compare_posteriors(survey, tmp_path, n_blends=2, **settings,
                                progress=lambda *a: seen.append(a))  # fmt: skip
    assert seen == [(2, 2)]
    assert len(report["blends"]) == 2
    assert "C2ST" in (tmp_path / "mcmc.md").read_text()
    assert (tmp_path / "mcmc.png").is_file()
    with pytest.raises(ValueError, match="pixels only"):
        compare_posteriors(survey, tmp_path, n_blends=1, **settings | {"model": small_weights})
    with pytest.raises(ValueError, match="another seed"):
        compare_posteriors(survey, tmp_path, n_blends=2, **settings | {"seed": 3})
