"""Is a probability what it says? Reliability, expected calibration error, Brier score."""

from dataclasses import dataclass

import numpy as np

__all__ = [
    "Reliability",
    "active_pixels",
    "average_precision",
    "brier_score",
    "chance_ece",
    "reliability",
]

N_BINS = 15
ACTIVE_LEVEL = 0.01


@dataclass(frozen=True)
class Reliability:
    """Reliability diagram in bins of equal mass.

    Parameters
    ----------
    predicted : ndarray, shape (bin,)
        Mean predicted probability.
    observed : ndarray, shape (bin,)
        Observed frequency.
    weight : ndarray, shape (bin,)
        Share of the cases; sums to 1.
    """

    predicted: np.ndarray
    observed: np.ndarray
    weight: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: mean ``|predicted − observed|``."""
        return float((self.weight * np.abs(self.predicted - self.observed)).sum())


def reliability(probability: np.ndarray, truth: np.ndarray, *, n_bins: int = N_BINS) -> Reliability:
    """Reliability in bins that hold the same number of cases.

    Parameters
    ----------
    probability : ndarray, shape (n,)
        Predicted probabilities.
    truth : ndarray of bool, shape (n,)
        What happened.
    n_bins : int
        Number of bins; fewer are returned if there are fewer cases.

    Raises
    ------
    ValueError
        If there are no cases or the shapes differ.
    """
    probability = np.asarray(probability, dtype=float).ravel()
    truth = np.asarray(truth, dtype=float).ravel()
    if probability.shape != truth.shape or not len(truth):
        raise ValueError(
            f"probability and truth must be of one, non-zero length; got {probability.shape} "
            f"and {truth.shape}"
        )
    # Cases of equal probability are alike, in whatever order they come.
    levels, which = np.unique(probability, return_inverse=True)
    n = np.bincount(which, minlength=len(levels))
    truth = (np.bincount(which, truth, minlength=len(levels)) / n)[which]
    order = np.argsort(probability, kind="stable")
    bins = [b for b in np.array_split(order, n_bins) if len(b)]
    return Reliability(
        predicted=np.array([probability[b].mean() for b in bins]),
        observed=np.array([truth[b].mean() for b in bins]),
        weight=np.array([len(b) / len(truth) for b in bins]),
    )


def chance_ece(
    probability: np.ndarray, *, n_bins: int = N_BINS, n_draws: int = 200, seed: int = 0
) -> float:
    """The expected calibration error that probabilities have on average when they are right.

    Of few cases it is far from 0: bins are never exactly what they say.

    Parameters
    ----------
    probability : ndarray, shape (n,)
        Predicted probabilities of independent cases.
    n_bins : int
        As of :func:`reliability`.
    n_draws : int
        Outcomes that are drawn.
    seed : int
        Seeds them.
    """
    probability = np.asarray(probability, dtype=float).ravel()
    outcomes = np.random.default_rng(seed).random((n_draws, len(probability))) < probability
    return float(np.mean([reliability(probability, o, n_bins=n_bins).ece for o in outcomes]))


def brier_score(probability: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared difference between probability and outcome."""
    return float(np.mean((np.asarray(probability, float) - np.asarray(truth, float)) ** 2))


def average_precision(probability: np.ndarray, truth: np.ndarray) -> float:
    """Mean of the precision at every true case as the threshold falls; NaN without any.

    Cases of equal probability are flagged together.
    """
    probability, truth = np.asarray(probability, float), np.asarray(truth, bool)
    levels, which = np.unique(-probability, return_inverse=True)
    hits = np.bincount(which, weights=truth, minlength=len(levels))
    precision = hits.cumsum() / np.bincount(which, minlength=len(levels)).cumsum()
    return float((hits * precision).sum() / hits.sum()) if hits.sum() else float("nan")


def active_pixels(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pixels where something is true or predicted above 1 %: sky alone flatters any score."""
    return np.asarray(truth, dtype=bool) | (np.asarray(probability) > ACTIVE_LEVEL)
