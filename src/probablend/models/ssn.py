r"""Stochastic segmentation network: the logits are one correlated Gaussian.

After arXiv:2006.06015. The U-Net gives every pixel and class a mean logit, a factor of rank
``rank`` and a diagonal variance: logits ~ N(μ, P Pᵀ + D). The likelihood of a class map is
estimated with Monte-Carlo samples, log mean exp; there is no posterior network and no KL.

In the paper the ``rank`` normal deviates that P multiplies are one set for the whole image.
Here they are smooth Gaussian fields with the reach of a training patch, so that distant
galaxies are independent and tiles agree.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probablend.config import at_least_one
from probablend.emulate.scenes import SceneBatch
from probablend.models.blocks import Decoder, Encoder
from probablend.models.distribution import (
    LATENT_STREAM,
    SegmentationDistribution,
    SegmentationNetwork,
)
from probablend.models.fields import gaussian_field
from probablend.models.unet import UNetConfig, pad_to_stride, receptive_radius

__all__ = ["StochasticDistribution", "StochasticSegmentationNetwork", "StochasticUNetConfig"]


@dataclass(frozen=True, kw_only=True)
class StochasticUNetConfig(UNetConfig):
    """Settings of a :class:`StochasticSegmentationNetwork`, beside those of its U-Net.

    Parameters
    ----------
    rank : int
        Rank of the covariance.
    n_samples : int
        Monte-Carlo samples of the likelihood in training.
    """

    rank: int = 10
    n_samples: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "rank", "n_samples")


@dataclass(frozen=True, kw_only=True)
class StochasticDistribution(SegmentationDistribution):
    """Low-rank Gaussian over logits.

    Parameters
    ----------
    mean_logits : Tensor, shape (batch, class, y, x)
        Mean logits.
    factor : Tensor, shape (batch, rank, class, y, x)
        P: the covariance is P Pᵀ + D.
    scale : Tensor, shape (batch, class, y, x)
        Square root of D.
    patch_size : int
        Reach of the correlations, pixels.
    """

    mean_logits: Tensor
    factor: Tensor
    scale: Tensor
    patch_size: int

    def sample_logits(self, sample: int, *, seed: int) -> Tensor:
        """See :class:`SegmentationDistribution`."""
        n_batch, rank, n_classes = self.factor.shape[:3]

        def normal(stream: int, n: int, spacing: int) -> Tensor:
            fields = [
                gaussian_field(
                    (seed, sample, LATENT_STREAM, stream, k), self.shape_yx, self.origin_yx, spacing
                )
                for k in range(n_batch * n)
            ]
            return torch.stack(fields).reshape(n_batch, n, *self.shape_yx).to(self.scale)

        shared = normal(0, rank, self.patch_size)
        own = normal(1, n_classes, 1)
        return self.mean_logits + (self.factor * shared[:, :, None]).sum(1) + self.scale * own

    def log_likelihood(self, classes: Tensor, n: int, *, generator: torch.Generator) -> Tensor:
        """Monte-Carlo estimate of log p(classes | image), (batch,), nats.

        Parameters
        ----------
        classes : Tensor of int64, shape (batch, y, x)
            The truth.
        n : int
            Samples; one set of deviates per image, as in training.
        generator : torch.Generator
            Draws them.
        """
        n_batch, rank = self.factor.shape[:2]
        terms = []
        for _ in range(n):
            shared = torch.randn(n_batch, rank, 1, 1, 1, generator=generator).to(self.scale)
            own = torch.randn(self.scale.shape, generator=generator).to(self.scale)
            logits = self.mean_logits + (self.factor * shared).sum(1) + self.scale * own
            terms.append(-F.cross_entropy(logits, classes, reduction="none").sum((-2, -1)))
        return torch.stack(terms).logsumexp(dim=0) - math.log(n)


class StochasticSegmentationNetwork(SegmentationNetwork):
    """Stochastic segmentation network.

    Parameters
    ----------
    config : StochasticUNetConfig
        Its settings.
    """

    config: StochasticUNetConfig

    def __init__(self, config: StochasticUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.n_bands * config.stem**2, config.channels, config.n_convs)
        self.decoder = Decoder(config.channels, config.n_convs)
        n_out = config.n_classes * (2 + config.rank)
        self.head = nn.Conv2d(config.channels[0], n_out * config.stem**2, 1)

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
    ) -> StochasticDistribution:
        """Distribution over class maps.

        Parameters
        ----------
        image : Tensor, shape (batch, band, y, x)
            In units of the sky noise; any size.
        sliding : bool, optional
            Of no effect: the fields are always local.
        **told : Tensor, optional
            See :class:`SegmentationNetwork`: of no effect.
        """
        n_y, n_x = image.shape[-2:]
        config = self.config
        padded = pad_to_stride(torch.asinh(image), config.stride)
        features = self.decoder(self.encoder(F.pixel_unshuffle(padded, config.stem)))[0]
        out = F.pixel_shuffle(self.head(features), config.stem)[..., :n_y, :n_x]
        # (batch, class · (2 + rank), y, x) → mean, log variance, factor
        out = out.unflatten(1, (2 + config.rank, config.n_classes))
        return StochasticDistribution(
            mean_logits=out[:, 0],
            scale=(0.5 * out[:, 1].clamp(-10, 5)).exp(),
            factor=out[:, 2:],
            patch_size=config.patch_size,
            shape_yx=(n_y, n_x),
            stride=config.stride,
            correlation=config.correlation,
        )

    def training_loss(
        self, batch: SceneBatch, *, generator: torch.Generator, beta: float
    ) -> dict[str, Tensor]:
        """Negative Monte-Carlo log-likelihood, batch mean; ``beta`` has nothing to weigh."""
        distribution = self(batch.image)
        likelihood = distribution.log_likelihood(
            batch.classes, self.config.n_samples, generator=generator
        )
        loss = -likelihood.mean()
        return {"loss": loss, "cross_entropy": loss}
