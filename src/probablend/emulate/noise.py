"""Noise in an emulated exposure.

A noiseless scene holds expected counts per pixel. :func:`add_noise` draws one exposure of
it. The same generator state gives the same exposure, bit for bit.
"""

import numpy as np

from probablend.survey import Survey

__all__ = ["add_noise", "noise_rms"]


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


def add_noise(
    scene: np.ndarray,
    survey: Survey,
    *,
    generator: np.random.Generator,
    carried_variance: np.ndarray | float = 0.0,
) -> np.ndarray:
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
    carried_variance : ndarray or float
        Variance that ``scene`` already has where it was cut from real images, counts²; only
        what is missing is added.

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
    missing = np.clip(noise_rms(scene, survey) ** 2 - carried_variance, 0, None)
    return (scene + np.sqrt(missing) * draw).astype(np.float32)
