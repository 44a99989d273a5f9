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
  (:mod:`probablend.models.source`). It may look twice: what it says first is where fits of
  profiles start, and then it is told what these say (:mod:`probablend.models.fit`).

Nothing looks further than the receptive field: tiles agree.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probablend.config import at_least_one
from probablend.emulate.scenes import SceneBatch
from probablend.models.blocks import Decoder, Encoder
from probablend.models.distribution import SegmentationNetwork
from probablend.models.familiar import Familiarity
from probablend.models.field_distribution import FieldDistribution
from probablend.models.field_loss import Lesson, learn, looked_for, partners, training_loss
from probablend.models.fit import N_FITTED, Fits
from probablend.models.light import STEEP
from probablend.models.source import N_TRUSTED, PARAMETERS, SourceFlow, stretch, to_physical
from probablend.models.unet import UNetConfig, pad_to_stride, receptive_radius
from probablend.models.window import Guess
from probablend.psf import N_WINGS

__all__ = ["PRECISIONS", "FieldNetwork", "FieldNetworkConfig", "check_precision"]

PRECISIONS = ("single", "bfloat16")

_MOST_CORRELATED = (2.5, 4.0)  # noise factors; hardly a training scene has more
_MOST_WINGS = (-0.45, -0.25, -0.125)  # logarithms of light; hardly a PSF in training has more
_FARTHEST, _OFF = 30.0, 3.0  # free parameters, and pixels, where fits start
_CERTAIN = 0.995  # cells this sure to be sky are not drawn


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
    knows_psf : bool
        Whether it can be told how much of a point source's light lies in the wings of the PSF.
    fits : bool
        Whether profiles are fitted to sources, and it is told what the fits say.
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
    knows_psf: bool = False
    fits: bool = False
    n_sectors: int = 0
    flow_hidden: tuple[int, ...] = (128, 128)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "latent_channels", "head_width", "n_draws", "window", "context")
        if not self.apertures or min(self.apertures) <= 0:
            raise ValueError(f"apertures must be positive; got {self.apertures}")
        if self.knows_sky and not self.knows_noise:
            raise ValueError("knows_sky goes beyond knows_noise: set both")
        if self.fits and not self.photometry:
            raise ValueError("fits are told to the photometry: set both")
        if self.n_sectors < 0 or self.n_sectors % 2:
            raise ValueError(f"n_sectors must be even, 0 or more; got {self.n_sectors}")
        if not self.latent_spacings or min(self.latent_spacings) < 2:
            raise ValueError(f"latent_spacings must be at least 2; got {self.latent_spacings}")

    @property
    def n_noise_factors(self) -> int:
        """How many of :func:`~probablend.correlation.noise_factors` it is told."""
        return self.knows_noise + self.knows_sky


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
    wings = config.knows_psf * (N_WINGS + 1)
    return [config.n_noise_factors, symmetric, symmetric, wings, config.fits * N_FITTED]


class Photometry(nn.Module):
    """ln flux from sums of light within Gaussian weights: a mean of them, and what they miss.

    Sums are linear and precise, features of a convolution are not. What a profile holds beyond
    its weights shows in their ratios; which of them a neighbour spoils, in the features and in
    how much of the light has a counterpart on the other side of the centre. If profiles are
    fitted, theirs is one more of these sums; and how far they are to be trusted for size, shape and
    place is said too.
    """

    _WIDTH = 128
    _DOUBT = -1.5  # of fits at first

    def __init__(self, config: FieldNetworkConfig) -> None:
        super().__init__()
        n = len(config.apertures)
        self.inner = nn.Sequential(
            nn.Linear(2 * n + config.context + sum(_told(config)), self._WIDTH), nn.SiLU(),
            nn.Linear(self._WIDTH, self._WIDTH), nn.SiLU(),
        )  # fmt: skip
        self.n_sums, self.fits = n, config.fits
        self.outer = nn.Linear(self._WIDTH, n + 1 + config.fits * (1 + N_TRUSTED))
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        with torch.no_grad():
            self.outer.bias[n + 1 :] = self._DOUBT

    def forward(
        self, sums: Tensor, log_fwhm: Tensor, context: Tensor, told: Tensor, fits: Fits | None
    ) -> Tensor:
        """(source, 1 or 11) from (source, aperture), arcsinh, and what else is known of each.

        Ln flux; then, if profiles may be fitted, trust in them and what they say, as
        :class:`~probablend.models.source.SourceFlow` takes both.
        """
        steps = STEEP * sums.diff(dim=1)
        seen = torch.cat([(sums - 5) / 2.5, steps, log_fwhm, context, told], dim=1)
        said = self.outer(self.inner(seen))
        weight, missed = said[:, : self.n_sums], said[:, self.n_sums]
        if fits is not None:
            sums = torch.cat([sums, fits.value[:, :1] + math.log(2)], dim=1)  # arcsinh, as others
            weight = torch.cat([weight, said[:, self.n_sums + 1, None]], dim=1)
        ln_flux = ((weight.softmax(dim=1) * sums).sum(dim=1) + missed)[:, None]
        if not self.fits:
            return ln_flux
        if fits is None:
            return torch.cat([ln_flux, ln_flux.new_zeros(len(sums), 2 * N_TRUSTED)], dim=1)
        _, ln_hlr, g1, g2, y, x, _ = fits.value.unbind(1)
        fitted = torch.stack([ln_hlr, *stretch(g1, g2), y, x], dim=1)
        return torch.cat([ln_flux, said[:, self.n_sums + 2 :].sigmoid(), fitted], dim=1)


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
        n_in = config.n_bands * config.stem**2 + 1 + config.n_noise_factors
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
        self.flow = SourceFlow(
            config.context, hidden=config.flow_hidden, shifted=config.photometry, fitted=config.fits
        )
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

    def context(self, seen: Tensor, *, detected: bool, fits: Fits | None = None) -> Tensor:
        """What posteriors are conditioned on.

        Parameters
        ----------
        seen : Tensor, shape (source, channel)
            Of :meth:`~probablend.models.field_distribution.FieldDistribution.seen`.
        detected : bool
            Where positions come from: a peak of this very image leans towards the noise, a position
            from elsewhere does not.
        fits : Fits, optional
            What fits say; nothing, if it looks for the first time.

        Returns
        -------
        Tensor, shape (source, channel)
            What photometry says comes last, if there is one.
        """
        config = self.config
        n, n_told = len(config.apertures), sum(_told(config)[:-1])
        features, sums, log_fwhm, told = seen.split(
            [seen.shape[1] - n - 1 - n_told, n, 1, n_told], dim=1
        )
        if config.fits:
            empty = seen.new_zeros(len(seen), N_FITTED)
            told = torch.cat([told, empty if fits is None else fits.summary], dim=1)
        origin = torch.full_like(log_fwhm, float(detected))
        context = F.silu(self.gather(torch.cat([features, sums, log_fwhm, origin, told], dim=1)))
        if self.photometry is None:
            return context
        more = self.photometry(sums, log_fwhm, context, told, fits)
        return torch.cat([context, more], dim=1)

    @torch.no_grad()
    def first_look(
        self, scene: Tensor, y: Tensor, x: Tensor, seen: Tensor, *, detected: bool
    ) -> tuple[Guess, Tensor]:
        """Where fits start, and the probability that there is a source.

        Parameters
        ----------
        scene : Tensor of int64, shape (source,)
            Image of each position.
        y, x : Tensor, shape (source,)
            Positions, pixels.
        seen, detected
            See :meth:`context`.
        """
        context = self.context(seen, detected=detected)
        middle = context.new_zeros(1, len(context), len(PARAMETERS))
        free = self.flow.invert(context, middle)[0]  # what the flow makes of its own middle
        # A first look may be wild, where a network has learnt little.
        free = free.nan_to_num().clamp(-_FARTHEST, _FARTHEST)
        _, _, g1, g2, dy, dx, *_ = to_physical(free).unbind(-1)
        dy, dx = (d.clamp(-_OFF, _OFF) for d in (dy, dx))
        fwhm = seen[:, -1 - sum(_told(self.config)[:-1])].exp()
        guess = Guess(scene, y + dy, x + dx, free[:, 0], free[:, 1], g1, g2, fwhm)
        return guess, self.kinds(context)[:, 0].sigmoid()

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

    def forward(  # type: ignore[override]  # it says what may be told
        self,
        image: Tensor,
        *,
        sliding: bool | None = None,
        psf_fwhm: Tensor | None = None,
        noise_factors: Tensor | None = None,
        psf_wings: Tensor | None = None,
        psf_image: Tensor | None = None,
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
        psf_wings : Tensor, shape (batch, 3), optional
            How much light lies in the wings of the PSF, see
            :func:`~probablend.psf.light_in_wings`; NaN, or not given, where that is not known.
        psf_image : Tensor, shape (batch, 41, 41), optional
            See :class:`~probablend.psf.PSF`; NaN, or not given, where it is not known.
        """
        n_y, n_x = image.shape[-2:]
        config = self.config
        log_noise = image.new_zeros(len(image), config.n_noise_factors)
        if noise_factors is not None:
            most = image.new_tensor(_MOST_CORRELATED)
            log_noise = noise_factors.to(image).minimum(most).log()[:, : config.n_noise_factors]
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
            wings=self._wings(image, psf_wings),
            near_wings=None if psf_wings is None else psf_wings[:, 0].to(image),
            psf_image=None if psf_image is None else psf_image.to(image),
            shape_yx=(n_y, n_x),
            stride=config.stride,
            correlation=config.correlation,
        )

    def _wings(self, image: Tensor, psf_wings: Tensor | None) -> Tensor:
        """Whether wings are known, and their numbers, (batch, 4); (batch, 0) if it has no use."""
        if not self.config.knows_psf:
            return image.new_zeros(len(image), 0)
        if psf_wings is None:
            return image.new_zeros(len(image), N_WINGS + 1)
        wings = psf_wings.to(image)
        known = torch.isfinite(wings).all(dim=1, keepdim=True)
        least = image.new_tensor(_MOST_WINGS)
        wings = torch.where(known, wings, 0.0).maximum(least) / least
        return torch.cat([known.to(image), wings], dim=1)

    def training_loss(
        self, batch: SceneBatch | Lesson, *, generator: torch.Generator, beta: float
    ) -> dict[str, Tensor]:
        """See :func:`~probablend.models.field_loss.training_loss`; ``beta`` weighs nothing.

        Of a lesson, :func:`~probablend.models.field_loss.learn`.
        """
        if isinstance(batch, Lesson):
            return learn(self, batch, generator=generator)
        return training_loss(self, batch, generator=generator)

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
        (seen, weight), (others, weight_of_others) = (
            map(torch.cat, zip(*map(self._surroundings, batches), strict=True))
            for batches in (training, held_out)
        )
        self.familiar.learn(seen, others, (weight, weight_of_others))

    def _surroundings(self, batch: SceneBatch) -> tuple[Tensor, Tensor]:
        """Coarsest features at the peaks that are true sources, (source, channel).

        And how many pixels of its scene there are for each, (source,).
        """
        said = self(batch.image, **batch.known)
        found = said.candidates()
        real = partners(found, looked_for(batch)) >= 0
        scene = found.scene[real]
        n_pixels = batch.image[0, 0].numel() / torch.bincount(scene)[scene]
        return said.surroundings(scene, found.y[real], found.x[real]), n_pixels
