"""What the field model says of images: class maps, candidates, posteriors of sources."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from probablend.models.distribution import (
    LATENT_STREAM,
    NEGLIGIBLE,
    PIXEL_STREAM,
    Drawn,
    SegmentationDistribution,
    check_number,
)
from probablend.models.familiar import spread_of
from probablend.models.fields import gaussian_fields
from probablend.models.fit import Fits, fit_sources
from probablend.models.light import STEEP, gather, light, light_by_sector, symmetric
from probablend.models.source import SourcePosterior
from probablend.models.window import Guess

if TYPE_CHECKING:
    from probablend.models.field import FieldNetwork

__all__ = ["NEIGHBOUR", "Candidates", "FieldDistribution", "highest"]

NEIGHBOUR = 0.3  # peaks that are sources with this probability are modelled as neighbours
_MOST_NEIGHBOURS = 128  # in a scene of a batch
_HEAT_LEVEL = 0.05  # peaks below are no candidates


@dataclass(frozen=True)
class Candidates:
    """Peaks of the heatmap: image of the batch, position, and pixel of the peak."""

    scene: Tensor
    y: Tensor
    x: Tensor
    row: Tensor
    column: Tensor

    def __len__(self) -> int:
        return len(self.scene)


@dataclass(frozen=True, kw_only=True)
class FieldDistribution(SegmentationDistribution):
    """What the field model says of a batch of images.

    Parameters
    ----------
    network : FieldNetwork
        Owns the heads.
    features : list of Tensor
        Decoder features, finest first.
    projected : Tensor, shape (batch, y', x', width)
        Finest features, ready for the pointwise head.
    heat_logits : Tensor, shape (batch, y, x)
        Of the centres.
    image : Tensor, shape (batch, y, x)
        The first band, in units of the noise.
    log_fwhm : Tensor, shape (batch,) or (batch, y, x)
        Of the PSF, pixels.
    log_noise : Tensor, shape (batch, 0 to 2)
        Logarithms of the noise factors that the network knows.
    wings : Tensor, shape (batch, 0 or 4)
        Whether the wings of the PSF are known, and how much light lies in them.
    near_wings : Tensor, shape (batch,), optional
        The first number of the wings as it was told.
    psf_image : Tensor, shape (batch, 41, 41), optional
        Of the PSF, as it was told.
    fitting : bool
        Whether profiles are fitted, if the network has a use for it.
    """

    network: "FieldNetwork"
    features: list[Tensor]
    projected: Tensor
    heat_logits: Tensor
    image: Tensor
    log_fwhm: Tensor
    log_noise: Tensor
    wings: Tensor
    near_wings: Tensor | None = None
    psf_image: Tensor | None = None
    fitting: bool = True

    def _to_map(self, cells: Tensor) -> Tensor:
        """(batch, y', x', class · stem²) → (batch, class, y, x), cut to the image."""
        stem = self.network.config.stem
        shuffled = F.pixel_shuffle(cells.movedim(-1, 1), stem)
        return shuffled[..., : self.shape_yx[0], : self.shape_yx[1]]

    @cached_property
    def _plain(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits without fields, and the cells where these matter."""
        cells = self.network.head(self.projected, None)
        return cells, self.network.uncertain(cells).nonzero(as_tuple=True)

    def _drawn_cells(self, sample: int, seed: int) -> Tensor:
        """Logits of a draw where the fields matter, (cell, class · stem²)."""
        config, head = self.network.config, self.network.head
        cells, (b, y, x) = self._plain
        n, n_y, n_x = cells.shape[:3]
        origin = (self.origin_yx[0] // config.stem, self.origin_yx[1] // config.stem)
        fields = [
            gaussian_fields(
                [(seed, sample, LATENT_STREAM, level, k, image)
                 for image in range(n) for k in range(config.latent_channels)],
                (n_y, n_x), origin, spacing,
            ).unflatten(0, (n, -1))
            for level, spacing in enumerate(config.latent_spacings)
        ]  # fmt: skip
        latent = torch.cat(fields, dim=1).to(self.projected)[b, :, y, x]
        return head(self.projected[b, y, x], latent)

    def sample_logits(self, sample: int, *, seed: int) -> Tensor:
        """See :class:`SegmentationDistribution`; drawn only where it matters."""
        cells, (b, y, x) = self._plain
        cells = cells.clone()
        if len(b):
            cells[b, y, x] = self._drawn_cells(sample, seed)
        return self._to_map(cells)

    def draw(self, n: int, n_maps: int, *, inner: tuple[slice, slice], seed: int = 0) -> Drawn:
        """See :class:`SegmentationDistribution`: equal to single precision, and faster.

        Of the part that is wanted, what is certain is computed once; only the rest is drawn.
        """
        check_number(n)
        config = self.network.config
        part = self._part(inner)
        cells, (_, y, x) = part._plain
        n_y, n_x = part.shape_yx
        certain = part._to_map(cells)[0].softmax(dim=0)
        step = torch.arange(config.stem, device=cells.device)
        row = ((y * config.stem)[:, None, None] + step[:, None]).expand(-1, -1, config.stem)
        column = ((x * config.stem)[:, None, None] + step).expand(-1, config.stem, -1)
        row, column = row.flatten(1).T, column.flatten(1).T  # (stem², cell)
        inside = (row < n_y) & (column < n_x)  # what was padded has no pixels
        at = (row * n_x + column)[inside]
        whole = bool(inside.all())
        # Classes are ordered: a pixel is in class k or beyond where its normal number exceeds
        # the quantile of all classes below k.
        levels = torch.special.ndtri(certain.cumsum(dim=0)[:-1].clamp(max=1))
        levels.view(len(levels), -1)[:, at] = torch.inf
        # Pixels that are hardly blended never are, as in more_blends.
        rare = certain[-1].flatten().clone()
        rare[at] = 0
        (rare_at,) = (rare > NEGLIGIBLE).nonzero(as_tuple=True)
        rare_level = -torch.special.ndtri(rare[rare_at])
        total = torch.zeros(config.n_classes, len(at), device=cells.device)
        samples, blends = [], []
        for sample in range(n):
            keys = [(seed, sample, PIXEL_STREAM, 0, *more) for more in
                    ((), *((k,) for k in range(1, n_maps)))]  # fmt: skip
            normal = gaussian_fields(keys, part.shape_yx, part.origin_yx, config.correlation)
            normal = normal.to(levels)
            classes = (normal[0] > levels).sum(dim=0, dtype=torch.uint8)
            levels_here, at_here = rare_level, rare_at
            if len(at):
                drawn = part._drawn_cells(sample, seed).T.unflatten(0, (config.n_classes, -1))
                drawn = drawn.contiguous().softmax(dim=0)
                drawn = drawn.flatten(1) if whole else drawn[:, inside]
                total += drawn
                uniform = torch.special.ndtr(normal[0].flatten()[at])
                below = drawn.cumsum(dim=0)[:-1]
                classes.view(-1)[at] = (uniform > below).sum(dim=0, dtype=torch.uint8)
                blended = drawn[-1] > NEGLIGIBLE
                at_here = torch.cat([rare_at, at[blended]])
                levels_here = torch.cat([rare_level, -torch.special.ndtri(drawn[-1][blended])])
            samples.append(classes.cpu().numpy())
            y_blend, x_blend = np.nonzero(samples[-1] == config.n_classes - 1)
            blends.append((y_blend, x_blend))
            for field in normal[1:]:
                hit = at_here[field.flatten()[at_here] > levels_here].cpu().numpy()
                blends.append((hit // n_x, hit % n_x))
        certain.view(config.n_classes, -1)[:, at] = total / n
        return Drawn(mean=certain.cpu().numpy(), samples=np.stack(samples), blends=blends)

    def _part(self, inner: tuple[slice, slice]) -> "FieldDistribution":
        """The same for a part of one image, as far as class maps go."""
        stem = self.network.config.stem
        rows, columns = inner
        assert rows.start % stem == columns.start % stem == 0
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        cells = self.projected[
            :1, rows.start // stem : -(-rows.stop // stem),
            columns.start // stem : -(-columns.stop // stem),
        ]  # fmt: skip
        origin = (self.origin_yx[0] + rows.start, self.origin_yx[1] + columns.start)
        return replace(self, projected=cells, shape_yx=shape, origin_yx=origin)

    def candidates(self, *, limit: int | None = None) -> Candidates:
        """Peaks of the heatmap, at most ``limit`` per image."""
        heat = self.heat_logits.sigmoid()
        peak = highest(heat) & (heat > _HEAT_LEVEL)
        if limit is not None:
            flat = torch.where(peak, heat, 0.0).flatten(1)
            least = flat.topk(min(limit, flat.shape[1]), dim=1).values[:, -1]
            peak &= heat >= least[:, None, None]
        b, y, x = peak.nonzero(as_tuple=True)
        # Centre of the peak: parabola through the logarithms of its neighbours.
        padded = F.pad(self.heat_logits, (1, 1, 1, 1), value=-12.0)
        middle = F.logsigmoid(padded[b, y + 1, x + 1])

        def offset(low: Tensor, high: Tensor) -> Tensor:
            low, high = F.logsigmoid(low), F.logsigmoid(high)
            curvature = (2 * middle - low - high).clamp(min=1e-3)
            return (0.5 * (high - low) / curvature).clamp(-0.5, 0.5)

        dy = offset(padded[b, y, x + 1], padded[b, y + 2, x + 1])
        dx = offset(padded[b, y + 1, x], padded[b, y + 1, x + 2])
        return Candidates(b, y + dy, x + dx, y, x)

    def log_fwhm_at(self, scene: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Logarithm of the width of the PSF at positions, pixels, (source,)."""
        if self.log_fwhm.ndim == 1:
            return self.log_fwhm[scene]
        n_y, n_x = self.log_fwhm.shape[1:]
        row, column = (v.round().long().clamp(0, n - 1) for v, n in ((y, n_y), (x, n_x)))
        return self.log_fwhm[scene, row, column]

    def seen(self, scene: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """What is seen at positions, (source, channel): features, sums of light, what is told."""
        config = self.network.config
        stem = config.stem
        # The 3 × 3 cells around on the finest level; one look-up, whose gradient is one sum.
        steps = torch.tensor([-stem, 0, stem], device=y.device)
        dy, dx = (d.reshape(9, 1) for d in torch.meshgrid(steps, steps, indexing="ij"))
        near = gather(self.features[0], scene.expand(9, -1), y + dy, x + dx, stem)
        parts = [near.movedim(0, 1).flatten(1)]
        parts += [
            gather(level, scene, y, x, stem * 2 ** (k + 1))
            for k, level in enumerate(self.features[1:])
        ]
        told = [self.log_noise[scene]]
        if config.n_sectors:
            by_sector = light_by_sector(self.image, scene, y, x, config.apertures, config.n_sectors)
            sums = torch.asinh(by_sector.sum(dim=2))
            balanced = torch.asinh(symmetric(by_sector, config.apertures))
            told += [balanced, STEEP * (sums - balanced)]
        else:
            sums = torch.asinh(light(self.image, scene, y, x, config.apertures))
        told.append(self.wings[scene])
        log_fwhm = self.log_fwhm_at(scene, y, x)[:, None]
        return torch.cat([*parts, sums, log_fwhm, *told], dim=1)

    def context(self, scene: Tensor, y: Tensor, x: Tensor, *, detected: bool) -> Tensor:
        """What posteriors at positions are conditioned on, (source, channel).

        See :meth:`~probablend.models.field.FieldNetwork.context`.
        """
        seen, fits = self.look(scene, y, x, detected=detected)
        return self.network.context(seen, detected=detected, fits=fits)

    def look(
        self, scene: Tensor, y: Tensor, x: Tensor, *, detected: bool
    ) -> tuple[Tensor, Fits | None]:
        """What is seen at positions, and what fits say there, if any are made."""
        seen = self.seen(scene, y, x)
        if not (self.network.config.fits and self.fitting):
            return seen, None
        sources, _ = self.network.first_look(scene, y, x, seen, detected=detected)
        return seen, fit_sources(self.image, sources, self._others, self.psf_image, self.near_wings)

    @cached_property
    def _others(self) -> Guess:
        """What there is in the images, as neighbours of what is fitted."""
        with torch.no_grad():
            peaks = self.candidates(limit=_MOST_NEIGHBOURS)
            seen = self.seen(peaks.scene, peaks.y, peaks.x)
            guess, exists = self.network.first_look(
                peaks.scene, peaks.y, peaks.x, seen, detected=True
            )
            return guess.keep(exists > NEIGHBOUR)

    def surroundings(self, scene: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """The coarsest features at positions, (source, channel): what kind of sky this is."""
        levels = len(self.features)
        cell = self.network.config.stem * 2 ** (levels - 1)
        return gather(self.features[-1], scene, y, x, cell)

    def strangeness(self, scene: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """How far positions lie from the training, (source,); beyond 1 is outside."""
        return self.network.familiar(self.surroundings(scene, y, x))

    def sources(
        self, scene: Tensor, y: Tensor, x: Tensor, unit: Tensor, *, detected: bool
    ) -> SourcePosterior:
        """Posterior of what is at some positions, fluxes in units of which noise is ``unit``."""
        context = self.context(scene, y, x, detected=detected)
        spread = spread_of(self.strangeness(scene, y, x))
        return SourcePosterior(
            flow=self.network.flow, context=context, y=y, x=x, unit=unit, spread=spread
        )


def highest(heat: Tensor) -> Tensor:
    """Which pixels exceed all around them; of equal neighbours, the first: (batch, y, x)."""
    padded = F.pad(heat, (1, 1, 1, 1))
    rows = F.max_pool2d(padded[:, None], (1, 3), 1)[:, 0]  # highest of three beside each other
    left, right = padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]
    return (heat > rows[:, :-2]) & (heat > left) & (heat >= right) & (heat >= rows[:, 2:])
