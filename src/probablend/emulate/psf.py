"""The PSF of a survey, as a GalSim profile and as an image."""

from functools import cache
from pathlib import Path

import galsim
import numpy as np
from astropy.io import fits
from astropy.stats import gaussian_sigma_to_fwhm
from scipy.optimize import brentq
from scipy.special import j0

from probablend.psf import (
    PSF,
    SIDE,
    clean_psf,
    fwhm_before_pixel,
    interpolated,
    light_in_wings,
    read_psf,
)
from probablend.survey import Survey

__all__ = ["moffat_beta", "psf_image", "psf_images_in", "psf_profile", "survey_psf"]

_BETAS = (1.8, 10.0)  # of the Moffat profiles that are like others
_FREQUENCIES = 200  # of an Airy pattern, where its width is measured
_LEAST_PASSED = 0.05  # by pixels, of a frequency that is made up for
_FINER, _REACH = 6, 12  # points per FWHM, and FWHM to each side, where wings are measured


def psf_profile(survey: Survey) -> galsim.GSObject:
    """PSF of unit flux, in arcseconds.

    Parameters
    ----------
    survey : Survey
        Gives the profile and its FWHM.

    Returns
    -------
    galsim.GSObject
        The PSF before the pixel response, which GalSim adds when it draws.
    """
    fwhm = float(survey.psf_fwhm.to_value("arcsec"))
    match survey.psf_profile:
        case "gaussian":
            psf = galsim.Gaussian(fwhm=fwhm)
        case "moffat":
            psf = galsim.Moffat(beta=survey.psf_beta, fwhm=fwhm)
        case "kolmogorov":
            psf = galsim.Kolmogorov(fwhm=fwhm)
        case "image":
            psf = _from_image(survey.psf_file, fwhm)
        case _:
            psf = _airy(survey, fwhm)
    if survey.psf_g1 or survey.psf_g2:
        psf = psf.shear(g1=survey.psf_g1, g2=survey.psf_g2)
    return psf


def psf_images_in(path: str | Path) -> list[str]:
    """Names of all images of a FITS file, as :class:`~probablend.survey.Survey` takes them.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds no image.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"PSF file {path} does not exist")
    try:
        with fits.open(path) as hdus:
            names = [f"{path}[{k}]" for k, hdu in enumerate(hdus)
                     if hdu.is_image and hdu.header.get("NAXIS") == 2]  # fmt: skip
    except OSError as error:
        raise ValueError(f"{path} is not a FITS file: {error}") from error
    if not names:
        raise ValueError(f"{path} holds no two-dimensional image")
    return names


def _from_image(name: str, fwhm: float) -> galsim.GSObject:
    """A PSF that was measured or modelled, stretched to ``fwhm`` (arcsec)."""
    image, sampling = read_psf(name)
    image = clean_psf(image, f"psf_file {name}")
    pixel = 1 / sampling
    psf = interpolated(_before_pixels(image, pixel))
    return psf.shift(-psf.centroid).dilate(fwhm / fwhm_before_pixel([image], pixel=pixel))


def _before_pixels(image: np.ndarray, pixel: float) -> np.ndarray:
    """A PSF without the response of the pixels that its light was gathered in.

    Drawing puts in those of the survey. A Gaussian as wide as they are has no zeros to divide by,
    and is like them where a PSF has light; where it has passed nothing there is only noise.
    """
    y, x = (2 * np.pi * np.fft.fftfreq(n) for n in image.shape)
    passed = np.exp(-(pixel**2) / 24 * (y[:, None] ** 2 + x**2))
    inverse = passed * (1 + _LEAST_PASSED**2) / (passed**2 + _LEAST_PASSED**2)
    return np.fft.ifft2(np.fft.fft2(image) * inverse).real


def _airy(survey: Survey, fwhm: float) -> galsim.GSObject:
    """Diffraction pattern, widened by jitter and charge diffusion to ``fwhm`` (arcsec)."""
    assert survey.diffraction_scale is not None
    # 1 % of the light in the far rings may fall outside the folded image: the rings of an
    # Airy pattern fall so slowly that the default 0.5 % makes every stamp huge.
    params = galsim.GSParams(folding_threshold=1e-2)
    scale = float(survey.diffraction_scale.to_value("arcsec"))
    airy = galsim.Airy(lam_over_diam=scale, obscuration=survey.obscuration, gsparams=params)
    # A mirror passes no frequency beyond that of its diameter, and much jitter fewer.
    highest = min(2 * np.pi / scale, 20 / fwhm)
    k = highest * (np.arange(_FREQUENCIES) + 0.5) / _FREQUENCIES
    passed = np.array([airy.kValue(at, 0).real for at in k]) * k

    def over_half(sigma: float, width: float) -> float:
        """Light at half of ``width`` from the middle, less half of that in the middle."""
        seen = passed * np.exp(-0.5 * (k * sigma) ** 2)
        return float((seen * (j0(0.5 * k * width) - 0.5)).sum())

    if over_half(0.0, fwhm) >= 0:  # quoted FWHM below the diffraction limit: keep the shape
        own = brentq(lambda width: over_half(0.0, width), fwhm, 2 * scale)
        return airy.dilate(fwhm / own)
    sigma = brentq(lambda sigma: over_half(sigma, fwhm), 0.0, fwhm / gaussian_sigma_to_fwhm)
    jitter = galsim.Gaussian(sigma=sigma, gsparams=params)
    return galsim.Convolve(airy, jitter, gsparams=params)


def psf_image(survey: Survey, size: int = 33) -> np.ndarray:
    """PSF as seen by the detector, centred, of unit sum.

    Parameters
    ----------
    survey : Survey
        Gives the profile and the pixel scale.
    size : int
        Side in pixels; odd.

    Returns
    -------
    ndarray, shape (size, size), float32
        The pixel response included.

    Raises
    ------
    ValueError
        If ``size`` is even or not positive.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size must be odd and positive; got {size}")
    image = psf_profile(survey).drawImage(nx=size, ny=size, scale=survey.scale).array
    return (image / image.sum()).astype(np.float32)


def moffat_beta(wings: float) -> float:
    """β of the Moffat profile that has as much light in its wings.

    Parameters
    ----------
    wings : float
        First of the numbers of :func:`~probablend.psf.light_in_wings`.

    Returns
    -------
    float
        From 1.8, with the strongest wings, to 10, with next to none.
    """

    def off(beta: float) -> float:
        drawn = galsim.Moffat(beta=beta, fwhm=_FINER).drawImage(
            nx=2 * _FINER * _REACH + 1, ny=2 * _FINER * _REACH + 1, scale=1.0, method="no_pixel"
        )  # fmt: skip
        return float(light_in_wings(drawn.array, _FINER, total=1.0, pixel=0.0)[0]) - wings

    least, most = _BETAS
    if off(least) > 0:
        return least
    return most if off(most) < 0 else float(brentq(off, least, most, xtol=1e-3))


@cache
def survey_psf(survey: Survey) -> PSF:
    """What the field model is told of the PSF of a survey."""
    fwhm = float(survey.psf_fwhm.to_value("arcsec"))
    side = 2 * _FINER * _REACH + 1
    drawn = psf_profile(survey).drawImage(
        nx=side, ny=side, scale=fwhm / _FINER, method="no_pixel"
    )  # fmt: skip
    wings = light_in_wings(drawn.array, _FINER, total=1.0, pixel=0.0)
    seen = psf_image(survey, SIDE)
    return PSF(fwhm=survey.psf_fwhm_pixels, wings=tuple(wings.tolist()), image=seen)
