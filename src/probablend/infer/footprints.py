"""Elliptical footprints on the pixels of an image: labels, groups, overlaps, regions."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy import ndimage

from probablend.models.source import PARAMETERS

__all__ = ["Ellipses", "blended_share", "group_sources", "label_sources", "overlap_share"]

_SMALL = 2**30  # pixels of an image whose indices fit into 32 bits, with room
_AT_ONCE = 1_000_000  # pixels
_REACH = 2.0  # a label reaches this many footprint radii


@dataclass(frozen=True, kw_only=True)
class Ellipses:
    """Elliptical footprints.

    Parameters
    ----------
    y, x : ndarray, shape (source,)
        Centres, pixels.
    radius : ndarray, shape (source,)
        Of the circle of the same area, pixels.
    e1, e2 : ndarray, shape (source,)
        Ellipticity, (a² − b²)/(a² + b²), along x and along the diagonal.
    """

    y: np.ndarray
    x: np.ndarray
    radius: np.ndarray
    e1: np.ndarray
    e2: np.ndarray

    @classmethod
    def of(cls, parameters: np.ndarray, origin_yx: np.ndarray) -> "Ellipses":
        """Footprints of parameters, (source, parameter), positions counted from an origin.

        Parameters
        ----------
        parameters : ndarray, shape (source, parameter)
            In the order of :data:`~probablend.models.source.PARAMETERS`.
        origin_yx : ndarray, shape (2,) or (source, 2)
            Where positions are counted from, (y, x). Single precision holds offsets, not
            positions in a large image.
        """
        names = ("y", "x", "radius", "e1", "e2")
        shape = {name: parameters[:, PARAMETERS.index(name)].astype(float) for name in names}
        origin_y, origin_x = np.asarray(origin_yx, dtype=float).T
        return cls(**(shape | {"y": shape["y"] + origin_y, "x": shape["x"] + origin_x}))

    def first(self, n: int) -> "Ellipses":
        """The first ones alone."""
        return Ellipses(**{f.name: getattr(self, f.name)[:n] for f in fields(self)})

    def __len__(self) -> int:
        return len(self.y)

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Semi-axes a and b (pixels) and the angle of a from x towards y (radians)."""
        e = np.clip(np.hypot(self.e1, self.e2), 0, 0.999)
        q = np.sqrt((1 - e) / (1 + e))
        return (
            self.radius / np.sqrt(q),
            self.radius * np.sqrt(q),
            0.5 * np.arctan2(self.e2, self.e1),
        )

    def to_regions(self, ids: np.ndarray | None = None) -> str:
        """Region file for ds9, image coordinates (first pixel at 1), one ellipse per source.

        Parameters
        ----------
        ids : ndarray of int, shape (source,), optional
            What the ellipses are called; 1…N if not given.
        """
        ids = np.arange(1, len(self) + 1) if ids is None else ids
        a, b, angle = self.axes
        lines = ["# Region file format: DS9 version 4.1", "global color=cyan", "image"]
        rows = zip(self.x + 1, self.y + 1, a, b, np.degrees(angle), strict=True)
        lines += [
            f"ellipse({x:.2f},{y:.2f},{a:.2f},{b:.2f},{t:.1f}) # text={{{k}}}"
            for k, (x, y, a, b, t) in zip(ids, rows, strict=True)
        ]
        return "\n".join(lines) + "\n"

    def boxes(self, shape_yx: tuple[int, int], reach: float) -> tuple[np.ndarray, ...]:
        """First and last-plus-one row and column that each ellipse can touch."""
        half = np.ceil(np.maximum(self.axes[0] * reach, 0)).astype(np.int64)
        rows, columns = (np.floor(v + 0.5).astype(np.int64) for v in (self.y, self.x))
        edges = []
        for middle, n in ((rows, shape_yx[0]), (columns, shape_yx[1])):
            edges += [np.maximum(middle - half, 0), np.minimum(middle + half + 1, n)]
        return tuple(edges)

    def pixels(
        self, shape_yx: tuple[int, int], *, reach: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pixels inside ``reach`` times each ellipse; that of the centre always is.

        Parameters
        ----------
        shape_yx : tuple of int
            Shape of the image.
        reach : float
            In units of the ellipse.

        Returns
        -------
        source : ndarray of int, shape (pixel,)
            Ascending.
        index : ndarray of int, shape (pixel,)
            Flat index into the image.
        """
        n_x = shape_yx[1]
        low, high, left, right = self.boxes(shape_yx, reach)
        # Row by row of each ellipse: where it begins and where it ends.
        n_rows = np.where(right > left, np.maximum(high - low, 0), 0)
        owner = np.repeat(np.arange(len(self)), n_rows)
        row = np.arange(len(owner)) - np.repeat(np.cumsum(n_rows) - n_rows - low, n_rows)
        e1, e2, y, x = self.e1[owner], self.e2[owner], self.y[owner], self.x[owner]
        radius = reach * np.maximum(self.radius[owner], 1e-3)
        # (1 − e1) dx² − 2 e2 dx dy + (1 + e1) dy² = r² √(1 − e²), solved for dx.
        limit = radius**2 * np.sqrt(np.clip(1 - e1**2 - e2**2, 1e-6, None))
        dy, steep = row - y, np.maximum(1 - e1, 1e-6)
        root = (e2 * dy) ** 2 - steep * ((1 + e1) * dy**2 - limit)
        half, middle = np.sqrt(np.maximum(root, 0)) / steep, x + e2 * dy / steep
        first, last = np.ceil(middle - half).astype(np.int64), np.floor(middle + half)
        last = last.astype(np.int64)
        last[root < 0] = first[root < 0] - 1
        centre = np.floor(x + 0.5).astype(np.int64)
        here = row == np.floor(y + 0.5).astype(np.int64)
        empty = here & (last < first)
        first = np.where(here, np.minimum(np.where(empty, centre, first), centre), first)
        last = np.where(here, np.maximum(np.where(empty, centre, last), centre), last)
        first, last = np.maximum(first, 0), np.minimum(last, n_x - 1)
        n_each = np.maximum(last - first + 1, 0)
        small = np.int32 if shape_yx[0] * n_x < _SMALL else np.int64
        begin = (first + row * n_x - np.cumsum(n_each) + n_each).astype(small)
        index = np.repeat(begin, n_each)
        index += np.arange(len(index), dtype=small)
        return np.repeat(owner.astype(small), n_each), index

    def depth(self, source: np.ndarray, index: np.ndarray, n_x: int) -> np.ndarray:
        """Elliptical radius of pixels in their source's ellipse, 1 on its rim; float32."""
        rho = np.empty(len(source), dtype=np.float32)
        for first in range(0, len(source), _AT_ONCE):  # memory: many numbers of each pixel
            part = slice(first, first + _AT_ONCE)
            rho[part] = self._depth(source[part], index[part], n_x)
        return rho

    def _depth(self, source: np.ndarray, index: np.ndarray, n_x: int) -> np.ndarray:
        row, column = np.divmod(index, n_x)
        dy, dx = row - self.y[source], column - self.x[source]
        # dᵀ M⁻¹ d with M = r² / √(1 − e²) · [[1 + e1, e2], [e2, 1 − e1]] over (x, y).
        e1, e2 = self.e1[source], self.e2[source]
        rest = np.sqrt(np.clip(1 - e1**2 - e2**2, 1e-6, None))
        square = ((1 - e1) * dx**2 + (1 + e1) * dy**2 - 2 * e2 * dx * dy) / rest
        return np.sqrt(np.maximum(square, 0)) / np.maximum(self.radius[source], 1e-3)


def label_sources(ellipses: Ellipses, p_galaxy: np.ndarray) -> np.ndarray:
    """Label image: each pixel that is more likely in a galaxy than not goes to one source.

    Parameters
    ----------
    ellipses : Ellipses
        Footprints.
    p_galaxy : ndarray, shape (y, x)
        Probability that a pixel is in a galaxy; NaN where masked.

    Returns
    -------
    ndarray of int32, shape (y, x)
        0 = none, 1…N: the source in whose ellipse the pixel lies deepest. No source is without
        a pixel: it keeps that of its centre, or the next that is nobody's centre if an earlier
        source has its centre there.
    """
    n_y, n_x = p_galaxy.shape
    labels = np.zeros((n_y, n_x), dtype=np.int32)
    source, index = ellipses.pixels((n_y, n_x), reach=_REACH)
    rho = ellipses.depth(source, index, n_x)
    order = np.argsort(-rho, kind="stable")  # the last to write is the deepest
    flat = labels.ravel()
    flat[index[order]] = source[order] + 1
    flat[~(p_galaxy.ravel() > 0.5)] = 0
    rows, columns = _own_pixels(ellipses, (n_y, n_x))
    labels[rows, columns] = np.arange(1, len(ellipses) + 1)
    return labels


def _own_pixels(ellipses: Ellipses, shape_yx: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of a pixel of its own for every source, as long as there are pixels."""
    rows, columns = (
        np.clip(np.floor(v + 0.5).astype(int), 0, n - 1)
        for v, n in zip((ellipses.y, ellipses.x), shape_yx, strict=True)
    )
    _, first = np.unique(rows * shape_yx[1] + columns, return_index=True)
    if len(first) == len(rows):  # the common case
        return rows, columns
    taken = np.zeros(shape_yx, dtype=bool)
    taken[rows, columns] = True
    for k in np.setdiff1d(np.arange(len(rows)), first):
        for reach in range(1, max(shape_yx)):
            low_y, low_x = max(rows[k] - reach, 0), max(columns[k] - reach, 0)
            box = taken[low_y : rows[k] + reach + 1, low_x : columns[k] + reach + 1]
            if not box.all():
                free = np.argwhere(~box) + np.array([low_y, low_x])
                away = np.hypot(free[:, 0] - ellipses.y[k], free[:, 1] - ellipses.x[k])
                rows[k], columns[k] = free[np.argmin(away)]
                taken[rows[k], columns[k]] = True
                break
    return rows, columns


def blended_share(
    ellipses: Ellipses, draws: Sequence[tuple[np.ndarray, np.ndarray]], shape_yx: tuple[int, int]
) -> np.ndarray:
    """Share of the posterior draws in which a source's footprint holds a blended pixel.

    Parameters
    ----------
    ellipses : Ellipses
        Footprints.
    draws : sequence of (y, x)
        Blended pixels of each class map that was drawn.
    shape_yx : tuple of int
        Shape of the image.

    Returns
    -------
    ndarray, shape (source,)
        1 − this is the probability that there is no overlap.
    """
    if not len(ellipses):
        return np.zeros(0)
    source, index = ellipses.pixels(shape_yx)
    blended = np.zeros(shape_yx[0] * shape_yx[1], dtype=bool)
    n_blended = np.zeros(len(ellipses))
    for y, x in draws:
        at = y * shape_yx[1] + x
        blended[at] = True
        n_blended += np.bincount(source[blended[index]], minlength=len(ellipses)) > 0
        blended[at] = False
    return n_blended / len(draws)


def overlap_share(drawn: Sequence[Ellipses], shape_yx: tuple[int, int]) -> np.ndarray:
    """Share of the joint draws of all sources in which a source's footprint overlaps another's.

    Parameters
    ----------
    drawn : sequence of Ellipses
        Footprints of all sources, draw by draw.
    shape_yx : tuple of int
        Shape of the image.

    Returns
    -------
    ndarray, shape (source,)
    """
    share = np.zeros(len(drawn[0]))
    if not len(share):
        return share
    for one in drawn:
        source, index = one.pixels(shape_yx)
        count = np.bincount(index, minlength=1)
        share += np.bincount(source[count[index] > 1], minlength=len(share)) > 0
    return share / len(drawn)


def group_sources(ellipses: Ellipses, shape_yx: tuple[int, int]) -> np.ndarray:
    """Sources whose footprints touch: the number, from 0, of the first source of each group."""
    if not len(ellipses):
        return np.zeros(0, dtype=np.int64)
    source, index = ellipses.pixels(shape_yx)
    covered = np.zeros(shape_yx, dtype=bool)
    covered.ravel()[index] = True
    regions, n_regions = ndimage.label(covered, structure=np.ones((3, 3)))
    group = np.zeros(len(ellipses), dtype=np.int64)
    group[source] = regions.ravel()[index]
    first = np.full(n_regions + 1, len(ellipses), dtype=np.int64)
    np.minimum.at(first, group, np.arange(len(ellipses)))
    return np.where(group > 0, first[group], np.arange(len(ellipses)))
