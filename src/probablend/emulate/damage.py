"""What real images have beside galaxies: damage, and sky that was not quite subtracted.

None of it changes the truth: a cosmic ray is no source, a spike no galaxy. What is masked has no
truth at all.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probablend.emulate.noise import wave_strengths

if TYPE_CHECKING:
    from probablend.emulate.scenes import SceneBatch

__all__ = ["IGNORED", "damage", "seam", "tilt_sky"]

IGNORED = -100  # class of pixels without truth
_SKY_LEVEL = 0.05  # σ of a level
# What no background map follows: halos, scattered light, galaxies too faint to be seen. It hides
# under the noise of a pixel, and adds to that of an aperture.
_WAVES, _WAVE_WIDTH = (0.02, 0.2), (3.0, 16.0)  # σ; pixels
# Where waves are strong, so are what is longer than they: σ of the level, and of what it changes
# across a scene, in units of theirs.
_WAVE_LEVEL, _WAVE_SLOPE = 0.5, 0.75

# Seams: σ of what level and ln noise jump by, level of a band beside it, its strongest noise.
_SEAM_LEVEL, _SEAM_NOISE, _BAND_LEVEL, _BAND_NOISE = 0.25, 0.15, 0.8, 3.0


def tilt_sky(batch: "SceneBatch", *, fraction: float, generator: torch.Generator) -> "SceneBatch":
    """Leave a level, a gradient and waves in the sky of some scenes.

    Parameters
    ----------
    batch : SceneBatch
        The scenes.
    fraction : float
        Share of them.
    generator : torch.Generator
        On their device.

    Returns
    -------
    SceneBatch
        Its noise factors, if it has any, count the waves.
    """
    n, _, n_y, n_x = batch.image.shape
    device = batch.image.device
    chosen = torch.rand(n, generator=generator, device=device) < fraction
    strength, width = torch.rand(2, n, generator=generator, device=device)
    strength, width = (
        low * (high / low) ** u for u, (low, high) in ((strength, _WAVES), (width, _WAVE_WIDTH))
    )
    offset, level, *slopes = torch.randn(4, n, generator=generator, device=device)
    along_y, along_x = (_flat(strength * _WAVE_SLOPE * slope) for slope in slopes)
    y = torch.linspace(-0.5, 0.5, n_y, device=device)[:, None]
    x = torch.linspace(-0.5, 0.5, n_x, device=device)
    sky = _flat(_SKY_LEVEL * offset + strength * _WAVE_LEVEL * level) + along_y * y + along_x * x
    sky = sky + _flat(strength) * _waves(width, n_y, n_x, generator)
    sky = torch.where(_flat(chosen), sky, 0.0)
    joined = replace(batch, image=batch.image + sky[:, None])
    if batch.noise_factors is None:
        return joined
    # Noise is as strong as white noise on the first scale, and from pixel to pixel less.
    pixels, waves = batch.noise_factors[:, :1] ** -2, strength[:, None] ** 2
    total = batch.noise_factors**2 * pixels + waves * wave_strengths(width)
    factors = (total / (pixels + waves)).sqrt()
    return replace(joined, noise_factors=torch.where(chosen[:, None], factors, batch.noise_factors))


def _waves(width: Tensor, n_y: int, n_x: int, generator: torch.Generator) -> Tensor:
    """White noise smoothed with a Gaussian of another width in every scene, of unit variance.

    That of an infinite sky: a scene holds a part of it, and less where waves are wide.
    """
    n, device, width = len(width), width.device, _flat(width)
    white = torch.randn(n, n_y, n_x, generator=generator, device=device)
    k_y = torch.fft.fftfreq(n_y, device=device)[:, None]
    k_x = torch.fft.rfftfreq(n_x, device=device)
    kept = torch.exp(-2 * (math.pi * width) ** 2 * (k_y**2 + k_x**2))
    smooth = torch.fft.irfft2(torch.fft.rfft2(white) * kept, s=(n_y, n_x))
    return smooth * 2 * math.sqrt(math.pi) * width


def seam(batch: "SceneBatch", *, fraction: float, generator: torch.Generator) -> "SceneBatch":
    """Join two parts of a mosaic in some scenes: sky level and noise jump, and nobody says so.

    Parameters
    ----------
    batch : SceneBatch
        The scenes.
    fraction : float
        Share of them.
    generator : torch.Generator
        On their device.

    Returns
    -------
    SceneBatch
        Along a row or a column level and noise change; on half of the seams a narrow band has
        another level and noise still.
    """
    n, _, n_y, n_x = batch.image.shape
    device = batch.image.device

    def uniform() -> Tensor:
        return torch.rand(n, 1, 1, generator=generator, device=device)

    def normal() -> Tensor:
        return torch.randn(n, 1, 1, generator=generator, device=device)

    chosen, along_y = uniform() < fraction, uniform() < 0.5
    y = torch.arange(n_y, device=device)[:, None].expand(n_y, n_x)
    x = torch.arange(n_x, device=device).expand(n_y, n_x)
    beyond = torch.where(along_y, y - n_y * uniform(), x - n_x * uniform())
    banded, width = uniform() < 0.5, 1 + 7 * uniform()
    band = banded & (beyond.abs() < width / 2)
    level = torch.where(beyond > 0, _SEAM_LEVEL * normal(), 0.0)
    level = torch.where(band, _BAND_LEVEL * normal(), level)
    factor = torch.where(beyond > 0, (_SEAM_NOISE * normal()).exp(), 1.0)
    factor = torch.where(band, (uniform() * math.log(_BAND_NOISE)).exp(), factor)
    image, light = batch.image[:, 0], batch.noiseless
    joined = light + (image - light) * factor + level
    return replace(batch, image=torch.where(chosen, joined, image)[:, None])


def damage(batch: "SceneBatch", *, fraction: float, generator: torch.Generator) -> "SceneBatch":
    """Put cosmic rays, hot pixels, trails, saturation and masked patches into some scenes.

    Parameters
    ----------
    batch : SceneBatch
        The scenes.
    fraction : float
        Share of them that is damaged.
    generator : torch.Generator
        On their device.

    Returns
    -------
    SceneBatch
        Masked pixels are 0 and of the class :data:`IGNORED`; a source whose centre is masked
        has no footprint left to be looked for.
    """
    device, (_, n_bands, _, size) = batch.image.device, batch.image.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    def log_uniform(low: float, high: float, n: int) -> Tensor:
        return low * (high / low) ** uniform(n)

    def some(mean: float) -> Tensor:
        """The scene of each of a few for every damaged one."""
        counts = torch.poisson(torch.full((len(chosen),), mean, device=device), generator)
        return chosen.repeat_interleave(counts.long())

    def lines(half: Tensor, width: Tensor) -> Tensor:
        """Anywhere, in any direction, (line, y, x)."""
        place, turn = uniform(2, len(half)) * size, uniform(len(half)) * math.pi
        return _lines(place, turn, half, width, batch.image.shape[-2:])

    chosen = (uniform(len(batch.image)) < fraction).nonzero().ravel()
    image = _saturate(
        batch, chosen[uniform(len(chosen)) < 0.4], log_uniform(100, 3000, len(batch.image)),
        0.5 * math.pi * uniform(len(batch.image)),
    )  # fmt: skip
    rays, satellites = some(2.0), chosen[uniform(len(chosen)) < 0.08]
    light = [
        _flat(log_uniform(5, 500, len(rays)))
        * lines(log_uniform(0.3, 15, len(rays)), 0.5 * uniform(len(rays))),
        _flat(log_uniform(1, 20, len(satellites)))
        * lines(satellites.new_full((len(satellites),), 4 * size), 3 * uniform(len(satellites))),
    ]
    hit = torch.cat([rays, satellites])
    image.index_add_(0, hit, torch.cat(light)[:, None].expand(-1, n_bands, -1, -1))
    hot, bands = some(2.0)[:, None], torch.arange(n_bands, device=device)
    y, x = (uniform(2, len(hot), 1) * size).long()
    image.index_put_((hot, bands, y, x), (1.5 + 4 * uniform(len(hot), 1)).exp(), accumulate=True)
    bad = chosen[uniform(len(chosen)) < 0.1]  # a column each
    column = (uniform(len(bad)) * size).long()
    image[bad, :, :, column] += _flat((2 * uniform(len(bad)) - 1) * 20)

    masked = chosen[uniform(len(chosen)) < 0.3]
    patch = lines(log_uniform(0.5, 60, len(masked)), log_uniform(0.5, 12, len(masked))) > 0.5
    hidden = torch.zeros_like(batch.classes, dtype=torch.bool).index_copy(0, masked, patch)
    sources = batch.sources
    row, column = (v.round().clamp(0, size - 1).long() for v in (sources.y, sources.x))
    lost = hidden[sources.scene, row, column]
    return replace(
        batch,
        image=image.masked_fill(hidden[:, None], 0),
        classes=batch.classes.masked_fill(hidden, IGNORED),
        sources=replace(sources, n_pixels=sources.n_pixels.masked_fill(lost, 0)),
    )


def _lines(
    place: Tensor, turn: Tensor, half: Tensor, width: Tensor, shape_yx: tuple[int, ...]
) -> Tensor:
    """1 on segments about points (y, x), soft at the edge; (line, y, x)."""
    dy, dx = _from(place, shape_yx)
    sine, cosine = _flat(turn.sin()), _flat(turn.cos())
    along, across = dy * sine + dx * cosine, dy * cosine - dx * sine
    beyond = torch.hypot((along.abs() - _flat(half)).clamp(min=0), across)
    return (_flat(width) + 0.5 - beyond).clamp(0, 1)


def _from(place: Tensor, shape_yx: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Offsets of pixels from points (y, x): (point, y, 1) and (point, 1, x)."""
    row, column = (torch.arange(n, device=place.device).float() for n in shape_yx)
    return row[:, None] - _flat(place[0]), column - _flat(place[1])


def _saturate(batch: "SceneBatch", scenes: Tensor, level: Tensor, turn: Tensor) -> Tensor:
    """Images, clipped in some scenes; bright stars bleed along columns there and have spikes.

    ``level`` and ``turn``, the orientation of the telescope, are given for every scene.
    """
    image = batch.image.clone()
    clipped = torch.zeros_like(level, dtype=torch.bool)
    clipped[scenes] = True
    stars = batch.sources.keep(batch.sources.is_star & clipped[batch.sources.scene])
    # Of a spike, a hundredth of the light over a length that goes with its root.
    half = (0.5 * (stars.flux / 10).sqrt()).clamp(max=60)
    for quarter in (0.0, 0.5 * math.pi):
        own = stars.keep(half > 4)
        place, reach = torch.stack([own.y, own.x]), half[half > 4]
        thin = torch.full_like(reach, 0.3)
        spike = _lines(place, turn[own.scene] + quarter, reach, thin, image.shape[-2:])
        fall = torch.exp(-torch.hypot(*_from(place, image.shape[-2:])) / (0.4 * _flat(reach)))
        spike = _flat(0.005 * own.flux / reach) * spike * fall
        image.index_add_(0, own.scene, spike[:, None].expand(-1, image.shape[1], -1, -1))
    bleeds = stars.keep(stars.flux > 30 * level[stars.scene])
    top = level[bleeds.scene]
    length = (bleeds.flux / (30 * top)).clamp(max=60)
    # A little over half a pixel: rounding must not keep the column from the level.
    upwards, thin = torch.full_like(length, 0.5 * math.pi), torch.full_like(length, 0.501)
    place = torch.stack([bleeds.y, bleeds.x])
    bled = _flat(top) * _lines(place, upwards, length, thin, image.shape[-2:])
    bled = bled[:, None].expand(-1, image.shape[1], -1, -1)
    where = bleeds.scene[:, None, None, None].expand_as(bled)
    image.scatter_reduce_(0, where, bled, "amax")
    limit = torch.where(clipped, level, torch.inf)
    return torch.minimum(image, limit[:, None, None, None])


def _flat(values: Tensor) -> Tensor:
    """(n,) → (n, 1, 1)."""
    return values[:, None, None]
