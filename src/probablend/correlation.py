"""How correlated the noise of an image is, on the scale of a source and on a larger one.

Drizzled and resampled images have noise that looks smaller from pixel to pixel than it is on the
scale of a source. A sky that was not quite subtracted, halos, and what is too faint to be seen
hide under the noise of a pixel, and show where many are summed.
"""

import numpy as np
from scipy import ndimage

__all__ = [
    "FAR",
    "NEAR",
    "WHITE",
    "correlation_factor",
    "empty_sky",
    "noise_factors",
    "roughness_factor",
]

NEAR = 1.0  # σ of a Gaussian like a PSF, pixels
WHITE = (1.0, 1.0)  # the factors of white noise
FAR = (4.0, 16.0)  # σ of two Gaussians, of which the difference is taken
_REACH = 4  # pixels
_ROUNDS = 5
_MIN_SKY = 500  # pixels from which correlations can be told
_BLOCK, _COARSE = 2, 4  # pixels
_COVERED = (0.5, 0.25)  # least share of sky under the two Gaussians


def noise_factors(signal: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Both: :func:`correlation_factor`, :func:`roughness_factor`."""
    sky = empty_sky(signal, mask)
    return _correlation(signal, sky), _roughness(signal, sky)


def correlation_factor(signal: np.ndarray, mask: np.ndarray) -> float:
    r"""How much stronger correlated noise is, over an area like a PSF, than white noise.

    With ρ the correlation of sky pixels at distance l, noise smoothed with a Gaussian of σ = 1
    pixel is :math:`\sqrt{\sum_l ρ(l) e^{-l^2/4}}` times as strong as if it were white (compare
    Casertano et al. 2000, AJ 120, 2747, appendix A).

    Parameters
    ----------
    signal : ndarray, shape (y, x)
        Background subtracted, of even noise.
    mask : ndarray of bool, shape (y, x)
        True = not used.

    Returns
    -------
    float
        At least 1.
    """
    return _correlation(signal, empty_sky(signal, mask))


def _correlation(signal: np.ndarray, sky: np.ndarray) -> float:
    if sky.sum() < _MIN_SKY:
        return 1.0
    noise = np.where(sky, signal - signal[sky].mean(), 0.0)
    total = 0.0
    for dy in range(_REACH + 1):
        for dx in range(-_REACH if dy else 0, _REACH + 1):  # the other half is the same
            first = (_part(dy), _part(dx))
            second = (_part(-dy), _part(-dx))
            n = np.count_nonzero(sky[first] & sky[second])
            covariance = (noise[first] * noise[second]).sum() / max(n, 1)
            twice = 2 if dy or dx else 1
            total += twice * covariance * np.exp(-(dy**2 + dx**2) / (4 * NEAR**2))
    variance = (noise**2).sum() / sky.sum()
    return max(1.0, float(np.sqrt(max(total / variance, 0.0)))) if variance > 0 else 1.0


def roughness_factor(signal: np.ndarray, mask: np.ndarray) -> float:
    """How much stronger noise is than white noise on the scale of a few PSFs.

    The sky smoothed with a Gaussian of σ = 4 pixels, less that of σ = 16: the wings of large
    galaxies are smooth and mostly drop out. Where sources are, there is no sky: the Gaussians are
    those of normalized convolution (Knutsson & Westin 1993), and white noise is counted under them.

    Parameters
    ----------
    signal, mask
        As for :func:`correlation_factor`.

    Returns
    -------
    float
        At least 1.
    """
    return _roughness(signal, empty_sky(signal, mask))


def _roughness(signal: np.ndarray, sky: np.ndarray) -> float:
    if sky.sum() < _MIN_SKY or not (spread := float(signal[sky].std())) > 0:
        return 1.0
    # Sums over blocks of pixels, and how many of them are sky: the Gaussians are much wider.
    noise = _sums(np.where(sky, (signal - signal[sky].mean()) / spread, 0.0))
    weight = _sums(sky)
    small, large = (width / _BLOCK for width in FAR)

    def smooth(values: np.ndarray, width: float) -> np.ndarray:
        return ndimage.gaussian_filter(values, width, mode="constant", truncate=3.0)

    under, around = smooth(weight, small), smooth(weight, large)
    whole, (least_small, least_large) = _BLOCK**2, _COVERED
    use = (weight > whole / 2) & (under > least_small * whole) & (around > least_large * whole)
    if use.sum() * whole < _MIN_SKY:
        return 1.0
    wave = smooth(noise, small)[use] / under[use] - smooth(noise, large)[use] / around[use]
    # The square of a Gaussian is one of σ/√2, the product of two is one too.
    product = 1 / (1 / small**2 + 1 / large**2)
    squares = [
        smooth(weight, width / np.sqrt(2))[use] / (4 * np.pi * width**2) for width in (small, large)
    ]
    both = smooth(weight, np.sqrt(product))[use] / (2 * np.pi * (small**2 + large**2))
    white = squares[0] / under[use] ** 2 + squares[1] / around[use] ** 2
    white -= 2 * both / (under[use] * around[use])
    return max(1.0, float(np.sqrt(np.mean(wave**2 / white, dtype=float))))


def empty_sky(signal: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pixels where nothing stands out, source or hole, however correlated the noise is.

    Parameters
    ----------
    signal, mask
        As for :func:`correlation_factor`.

    Returns
    -------
    ndarray of bool, shape (y, x)
    """
    if mask.all():
        return np.zeros(mask.shape, dtype=bool)
    filled = np.where(mask, np.median(signal[~mask]), signal)
    smooth = ndimage.gaussian_filter(filled, NEAR)
    usable = smooth[~mask]
    inside = usable
    for _ in range(_ROUNDS):
        level = np.median(inside)
        # Below the level there are no sources.
        limit = 3.5 * 1.4826 * np.median(level - usable[usable <= level])
        inside = usable[np.abs(usable - level) <= limit]
    odd = np.abs(smooth - level) > limit
    other = ndimage.maximum_filter(odd | mask, size=2 * _REACH + 1)
    return ~(other | _around_large(odd))


def _around_large(odd: np.ndarray) -> np.ndarray:
    """What lies as far out as what stands out is wide: the wings of large galaxies."""
    parts, _ = ndimage.label(odd)
    radius = np.sqrt(np.bincount(parts.ravel()) / np.pi)
    radius[0] = 0
    n_y, n_x = odd.shape
    missing = [(0, -n % _COARSE) for n in odd.shape]
    around = np.zeros([-(-n // _COARSE) for n in odd.shape], dtype=bool)
    size = 2.0 * _COARSE
    while (radius >= size).any():
        if (some := (radius >= size) & (radius < 2 * size)).any():
            blocks = np.pad(some[parts], missing).reshape(
                len(around), _COARSE, around.shape[1], _COARSE
            )
            away = ndimage.distance_transform_edt(~blocks.any(axis=(1, 3)))
            around |= away * _COARSE < size
        size *= 2
    return np.repeat(np.repeat(around, _COARSE, axis=0), _COARSE, axis=1)[:n_y, :n_x]


def _sums(values: np.ndarray) -> np.ndarray:
    """Sums over blocks; what is left over at the border is dropped."""
    n_y, n_x = (n // _BLOCK for n in values.shape)
    blocks = values[: n_y * _BLOCK, : n_x * _BLOCK].reshape(n_y, _BLOCK, n_x, _BLOCK)
    return blocks.sum(axis=(1, 3), dtype=np.float32)


def _part(shift: int) -> slice:
    """Rows (or columns) that have a partner at a distance."""
    return slice(max(shift, 0), min(shift, 0) or None)
