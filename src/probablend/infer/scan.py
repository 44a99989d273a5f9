"""One pass over an image, tile by tile: pixel classes, their draws, and what is where.

A tile reads a halo as wide as the network's reach and answers for its core, so that the
result does not depend on the tiling. Every source belongs to the tile in whose core it lies.
What tiles have seen at positions is put together before anything is fitted: neighbours count that
lie in other tiles.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from probablend.correlation import WHITE
from probablend.emulate.classes import PixelClass
from probablend.infer.tiles import WHOLE, Tile, Window, cover
from probablend.models.distribution import Drawn, SegmentationNetwork
from probablend.models.field import FieldNetwork
from probablend.models.field_distribution import NEIGHBOUR, FieldDistribution
from probablend.models.fit import fit_sources
from probablend.threads import side_by_side

__all__ = ["DRAWS_PER_SAMPLE", "Found", "Scan", "scan_image"]

# Class maps drawn for each latent: the first is a sample that the user sees, all count for
# `p_blend`, whose scatter is that of 64 draws when 16 samples are asked for.
DRAWS_PER_SAMPLE = 4
_SIDE_BY_SIDE = 4  # tiles at a time
# Pixels, from a position that is asked about: its neighbours; its own peak, which may lie so many
# half-light radii away, too; what is the same place.
_NEIGHBOURS, _OWN, _OWN_RADII, _SAME = 64.0, 3.0, 0.3, 1.5


@dataclass(frozen=True, kw_only=True)
class Found:
    """Positions and what the network says of them.

    Parameters
    ----------
    y, x : ndarray, shape (source,)
        Positions, pixels.
    p_source, p_star : ndarray, shape (source,)
        Probability that there is a source, and that a source is a star.
    context : Tensor, shape (source, channel)
        What the posterior of the source is conditioned on.
    strangeness : ndarray, shape (source,)
        How far what surrounds the source is from the training; beyond 1 is outside.
    pixel : ndarray of int, shape (source, 2)
        Row and column of the pixel that owns the source: orders sources and keys their draws.
    row : ndarray of int, shape (source,)
        Which of the positions asked about; counts up for detections.
    """

    y: np.ndarray
    x: np.ndarray
    p_source: np.ndarray
    p_star: np.ndarray
    context: Tensor
    strangeness: np.ndarray
    pixel: np.ndarray
    row: np.ndarray

    def keep(self, which: np.ndarray) -> "Found":
        """Some of them, in the order of ``which``: indices or a mask."""
        index = np.flatnonzero(which) if which.dtype == bool else which
        return Found(
            y=self.y[index], x=self.x[index], p_source=self.p_source[index],
            p_star=self.p_star[index], context=self.context[torch.from_numpy(index)],
            strangeness=self.strangeness[index], pixel=self.pixel[index], row=self.row[index],
        )  # fmt: skip

    def followed_by(self, other: "Found") -> "Found":
        """These, then others."""
        rest = {
            f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)])
            for f in fields(self) if f.name != "context"
        }  # fmt: skip
        return Found(context=torch.cat([self.context, other.context]), **rest)

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Positions and what is seen there: as of :class:`Found`, before anything is said of it."""

    y: np.ndarray
    x: np.ndarray
    pixel: np.ndarray
    row: np.ndarray
    strangeness: np.ndarray
    seen: Tensor
    detected: bool

    @classmethod
    def joined(cls, parts: Sequence["_Places"]) -> "_Places":
        """Those of all tiles, lowest first; the order does not depend on the tiling."""
        pixel = np.concatenate([part.pixel for part in parts])
        order = np.lexsort((pixel[:, 1], pixel[:, 0]))

        def all_of(name: str) -> np.ndarray:
            return np.concatenate([getattr(part, name) for part in parts])[order]

        return cls(
            y=all_of("y"), x=all_of("x"), pixel=pixel[order], row=all_of("row"),
            strangeness=all_of("strangeness"), detected=parts[0].detected,
            seen=torch.cat([part.seen for part in parts])[torch.from_numpy(order)],
        )  # fmt: skip

    def within(self, rows: slice, columns: slice) -> "_Places":
        """Those whose pixel lies there."""
        return self.keep(_lies_in(self.pixel, rows, columns))

    def keep(self, which: np.ndarray) -> "_Places":
        """Some of them."""
        index = np.flatnonzero(which)
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "detected"}
        return _Places(detected=self.detected, **{key: value[index] for key, value in own.items()})

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a pass over an image gives.

    Parameters
    ----------
    p_galaxy, p_blend : ndarray, shape (y, x), float32
        Marginal probabilities.
    samples : ndarray of uint8, shape (sample, y, x)
        Class maps.
    draws : list of (y, x)
        Blended pixels of every class map that was drawn.
    found : Found or None
        Sources, row by row; None if the network knows pixels only.
    beside : Found or None
        The network's own detections near positions that were asked about, and of none of them.
    """

    p_galaxy: np.ndarray
    p_blend: np.ndarray
    samples: np.ndarray
    draws: list[tuple[np.ndarray, np.ndarray]]
    found: Found | None
    beside: Found | None = None


@torch.inference_mode()
def scan_image(
    network: SegmentationNetwork,
    signal: np.ndarray,
    *,
    n_samples: int,
    seed: int,
    psf_fwhm: float | np.ndarray,
    psf_wings: Sequence[float] | None = None,
    psf_image: np.ndarray | None = None,
    noise_factors: tuple[float, float] = WHITE,
    positions: np.ndarray | None = None,
    tile_size: int,
    device: torch.device,
    window: Window = WHOLE,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Pass over an image.

    Parameters
    ----------
    network : SegmentationNetwork
        In evaluation mode, on ``device``.
    signal : ndarray, shape (y, x), float32
        Image in units of its noise.
    n_samples, seed : int
        Of the class maps.
    psf_fwhm : float or ndarray, shape (y, x)
        Pixels; of the image, or of every pixel.
    psf_wings : sequence of 3 float, optional
        How much light lies in the wings of the PSF, see :func:`~probablend.psf.light_in_wings`.
    psf_image : ndarray, shape (41, 41), optional
        Of the PSF, see :class:`~probablend.psf.PSF`.
    noise_factors : tuple of float
        How correlated the noise is, see :func:`~probablend.correlation.noise_factors`.
    positions : ndarray, shape (source, 2), optional
        (y, x) to ask about, inside the image; the network's own detections if not given.
    tile_size : int
        Side of a tile's core, pixels.
    device : torch.device
        Where the network is.
    window : Window
        Which part of an image ``signal`` is: random numbers belong to pixels of the image.
    progress : callable, optional
        Called with the pixels done and the pixels in all.
    """
    p_galaxy = np.empty(signal.shape, dtype=np.float32)
    p_blend = np.empty(signal.shape, dtype=np.float32)
    samples = np.empty((n_samples, *signal.shape), dtype=np.uint8)
    blends: list[list[np.ndarray]] = [[] for _ in range(n_samples * DRAWS_PER_SAMPLE)]
    # Whether the latent slides over the image is a decision about the image, not the tile.
    sliding = max(signal.shape) > network.config.patch_size
    if not sliding:  # one latent for the whole image: one tile
        tile_size = max(signal.shape)
    tiles = list(
        cover(
            signal.shape, core=tile_size, halo=network.halo, stride=network.config.stride, even=True
        )
    )

    wings = None if psf_wings is None else torch.tensor([psf_wings], device=device)

    def look(tile: Tile) -> tuple[Drawn, list[_Places]]:
        image = torch.from_numpy(signal[tile.outer].copy())[None, None]
        image = image.to(device=device, memory_format=torch.channels_last)
        width = psf_fwhm[tile.outer] if isinstance(psf_fwhm, np.ndarray) else psf_fwhm
        fwhm = torch.tensor(width, dtype=torch.float32, device=device)[None]
        factors = torch.tensor([noise_factors], device=device)
        distribution = network(
            image, sliding=sliding, psf_fwhm=fwhm, noise_factors=factors, psf_wings=wings
        )
        distribution = distribution.at(_in_image(tile.origin_yx, window))
        drawn = distribution.draw(n_samples, DRAWS_PER_SAMPLE, inner=tile.inner, seed=seed)
        if isinstance(distribution, FieldDistribution):
            peaks = distribution.candidates()
            y, x = (v.cpu().double().numpy() for v in (peaks.y, peaks.x))
            pixel = np.stack([peaks.row.cpu().numpy(), peaks.column.cpu().numpy()], axis=1)
            top_left = np.array(tile.origin_yx)
            places = [_seen(distribution, tile, np.stack([y, x], axis=1) + top_left,
                            pixel + top_left, detected=True)]  # fmt: skip
            if positions is not None:
                pixel = np.floor(positions + 0.5).astype(int)
                places.append(_seen(distribution, tile, positions, pixel, detected=False))
            return drawn, places
        return drawn, []

    done = 0
    found: list[list[_Places]] = []
    with closing(side_by_side(look, tiles, device=device, most=_SIDE_BY_SIDE)) as seen:
        for tile, (drawn, places) in zip(tiles, seen, strict=True):
            for known, (y, x) in zip(blends, drawn.blends, strict=True):
                here_yx = np.stack([y + tile.core[0].start, x + tile.core[1].start])
                known.append(here_yx.astype(np.int32))
            samples[(slice(None), *tile.core)] = drawn.samples
            p_galaxy[tile.core] = 1 - drawn.mean[PixelClass.SKY]
            p_blend[tile.core] = drawn.mean[PixelClass.BLEND]
            if places:
                found.append(places)
            done += p_galaxy[tile.core].size
            if progress:
                progress(done, signal.size)
    # (y, x) of each draw: one array of pairs per tile → two arrays.
    draws = []
    for parts in blends:
        draws.append(tuple(np.concatenate(parts, axis=1)))
        parts.clear()
    said = beside = None
    if found:
        assert isinstance(network, FieldNetwork)
        peaks, *given = (_Places.joined(parts) for parts in zip(*found, strict=True))
        asked = given[0] if given else peaks
        if window.wanted is not None:
            asked = asked.within(*window.wanted)
        say = partial(_said, network, signal, peaks, wings=wings, psf_image=psf_image)
        said = say(asked)
        if given and len(asked):
            beside = say(peaks.keep(_beside(network, peaks, asked)))
    return Scan(
        p_galaxy=np.clip(p_galaxy, 0, 1),
        p_blend=np.clip(p_blend, 0, 1),
        samples=samples,
        draws=draws,
        found=said,
        beside=beside,
    )


def _lies_in(pixel: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """Which pixels, (pixel, 2), lie in these rows and columns."""
    inside = (pixel[:, 0] >= rows.start) & (pixel[:, 0] < rows.stop)
    return inside & (pixel[:, 1] >= columns.start) & (pixel[:, 1] < columns.stop)


def _in_image(pixel: tuple[int, int], window: Window) -> tuple[int, int]:
    return pixel[0] + window.origin_yx[0], pixel[1] + window.origin_yx[1]


def _seen(
    said: FieldDistribution, tile: Tile, at: np.ndarray, pixel: np.ndarray, *, detected: bool
) -> _Places:
    """What is seen at those positions whose pixel lies in the core of a tile; (y, x) of each."""
    index = np.flatnonzero(_lies_in(pixel, *tile.core))
    device = said.heat_logits.device
    in_tile = torch.from_numpy((at[index] - np.array(tile.origin_yx)).astype(np.float32))
    y, x = in_tile.to(device).unbind(1)
    scene = torch.zeros(len(index), dtype=torch.long, device=device)
    return _Places(
        y=at[index, 0], x=at[index, 1], pixel=pixel[index], row=index, detected=detected,
        strangeness=said.strangeness(scene, y, x).cpu().double().numpy(),
        seen=said.seen(scene, y, x),
    )  # fmt: skip


def _said(
    network: FieldNetwork,
    signal: np.ndarray,
    peaks: _Places,
    asked: _Places,
    *,
    wings: Tensor | None,
    psf_image: np.ndarray | None,
) -> Found:
    """What is said of positions, of which ``peaks`` may be the neighbours, or the same."""
    fits = None
    if network.config.fits:
        image = torch.from_numpy(signal)[None].to(peaks.seen)
        psf = None if psf_image is None else torch.from_numpy(psf_image)[None].to(peaks.seen)
        others, likely = network.first_look(*_at(peaks), peaks.seen, detected=True)
        sources = others
        if asked is not peaks:
            sources, _ = network.first_look(*_at(asked), asked.seen, detected=asked.detected)
        near = None if wings is None else wings[:, 0]
        fits = fit_sources(image, sources, others.keep(likely > NEIGHBOUR), psf, near)
    context = network.context(asked.seen, detected=asked.detected, fits=fits)
    # The kind of a source is learnt at positions from elsewhere.
    given = network.context(asked.seen, detected=False, fits=fits)
    exists = network.kinds(context)[:, 0].sigmoid().cpu().double().numpy()
    star = network.kinds(given)[:, 1].sigmoid().cpu().double().numpy()
    return Found(y=asked.y, x=asked.x, p_source=exists, p_star=star, context=context,
                 strangeness=asked.strangeness, pixel=asked.pixel, row=asked.row)  # fmt: skip


def _beside(network: FieldNetwork, peaks: _Places, asked: _Places) -> np.ndarray:
    """Which peaks are near positions that are asked about, and no object's that lies there."""
    guess, _ = network.first_look(*_at(asked), asked.seen, detected=False)
    reach = np.maximum(_OWN, _OWN_RADII * guess.ln_hlr.exp().cpu().numpy())
    theirs, ours = (np.stack([places.y, places.x], axis=1) for places in (asked, peaks))
    if not len(ours):
        return np.zeros(0, dtype=bool)
    distance, _ = KDTree(theirs).query(ours)
    beside = (distance > _SAME) & (distance < _NEIGHBOURS)
    to_peak, nearest = KDTree(ours).query(theirs)
    beside[nearest[to_peak < reach]] = False
    return beside


def _at(places: _Places) -> tuple[Tensor, Tensor, Tensor]:
    """Scene, y and x, as the network takes them."""
    device = places.seen.device
    # In single precision, places far from an image's corner would not be those near to it.
    kind = torch.float32 if device.type == "mps" else torch.float64
    y, x = (torch.from_numpy(v).to(device, kind) for v in (places.y, places.x))
    return torch.zeros(len(y), dtype=torch.long, device=y.device), y, x
