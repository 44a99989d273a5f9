"""What every segmentation network answers with: a distribution over class maps."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from probablend.emulate.classes import PixelClass
from probablend.models.fields import gaussian_field, gaussian_points
from probablend.models.network import Network

__all__ = ["Drawn", "SegmentationDistribution", "SegmentationNetwork", "check_number"]

# Streams of the random fields of one sample.
LATENT_STREAM, PIXEL_STREAM = 0, 1
NEGLIGIBLE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What was drawn of one image, or of a part of it.

    Parameters
    ----------
    mean : ndarray, shape (class, y, x), float32
        Marginal probabilities: means over the draws of the latent.
    samples : ndarray of uint8, shape (sample, y, x)
        A class map of each of them.
    blends : list of (y, x)
        Blended pixels of these and of further class maps, those of one draw together.
    """

    mean: np.ndarray
    samples: np.ndarray
    blends: list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class SegmentationDistribution(ABC):
    """Distribution over the class maps of a batch of images.

    A class map is drawn in two steps: what the network's latent says, then the class of each
    pixel from its own probabilities with a correlated uniform field (a Gaussian copula).
    Drawing pixels independently would give speckle and the most probable class would lose
    rare classes; this keeps every pixel's probabilities exactly, and neighbours together.

    Parameters
    ----------
    shape_yx : tuple of int
        Shape of the image.
    stride : int
        Tiles of a larger image start at multiples of it, pixels.
    correlation : int
        Lattice spacing of the field that draws pixel classes, pixels.
    origin_yx : tuple of int
        Position of the first pixel in a larger image.
    """

    shape_yx: tuple[int, int]
    stride: int
    correlation: int
    origin_yx: tuple[int, int] = (0, 0)

    @abstractmethod
    def sample_logits(self, sample: int, *, seed: int) -> Tensor:
        """Class logits of draw number ``sample``: (batch, class, y, x)."""

    def at(self, origin_yx: tuple[int, int]) -> Self:
        """The same, for an image that is a tile of a larger one."""
        if any(o % self.stride for o in origin_yx):
            raise ValueError(f"a tile must start at a multiple of {self.stride} pixels")
        return replace(self, origin_yx=origin_yx)

    def draws(self, n: int, *, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Class probabilities of a draw and a class map drawn from them, n times.

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
        check_number(n)
        for sample in range(n):
            probabilities = self.sample_logits(sample, seed=seed).softmax(dim=1)
            yield probabilities, self._draw_classes(probabilities, sample, seed)

    def draw(self, n: int, n_maps: int, *, inner: tuple[slice, slice], seed: int = 0) -> Drawn:
        """Draw from the distribution over one image: samples, means and where blends are.

        Parameters
        ----------
        n : int
            Draws of the latent.
        n_maps : int
            Class maps for each of them.
        inner : tuple of slice
            Part of the image that is wanted, (y, x).
        seed : int
            As in :meth:`draws`.
        """
        first = inner[0].start, inner[1].start
        here = (self.origin_yx[0] + first[0], self.origin_yx[1] + first[1])
        part = replace(self, origin_yx=here)
        means, samples, blends = [], [], []
        for k, (probabilities, classes) in enumerate(self.draws(n, seed=seed)):
            core = probabilities[0][(slice(None), *inner)]
            means.append(core)
            samples.append(classes[0][inner].cpu().numpy())
            y, x = np.nonzero(samples[-1] == PixelClass.BLEND)
            blends.append((y, x))
            p_blend = core[PixelClass.BLEND].cpu().numpy()
            blends += part.more_blends(p_blend, k, n_maps - 1, seed=seed)
        mean = (sum(means) / n).cpu().numpy()  # type: ignore[union-attr]
        return Drawn(mean=mean, samples=np.stack(samples), blends=blends)

    def _draw_classes(self, probabilities: Tensor, sample: int, seed: int) -> Tensor:
        fields = [
            gaussian_field(
                (seed, sample, PIXEL_STREAM, b), self.shape_yx, self.origin_yx, self.correlation
            )
            for b in range(len(probabilities))
        ]
        uniform = torch.special.ndtr(torch.stack(fields)).to(probabilities)
        # Classes are ordered: where the field is high, footprints grow.
        cumulative = probabilities.cumsum(dim=1)[:, :-1]  # (batch, class - 1, y, x)
        return (uniform[:, None] > cumulative).sum(dim=1, dtype=torch.uint8)

    def more_blends(
        self, p_blend: np.ndarray, sample: int, n: int, *, seed: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Blended pixels of ``n`` more class maps drawn from the probabilities of one draw.

        Parameters
        ----------
        p_blend : ndarray, shape (y, x)
            Probability of the blend class in draw ``sample``.
        sample : int
            Number of that draw.
        n : int
            How many more.
        seed : int
            As in :meth:`draws`.

        Returns
        -------
        list of (y, x)
            Pixels of each map, counted from the first pixel of ``p_blend``, which lies at
            ``origin_yx``. Pixels of less than a thousandth are never drawn.
        """
        y, x = np.nonzero(p_blend > NEGLIGIBLE)
        p = p_blend[y, x]
        maps = []
        for k in range(1, n + 1):
            key = (seed, sample, PIXEL_STREAM, 0, k)
            field = gaussian_points(
                key, y + self.origin_yx[0], x + self.origin_yx[1], self.correlation
            )
            hit = ndtr(field) > 1 - p
            maps.append((y[hit], x[hit]))
        return maps

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """Class maps, uint8, shape (sample, batch, y, x)."""
        return torch.stack([classes for _, classes in self.draws(n, seed=seed)])

    def class_probabilities(self, n: int, *, seed: int = 0) -> Tensor:
        """Class probabilities of each of n draws: (sample, batch, class, y, x)."""
        return torch.stack([p for p, _ in self.draws(n, seed=seed)])

    def mean(self, n: int = 16, *, seed: int = 0) -> Tensor:
        """Marginal class probabilities over n draws: (batch, class, y, x)."""
        return self.class_probabilities(n, seed=seed).mean(dim=0)


def check_number(n: int) -> None:
    """Refuse to draw nothing."""
    if n < 1:
        raise ValueError(f"the number of samples must be at least 1; got {n}")


class SegmentationNetwork(Network):
    """A network that ``segment`` can use."""

    @property
    @abstractmethod
    def halo(self) -> int:
        """Pixels around a tile that its answer depends on."""

    @abstractmethod
    def forward(
        self,
        image: Tensor,
        *,
        sliding: bool | None = None,
        **told: Tensor | None,
    ) -> SegmentationDistribution:
        """Distribution over the class maps of images (batch, band, y, x), in units of noise.

        Parameters
        ----------
        image : Tensor, shape (batch, band, y, x)
            In units of the sky noise; any size.
        sliding : bool, optional
            Whether a latent slides over the image; decided by its size if not given.
        **told : Tensor, optional
            What is known beside the image, see
            :meth:`FieldNetwork.forward <probablend.models.field.FieldNetwork.forward>`; other
            networks have no use for it.
        """
