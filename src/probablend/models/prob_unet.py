r"""Probabilistic U-Net: a distribution over segmentations of an image.

After arXiv:1806.05034. A latent vector z says which of the plausible segmentations is
meant. The prior p(z | x) sees the image, the posterior q(z | x, y) also the truth. z joins
the U-Net's last features and a pointwise, non-linear head turns both into class logits, so
that n segmentations cost one pass of the U-Net and n of the head. Training maximises the
evidence lower bound, cross-entropy summed over pixels.

Two additions make it fit for images of any size:

- a patch of training size has one latent, as in the paper. In a larger image the mean over
  the patch becomes a sliding mean, so that prior and latent are smooth fields over the
  image and there is no seam;
- given z, the paper takes pixels as independent. A segmentation drawn so is speckled; one
  taken as the most probable class loses rare classes. We draw the class of each pixel from
  its own probabilities with a correlated uniform field (a Gaussian copula): every pixel
  keeps its probabilities exactly and neighbours go together.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional as F

from probablend.models.blocks import Decoder, Encoder
from probablend.models.fields import gaussian_field
from probablend.models.unet import UNetConfig, pad_to_stride, receptive_radius

__all__ = ["BlendDistribution", "ProbabilisticUNet", "ProbabilisticUNetConfig"]

# Streams of the random fields of one sample.
_LATENT, _PIXEL = 0, 1


@dataclass(frozen=True, kw_only=True)
class ProbabilisticUNetConfig(UNetConfig):
    """Settings of a :class:`ProbabilisticUNet`, beside those of its U-Net.

    Parameters
    ----------
    latent_dim : int
        Dimension of z.
    n_head_layers : int
        Pointwise layers with a non-linearity, before the linear last one.
    patch_size : int
        Side of a training patch, pixels: the reach of one latent.
    correlation : int
        Lattice spacing of the field that draws pixel classes, pixels.
    """

    latent_dim: int = 6
    n_head_layers: int = 3
    patch_size: int = 128
    correlation: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("latent_dim", "n_head_layers", "patch_size", "correlation"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1; got {getattr(self, key)}")


class LatentEncoder(nn.Module):
    """Image (and truth) → Gaussian over z, one per patch or one per cell of a sliding mean."""

    def __init__(self, n_in: int, config: ProbabilisticUNetConfig) -> None:
        super().__init__()
        self.encoder = Encoder(n_in, config.channels, config.n_convs)
        self.to_moments = nn.Conv2d(config.channels[-1], 2 * config.latent_dim, 1)
        nn.init.normal_(self.to_moments.weight, std=0.01)
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
        self.layers = nn.Sequential(
            *layers, nn.Conv2d(width, config.n_classes * config.stem**2, 1)
        )
        self.stem = config.stem

    def forward(self, projected: Tensor, latent: Tensor) -> Tensor:
        """Logits, (batch, class, y, x), from ``from_features(features)`` and z."""
        moved = self.from_latent(latent)
        if moved.shape[-2:] != (1, 1):
            # A 1×1 convolution and an interpolation commute: do the first on the coarse grid.
            scale = projected.shape[-1] // moved.shape[-1]
            moved = F.interpolate(moved, scale_factor=scale, mode="bilinear", align_corners=False)
        return F.pixel_shuffle(self.layers(projected + moved), self.stem)


@dataclass(frozen=True)
class BlendDistribution:
    """Distribution over the class maps of a batch of images.

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
    config : ProbabilisticUNetConfig
        Of the network.
    shape_yx : tuple of int
        Shape of the image.
    origin_yx : tuple of int
        Position of the first pixel in a larger image.
    """

    head: Head
    projected: Tensor
    prior: Independent
    posterior: Independent | None
    config: ProbabilisticUNetConfig
    shape_yx: tuple[int, int]
    origin_yx: tuple[int, int] = (0, 0)

    def at(self, origin_yx: tuple[int, int]) -> "BlendDistribution":
        """The same, for an image that is a tile of a larger one."""
        if any(o % self.config.stride for o in origin_yx):
            raise ValueError(f"a tile must start at a multiple of {self.config.stride} pixels")
        return replace(self, origin_yx=origin_yx)

    def logits(self, latent: Tensor) -> Tensor:
        """Class logits given z: (batch, class, y, x)."""
        n_y, n_x = self.shape_yx
        return self.head(self.projected, latent)[..., :n_y, :n_x]

    def latent(self, sample: int, *, seed: int) -> Tensor:
        """Draw number ``sample`` of z from the prior; fixed by the seed and the position."""
        normal = self.prior.base_dist
        assert isinstance(normal, Normal)
        n_batch, n_latent, n_y, n_x = normal.loc.shape
        patch, stride = self.config.patch_size, self.config.stride
        cells = tuple(o // stride for o in self.origin_yx)
        fields = [
            gaussian_field(
                (seed, sample, _LATENT, k), (n_y, n_x), (cells[0], cells[1]), patch // stride
            )
            for k in range(n_batch * n_latent)
        ]
        noise = torch.stack(fields).reshape(n_batch, n_latent, n_y, n_x)
        return normal.loc + normal.scale * noise.to(normal.loc)

    def draws(self, n: int, *, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Class probabilities given z and a class map drawn from them, n times.

        Parameters
        ----------
        n : int
            How many.
        seed : int
            The same seed gives the same draws; draw k does not depend on n.

        Yields
        ------
        probabilities : Tensor, shape (batch, class, y, x)
        classes : Tensor of uint8, shape (batch, y, x)
        """
        if n < 1:
            raise ValueError(f"the number of samples must be at least 1; got {n}")
        for sample in range(n):
            probabilities = self.logits(self.latent(sample, seed=seed)).softmax(dim=1)
            yield probabilities, self._draw_classes(probabilities, sample, seed)

    def _draw_classes(self, probabilities: Tensor, sample: int, seed: int) -> Tensor:
        fields = [
            gaussian_field(
                (seed, sample, _PIXEL, b), self.shape_yx, self.origin_yx, self.config.correlation
            )
            for b in range(len(probabilities))
        ]
        uniform = torch.special.ndtr(torch.stack(fields)).to(probabilities)
        # Classes are ordered: where the field is high, footprints grow.
        cumulative = probabilities.cumsum(dim=1)[:, :-1]  # (batch, class - 1, y, x)
        return (uniform[:, None] > cumulative).sum(dim=1, dtype=torch.uint8)

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """Class maps, uint8, shape (sample, batch, y, x)."""
        return torch.stack([classes for _, classes in self.draws(n, seed=seed)])

    def class_probabilities(self, n: int, *, seed: int = 0) -> Tensor:
        """Class probabilities given each of n latents: (sample, batch, class, y, x)."""
        return torch.stack([p for p, _ in self.draws(n, seed=seed)])

    def mean(self, n: int = 16, *, seed: int = 0) -> Tensor:
        """Marginal class probabilities over n latents: (batch, class, y, x)."""
        total = torch.zeros(())
        for probabilities, _ in self.draws(n, seed=seed):
            total = total + probabilities
        return total / n

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


class ProbabilisticUNet(nn.Module):
    """Probabilistic U-Net.

    Parameters
    ----------
    config : ProbabilisticUNetConfig
        Its settings.
    """

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
        self, image: Tensor, classes: Tensor | None = None, *, sliding: bool | None = None
    ) -> BlendDistribution:
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
        """
        n_y, n_x = image.shape[-2:]
        patch, stem = self.config.patch_size, self.config.stem
        sliding = max(n_y, n_x) > patch if sliding is None else sliding
        x = F.pixel_unshuffle(pad_to_stride(torch.asinh(image), self.config.stride), stem)
        projected = self.head.from_features(self.decoder(self.encoder(x)))
        prior = self.prior(x, sliding=sliding)
        posterior = None
        if classes is not None:
            one_hot = F.one_hot(classes, self.config.n_classes).movedim(-1, 1).to(image) - 0.5
            truth = F.pixel_unshuffle(pad_to_stride(one_hot, self.config.stride), stem)
            posterior = self.posterior(torch.cat([x, truth], dim=1), sliding=sliding)
        return BlendDistribution(self.head, projected, prior, posterior, self.config, (n_y, n_x))

    def training_loss(
        self, image: Tensor, classes: Tensor, *, generator: torch.Generator, beta: float
    ) -> dict[str, Tensor]:
        """Negative evidence lower bound with the KL term weighted by ``beta``, batch mean."""
        distribution = self(image, classes)
        cross_entropy, divergence = (
            term.mean() for term in distribution.elbo_terms(classes, generator=generator)
        )
        loss = cross_entropy + beta * divergence
        return {"loss": loss, "cross_entropy": cross_entropy, "kl": divergence}
