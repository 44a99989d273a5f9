"""From probabilities to objects: integer label images.

Objects live where a pixel is more likely in a galaxy than not. Where several peaks share
such a region a watershed gives each its part. A peak counts when it stands out from the
saddle that joins it to a higher one by more than noise and fine structure can do.
"""

import numpy as np
from scipy import ndimage
from skimage.morphology import reconstruction
from skimage.segmentation import watershed

__all__ = ["find_objects"]

MIN_PIXELS = 5
# Height of a peak above its saddle, in units of the noise of the smoothed image ...
_PROMINENCE = 2.5
# ... to which every unit of signal adds this much: spiral arms and shot noise grow with flux.
_CONTRAST = 0.02


def find_objects(
    p_galaxy: np.ndarray,
    signal: np.ndarray,
    *,
    smoothing: float = 1.0,
) -> np.ndarray:
    """Label objects.

    Parameters
    ----------
    p_galaxy : ndarray, shape (y, x)
        Probability that a pixel is in a galaxy; NaN where masked.
    signal : ndarray, shape (y, x)
        Image in units of the noise.
    smoothing : float
        Width (σ) of the Gaussian that smooths the image before peaks are sought, pixels.

    Returns
    -------
    ndarray of int32, shape (y, x)
        0 = background, 1…N, from the lowest row up.
    """
    inside = np.nan_to_num(p_galaxy) > 0.5
    regions, n_regions = ndimage.label(inside, structure=np.ones((3, 3)))
    smooth = ndimage.gaussian_filter(signal, smoothing, mode="nearest")
    noise = float(1 / (2 * np.sqrt(np.pi) * smoothing))  # of the smoothed image, for white noise
    # In v the noise is 1 everywhere: dv = ds / (noise + contrast · s).
    height = np.log1p(_CONTRAST * np.clip(smooth, 0, None) / noise) / _CONTRAST
    labels = np.zeros(inside.shape, dtype=np.int32)
    n_labels = 0
    # Most regions have one peak and need no watershed.
    peaks = inside & (height == ndimage.maximum_filter(height, size=3))
    n_peaks = np.bincount(regions[peaks], minlength=n_regions + 1)
    for region, box in enumerate(ndimage.find_objects(regions), start=1):
        own = regions[box] == region
        parts = own.astype(np.int32)
        if n_peaks[region] > 1:
            parts = _split(height[box], own)
        sizes = np.bincount(parts.ravel())
        keep = np.flatnonzero(sizes[1:] >= MIN_PIXELS) + 1
        number = np.zeros(len(sizes), dtype=np.int32)
        number[keep] = n_labels + 1 + np.arange(len(keep))
        n_labels += len(keep)
        labels[box] += number[parts]  # regions do not overlap, boxes may
    return labels


def _split(height: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Parts of one region, one per prominent peak: 0 outside, 1…n."""
    floor = float(height[own].min()) - 2 * _PROMINENCE
    surface = np.pad(np.where(own, height, floor), 1, constant_values=floor)
    # Floods up to a prominence below each peak: what is left over is the domes that are high
    # enough (Vincent 1993, h-domes).
    flooded = reconstruction(surface - _PROMINENCE, surface)
    domes = (surface - flooded)[1:-1, 1:-1] >= _PROMINENCE * (1 - 1e-5)
    markers, n_markers = ndimage.label(domes & own, structure=np.ones((3, 3)))
    if n_markers < 2:
        return own.astype(np.int32)
    return watershed(-height, markers, mask=own).astype(np.int32)
