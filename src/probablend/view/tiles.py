"""Tiles of large planes: windows of a file → small coloured pictures.

Planes are shown with their first row at the bottom; tiles are counted from the top left. A pixel
of level ``k`` is the mean of 2ᵏ × 2ᵏ pixels. The first levels are read from the file, window by
window. All others come from one overview of the plane, made block by block where it is looked at
and kept in half precision, so that a plane is read as a whole once at most.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LinearSegmentedColormap
from PIL import Image

from probablend.plot import CLASS_COLORS

__all__ = ["PALETTES", "TILE", "Layer", "Pyramid", "Read", "image_layer", "legend", "shrink"]

TILE = 512  # side of a tile, pixels
_OVERVIEW = 3  # level that is kept: an eighth of the side
_TILES_KEPT = 512  # of each layer
_AT_ONCE = 2**21  # pixels read from a file together
_N_COLORS = 255  # one more, the last, is for what is masked
_MASKED = (128, 128, 128)
_LARGEST = 6e4  # that half precision holds

Read = Callable[[slice, slice], np.ndarray]


def _colors(name: str) -> np.ndarray:
    map_ = (
        LinearSegmentedColormap.from_list(name, CLASS_COLORS, N=_N_COLORS)
        if name == "classes"
        else colormaps[name]
    )
    shown = map_(np.linspace(0, 1, _N_COLORS), bytes=True)[:, :3]
    return np.concatenate([shown, [_MASKED]]).astype(np.uint8)


PALETTES = {name: _colors(name) for name in ("gray", "viridis", "cividis", "classes")}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A plane and how it is shown.

    Parameters
    ----------
    name, title : str
        In addresses, and for people.
    read : callable
        Rows and columns of the plane → their values, NaN where masked.
    shape_yx : tuple of int
        Shape of the plane.
    low, high : float
        What gets the first and the last colour, in units of ``unit``, after the stretch.
    ends : tuple of str
        The same, for people.
    palette : str
        One of ``PALETTES``.
    zero, unit : float
        Level and scale of the values.
    arcsinh : bool
        Whether values are stretched so that faint and bright ones are seen.
    """

    name: str
    title: str
    read: Read
    shape_yx: tuple[int, int]
    low: float = 0.0
    high: float = 1.0
    ends: tuple[str, str] = ("0", "1")
    palette: str = "viridis"
    zero: float = 0.0
    unit: float = 1.0
    arcsinh: bool = False

    def colour(self, values: np.ndarray) -> np.ndarray:
        """Numbers of colours, uint8, for values in units of ``unit``."""
        shown = np.arcsinh(values) if self.arcsinh else values
        place = (shown - self.low) / (self.high - self.low)
        place = np.clip(np.nan_to_num(place, nan=0.0), 0, 1)
        index = np.round(place * (_N_COLORS - 1)).astype(np.uint8)
        index[np.isnan(values)] = _N_COLORS
        return index


def image_layer(read: Read, shape_yx: tuple[int, int]) -> Layer:
    """An image in units of its noise, arcsinh stretch, with limits from a sub-sample of it all.

    Parameters
    ----------
    read : callable
        Rows and columns → pixels, any unit.
    shape_yx : tuple of int
        Shape of the image.
    """
    some = np.concatenate([read(*box).ravel() for box in _boxes(shape_yx)]).astype(float)
    some = some[np.isfinite(some)]
    sky = float(np.median(some)) if len(some) else 0.0
    spread = 1.4826 * float(np.median(np.abs(some - sky))) if len(some) else 0.0
    noise = spread or float(some.std() if len(some) else 0.0) or 1.0
    top = float(np.percentile((some - sky) / noise, 99.7)) if len(some) else 0.0
    low, high = -1.0, max(math.asinh(top), 3.0)
    low_end, high_end = (f"{math.sinh(v):.3g} σ" for v in (low, high))
    return Layer(
        name="image", title="image", read=read, shape_yx=shape_yx, palette="gray", low=low,
        high=high, ends=(low_end, high_end), zero=sky, unit=noise, arcsinh=True,
    )  # fmt: skip


def _boxes(shape_yx: tuple[int, int], n: int = 5, side: int = 200) -> list[tuple[slice, slice]]:
    """Boxes on a grid over a plane; small planes are covered."""
    starts = [np.linspace(0, max(length - side, 0), n).astype(int) for length in shape_yx]
    rows, columns = ([slice(a, a + side) for a in np.unique(s).tolist()] for s in starts)
    return [(row, column) for row in rows for column in columns]


class Pyramid:
    """A layer at all scales.

    Parameters
    ----------
    layer : Layer
        What is shown.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.tile = lru_cache(_TILES_KEPT)(self._tile)
        self._lock = Lock()
        self._overview = np.zeros((0, 0), np.float16)
        self._done = np.zeros((0, 0), bool)

    @property
    def n_levels(self) -> int:
        """Levels until the plane fits into one tile."""
        return 1 + max(0, math.ceil(math.log2(max(self.layer.shape_yx) / TILE)))

    def _tile(self, level: int, column: int, row: int) -> bytes:
        """One tile as PNG; :meth:`tile` remembers the last ones.

        Raises
        ------
        KeyError
            If there is no such tile.
        """
        return _png(self.layer.colour(self.values(level, column, row)), self.layer.palette)

    def values(self, level: int, column: int, row: int) -> np.ndarray:
        """What one tile shows, float32, in units of the layer.

        Parameters
        ----------
        level : int
            Pixels are means of 2^level × 2^level.
        column, row : int
            Of the tile, from the top left.
        """
        if not 0 <= level < self.n_levels:
            raise KeyError(f"there is no level {level}")
        n_y, n_x = self._size(level)
        if not (0 <= column * TILE < n_x and 0 <= row * TILE < n_y):
            raise KeyError(f"there is no tile {column}, {row} at level {level}")
        rows = slice(row * TILE, min((row + 1) * TILE, n_y))
        columns = slice(column * TILE, min((column + 1) * TILE, n_x))
        if level < _OVERVIEW:
            return self._read(level, rows, columns)
        factor = 2 ** (level - _OVERVIEW)
        part = self._from_overview(_times(rows, factor), _times(columns, factor))
        return shrink(part, factor)

    def _size(self, level: int) -> tuple[int, int]:
        n_y, n_x = self.layer.shape_yx
        return -(-n_y // 2**level), -(-n_x // 2**level)

    def _read(self, level: int, rows: slice, columns: slice) -> np.ndarray:
        """A window of a level, from the file, strip by strip; its rows run downwards."""
        layer, factor = self.layer, 2**level
        n_y, n_x = layer.shape_yx
        left, right = columns.start * factor, min(columns.stop * factor, n_x)
        n_rows = max(1, _AT_ONCE // ((right - left) * factor))
        strips = []
        for first in range(rows.start, rows.stop, n_rows):
            last = min(first + n_rows, rows.stop)
            low, high = max(n_y - last * factor, 0), n_y - first * factor
            strips.append(shrink(layer.read(slice(low, high), slice(left, right))[::-1], factor))
        return (np.concatenate(strips) - np.float32(layer.zero)) / np.float32(layer.unit)

    def _from_overview(self, rows: slice, columns: slice) -> np.ndarray:
        with self._lock:
            if not self._done.size:
                n_y, n_x = self._size(_OVERVIEW)
                self._overview = np.zeros((n_y, n_x), np.float16)
                self._done = np.zeros((-(-n_y // TILE), -(-n_x // TILE)), bool)
            n_y, n_x = self._overview.shape
            for row in range(rows.start // TILE, -(-min(rows.stop, n_y) // TILE)):
                for column in range(columns.start // TILE, -(-min(columns.stop, n_x) // TILE)):
                    self._fill(row, column)
        return self._overview[rows, columns].astype(np.float32)

    def _fill(self, row: int, column: int) -> None:
        """Make one block of the overview, if it has not been made."""
        if self._done[row, column]:
            return
        n_y, n_x = self._overview.shape
        rows = slice(row * TILE, min((row + 1) * TILE, n_y))
        columns = slice(column * TILE, min((column + 1) * TILE, n_x))
        values = self._read(_OVERVIEW, rows, columns)
        self._overview[rows, columns] = np.clip(values, -_LARGEST, _LARGEST)
        self._done[row, column] = True


def _times(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)


def shrink(values: np.ndarray, factor: int) -> np.ndarray:
    """Means of blocks of ``factor`` × ``factor`` pixels, NaN left out.

    Parameters
    ----------
    values : ndarray, shape (y, x)
        Any type.
    factor : int
        Blocks at the last row and column may be smaller.

    Returns
    -------
    ndarray of float32, shape (⌈y / factor⌉, ⌈x / factor⌉)
        NaN where nothing is finite.
    """
    values = np.asarray(values, dtype=np.float32)
    if factor == 1:
        return values
    below, right = (-n % factor for n in values.shape)
    if below or right:
        values = np.pad(values, ((0, below), (0, right)), constant_values=np.nan)
    mean = _sum(values, factor) / np.float32(factor**2)
    if np.isfinite(mean).all():  # the common case, and twice as fast
        return mean
    good = np.isfinite(values)
    total, n = (_sum(v, factor) for v in (np.where(good, values, 0), good.astype(np.float32)))
    with np.errstate(invalid="ignore"):
        return np.where(n > 0, total / n, np.float32(np.nan))


def _sum(values: np.ndarray, factor: int) -> np.ndarray:
    n_y, n_x = values.shape
    rows = values.reshape(n_y // factor, factor, n_x).sum(axis=1)
    return rows.reshape(n_y // factor, n_x // factor, factor).sum(axis=2)


def legend(palette: str) -> bytes:
    """All colours of a palette in a row, PNG."""
    return _png(np.arange(_N_COLORS, dtype=np.uint8)[None], palette)


def _png(index: np.ndarray, palette: str) -> bytes:
    picture = Image.fromarray(np.ascontiguousarray(index))
    picture.putpalette(PALETTES[palette].tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
