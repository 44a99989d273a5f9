"""The published networks for blends of two galaxies (arXiv:1905.01324).

They look at a stamp with a galaxy in the middle and another one beside it:

- *U-Net*: masks of the overlap, of the central galaxy and of its companion;
- *blend2flux*: straight to the two fluxes, by convolutions, pooling and two dense layers;
- *blend2mask2flux*: the U-Net, whose masks join the image before a flux branch, jointly
  trained.

They are one network, :class:`PairNetwork`, with the parts that its settings ask for.
Differences from the paper: images enter in units of the noise through an arcsinh, not scaled
by their maximum; fluxes leave as logarithms; ``stem`` × ``stem`` pixels become channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probablend.emulate.scenes import SceneBatch
from probablend.models.blocks import Decoder, Encoder
from probablend.models.network import Network
from probablend.models.unet import UNetConfig, pad_to_stride

__all__ = ["MASKS", "PairAnswer", "PairNetwork", "PairNetworkConfig", "true_masks"]

MASKS = ("overlap", "central", "companion")
_FLUX_LOSSES = ("mape", "log")
_FLUX_WEIGHT = 10.0  # 0.1 of a percentage, as in the paper, beside the mean cross-entropy
_TYPICAL = 7.0  # ln flux in units of the noise: where the flux branch starts
_STEEP = 2.0  # nats too much beyond which the relative error is continued by its tangent


@dataclass(frozen=True, kw_only=True)
class PairNetworkConfig(UNetConfig):
    """Settings of a :class:`PairNetwork`, beside those of its U-Net.

    Parameters
    ----------
    segment, measure : bool
        Whether it has the U-Net, and the flux branch.
    flux_channels : tuple of int
        Channels of each level of the flux branch.
    dense : int
        Width of its two dense layers.
    flux_loss : {"mape", "log"}
        Mean absolute relative error, or mean absolute error of ln flux.
    """

    segment: bool = True
    measure: bool = True
    flux_channels: tuple[int, ...] = (32, 48, 64, 96, 128)
    dense: int = 512
    flux_loss: str = "mape"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.segment or self.measure):
            raise ValueError("a network for pairs needs segment, measure, or both")
        if self.flux_loss not in _FLUX_LOSSES:
            raise ValueError(f"flux_loss must be one of {_FLUX_LOSSES}; got {self.flux_loss!r}")
        deepest = self.stem * 2 ** len(self.flux_channels)
        if self.measure and self.patch_size % deepest:
            raise ValueError(
                f"patch_size must be a multiple of {deepest} for {len(self.flux_channels)} levels "
                f"of the flux branch; got {self.patch_size}"
            )


@dataclass(frozen=True, kw_only=True)
class PairAnswer:
    """What is said of stamps.

    Parameters
    ----------
    mask_logits : Tensor, shape (batch, 3, y, x), optional
        Of overlap, central galaxy and companion; the latter two contain the first.
    log_flux : Tensor, shape (batch, 2), optional
        Natural logarithm of the fluxes of central galaxy and companion, in units of the noise.
    """

    mask_logits: Tensor | None = None
    log_flux: Tensor | None = None


class PairNetwork(Network):
    """U-Net, blend2flux or blend2mask2flux.

    Parameters
    ----------
    config : PairNetworkConfig
        Its settings.
    """

    config: PairNetworkConfig

    def __init__(self, config: PairNetworkConfig) -> None:
        super().__init__()
        self.config = config
        n_in = config.n_bands * config.stem**2
        if config.segment:
            self.encoder = Encoder(n_in, config.channels, config.n_convs)
            self.decoder = Decoder(config.channels, config.n_convs)
            self.head = nn.Conv2d(config.channels[0], len(MASKS) * config.stem**2, 1)
            assert self.head.bias is not None
            nn.init.constant_(self.head.bias, -3.0)  # most pixels are sky
            n_in += len(MASKS) * config.stem**2
        if config.measure:
            self.flux_encoder = Encoder(n_in, config.flux_channels, config.n_convs)
            side = config.patch_size // (config.stem * 2 ** len(config.flux_channels))
            self.dense = nn.Sequential(
                nn.Flatten(),
                nn.Linear(config.flux_channels[-1] * side**2, config.dense),
                nn.SELU(),
                nn.Linear(config.dense, config.dense),
                nn.SELU(),
                nn.Linear(config.dense, 2),
            )

    def forward(self, image: Tensor) -> PairAnswer:
        """Masks and fluxes.

        Parameters
        ----------
        image : Tensor, shape (batch, band, y, x)
            In units of the sky noise; of ``patch_size`` if fluxes are measured.
        """
        n_y, n_x = image.shape[-2:]
        config = self.config
        seen = F.pixel_unshuffle(pad_to_stride(torch.asinh(image), config.stride), config.stem)
        masks = log_flux = None
        if config.segment:
            logits = self.head(self.decoder(self.encoder(seen))[0])
            masks = F.pixel_shuffle(logits, config.stem)[..., :n_y, :n_x]
            seen = torch.cat([seen, logits.sigmoid()], dim=1)
        if config.measure:
            if (n_y, n_x) != (config.patch_size, config.patch_size):
                raise ValueError(
                    f"the fluxes of a pair are measured on stamps of {config.patch_size}² pixels; "
                    f"got {n_y} × {n_x}"
                )
            coarsest = F.avg_pool2d(self.flux_encoder(seen)[-1], 2)
            log_flux = _TYPICAL + self.dense(coarsest)
        return PairAnswer(mask_logits=masks, log_flux=log_flux)

    def training_loss(
        self, batch: SceneBatch, *, generator: torch.Generator, beta: float
    ) -> dict[str, Tensor]:
        """Mean cross-entropy of the masks + 10 · ``beta`` · error of the fluxes, per pixel.

        Scenes must be pairs and nothing else.
        """
        _check_pairs(batch)
        said = self(batch.image)
        n_pixels = batch.image.shape[-2] * batch.image.shape[-1]
        terms = {}
        loss = batch.image.new_zeros(())
        if said.mask_logits is not None:
            nats = F.binary_cross_entropy_with_logits(said.mask_logits, true_masks(batch).float())
            terms["masks"] = nats * n_pixels
            loss = loss + terms["masks"]
        if said.log_flux is not None:
            true = batch.sources.flux.reshape(-1, 2).log()
            terms["flux"] = flux_error(said.log_flux - true, self.config.flux_loss).mean()
            weight = _FLUX_WEIGHT * beta if self.config.segment else _FLUX_WEIGHT
            loss = loss + weight * n_pixels * terms["flux"]
        return {"loss": loss} | terms


def flux_error(excess: Tensor, kind: str) -> Tensor:
    """Relative error of a flux, or error of its logarithm, from the latter (nats)."""
    if kind == "log":
        return excess.abs()
    low = excess.clamp(max=_STEEP)
    return torch.expm1(low).abs() + (excess - low) * low.detach().exp()


def true_masks(batch: SceneBatch) -> Tensor:
    """Overlap, central and companion masks of pairs: bool, (batch, 3, y, x)."""
    _check_pairs(batch)
    n, _, n_y, n_x = batch.image.shape
    source, pixel = batch.footprints
    own = torch.zeros(2 * n, n_y * n_x, dtype=torch.bool, device=batch.image.device)
    own[source, pixel % (n_y * n_x)] = True
    own = own.view(n, 2, n_y, n_x)
    return torch.cat([own.all(dim=1, keepdim=True), own], dim=1)


def _check_pairs(batch: SceneBatch) -> None:
    scenes = torch.arange(len(batch.image), device=batch.image.device)
    if not torch.equal(batch.sources.scene, scenes.repeat_interleave(2)):
        raise ValueError("a network for pairs learns from pairs only: set pair_fraction = 1")
