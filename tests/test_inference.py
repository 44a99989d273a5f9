"""Priors are densities, weights change them, counts are recovered through errors and losses."""

import logging

import numpy as np
import pytest
from scipy.stats import kstest, norm

from probablend.emulate.parametric import ParametricGalaxies
from probablend.infer.segment import segment
from probablend.inference import (
    CountsLikelihood,
    Population,
    counts_completeness,
    effective_sample_size,
    importance_weights,
    interval,
    load_posterior,
    save_posterior,
)
from probablend.survey import get_survey


def test_the_prior_is_that_of_the_emulator():
    population = Population(mag_range=(20.0, 26.0), slope=0.1)  # a bank's own counts
    galaxies = ParametricGalaxies(
        get_survey("euclid-vis"), n_galaxies=6000, n_stars=0, mag_range=(20.0, 26.0), seed=1
    )
    table = galaxies.table
    mag, hlr, g1, g2 = (np.asarray(table[k], float) for k in ("mag", "hlr", "g1", "g2"))

    def cdf(m):
        return (10 ** (0.1 * m) - 10**2.0) / (10**2.6 - 10**2.0)

    assert kstest(mag, cdf).pvalue > 1e-3
    mean = population.log_prob(mag, hlr, g1, g2)
    assert np.isfinite(mean).all()
    # Against an independent estimate of the mean log density: the entropy by nearest neighbours
    # (Kozachenko & Leonenko 1987).
    from scipy.spatial import KDTree
    from scipy.special import digamma

    scale = np.array([1.5, 0.6, 0.3, 0.3])
    points = np.stack([mag, np.log(hlr), g1, g2], axis=1) / scale
    distance = KDTree(points).query(points, k=2)[0][:, 1]
    n = len(points)
    entropy = np.log(distance).mean() * 4 + np.log(np.pi**2 / 2) + digamma(n) - digamma(1)
    entropy += np.log(scale).sum()
    assert -mean.mean() == pytest.approx(entropy, abs=0.12)


def test_the_prior_is_normalised():
    population = Population(mag_range=(20.0, 24.0))
    generator = np.random.default_rng(0)
    n = 400_000
    mag, ln_hlr = generator.uniform(20, 24, n), generator.uniform(np.log(0.01), np.log(8), n)
    radius, angle = np.sqrt(generator.uniform(0, 1, n)), generator.uniform(0, 2 * np.pi, n)
    volume = 4 * (np.log(8) - np.log(0.01)) * np.pi
    p = np.exp(
        population.log_prob(mag, np.exp(ln_hlr), radius * np.cos(angle), radius * np.sin(angle))
    )
    assert p.mean() * volume == pytest.approx(1, abs=5 * volume * p.std() / np.sqrt(n))
    assert np.isneginf(population.log_prob_mag(np.array([19.9, 24.1]))).all()


def test_weights_turn_one_prior_into_another():
    # Prior N(0, 2²), data 1 ± 1 → posterior N(0.8, 0.8); prior N(1, 1) → N(1, 0.5).
    generator = np.random.default_rng(1)
    draws = generator.normal(0.8, np.sqrt(0.8), size=(20_000, 3))
    weight = importance_weights(norm.logpdf(draws, 1, 1), norm.logpdf(draws, 0, 2))
    assert weight.sum(axis=0) == pytest.approx(1)
    mean = (weight * draws).sum(axis=0)
    assert mean == pytest.approx(1.0, abs=0.03)
    assert (weight * (draws - mean) ** 2).sum(axis=0) == pytest.approx(0.5, abs=0.03)
    assert (effective_sample_size(weight) > 8000).all()
    assert effective_sample_size(np.full((100, 1), 0.01)) == pytest.approx(100)


def test_a_prior_far_away_is_warned_of(caplog):
    draws = np.random.default_rng(1).normal(size=(200, 4))
    with caplog.at_level(logging.WARNING, logger="probablend"):
        importance_weights(norm.logpdf(draws, 8, 0.5), norm.logpdf(draws, 0, 3))
    assert "4 of 4 sources" in caplog.text
    with pytest.raises(ValueError, match="not theirs"):
        importance_weights(np.zeros((2, 1)), np.full((2, 1), -np.inf))


def test_a_draw_where_the_old_prior_is_zero_has_no_weight():
    old = np.array([[0.0], [-np.inf], [0.0]])
    weight = importance_weights(np.array([[0.0], [5.0], [np.log(3)]]), old)
    assert weight[:, 0] == pytest.approx([0.25, 0.0, 0.75])


def counts(slope, n, generator, low=20.0, high=25.0):
    ends = 10 ** (slope * low), 10 ** (slope * high)
    return np.log10(generator.uniform(*ends, size=generator.poisson(n))) / slope


@pytest.mark.parametrize("ends", [(18.0, 26.0), (17.0, 27.0)])
@pytest.mark.parametrize("n", [41, 321])
def test_as_many_are_expected_as_there_are(ends, n):
    population = Population(mag_range=(18.0, 26.0))
    grid = np.linspace(*ends, n)
    likelihood = CountsLikelihood(
        mags=np.full((1, 1), 22.0), population=population, grid=grid, completeness=np.ones(n)
    )
    low, high = (10 ** (0.3 * (m - likelihood.pivot)) / (0.3 * np.log(10)) for m in (18, 26))
    assert likelihood.expected(0.3, 2.0) == pytest.approx(np.exp(2.0) * (high - low), rel=3e-3)


def test_counts_are_recovered_through_errors_losses_and_another_prior():
    population = Population(mag_range=(20.0, 25.0), slope=0.3)
    grid = np.linspace(19, 26, 351)
    error, true_slope, n = 0.4, 0.45, 800

    def completeness(m):
        return norm.sf(m, 24.3, 0.4)

    slopes = np.linspace(0.3, 0.6, 61)
    hits = biased = 0
    n_fields = 40
    for seed in range(n_fields):
        generator = np.random.default_rng(seed)
        true = counts(true_slope, n, generator)
        true = true[generator.uniform(size=len(true)) < completeness(true)]
        seen = true + error * generator.normal(size=len(true))
        # Posterior under the model's prior, of a galaxy that was detected.
        fine = np.linspace(20, 25, 1001)
        prior = np.exp(population.log_prob_mag(fine)) * completeness(fine)
        density = norm.pdf(fine[:, None], seen, error) * prior[:, None]
        cumulative = np.cumsum(density, axis=0)
        cumulative /= cumulative[-1]
        draws = np.stack(
            [np.interp(generator.uniform(size=200), c, fine) for c in cumulative.T], axis=1
        )
        likelihood = CountsLikelihood(
            mags=draws, population=population, grid=grid, completeness=completeness(grid)
        )

        # The normalisation is free: its best value is that which expects what was found.
        inside = (grid >= 20) & (grid <= 25)
        expected = [
            (10 ** (s * (grid - 23)) * inside * completeness(grid)).sum() * 0.02 for s in slopes
        ]
        densities = np.log(len(seen) / np.array(expected))
        profile = np.array([likelihood(s, d) for s, d in zip(slopes, densities, strict=True)])
        p = np.exp(profile - profile.max())
        cumulative = np.cumsum(p) / p.sum()
        low, high = np.interp([0.16, 0.84], cumulative, slopes)
        hits += low < true_slope < high
        middle = np.interp(0.5, cumulative, slopes)
        # Point estimates, losses and errors forgotten.
        sample = seen[(seen > 20) & (seen < 25)]
        rate = (25 - sample).mean()
        naive = 1 / rate / np.log(10)
        biased += abs(naive - true_slope) > 3 * abs(high - low) / 2
        assert abs(middle - true_slope) < 4 * (high - low) / 2 + 0.02
    assert 0.5 * n_fields <= hits <= 0.86 * n_fields
    assert biased > 0.8 * n_fields


def test_what_counts_hold_is_learnt_from_fields_that_are_known():
    """Losses and false detections, through errors of 0.3 mag and a prior of another slope."""
    generator = np.random.default_rng(8)
    slope, low, high, prior = 0.4, 20.0, 26.0, Population(mag_range=(20.0, 26.0))

    def draw(rate, n):  # of counts 10^(rate m) by inversion
        k = rate * np.log(10)
        return low + np.log1p(generator.random(n) * np.expm1(k * (high - low))) / k

    true = draw(slope, 60_000)
    share = np.where(true < 24, 0.95, 0.6)
    kept = true[generator.random(len(true)) < share]
    false = draw(slope, len(true) // 10)  # false ones are as many as 10 % of the true
    at = np.concatenate([kept, false])
    seen = at + 0.3 * generator.normal(size=len(at))
    # Posterior: Gaussian times the prior's 10^(0.3 m), cut at its ends.
    shift = 0.3**2 * prior.slope * np.log(10)
    mags = seen + shift + 0.3 * generator.normal(size=(128, len(at)))
    edges = np.linspace(low, high, 13)
    ratio = counts_completeness(mags, true, edges, population=prior, slope=slope)
    assert ratio[3:7].mean() == pytest.approx(1.05, abs=0.03)
    assert ratio[9:11].mean() == pytest.approx(0.70, abs=0.04)
    assert (ratio * np.histogram(true, edges)[0]).sum() == pytest.approx(len(at), rel=0.02)
    with pytest.raises(ValueError, match="between 20 and"):
        counts_completeness(mags, true[true > 21], edges, population=prior, slope=slope)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="mag_range"):
        Population(mag_range=(26.0, 20.0))
    with pytest.raises(ValueError, match="level"):
        interval(np.zeros(3), 1.5)
    with pytest.raises(ValueError, match="finite"):
        CountsLikelihood(
            mags=np.full((3, 2), np.nan), population=Population(), grid=np.arange(3.0),
            completeness=np.ones(3),
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"grid must cover .* 18 to 26; it covers 18 to 25"):
        CountsLikelihood(
            mags=np.full((3, 2), 22.0), population=Population(), grid=np.arange(18.0, 26.0),
            completeness=np.ones(8),
        )  # fmt: skip


def test_posteriors_are_kept_and_read_again(scene, field_weights, tmp_path):
    result = segment(scene.image, rms=scene.rms, n_samples=1, model=field_weights, psf_fwhm=1.7)
    posterior = result.sources.posterior
    save_posterior(posterior, tmp_path / "p.safetensors", model=field_weights)
    again = load_posterior(tmp_path / "p.safetensors")
    values = posterior.sample(3)
    np.testing.assert_allclose(
        again.log_prob(values).detach(), posterior.log_prob(values).detach(), rtol=1e-5
    )
    low, high = interval(values.detach().numpy())
    assert (low <= high).all()
    with pytest.raises(ValueError, match="no posterior"):
        load_posterior(field_weights)
