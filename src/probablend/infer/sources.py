"""From positions to measured sources: posterior draws, catalogue, flags."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import astropy.units as u
import numpy as np
import torch
from astropy.table import QTable
from astropy.wcs import WCS
from scipy import ndimage
from scipy.special import expit

from probablend.catalog import (
    COLUMNS,
    UCDS,
    build_table,
    describe,
    quantile_columns,
    set_flux_unit,
    sky_positions,
)
from probablend.flags import Flag
from probablend.infer.footprints import Ellipses, blended_share, group_sources, overlap_share
from probablend.infer.scan import Found
from probablend.infer.tiles import WHOLE, Window
from probablend.models.familiar import spread_of
from probablend.models.field import FieldNetwork
from probablend.models.fields import point_normals
from probablend.models.source import DESCRIPTIONS, PARAMETERS, SourcePosterior
from probablend.prepare import PreparedImage

__all__ = [
    "N_DRAWS",
    "N_MAPS",
    "N_OVERLAP",
    "POOL",
    "Measured",
    "draw_parameters",
    "draws_table",
    "ln_odds",
    "measure_sources",
    "pool_blending",
]

SOURCE_STREAM = 2  # of the random numbers; 0 and 1 are those of the class maps
N_DRAWS = 128  # of each source; the catalogue's quantiles come from them
_MAX_RADIUS = 300.0  # pixels, of a footprint: what is larger was never learnt
_CHUNK = 256
_SLACK = 1.1  # how far beyond the range of the training is still within
_TOUCH = 1.15  # blended pixels this far out, in footprint radii, still are the source's
N_OVERLAP = 32  # joint draws in which overlaps are counted
POOL = (0.96, 0.85, 0.47)  # see pool_blending; of
N_MAPS = 64  # class maps: with fewer a share says the same, but is less sure


@torch.inference_mode()
def draw_parameters(
    network: FieldNetwork,
    found: Found,
    unit: np.ndarray,
    spread: np.ndarray,
    n: int,
    *,
    seed: int,
    origin_yx: tuple[int, int] = (0, 0),
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
    spread : ndarray, shape (source,)
        How many times wider than learnt the posterior of each source is.
    n : int
        Draws.
    seed : int
        The draws depend on it and on the pixel of the source alone.
    origin_yx : tuple of int
        Where in an image the pixels of the sources are counted from.

    Returns
    -------
    ndarray, shape (draw, source, parameter), float32
        In the order of :data:`~probablend.models.source.PARAMETERS`.
    """
    draws = np.empty((n, len(found), len(PARAMETERS)), dtype=np.float32)
    rows, columns = (found.pixel + np.array(origin_yx)).T
    for first in range(0, len(found), _CHUNK):
        part = np.arange(first, min(first + _CHUNK, len(found)))
        some = found.keep(part)
        key = (seed, np.arange(n)[:, None, None], SOURCE_STREAM, np.arange(len(PARAMETERS)))
        base = point_normals(key, rows[part, None], columns[part, None])
        # Positions are added afterwards: single precision would round those of large images.
        zero = torch.zeros(len(part), device=some.context.device)
        posterior = SourcePosterior(
            flow=network.flow, context=some.context, y=zero, x=zero,
            unit=torch.from_numpy(unit[part].astype(np.float32)).to(zero),
            spread=torch.from_numpy(spread[part]).to(zero),
        )  # fmt: skip
        draws[:, part] = posterior.transform(torch.from_numpy(base).to(zero)).cpu().numpy()
    return draws


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
    pixel : ndarray of int, shape (source, 2)
        The pixel that owns each source, (y, x); no other source has the same, unless positions
        were given.
    ellipses : Ellipses
        Median footprints.
    posterior : SourcePosterior
        The density behind the draws, with ``sample`` and ``log_prob``; single precision.
    """

    catalog: QTable
    draws: np.ndarray
    origin: np.ndarray
    pixel: np.ndarray
    ellipses: Ellipses
    posterior: SourcePosterior

    def first(self, n: int) -> "Measured":
        """The first ones alone."""
        if n == len(self.catalog):
            return self
        return replace(
            self, catalog=self.catalog[:n], draws=self.draws[:, :n], origin=self.origin[:n],
            pixel=self.pixel[:n], ellipses=self.ellipses.first(n), posterior=self.posterior[:n],
        )  # fmt: skip

    def parameter(self, name: str) -> np.ndarray:
        """Draws of one parameter, (draw, source), positions in the image."""
        if name not in PARAMETERS:
            raise ValueError(f"parameter must be one of {', '.join(PARAMETERS)}; got {name!r}")
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
        table = draws_table(self.draws[:n], self.origin, self.catalog["id"])
        if (unit := self.catalog["flux"].unit) is not None:
            set_flux_unit(table, unit)
        return table

    def footprint(
        self, k: int, shape_yx: tuple[int, int]
    ) -> tuple[tuple[slice, slice], np.ndarray]:
        """Where source ``k`` may be: a box of the image, and per pixel the probability.

        The probability that a pixel belongs to the footprint is the share of the posterior
        draws whose ellipse holds it. Footprints of different sources may overlap.
        """
        _, index = Ellipses.of(self.draws[:, k], self.origin[k]).pixels(shape_yx)
        inside, counts = np.unique(index, return_counts=True)
        share = counts / len(self.draws)
        if not len(inside):
            return (slice(0, 0), slice(0, 0)), np.zeros((0, 0))
        rows, columns = np.divmod(inside, shape_yx[1])
        (top, bottom), (left, right) = ((int(v.min()), int(v.max())) for v in (rows, columns))
        box = (slice(top, bottom + 1), slice(left, right + 1))
        values = np.zeros((box[0].stop - box[0].start, box[1].stop - box[1].start))
        values[rows - box[0].start, columns - box[1].start] = share
        return box, values

    def footprints(
        self, shape_yx: tuple[int, int]
    ) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
        """:meth:`footprint` of every source, in the order of the catalogue."""
        for k in range(len(self.catalog)):
            yield self.footprint(k, shape_yx)


def ln_odds(share: np.ndarray, n: int) -> np.ndarray:
    """Logarithm of the odds of what came true in a share of ``n`` samples; half a case for each."""
    hits = np.asarray(share, float) * n
    return np.log((hits + 0.5) / (n - hits + 0.5))


def pool_blending(by_pixels: np.ndarray, by_footprints: np.ndarray) -> np.ndarray:
    """Probability that a source is blended, from two shares of posterior samples.

    A logarithmic pool (Genest & Zidek 1986, doi:10.1214/ss/1177013825) with weights that were
    fitted to validation fields of four surveys and of many that might be, each half
    (``benchmarks/pooling.py``). It grows with both shares. Their mean is too low: class maps know
    of companions that are no source of their own, footprints know which light is whose, and each
    misses what the other sees.

    Parameters
    ----------
    by_pixels : ndarray, shape (source,)
        Share of the class maps with a blended pixel in the footprint.
    by_footprints : ndarray, shape (source,)
        Share of the joint draws in which the footprint overlaps another one.
    """
    constant, of_pixels, of_footprints = POOL
    pooled = constant + of_pixels * ln_odds(by_pixels, N_MAPS)
    return expit(pooled + of_footprints * ln_odds(by_footprints, N_OVERLAP))


def draws_table(draws: np.ndarray, origin: np.ndarray, ids: np.ndarray) -> QTable:
    """Joint draws of some sources, one row each, every column of shape (draw,).

    Parameters
    ----------
    draws : ndarray, shape (draw, source, parameter)
        Positions counted from ``origin``.
    origin : ndarray, shape (source, 2)
        (y, x).
    ids : ndarray of int, shape (source,)
        Numbers of the sources.
    """
    table = QTable({"id": np.asarray(ids, dtype=np.int32)})
    describe(table, "id", COLUMNS["id"][2], UCDS["id"])
    for k, name in enumerate(PARAMETERS):
        values = draws[..., k].astype(float)
        if name in ("y", "x"):
            values = values + origin[:, "yx".index(name)]
        values = np.ascontiguousarray(values.T)
        table[name] = values * u.pix if name in ("y", "x", "hlr", "radius") else values
        describe(table, name, DESCRIPTIONS[name], UCDS[name])
    return table


def measure_sources(
    network: FieldNetwork,
    found: Found,
    prepared: PreparedImage,
    blends: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    seed: int,
    wcs: WCS | None,
    pixel_scale: float | None,
    zeropoint: float | None,
    saturation: float | None,
    image: np.ndarray,
    psf_fwhm: float | np.ndarray,
    meta: Mapping[str, Any],
    error_factor: float = 1.0,
    window: Window = WHOLE,
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
    pixel_scale : float or None
        Arcseconds per pixel.
    zeropoint : float or None
        Magnitude of one unit of flux.
    saturation : float or None
        Level from which pixels of ``image`` are saturated.
    image : ndarray, shape (y, x)
        As it was read.
    psf_fwhm : float or ndarray, shape (y, x)
        Pixels.
    meta : mapping
        Of the model: says what it was trained on.
    error_factor : float
        See :func:`~probablend.infer.segment.segment`.
    window : Window
        Which part of an image this is; all positions are counted from its first pixel.
    """
    shape_yx = prepared.signal.shape
    noise = np.broadcast_to(np.asarray(prepared.rms), shape_yx)[tuple(found.pixel.T)]
    widths = np.broadcast_to(psf_fwhm, shape_yx)[tuple(found.pixel.T)]
    spread = error_factor * spread_of(torch.from_numpy(found.strangeness)).numpy()
    draws = draw_parameters(
        network, found, noise, spread, N_DRAWS, seed=seed, origin_yx=window.origin_yx
    )
    radius = draws[..., PARAMETERS.index("radius")]
    np.minimum(radius, _MAX_RADIUS, out=radius)
    origin = np.stack([found.y, found.x], axis=1)
    columns = quantile_columns(draws, zeropoint)
    columns["y"], columns["x"] = columns["y"] + found.y, columns["x"] + found.x
    middle = np.zeros((len(found), len(PARAMETERS)))
    for k in range(len(PARAMETERS) if len(found) else 0):
        middle[:, k] = np.median(draws[..., k], axis=0)
    ellipses = Ellipses.of(middle, origin)
    # Two views of one event. Class maps know of companions that are no source of their own,
    # footprints know which light is whose: each errs where the other does not.
    wide = replace(ellipses, radius=_TOUCH * ellipses.radius)
    by_pixels = blended_share(wide, blends, shape_yx)
    by_footprints = overlap_share([Ellipses.of(one, origin) for one in draws[:N_OVERLAP]], shape_yx)
    ra, dec = sky_positions(columns["x"], columns["y"], wcs)
    group = group_sources(ellipses, shape_yx)
    catalog = build_table(
        columns
        | {
            "id": np.arange(1, len(found) + 1),
            "ra": ra,
            "dec": dec,
            "p_source": found.p_source,
            "p_star": found.p_star,
            "hlr_arcsec": columns["hlr"] * (np.nan if pixel_scale is None else pixel_scale),
            "p_blend": pool_blending(by_pixels, by_footprints),
            "p_blend_maps": by_pixels,
            "p_blend_footprints": by_footprints,
            "parent": group + 1,
            "n_siblings": np.bincount(group, minlength=len(found))[group] - 1,
            "flags": _flags(
                ellipses,
                middle,
                found.strangeness,
                noise,
                prepared,
                image,
                saturation,
                widths,
                meta,
                window,
            ),
        }
    )
    context = found.context.clone()  # a plain tensor: log_prob can be differentiated
    y, x, unit, wider = (
        torch.from_numpy(v.astype(np.float32)).to(context)
        for v in (found.y, found.x, noise, spread)
    )
    posterior = SourcePosterior(
        flow=network.flow, context=context, y=y, x=x, unit=unit, spread=wider
    )
    return Measured(
        catalog=catalog,
        draws=draws,
        origin=origin,
        pixel=found.pixel,
        ellipses=ellipses,
        posterior=posterior,
    )


def _flags(
    ellipses: Ellipses,
    middle: np.ndarray,
    strangeness: np.ndarray,
    noise: np.ndarray,
    prepared: PreparedImage,
    image: np.ndarray,
    saturation: float | None,
    psf_fwhm: np.ndarray,
    meta: Mapping[str, Any],
    window: Window,
) -> np.ndarray:
    n_y, n_x = prepared.signal.shape
    flags = np.zeros(len(ellipses), dtype=np.int32)
    if not len(ellipses):
        return flags
    source, index = ellipses.pixels((n_y, n_x))

    def mark(pixels: np.ndarray, flag: Flag) -> None:
        flags[np.unique(source[pixels.ravel()[index]])] |= flag

    for flag, which in ((Flag.TRUNCATED, True), (Flag.CUT, False)):
        border = np.zeros((n_y, n_x), dtype=bool)
        lines = (border[0], border[-1], border[:, 0], border[:, -1])
        for line, is_border in zip(lines, window.borders, strict=True):
            line[:] |= is_border == which
        mark(border, flag)
    if prepared.mask.any():
        mark(ndimage.binary_dilation(prepared.mask, np.ones((3, 3))), Flag.MASKED_PIXELS)
    if saturation is not None:
        with np.errstate(invalid="ignore"):
            mark(np.asarray(image) >= saturation, Flag.SATURATED)
    limits = meta.get("trained_range", {})
    for name, values in (
        ("psf_fwhm", psf_fwhm),
        ("flux", middle[:, PARAMETERS.index("flux")] / noise),
        ("hlr", middle[:, PARAMETERS.index("hlr")]),
    ):
        low, high = limits.get(name, (0.0, np.inf))
        flags[(values < low / _SLACK) | (values > high * _SLACK)] |= Flag.OUT_OF_RANGE
    flags[strangeness > 1] |= Flag.OUT_OF_RANGE
    return flags
