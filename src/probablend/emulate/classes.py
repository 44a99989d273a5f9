"""Pixel classes: how many footprints cover a pixel.

The footprint of a source is the set of pixels where its noiseless, PSF-convolved image
exceeds ``FOOTPRINT_THRESHOLD`` times the sky noise. Footprints overlap: a pixel can belong
to several sources.
"""

from enum import IntEnum

import numpy as np

__all__ = ["FOOTPRINT_THRESHOLD", "N_CLASSES", "PixelClass", "class_entropy", "encode_classes"]

# In units of the sky noise per pixel: near the isophote that SExtractor reaches after its
# matched filter.
FOOTPRINT_THRESHOLD = 0.5


class PixelClass(IntEnum):
    """What a pixel of a class map says."""

    SKY = 0
    ONE = 1
    BLEND = 2


N_CLASSES = len(PixelClass)


def encode_classes(n_footprints: np.ndarray) -> np.ndarray:
    """Class map from the number of footprints that cover each pixel.

    Parameters
    ----------
    n_footprints : ndarray of int, shape (y, x)
        Number of footprints per pixel.

    Returns
    -------
    ndarray of uint8, shape (y, x)
        ``min(n_footprints, 2)``.
    """
    return np.minimum(n_footprints, PixelClass.BLEND).astype(np.uint8)


def class_entropy(p_galaxy: np.ndarray, p_blend: np.ndarray) -> np.ndarray:
    """Entropy of the pixel's class, nats: 0 is certain, ln 3 knows nothing.

    Parameters
    ----------
    p_galaxy, p_blend : ndarray, shape (y, x)
        Probabilities of at least one and at least two galaxies; NaN stays NaN.
    """
    entropy = np.zeros_like(p_galaxy)
    for p in (1 - p_galaxy, p_galaxy - p_blend, p_blend):
        clipped = np.clip(p, 1e-12, 1)
        entropy -= clipped * np.log(clipped)
    return entropy
