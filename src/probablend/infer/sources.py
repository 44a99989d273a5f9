"""From positions to measured sources: parameters, footprints, labels, parents, blending."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import astropy.units as u
import numpy as np
import torch
from astropy.table import QTable
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales
from scipy import ndimage

from probablend.catalog import build_table, quantile_columns, sky_positions
from probablend.flags import Flag
from probablend.images import PreparedImage
from probablend.infer.scan import Found
from probablend.models.field import FieldNetwork
from probablend.models.fields import point_normals
from probablend.models.source import DESCRIPTIONS, PARAMETERS, SourcePosterior

__all__ = [
    "N_DRAWS",
    "Ellipses",
    "Measured",
    "blended_share",
    "draw_parameters",
    "group_sources",
    "label_sources",
    "measure_sources",
    "overlap_share",
]

SOURCE_STREAM = 2  # of the random numbers; 0 and 1 are those of the class maps
N_DRAWS = 128  # of each source; the catalogue's quantiles come from them
_BOX_PIXELS = 1_000_000  # of boxes looked at together
_MAX_RADIUS = 300.0  # pixels, of a footprint: what is larger was never learnt
_CHUNK = 256  # sources drawn at once
_SLACK = 1.1  # how far beyond the range of the training is still within
_TOUCH = 1.15  # blended pixels this far out, in footprint radii, still are the source's
N_OVERLAP = 32  # joint draws in which overlaps are counted
_ELLIPSE = ("y", "x", "radius", "e1", "e2")
_REACH = 2.0  # a label reaches this many footprint radii


@torch.inference_mode()
def draw_parameters(
    network: FieldNetwork, found: Found, unit: np.ndarray, n: int, *, seed: int
) -> np.ndarray:
    """Posterior draws of the parameters of sources.

    Parameters
    ----------
    network : FieldNetwork
        Owns the flow.
    found : Found
        The sources.
    unit : ndarray, shape (source,)
        Noise per pixel at each source, image units.
    n : int
        Draws.
    seed : int
        The draws depend on it and on the pixel of the source alone.

    Returns
    -------
    ndarray, shape (draw, source, parameter), float32
        In the order of :data:`~probablend.models.source.PARAMETERS`.
    """
    draws = np.empty((n, len(found), len(PARAMETERS)), dtype=np.float32)
    rows, columns = found.pixel.T
    for first in range(0, len(found), _CHUNK):
        part = np.arange(first, min(first + _CHUNK, len(found)))
        some = found.keep(part)
        base = np.stack(
            [
                np.stack([point_normals((seed, k, SOURCE_STREAM, p), rows[part], columns[part])
                          for p in range(len(PARAMETERS))], axis=-1)
                for k in range(n)
            ]
        )  # fmt: skip
        # Positions are added afterwards: single precision would round those of large images.
        zero = torch.zeros(len(part), device=some.context.device)
        posterior = SourcePosterior(
            flow=network.flow, context=some.context, y=zero, x=zero,
            unit=torch.from_numpy(unit[part].astype(np.float32)).to(zero),
        )  # fmt: skip
        draws[:, part] = posterior.transform(torch.from_numpy(base).to(zero)).cpu().numpy()
    return draws


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

    def to_regions(self) -> str:
        """Region file for ds9, image coordinates (first pixel at 1), one ellipse per source."""
        a, b, angle = self.axes
        lines = ["# Region file format: DS9 version 4.1", "global color=cyan", "image"]
        rows = zip(self.x + 1, self.y + 1, a, b, np.degrees(angle), strict=True)
        lines += [
            f"ellipse({x:.2f},{y:.2f},{a:.2f},{b:.2f},{t:.1f}) # text={{{k}}}"
            for k, (x, y, a, b, t) in enumerate(rows, start=1)
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
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
        rho : ndarray, shape (pixel,)
            Elliptical radius, 1 on the ellipse.
        """
        low_y, high_y, low_x, high_x = self.boxes(shape_yx, reach)
        wide = np.maximum(high_x - low_x, 0)
        n_each = np.maximum(high_y - low_y, 0) * wide
        # A few sources at a time: the boxes of all of a large image would not fit in memory.
        part = np.cumsum(n_each) // _BOX_PIXELS
        ends = [*np.flatnonzero(np.diff(part)) + 1, len(self)]
        found = []
        for first, last in zip([0, *ends], ends, strict=False):
            some = np.arange(first, last)
            found.append(self._pixels(some, n_each, wide, low_y, low_x, shape_yx[1], reach))
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]

    def _pixels(
        self,
        some: np.ndarray,
        n_each: np.ndarray,
        wide: np.ndarray,
        low_y: np.ndarray,
        low_x: np.ndarray,
        n_x: int,
        reach: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n_each = n_each[some]
        source = np.repeat(some, n_each)
        local = np.arange(len(source)) - np.repeat(np.cumsum(n_each) - n_each, n_each)
        row = local // wide[source] + low_y[source]
        column = local % wide[source] + low_x[source]
        dy, dx = row - self.y[source], column - self.x[source]
        # dᵀ M⁻¹ d with M = r² / √(1 − e²) · [[1 + e1, e2], [e2, 1 − e1]] over (x, y).
        e1, e2 = self.e1[source], self.e2[source]
        rest = np.sqrt(np.clip(1 - e1**2 - e2**2, 1e-6, None))
        square = ((1 - e1) * dx**2 + (1 + e1) * dy**2 - 2 * e2 * dx * dy) / rest
        rho = np.sqrt(np.maximum(square, 0)) / np.maximum(self.radius[source], 1e-3)
        centre = row == np.floor(self.y + 0.5).astype(np.int64)[source]
        centre &= column == np.floor(self.x + 0.5).astype(np.int64)[source]
        keep = (rho <= reach) | centre
        return source[keep], (row * n_x + column)[keep], rho[keep].astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Sources with their posterior.

    Parameters
    ----------
    catalog : QTable
        One row per source.
    draws : ndarray, shape (draw, source, parameter), float32
        Joint posterior draws, in the order of
        :data:`~probablend.models.source.PARAMETERS`; image units and pixels, ``y`` and ``x``
        counted from ``origin``.
    origin : ndarray, shape (source, 2)
        Where each source was looked at, (y, x).
    ellipses : Ellipses
        Median footprints.
    posterior : SourcePosterior
        The density behind the draws, with ``sample`` and ``log_prob``; single precision.
    by_pixels, by_footprints : ndarray, shape (source,)
        The two halves of ``p_blend``: share of the class maps with a blended pixel in the
        footprint, and share of the joint draws in which the footprint overlaps another.
    """

    catalog: QTable
    draws: np.ndarray
    origin: np.ndarray
    ellipses: Ellipses
    posterior: SourcePosterior
    by_pixels: np.ndarray
    by_footprints: np.ndarray

    def parameter(self, name: str) -> np.ndarray:
        """Draws of one parameter, (draw, source), positions in the image."""
        values = self.draws[..., PARAMETERS.index(name)].astype(float)
        return values + self.origin[:, "yx".index(name)] if name in ("y", "x") else values

    def posterior_table(self, n: int) -> QTable:
        """Joint draws, one row per source, each column of shape (n,).

        Raises
        ------
        ValueError
            If more are asked for than were drawn.
        """
        if not 1 <= n <= len(self.draws):
            raise ValueError(f"between 1 and {len(self.draws)} draws can be kept; got {n}")
        table = QTable({"id": self.catalog["id"]})
        for name in PARAMETERS:
            values = np.ascontiguousarray(self.parameter(name)[:n].T)
            table[name] = values * u.pix if name in ("y", "x", "hlr", "radius") else values
            table[name].info.description = DESCRIPTIONS[name]
        return table

    def footprint(
        self, k: int, shape_yx: tuple[int, int]
    ) -> tuple[tuple[slice, slice], np.ndarray]:
        """Where source ``k`` may be: a box of the image, and per pixel the probability.

        The probability that a pixel belongs to the footprint is the share of the posterior
        draws whose ellipse holds it. Footprints of different sources may overlap.
        """
        one = self.draws[:, k].astype(float)
        one[:, [PARAMETERS.index("y"), PARAMETERS.index("x")]] += self.origin[k]
        drawn = Ellipses(**{name: one[:, PARAMETERS.index(name)]
                            for name in _ELLIPSE})  # fmt: skip
        _, index, _ = drawn.pixels(shape_yx)
        inside, counts = np.unique(index, return_counts=True)
        share = counts / len(one)
        if not len(inside):
            return (slice(0, 0), slice(0, 0)), np.zeros((0, 0))
        rows, columns = np.divmod(inside, shape_yx[1])
        box = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
        values = np.zeros((box[0].stop - box[0].start, box[1].stop - box[1].start))
        values[rows - box[0].start, columns - box[1].start] = share
        return box, values


def measure_sources(
    network: FieldNetwork,
    found: Found,
    prepared: PreparedImage,
    blends: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    seed: int,
    wcs: WCS | None,
    zeropoint: float | None,
    saturation: float | None,
    image: np.ndarray,
    psf_fwhm: float,
    meta: Mapping[str, Any],
) -> Measured:
    """Posterior and catalogue of sources.

    Parameters
    ----------
    network : FieldNetwork
        Owns the flow.
    found : Found
        The sources, in the order of the catalogue.
    prepared : PreparedImage
        Gives noise and mask.
    blends : sequence of (y, x)
        Blended pixels of each class map that was drawn.
    seed : int
        Of the draws.
    wcs : WCS or None
        Celestial coordinates.
    zeropoint : float or None
        Magnitude of one unit of flux.
    saturation : float or None
        Level from which pixels of ``image`` are saturated.
    image : ndarray, shape (y, x)
        As it was read.
    psf_fwhm : float
        Pixels.
    meta : mapping
        Of the model: says what it was trained on.
    """
    shape_yx = prepared.signal.shape
    rows = np.clip(np.floor(found.y + 0.5).astype(int), 0, shape_yx[0] - 1)
    columns = np.clip(np.floor(found.x + 0.5).astype(int), 0, shape_yx[1] - 1)
    noise = np.broadcast_to(np.asarray(prepared.rms), shape_yx)[rows, columns]
    noise = np.where(np.isfinite(noise) & (noise > 0), noise, 1.0)
    draws = draw_parameters(network, found, noise, N_DRAWS, seed=seed)
    radius = draws[..., PARAMETERS.index("radius")]
    np.minimum(radius, _MAX_RADIUS, out=radius)
    columns_ = quantile_columns(draws, zeropoint)
    middle = np.zeros((len(found), len(PARAMETERS)))
    for k in range(len(PARAMETERS) if len(found) else 0):
        middle[:, k] = np.median(draws[..., k], axis=0)
    # Single precision holds offsets, not positions in a large image.
    for name, origin in (("y", found.y), ("x", found.x)):
        columns_[name] = columns_[name] + origin
        middle[:, PARAMETERS.index(name)] += origin
    ellipses = Ellipses(**{name: middle[:, PARAMETERS.index(name)]
                           for name in _ELLIPSE})  # fmt: skip
    # Two views of one event. Class maps know of companions that are no source of their own,
    # footprints know which light is whose: each errs where the other does not.
    wide = replace(ellipses, radius=_TOUCH * ellipses.radius)
    by_pixels = blended_share(wide, blends, shape_yx)
    by_footprints = overlap_share(
        [_drawn(draws[k], found) for k in range(min(N_OVERLAP, N_DRAWS))], shape_yx
    )
    ra, dec = sky_positions(columns_["x"], columns_["y"], wcs)
    group = group_sources(ellipses, shape_yx)
    scale = np.nan if wcs is None else 3600 * float(np.mean(_pixel_degrees(wcs)))
    catalog = build_table(
        columns_
        | {
            "id": np.arange(1, len(found) + 1),
            "ra": ra,
            "dec": dec,
            "p_source": found.p_source,
            "p_star": found.p_star,
            "hlr_arcsec": columns_["hlr"] * scale,
            "p_blend": 0.5 * (by_pixels + by_footprints),
            "parent": group + 1,
            "n_siblings": np.bincount(group, minlength=len(found))[group] - 1,
            "flags": _flags(ellipses, middle, noise, prepared, image, saturation, psf_fwhm, meta),
        }
    )
    origin = np.stack([found.y, found.x], axis=1)
    context = found.context.clone()  # a plain tensor: log_prob can be differentiated
    y, x, unit = (
        torch.from_numpy(v.astype(np.float32)).to(context) for v in (found.y, found.x, noise)
    )
    posterior = SourcePosterior(flow=network.flow, context=context, y=y, x=x, unit=unit)
    return Measured(
        catalog=catalog,
        draws=draws,
        origin=origin,
        ellipses=ellipses,
        posterior=posterior,
        by_pixels=by_pixels,
        by_footprints=by_footprints,
    )


def _drawn(values: np.ndarray, found: Found) -> Ellipses:
    """Footprints of one joint draw, (source, parameter)."""
    shape = {name: values[:, PARAMETERS.index(name)].astype(float) for name in _ELLIPSE}
    return Ellipses(**(shape | {"y": shape["y"] + found.y, "x": shape["x"] + found.x}))


def _pixel_degrees(wcs: WCS) -> np.ndarray:
    return proj_plane_pixel_scales(wcs.celestial)


def _flags(
    ellipses: Ellipses,
    middle: np.ndarray,
    noise: np.ndarray,
    prepared: PreparedImage,
    image: np.ndarray,
    saturation: float | None,
    psf_fwhm: float,
    meta: Mapping[str, Any],
) -> np.ndarray:
    n_y, n_x = prepared.signal.shape
    flags = np.zeros(len(ellipses), dtype=np.int32)
    if not len(ellipses):
        return flags
    source, index, _ = ellipses.pixels((n_y, n_x))

    def mark(pixels: np.ndarray, flag: Flag) -> None:
        flags[np.unique(source[pixels.ravel()[index]])] |= flag

    border = np.zeros((n_y, n_x), dtype=bool)
    border[[0, -1]] = border[:, [0, -1]] = True
    mark(border, Flag.TRUNCATED)
    if prepared.mask.any():
        mark(ndimage.binary_dilation(prepared.mask, np.ones((3, 3))), Flag.MASKED_PIXELS)
    if saturation is not None:
        with np.errstate(invalid="ignore"):
            mark(np.asarray(image) >= saturation, Flag.SATURATED)
    limits = meta.get("trained_range", {})
    for name, values in (
        ("psf_fwhm", np.full(len(ellipses), psf_fwhm)),
        ("flux", middle[:, PARAMETERS.index("flux")] / noise),
        ("hlr", middle[:, PARAMETERS.index("hlr")]),
    ):
        low, high = limits.get(name, (0.0, np.inf))
        flags[(values < low / _SLACK) | (values > high * _SLACK)] |= Flag.OUT_OF_RANGE
    return flags


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
        0 = none, 1…N: the source in whose ellipse the pixel lies deepest. A source keeps the
        pixel of its centre.
    """
    n_y, n_x = p_galaxy.shape
    labels = np.zeros((n_y, n_x), dtype=np.int32)
    source, index, rho = ellipses.pixels((n_y, n_x), reach=_REACH)
    order = np.argsort(-rho, kind="stable")  # the last to write is the deepest
    flat = labels.ravel()
    flat[index[order]] = source[order] + 1
    flat[~(p_galaxy.ravel() > 0.5)] = 0
    rows = np.clip(np.floor(ellipses.y + 0.5).astype(int), 0, n_y - 1)
    columns = np.clip(np.floor(ellipses.x + 0.5).astype(int), 0, n_x - 1)
    labels[rows, columns] = np.arange(1, len(ellipses) + 1)
    return labels


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
    source, index, _ = ellipses.pixels(shape_yx)
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
        source, index, _ = one.pixels(shape_yx)
        count = np.bincount(index, minlength=1)
        share += np.bincount(source[count[index] > 1], minlength=len(share)) > 0
    return share / len(drawn)


def group_sources(ellipses: Ellipses, shape_yx: tuple[int, int]) -> np.ndarray:
    """Sources whose footprints touch: the number, from 0, of the first source of each group."""
    if not len(ellipses):
        return np.zeros(0, dtype=np.int64)
    source, index, _ = ellipses.pixels(shape_yx)
    covered = np.zeros(shape_yx, dtype=bool)
    covered.ravel()[index] = True
    regions, n_regions = ndimage.label(covered, structure=np.ones((3, 3)))
    group = np.zeros(len(ellipses), dtype=np.int64)
    group[source] = regions.ravel()[index]
    first = np.full(n_regions + 1, len(ellipses), dtype=np.int64)
    np.minimum.at(first, group, np.arange(len(ellipses)))
    return np.where(group > 0, first[group], np.arange(len(ellipses)))
