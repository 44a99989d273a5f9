r"""Probabilistic U-Net: a distribution over segmentations of an image.

After arXiv:1806.05034. A latent vector z says which of the plausible segmentations is
meant. The prior p(z | x) sees the image, the posterior q(z | x, y) also the truth. z joins
the U-Net's last features and a pointwise, non-linear head turns both into class logits, so
that n segmentations cost one pass of the U-Net and n of the head. Training maximises the
evidence lower bound, cross-entropy summed over pixels.

One addition makes it fit for images of any size. A patch of training size has one latent,
as in the paper; in a larger image the mean over the patch becomes a sliding mean, so that
prior and latent are smooth fields over the image and there is no seam.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence
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

__all__ = ["LatentDistribution", "ProbabilisticUNet", "ProbabilisticUNetConfig"]


@dataclass(frozen=True, kw_only=True)
class ProbabilisticUNetConfig(UNetConfig):
    """Settings of a :class:`ProbabilisticUNet`, beside those of its U-Net.

    Parameters
    ----------
    latent_dim : int
        Dimension of z.
    n_head_layers : int
        Pointwise layers with a non-linearity, before the linear last one.
    """

    latent_dim: int = 6
    n_head_layers: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "latent_dim", "n_head_layers")


class LatentEncoder(nn.Module):
    """Image (and truth) → Gaussian over z, one per patch or one per cell of a sliding mean."""

    def __init__(self, n_in: int, config: ProbabilisticUNetConfig) -> None:
        super().__init__()
        self.encoder = Encoder(n_in, config.channels, config.n_convs)
        self.to_moments = nn.Conv2d(config.channels[-1], 2 * config.latent_dim, 1)
        nn.init.normal_(self.to_moments.weight, std=0.01)
        assert self.to_moments.bias is not None
        nn.init.zeros_(self.to_moments.bias)
        # Odd, so that the window is centred.
        self.window = config.patch_size // config.stride // 2 * 2 + 1

    def forward(self, x: Tensor, *, sliding: bool) -> Independent:
        """Mean and spread of z: event (latent, y, x) with y = x = 1 unless ``sliding``."""
        features = self.encoder(x)[-1]
        if sliding:
            features = F.avg_pool2d(
                features, self.window, 1, self.window // 2, count_include_pad=False
            )
        else:
            features = features.mean((-2, -1), keepdim=True)
        mean, log_sigma = self.to_moments(features).chunk(2, dim=1)
        return Independent(Normal(mean, log_sigma.clamp(-7, 4).exp()), 3)


class Head(nn.Module):
    """Features ⊕ z → logits, pointwise. The part without z is computed once per image."""

    def __init__(self, config: ProbabilisticUNetConfig) -> None:
        super().__init__()
        width = config.channels[0]
        self.from_features = nn.Conv2d(width, width, 1)
        self.from_latent = nn.Conv2d(config.latent_dim, width, 1, bias=False)
        layers: list[nn.Module] = [nn.SiLU()]
        for _ in range(config.n_head_layers - 1):
            layers += [nn.Conv2d(width, width, 1), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, config.n_classes * config.stem**2, 1))
        self.stem = config.stem

    def forward(self, projected: Tensor, latent: Tensor) -> Tensor:
        """Logits, (batch, class, y, x), from ``from_features(features)`` and z."""
        moved = self.from_latent(latent)
        if moved.shape[-2:] != (1, 1):
            # A 1×1 convolution and an interpolation commute: do the first on the coarse grid.
            scale = projected.shape[-1] // moved.shape[-1]
            moved = F.interpolate(moved, scale_factor=scale, mode="bilinear", align_corners=False)
        return F.pixel_shuffle(self.layers(projected + moved), self.stem)


@dataclass(frozen=True, kw_only=True)
class LatentDistribution(SegmentationDistribution):
    """Distribution over class maps with a Gaussian latent.

    Parameters
    ----------
    head : Head
        Turns features and latent into logits.
    projected : Tensor, shape (batch, channel, y', x')
        The U-Net's features, ready for the head.
    prior : Independent
        p(z | image).
    posterior : Independent or None
        q(z | image, truth), when the truth was given.
    patch_size : int
        Reach of one latent, pixels.
    """

    head: Head
    projected: Tensor
    prior: Independent
    posterior: Independent | None
    patch_size: int

    def logits(self, latent: Tensor) -> Tensor:
        """Class logits given z: (batch, class, y, x)."""
        n_y, n_x = self.shape_yx
        return self.head(self.projected, latent)[..., :n_y, :n_x]

    def sample_logits(self, sample: int, *, seed: int) -> Tensor:
        """See :class:`SegmentationDistribution`: the logits of a z from the prior."""
        return self.logits(self.latent(sample, seed=seed))

    def latent(self, sample: int, *, seed: int) -> Tensor:
        """Draw number ``sample`` of z from the prior; fixed by the seed and the position."""
        normal = self.prior.base_dist
        assert isinstance(normal, Normal)
        n_batch, n_latent, n_y, n_x = normal.loc.shape
        cells = (self.origin_yx[0] // self.stride, self.origin_yx[1] // self.stride)
        spacing = max(1, self.patch_size // self.stride)
        fields = [
            gaussian_field((seed, sample, LATENT_STREAM, k), (n_y, n_x), cells, spacing)
            for k in range(n_batch * n_latent)
        ]
        noise = torch.stack(fields).reshape(n_batch, n_latent, n_y, n_x)
        return normal.loc + normal.scale * noise.to(normal.loc)

    def elbo_terms(self, classes: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Cross-entropy under one posterior draw, and KL(q‖p).

        Parameters
        ----------
        classes : Tensor of int64, shape (batch, y, x)
            The truth that the posterior was given.
        generator : torch.Generator
            Draws z from the posterior.

        Returns
        -------
        cross_entropy : Tensor, shape (batch,)
            Summed over pixels, nats.
        divergence : Tensor, shape (batch,)
            Nats.
        """
        if self.posterior is None:
            raise ValueError("the posterior needs the truth: call the model with classes")
        q = self.posterior.base_dist
        assert isinstance(q, Normal)
        noise = torch.randn(q.loc.shape, generator=generator).to(q.loc)
        logits = self.logits(q.loc + q.scale * noise)
        cross_entropy = F.cross_entropy(logits, classes, reduction="none").sum((-2, -1))
        return cross_entropy, kl_divergence(self.posterior, self.prior)

    def log_prob(self, classes: Tensor, *, n: int = 16, generator: torch.Generator) -> Tensor:
        """Estimate of log p(classes | image), with q as the proposal.

        The importance-weighted bound: never above the truth on average, and reaches it as
        ``n`` grows (Burda et al. 2016, arXiv:1509.00519).

        Parameters
        ----------
        classes : Tensor of int64, shape (batch, y, x)
            The class maps that the posterior was given.
        n : int
            Draws from the posterior.
        generator : torch.Generator
            Draws them.

        Returns
        -------
        Tensor, shape (batch,)
            Nats.
        """
        if self.posterior is None:
            raise ValueError("the posterior needs the truth: call the model with classes")
        q = self.posterior.base_dist
        assert isinstance(q, Normal)
        terms = []
        for _ in range(n):
            noise = torch.randn(q.loc.shape, generator=generator).to(q.loc)
            z = q.loc + q.scale * noise
            nats = F.cross_entropy(self.logits(z), classes, reduction="none").sum((-2, -1))
            terms.append(self.prior.log_prob(z) - self.posterior.log_prob(z) - nats)
        weights = torch.stack(terms)  # (sample, batch)
        return weights.logsumexp(dim=0) - torch.log(torch.tensor(float(n)))


class ProbabilisticUNet(SegmentationNetwork):
    """Probabilistic U-Net.

    Parameters
    ----------
    config : ProbabilisticUNetConfig
        Its settings.
    """

    config: ProbabilisticUNetConfig

    def __init__(self, config: ProbabilisticUNetConfig) -> None:
        super().__init__()
        self.config = config
        n_image = config.n_bands * config.stem**2
        n_truth = config.n_classes * config.stem**2
        self.encoder = Encoder(n_image, config.channels, config.n_convs)
        self.decoder = Decoder(config.channels, config.n_convs)
        self.prior = LatentEncoder(n_image, config)
        self.posterior = LatentEncoder(n_image + n_truth, config)
        self.head = Head(config)

    @property
    def halo(self) -> int:
        """Pixels around a tile that its answer depends on."""
        # The prior averages over half a window more, and interpolates between two cells.
        window = (self.prior.window // 2 + 1) * self.config.stride
        return receptive_radius(self.config) + window

    def forward(
        self,
        image: Tensor,
        classes: Tensor | None = None,
        *,
        sliding: bool | None = None,
        **told: Tensor | None,
    ) -> LatentDistribution:
        """Distribution over class maps.

        Parameters
        ----------
        image : Tensor, shape (batch, band, y, x)
            In units of the sky noise; any size.
        classes : Tensor of int64, shape (batch, y, x), optional
            The truth, for the posterior.
        sliding : bool, optional
            Whether the latent varies over the image; by default if it is larger than a
            training patch.
        **told : Tensor, optional
            See :class:`SegmentationNetwork`: of no effect.
        """
        n_y, n_x = image.shape[-2:]
        patch, stem = self.config.patch_size, self.config.stem
        sliding = max(n_y, n_x) > patch if sliding is None else sliding
        x = F.pixel_unshuffle(pad_to_stride(torch.asinh(image), self.config.stride), stem)
        projected = self.head.from_features(self.decoder(self.encoder(x))[0])
        prior = self.prior(x, sliding=sliding)
        posterior = None
        if classes is not None:
            one_hot = F.one_hot(classes, self.config.n_classes).movedim(-1, 1).to(image) - 0.5
            truth = F.pixel_unshuffle(pad_to_stride(one_hot, self.config.stride), stem)
            posterior = self.posterior(torch.cat([x, truth], dim=1), sliding=sliding)
        return LatentDistribution(
            head=self.head,
            projected=projected,
            prior=prior,
            posterior=posterior,
            patch_size=patch,
            shape_yx=(n_y, n_x),
            stride=self.config.stride,
            correlation=self.config.correlation,
        )

    def training_loss(
        self, batch: SceneBatch, *, generator: torch.Generator, beta: float
    ) -> dict[str, Tensor]:
        """Negative evidence lower bound with the KL term weighted by ``beta``, batch mean."""
        distribution = self(batch.image, batch.classes)
        cross_entropy, divergence = (
            term.mean() for term in distribution.elbo_terms(batch.classes, generator=generator)
        )
        loss = cross_entropy + beta * divergence
        return {"loss": loss, "cross_entropy": cross_entropy, "kl": divergence}
