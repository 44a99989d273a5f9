"""U-Net: class logits for every pixel.

After arXiv:1905.01324, with one change for speed: the image is first rearranged so that
``stem`` × ``stem`` pixels become channels (pixel unshuffle), and the logits are rearranged
back. ``stem=1`` is the classical network.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probablend.config import at_least_one
from probablend.emulate.scenes import SceneBatch
from probablend.models.blocks import Decoder, Encoder
from probablend.models.distribution import SegmentationDistribution, SegmentationNetwork

__all__ = ["CertainDistribution", "UNet", "UNetConfig", "pad_to_stride", "receptive_radius"]


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Settings of a :class:`UNet`.

    Parameters
    ----------
    n_bands : int
        Bands of the image.
    n_classes : int
        Classes per pixel.
    channels : tuple of int
        Channels per level, finest first.
    n_convs : int
        3×3 convolutions per level.
    stem : int
        Side of the pixel block that becomes channels; 1 keeps full resolution.
    patch_size : int
        Side of a training patch, pixels.
    correlation : int
        Lattice spacing of the field that draws pixel classes, pixels.
    """

    n_bands: int = 1
    n_classes: int = 3
    channels: tuple[int, ...] = (24, 48, 96, 128)
    n_convs: int = 2
    stem: int = 2
    patch_size: int = 128
    correlation: int = 6

    def __post_init__(self) -> None:
        at_least_one(self, "n_bands", "n_classes", "n_convs", "stem", "patch_size")
        if self.correlation < 2:
            raise ValueError(f"correlation must be at least 2; got {self.correlation}")
        if len(self.channels) < 1 or min(self.channels) < 1:
            raise ValueError(f"channels must be positive, one per level; got {self.channels}")

    @property
    def stride(self) -> int:
        """Pixels per cell of the coarsest level."""
        return self.stem * 2 ** (len(self.channels) - 1)


def receptive_radius(config: UNetConfig, *, further: int = 0, encoder_only: bool = False) -> int:
    """Pixels beyond which nothing changes a pixel's features, rounded up to the stride.

    Parameters
    ----------
    config : UNetConfig
        Settings of the network.
    further : int
        How much further what reads the features looks, pixels.
    encoder_only : bool
        Whether the features are the coarsest ones, which no decoder has seen.
    """
    cells = [config.stem * 2**k for k in range(len(config.channels))]
    reach = config.n_convs * sum(cells) + sum(cells[:-1]) + further
    if not encoder_only:
        reach += (config.n_convs + 2) * sum(cells[:-1])
    return -(-reach // config.stride) * config.stride


def pad_to_stride(image: Tensor, stride: int) -> Tensor:
    """Append empty sky below and right until both sides are multiples of ``stride``."""
    n_y, n_x = image.shape[-2:]
    return F.pad(image, (0, -n_x % stride, 0, -n_y % stride))


@dataclass(frozen=True, kw_only=True)
class CertainDistribution(SegmentationDistribution):
    """One set of class probabilities, always the same: no latent.

    Parameters
    ----------
    logits : Tensor, shape (batch, class, y, x)
        Class logits.
    """

    logits: Tensor

    def sample_logits(self, sample: int, *, seed: int) -> Tensor:
        """See :class:`SegmentationDistribution`: the same for every sample."""
        return self.logits


class UNet(SegmentationNetwork):
    """Deterministic U-Net.

    Parameters
    ----------
    config : UNetConfig
        Its settings.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        n_in = config.n_bands * config.stem**2
        self.encoder = Encoder(n_in, config.channels, config.n_convs)
        self.decoder = Decoder(config.channels, config.n_convs)
        self.head = nn.Conv2d(config.channels[0], config.n_classes * config.stem**2, 1)

    @property
    def halo(self) -> int:
        """Pixels around a tile that its answer depends on."""
        return receptive_radius(self.config)

    def forward(
        self,
        image: Tensor,
        *,
        sliding: bool | None = None,
        **told: Tensor | None,
    ) -> CertainDistribution:
        """Distribution over class maps.

        Parameters
        ----------
        image : Tensor, shape (batch, band, y, x)
            In units of the sky noise; any size.
        sliding : bool, optional
            Of no effect: there is no latent.
        **told : Tensor, optional
            See :class:`SegmentationNetwork`: of no effect.
        """
        n_y, n_x = image.shape[-2:]
        padded = pad_to_stride(torch.asinh(image), self.config.stride)
        features = self.decoder(self.encoder(F.pixel_unshuffle(padded, self.config.stem)))[0]
        logits = F.pixel_shuffle(self.head(features), self.config.stem)[..., :n_y, :n_x]
        return CertainDistribution(
            logits=logits,
            shape_yx=(n_y, n_x),
            stride=self.config.stride,
            correlation=self.config.correlation,
        )

    def training_loss(
        self, batch: SceneBatch, *, generator: torch.Generator, beta: float
    ) -> dict[str, Tensor]:
        """Cross-entropy summed over pixels, mean over the batch; nothing random in it."""
        nats = F.cross_entropy(self(batch.image).logits, batch.classes, reduction="none")
        cross_entropy = nats.sum((-2, -1)).mean()  # (batch, y, x) → ()
        return {"loss": cross_entropy, "cross_entropy": cross_entropy}
