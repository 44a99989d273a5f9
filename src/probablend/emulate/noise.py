"""Noise in an emulated exposure, white or correlated.

A noiseless scene holds expected counts per pixel. :func:`add_noise` draws one exposure of
it. The same generator state gives the same exposure, bit for bit. :func:`correlate` turns white
noise into that of an image that was drizzled or resampled.
"""

import math
from functools import cache

import galsim
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from probablend.correlation import FAR, NEAR
from probablend.survey import Survey

__all__ = [
    "acs_kernel",
    "add_noise",
    "box_kernels",
    "correlate",
    "draw_kernels",
    "gaussian_kernels",
    "lanczos_kernels",
    "noise_factors",
    "noise_rms",
    "wave_strengths",
]

_REACH = 4  # pixels on each side of a kernel
_GAUSSIAN_RANGE = (0.3, 1.0)  # σ, pixels
_BOX_RANGE = (0.6, 2.0)  # side of a drop, pixels
_FIR_TAPS = 40  # pixels around the middle of the correlation function that are looked at


def noise_rms(scene: np.ndarray, survey: Survey) -> np.ndarray:
    r"""Noise per pixel of an exposure of ``scene``.

    :math:`\sqrt{\sigma_\mathrm{sky}^2 + \max(s, 0) / g}` for gain :math:`g` (e⁻ per count).

    Parameters
    ----------
    scene : ndarray, shape (..., y, x)
        Expected counts above sky.
    survey : Survey
        Gives the sky noise and the gain.

    Returns
    -------
    ndarray, shape (..., y, x), float32
        Counts.
    """
    variance = survey.sky_rms**2 + np.clip(scene, 0, None) / survey.gain
    return np.sqrt(variance).astype(np.float32)


def add_noise(scene: np.ndarray, survey: Survey, *, generator: np.random.Generator) -> np.ndarray:
    """Draw one exposure of a noiseless scene.

    Gaussian in each pixel: with the sky levels of imaging surveys (tens of electrons and
    more) the Poisson law is Gaussian to well under the noise.

    Parameters
    ----------
    scene : ndarray, shape (..., y, x)
        Expected counts above sky.
    survey : Survey
        Gives the sky noise and the gain.
    generator : numpy.random.Generator
        The only source of randomness.

    Returns
    -------
    ndarray, shape (..., y, x), float32
        Observed counts, sky subtracted.

    Raises
    ------
    ValueError
        If a pixel of ``scene`` is not finite.

    References
    ----------
    Howell, S. B. 2006, Handbook of CCD Astronomy, ch. 4.
    """
    n_bad = int((~np.isfinite(scene)).sum())
    if n_bad:
        raise ValueError(f"scene must be finite; found {n_bad} pixels that are not")
    draw = generator.standard_normal(scene.shape, dtype=np.float32)
    return (scene + noise_rms(scene, survey) * draw).astype(np.float32)


def gaussian_kernels(width: Tensor) -> Tensor:
    """Gaussians of σ = ``width`` pixels, (scene,) → (scene, y, x)."""
    t = torch.arange(-_REACH, _REACH + 1, device=width.device, dtype=width.dtype)
    line = torch.exp(-0.5 * (t / width[:, None]) ** 2)
    return line[:, :, None] * line[:, None, :]


def box_kernels(side: Tensor, shift: Tensor) -> Tensor:
    """What drizzling leaves: square drops that fall into pixels.

    Parameters
    ----------
    side : Tensor, shape (scene,)
        Of a drop, pixels.
    shift : Tensor, shape (scene, 2)
        Where in a pixel it falls, (y, x), −0.5 to 0.5.

    Returns
    -------
    Tensor, shape (scene, y, x)
        The part of the drop in each pixel.
    """
    t = torch.arange(-_REACH, _REACH + 1, device=side.device, dtype=side.dtype)
    half = side[:, None, None] / 2
    low, high = shift[:, :, None] - half, shift[:, :, None] + half
    part = (torch.minimum(t + 0.5, high) - torch.maximum(t - 0.5, low)).clamp(min=0)
    return part[:, 0, :, None] * part[:, 1, None, :]


def lanczos_kernels(shift: Tensor) -> Tensor:
    """What interpolation with Lanczos-3 leaves, by a shift (y, x), (scene, 2) → (scene, y, x)."""
    t = torch.arange(-_REACH, _REACH + 1, device=shift.device, dtype=shift.dtype)
    t = t - shift[:, :, None]
    line = torch.where(t.abs() < 3, torch.sinc(t) * torch.sinc(t / 3), 0.0)
    return line[:, 0, :, None] * line[:, 1, None, :]


@cache
def acs_kernel() -> Tensor:
    """What turns white noise into that of the drizzled ACS images of COSMOS, (y, x).

    The symmetric square root of the correlation function that comes with GalSim, measured on
    blank sky (Leauthaud et al. 2007, ApJS 172, 219; Mandelbaum et al. 2014, ApJS 212, 5).
    """
    noise = galsim.getCOSMOSNoise()
    size = 2 * _FIR_TAPS + 1
    image = galsim.Image(size, size, scale=0.03)
    correlation = noise.drawImage(image).array.astype(float)
    power = np.fft.rfft2(np.fft.ifftshift(correlation)).real.clip(min=0)
    kernel = np.fft.fftshift(np.fft.irfft2(np.sqrt(power), s=correlation.shape))
    inner = slice(_FIR_TAPS - _REACH, _FIR_TAPS + _REACH + 1)
    return torch.from_numpy(kernel[inner, inner].astype(np.float32))


def draw_kernels(n: int, *, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """Kernels of correlated noise as survey images have it.

    A third each: Gaussians, as matching a PSF leaves them; what drizzling and resampling leave; the
    ACS images of COSMOS.

    Parameters
    ----------
    n : int
        How many.
    generator : torch.Generator
        On the device.
    device : torch.device or str
        Where to.

    Returns
    -------
    Tensor, shape (n, y, x)
        For :func:`correlate`.
    """
    kind, width, side, *shift = torch.rand(5, n, generator=generator, device=device)
    at = torch.stack(shift, dim=1) - 0.5

    def between(low_high: tuple[float, float], u: Tensor) -> Tensor:
        return low_high[0] + (low_high[1] - low_high[0]) * u

    gaussian = gaussian_kernels(between(_GAUSSIAN_RANGE, width))
    resampled = torch.where(
        (side < 0.7)[:, None, None],
        box_kernels(between(_BOX_RANGE, side / 0.7), at),
        lanczos_kernels(at),
    )
    kernels = torch.where((kind < 2 / 3)[:, None, None], resampled, acs_kernel().to(device))
    return torch.where((kind < 1 / 3)[:, None, None], gaussian, kernels)


def correlate(noise: Tensor, kernels: Tensor) -> Tensor:
    """Smooth white noise, and scale it to be as strong as before over a source.

    Parameters
    ----------
    noise : Tensor, shape (scene, y, x)
        White, of unit variance; it wraps around.
    kernels : Tensor, shape (scene, k, k)
        One for each; k odd.

    Returns
    -------
    Tensor, shape (scene, y, x)
        As strong as white noise under a Gaussian of σ = 1 pixel: the unit in which
        :func:`~probablend.correlation.correlation_factor` counts.
    """
    n, reach = len(noise), kernels.shape[-1] // 2
    _, near, _ = _strengths(kernels)
    kernels = kernels / near.sqrt()[:, None, None]
    padded = F.pad(noise[None], [reach] * 4, mode="circular")
    return F.conv2d(padded, kernels[:, None], groups=n)[0]


def noise_factors(kernels: Tensor) -> Tensor:
    """What :func:`~probablend.correlation.noise_factors` are for each kernel, (scene, 2), ≥ 1."""
    pixels, near, far = _strengths(kernels)
    return (torch.stack([near, far], dim=1) / pixels[:, None]).sqrt().clamp(min=1)


def wave_strengths(width: Tensor) -> Tensor:
    """Variance of smoothed waves over that of smoothed white noise of the same variance.

    Parameters
    ----------
    width : Tensor, shape (scene,)
        Of the Gaussian that makes waves of white noise, pixels.

    Returns
    -------
    Tensor, shape (scene, 2)
        On the two scales of :func:`~probablend.correlation.noise_factors`.
    """

    def passed(square: float) -> Tensor:  # what a Gaussian of this σ² leaves of the variance
        return width**2 / (width**2 + square)

    small, large = (side**2 for side in FAR)
    between = passed(small) + passed(large) - 2 * passed((small + large) / 2)
    white = (1 / small + 1 / large - 4 / (small + large)) / (4 * math.pi)
    return torch.stack([4 * math.pi * NEAR**2 * passed(NEAR**2), between / white], dim=1)


def _near(square: Tensor) -> Tensor:
    """How a correlation at a distance, squared, counts under a Gaussian."""
    return torch.exp(-square / (4 * NEAR**2))


def _far(square: Tensor) -> Tensor:
    """The same, under the difference of two."""

    def pair(variance: float) -> Tensor:
        return torch.exp(-square / (2 * variance)) / variance

    small, large = (side**2 for side in FAR)
    weight = pair(2 * small) + pair(2 * large) - 2 * pair(small + large)
    return weight / (1 / (2 * small) + 1 / (2 * large) - 2 / (small + large))


def _strengths(kernels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Variance of smoothed white noise from pixel to pixel, and on both scales, each (scene,)."""
    reach = kernels.shape[-1] - 1
    correlation = F.conv2d(kernels[None], kernels[:, None], padding=reach, groups=len(kernels))[0]
    t = torch.arange(-reach, reach + 1, device=kernels.device, dtype=kernels.dtype)
    square = t[:, None] ** 2 + t**2  # of each lag, (y, x)
    near, far = ((correlation * weight(square)).sum(dim=(1, 2)) for weight in (_near, _far))
    return correlation[:, reach, reach], near, far
