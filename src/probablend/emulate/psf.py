"""The PSF of a survey, as a GalSim profile and as an image."""

from functools import cache
from pathlib import Path

import galsim
import numpy as np
from astropy.io import fits
from astropy.stats import gaussian_sigma_to_fwhm
from scipy.optimize import brentq

from probablend.psf import (
    PSF,
    SIDE,
    clean_psf,
    half_maximum_width,
    interpolated,
    light_in_wings,
    read_psf,
)
from probablend.survey import Survey

__all__ = ["moffat_beta", "psf_image", "psf_images_in", "psf_profile", "survey_psf"]

_BETAS = (1.8, 10.0)  # of the Moffat profiles that are like others
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
    image = clean_psf(read_psf(name)[0], f"psf_file {name}")
    psf = interpolated(image)
    return psf.shift(-psf.centroid).dilate(fwhm / half_maximum_width(image))


def _airy(survey: Survey, fwhm: float) -> galsim.GSObject:
    """Diffraction pattern, widened by jitter and charge diffusion to ``fwhm`` (arcsec)."""
    assert survey.diffraction_scale is not None
    # 1 % of the light in the far rings may fall outside the folded image: the rings of an
    # Airy pattern fall so slowly that the default 0.5 % makes every stamp huge.
    params = galsim.GSParams(folding_threshold=1e-2)
    airy = galsim.Airy(
        lam_over_diam=float(survey.diffraction_scale.to_value("arcsec")),
        obscuration=survey.obscuration,
        gsparams=params,
    )
    half, width = 0.5 * airy.xValue(0, 0), survey.diffraction_scale.to_value("arcsec")
    # The first zero lies beyond 0.9 λ/D for any obscuration.
    radius = brentq(lambda r: airy.xValue(r, 0) - half, 0.1 * width, 0.9 * width)
    excess = fwhm**2 - (2 * radius) ** 2
    if excess <= 0:  # quoted FWHM below the diffraction limit: keep the shape, take the width
        return airy.dilate(fwhm / (2 * radius))
    # Widths of an Airy core and a Gaussian add in quadrature to about 4 %, if the obscuration is
    # not large.
    jitter = galsim.Gaussian(sigma=float(np.sqrt(excess)) / gaussian_sigma_to_fwhm, gsparams=params)
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
