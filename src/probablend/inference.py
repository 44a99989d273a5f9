"""Bayesian inference with the posteriors of galaxies: divide the prior out, put another one in.

The draws of a galaxy come from p(θ | image) ∝ p(image | θ) p₀(θ), where p₀ is the population that
the model was trained on. Another population p₁ weighs them with p₁/p₀: no image is looked at again.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import emcee
import numpy as np
from scipy.special import logsumexp

from probablend.checkpoint import file_hash, find_model, load_model, load_tensors, save_tensors
from probablend.emulate.blend import COUNTS_SLOPE
from probablend.emulate.parametric import (
    BULGE_SHARE,
    MAX_SHEAR,
    RADIUS_SCATTER,
    bulge_density,
    half_light_radius,
    median_radius,
    shares,
    shear_density,
)
from probablend.models.field import FieldNetwork
from probablend.models.source import PARAMETERS, SourcePosterior

__all__ = [
    "CountsLikelihood",
    "Population",
    "counts_completeness",
    "effective_sample_size",
    "importance_weights",
    "interval",
    "load_posterior",
    "sample_counts",
    "save_posterior",
]

log = logging.getLogger(__name__)

_LOW_SHARE = 0.05  # of the draws: with fewer effective ones weights are not to be trusted
_N_FRACTIONS = 24  # nodes of the integral over bulge fractions
_N_WALKERS = 12
_EDGE = 1e-6  # mag


@dataclass(frozen=True, kw_only=True)
class Population:
    """The emulator's galaxies: magnitude, size and shape, as a normalised density.

    Parameters
    ----------
    mag_range : tuple of float
        Brightest and faintest AB magnitude.
    slope : float
        Number counts ∝ 10^(slope · mag).

    Notes
    -----
    The field model's training adds scenes with one or two galaxies, bright ones as common as faint,
    to those of the sky. Each source counts by the inverse cube root of how many its scene holds: in
    the sum they are about a tenth.
    """

    mag_range: tuple[float, float] = (18.0, 26.0)
    slope: float = COUNTS_SLOPE

    def __post_init__(self) -> None:
        if not self.mag_range[0] < self.mag_range[1]:
            raise ValueError(f"mag_range must go from bright to faint; got {self.mag_range}")

    def log_prob_mag(self, mag: np.ndarray) -> np.ndarray:
        """Log density of the magnitude, per mag; −∞ outside the range."""
        mag = np.asarray(mag, dtype=float)
        low, high = self.mag_range
        rate = self.slope * math.log(10)
        norm = high - low if rate == 0 else -math.expm1(-rate * (high - low)) / rate
        inside = (mag >= low) & (mag <= high)
        return np.where(inside, rate * (mag - high) - math.log(norm), -np.inf)

    def log_prob(
        self, mag: np.ndarray, hlr: np.ndarray, g1: np.ndarray, g2: np.ndarray
    ) -> np.ndarray:
        """Log density of (mag, ln hlr, g1, g2); all arguments broadcast.

        Parameters
        ----------
        mag : ndarray
            AB magnitudes.
        hlr : ndarray
            Circularised half-light radii, arcsec.
        g1, g2 : ndarray
            Reduced shear of the galaxy's own shape.
        """
        mag, hlr, g1, g2 = np.broadcast_arrays(mag, hlr, g1, g2)
        g = np.hypot(g1, g2)
        # hlr = major axis · √q · (1, or what a bulge takes off).
        with np.errstate(divide="ignore", invalid="ignore"):
            ln_major = np.log(hlr) - 0.5 * np.log((1 - g) / (1 + g))
            pull = (ln_major - np.log(median_radius(mag)))[..., None] - self._ln_ratios
        ln_gauss = -0.5 * (pull / RADIUS_SCATTER) ** 2 - math.log(
            RADIUS_SCATTER * math.sqrt(2 * math.pi)
        )
        sizes = logsumexp(ln_gauss + self._ln_weights, axis=-1)
        plain = ln_gauss[..., 0]
        with np.errstate(divide="ignore"):
            disc = np.log((1 - BULGE_SHARE) * shear_density(g) / self._disc_norm)
            bulge = np.log(BULGE_SHARE * bulge_density(g) / self._bulge_norm)
        shape = np.logaddexp(disc + sizes, bulge + plain)
        return np.where(g < 1, self.log_prob_mag(mag) + shape, -np.inf)

    @cached_property
    def _ln_ratios(self) -> np.ndarray:
        """Ln of hlr over that of the disc alone, the first without a bulge."""
        quantile = (np.arange(_N_FRACTIONS) + 0.5) / _N_FRACTIONS
        fractions = 0.1 * _half_normal(quantile)
        return np.log([1.0, *(half_light_radius(float(f)) for f in fractions)])

    @cached_property
    def _ln_weights(self) -> np.ndarray:
        with_bulge = shares()["bulge+disc"]
        return np.log([1 - with_bulge, *[with_bulge / _N_FRACTIONS] * _N_FRACTIONS])

    @cached_property
    def _disc_norm(self) -> float:
        return _plane_integral(shear_density, MAX_SHEAR)

    @cached_property
    def _bulge_norm(self) -> float:
        return _plane_integral(bulge_density, 1.0)


def _half_normal(quantile: np.ndarray) -> np.ndarray:
    from scipy.stats import halfnorm

    return halfnorm.ppf(quantile)


def _plane_integral(density: Callable[[np.ndarray], np.ndarray], edge: float) -> float:
    """Of a round density over the disc of shapes."""
    g = (np.arange(20_000) + 0.5) / 20_000 * edge
    return float((2 * np.pi * g * density(g)).mean() * edge)


def importance_weights(
    log_new: np.ndarray, log_old: np.ndarray, *, warn: bool = True
) -> np.ndarray:
    """Weights that turn draws under one prior into draws under another.

    Parameters
    ----------
    log_new, log_old : ndarray, shape (draw, source)
        Log densities of both priors at the draws; neither needs to be normalised.
    warn : bool
        Whether to say of how many sources the effective number of draws is low.

    Returns
    -------
    ndarray, shape (draw, source)
        Each source's sum to 1; all 0 where the new prior excludes every draw. A draw that lies
        where the old prior is zero, as some of a learnt posterior do, has no weight.

    Raises
    ------
    ValueError
        If all draws of a source lie where the old prior is zero.
    """
    foreign = np.isneginf(log_old)
    if n := int(foreign.all(axis=0).sum()):
        raise ValueError(
            f"all draws of {n} sources lie where the old prior is zero: it is not theirs"
        )
    ratio = np.where(foreign, -np.inf, np.asarray(log_new, float) - np.where(foreign, 0, log_old))
    top = ratio.max(axis=0)
    weight = np.exp(ratio - np.where(np.isfinite(top), top, 0.0))
    total = weight.sum(axis=0)
    weight = weight / np.where(total > 0, total, 1.0)
    low = effective_sample_size(weight) < _LOW_SHARE * len(weight)
    if warn and low.any():
        log.warning(
            "of %d of %d sources fewer than %d draws count: the new prior is far from them",
            int(low.sum()), len(low), math.ceil(_LOW_SHARE * len(weight)),
        )  # fmt: skip
    return weight


def effective_sample_size(weights: np.ndarray) -> np.ndarray:
    """(Σw)²/Σw² of each source, (draw, source) → (source,); 0 of no weight."""
    square = (weights**2).sum(axis=0)
    return weights.sum(axis=0) ** 2 / np.where(square > 0, square, 1.0)


@dataclass(frozen=True, kw_only=True)
class CountsLikelihood:
    """Likelihood of number counts, from joint draws of the magnitudes of detected galaxies.

    A Poisson process observed with errors and losses (Loredo 2004, arXiv:astro-ph/0409387):
    ln L = Σᵢ ln ⟨n(mᵢ)/p₀(mᵢ)⟩ − ∫ n(m) C(m) dm, the mean over the draws of galaxy i, with n per
    magnitude in the area and C the completeness. The draws know that their galaxy was detected.

    Parameters
    ----------
    mags : ndarray, shape (draw, source)
        Posterior draws.
    population : Population
        The prior behind them.
    grid : ndarray, shape (n,)
        Magnitudes, evenly spaced.
    completeness : ndarray, shape (n,)
        Share of the galaxies of each magnitude that are detected.
    pivot : float
        Magnitude to which the normalisation belongs.
    """

    mags: np.ndarray
    population: Population
    grid: np.ndarray
    completeness: np.ndarray
    pivot: float = 23.0

    def __post_init__(self) -> None:
        if self.mags.ndim != 2 or not np.isfinite(self.mags).all():
            raise ValueError("mags must be finite, of shape (draw, source)")
        if self.grid.shape != self.completeness.shape or len(self.grid) < 2:
            raise ValueError("grid and completeness must have one, common length")
        low, high = self.population.mag_range
        if self.grid.min() > low + _EDGE or self.grid.max() < high - _EDGE:
            raise ValueError(
                f"grid must cover the magnitudes of the population, {low:g} to {high:g}; it covers "
                f"{self.grid.min():g} to {self.grid.max():g}: draws count in all of them"
            )

    @cached_property
    def kept(self) -> tuple[np.ndarray, np.ndarray]:
        """Draws relative to the pivot and −ln p₀; those outside the prior's range do not count."""
        ln_prior = self.population.log_prob_mag(self.mags)
        return self.mags - self.pivot, np.where(np.isfinite(ln_prior), -ln_prior, -np.inf)

    @cached_property
    def nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """Magnitudes of the prior's range relative to the pivot, and what a galaxy counts there.

        The weights are those of the trapezoidal rule times the completeness.
        """
        mags = np.unique(np.clip(self.grid, *self.population.mag_range))
        step = np.diff(mags)
        width = 0.5 * (np.append(step, 0) + np.append(0, step))
        return mags - self.pivot, width * np.interp(mags, self.grid, self.completeness)

    def __call__(self, slope: float, ln_density: float) -> float:
        """Ln L of n(m) = exp(ln_density) · 10^(slope · (m − pivot)), galaxies per magnitude.

        Counts are those of the prior's range of magnitudes.
        """
        rate = slope * math.log(10)
        offset, minus_prior = self.kept
        each = logsumexp(rate * offset + minus_prior, axis=0) - math.log(len(offset))
        return float(each.sum() + len(each) * ln_density - self.expected(slope, ln_density))

    def expected(self, slope: float, ln_density: float) -> float:
        """How many galaxies such counts let one find."""
        offset, weight = self.nodes
        return float(math.exp(ln_density) * (10 ** (slope * offset) * weight).sum())


def counts_completeness(
    mags: np.ndarray,
    true_mags: np.ndarray,
    edges: np.ndarray,
    *,
    population: Population,
    slope: float,
    n_iterations: int = 10,
) -> np.ndarray:
    """What counts from posteriors hold of the true ones, learnt on fields whose truth is known.

    The share of galaxies that are detected says nothing of what else is among the detections:
    noise, two galaxies that came out as one, posteriors that are off. This is the ratio of inferred
    to true counts: every detection is shared out over the bins as its draws say under the counts
    that these fields have, which again depends on the ratio (expectation maximisation).

    Parameters
    ----------
    mags : ndarray, shape (draw, source)
        Posterior draws of all detections in the fields.
    true_mags : ndarray, shape (galaxy,)
        Of all galaxies in them, detected or not.
    edges : ndarray, shape (bin + 1,)
        Of bins of magnitude, each with some galaxies.
    population : Population
        The prior behind the draws.
    slope : float
        Of the counts in these fields, log10 per magnitude.
    n_iterations : int
        Of the sharing out.

    Returns
    -------
    ndarray, shape (bin,)
        The ratio; it can be above 1. :class:`CountsLikelihood` takes it for ``completeness``,
        interpolated between the middles of the bins to a grid that covers the whole range of
        magnitudes (``numpy.interp(grid, middles, ratio)``).

    Raises
    ------
    ValueError
        If a bin holds no galaxy.
    """
    true, _ = np.histogram(true_mags, edges)
    if not true.all():
        raise ValueError(
            f"every bin must hold a galaxy; none is between {edges[np.argmin(true)]:g} and "
            f"{edges[np.argmin(true) + 1]:g} mag"
        )
    middle = (edges[1:] + edges[:-1]) / 2
    ln_prior = population.log_prob_mag(mags)
    inside = np.isfinite(ln_prior) & (mags >= edges[0]) & (mags < edges[-1])
    usable = inside.any(axis=0)
    mags, inside, ln_prior = mags[:, usable], inside[:, usable], ln_prior[:, usable]
    ln_weight = np.where(inside, slope * math.log(10) * (mags - middle[-1]) - ln_prior, -np.inf)
    where = np.clip(np.searchsorted(edges, mags, side="right") - 1, 0, len(true) - 1)
    ratio = np.ones(len(true))
    for _ in range(n_iterations):
        weight = ln_weight + np.log(np.maximum(np.interp(mags, middle, ratio), 1e-9))
        weight = np.exp(weight - logsumexp(weight, axis=0))
        ratio = np.bincount(where.ravel(), weight.ravel(), minlength=len(true)) / true
    return ratio


def sample_counts(
    likelihood: CountsLikelihood,
    *,
    n_steps: int = 500,
    seed: int = 0,
    slope_range: tuple[float, float] = (-1.0, 2.0),
) -> np.ndarray:
    """Posterior of number counts by emcee (arXiv:1202.3665), with flat priors.

    Parameters
    ----------
    likelihood : CountsLikelihood
        Draws, prior and completeness; of at least one source.
    n_steps : int
        Steps of each of 12 walkers, of which the first 40 % are thrown away.
    seed : int
        Same seed, same draws.
    slope_range : tuple of float
        Slopes outside have no probability.

    Returns
    -------
    ndarray, shape (draw, 2)
        Slope, and ln density at the pivot.

    Raises
    ------
    ValueError
        If a source has no draw within the prior's range of magnitudes.
    """
    generator = np.random.default_rng(seed)
    low, high = slope_range
    slopes = np.clip(generator.normal(0.3, 0.1, _N_WALKERS), low, high)
    # The best density of a slope is that which expects as many as were found.
    found = likelihood.mags.shape[1]
    levels = [math.log(found / likelihood.expected(slope, 0.0)) for slope in slopes]
    start = np.stack([slopes, generator.normal(levels, 0.1)], axis=1)
    if not np.isfinite([likelihood(*one) for one in start]).all():
        raise ValueError("some sources have no draw within the prior's range of magnitudes")

    def log_density(at: np.ndarray) -> float:
        return likelihood(*at) if low < at[0] < high else -np.inf

    sampler = emcee.EnsembleSampler(_N_WALKERS, 2, log_density)
    sampler.random_state = np.random.RandomState(seed).get_state()
    sampler.run_mcmc(start, n_steps)
    return sampler.get_chain(discard=2 * n_steps // 5, flat=True)


def interval(draws: np.ndarray, level: float = 0.68) -> tuple[np.ndarray, np.ndarray]:
    """Central interval over the first axis of some draws: its ends."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1; got {level}")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return low, high


_POSTERIOR = ("context", "y", "x", "unit", "spread")


def save_posterior(posterior: SourcePosterior, path: Path | str, *, model: str | Path) -> None:
    """Keep the densities of some sources: what was seen of each, and which model saw it.

    Parameters
    ----------
    posterior : SourcePosterior
        ``result.sources.posterior`` of a segmentation.
    path : Path or str
        ``.safetensors``.
    model : str or Path
        The weights behind it, ``result.meta["model"]`` or the file.
    """
    tensors = {name: getattr(posterior, name) for name in _POSTERIOR}
    meta = {"model": str(model), "weights": file_hash(find_model(model)), "of": list(PARAMETERS)}
    save_tensors(Path(path), tensors, meta)


def load_posterior(path: Path | str) -> SourcePosterior:
    """Read what :func:`save_posterior` wrote.

    Raises
    ------
    FileNotFoundError
        If the file or the model is not there.
    ValueError
        If it is no such file, or the model has changed since.
    """
    tensors, meta = load_tensors(Path(path))
    if set(tensors) != set(_POSTERIOR) or meta.get("of") != list(PARAMETERS):
        raise ValueError(f"{path} holds no posterior of sources")
    if file_hash(find_model(meta["model"])) != meta["weights"]:
        raise ValueError(f"{path} belongs to other weights of {meta['model']}: {meta['weights']}")
    network, _ = load_model(meta["model"])
    if not isinstance(network, FieldNetwork):
        raise ValueError(f"{path} names a model without sources: {meta['model']}")
    return SourcePosterior(flow=network.eval().flow, **tensors)
