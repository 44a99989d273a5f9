"""Populations of galaxies as Pyro models: for NUTS, and for variational inference.

The likelihood is :class:`~probablend.inference.CountsLikelihood`, in torch, so that samplers can
follow its gradient.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from probablend.inference import CountsLikelihood

__all__ = ["counts_log_likelihood", "counts_model"]


def counts_log_likelihood(likelihood: CountsLikelihood) -> Callable[[Tensor, Tensor], Tensor]:
    """The likelihood of number counts as a differentiable function.

    Parameters
    ----------
    likelihood : CountsLikelihood
        Draws, prior and completeness.

    Returns
    -------
    callable
        Slope and ln density at the pivot → ln L, tensors of no dimension.
    """
    offset, minus_prior = (torch.from_numpy(values) for values in likelihood.kept)
    nodes, weight = (torch.from_numpy(values) for values in likelihood.nodes)
    n_draws, n_sources = offset.shape

    def log_likelihood(slope: Tensor, ln_density: Tensor) -> Tensor:
        rate = slope * math.log(10)
        each = torch.logsumexp(rate * offset + minus_prior, dim=0) - math.log(n_draws)
        expected = ln_density.exp() * ((rate * nodes).exp() * weight).sum()
        return each.sum() + n_sources * ln_density - expected

    return log_likelihood


def counts_model(
    likelihood: CountsLikelihood,
    *,
    slope: tuple[float, float] = (0.35, 0.2),
    ln_density: tuple[float, float] | None = None,
) -> Callable[[], None]:
    """Number counts n(m) = exp(ln_density) · 10^(slope · (m − pivot)) as a Pyro model.

    Parameters
    ----------
    likelihood : CountsLikelihood
        Draws, prior and completeness.
    slope, ln_density : tuple of float
        Mean and standard deviation of their Gaussian priors; of ``ln_density`` a wide one around
        the number of galaxies that were found if not given.

    Returns
    -------
    callable
        With the sites ``slope`` and ``ln_density``, for ``pyro.infer``.

    Raises
    ------
    ValueError
        If Pyro is not installed.
    """
    try:
        import pyro
        from pyro.distributions import Normal
    except ImportError as error:
        raise ValueError("Pyro models need pyro: pip install 'probablend[bayes]'") from error
    log_likelihood = counts_log_likelihood(likelihood)
    low, high = likelihood.population.mag_range
    found = math.log(max(1, likelihood.mags.shape[1]) / (high - low))
    centre, spread = ln_density or (found, 3.0)

    def model() -> None:
        one = torch.ones((), dtype=torch.float64)
        drawn = pyro.sample("slope", Normal(slope[0] * one, slope[1] * one))
        level = pyro.sample("ln_density", Normal(centre * one, spread * one))
        pyro.factor("galaxies", log_likelihood(drawn, level))

    return model
