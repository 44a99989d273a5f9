r"""Hierarchical Probabilistic U-Net: spatial latents at several scales.

After arXiv:1905.13077. At each of the coarsest levels of the decoder a one-channel latent
map is drawn from a Gaussian that the decoder's own features predict, and is fed to the next
finer level: coarse latents say what is there, fine ones where exactly. The posterior is a
second network that also sees the truth; its latents are put into the prior's decoder. The
objective is GECO (:class:`~probablend.losses.Geco`) with cross-entropy on the hardest
pixels, drawn with some chance.

A sample costs a pass of the decoder: latents enter early.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from probablend.emulate.scenes import SceneBatch
from probablend.losses import Geco, hardest_pixels
from probablend.models.distribution import (
    LATENT_STREAM,
    SegmentationDistribution,
    SegmentationNetwork,
)
from probablend.models.fields import gaussian_field
from probablend.models.unet import UNetConfig, pad_to_stride, receptive_radius

__all__ = ["HierarchicalDistribution", "HierarchicalProbUNet", "HierarchicalProbUNetConfig"]


@dataclass(frozen=True, kw_only=True)
class HierarchicalProbUNetConfig(UNetConfig):
    """Settings of a :class:`HierarchicalProbUNet`, beside those of its U-Net.

    Parameters
    ----------
    n_latent_levels : int
        Levels with a latent, from the coarsest.
    kappa : float
        Cross-entropy per pixel that is good enough, nats.
    hard_share : float
        Share of the pixels, the hardest, that the cross-entropy is summed over.
    """

    n_latent_levels: int = 3
    kappa: float = 0.02
    hard_share: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_latent_levels < len(self.channels):
            raise ValueError(
                f"n_latent_levels must lie between 1 and {len(self.channels) - 1} for "
                f"{len(self.channels)} levels; got {self.n_latent_levels}"
            )
        if not 0 < self.hard_share <= 1 or self.kappa <= 0:
            raise ValueError("kappa must be positive and hard_share lie between 0 and 1")


class ResidualBlock(nn.Module):
    """``n_convs`` times activation, normalisation and 3×3 convolution, added to the input."""

    def __init__(self, n_in: int, n_out: int, n_convs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for k in range(n_convs):
            width = n_in if k == 0 else n_out
            layers += [
                nn.BatchNorm2d(width),
                nn.SiLU(),
                nn.Conv2d(width, n_out, 3, padding=1, bias=False),
            ]
        self.body = nn.Sequential(*layers)
        self.skip = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n_in, y, x) → (batch, n_out, y, x)."""
        return self.skip(x) + self.body(x)


class Ladder(nn.Module):
    """A U-Net of residual blocks whose coarsest decoder levels carry latents.

    Parameters
    ----------
    n_in : int
        Channels of the input.
    config : HierarchicalProbUNetConfig
        Of the network.
    full : bool
        Whether to decode to the finest level; the posterior needs its latents only.
    """

    def __init__(self, n_in: int, config: HierarchicalProbUNetConfig, *, full: bool) -> None:
        super().__init__()
        channels, n_convs = config.channels, config.n_convs
        self.n_latent = config.n_latent_levels
        self.entry = nn.Conv2d(n_in, channels[0], 3, padding=1)
        ins = [channels[0], *channels[:-1]]
        self.down = nn.ModuleList(
            ResidualBlock(i, o, n_convs) for i, o in zip(ins, channels, strict=True)
        )
        steps = list(range(len(channels) - 1, 0, -1))  # the level that is left, coarsest first
        self.moments = nn.ModuleList(
            nn.Conv2d(channels[level], 2, 1) for level in steps[: self.n_latent]
        )
        if not full:
            steps = steps[: self.n_latent - 1]
        self.up = nn.ModuleList(
            ResidualBlock(
                channels[level] + (1 if k < self.n_latent else 0) + channels[level - 1],
                channels[level - 1],
                n_convs,
            )
            for k, level in enumerate(steps)
        )

    def encode(self, x: Tensor) -> list[Tensor]:
        """Features of every level, finest first."""
        levels = []
        x = self.entry(x)
        for k, block in enumerate(self.down):
            x = block(x if k == 0 else F.avg_pool2d(x, 2))
            levels.append(x)
        return levels

    def decode(
        self, levels: Sequence[Tensor], choose: Callable[[int, Normal], Tensor]
    ) -> tuple[Tensor, list[Normal]]:
        """Features of the last level and the Gaussians met on the way.

        Parameters
        ----------
        levels : sequence of Tensor
            What :meth:`encode` returned.
        choose : callable
            Given the latent level (0 = coarsest) and its Gaussian, returns the latent.
        """
        *skips, x = levels
        met = []
        for k in range(max(len(self.up), self.n_latent)):
            if k < self.n_latent:
                mean, log_sigma = self.moments[k](x).chunk(2, dim=1)
                normal = Normal(mean, log_sigma.clamp(-7, 4).exp())
                met.append(normal)
                x = torch.cat([x, choose(k, normal)], dim=1)
            if k < len(self.up):
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
                x = self.up[k](torch.cat([x, skips[-1 - k]], dim=1))
        return x, met


@dataclass(frozen=True, kw_only=True)
class HierarchicalDistribution(SegmentationDistribution):
    """Distribution over class maps with spatial latents.

    Parameters
    ----------
    network : HierarchicalProbUNet
        Decodes.
    levels : list of Tensor
        The prior's encoding of the image.
    """

    network: "HierarchicalProbUNet"
    levels: list[Tensor]

    def sample_logits(self, sample: int, *, seed: int) -> Tensor:
        """See :class:`SegmentationDistribution`."""

        def choose(level: int, normal: Normal) -> Tensor:
            n_batch, _, n_y, n_x = normal.loc.shape
            cell = self.stride // 2**level
            origin = (self.origin_yx[0] // cell, self.origin_yx[1] // cell)
            fields = [
                gaussian_field((seed, sample, LATENT_STREAM, level, b), (n_y, n_x), origin, 1)
                for b in range(n_batch)
            ]
            return normal.loc + normal.scale * torch.stack(fields)[:, None].to(normal.loc)

        features, _ = self.network.prior.decode(self.levels, choose)
        return self.network.to_logits(features, self.shape_yx)


class HierarchicalProbUNet(SegmentationNetwork):
    """Hierarchical Probabilistic U-Net.

    Parameters
    ----------
    config : HierarchicalProbUNetConfig
        Its settings.
    """

    config: HierarchicalProbUNetConfig

    def __init__(self, config: HierarchicalProbUNetConfig) -> None:
        super().__init__()
        self.config = config
        n_image = config.n_bands * config.stem**2
        self.prior = Ladder(n_image, config, full=True)
        n_truth = config.n_classes * config.stem**2
        self.posterior = Ladder(n_image + n_truth, config, full=False)
        self.head = nn.Conv2d(config.channels[0], config.n_classes * config.stem**2, 1)
        self.geco = Geco(kappa=config.kappa)

    @property
    def halo(self) -> int:
        """Pixels around a tile that its answer depends on."""
        # The 3×3 convolution at the entry reaches one cell further.
        return receptive_radius(self.config) + self.config.stride

    def to_logits(self, features: Tensor, shape_yx: tuple[int, int]) -> Tensor:
        """Class logits from the finest features, cut to the image."""
        return F.pixel_shuffle(self.head(features), self.config.stem)[
            ..., : shape_yx[0], : shape_yx[1]
        ]

    def _unshuffle(self, image: Tensor) -> Tensor:
        return F.pixel_unshuffle(pad_to_stride(image, self.config.stride), self.config.stem)

    def forward(
        self,
        image: Tensor,
        *,
        sliding: bool | None = None,
        **told: Tensor | None,
    ) -> HierarchicalDistribution:
        """Distribution over class maps.

        Parameters
        ----------
        image : Tensor, shape (batch, band, y, x)
            In units of the sky noise; any size.
        sliding : bool, optional
            Of no effect: the latents are local by construction.
        **told : Tensor, optional
            See :class:`SegmentationNetwork`: of no effect.
        """
        n_y, n_x = image.shape[-2:]
        return HierarchicalDistribution(
            network=self,
            levels=self.prior.encode(self._unshuffle(torch.asinh(image))),
            shape_yx=(n_y, n_x),
            stride=self.config.stride,
            correlation=self.config.correlation,
        )

    def elbo_terms(
        self, image: Tensor, classes: Tensor, *, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy per pixel under one posterior draw, and KL(q‖p).

        Parameters
        ----------
        image : Tensor, shape (batch, band, y, x)
            In units of the sky noise.
        classes : Tensor of int64, shape (batch, y, x)
            The truth.
        generator : torch.Generator
            Draws the latents.

        Returns
        -------
        cross_entropy : Tensor, shape (batch, y, x)
            Nats.
        divergence : Tensor, shape (batch,)
            Summed over levels and latent pixels, nats.
        """
        x = self._unshuffle(torch.asinh(image))
        one_hot = F.one_hot(classes, self.config.n_classes).movedim(-1, 1).to(image) - 0.5
        drawn: list[Tensor] = []

        def draw(_: int, normal: Normal) -> Tensor:
            noise = torch.randn(normal.loc.shape, generator=generator).to(normal.loc)
            drawn.append(normal.loc + normal.scale * noise)
            return drawn[-1]

        truth = torch.cat([x, self._unshuffle(one_hot)], dim=1)
        _, q = self.posterior.decode(self.posterior.encode(truth), draw)
        features, p = self.prior.decode(self.prior.encode(x), lambda k, _: drawn[k])
        logits = self.to_logits(features, (image.shape[-2], image.shape[-1]))
        nats = F.cross_entropy(logits, classes, reduction="none")
        divergence = torch.stack(
            [kl_divergence(a, b).sum((1, 2, 3)) for a, b in zip(q, p, strict=True)]
        )
        return nats, divergence.sum(dim=0)

    def training_loss(
        self, batch: SceneBatch, *, generator: torch.Generator, beta: float
    ) -> dict[str, Tensor]:
        """GECO objective in training; the evidence lower bound in evaluation mode.

        ``beta`` has nothing to weigh: the constraint finds the balance.
        """
        nats, divergence = self.elbo_terms(batch.image, batch.classes, generator=generator)
        kl = divergence.mean()
        everywhere = nats.sum((-2, -1)).mean()
        if not self.training:
            return {"loss": everywhere + kl, "cross_entropy": everywhere, "kl": kl}
        hard = hardest_pixels(nats, self.config.hard_share, generator=generator)
        reconstruction = (nats * hard).sum((-2, -1)).mean()
        loss = self.geco(reconstruction, kl, n_pixels=batch.classes[0].numel())
        return {"loss": loss, "cross_entropy": everywhere, "kl": kl}
