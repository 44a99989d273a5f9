"""The level of the sky around positions, from pixels without visible sources.

A rest of the sky hides under the noise of a pixel, but not under that of an aperture: the flux of
a galaxy follows it, and an interval that must allow for any level is wide. Pixels near a galaxy in
which nothing stands out tell the level to some hundredths of their noise.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LEVEL_CELL", "LEVEL_REACH", "N_LEVEL", "seen_level", "sky_level", "without_level"]

LEVEL_CELL = 4  # pixels to a side of a cell of the maps of the level
N_LEVEL = 2  # numbers that are said of a level
LEVEL_REACH = 128  # pixels: how far from one what decides on its level may lie
_SMOOTH, _STANDS_OUT, _GROWN = 1.5, 2.75, 4  # σ of the weight; of its noise; pixels around
_NEAR = math.ceil(3 * _SMOOTH) + _GROWN  # pixels that decide whether one counts
_STRIP = 512  # rows at once
_WIDTH, _FARTHEST = 8.0, 24  # σ of the average, and where it ends, cells
_MOST = 5.0  # a pixel counts for no more, in units of the noise
_USUAL = 0.03  # a level, in units of the noise


def sky_level(image: Tensor, noise: Tensor) -> Tensor:
    """Levels of the sky on a grid of cells, and what they are worth.

    Parameters
    ----------
    image : Tensor, shape (batch, y, x)
        In units of the noise; 0 where there is none.
    noise : Tensor, shape (batch,)
        How much stronger the noise is on the scale of a source than white noise.

    Returns
    -------
    Tensor, shape (batch, 2, ⌈y / 4⌉, ⌈x / 4⌉)
        The expected level, in units of the noise per pixel, if levels of 0.03 are usual; and how
        many independent empty pixels tell it, weighted by their distance.
    """
    n_y = image.shape[1]
    strips = []  # of whole cells; all pixels at once would take much memory
    for first in range(0, n_y, _STRIP):
        low, high = max(first - _NEAR, 0), min(first + _STRIP + _NEAR, n_y)
        empty = _empty(image[:, low:high], noise)[:, first - low : first - low + _STRIP]
        light = empty * image[:, first : first + _STRIP].clamp(-_MOST, _MOST)
        missing = (0, -image.shape[2] % LEVEL_CELL, 0, -light.shape[1] % LEVEL_CELL)
        both = F.pad(torch.stack([light, empty], dim=1), missing)
        strips.append(F.avg_pool2d(both, LEVEL_CELL, divisor_override=1))
    light, count = torch.cat(strips, dim=2).unbind(1)
    weight = _gaussian(_WIDTH, _FARTHEST).to(image)
    light, total = _blurred(light, weight), _blurred(count, weight)
    squares = _blurred(count, weight**2)
    n = total**2 / squares.clamp(min=1e-6) / noise.view(-1, 1, 1).to(image) ** 2
    trust = n / (n + _USUAL**-2)
    return torch.stack([trust * light / total.clamp(min=1e-6), n], dim=1)


def _empty(image: Tensor, noise: Tensor) -> Tensor:
    """1 where nothing stands out of the noise, or of what lies around; 0 elsewhere."""
    weight = _gaussian(_SMOOTH, math.ceil(3 * _SMOOTH)).to(image)
    # A bright pixel hides as much around it as an infinitely bright one.
    smooth = _blurred(image.clamp(-_MOST, 1e4), weight) / (weight**2).sum()
    stands_out = (smooth > _STANDS_OUT * noise.view(-1, 1, 1).to(image)).to(image)
    hidden = F.max_pool2d(stands_out[:, None], (2 * _GROWN + 1, 1), 1, (_GROWN, 0))
    hidden = F.max_pool2d(hidden, (1, 2 * _GROWN + 1), 1, (0, _GROWN))[:, 0]
    return (image != 0) * (1 - hidden)


def without_level(image: Tensor, level: Tensor) -> Tensor:
    """Images (batch, y, x) less levels, of :func:`sky_level`; what is masked stays so."""
    n_y, n_x = image.shape[1:]
    fine = F.interpolate(level[:, :1], scale_factor=LEVEL_CELL, mode="bilinear")
    return torch.where(image != 0, image - fine[:, 0, :n_y, :n_x], 0.0)


def seen_level(level: Tensor) -> Tensor:
    """What :func:`sky_level` says at positions, (source, 2), as numbers of order one."""
    return torch.stack([level[:, 0] / (2 * _USUAL), (level[:, 1] * _USUAL**2).log1p()], dim=1)


def _gaussian(sigma: float, reach: int) -> Tensor:
    return torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)


def _blurred(image: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums around pixels; ``weight`` along both axes."""
    reach = len(weight) // 2
    along_x = F.conv2d(image[:, None], weight.view(1, 1, 1, -1), padding=(0, reach))
    return F.conv2d(along_x, weight.view(1, 1, -1, 1), padding=(reach, 0))[:, 0]
