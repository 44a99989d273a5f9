"""The same counts from emcee, NUTS and variational inference as from the likelihood on a grid."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm

from probablend.bayes import counts_log_likelihood, counts_model
from probablend.inference import CountsLikelihood, Population, sample_counts

pyro = pytest.importorskip("pyro")
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO  # noqa: E402
from pyro.infer.autoguide import AutoMultivariateNormal  # noqa: E402


@pytest.fixture(scope="module")
def likelihood():
    """Galaxies of slope 0.45 seen with errors of 0.2 mag and losses."""
    generator = np.random.default_rng(0)
    population = Population(mag_range=(20.0, 25.0), slope=0.3)
    rate = 0.45 * np.log(10)
    true = 25 + np.log(generator.uniform(np.exp(-rate * 5), 1, size=600)) / rate
    true = true[generator.uniform(size=len(true)) < norm.sf(true, 24.3, 0.4)]
    fine = np.linspace(20, 25, 1001)
    prior = np.exp(population.log_prob_mag(fine)) * norm.sf(fine, 24.3, 0.4)
    seen = true + 0.2 * generator.normal(size=len(true))
    cumulative = np.cumsum(norm.pdf(fine[:, None], seen, 0.2) * prior[:, None], axis=0)
    cumulative /= cumulative[-1]
    draws = np.stack(
        [np.interp(generator.uniform(size=100), c, fine) for c in cumulative.T], axis=1
    )
    grid = np.linspace(19, 26, 141)
    return CountsLikelihood(
        mags=draws, population=population, grid=grid, completeness=norm.sf(grid, 24.3, 0.4)
    )


@pytest.fixture(scope="module")
def on_a_grid(likelihood):
    """Mean and standard deviation of the slope, by summing the likelihood up."""
    slopes, levels = np.linspace(0.2, 0.7, 81), np.linspace(2.0, 6.0, 161)
    ln = np.array([[likelihood(s, v) for v in levels] for s in slopes])
    p = np.exp(ln - ln.max()).sum(axis=1)
    p /= p.sum()
    mean = (p * slopes).sum()
    return mean, np.sqrt((p * (slopes - mean) ** 2).sum())


def test_the_likelihood_is_that_of_numpy_and_has_a_gradient(likelihood):
    log_likelihood = counts_log_likelihood(likelihood)
    slope = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    level = torch.tensor(4.2, dtype=torch.float64)
    value = log_likelihood(slope, level)
    assert value.item() == pytest.approx(likelihood(0.4, 4.2), rel=1e-9)
    value.backward()
    step = 1e-5
    difference = (likelihood(0.4 + step, 4.2) - likelihood(0.4 - step, 4.2)) / (2 * step)
    assert slope.grad.item() == pytest.approx(difference, rel=1e-4)


def test_emcee_finds_what_the_grid_finds(likelihood, on_a_grid):
    slopes, levels = sample_counts(likelihood, seed=0).T
    mean, spread = on_a_grid
    assert abs(slopes.mean() - mean) < 0.3 * spread
    assert slopes.std() == pytest.approx(spread, rel=0.25)
    # What is expected is what was found.
    assert likelihood.expected(slopes.mean(), levels.mean()) == pytest.approx(
        likelihood.mags.shape[1], rel=0.05
    )
    np.testing.assert_array_equal(sample_counts(likelihood, seed=0), np.stack([slopes, levels], 1))
    with pytest.raises(ValueError, match="no draw within"):
        sample_counts(replace(likelihood, mags=likelihood.mags + 5))


def test_nuts_finds_what_the_grid_finds(likelihood, on_a_grid):
    pyro.set_rng_seed(0)
    sampler = MCMC(
        NUTS(counts_model(likelihood)), num_samples=300, warmup_steps=150, disable_progbar=True
    )
    sampler.run()
    slopes = sampler.get_samples()["slope"].numpy()
    mean, spread = on_a_grid
    assert abs(slopes.mean() - mean) < 0.3 * spread
    assert slopes.std() == pytest.approx(spread, rel=0.25)
    assert abs(mean - 0.45) < 3 * spread


def test_variational_inference_finds_what_the_grid_finds(likelihood, on_a_grid):
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    model = counts_model(likelihood)
    guide = AutoMultivariateNormal(model, init_scale=0.05)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO(num_particles=4))
    for _ in range(600):
        svi.step()
    slopes = np.array([guide()["slope"].item() for _ in range(500)])
    mean, spread = on_a_grid
    assert abs(slopes.mean() - mean) < 0.5 * spread
    assert slopes.std() == pytest.approx(spread, rel=0.35)
