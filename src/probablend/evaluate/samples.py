"""Samples of a segmentation: how well they cover the truth, and how much they differ.

For GED² and HM-IoU the distance of two class maps is 1 − IoU, averaged over the classes that
either has; two maps that are all sky are at distance 0.
"""

from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from probablend.checkpoint import load_model
from probablend.emulate.blend import COUNTS_SLOPE, Scene, draw_mags, make_scene, place
from probablend.emulate.psf import survey_psf
from probablend.emulate.stamps import Galaxies
from probablend.evaluate.calibration import ACTIVE_LEVEL
from probablend.infer.segment import segment

__all__ = [
    "generalized_energy_distance",
    "hungarian_matched_iou",
    "latent_diversity",
    "mean_iou",
    "no_overlap_share",
    "sample_distances",
    "sample_diversity",
]

_FOREGROUND = (1, 2)


def mean_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two class maps, mean over the foreground classes present.

    Parameters
    ----------
    first, second : ndarray of int, shape (y, x)
        Class maps. Sky is background; a class that neither has is left out; 1 if none is
        left.
    """
    scores = []
    for k in _FOREGROUND:
        a, b = first == k, second == k
        union = np.count_nonzero(a | b)
        if union:
            scores.append(np.count_nonzero(a & b) / union)
    return float(np.mean(scores)) if scores else 1.0


def _pairwise(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.array([[mean_iou(a, b) for b in second] for a in first])


def generalized_energy_distance(samples: np.ndarray, truths: np.ndarray) -> float:
    """GED² = 2 E[d(S, Y)] − E[d(S, S′)] − E[d(Y, Y′)].

    Expectations run over all pairs, a sample with itself included.

    Parameters
    ----------
    samples : ndarray of int, shape (sample, y, x)
        Drawn class maps.
    truths : ndarray of int, shape (truth, y, x)
        True class maps; usually one.

    References
    ----------
    Kohl et al. 2018, arXiv:1806.05034, section 3.2.
    """
    cross = 1 - _pairwise(samples, truths).mean()
    within = 1 - _pairwise(samples, samples).mean()
    between = 1 - _pairwise(truths, truths).mean()
    return float(2 * cross - within - between)


def hungarian_matched_iou(samples: np.ndarray, truths: np.ndarray) -> float:
    """Mean IoU of the best one-to-one assignment, truths repeated to the number of samples.

    Parameters
    ----------
    samples : ndarray of int, shape (sample, y, x)
        Drawn class maps; their number is a multiple of that of the truths.
    truths : ndarray of int, shape (truth, y, x)
        True class maps.

    Raises
    ------
    ValueError
        If the truths cannot be repeated to the number of samples.
    """
    if len(samples) % len(truths):
        raise ValueError(
            f"the number of samples must be a multiple of that of the truths; got "
            f"{len(samples)} and {len(truths)}"
        )
    scores = _pairwise(samples, np.repeat(truths, len(samples) // len(truths), axis=0))
    rows, columns = linear_sum_assignment(-scores)
    return float(scores[rows, columns].mean())


@torch.inference_mode()
def latent_diversity(model: str | Path, scene: Scene, *, n: int = 8, seed: int = 0) -> float:
    """Share of the active pixels whose most probable class differs between two latents.

    What the network itself has to say, without the draw of pixel classes: 0 for a
    deterministic network and for a posterior that has collapsed.
    """
    network, _ = load_model(model)
    image = torch.from_numpy(scene.image / np.float32(scene.rms))[None, None]
    fwhm = torch.tensor([scene.survey.psf_fwhm_pixels])
    draws = network(image, psf_fwhm=fwhm).class_probabilities(n, seed=seed)[:, 0]
    active = (1 - draws.mean(dim=0)[0]) > ACTIVE_LEVEL
    best = draws.argmax(dim=1)[:, active]
    return float((best[1:] != best[:-1]).float().mean()) if active.any() else 0.0


def sample_distances(
    samples: np.ndarray, truth: np.ndarray, *, size: int = 128
) -> tuple[float, float]:
    """GED² and HM-IoU of samples, mean over the patches of an image.

    Parameters
    ----------
    samples : ndarray of int, shape (sample, y, x)
        Drawn class maps.
    truth : ndarray of int, shape (y, x)
        The true one.
    size : int
        Side of a patch, pixels.
    """
    scores = []
    size = min(size, *truth.shape)
    for top in range(0, truth.shape[0] - size + 1, size):
        for left in range(0, truth.shape[1] - size + 1, size):
            box = (slice(top, top + size), slice(left, left + size))
            drawn, true = samples[(slice(None), *box)], truth[box][None]
            scores.append(
                (generalized_energy_distance(drawn, true), hungarian_matched_iou(drawn, true))
            )
    ged, iou = np.mean(scores, axis=0)
    return float(ged), float(iou)


def sample_diversity(p_galaxy: np.ndarray, samples: np.ndarray) -> float:
    """Share of the active pixels in which two samples differ, on average.

    Parameters
    ----------
    p_galaxy : ndarray, shape (y, x)
        Probability of at least one galaxy.
    samples : ndarray of int, shape (sample, y, x)
        Drawn class maps.
    """
    active = p_galaxy > ACTIVE_LEVEL
    if not active.any() or len(samples) < 2:
        return 0.0
    drawn = samples[:, active]
    return float(np.mean([(a != b).mean() for a, b in zip(drawn[1:], drawn[:-1], strict=True)]))


def no_overlap_share(
    galaxies: Galaxies,
    *,
    n_stamps: int,
    n_samples: int,
    seed: int,
    model: str | Path,
    size: int = 128,
    mag_range: tuple[float, float],
) -> dict[str, float]:
    """Share of the samples without a single blended pixel, where nothing overlaps.

    Parameters
    ----------
    galaxies : Galaxies
        Held-out ones.
    n_stamps : int
        How many stamps of empty sky, and of one isolated galaxy each.
    n_samples : int
        Posterior samples per stamp.
    seed : int
        Seeds stamps and samples.
    model : str or Path
        Weights.
    size : int
        Side of a stamp, pixels.
    mag_range : tuple of float
        Of the isolated galaxies, number counts as on the sky.

    Returns
    -------
    dict of float
        ``empty`` and ``isolated``.
    """
    survey = galaxies.survey
    shares = {}
    for kind in ("empty", "isolated"):
        clear = []
        for k in range(n_stamps):
            generator = np.random.default_rng([seed, k, len(kind)])
            sources = []
            if kind == "isolated":
                mag = float(draw_mags(1, COUNTS_SLOPE, mag_range, generator)[0])
                index = galaxies.choose(mag, generator=generator)
                stamp = galaxies.draw(index, mag, generator=generator)
                sources = [place(stamp, np.array([size / 2, size / 2]))]
            scene = make_scene(sources, survey, (size, size), generator=generator)
            result = segment(
                scene.image, rms=scene.rms, n_samples=n_samples, seed=seed + k, model=model,
                background="none", psf=survey_psf(survey),
            )  # fmt: skip
            clear.append(1 - (result.samples == 2).any(axis=(1, 2)).mean())
        shares[kind] = float(np.mean(clear))
    return shares
