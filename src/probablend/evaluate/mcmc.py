"""A known answer: two Sérsic galaxies, their PSF and the noise, by MCMC on the pixels.

The reference samples the posterior of flux, half-light radius, shape, place and Sérsic index of
both galaxies with emcee (arXiv:1202.3665), under the priors of the parametric population. It is
what a perfect posterior of a blend looks like; the network's, which knows neither that the
galaxies are Sérsic profiles nor that there are two, is put beside it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import emcee
import numpy as np
import torch
from matplotlib.figure import Figure

from probablend._version import __version__
from probablend.checkpoint import file_hash, find_model, knows_sources, pixels_only
from probablend.emulate.blend import COUNTS_SLOPE, FieldConfig, draw_mags
from probablend.emulate.noise import add_noise, noise_rms
from probablend.emulate.parametric import (
    RADIUS_SCATTER,
    SERSIC_INDEX,
    SERSIC_RANGE,
    draw_disc_shears,
    median_radius,
    sersic_profile,
    shear_density,
)
from probablend.emulate.psf import psf_profile, survey_psf
from probablend.evaluate.record import write_json
from probablend.infer.outputs import check_folder
from probablend.infer.segment import segment
from probablend.models.source import PARAMETERS
from probablend.survey import Survey

__all__ = ["Blend", "Renderer", "compare_posteriors", "draw_blend", "two_sample_accuracy"]

NAMES = ("ln_flux", "ln_hlr", "g1", "g2", "y", "x", "ln_n")  # of each galaxy
SHARED = NAMES[:6]  # what the network speaks of too
SIZE = 128  # side of the image, pixels
_WINDOW = 64  # side of its middle part, on which the reference looks
_MAX_RADIUS = 6.0  # pixels, of the reference's prior
_MAGS = FieldConfig.mag_range  # of it too
_N_WALKERS = 64


@dataclass(frozen=True, kw_only=True)
class Blend:
    """Two Sérsic galaxies with their truth.

    Parameters
    ----------
    survey : Survey
        What it was drawn for.
    image : ndarray, shape (y, x)
        Counts, with noise.
    variance : ndarray, shape (y, x)
        Of the noise, counts².
    truth : ndarray, shape (2, 7)
        In the order of ``NAMES``; flux in counts, radius and place in pixels of the image.
    snr : ndarray, shape (2,)
        √Σgₖ²/σ of each.
    """

    survey: Survey
    image: np.ndarray
    variance: np.ndarray
    truth: np.ndarray
    snr: np.ndarray

    @property
    def separation(self) -> float:
        """Distance of the centres, pixels."""
        return float(np.hypot(*(self.truth[1] - self.truth[0])[4:6]))


_INDICES = np.arange(SERSIC_RANGE[0], SERSIC_RANGE[1] + 0.01, 0.25)
_LOG_K = np.linspace(0.0, np.log1p(150.0), 600)


@cache
def _sersic_transforms() -> np.ndarray:
    """Fourier transforms of round profiles of unit radius: (index, k)."""
    k = np.expm1(_LOG_K).tolist()
    profiles = [sersic_profile(index, 1.0) for index in _INDICES.tolist()]
    return np.array([[profile.kValue(one, 0.0).real for one in k] for profile in profiles])


class Renderer:
    """Images of many Sérsic galaxies at once, through their Fourier transforms.

    Parameters
    ----------
    survey : Survey
        Gives PSF and pixel.
    size : int
        Side of the images, pixels; profiles must end well within.
    """

    def __init__(self, survey: Survey, size: int) -> None:
        self.size = size
        k_y = 2 * np.pi * np.fft.fftfreq(size)
        k_x = 2 * np.pi * np.fft.rfftfreq(size)
        self.k_y, self.k_x = (k.ravel() for k in np.meshgrid(k_y, k_x, indexing="ij"))
        psf = psf_profile(survey)
        self.response = np.array([
            psf.kValue(x / survey.scale, y / survey.scale).real
            for y, x in zip(self.k_y, self.k_x, strict=True)
        ]) * np.sinc(self.k_y / (2 * np.pi)) * np.sinc(self.k_x / (2 * np.pi))  # fmt: skip

    def __call__(self, parameters: np.ndarray) -> np.ndarray:
        """Noiseless images of some scenes.

        Parameters
        ----------
        parameters : ndarray, shape (scene, galaxy, 7)
            In the order of ``NAMES``; places counted from the first pixel.

        Returns
        -------
        ndarray, shape (scene, y, x)
        """
        flux, hlr, g1, g2, y, x, index = np.moveaxis(parameters, -1, 0)[..., None]
        flux, hlr, index = np.exp(flux), np.exp(hlr), np.exp(index)
        scale = hlr / np.sqrt(1 - g1**2 - g2**2)
        u = scale * ((1 + g1) * self.k_x + g2 * self.k_y)
        v = scale * (g2 * self.k_x + (1 - g1) * self.k_y)
        place = np.minimum(np.log1p(np.hypot(u, v)) / _LOG_K[1], len(_LOG_K) - 1.001)
        row = np.clip((index - _INDICES[0]) / 0.25, 0, len(_INDICES) - 1.001)
        i, j = row.astype(int), place.astype(int)
        p, q = row - i, place - j
        t = _sersic_transforms()
        light = (1 - p) * ((1 - q) * t[i, j] + q * t[i, j + 1])
        light = light + p * ((1 - q) * t[i + 1, j] + q * t[i + 1, j + 1])
        spectrum = flux * light * np.exp(-1j * (self.k_y * y + self.k_x * x))
        spectrum = spectrum.sum(axis=1) * self.response
        shape = (len(parameters), self.size, self.size // 2 + 1)
        return np.fft.irfft2(spectrum.reshape(shape), s=(self.size, self.size))


def draw_blend(
    survey: Survey,
    *,
    generator: np.random.Generator,
    mag_range: tuple[float, float] = (20.5, 24.5),
    separation_range: tuple[float, float] = (2.0, 12.0),
    min_snr: float = 10.0,
    max_radius: float = 4.0,
) -> Blend:
    """Two Sérsic galaxies of the parametric population, near each other.

    Parameters
    ----------
    survey : Survey
        What it is drawn for.
    generator : numpy.random.Generator
        The only source of randomness.
    mag_range : tuple of float
        Brightest and faintest AB magnitude.
    separation_range : tuple of float
        Pixels; the distance is uniform in it.
    min_snr : float
        Both galaxies have at least this S/N.
    max_radius : float
        Largest half-light radius, pixels: larger ones end outside the window of the reference.
    """
    renderer = Renderer(survey, SIZE)
    low, high = np.log(SERSIC_RANGE)
    while True:
        mag = draw_mags(2, COUNTS_SLOPE, mag_range, generator)
        g, turn = draw_disc_shears(2, generator), generator.uniform(0, 2 * np.pi, size=2)
        major = median_radius(mag) * np.exp(RADIUS_SCATTER * generator.normal(size=2))
        radius = major * np.sqrt((1 - g) / (1 + g)) / survey.scale
        ln_n = np.log(SERSIC_INDEX[0]) + SERSIC_INDEX[1] * generator.normal(size=2)
        distance, angle = generator.uniform(*separation_range), generator.uniform(0, 2 * np.pi)
        shift = 0.5 * distance * np.array([-1.0, 1.0])
        middle = (SIZE - 1) / 2 + generator.uniform(-0.5, 0.5, size=2)
        truth = np.stack(
            [np.log(survey.flux(mag)), np.log(radius), g * np.cos(turn), g * np.sin(turn),
             middle[0] + shift * np.sin(angle), middle[1] + shift * np.cos(angle), ln_n],
            axis=1,
        )  # fmt: skip
        if (ln_n < low).any() or (ln_n > high).any() or (radius > max_radius).any():
            continue
        parts = np.stack([renderer(one[None, None])[0] for one in truth])
        snr = np.sqrt((parts**2).sum(axis=(1, 2))) / survey.sky_rms
        if (snr >= min_snr).all():
            break
    noiseless = parts.sum(axis=0).astype(np.float32)
    return Blend(
        survey=survey,
        image=add_noise(noiseless, survey, generator=generator),
        variance=noise_rms(noiseless, survey).astype(float) ** 2,
        truth=truth,
        snr=snr,
    )


def log_prior(parameters: np.ndarray, survey: Survey) -> np.ndarray:
    """Log density of the population, (…, galaxy, 7) → (…); −∞ outside."""
    ln_flux, ln_hlr, g1, g2, y, x, ln_n = np.moveaxis(parameters, -1, 0)
    g = np.hypot(g1, g2)
    inside = (ln_n > np.log(SERSIC_RANGE[0])) & (ln_n < np.log(SERSIC_RANGE[1]))
    inside &= (ln_hlr > np.log(0.05)) & (ln_hlr < np.log(_MAX_RADIUS))
    for place in (y, x):
        inside &= np.abs(place - SIZE / 2) < _WINDOW / 4
    mag = survey.mag(np.exp(ln_flux))
    inside &= (mag > _MAGS[0]) & (mag < _MAGS[1])
    with np.errstate(divide="ignore"):
        density = np.log(shear_density(g))
    density = density - 2.5 * COUNTS_SLOPE * ln_flux  # number counts
    major = np.exp(ln_hlr) * survey.scale * np.sqrt((1 + g) / np.maximum(1 - g, 1e-9))
    median = median_radius(mag)
    density = density - 0.5 * (np.log(major / median) / RADIUS_SCATTER) ** 2
    density = density - 0.5 * ((ln_n - np.log(SERSIC_INDEX[0])) / SERSIC_INDEX[1]) ** 2
    return np.where(inside, density, -np.inf).sum(axis=-1)


def run_ensemble(
    log_density: Callable[[np.ndarray], np.ndarray], start: np.ndarray, *, n_steps: int, seed: int
) -> tuple[np.ndarray, float]:
    """Draws of a density by differential evolution, and their effective number.

    Parameters
    ----------
    log_density : callable
        (walker, dimension) → (walker,).
    start : ndarray, shape (walker, dimension)
        Where the walkers are at first.
    n_steps : int
        Of each; a third is burnt.
    seed : int
        Seeds the walk.

    Returns
    -------
    tuple of ndarray, shape (draw, dimension), and float
    """
    # Whole differences now and then lead from one mode to another. emcee's snooker move is none
    # of the moves: its acceptance (3.1.6) makes a Gaussian in 14 dimensions 8 % too narrow.
    moves = [(emcee.moves.DEMove(), 0.9), (emcee.moves.DEMove(gamma0=1.0), 0.1)]
    sampler = emcee.EnsembleSampler(*start.shape, log_density, vectorize=True, moves=moves)
    sampler.random_state = np.random.RandomState(seed).get_state()
    sampler.run_mcmc(start, n_steps)
    burnt = n_steps // 3
    with np.errstate(invalid="ignore"):  # a walker that never moved
        times = sampler.get_autocorr_time(discard=burnt, quiet=True)
    tau = float(np.nanmax(times)) if np.isfinite(times).any() else float(n_steps)
    chain = sampler.get_chain(discard=burnt, thin=max(1, (n_steps - burnt) // 60), flat=True)
    return chain, (n_steps - burnt) * len(start) / tau


def sample_reference(
    blend: Blend, renderer: Renderer, *, n_steps: int, seed: int
) -> tuple[np.ndarray, float]:
    """Posterior draws of the reference, (draw, 2, 7), and their effective number."""
    edge = (SIZE - _WINDOW) // 2
    window = (slice(edge, edge + _WINDOW), slice(edge, edge + _WINDOW))
    data, variance = blend.image[window].astype(float), blend.variance[window]
    origin = np.zeros((2, 7))
    origin[:, 4:6] = edge

    def log_density(flat: np.ndarray) -> np.ndarray:
        parameters = flat.reshape(-1, 2, 7)
        density = log_prior(parameters, blend.survey)
        ok = np.isfinite(density)
        if ok.any():
            image = renderer(parameters[ok] - origin)
            density[ok] -= 0.5 * ((data - image) ** 2 / variance).sum(axis=(1, 2))
        return density

    generator = np.random.default_rng(seed)
    # Wider than most posteriors: walkers that start close take long to spread.
    spread = np.tile([0.15, 0.2, 0.1, 0.1, 0.2, 0.2, 0.2], 2)
    start = blend.truth.ravel() + spread * generator.normal(size=(_N_WALKERS, 14))
    low, high = np.log(SERSIC_RANGE)
    start[:, 6::7] = np.clip(start[:, 6::7], low + 0.01, high - 0.01)
    start[:, [2, 3, 9, 10]] = np.clip(start[:, [2, 3, 9, 10]], -0.6, 0.6)
    chain, effective = run_ensemble(log_density, start, n_steps=n_steps, seed=seed)
    return chain.reshape(-1, 2, 7), effective


def sample_network(blend: Blend, *, model: str | Path, n: int, seed: int) -> np.ndarray:
    """Draws of the network's posterior, (draw, 2, 6), as ``SHARED``.

    It is asked at the true places, moved by a Gaussian of up to 0.7 pixels as in training: a place
    that is given is one of its inputs.
    """
    random = np.random.default_rng([seed, 5])
    off = random.uniform(0, 0.7, size=(2, 1)) * random.normal(size=(2, 2))
    result = segment(
        blend.image, rms=blend.survey.sky_rms, model=model, n_samples=1, seed=seed,
        background="none", psf=survey_psf(blend.survey),
        positions=blend.truth[:, 4:6] + off,
    )  # fmt: skip
    assert result.sources is not None
    generator = torch.Generator().manual_seed(seed)
    drawn = result.sources.posterior.sample(n, generator=generator).detach().double().numpy()
    column = {name: drawn[..., PARAMETERS.index(name)] for name in PARAMETERS}
    column |= {f"ln_{name}": np.log(column[name]) for name in ("flux", "hlr")}
    return np.stack([column[name] for name in SHARED], axis=-1)


def two_sample_accuracy(first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> float:
    """C2ST: how often a classifier tells two sets of draws apart; ½ if they are alike.

    The classifier compares the Gaussians of both sets (quadratic discriminant analysis), on
    draws that it was not fitted to.

    Parameters
    ----------
    first, second : ndarray, shape (draw, parameter)
        Thinned to the same number.
    seed : int
        Seeds the choice of draws.
    """
    generator = np.random.default_rng(seed)
    n = min(len(first), len(second))
    sets = [s[generator.permutation(len(s))[:n]] for s in (first, second)]
    right = total = 0
    for half in (0, 1):
        scores = []
        fits = []
        for s in sets:
            learn = s[half::2]
            fits.append((learn.mean(axis=0), np.cov(learn.T)))
        for s in sets:
            judged = s[1 - half :: 2]
            logs = []
            for mean, covariance in fits:
                delta = judged - mean
                square = np.einsum("ni,ij,nj->n", delta, np.linalg.pinv(covariance), delta)
                logs.append(-0.5 * (square + np.linalg.slogdet(covariance)[1]))
            scores.append(logs[0] > logs[1])
        right += scores[0].sum() + (~scores[1]).sum()
        total += len(scores[0]) + len(scores[1])
    return float(right / total)


def compare_posteriors(
    survey: Survey,
    directory: Path,
    *,
    n_blends: int,
    n_steps: int,
    seed: int,
    model: str | Path,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Put the network's posterior beside that of the reference, blend by blend.

    Parameters
    ----------
    survey : Survey
        What the blends are drawn for.
    directory : Path
        Gets ``mcmc.json``, ``mcmc.md`` and ``mcmc.png``. Blends that ``mcmc.json`` holds already
        are not run again.
    n_blends : int
        How many.
    n_steps : int
        Of the reference's 64 walkers, a third of them burn-in.
    seed : int
        Seeds blends and draws.
    model : str or Path
        Weights.
    command : str
        The command line, to be repeated in the results.
    progress : callable, optional
        Told how many blends are done, and of how many.

    Returns
    -------
    dict
        What ``mcmc.json`` holds.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    check_folder(directory)
    if not knows_sources(model):
        raise pixels_only(model)
    path = directory / "mcmc.json"
    report: dict[str, Any] = {
        "version": __version__,
        "survey": survey.as_dict(),
        "n_steps": n_steps,
        "reference": f"differential evolution, emcee {emcee.__version__}",
        "seed": seed,
        "model": str(model),
        "weights": file_hash(find_model(model)),
    }
    setting = json.loads(json.dumps(report))
    report |= {"command": command, "blends": []}
    if path.exists():
        earlier = json.loads(path.read_text())
        if odd := [key for key, value in setting.items() if earlier.get(key) != value]:
            raise ValueError(f"{path} was made with another {', '.join(odd)}: name another folder")
        report["blends"] = earlier["blends"][:n_blends]
    renderer = Renderer(survey, _WINDOW)
    for k in range(len(report["blends"]), n_blends):
        blend = draw_blend(survey, generator=np.random.default_rng([seed, k, 7]))
        chain, effective = sample_reference(blend, renderer, n_steps=n_steps, seed=seed + k)
        ours = sample_network(blend, model=model, n=len(chain), seed=seed + k)
        report["blends"].append(
            {
                "separation": blend.separation,
                "snr": blend.snr.tolist(),
                "effective_draws": effective,
                "truth": blend.truth[:, :6].tolist(),
                "reference": _summary(chain[..., :6]),
                "network": _summary(ours),
                "c2st": [two_sample_accuracy(chain[:, g, :6], ours[:, g]) for g in (0, 1)],
                "c2st_of_halves": [
                    two_sample_accuracy(chain[::2, g, :6], chain[1::2, g, :6]) for g in (0, 1)
                ],
            }
        )
        write_json(path, report)
        if progress:
            progress(k + 1, n_blends)
    write_json(path, report)
    (directory / "mcmc.md").write_text(mcmc_table(report))
    _figure(report).savefig(directory / "mcmc.png", dpi=100)
    return report


def _summary(draws: np.ndarray) -> dict[str, list[list[float]]]:
    """Of (draw, 2, parameter); half the 68 % interval is blind to far tails, std is not."""
    low, median, high = np.quantile(draws, [0.16, 0.5, 0.84], axis=0)
    numbers = {"mean": draws.mean(axis=0), "std": draws.std(axis=0), "median": median}
    numbers |= {"low": low, "high": high, "half": (high - low) / 2}
    return {key: value.tolist() for key, value in numbers.items()}


def _gather(report: dict[str, Any], who: str, what: str) -> np.ndarray:
    """(blend · galaxy, parameter)."""
    return np.concatenate([np.array(b[who][what]) for b in report["blends"]])


def mcmc_table(report: dict[str, Any]) -> str:
    """The numbers of ``mcmc.json`` as Markdown."""
    reference, network = (
        {key: _gather(report, who, key) for key in ("std", "median", "low", "high", "half")}
        for who in ("reference", "network")
    )

    def inside(said: dict[str, np.ndarray]) -> np.ndarray:
        return ((said["low"] < truth) & (truth < said["high"])).mean(axis=0)

    truth = np.concatenate([np.array(b["truth"]) for b in report["blends"]])
    c2st = np.concatenate([b["c2st"] for b in report["blends"]])
    halves = np.concatenate([b["c2st_of_halves"] for b in report["blends"]])
    survey = report["survey"]["name"]
    lines = [
        f"`{report['command']}`",
        "",
        f"{len(report['blends'])} blends of two Sérsic galaxies, `{survey}`, model "
        f"`{report['model']}`, seed {report['seed']}; the reference has "
        f"{np.median([b['effective_draws'] for b in report['blends']]):.0f} effective draws "
        "(median).",
        "",
        "| | " + " | ".join(SHARED) + " |",
        "|---" * (1 + len(SHARED)) + "|",
    ]
    for text, values in (
        ("distance of the medians, in half widths of the reference (median)",
         np.median(np.abs(network["median"] - reference["median"]) / reference["half"], axis=0)),
        ("68 % interval of the network / of the reference (median)",
         np.median(network["half"] / reference["half"], axis=0)),
        ("standard deviation of the network / of the reference (median)",
         np.median(network["std"] / reference["std"], axis=0)),
        ("truths in the 68 % interval: network", inside(network)),
        ("truths in the 68 % interval: reference", inside(reference)),
    ):  # fmt: skip
        lines.append(f"| {text} | " + " | ".join(f"{v:.2f}" for v in values) + " |")
    lines += [
        "",
        f"C2ST per galaxy: median {np.median(c2st):.2f}; two halves of the reference "
        f"{np.median(halves):.2f}.",
    ]
    return "\n".join(lines) + "\n"


def _figure(report: dict[str, Any]) -> Figure:
    """Medians and 68 % intervals of the network against those of the reference."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    for ax, k in zip(figure.subplots(2, 3).ravel(), range(len(SHARED)), strict=True):
        truth = np.concatenate([np.array(b["truth"]) for b in report["blends"]])[:, k]
        (x, wide), (y, tall) = (
            [_gather(report, who, key)[:, k] for key in ("median", "half")]
            for who in ("reference", "network")
        )
        ax.errorbar(x - truth, y - truth, xerr=wide, yerr=tall, fmt="o", ms=3, lw=0.8)
        low, high = ax.get_xlim()
        ax.plot([low, high], [low, high], color="0.6", ls="--", lw=1)
        ax.axhline(0, color="0.8", lw=0.8)
        ax.axvline(0, color="0.8", lw=0.8)
        ax.set(xlabel="reference − truth", ylabel="network − truth", title=SHARED[k])
    return figure
