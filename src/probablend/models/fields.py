"""Gaussian random fields whose value depends on the position in the image alone.

The random numbers come from a hash of (seed, stream, position): no state, no order of
work. Two tiles that overlap see the same field, on any number of workers. A field is
white noise on a coarse lattice, interpolated by cubic B-splines and scaled to unit
variance everywhere.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "gaussian_field",
    "gaussian_fields",
    "gaussian_points",
    "lattice_normals",
    "point_normals",
    "spline_matrix",
]

_U64 = np.uint64


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every bit of the input changes half the bits of the output."""
    x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
    return x ^ (x >> _U64(31))


def lattice_normals(key: Sequence[int], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Independent standard normals at lattice points.

    Parameters
    ----------
    key : sequence of int
        Names the stream, for example (seed, sample, level).
    rows, columns : ndarray of int
        Lattice coordinates; negative ones are allowed.

    Returns
    -------
    ndarray, shape (len(rows), len(columns)), float32

    References
    ----------
    Steele, Lea & Flood 2014, OOPSLA (SplitMix64); Box & Muller 1958.
    """
    return point_normals(key, rows[:, None], columns[None, :])


def point_normals(
    key: Sequence[int | np.ndarray], rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Like :func:`lattice_normals`, at points given one by one: all, key too, broadcast."""
    step = _U64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        state = np.zeros(1, dtype=_U64)
        for part in key:
            state = _mix(state + step + _mix(np.atleast_1d(part).astype(np.int64).astype(_U64)))
        by_row = _mix(state + step * rows.astype(np.int64).astype(_U64))
        cells = _mix(by_row + step * columns.astype(np.int64).astype(_U64))
        first, second = _mix(cells + step), _mix(cells + step + step)
    # 53 bits → (0, 1], then Box–Muller.
    u = ((first >> _U64(11)).astype(np.float64) + 1) / 2.0**53
    angle = (second >> _U64(11)).astype(np.float64) * (2 * np.pi / 2.0**53)
    return (np.sqrt(-2 * np.log(u)) * np.cos(angle)).astype(np.float32)


def _spline(pixels: np.ndarray, spacing: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lattice points in reach of some pixels, each pixel's first of four, and its weights."""
    position = (pixels + 0.5) / spacing
    base = np.floor(position).astype(np.int64)
    t = position - base
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    )
    weights /= np.sqrt((weights**2).sum(axis=0))  # unit variance, not unit sum
    first = base.min()
    return np.arange(first - 1, base.max() + 3), base - first, weights.astype(np.float32)


def gaussian_field(
    key: Sequence[int], shape_yx: tuple[int, int], origin_yx: tuple[int, int], spacing: int
) -> Tensor:
    """Smooth field of zero mean and unit variance.

    Parameters
    ----------
    key : sequence of int
        Names the field.
    shape_yx : tuple of int
        Pixels to return.
    origin_yx : tuple of int
        Position of the first pixel in the image.
    spacing : int
        Lattice spacing in pixels; the field is correlated over about 1.5 of it. With 1 the
        pixels are independent.

    Returns
    -------
    Tensor, shape (y, x), float32
    """
    if spacing == 1:
        rows, columns = (np.arange(o, o + n) for o, n in zip(origin_yx, shape_yx, strict=True))
        return torch.from_numpy(lattice_normals(key, rows, columns))
    y, x = (np.arange(o, o + n) for o, n in zip(origin_yx, shape_yx, strict=True))
    rows, first_row, row_weights = _spline(y, spacing)
    columns, first_column, column_weights = _spline(x, spacing)
    noise = lattice_normals(key, rows, columns)
    # Four taps along x, then along y, always in the same order: tiles agree to the last bit.
    along_x = sum(noise[:, first_column + tap] * column_weights[tap] for tap in range(4))
    field = sum(along_x[first_row + tap] * row_weights[tap][:, None] for tap in range(4))
    return torch.from_numpy(field)


def gaussian_fields(
    keys: Sequence[Sequence[int]],
    shape_yx: tuple[int, int],
    origin_yx: tuple[int, int],
    spacing: int,
) -> Tensor:
    """Several of :func:`gaussian_field` at once, equal to single precision.

    Parameters
    ----------
    keys : sequence of sequences of int
        Each names a field.
    shape_yx, origin_yx, spacing
        Of all of them; the spacing at least 2.

    Returns
    -------
    Tensor, shape (field, y, x), float32
    """
    (n_y, n_x), (first_y, first_x) = shape_yx, origin_yx
    along_x, columns = _spline_matrix(n_x, spacing, first_x)
    # Rows: the lattice and its weights repeat, so whole intervals are made and then cut.
    low, high = first_y // spacing, (first_y + n_y - 1) // spacing + 1
    _, _, weights = _spline(np.arange(spacing), spacing)
    noise = np.stack([lattice_normals(key, np.arange(low - 1, high + 2), columns) for key in keys])
    lines = torch.from_numpy(noise) @ along_x.T  # (field, lattice row, x)
    near = lines.unfold(1, 4, 1).movedim(-1, 2)  # (field, interval, 4, x), without a copy
    fields = torch.from_numpy(weights.T.copy()) @ near  # (field, interval, spacing, x)
    return fields.flatten(1, 2)[:, first_y - low * spacing :][:, :n_y]


def gaussian_points(key: Sequence[int], y: np.ndarray, x: np.ndarray, spacing: int) -> np.ndarray:
    """The values of :func:`gaussian_field` at some pixels only.

    Parameters
    ----------
    key : sequence of int
        Names the field.
    y, x : ndarray of int, shape (n,)
        Positions in the image.
    spacing : int
        Lattice spacing in pixels, at least 2.

    Returns
    -------
    ndarray, shape (n,), float32
    """
    if not len(y):
        return np.zeros(0, dtype=np.float32)
    rows, first_row, row_weights = _spline(y, spacing)
    columns, first_column, column_weights = _spline(x, spacing)
    noise = lattice_normals(key, rows, columns)
    field = np.zeros(len(y), dtype=np.float32)
    for tap_y in range(4):
        line = first_row + tap_y
        along_x = sum(noise[line, first_column + tap] * column_weights[tap] for tap in range(4))
        field += along_x * row_weights[tap_y]
    return field


def spline_matrix(n: int, spacing: int) -> Tensor:
    """Matrix from lattice normals to a field of unit variance, along one axis.

    Parameters
    ----------
    n : int
        Pixels.
    spacing : int
        Lattice spacing in pixels.

    Returns
    -------
    Tensor, shape (n, lattice), float32
        ``matrix_y @ noise @ matrix_x.T`` has the law of :func:`gaussian_field`.
    """
    return _spline_matrix(n, spacing, 0)[0]


@lru_cache(maxsize=64)
def _spline_matrix(n: int, spacing: int, start: int) -> tuple[Tensor, np.ndarray]:
    """The matrix for pixels from ``start``, and the lattice points of its columns."""
    lattice, first, weights = _spline(np.arange(start, start + n), spacing)
    matrix = np.zeros((n, len(lattice)), dtype=np.float32)
    for tap in range(4):
        matrix[np.arange(n), first + tap] = weights[tap]
    return torch.from_numpy(matrix), lattice
