"""The catalogue: one row per object.

Positions are 0-based: the centre of the first pixel is (0, 0).
"""

import logging
from collections.abc import Sequence

import astropy.units as u
import numpy as np
from astropy.table import QTable
from astropy.wcs import WCS, NoConvergence
from scipy import ndimage

from probablend.flags import Flag

log = logging.getLogger(__name__)

_SMOOTHING = 1.0  # pixels, of the image in which centres are measured

__all__ = ["COLUMNS", "blend_probability", "make_catalog"]

# name → (type, unit, description)
COLUMNS: dict[str, tuple[type, u.Unit | None, str]] = {
    "id": (np.int32, None, "number of the object in LABELS, from 1"),
    "x": (np.float64, u.pix, "column of the centre; first pixel at 0"),
    "y": (np.float64, u.pix, "row of the centre; first pixel at 0"),
    "ra": (np.float64, u.deg, "right ascension of the centre; NaN without a WCS"),
    "dec": (np.float64, u.deg, "declination of the centre; NaN without a WCS"),
    "n_pixels": (np.int32, u.pix, "pixels of the object in LABELS"),
    "p_blend": (np.float64, None, "probability that the object overlaps another galaxy"),
    "flags": (np.int32, None, "bits: 1 truncated by the border, 2 masked pixels"),
}


def make_catalog(
    labels: np.ndarray,
    signal: np.ndarray,
    draws: Sequence[tuple[np.ndarray, np.ndarray]],
    mask: np.ndarray,
    *,
    wcs: WCS | None = None,
) -> QTable:
    """Measure the objects of a label image.

    Parameters
    ----------
    labels : ndarray of int, shape (y, x)
        0 = background, 1…N.
    signal : ndarray, shape (y, x)
        Image in units of the noise; weighs the centres.
    draws : sequence of (y, x)
        The blended pixels of each class map drawn from the posterior.
    mask : ndarray of bool, shape (y, x)
        True = not used.
    wcs : WCS, optional
        Celestial coordinates of the pixels.

    Returns
    -------
    QTable
        The columns of ``COLUMNS``; no rows if there are no objects.
    """
    n = int(labels.max(initial=0))
    ids = np.arange(1, n + 1)
    flat = labels.ravel()
    n_pixels = np.bincount(flat, minlength=n + 1)[1:]
    y, x = _centres(labels, signal, n)
    ra, dec = _sky(x, y, wcs)
    columns = {
        "id": ids,
        "x": x,
        "y": y,
        "ra": ra,
        "dec": dec,
        "n_pixels": n_pixels,
        "p_blend": blend_probability(labels, draws),
        "flags": _flags(labels, mask, n),
    }
    table = QTable()
    for name, (dtype, unit, description) in COLUMNS.items():
        values: np.ndarray = np.asarray(columns[name], dtype=dtype)
        table[name] = values if unit is None else values * unit
        table[name].info.description = description
    return table


def _sky(x: np.ndarray, y: np.ndarray, wcs: WCS | None) -> tuple[np.ndarray, np.ndarray]:
    """ICRS coordinates, degrees; NaN where there are none."""
    nothing = np.full(len(x), np.nan)
    if wcs is None or not len(x):
        return nothing, nothing
    try:
        sky = wcs.celestial.pixel_to_world(x, y).icrs
        return sky.ra.deg, sky.dec.deg
    except (AttributeError, ValueError, NoConvergence) as error:
        log.warning("the world coordinates cannot be turned into ICRS (%s): ra, dec = NaN", error)
        return nothing, nothing


def _centres(labels: np.ndarray, signal: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroid of the upper half of each object's peak, (y, x).

    What a faint galaxy's part holds of a bright neighbour's wing would pull a plain centroid
    towards the neighbour.
    """
    index = np.arange(n + 1)
    smooth = ndimage.gaussian_filter(signal, _SMOOTHING, mode="nearest")
    low, high = (f(smooth, labels, index) for f in (ndimage.minimum, ndimage.maximum))
    inside = np.flatnonzero(labels)
    which = labels.ravel()[inside]
    weight = smooth.ravel()[inside].astype(float) - 0.5 * (low + high)[which]
    weight = np.clip(weight, 1e-6, None)  # a floor for objects of one level
    rows, columns = np.divmod(inside, labels.shape[1])
    total = np.bincount(which, weight, minlength=n + 1)[1:]
    y = np.bincount(which, weight * rows, minlength=n + 1)[1:] / total
    x = np.bincount(which, weight * columns, minlength=n + 1)[1:] / total
    return y, x


def blend_probability(
    labels: np.ndarray, draws: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Share of the posterior draws in which an object has, or touches, a blended pixel.

    Parameters
    ----------
    labels : ndarray of int, shape (y, x)
        0 = background, 1…N.
    draws : sequence of (y, x)
        The blended pixels of each class map that was drawn.

    Returns
    -------
    ndarray, shape (N,)
        1 − this is the probability that there is no overlap.
    """
    n = int(labels.max(initial=0))
    n_blended = np.zeros(n + 1)
    for y, x in draws:
        # LABELS cuts an overlap along a line; both sides have part in it. So an overlap counts
        # for every object that it touches.
        touched = np.zeros(n + 1, dtype=bool)
        for dy, dx in np.ndindex(3, 3):
            rows = np.clip(y + dy - 1, 0, labels.shape[0] - 1)
            columns = np.clip(x + dx - 1, 0, labels.shape[1] - 1)
            touched[labels[rows, columns]] = True
        n_blended += touched
    return n_blended[1:] / len(draws)


def _flags(labels: np.ndarray, mask: np.ndarray, n: int) -> np.ndarray:
    flags = np.zeros(n + 1, dtype=np.int32)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    flags[np.unique(border)] |= Flag.TRUNCATED
    if mask.any():
        near = ndimage.binary_dilation(mask, structure=np.ones((3, 3)))
        flags[np.unique(labels[near])] |= Flag.MASKED_PIXELS
    return flags[1:]
