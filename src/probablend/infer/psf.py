"""FWHM of the PSF, from the image's own stars."""

import logging
import warnings

import numpy as np
from photutils.psf import fit_fwhm
from scipy import ndimage

__all__ = ["estimate_psf_fwhm"]

log = logging.getLogger(__name__)

_MIN_PEAK = 30.0  # signal to noise in the smoothed image: brighter peaks are measured
_SMOOTH_RMS = 1 / (2 * np.sqrt(np.pi))  # noise of the smoothed image
_MAX_STARS = 400
_FIT, _CORE = 9, 5  # pixels, sides of the fitted boxes
_SPIKE = 0.6  # share of the light of 3 × 3 pixels in the middle one
_MIN_FOUND = 8
_MIN_SHARED = 4  # sources, and
_SHARE = 0.01  # of all of them, whose widths agree
_SPREAD = 1.08  # to this factor
# A Gaussian fitted to a PSF with wings is a little too wide: 5 % for a Kolmogorov profile,
# 10 % for an undersampled Airy pattern.
_WINGS = 1.06
_REGION = 2048  # pixels: the middle of a large image is enough


def estimate_psf_fwhm(signal: np.ndarray, mask: np.ndarray) -> float | None:
    """FWHM of the PSF before the pixel, from the narrowest bright sources.

    Gaussians integrated over pixels are fitted to bright peaks. Stars are the narrowest
    sources and agree in width: the FWHM is the narrowest width that several of them share.

    Parameters
    ----------
    signal : ndarray, shape (y, x)
        Image in units of its noise.
    mask : ndarray of bool, shape (y, x)
        True = not used.

    Returns
    -------
    float or None
        Pixels; None if there are too few bright sources.
    """
    n_y, n_x = signal.shape
    top, left = max(0, (n_y - _REGION) // 2), max(0, (n_x - _REGION) // 2)
    box = (slice(top, top + _REGION), slice(left, left + _REGION))
    signal, mask = signal[box], mask[box]
    smooth = ndimage.gaussian_filter(signal, 1.0)
    peaks = (smooth == ndimage.maximum_filter(smooth, size=2 * _FIT + 1)) & (
        smooth > _MIN_PEAK * _SMOOTH_RMS
    )
    margin = _FIT // 2 + 1
    inner = np.zeros_like(peaks)
    inner[margin:-margin, margin:-margin] = True
    near_hole = ndimage.binary_dilation(mask, iterations=margin) if mask.any() else mask
    # A hot pixel holds all its light; of the narrowest PSF in use a pixel holds half.
    spike = signal > _SPIKE * 9 * ndimage.uniform_filter(signal, 3)
    y, x = np.nonzero(peaks & inner & ~near_hole & ~spike)
    if len(y) < _MIN_FOUND:
        return None
    order = np.argsort(-smooth[y, x], kind="stable")[:_MAX_STARS]
    at = list(zip(x[order], y[order], strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The core alone, where it is resolved: wings are not Gaussian.
        widths = fit_fwhm(signal, xypos=at, fit_shape=_FIT)
        core = fit_fwhm(signal, xypos=at, fit_shape=_CORE)
    widths = np.where(core < 0.6 * _CORE, core, widths)
    widths = np.sort(widths[np.isfinite(widths) & (widths > 0.5) & (widths < 2 * _FIT)])
    if len(widths) < _MIN_FOUND:
        return None
    # The narrowest width that several sources share: galaxies scatter, stars agree.
    least = max(_MIN_SHARED, round(_SHARE * len(widths)))
    upper = np.searchsorted(widths, widths * _SPREAD, side="right")
    crowded = np.flatnonzero(upper - np.arange(len(widths)) >= least)
    if not len(crowded):
        return None
    first = crowded[0]
    return float(np.median(widths[first : upper[first]])) / _WINGS
