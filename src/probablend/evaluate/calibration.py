"""Is a probability what it says? Reliability, expected calibration error, Brier score."""

from dataclasses import dataclass

import numpy as np

__all__ = ["Reliability", "active_pixels", "brier_score", "reliability"]

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
    order = np.argsort(probability, kind="stable")
    bins = [b for b in np.array_split(order, n_bins) if len(b)]
    return Reliability(
        predicted=np.array([probability[b].mean() for b in bins]),
        observed=np.array([truth[b].mean() for b in bins]),
        weight=np.array([len(b) / len(truth) for b in bins]),
    )


def brier_score(probability: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared difference between probability and outcome."""
    return float(np.mean((np.asarray(probability, float) - np.asarray(truth, float)) ** 2))


def active_pixels(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pixels where something is true or predicted above 1 %: sky alone flatters any score."""
    return np.asarray(truth, dtype=bool) | (np.asarray(probability) > ACTIVE_LEVEL)
