r"""The field model: pixels, centres and the posterior of every source from one pass.

A U-Net on an unshuffled grid that knows the PSF. Three things are read off its features:

- *classes*: unit Gaussian fields on coarse grids join the finest features and a pointwise
  non-linear head turns both into class logits. As in a stochastic segmentation network
  (arXiv:2006.06015) there is no posterior network: the likelihood is averaged over draws of
  the fields, here pixel by pixel and in small windows, because distant galaxies have nothing
  to do with each other. n samples cost one pass and n heads, the heads only where the answer
  is uncertain;
- *centres*: a heatmap, whose peaks are candidates;
- *sources*: from features gathered at a position, on all scales, the probability that there
  is a source and that it is a star, and a normalizing flow over its parameters
  (:mod:`probablend.models.source`).

Nothing looks further than the receptive field: tiles agree.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probablend.emulate.compose import SceneBatch, Sources
from probablend.emulate.damage import IGNORED
from probablend.models.blocks import Decoder, Encoder
from probablend.models.distribution import (
    LATENT_STREAM,
    NEGLIGIBLE,
    PIXEL_STREAM,
    Drawn,
    SegmentationDistribution,
    SegmentationNetwork,
    check_number,
)
from probablend.models.familiar import Familiarity, spread_of
from probablend.models.fields import gaussian_fields, spline_matrix
from probablend.models.source import SourceFlow, SourcePosterior, truth
from probablend.models.unet import UNetConfig, pad_to_stride, receptive_radius

__all__ = ["PRECISIONS", "Candidates", "FieldDistribution", "FieldNetwork", "FieldNetworkConfig"]

PRECISIONS = ("single", "bfloat16")

MIN_TRUE_PIXELS = 5  # sources with smaller footprints are not looked for
MATCH_RADIUS = 3.0  # pixels
_STEEP = 4.0  # how differences of logarithms of sums of light are stretched
_AT_ONCE = 2048  # sources whose surroundings are held at once
_PATCHES_AT_ONCE = 256  # the same, where all pixels of the surroundings are looked at
_ON_GPU = 32  # times as many
_SHARP = 0.05  # errors of ln flux below this count by their square
_HEAT_WIDTH = 1.0  # σ of the target around a centre, pixels
_HEAT_LEVEL = 0.05  # peaks below are no candidates
_WORST = 200.0  # nats: one source that nothing explains must not spoil a step
_MOST_CORRELATED = (2.5, 4.0)  # noise factors; hardly a training scene has more
_CERTAIN = 0.995  # cells this sure to be sky are not drawn
# Most of the nats of the classes are pixels on the rim of a footprint, of which nothing can be
# known; they would outvote the few that say whether there is a galaxy.
_WEIGHT = {"cross_entropy": 0.4, "centres": 3.0, "photometry": 0.5}
# A crowded scene has thirty times the sources of one with a lone galaxy, and would outvote it.
_USUAL = 8  # sources in a scene; where there are n, each counts ∛(this / n)


@dataclass(frozen=True, kw_only=True)
class FieldNetworkConfig(UNetConfig):
    """Settings of a :class:`FieldNetwork`, beside those of its U-Net.

    Parameters
    ----------
    latent_spacings : tuple of int
        Lattice spacing of each scale of the Gaussian fields, cells of the unshuffled grid.
    latent_channels : int
        Fields per scale.
    head_width : int
        Channels of the pointwise head.
    n_draws : int
        Draws of the fields in the training likelihood.
    window : int
        Side of the windows in which pixels are judged together, cells.
    joint_weight : float
        Weight of the likelihood of whole windows beside that of each pixel. Averaged over a
        few draws it rewards draws that are too wide, since one good among them is enough;
        that of each pixel keeps probabilities right.
    context : int
        Length of what is gathered at a position.
    apertures : tuple of float
        Widths (σ, pixels) of the Gaussian weights with which light is summed at a position.
    gather_hidden : tuple of int
        Widths of the layers that gather.
    photometry : bool
        Whether a network of its own finds the flux from these sums, and the flow what is left.
    knows_noise : bool
        Whether it is told how correlated the noise is on the scale of a source.
    knows_sky : bool
        Whether it is told, beside that, how rough the sky is.
    n_sectors : int
        Sectors around a position whose light is compared with that on the other side; 0 for no
        such comparison.
    flow_hidden : tuple of int
        Widths of the layers of the flow.
    """

    latent_spacings: tuple[int, ...] = (4, 12)
    latent_channels: int = 4
    head_width: int = 24
    n_draws: int = 8
    window: int = 4
    joint_weight: float = 0.3
    context: int = 128
    apertures: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    gather_hidden: tuple[int, ...] = (192,)
    photometry: bool = False
    knows_noise: bool = False
    knows_sky: bool = False
    n_sectors: int = 0
    flow_hidden: tuple[int, ...] = (128, 128)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("latent_channels", "head_width", "n_draws", "window", "context"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1; got {getattr(self, key)}")
        if not self.apertures or min(self.apertures) <= 0:
            raise ValueError(f"apertures must be positive; got {self.apertures}")
        if self.knows_sky and not self.knows_noise:
            raise ValueError("knows_sky goes beyond knows_noise: set both")
        if self.n_sectors < 0 or self.n_sectors % 2:
            raise ValueError(f"n_sectors must be even, 0 or more; got {self.n_sectors}")
        if not self.latent_spacings or min(self.latent_spacings) < 2:
            raise ValueError(f"latent_spacings must be at least 2; got {self.latent_spacings}")


def check_precision(precision: str) -> None:
    """Refuse a precision that there is not."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")


class PointwiseHead(nn.Module):
    """Features ⊕ fields → class logits of the pixels of a cell; channels come last."""

    def __init__(self, config: FieldNetworkConfig) -> None:
        super().__init__()
        width = config.head_width
        n_latent = len(config.latent_spacings) * config.latent_channels
        self.from_features = nn.Linear(config.channels[0], width)
        self.from_latent = nn.Linear(n_latent, width, bias=False)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, config.n_classes * config.stem**2)
        nn.init.constant_(self.outer.bias[: config.stem**2], 3.0)  # most of the sky is empty

    def forward(self, projected: Tensor, latent: Tensor | None) -> Tensor:
        """(..., width) and (..., latent) → (..., class · stem²)."""
        moved = projected if latent is None else projected + self.from_latent(latent)
        return self.outer(F.silu(self.inner(F.silu(moved))))


def _told(config: FieldNetworkConfig) -> list[int]:
    """Numbers per source that a first version of this network was not told; they come last."""
    symmetric = len(config.apertures) * (config.n_sectors > 0)
    return [config.knows_noise + config.knows_sky, symmetric, symmetric]


class Photometry(nn.Module):
    """ln flux from sums of light within Gaussian weights: a mean of them, and what they miss.

    Sums are linear and precise, features of a convolution are not. What a profile holds beyond
    its weights shows in their ratios; which of them a neighbour spoils, in the features and in
    how much of the light has a counterpart on the other side of the centre.
    """

    _WIDTH = 128

    def __init__(self, config: FieldNetworkConfig) -> None:
        super().__init__()
        n = len(config.apertures)
        self.inner = nn.Sequential(
            nn.Linear(2 * n + config.context + sum(_told(config)), self._WIDTH), nn.SiLU(),
            nn.Linear(self._WIDTH, self._WIDTH), nn.SiLU(),
        )  # fmt: skip
        self.outer = nn.Linear(self._WIDTH, n + 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, sums: Tensor, log_fwhm: Tensor, context: Tensor, told: Tensor) -> Tensor:
        """(source,) from (source, aperture), arcsinh, and what else is known of each."""
        steps = _STEEP * sums.diff(dim=1)
        seen = torch.cat([(sums - 5) / 2.5, steps, log_fwhm, context, told], dim=1)
        said = self.outer(self.inner(seen))
        return (said[:, :-1].softmax(dim=1) * sums).sum(dim=1) + said[:, -1]


@dataclass(frozen=True)
class Candidates:
    """Peaks of the heatmap: image of the batch, position, pixel of the peak, and height."""

    scene: Tensor
    y: Tensor
    x: Tensor
    row: Tensor
    column: Tensor
    heat: Tensor

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
    """

    network: "FieldNetwork"
    features: list[Tensor]
    projected: Tensor
    heat_logits: Tensor
    image: Tensor
    log_fwhm: Tensor
    log_noise: Tensor

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

    def draws(self, n: int, *, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See :class:`SegmentationDistribution`; what is certain is computed once."""
        check_number(n)
        cells, (b, y, x) = self._plain
        config = self.network.config
        certain = self._to_map(cells).softmax(dim=1)
        # Pixels of the cells that are drawn; what was padded has none.
        n_y, n_x = self.shape_yx
        step = torch.arange(config.stem, device=cells.device)
        row = (y * config.stem)[:, None, None] + step[:, None]
        column = (x * config.stem)[:, None, None] + step
        inside = ((row < n_y) & (column < n_x)).flatten(1).T  # (stem², cell)
        flat = ((b * n_y * config.n_classes)[:, None, None] + row) * n_x + column
        flat = flat.flatten(1).T[inside]
        for sample in range(n):
            probabilities = certain.clone()
            if len(b):
                drawn = self._drawn_cells(sample, seed).T.unflatten(0, (config.n_classes, -1))
                drawn = drawn.contiguous().softmax(dim=0)
                for k in range(config.n_classes):
                    probabilities.view(-1)[flat + k * n_y * n_x] = drawn[k][inside]
            yield probabilities, self._draw_classes(probabilities, sample, seed)

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
        highest = F.max_pool2d(heat[:, None], 3, 1, 1)[:, 0]
        peak = (heat == highest) & (heat > _HEAT_LEVEL)
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
        return Candidates(b, y + dy, x + dx, y, x, heat[b, y, x])

    def log_fwhm_at(self, scene: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Logarithm of the width of the PSF at positions, pixels, (source,)."""
        if self.log_fwhm.ndim == 1:
            return self.log_fwhm[scene]
        n_y, n_x = self.log_fwhm.shape[1:]
        row, column = (v.round().long().clamp(0, n - 1) for v, n in ((y, n_y), (x, n_x)))
        return self.log_fwhm[scene, row, column]

    def context(self, scene: Tensor, y: Tensor, x: Tensor, *, detected: bool) -> Tensor:
        """What is seen at positions, (source, channel); ln flux last if photometry finds it.

        ``detected`` says where a position comes from: a peak of this very image leans towards
        the noise, a position from elsewhere does not.
        """
        config = self.network.config
        stem = config.stem
        # The 3 × 3 cells around on the finest level; one look-up, whose gradient is one sum.
        steps = torch.tensor([-stem, 0, stem], device=y.device)
        dy, dx = (d.reshape(9, 1) for d in torch.meshgrid(steps, steps, indexing="ij"))
        near = _gather(self.features[0], scene.expand(9, -1), y + dy, x + dx, stem)
        parts = [near.movedim(0, 1).flatten(1)]
        parts += [
            _gather(level, scene, y, x, stem * 2 ** (k + 1))
            for k, level in enumerate(self.features[1:])
        ]
        told = [self.log_noise[scene]]
        if config.n_sectors:
            by_sector = _light_by_sector(
                self.image, scene, y, x, config.apertures, config.n_sectors
            )
            sums = torch.asinh(by_sector.sum(dim=2))
            symmetric = torch.asinh(_symmetric(by_sector, config.apertures))
            told += [symmetric, _STEEP * (sums - symmetric)]
        else:
            sums = torch.asinh(_light(self.image, scene, y, x, config.apertures))
        log_fwhm = self.log_fwhm_at(scene, y, x)[:, None]
        origin = torch.full_like(y, float(detected))
        parts += [sums, log_fwhm, origin[:, None], *told]
        context = F.silu(self.network.gather(torch.cat(parts, dim=1)))
        if self.network.photometry is None:
            return context
        ln_flux = self.network.photometry(sums, log_fwhm, context, torch.cat(told, dim=1))
        return torch.cat([context, ln_flux[:, None]], dim=1)

    def surroundings(self, scene: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """The coarsest features at positions, (source, channel): what kind of sky this is."""
        levels = len(self.features)
        cell = self.network.config.stem * 2 ** (levels - 1)
        return _gather(self.features[-1], scene, y, x, cell)

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


def _gather(features: Tensor, scene: Tensor, y: Tensor, x: Tensor, cell: int) -> Tensor:
    """Bilinear value of (batch, channel, y', x') at positions in pixels, (..., channel)."""
    n_y, n_x = features.shape[-2:]
    rows = features.movedim(1, -1).reshape(-1, features.shape[1])
    v = ((y + 0.5) / cell - 0.5).clamp(0, n_y - 1)
    u = ((x + 0.5) / cell - 0.5).clamp(0, n_x - 1)
    v0, u0 = v.floor().long(), u.floor().long()
    v1, u1 = (v0 + 1).clamp(max=n_y - 1), (u0 + 1).clamp(max=n_x - 1)
    fv, fu = v - v0, u - u0
    corners = torch.stack([v0 * n_x + u0, v0 * n_x + u1, v1 * n_x + u0, v1 * n_x + u1])
    weights = torch.stack([(1 - fv) * (1 - fu), (1 - fv) * fu, fv * (1 - fu), fv * fu])
    return (rows[scene * (n_y * n_x) + corners] * weights[..., None]).sum(dim=0)


def _light(image: Tensor, scene: Tensor, y: Tensor, x: Tensor, widths: tuple[float, ...]) -> Tensor:
    """Gaussian-weighted sums of light of (batch, y', x') at positions, (source, width).

    Scaled to the flux of a source that has the shape of the weight. Between pixels the sums, not
    the weights, are interpolated.
    """
    reach = math.ceil(3 * max(widths))
    t = torch.arange(-reach, reach + 2, device=image.device, dtype=image.dtype)
    weights = []  # about the pixel below a position, and about the next one
    for shift in (0, 1):
        rows = []
        for width in widths:
            weight = torch.exp(-0.5 * ((t - shift) / width) ** 2)
            weight = weight * ((t - shift).abs() <= math.ceil(3 * width))
            # Unit noise, then the flux of a matched source.
            scale = math.sqrt(2 * math.sqrt(math.pi) * width)
            rows.append(weight / (weight**2).sum().sqrt() * scale)
        weights.append(torch.stack(rows))
    n_y, n_x = image.shape[-2:]
    padded = F.pad(image, (reach, reach + 1, reach, reach + 1))
    span = torch.arange(len(t), device=image.device)
    sums = []
    for part in torch.arange(len(y), device=y.device).split(_AT_ONCE):
        along = []
        for place, n in ((y[part], n_y), (x[part], n_x)):
            place = place.clamp(0, n - 1)
            first = place.floor()
            rest = (place - first)[:, None, None]
            along.append((first.long(), (1 - rest) * weights[0] + rest * weights[1]))
        (row, down), (column, across) = along
        patch = padded[
            scene[part][:, None, None], (row[:, None] + span)[:, :, None],
            (column[:, None] + span)[:, None],
        ]  # fmt: skip
        sums.append(((down @ patch) * across).sum(dim=-1))
    return torch.cat(sums) if sums else image.new_zeros(0, len(widths))


def _light_by_sector(
    image: Tensor, scene: Tensor, y: Tensor, x: Tensor, widths: tuple[float, ...], n_sectors: int
) -> Tensor:
    """What :func:`_light` sums, by sectors around the position, (source, width, sector)."""
    reach = math.ceil(3 * max(widths))
    weights = _sector_weights(widths, n_sectors, image.device).to(image.dtype)
    n_y, n_x = image.shape[-2:]
    padded = F.pad(image, (reach, reach + 1, reach, reach + 1))
    span = torch.arange(2 * reach + 2, device=image.device)
    sums = [image.new_zeros(0, len(widths) * n_sectors)]
    at_once = _PATCHES_AT_ONCE * (1 if image.device.type == "cpu" else _ON_GPU)
    for part in torch.arange(len(y), device=y.device).split(at_once):
        row, column = y[part].clamp(0, n_y - 1), x[part].clamp(0, n_x - 1)
        first_row, first_column = row.floor(), column.floor()
        patch = padded[
            scene[part][:, None, None], (first_row.long()[:, None] + span)[:, :, None],
            (first_column.long()[:, None] + span)[:, None],
        ]  # fmt: skip
        patch = torch.lerp(patch[:, :-1], patch[:, 1:], (row - first_row)[:, None, None])
        patch = torch.lerp(patch[..., :-1], patch[..., 1:], (column - first_column)[:, None, None])
        sums.append(patch.flatten(1) @ weights)
    return torch.cat(sums).unflatten(1, (len(widths), n_sectors))


@cache
def _sector_weights(widths: tuple[float, ...], n_sectors: int, device: torch.device) -> Tensor:
    """Weights of pixels around a position, (pixel, width · sector); their sum is _light's."""
    reach = math.ceil(3 * max(widths))
    t = np.arange(-reach, reach + 1)
    dy, dx = np.meshgrid(t, t, indexing="ij")
    # A pixel and the opposite one lie in opposite sectors, on borders too.
    upper = (dy > 0) | ((dy == 0) & (dx > 0))
    angle = np.arctan2(np.where(upper, dy, -dy), np.where(upper, dx, -dx))
    sector = (angle / (2 * np.pi) * n_sectors).astype(int) % (n_sectors // 2)
    sector = np.where(upper, sector, sector + n_sectors // 2)
    member = sector.ravel()[:, None] == np.arange(n_sectors)
    member = np.where(((dy == 0) & (dx == 0)).ravel()[:, None], 1 / n_sectors, member)
    columns = []
    for width in widths:
        line = np.exp(-0.5 * (t / width) ** 2) * (np.abs(t) <= math.ceil(3 * width))
        line = line / np.sqrt((line**2).sum()) * math.sqrt(2 * math.sqrt(math.pi) * width)
        columns.append(np.outer(line, line).reshape(-1, 1) * member)
    with torch.inference_mode(False):  # it outlives whoever asks first
        return torch.from_numpy(np.concatenate(columns, axis=1).astype(np.float32)).to(device)


def _symmetric(by_sector: Tensor, widths: tuple[float, ...]) -> Tensor:
    """Light that has a counterpart on the other side of the centre, (source, width).

    Of each sector and the opposite one the lesser: the principle by which SDSS deblends (Lupton et
    al. 2001, ASP Conf. 238, 269). The lesser of two noisy numbers is too low; as much is added.
    """
    n = by_sector.shape[-1]
    pairs = by_sector.unflatten(-1, (2, n // 2))
    noise = by_sector.new_tensor(widths) * 2 * math.sqrt(math.pi) / math.sqrt(n)
    return 2 * pairs.amin(dim=-2).sum(dim=-1) + n / math.sqrt(math.pi) * noise


class FieldNetwork(SegmentationNetwork):
    """The field model.

    Parameters
    ----------
    config : FieldNetworkConfig
        Its settings.
    """

    config: FieldNetworkConfig
    narrow = False  # whether convolutions work with sixteen bits

    def __init__(self, config: FieldNetworkConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        n_in = config.n_bands * config.stem**2 + 1 + _told(config)[0]
        self.encoder = Encoder(n_in, channels, config.n_convs)
        self.decoder = Decoder(channels, config.n_convs)
        self.head = PointwiseHead(config)
        self.heat = nn.Sequential(
            nn.Conv2d(channels[0], channels[0], 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels[0], config.stem**2, 1),
        )
        assert isinstance(self.heat[-1].bias, Tensor)
        nn.init.constant_(self.heat[-1].bias, -4.0)
        n_gathered = 9 * channels[0] + sum(channels[1:]) + len(config.apertures) + 2
        n_gathered += sum(_told(config))
        widths = [n_gathered, *config.gather_hidden]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [nn.Linear(n_in, n_out), nn.SiLU()]
        self.gather = nn.Sequential(*layers, nn.Linear(widths[-1], config.context))
        self.photometry = Photometry(config) if config.photometry else None
        self.kind = nn.Linear(config.context, 2)  # logits: a source, a star
        self.flow = SourceFlow(config.context, hidden=config.flow_hidden, shifted=config.photometry)
        self.familiar = Familiarity(channels[-1])

    def use_precision(self, precision: str) -> None:
        """Compute in single precision, or let the convolutions work with sixteen bits.

        Parameters
        ----------
        precision : {"single", "bfloat16"}
            The second is faster on processors that know it. Probabilities then change by 10⁻⁴ on
            average, at single pixels by a few hundredths, and with the tiling too.
        """
        check_precision(precision)
        self.narrow = precision == "bfloat16"

    def kinds(self, context: Tensor) -> Tensor:
        """Logits that there is a source, and that it is a star, (source, 2)."""
        return self.kind(context[:, : self.config.context])

    @property
    def frame(self) -> tuple[object, ...]:
        """See :class:`Network`: all but widths, and what it is told."""
        c = self.config
        return (c.n_bands, c.n_classes, c.n_convs, c.stem, len(c.channels), c.latent_spacings,
                c.apertures, len(c.gather_hidden))  # fmt: skip

    def joined_inputs(self) -> dict[str, list[int]]:
        """See :class:`Network`."""
        config = self.config
        fine, *coarser = config.channels
        levels = list(pairwise(config.channels))[::-1]
        n = len(config.apertures)
        gathered = [fine] * 9 + [*coarser, n, 2, *_told(config)]
        return {
            f"decoder.blocks.{k}.0.weight": [low, high] for k, (high, low) in enumerate(levels)
        } | {
            "head.from_latent.weight": [config.latent_channels] * len(config.latent_spacings),
            "gather.0.weight": gathered,
            "photometry.inner.0.weight": [2 * n, config.context, *_told(config)],
        }

    @property
    def halo(self) -> int:
        """Pixels around a tile that its answer depends on."""
        # The heatmap's 3×3 convolution, or gathering in the 3×3 cells around a position between
        # them, and the neighbours of a peak look two cells and two pixels further.
        reach = receptive_radius(self.config, further=2 * self.config.stem + 2)
        # The coarsest features, which gathering takes from up to two of their cells away.
        coarse = receptive_radius(self.config, further=2 * self.config.stride, encoder_only=True)
        return max(reach, coarse, math.ceil(3 * max(self.config.apertures)) + 2)

    def uncertain(self, cells: Tensor) -> Tensor:
        """Cells that may be other than sky: bool, (batch, y', x')."""
        by_class = cells.detach().unflatten(-1, (self.config.n_classes, -1))
        return (by_class.softmax(dim=-2)[..., 0, :] < _CERTAIN).any(dim=-1)

    def forward(
        self,
        image: Tensor,
        *,
        sliding: bool | None = None,
        psf_fwhm: Tensor | None = None,
        noise_factors: Tensor | None = None,
    ) -> FieldDistribution:
        """What can be said of images.

        Parameters
        ----------
        image : Tensor, shape (batch, band, y, x)
            In units of the sky noise; any size.
        sliding : bool, optional
            Of no effect: everything is local by construction.
        psf_fwhm : Tensor, shape (batch,) or (batch, y, x), optional
            Full width at half maximum of the PSF, pixels, of the image or of every pixel; 2 if
            not given.
        noise_factors : Tensor, shape (batch, 2), optional
            How correlated the noise is, see :func:`~probablend.correlation.noise_factors`; 1,
            white, if not given.
        """
        n_y, n_x = image.shape[-2:]
        config = self.config
        log_noise = image.new_zeros(len(image), _told(config)[0])
        if noise_factors is not None:
            most = image.new_tensor(_MOST_CORRELATED)
            log_noise = noise_factors.to(image).minimum(most).log()[:, : _told(config)[0]]
        if psf_fwhm is None:
            psf_fwhm = torch.full((len(image),), 2.0)
        log_fwhm = psf_fwhm.to(image).log()
        x = F.pixel_unshuffle(pad_to_stride(torch.asinh(image), config.stride), config.stem)
        if log_fwhm.ndim == 1:
            condition = log_fwhm.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[-2:])
        else:
            missing = (0, x.shape[-1] * config.stem - n_x, 0, x.shape[-2] * config.stem - n_y)
            padded = F.pad(log_fwhm[:, None], missing, mode="replicate")
            condition = F.avg_pool2d(padded, config.stem)
        told = log_noise[:, :, None, None].expand(-1, -1, *x.shape[-2:])
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.narrow):
            features = self.decoder(self.encoder(torch.cat([x, condition, told], dim=1)))
            heat = self.heat(features[0])
        features = [level.to(x) for level in features]
        heat = F.pixel_shuffle(heat.to(x), config.stem)[:, 0, :n_y, :n_x]
        return FieldDistribution(
            network=self,
            features=features,
            projected=self.head.from_features(features[0].movedim(1, -1)),
            heat_logits=heat,
            image=image[:, 0],
            log_fwhm=log_fwhm,
            log_noise=log_noise,
            shape_yx=(n_y, n_x),
            stride=config.stride,
            correlation=config.correlation,
        )

    def training_loss(
        self, batch: SceneBatch, *, generator: torch.Generator, beta: float
    ) -> dict[str, Tensor]:
        """Weighted sum of negative log likelihoods, nats per image; ``beta`` weighs nothing."""
        n = len(batch.image)
        generator = _generator_on(batch.image.device, generator)
        said = self(batch.image, psf_fwhm=batch.psf_fwhm, noise_factors=batch.noise_factors)
        kept = batch.sources.keep(batch.sources.n_pixels >= MIN_TRUE_PIXELS)
        size = batch.image.shape[-1]
        inside = (kept.y > -0.5) & (kept.y < size - 0.5) & (kept.x > -0.5) & (kept.x < size - 0.5)
        terms = {
            "cross_entropy": self._class_loss(said, batch.classes, generator) / n,
            "centres": _heat_loss(said.heat_logits, kept) / n,
        }
        for key, value in self._peak_loss(said, kept, generator).items():
            terms[key] = value / n
        for key, value in self._source_loss(said, kept, inside, generator).items():
            terms[key] = value / n
        loss = torch.stack([_WEIGHT.get(key, 1.0) * value for key, value in terms.items()]).sum()
        return {"loss": loss} | terms

    @torch.inference_mode()
    def learn_familiar(
        self, training: Iterable[SceneBatch], held_out: Iterable[SceneBatch]
    ) -> None:
        """Remember what surrounds sources, see :class:`~probablend.models.familiar.Familiarity`.

        Parameters
        ----------
        training, held_out : iterable of SceneBatch
            Scenes that were learnt from, and others like them; peaks of true sources count.
        """
        self.eval()
        self.familiar.learn(*(
            torch.cat([self._surroundings(batch) for batch in batches])
            for batches in (training, held_out)
        ))  # fmt: skip

    def _surroundings(self, batch: SceneBatch) -> Tensor:
        """Coarsest features at the peaks that are true sources, (source, channel)."""
        said = self(batch.image, psf_fwhm=batch.psf_fwhm, noise_factors=batch.noise_factors)
        found = said.candidates()
        real = _partner(found, batch.sources.keep(batch.sources.n_pixels >= MIN_TRUE_PIXELS)) >= 0
        return said.surroundings(found.scene[real], found.y[real], found.x[real])

    def _class_loss(
        self, said: FieldDistribution, classes: Tensor, generator: torch.Generator
    ) -> Tensor:
        """−log of the likelihood averaged over draws of the fields, nats.

        Of every pixel on its own, plus that of small windows: the first makes probabilities
        right, the second makes the pixels of a draw agree with each other.
        """
        config = self.config
        cells = self.head(said.projected, None)  # (batch, y', x', class · stem²)
        n, n_y, n_x, _ = cells.shape
        # The truth on the same grid; what was padded does not count.
        missing = (n_x * config.stem - classes.shape[-1], n_y * config.stem - classes.shape[-2])
        padded = F.pad(classes, (0, missing[0], 0, missing[1]), value=IGNORED)
        target = F.pixel_unshuffle(padded[:, None], config.stem).movedim(1, -1)

        def nats(logits: Tensor, wanted: Tensor) -> Tensor:
            by_class = logits.unflatten(-1, (config.n_classes, -1)).movedim(-2, 1)
            return F.cross_entropy(by_class, wanted, reduction="none", ignore_index=IGNORED)

        def averaged(draws: Tensor) -> Tensor:
            return (math.log(config.n_draws) - torch.logsumexp(-draws, dim=0)).sum()

        drawn = self.uncertain(cells)
        certain = nats(cells[~drawn], target[~drawn]).sum()
        b, y, x = drawn.nonzero(as_tuple=True)
        fields = self._training_fields(n, n_y, n_x, generator, cells.device)
        projected, wanted = said.projected[b, y, x], target[b, y, x]
        draws = torch.stack(
            [nats(self.head(projected, field[b, :, y, x]), wanted) for field in fields]
        )  # (draw, cell, pixel)
        # Windows start anywhere, so that no border between them stays.
        shift = torch.randint(config.window, (2,), generator=generator, device=generator.device)
        shift_y, shift_x = shift.tolist()
        rows, columns = 1 + -(-n_y // config.window), 1 + -(-n_x // config.window)
        window = (b * rows + (y + shift_y) // config.window) * columns
        window = window + (x + shift_x) // config.window
        totals = torch.zeros(len(draws), n * rows * columns, device=cells.device)
        totals = totals.index_add(1, window, draws.sum(dim=-1))
        loss = certain * (1 + config.joint_weight) + averaged(draws)
        return loss + config.joint_weight * averaged(totals)

    def _training_fields(
        self, n: int, n_y: int, n_x: int, generator: torch.Generator, device: torch.device
    ) -> Tensor:
        """Unit Gaussian fields, (draw, batch, latent, y', x'), as inference draws them."""
        config = self.config
        levels = []
        for spacing in config.latent_spacings:
            along_y, along_x = (spline_matrix(m, spacing).to(device) for m in (n_y, n_x))
            noise = torch.randn(
                config.n_draws, n, config.latent_channels, along_y.shape[1], along_x.shape[1],
                generator=generator, device=device,
            )  # fmt: skip
            levels.append(along_y @ noise @ along_x.T)
        return torch.cat(levels, dim=2)

    def _peak_loss(
        self, said: FieldDistribution, kept: Sources, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """What the network's own peaks are: nothing, or which true source."""
        with torch.no_grad():
            found = said.candidates(limit=128)
            partner = _partner(found, kept)
            n_y, n_x = said.shape_yx
            edge = MATCH_RADIUS  # partners may lie outside
            inner = (found.y > edge) & (found.y < n_y - 1 - edge)
            inner &= (found.x > edge) & (found.x < n_x - 1 - edge)
            scene, y, x, partner = (t[inner] for t in (found.scene, found.y, found.x, partner))
        zero = said.heat_logits.new_zeros(())
        if not len(scene):
            return {"existence": zero, "flow_peaks": zero}
        context = said.context(scene, y, x, detected=True)
        weight = _weights(kept, len(said.image))[scene]
        real = partner >= 0
        existence = F.binary_cross_entropy_with_logits(
            self.kinds(context)[:, 0], real.to(context), weight=weight, reduction="sum"
        )
        if not bool(real.any()):
            return {"existence": existence, "flow_peaks": zero}
        real = real & kept.has_shape[partner.clamp(min=0)]
        own = kept.keep(partner[real])
        noise = torch.randn(len(own), 5, generator=generator, device=generator.device)
        fwhm = said.log_fwhm_at(own.scene, y[real], x[real]).exp()
        wanted = truth(own, y[real], x[real], fwhm, noise)
        nats = -self.flow(context[real]).log_prob(wanted)
        nats = nats.clamp(max=_WORST) * weight[real]
        return {"existence": existence, "flow_peaks": nats.sum()}

    def _source_loss(
        self, said: FieldDistribution, kept: Sources, inside: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """What is at positions from elsewhere: jittered true ones, and blank ones."""
        sources = kept.keep(inside)
        n = len(sources)
        zero = said.heat_logits.new_zeros(())
        if n == 0:
            terms = dict.fromkeys(("flow", "star", "existence_given"), zero)
            return terms if self.photometry is None else terms | {"photometry": zero}
        noise = torch.randn(n, 7, generator=generator, device=generator.device)
        spread = 0.7 * torch.rand(n, generator=generator, device=generator.device)
        y = sources.y + spread * noise[:, 5]
        x = sources.x + spread * noise[:, 6]
        context = said.context(sources.scene, y, x, detected=False)
        fwhm = said.log_fwhm_at(sources.scene, y, x).exp()
        weights = _weights(kept, len(said.image))
        weight = weights[sources.scene]
        known = sources.has_shape  # real galaxies may have none
        wanted = truth(sources, y, x, fwhm, noise[:, :5])[known]
        nats = -self.flow(context[known]).log_prob(wanted)
        kind = self.kinds(context)
        star = F.binary_cross_entropy_with_logits(
            kind[:, 1], sources.is_star.to(nats), weight=weight, reduction="sum"
        )
        # As many positions at random, of which those near no source are blank.
        at = torch.rand(n, 2, generator=generator, device=generator.device)
        at = at * torch.tensor(said.shape_yx, device=at.device) - 0.5
        blank = _distances(sources.scene, at[:, 0], at[:, 1], kept).amin(dim=1) > MATCH_RADIUS
        empty = said.context(sources.scene[blank], at[blank, 0], at[blank, 1], detected=False)
        logits = torch.cat([kind[:, 0], self.kinds(empty)[:, 0]])
        there = torch.cat([torch.ones(n), torch.zeros(len(empty))]).to(logits)
        existence = F.binary_cross_entropy_with_logits(
            logits, there, weight=torch.cat([weight, weights[sources.scene[blank]]]),
            reduction="sum",
        )  # fmt: skip
        nats = nats.clamp(max=_WORST) * weight[known]
        terms = {"flow": nats.sum(), "star": star, "existence_given": existence}
        if self.photometry is not None:
            error = context[:, -1] - sources.flux.log()
            off = F.smooth_l1_loss(error, torch.zeros_like(error), beta=_SHARP, reduction="none")
            terms["photometry"] = (off * weight).sum() / _SHARP
        return terms


def _generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator on the device, whose numbers follow from those of another one."""
    if generator.device.type == device.type:
        return generator
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    return torch.Generator(device).manual_seed(int(seed))


def _weights(kept: Sources, n_scenes: int) -> Tensor:
    """How much a source of each scene counts, (scene,)."""
    n = torch.bincount(kept.scene, minlength=n_scenes).clamp(min=1)
    return (_USUAL / n) ** (1 / 3)


def _distances(scene: Tensor, y: Tensor, x: Tensor, kept: Sources) -> Tensor:
    """Distances from positions to true sources, (position, source); far if scenes differ."""
    distance = torch.hypot(y[:, None] - kept.y, x[:, None] - kept.x)
    return torch.where(scene[:, None] == kept.scene, distance, 1e6)


def _heat_loss(logits: Tensor, kept: Sources) -> Tensor:
    """Cross-entropy with a Gaussian around every centre, summed over pixels."""
    n, n_y, n_x = logits.shape
    reach = math.ceil(4 * _HEAT_WIDTH)
    span = torch.arange(-reach, reach + 1, device=logits.device)
    row = kept.y.round().long()[:, None, None] + span[None, :, None]
    column = kept.x.round().long()[:, None, None] + span[None, None, :]
    distance = (row - kept.y[:, None, None]) ** 2 + (column - kept.x[:, None, None]) ** 2
    value = torch.exp(-0.5 * distance / _HEAT_WIDTH**2)
    inside = (row >= 0) & (row < n_y) & (column >= 0) & (column < n_x)
    index = (kept.scene[:, None, None] * n_y + row) * n_x + column
    target = torch.zeros(n * n_y * n_x, device=logits.device)
    target.scatter_reduce_(0, index[inside], value[inside], "amax")
    target = target.view_as(logits)
    # The entropy of the target is a constant: without it the term is 0 for perfect answers.
    entropy = F.binary_cross_entropy(target, target, reduction="sum")
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") - entropy


def _partner(found: Candidates, kept: Sources) -> Tensor:
    """True source of each peak, −1 for none: each other's nearest, within the radius."""
    if not len(found) or not len(kept):
        return torch.full_like(found.scene, -1)
    distance = _distances(found.scene, found.y, found.x, kept)
    least, nearest = distance.min(dim=1)
    mutual = distance.argmin(dim=0)[nearest] == torch.arange(len(least), device=least.device)
    return torch.where(mutual & (least < MATCH_RADIUS), nearest, -1)
