"""Real galaxies without the noise of their images.

A truth needs the galaxy alone: noise that stays in a stamp is light of no galaxy, on top of the
noise of the scene, and every speck of it above the threshold is footprint. A galaxy is taken for
its mean along ellipses, in which hardly any noise is left, and all that stands out of the noise
beside that: wavelet coefficients (isotropic undecimated transform and iterated reconstruction:
Starck, Murtagh & Bertero 2011, doi:10.1007/978-0-387-92920-0_34).
"""

import numpy as np
from scipy import ndimage

__all__ = ["denoised", "wavelets"]

_N_SCALES = 4  # the largest: 2⁴ pixels
_STANDS_OUT = 4.0  # standard deviations; of the finest details one more
_ITERATIONS = 5
_SPLINE = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
_WHITE = 0.0856  # of white noise, on the third scale, per 1 in each pixel
_FAINTEST = 2.0  # standard deviations, of a mean along an ellipse
_FEWEST = 4  # ellipses, of which a slope can be told
_PIXEL2 = 1 / 12  # pixels², second moment of a pixel


def wavelets(image: np.ndarray) -> np.ndarray:
    """Details from the finest to the coarsest scale, and what is left; their sum is the image.

    Parameters
    ----------
    image : ndarray, shape (y, x)

    Returns
    -------
    ndarray, shape (scale, y, x)
    """
    planes, smooth = [], np.asarray(image, dtype=float)
    for scale in range(_N_SCALES):
        kernel = np.zeros(4 * 2**scale + 1)
        kernel[:: 2**scale] = _SPLINE
        smoother = smooth
        for axis in (0, 1):
            smoother = ndimage.correlate1d(smoother, kernel, axis=axis, mode="constant")
        planes.append(smooth - smoother)
        smooth = smoother
    return np.stack([*planes, smooth])


def denoised(image: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """A galaxy without noise.

    Parameters
    ----------
    image : ndarray, shape (y, x)
        Background 0; the galaxy is the brightest there.
    noise : ndarray, shape (scale,)
        Standard deviation of the noise in each of :func:`wavelets`.

    Returns
    -------
    ndarray, shape (y, x), float32
        In one piece and nowhere negative; all zero if nothing stands out, or the galaxy is not in
        the middle half of the image.
    """
    noise = np.asarray(noise, dtype=float)
    galaxy = _brightest(_standing_out(image, noise, positive=True))
    if galaxy.any():
        off = np.subtract(ndimage.center_of_mass(galaxy), (np.array(image.shape) - 1) / 2)
        if np.any(np.abs(off) > np.array(image.shape) / 4):
            return np.zeros(image.shape, np.float32)
        smooth = _along_ellipses(image, galaxy, noise[2] / _WHITE)
        galaxy = _brightest(np.clip(smooth + _standing_out(image - smooth, noise), 0, None))
    return galaxy.astype(np.float32)


def _standing_out(image: np.ndarray, noise: np.ndarray, *, positive: bool = False) -> np.ndarray:
    """What has those wavelet coefficients of an image that are no noise."""
    least = _STANDS_OUT * noise
    least[0] += noise[0]
    planes = wavelets(image)
    kept = np.abs(planes) > least[:, None, None]
    found = np.zeros(image.shape)
    for _ in range(_ITERATIONS):
        found += ((planes - wavelets(found)) * kept).sum(axis=0)
        if positive:
            found = np.clip(found, 0, None)
    return found


def _along_ellipses(image: np.ndarray, galaxy: np.ndarray, white: float) -> np.ndarray:
    """Mean along the ellipses of a galaxy, falling outwards.

    Where the noise hides it, it goes on falling as it did.
    """
    weight = galaxy / galaxy.sum()
    y, x = np.indices(image.shape).astype(float)
    y, x = y - (weight * y).sum(), x - (weight * x).sum()
    xx, yy, xy = ((weight * square).sum() for square in (x * x, y * y, x * y))
    xx, yy = xx + _PIXEL2, yy + _PIXEL2
    square = (yy * x**2 - 2 * xy * x * y + xx * y**2) / np.sqrt(xx * yy - xy**2)
    radius = np.sqrt(np.clip(square, 0, None))  # of circles as large as the ellipses
    _, ring, n = np.unique(np.round(radius), return_inverse=True, return_counts=True)
    ring = ring.ravel()
    at, mean = np.bincount(ring, radius.ravel()) / n, np.bincount(ring, image.ravel()) / n
    hidden = mean <= _FAINTEST * white / np.sqrt(n)
    last = int(np.argmax(hidden)) if hidden.any() else len(n)
    if last < _FEWEST:
        return np.zeros(image.shape)
    at, ln_mean = at[:last], np.log(np.minimum.accumulate(mean[:last]))
    slope = np.polyfit(at[last // 2 :], ln_mean[last // 2 :], 1)[0]
    tail = ln_mean[-1] + min(slope, -1 / last) * (radius - at[-1])
    return np.exp(np.where(radius < at[-1], np.interp(radius, at, ln_mean), tail))


def _brightest(image: np.ndarray) -> np.ndarray:
    """The piece that has the most light; 0 elsewhere."""
    pieces, n = ndimage.label(image > 0)
    if not n:
        return image
    light = ndimage.sum_labels(image, pieces, np.arange(1, n + 1))
    return np.where(pieces == 1 + np.argmax(light), image, 0.0)
