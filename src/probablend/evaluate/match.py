"""Match a predicted catalogue with the truth by position, one to one."""

import numpy as np
from scipy.spatial import KDTree

__all__ = ["match_positions"]


def match_positions(
    truth_yx: np.ndarray, found_yx: np.ndarray, *, radius: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of nearest positions, closest first, each position used once.

    Parameters
    ----------
    truth_yx, found_yx : ndarray, shape (n, 2)
        Positions, pixels.
    radius : float
        Largest distance of a pair, pixels.

    Returns
    -------
    truth_index, found_index : ndarray of int
        The pairs.
    """
    none = np.zeros(0, dtype=int)
    if not len(truth_yx) or not len(found_yx):
        return none, none
    pairs = KDTree(truth_yx).sparse_distance_matrix(
        KDTree(found_yx), radius, output_type="coo_matrix"
    )
    truth_used = np.zeros(len(truth_yx), dtype=bool)
    found_used = np.zeros(len(found_yx), dtype=bool)
    chosen = []
    for k in np.lexsort((pairs.col, pairs.row, pairs.data)):
        t, f = pairs.row[k], pairs.col[k]
        if not truth_used[t] and not found_used[f]:
            truth_used[t] = found_used[f] = True
            chosen.append((t, f))
    if not chosen:
        return none, none
    first, second = np.array(chosen).T
    return first, second
