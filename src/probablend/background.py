"""Background and noise of an image that says nothing of them."""

import numpy as np
import sep
from astropy.stats import sigma_clipped_stats
from scipy import ndimage

from probablend.correlation import empty_sky

__all__ = [
    "MAX_SIGNAL",
    "estimate_sky",
    "level_of_empty_pixels",
    "noise_of_sky",
    "sky_between_sources",
]

MAX_SIGNAL = 1e10  # beyond this many times the noise a pixel is damage, not light
# Boxes of the background mesh; smaller images get one constant.
_BOX = 128
# Noise that is estimated is a map where it changes by more than this; where nothing was recorded it
# is not zero.
_NOISE_TOLERANCE, _LEAST_OF_TYPICAL = 0.04, 0.1
_BOXES = 9  # images with fewer have one noise
_LEAST_OF_SPREAD = 0.05  # of quantised pixels hardly any scatter may be left
_LEAST_KNOWN, _UNEVEN = 0.1, 0.25  # share of a box, change of the noise
_CLIPPED = 0.9866  # standard deviation of a normal distribution that is clipped at 3 σ
_MIN_SKY = 500  # pixels
# Pixels are empty if nothing within so many stands out of the noise, smoothed with a Gaussian.
_SMOOTH, _STANDS_OUT, _GROWN = 1.5, 3.0, 4  # σ of it, pixels; its noise; pixels
# A high sky hides more peaks of the noise; σ beyond which a pixel is damage.
_ROUNDS, _MOST = 3, 5.0
# A map of noise: pixels of its median; with how many times that a pixel keeps its own, if light is
# not the reason: less than so many times its noise.
_MEDIAN, _OWN, _OWN_LIGHT = 5, 2.0, 5.0


def estimate_sky(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray | float, float]:
    """Background and noise, from SExtractor's estimator.

    Parameters
    ----------
    image : ndarray, shape (y, x)
        Pixels, finite.
    mask : ndarray of bool, shape (y, x)
        True = not used.

    Returns
    -------
    level : ndarray, shape (y, x), or float
        Background, image units.
    spread : float
        Noise per pixel, image units.
    """
    # sep takes boxes that are half full; without any it says that the noise is 1.
    n_y, n_x = (n // _BOX * _BOX for n in image.shape)
    boxes = ~mask[:n_y, :n_x].reshape(n_y // _BOX, _BOX, n_x // _BOX, _BOX)
    if min(image.shape) < 2 * _BOX or boxes.mean(axis=(1, 3)).max() < 0.6:
        # In double precision: images in physical units are as small as 1e-23.
        _, median, spread = sigma_clipped_stats(
            image.astype(float), mask=mask, sigma=3, maxiters=10
        )
        return float(median), float(spread)
    mesh = sep.Background(image, mask=mask, bw=_BOX, bh=_BOX, fw=3, fh=3)
    return mesh.back(), float(mesh.globalrms)


def sky_between_sources(
    image: np.ndarray, mask: np.ndarray, level: np.ndarray | float, spread: float
) -> tuple[np.ndarray | float, np.ndarray | float] | None:
    """Background and noise (maps or constants) of the pixels where no source stands out.

    In crowds SExtractor's estimator alone finds a tenth too much of both.

    Parameters
    ----------
    image, mask
        As for :func:`estimate_sky`.
    level, spread
        What it returned.

    Returns
    -------
    (level, noise) or None
        Image units; None if too little of the sky is seen.
    """
    if not (np.isfinite(spread) and spread > 0):
        return None
    # In units of the noise: an image in physical ones is as small as 1e-23.
    with np.errstate(over="ignore"):
        signal = np.clip((image - level) / spread, -MAX_SIGNAL, MAX_SIGNAL).astype(np.float32)
    signal[mask] = 0
    other = ~empty_sky(signal / _relative_noise(signal, mask), mask)
    n_y, n_x = (n // _BOX for n in image.shape)
    if n_y * n_x < _BOXES or min(n_y, n_x) < 2:
        sky = signal[~other]
        if sky.size < _MIN_SKY:
            return None
        _, median, noise = sigma_clipped_stats(sky.astype(float), sigma=3, maxiters=10)
        # What few boxes leave of a gradient is no level.
        level = level if isinstance(level, np.ndarray) else level + float(median) * spread
        return (level, float(noise / _CLIPPED * spread)) if noise > _LEAST_OF_SPREAD else None
    boxes = other[: n_y * _BOX, : n_x * _BOX].reshape(n_y, _BOX, n_x, _BOX).mean(axis=(1, 3))
    if np.mean(boxes < 0.5) < 0.5:  # too few that sep would use
        return None
    mesh = sep.Background(signal, mask=other, bw=_BOX, bh=_BOX, fw=3, fh=3)
    noise = mesh.rms()
    low, typical, high = np.percentile(noise[::8, ::8], [2, 50, 98])
    if not typical > _LEAST_OF_SPREAD:
        return None
    level = level + mesh.back() * np.float32(spread)
    if high - low < 2 * _NOISE_TOLERANCE * typical:
        return level, float(mesh.globalrms) / _CLIPPED * spread
    least = np.float32(_LEAST_OF_TYPICAL * typical)
    return level, np.maximum(noise, least) * np.float32(spread / _CLIPPED)


def level_of_empty_pixels(signal: np.ndarray, mask: np.ndarray) -> float:
    """Level of the sky, in units of the noise, where no source is seen.

    On emulated skies of any density it is right to a hundredth or two of the noise: what galaxies
    too faint to be seen add is as much as is lost where peaks of the noise pass for sources.

    Parameters
    ----------
    signal : ndarray, shape (y, x)
        In units of the noise; 0 where masked. The noise may be correlated.
    mask : ndarray of bool, shape (y, x)
        True = not used.

    Returns
    -------
    float
        0 if hardly a pixel is empty.
    """
    level, size = 0.0, 2 * _GROWN + 1
    for _ in range(_ROUNDS):
        above = np.where(mask, 0, signal - np.float32(level)).clip(-_MOST, 1e4)
        smooth = ndimage.gaussian_filter(above, _SMOOTH, truncate=3)
        below = smooth[(smooth < 0) & ~mask]  # there are no sources
        if below.size < _MIN_SKY:
            return 0.0
        limit = _STANDS_OUT * 1.4826 * -np.median(below)
        empty = above[~(ndimage.maximum_filter(smooth > limit, size=size) | mask)]
        if empty.size < _MIN_SKY:
            return 0.0
        level += float(empty.clip(max=_MOST).mean(dtype=float))
    return level


def noise_of_sky(noise: np.ndarray, light: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """A map of noise without the photons of sources, and without its own pixel-to-pixel scatter.

    Pipelines count the photons of a source as noise, and what is divided by that loses the shape
    that it has. Under sources the noise is that of the nearest pixels without light, if lower.

    Parameters
    ----------
    noise : ndarray, shape (y, x)
        Per pixel.
    light : ndarray, shape (y, x)
        Image less its background, unit of the noise.
    bad : ndarray of bool, shape (y, x)
        True = not used, or without noise.

    Returns
    -------
    ndarray, shape (y, x), float32
        Positive everywhere: what is missing is as near by. A pixel, or a few, with far more noise
        than those around it keeps it.
    """
    whole = _filled(noise, bad | ~(noise > 0))
    even = ndimage.median_filter(whole, size=_MEDIAN)
    significant = np.where(bad, 0, light / whole)
    smooth = ndimage.gaussian_filter(significant, _SMOOTH, truncate=3)
    lit = ndimage.maximum_filter(smooth > 1, size=2 * _GROWN + 1)
    odd = (whole > _OWN * even) & (~lit | (significant < _OWN_LIGHT))
    if lit.any() and not lit.all():
        sky = ndimage.gaussian_filter(_filled(even, lit), _GROWN, truncate=3)
        even = np.where(lit, np.minimum(even, sky), even)
    return np.where(odd, whole, even).astype(np.float32)


def _filled(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Values, where they are missing those of the nearest pixel that has one."""
    if not missing.any():
        return values
    nearest = ndimage.distance_transform_edt(missing, return_distances=False, return_indices=True)
    return values[tuple(nearest)]


def _relative_noise(signal: np.ndarray, mask: np.ndarray) -> np.ndarray | np.float32:
    """Noise of each box over that of most, from differences of neighbours, which hardly see light.

    Of an image that is even but for what sources do: 1.
    """
    n_y, n_x = (n // _BOX for n in signal.shape)
    if n_y * n_x < _BOXES:
        return np.float32(1)
    steps = np.abs(np.diff(signal, axis=1, append=signal[:, -1:]))
    steps[mask | np.roll(mask, -1, axis=1)] = np.nan
    blocks = steps[: n_y * _BOX, : n_x * _BOX].reshape(n_y, _BOX, n_x, _BOX)
    boxes = blocks.swapaxes(1, 2).reshape(n_y, n_x, -1)
    known = np.isfinite(boxes).mean(axis=2) > _LEAST_KNOWN
    noise = np.ones((n_y, n_x), np.float32)
    noise[known] = np.nanmedian(boxes[known], axis=1)
    typical = np.median(noise[known]) if known.any() else 0
    if not typical > 0:
        return np.float32(1)
    noise = np.where(known, noise / typical, 1).clip(_LEAST_OF_TYPICAL).astype(np.float32)
    if noise.max() < 1 + _UNEVEN and noise.min() > 1 - _UNEVEN:
        return np.float32(1)
    missing = [(0, n - m * _BOX) for n, m in zip(signal.shape, (n_y, n_x), strict=True)]
    return np.pad(noise.repeat(_BOX, axis=0).repeat(_BOX, axis=1), missing, mode="edge")
