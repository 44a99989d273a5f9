"""What may be given as an image: a file, an array, a tensor, an HDU, an NDData.

:func:`as_image` turns any of them into :class:`~probablend.images.ImageData`, with the noise, the
mask, the coordinates and the zero point that come along. What the caller says wins.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import astropy.units as u
import numpy as np
import torch
from astropy.io import fits
from astropy.nddata import (
    InverseVariance,
    NDData,
    StdDevUncertainty,
    VarianceUncertainty,
)
from astropy.nddata.utils import Cutout2D
from astropy.wcs import WCS

from probablend.headers import celestial_wcs, header_numbers, unit_zeropoint
from probablend.images import ImageData, as_plane, read_image

__all__ = ["ImageLike", "as_image"]

log = logging.getLogger(__name__)

_HDUS = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
ImageLike: TypeAlias = (
    np.ndarray
    | torch.Tensor
    | str
    | Path
    | ImageData
    | NDData
    | Cutout2D
    | fits.PrimaryHDU
    | fits.ImageHDU
    | fits.CompImageHDU
)


def as_image(
    image: ImageLike,
    *,
    rms: Any = None,
    mask: Any = None,
    wcs: WCS | fits.Header | None = None,
    zeropoint: float | None = None,
    saturation: float | None = None,
) -> ImageData:
    """An image of any kind as the package knows it.

    Parameters
    ----------
    image : path, ndarray, Quantity, Tensor, ImageHDU, NDData (CCDData), Cutout2D or ImageData
        Of shape (y, x). Of a Quantity its unit is used; of an NDData its mask, uncertainty, WCS,
        unit and zero point; of an HDU its header, and not that of the file it is from.
    rms, mask, wcs, zeropoint, saturation
        As for :func:`~probablend.segment`; each wins over what ``image`` carries.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If there is no 2-D image in it.
    TypeError
        If it is something else.
    """
    opened = _open(image)
    if isinstance(rms, u.Quantity):
        unit = opened.unit or getattr(image, "unit", None)  # fluxes may have another one
        if unit is None and rms.unit != u.dimensionless_unscaled:
            raise ValueError(f"rms is in {rms.unit}; the image has no unit")
        rms = rms.to_value(unit or u.dimensionless_unscaled)
    for name, given in (("rms", rms), ("mask", mask)):
        if isinstance(given, str | Path):
            raise TypeError(f"{name} must be an array; got the name {str(given)!r}: read it first")
    if isinstance(wcs, fits.Header):
        wcs = celestial_wcs(wcs)
    said = {"rms": _plane(rms), "mask": _plane(mask), "wcs": wcs, "zeropoint": zeropoint,
            "saturation": saturation}  # fmt: skip
    return replace(opened, **{key: v for key, v in said.items() if v is not None})


def _open(image: ImageLike) -> ImageData:
    if isinstance(image, ImageData):
        return image
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, NDData):
        return _of_nddata(image)
    if isinstance(image, _HDUS):
        return _of_hdu(image)
    if isinstance(image, fits.HDUList | dict):
        raise TypeError(f"image must be one image; got {type(image).__name__}: choose an extension")
    if isinstance(image, u.Quantity):
        unit = image.unit
        return ImageData(
            data=_plane(image.value), unit=_additive(unit), zeropoint=unit_zeropoint(unit)
        )
    if isinstance(image, Cutout2D):
        wcs = image.wcs if image.wcs is not None and image.wcs.has_celestial else None
        return replace(_open(image.data), wcs=wcs, name="Cutout2D")
    return ImageData(data=_plane(image))


def _plane(values: Any) -> Any:
    """A stack of one plane as this plane; all else as it is."""
    values = _plain(values)
    return values[0] if np.ndim(values) == 3 and len(values) == 1 else values


def _plain(values: Any) -> Any:
    """A tensor as an array, wherever it lies; all else as it is."""
    if not isinstance(values, torch.Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _of_hdu(hdu: Any) -> ImageData:
    name = hdu.name or "HDU"
    if hdu.data is None:
        raise ValueError(f"{name} holds no image: choose another extension")
    wcs = celestial_wcs(hdu.header)
    return ImageData(
        data=as_plane(np.asarray(hdu.data), name),
        wcs=wcs,
        name=name,
        **header_numbers(hdu.header, wcs),
    )


def _of_nddata(image: NDData) -> ImageData:
    name = type(image).__name__
    wcs = _wcs(image)
    numbers = header_numbers(image.meta, wcs, image.unit)
    return ImageData(
        data=as_plane(np.asarray(image.data), name),
        wcs=wcs,
        name=name,
        rms=_plane(_rms(image)),
        mask=None if image.mask is None else _plane(np.broadcast_to(image.mask, image.data.shape)),
        unit=_additive(image.unit),
        **numbers,
    )


def _rms(image: NDData) -> np.ndarray | None:
    """Standard deviation in the unit of the image; an inverse variance of zero is missing."""
    kinds = (StdDevUncertainty, VarianceUncertainty, InverseVariance)
    if image.uncertainty is None:
        return None
    if not isinstance(image.uncertainty, kinds):
        kind = image.uncertainty.uncertainty_type
        log.warning("an uncertainty of type %s is not used: the noise is estimated", kind)
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = image.uncertainty.represent_as(StdDevUncertainty).quantity
    return noise.to_value(image.unit) if image.unit else noise.value


def _wcs(image: NDData) -> WCS | None:
    if image.wcs is not None and not isinstance(image.wcs, WCS):
        log.warning("coordinates of type %s are not used", type(image.wcs).__name__)
        return None
    return image.wcs if image.wcs is not None and image.wcs.has_celestial else None


def _additive(unit: u.UnitBase | None) -> u.UnitBase | None:
    """The unit, unless it is per solid angle: sums of such pixels have another."""
    return None if unit is None or u.rad in unit.decompose().bases else unit
