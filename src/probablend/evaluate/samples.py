"""How well do samples of a segmentation cover the truth? GED² and HM-IoU.

The distance of two class maps is 1 − IoU, averaged over the classes that either has; two
maps that are all sky are at distance 0.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

__all__ = ["generalized_energy_distance", "hungarian_matched_iou", "mean_iou"]

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
