"""Training scenes, composed on the fly from a stamp bank.

Scene ``i`` of a dataset depends on the seed and on ``i`` alone: any order of work, any
number of workers and a resumed run see the same scenes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from probablend.emulate.blend import COUNTS_SLOPE, FieldConfig, Scene, draw_field
from probablend.emulate.stamps import Galaxies

# A crowded scene: more galaxies, most of them with a companion, bright ones as common as faint.
_CROWDED_DENSITY = (100.0, 400.0)
_CROWDED_COMPANIONS = (0.4, 0.8)
_CROWDED_SLOPE = 0.15

__all__ = ["SceneConfig", "SceneDataset"]


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Which scenes a training sees.

    Parameters
    ----------
    size : int
        Side of a training patch, pixels.
    density_range : tuple of float
        Galaxies per arcmin²; each scene draws one value, uniform in the logarithm.
    companion_range : tuple of float
        Share of galaxies put near another one; each scene draws one value, uniform.
    sparse_fraction : float
        Share of sparse scenes: isolated galaxies and empty sky, from which the model learns
        that there may be no overlap.
    sparse_factor : float
        By how much the density of a sparse scene is lower.
    crowded_share : float
        Share of crowded scenes when training starts; it falls linearly to zero. Blends are a
        hundredth of the pixels of a real field: a network that sees them often at first
        learns what they look like, and from real fields, later, how rare they are.
    crowded_until : float
        Part of the training after which no scene is crowded.
    star_density : float
        Stars per arcmin².
    mag_range : tuple of float
        Brightest and faintest AB magnitude.
    """

    size: int = 128
    density_range: tuple[float, float] = (80.0, 300.0)
    companion_range: tuple[float, float] = (0.0, 0.3)
    sparse_fraction: float = 0.1
    sparse_factor: float = 15.0
    crowded_share: float = 1.0
    crowded_until: float = 0.6
    star_density: float = 5.0
    mag_range: tuple[float, float] = (18.5, 26.0)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1 pixel; got {self.size}")
        if not self.sparse_factor > 0:
            raise ValueError(f"sparse_factor must be positive; got {self.sparse_factor}")
        if not 0 < self.density_range[0] <= self.density_range[1]:
            raise ValueError(
                f"density_range must be positive and ascending; got {self.density_range}"
            )
        if not 0 <= self.companion_range[0] <= self.companion_range[1] <= 1:
            raise ValueError(
                f"companion_range must lie between 0 and 1, ascending; got {self.companion_range}"
            )
        if not self.mag_range[0] < self.mag_range[1]:
            raise ValueError(f"mag_range must go from bright to faint; got {self.mag_range}")


class SceneDataset(Dataset[tuple[Tensor, Tensor]]):
    """Endless scenes for training, or a fixed set for validation.

    Parameters
    ----------
    galaxies : Galaxies
        Usually a :class:`~probablend.emulate.stamps.StampBank`.
    config : SceneConfig
        What to draw.
    seed : int
        Seeds every scene together with its index.
    n_scenes : int
        Length of the dataset.
    curriculum : bool
        Whether the first scenes are crowded.
    """

    def __init__(
        self,
        galaxies: Galaxies,
        config: SceneConfig,
        *,
        seed: int,
        n_scenes: int,
        curriculum: bool = False,
    ) -> None:
        self.curriculum = curriculum
        self.galaxies = galaxies
        self.config = config
        self.seed = seed
        self.n_scenes = n_scenes

    def __len__(self) -> int:
        return self.n_scenes

    def scene(self, index: int) -> Scene:
        """Scene ``index`` with its whole truth."""
        config = self.config
        generator = np.random.default_rng([self.seed, index])
        progress = index / self.n_scenes / max(config.crowded_until, 1e-9)
        crowded = self.curriculum and generator.uniform() < config.crowded_share * (1 - progress)
        low, high = _CROWDED_DENSITY if crowded else config.density_range
        density = float(np.exp(generator.uniform(np.log(low), np.log(high))))
        if not crowded and generator.uniform() < config.sparse_fraction:
            density /= config.sparse_factor
        field = FieldConfig(
            size=config.size,
            density=density,
            star_density=config.star_density,
            mag_range=config.mag_range,
            companion_fraction=float(
                generator.uniform(*(_CROWDED_COMPANIONS if crowded else config.companion_range))
            ),
            counts_slope=_CROWDED_SLOPE if crowded else COUNTS_SLOPE,
        )
        return draw_field(self.galaxies, field, generator=generator)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image in units of the sky noise, (band, y, x), and classes, (y, x) int64."""
        scene = self.scene(index)
        image = torch.from_numpy(scene.image / np.float32(scene.rms))[None]
        return image, torch.from_numpy(scene.classes.astype(np.int64))
