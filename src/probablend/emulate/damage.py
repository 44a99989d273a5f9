"""What real images have beside galaxies: damage, and sky that was not quite subtracted.

None of it changes the truth: a cosmic ray is no source, a spike no galaxy. What is masked has no
truth at all.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from probablend.emulate.compose import SceneBatch

__all__ = ["IGNORED", "damage", "seam", "tilt_sky"]

IGNORED = -100  # class of pixels without truth
_SKY_LEVEL, _SKY_SLOPE = 0.1, 0.15  # σ: of the level, and of what it changes across a scene
# What no background map follows: halos, scattered light, galaxies too faint to be seen. It hides
# under the noise of a pixel, and adds to that of an aperture.
_WAVES, _WAVE_WIDTH = (0.02, 0.2), (3.0, 16.0)  # σ; pixels

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
    """
    n, _, n_y, n_x = batch.image.shape
    device = batch.image.device
    chosen = torch.rand(n, generator=generator, device=device) < fraction
    level, along_y, along_x = torch.randn(3, n, generator=generator, device=device)
    y = torch.linspace(-0.5, 0.5, n_y, device=device)[:, None]
    x = torch.linspace(-0.5, 0.5, n_x, device=device)
    sky = _SKY_LEVEL * level[:, None, None]
    sky = sky + _SKY_SLOPE * (along_y[:, None, None] * y + along_x[:, None, None] * x)
    sky = sky + _waves(n, n_y, n_x, generator, device)
    sky = torch.where(chosen[:, None, None], sky, 0.0)
    return replace(batch, image=batch.image + sky[:, None])


def _waves(n: int, n_y: int, n_x: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """White noise smoothed with a Gaussian, of another width and strength in every scene."""
    strength, width = torch.rand(2, n, generator=generator, device=device)
    width, strength = (
        (low * (high / low) ** u)[:, None, None]
        for u, (low, high) in ((width, _WAVE_WIDTH), (strength, _WAVES))
    )
    white = torch.randn(n, n_y, n_x, generator=generator, device=device)
    k_y = torch.fft.fftfreq(n_y, device=device)[:, None]
    k_x = torch.fft.rfftfreq(n_x, device=device)
    kept = torch.exp(-2 * (math.pi * width) ** 2 * (k_y**2 + k_x**2))
    smooth = torch.fft.irfft2(torch.fft.rfft2(white) * kept, s=(n_y, n_x))
    return strength * smooth / smooth.std(dim=(1, 2), keepdim=True)


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
    image, classes = batch.image.clone(), batch.classes.clone()
    n_pixels = batch.sources.n_pixels.clone()
    device = image.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    def log_uniform(low: float, high: float) -> float:
        return math.exp(math.log(low) + float(uniform(1)) * math.log(high / low))

    size = image.shape[-1]
    row = torch.arange(image.shape[-2], device=device)[:, None].float()
    column = torch.arange(size, device=device).float()

    def line(y: float, x: float, angle: float, half: float, width: float) -> Tensor:
        """1 on a segment about a point, soft at the edge."""
        dy, dx = row - y, column - x
        along = dy * math.sin(angle) + dx * math.cos(angle)
        across = dy * math.cos(angle) - dx * math.sin(angle)
        beyond = torch.hypot((along.abs() - half).clamp(min=0), across)
        return (width + 0.5 - beyond).clamp(0, 1)

    for k in torch.nonzero(uniform(len(image)) < fraction).ravel().tolist():
        bands = image[k]
        if uniform(1) < 0.4:
            _saturate(batch, k, bands, log_uniform(100, 3000), line, float(uniform(1)))
        for _ in range(int(torch.poisson(torch.full((1,), 2.0, device=device), generator))):
            y, x, turn = (uniform(3) * torch.tensor([size, size, math.pi], device=device)).tolist()
            ray = line(y, x, turn, log_uniform(0.3, 15), 0.5 * float(uniform(1)))
            bands += log_uniform(5, 500) * ray
        n_hot = int(torch.poisson(torch.full((1,), 2.0, device=device), generator))
        at = (uniform(2, n_hot) * size).long()
        bands[:, at[0], at[1]] += torch.exp(1.5 + 4 * uniform(n_hot))
        if uniform(1) < 0.1:  # a bad column
            bands[..., int(uniform(1) * size)] += (2 * float(uniform(1)) - 1) * 20
        if uniform(1) < 0.08:  # a satellite
            y, x, turn = (uniform(3) * torch.tensor([size, size, math.pi], device=device)).tolist()
            bands += log_uniform(1, 20) * line(y, x, turn, 4 * size, 3 * float(uniform(1)))
        if uniform(1) < 0.3:
            y, x, turn = (uniform(3) * torch.tensor([size, size, math.pi], device=device)).tolist()
            hidden = line(y, x, turn, log_uniform(0.5, 60), log_uniform(0.5, 12)) > 0.5
            bands[:, hidden] = 0
            classes[k][hidden] = IGNORED
            own = batch.sources.scene == k
            y_in = batch.sources.y.round().clamp(0, size - 1).long()
            x_in = batch.sources.x.round().clamp(0, size - 1).long()
            n_pixels[own & hidden[y_in, x_in]] = 0
    return replace(
        batch, image=image, classes=classes, sources=replace(batch.sources, n_pixels=n_pixels)
    )


def _saturate(
    batch: "SceneBatch",
    k: int,
    bands: Tensor,
    level: float,
    line: Callable[..., Tensor],
    turn: float,
) -> None:
    """Clip scene ``k``; bright stars bleed along columns and have spikes. In place."""
    stars = batch.sources.keep(batch.sources.is_star & (batch.sources.scene == k))
    spikes = [0.5 * math.pi * (turn + j) for j in (0, 1)]  # one telescope, one orientation
    for y, x, flux in zip(*(v.tolist() for v in (stars.y, stars.x, stars.flux)), strict=True):
        # Of a spike, a hundredth of the light over a length that goes with its root.
        half = min(60.0, 0.5 * math.sqrt(flux / 10))
        if half > 4:
            for angle in spikes:
                away = line(y, x, angle, half, 0.3)
                bands += 0.005 * flux / half * away * _fall(bands, y, x, half)
        if flux > 30 * level:
            bleed = min(60.0, flux / (30 * level))
            bands.copy_(torch.maximum(bands, level * line(y, x, 0.5 * math.pi, bleed, 0.5)))
    bands.clamp_(max=level)


def _fall(bands: Tensor, y: float, x: float, half: float) -> Tensor:
    row = torch.arange(bands.shape[-2], device=bands.device)[:, None].float()
    column = torch.arange(bands.shape[-1], device=bands.device).float()
    return torch.exp(-torch.hypot(row - y, column - x) / (0.4 * half))
