"""Reading images and preparing them: from a file to image / noise, with what is missing marked.

FITS is read as astropy reads it (compressed, scaled, any byte order); PNG and JPEG are
greyscale for show.
"""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS, FITSFixedWarning
from scipy import ndimage

from probablend.background import MAX_SIGNAL, estimate_sky, sky_between_sources
from probablend.correlation import correlation_factor, noise_factors
from probablend.zarrs import open_zarr

__all__ = [
    "ImageData",
    "ImageFile",
    "NothingToSegmentError",
    "PreparedImage",
    "as_plane",
    "celestial_wcs",
    "header_numbers",
    "masked_pixels",
    "number_or_map",
    "prepare_image",
    "read_image",
    "rms_of_variance",
    "rms_of_weight",
    "split_extension",
    "unit_zeropoint",
]

log = logging.getLogger(__name__)

_PICTURES = (".png", ".jpg", ".jpeg")
_REGION = 1024  # pixels in the middle that tell how correlated the noise is
_FILES_HELD = 4  # packed ones: an image, its noise, its mask and the widths of its PSF
_MOST_MASKED = 0.7  # share of them
# Noise that is given, over the scatter of the pixels: crowds make that larger, drizzling smaller.
_LEAST_NOISE, _MOST_NOISE = 0.3, 4.0
# A background is taken out when its level or its changes are larger than so many times the noise.
# Halos of large galaxies look like changes, and where no sky is seen a level may be theirs.
_LEVEL_TOLERANCE, _BACKGROUND_TOLERANCE = 0.1, 0.3
# A patch of exact zeros this large is where a mosaic has no data.
_MIN_HOLE = 100
# Units that astropy does not know by these names, in maggies.
_MAGGIES = {"nanomaggy": 1e-9, "nanomaggies": 1e-9, "nmgy": 1e-9, "maggy": 1.0, "maggies": 1.0}
_ZEROPOINT_KEYS = ("MAGZERO", "MAGZPT", "MAGZP", "ZEROPNT", "ZEROPT", "PHOTZP", "ZP")


class NothingToSegmentError(ValueError):
    """An image, or a part of one, without a usable pixel."""


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """An image as it was read.

    Parameters
    ----------
    data : ndarray, shape (y, x), float32
        Pixels, file units; NaN where the file has none.
    wcs : WCS or None
        Celestial coordinates, if the file has them.
    name : str
        Where it comes from.
    zeropoint : float or None
        Magnitude of one unit of flux, if the header says so.
    saturation : float or None
        Level from which pixels are saturated, file units, if the header says so.
    rms : ndarray, float or None
        Noise per pixel, same unit, if it comes along.
    mask : ndarray of bool or None
        True = do not use, if it comes along.
    unit : Unit or None
        Of the pixels, if it comes along; fluxes are in it.
    """

    data: np.ndarray
    wcs: WCS | None = None
    name: str = "array"
    zeropoint: float | None = None
    saturation: float | None = None
    rms: np.ndarray | float | None = None
    mask: np.ndarray | None = None
    unit: u.UnitBase | None = None


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """An image in units of its noise.

    Parameters
    ----------
    signal : ndarray, shape (y, x), float32
        (image − background) / rms; 0 where masked.
    rms : ndarray or float
        Noise per pixel, file units.
    mask : ndarray of bool, shape (y, x)
        True = do not use.
    background : float
        Median of what was subtracted, file units; 0 if nothing was.
    """

    signal: np.ndarray
    rms: np.ndarray | float
    mask: np.ndarray = field(repr=False)
    background: float = 0.0

    @cached_property
    def noise_factors(self) -> tuple[float, float]:
        """How correlated the noise is, in the middle.

        See :func:`~probablend.correlation.noise_factors`.
        """
        middle = _middle(self.mask)
        return noise_factors(self.signal[middle], self.mask[middle])


def read_image(path: Path | str, *, ext: int | str | None = None) -> ImageData:
    """Read a 2-D image.

    Parameters
    ----------
    path : Path or str
        ``.fits``, ``.fits.gz``, ``.fits.fz``, ``.zarr``, ``.png`` or ``.jpg``; ``FILE[EXT]``
        names an extension too.
    ext : int or str, optional
        FITS extension, or array of a Zarr group; the first with a 2-D image if not given.

    Returns
    -------
    ImageData

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not an image, not two-dimensional, truncated or without the extension.
    """
    path, ext = _named_extension(Path(path), ext)
    data, known = _read_whole(path, ext)
    return replace(known, data=as_plane(data, str(path)))


def _read_whole(path: Path, ext: int | str | None) -> tuple[np.ndarray, "ImageData"]:
    """Pixels as they are in a file, and what else it says."""
    if path.suffix.lower() in _PICTURES:
        picture = _read_picture(path)
        return picture.data, picture
    if path.suffix == ".zarr":
        array, header = open_zarr(path, ext)
        return np.asarray(array[...]), _known(header, path)
    with _open_fits(path) as hdus:
        hdu = _find_hdu(hdus, ext, path)
        return np.asarray(hdu.data), _known(hdu.header, path)


@lru_cache(maxsize=_FILES_HELD)
def _held(path: Path, ext: int | str | None, changed: int) -> tuple[np.ndarray, "ImageData"]:
    """As :func:`_read_whole`, once for all parts that are asked for."""
    data, known = _read_whole(path, ext)
    if data.ndim == 3 and len(data) == 1:
        data = data[0]
    return data, known


def _known(header: fits.Header, path: Path) -> "ImageData":
    """What a header says of an image, without its pixels."""
    return ImageData(
        data=np.zeros((0, 0), np.float32),
        wcs=celestial_wcs(header),
        name=str(path),
        **header_numbers(header),
    )


def header_numbers(header: Mapping[str, Any], unit: u.UnitBase | None = None) -> dict[str, Any]:
    """Zero point and saturation level, named as in :class:`ImageData`, if a header has them.

    A zero point of its own, or that of ``BUNIT`` where it is a flux density: per pixel, or with
    ``PIXAR_SR`` per solid angle. A ``unit`` that is known wins over ``BUNIT``.
    """
    zeropoint = _number(header, _ZEROPOINT_KEYS)
    if zeropoint is None:
        zeropoint = unit_zeropoint(_unit(header) if unit is None else unit)
    return {
        "zeropoint": zeropoint,
        "saturation": _number(header, ("SATURATE",), positive=True),
    }


class ImageFile:
    """A FITS or Zarr image that is read part by part; what cannot be is held in memory.

    Parameters
    ----------
    path, ext
        As for :func:`read_image`.

    Attributes
    ----------
    shape : tuple of int
        (y, x).
    wcs, zeropoint, saturation, name
        See :class:`ImageData`.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`read_image`.
    """

    def __init__(self, path: Path | str, *, ext: int | str | None = None) -> None:
        self.path, self._ext = _named_extension(Path(path), ext)
        self._number = -1  # held in memory
        self._array = None
        if self.path.suffix == ".zarr":
            self._array, header = open_zarr(self.path, self._ext)
            shape, known = tuple(self._array.shape), _known(header, self.path)
        elif self.path.suffix.lower() in (*_PICTURES, ".gz", ".bz2", ".xz", ".zip"):
            data, known = self._all()
            shape = data.shape
        else:
            with _open_fits(self.path) as hdus:
                hdu = _find_hdu(hdus, self._ext, self.path)
                self._number = hdus.index(hdu)
                shape, known = tuple(hdu.shape), _known(hdu.header, self.path)
        self._flat = len(shape) == 2
        if len(shape) == 3 and shape[0] == 1:
            shape = shape[1:]
        if len(shape) != 2:
            raise ValueError(
                f"{self.path} holds {len(shape)}-dimensional data of shape {shape}; "
                "a 2-D image (y, x) is wanted"
            )
        self.shape: tuple[int, int] = shape
        self.wcs, self.zeropoint = known.wcs, known.zeropoint
        self.saturation, self.name = known.saturation, known.name

    def _all(self) -> tuple[np.ndarray, "ImageData"]:
        return _held(self.path, self._ext, self.path.stat().st_mtime_ns)

    def read(self, rows: slice, columns: slice, *, exact: bool = False) -> np.ndarray:
        """A part, (y, x): float32, or ``exact`` as it is in the file."""
        if self._array is not None:
            part = self._array[rows, columns] if self._flat else self._array[0, rows, columns]
        elif self._number < 0:
            part = self._all()[0][rows, columns]
        else:
            with _open_fits(self.path) as hdus:
                section = hdus[self._number].section
                part = section[rows, columns] if self._flat else section[0, rows, columns]
        return np.asarray(part) if exact else as_plane(np.asarray(part), self.name)

    def mapped(self) -> np.ndarray | None:
        """The image mapped from its file, (y, x); None where pixels are packed or scaled."""
        if self._number < 0:
            return None
        with fits.open(self.path, memmap=True) as hdus:
            hdu = hdus[self._number]
            if isinstance(hdu, fits.CompImageHDU):
                return None
            try:
                return hdu.data if self._flat else hdu.data[0]
            except ValueError:  # what is scaled cannot be mapped
                return None

    def read_all(self, *, exact: bool = False) -> np.ndarray:
        """The whole image, as :meth:`read`."""
        return self.read(slice(None), slice(None), exact=exact)


@contextmanager
def _open_fits(path: Path) -> Iterator[fits.HDUList]:
    """An open FITS file; what is wrong with it becomes one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            # A short file is a warning to astropy; to us it is an image with a hole.
            warnings.filterwarnings("error", message=".*truncated.*")
            # Opened here: astropy leaves the file open when it fails half-way.
            with path.open("rb") as handle, fits.open(handle, memmap=False) as hdus:
                yield hdus
    except (ValueError, FileNotFoundError):
        raise
    except Exception as error:
        raise ValueError(f"{path} cannot be read as FITS: {_one_line(error)}") from error


def split_extension(name: str | Path) -> tuple[Path, str | None]:
    """The file, and the extension that ``FILE[EXT]`` names, None if it names none."""
    named = re.fullmatch(r"(.+)\[(\w+)\]", str(name))
    if named and not Path(name).exists():
        return Path(named[1]), named[2]
    return Path(name), None


def _named_extension(path: Path, ext: int | str | None) -> tuple[Path, int | str | None]:
    """The file, which must be there, and the extension: what is given, or what it names."""
    path, named = split_extension(path)
    ext = named if ext is None else ext
    if not path.exists():
        raise FileNotFoundError(f"image file {path} does not exist")
    if path.is_dir() and path.suffix != ".zarr":
        raise ValueError(f"{path} is a folder; an image file is wanted")
    return path, ext


def _unit(header: Mapping[str, Any]) -> u.UnitBase | None:
    """Of the sum of pixels; None if it is not said, or not understood."""
    text = str(header.get("BUNIT", "")).strip()
    if text.lower() in _MAGGIES:
        return u.Unit(_MAGGIES[text.lower()] * u.ABflux)
    unit = u.Unit(text, parse_strict="silent") if text else None
    if unit is None or isinstance(unit, u.UnrecognizedUnit):
        return None
    area = _number(header, ("PIXAR_SR",), positive=True)
    return u.Unit(area * unit * u.sr) if area and unit.is_equivalent(u.Jy / u.sr) else unit


def unit_zeropoint(unit: u.UnitBase | None) -> float | None:
    """AB magnitude of one unit, where it is a flux density."""
    if unit is None or not unit.is_equivalent(u.ABflux):
        return None
    return float((1 * unit).to(u.ABmag).value)


def _number(
    header: Mapping[str, Any], keys: tuple[str, ...], *, positive: bool = False
) -> float | None:
    """First of some keywords that holds a finite number."""
    for key in keys:
        value = header.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if np.isfinite(value) and (value > 0 or not positive):
            return float(value)
    return None


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _find_hdu(hdus: fits.HDUList, ext: int | str | None, path: Path) -> fits.ImageHDU:
    images = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    if ext is not None:
        key: int | str = int(ext) if str(ext).lstrip("-").isdigit() else ext
        try:
            hdu = hdus[key]
        except (KeyError, IndexError):
            names = [f"{k}:{h.name or '-'}" for k, h in enumerate(hdus)]
            raise ValueError(f"{path} has no extension {ext}; it has {', '.join(names)}") from None
        if not isinstance(hdu, images) or not hdu.shape:
            raise ValueError(f"extension {ext} of {path} holds no image")
        return hdu
    filled = [h for h in hdus if isinstance(h, images) and h.shape]
    flat = [h for h in filled if len(h.shape) == 2 or (len(h.shape) == 3 and h.shape[0] == 1)]
    if flat or filled:
        chosen = (flat or filled)[0]
        if len(filled) > 1:
            others = [f"{k}:{h.name or '-'}" for k, h in enumerate(hdus) if h is not chosen]
            log.info(
                "%s holds several images: %s is taken, ext names another (%s)",
                path, chosen.name or "the first", ", ".join(others),
            )  # fmt: skip
        return chosen
    raise ValueError(f"{path} holds no image in any extension")


def as_plane(data: np.ndarray, name: str) -> np.ndarray:
    """Pixels as a plane of float32, (y, x); an axis of length one in front is dropped.

    Raises
    ------
    ValueError
        If they are no numbers, none at all or not two-dimensional.
    """
    if data.dtype.kind not in "iufb":
        raise ValueError(f"{name} holds {data.dtype} pixels; numbers are wanted")
    if data.ndim == 3 and data.shape[0] == 1:
        data = data[0]
    if data.ndim != 2:
        raise ValueError(
            f"{name} holds {data.ndim}-dimensional data of shape {data.shape}; "
            "a 2-D image (y, x) is wanted"
        )
    if min(data.shape) < 1:
        raise ValueError(f"{name} holds an empty image of shape {data.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(data, dtype=np.float32)


def celestial_wcs(header: fits.Header) -> WCS | None:
    """World coordinates of a header; None if it has none of the sky that can be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        try:
            wcs = WCS(header, naxis=2)
        except Exception as error:
            log.warning("the header's world coordinates cannot be used: %s", _one_line(error))
            return None
    return wcs if wcs.has_celestial else None


def _read_picture(path: Path) -> ImageData:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            # Row 0 of a picture is its top; of an astronomical image, its bottom.
            data = np.asarray(picture.convert("F"), dtype=np.float32)[::-1]
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {_one_line(error)}") from error
    return ImageData(data=as_plane(data, str(path)), name=str(path))


def number_or_map(text: str) -> float | np.ndarray:
    """Noise per pixel, or the width of the PSF, as a user writes it.

    Parameters
    ----------
    text : str
        A number, or a file as :func:`read_image` takes it.

    Returns
    -------
    float or ndarray of shape (y, x)

    Raises
    ------
    FileNotFoundError, ValueError
        If it is neither a number nor a readable image.
    """
    try:
        return float(text)
    except ValueError:
        return read_image(text).data


def masked_pixels(flags: np.ndarray, bits: int = -1) -> np.ndarray:
    """Which pixels of a map of flags are not to be used; those that are not numbers never are."""
    flags = np.asarray(flags)
    if bits < 0:
        return np.nan_to_num(flags, nan=1.0) != 0
    whole = flags if flags.dtype.kind in "iub" else np.where(np.isfinite(flags), flags, -1)
    return (whole.astype(np.int64) & bits) != 0


def rms_of_weight(weight: np.ndarray) -> np.ndarray:
    """Noise per pixel of inverse variances; NaN, which means missing, where there is no weight."""
    return np.where(weight > 0, weight, np.nan) ** -0.5


def rms_of_variance(variance: np.ndarray) -> np.ndarray:
    """Noise per pixel of variances; NaN, which means missing, where there is none."""
    return np.where(variance > 0, variance, np.nan) ** 0.5


def prepare_image(
    image: np.ndarray,
    *,
    rms: float | np.ndarray | None = None,
    mask: np.ndarray | None = None,
    background: str = "auto",
    compare_noise: bool = True,
) -> PreparedImage:
    """Subtract the background if there is one, divide by the noise, mark what is missing.

    Parameters
    ----------
    image : ndarray, shape (y, x)
        Pixels, any unit.
    rms : float or ndarray, optional
        Noise per pixel of the sky (without the photons of the sources), same unit; estimated
        if not given, as a map where it changes over a large image by more than 4 %, and then
        raised if it is correlated, see :func:`~probablend.correlation.correlation_factor`.
        Pixels of a map that are not positive and finite are masked: zero means missing.
    mask : ndarray of bool, optional
        True = do not use. Pixels that are not finite, and patches of exact zeros in an image
        that is not of whole numbers (where a mosaic has no data), are masked anyway.
    background : {"auto", "subtract", "none"}
        ``"auto"`` subtracts it if its level exceeds 0.1 of the noise (0.3 where hardly any sky
        is seen between the sources), or its changes 0.3.
    compare_noise : bool
        Whether to warn if the noise that is given is far from the scatter of the pixels.

    Returns
    -------
    PreparedImage

    Raises
    ------
    ValueError
        If nothing is left to work on, the image is constant, the noise is not positive, or
        shapes differ.
    """
    hidden = np.ma.getmaskarray(image)
    image = as_plane(np.asarray(image), "image")
    if background not in ("auto", "subtract", "none"):
        raise ValueError(f"background must be auto, subtract or none; got {background!r}")
    given = None if rms is None else _check_rms(rms, image.shape)
    bad = _unusable(image, hidden, mask, given)
    if bad.all():
        raise NothingToSegmentError(
            "image has no usable pixel: all are NaN, masked or without noise"
        )
    good = image[~bad]
    if good.min() == good.max():
        raise NothingToSegmentError(f"image is constant ({good[0]:g}): there is nothing to segment")

    clean = np.where(bad, np.median(good), image).astype(np.float32)
    level: np.ndarray | float = 0.0
    spread = np.nan
    if given is None or compare_noise or background != "none":
        level, spread = estimate_sky(clean, bad)
    seen = None  # level and noise of the sky between the sources, where those fill the image
    if given is None:
        if not (np.isfinite(spread) and spread > 0):
            raise NothingToSegmentError("the noise cannot be estimated: give it with rms")
        seen = sky_between_sources(clean, bad, level, spread)
        level, noise = seen or (level, spread)
        noise = noise * _correlation(clean, bad, level, noise)
    else:
        noise = given
        if compare_noise:
            _compare_noise(_typical(noise, bad), spread)
    # Half the field may be deeper: compare with the typical noise.
    typical = _typical(noise, bad)
    if given is not None and background != "none":
        large = background == "subtract" or max(_strength(level)) > _LEVEL_TOLERANCE * typical
        seen = sky_between_sources(clean, bad, level, spread) if large else None
        level, _ = seen or (level, spread)
    subtract = background == "subtract"
    if background == "auto":
        height, changes = _strength(level)
        least = _LEVEL_TOLERANCE if seen else _BACKGROUND_TOLERANCE
        subtract = height > least * typical or changes > _BACKGROUND_TOLERANCE * typical
    if subtract:
        log.info("subtracted a background of median %.4g", float(np.median(level)))
    divisor = np.where(bad, 1, noise) if isinstance(noise, np.ndarray) else noise
    with np.errstate(over="ignore"):
        signal = ((clean - level if subtract else clean) / divisor).astype(np.float32)
    bad |= ~(np.abs(signal) < MAX_SIGNAL)
    if bad.all():
        raise NothingToSegmentError(
            f"every pixel exceeds {MAX_SIGNAL:g} times the noise: is rms in the image's unit?"
        )
    signal[bad] = 0
    return PreparedImage(
        signal=signal,
        rms=noise,
        mask=bad,
        background=float(np.median(level)) if subtract else 0.0,
    )


def _unusable(
    image: np.ndarray,
    hidden: np.ndarray,
    mask: np.ndarray | None,
    noise: float | np.ndarray | None,
) -> np.ndarray:
    """Pixels that are missing, masked or without noise; ``hidden`` by the array itself."""
    bad = ~np.isfinite(image) | _holes(image)
    if hidden.any():
        bad |= hidden.reshape(image.shape)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != image.shape:
            raise ValueError(f"mask must have the image's shape {image.shape}; got {mask.shape}")
        bad |= mask.astype(bool)
    if isinstance(noise, np.ndarray):
        bad |= ~(np.isfinite(noise) & (noise > 0))
    return bad


def _correlation(
    clean: np.ndarray, bad: np.ndarray, level: float | np.ndarray, noise: float | np.ndarray
) -> float:
    """By what the noise counts as more than the scatter of pixels; says what was estimated."""
    middle = _middle(bad)
    here, under = (v[middle] if isinstance(v, np.ndarray) else v for v in (level, noise))
    with np.errstate(over="ignore"):
        flat = ((clean[middle] - here) / under).clip(-MAX_SIGNAL, MAX_SIGNAL)
    factor = correlation_factor(flat.astype(np.float32), bad[middle])
    typical = _typical(noise, bad)
    log.info(
        "estimated noise: %.4g per pixel%s%s", typical,
        ", a map, since it changes over the image" if isinstance(noise, np.ndarray) else "",
        f", counted as {typical * factor:.4g}, since it is correlated: {factor:.2f} times as "
        "strong on the scale of a source" if factor > 1 else "",
    )  # fmt: skip
    return factor


def _strength(level: float | np.ndarray) -> tuple[float, float]:
    """How high a background is, and how much it changes."""
    return abs(float(np.median(level))), float(np.std(level, dtype=float))


def _middle(mask: np.ndarray) -> tuple[slice, ...]:
    """What tells how correlated the noise is: the middle, or all if that has hardly a pixel."""
    box = tuple(slice(max(0, (n - _REGION) // 2), (n + _REGION) // 2) for n in mask.shape)
    return box if np.mean(mask[box]) < _MOST_MASKED else (slice(None), slice(None))


def _typical(noise: float | np.ndarray, bad: np.ndarray) -> float:
    """The noise of most pixels."""
    return float(np.median(noise[~bad])) if isinstance(noise, np.ndarray) else noise


def _compare_noise(given: float, spread: float) -> None:
    """Say so if the noise that was given is not that of the pixels."""
    if not (spread > 0 and _LEAST_NOISE < given / spread < _MOST_NOISE):
        log.warning(
            "the noise that was given, %.3g per pixel, is %.2g times what the pixels scatter by: "
            "rms is a standard deviation, variance its square, weight one over that",
            given, given / spread if spread > 0 else np.inf,
        )  # fmt: skip


def _holes(image: np.ndarray) -> np.ndarray:
    """Patches of exact zeros: no data there. A picture or counts may well be zero."""
    zero = image == 0
    finite = image[np.isfinite(image)]
    if zero.sum() < _MIN_HOLE or (finite == np.round(finite)).all():
        return np.zeros(image.shape, dtype=bool)
    patches, _ = ndimage.label(zero, structure=np.ones((3, 3)))
    large = np.bincount(patches.ravel()) >= _MIN_HOLE
    large[0] = False
    return large[patches]


def _check_rms(rms: float | np.ndarray, shape: tuple[int, ...]) -> float | np.ndarray:
    values = np.asarray(rms, dtype=np.float32)
    if values.ndim == 0:
        if not (np.isfinite(values) and values > 0):
            raise ValueError(f"rms must be positive; got {float(values):g}")
        return float(values)
    if values.shape != shape:
        raise ValueError(f"rms must have the image's shape {shape}; got {values.shape}")
    if not (values > 0).any():
        raise NothingToSegmentError("rms must be positive; the map has no positive pixel")
    if (values < 0).any():
        n_negative = int((values < 0).sum())
        raise ValueError(f"rms must be positive; the map has {n_negative} negative pixels")
    return values
