"""Reading images.

FITS is read as astropy reads it (compressed, scaled, any byte order); PNG and JPEG are
greyscale for show.
"""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area

from probablend.headers import Cards, celestial_wcs, header_numbers, one_line
from probablend.zarrs import open_zarr

__all__ = [
    "ImageData",
    "ImageFile",
    "as_plane",
    "number_or_map",
    "read_image",
    "split_extension",
]

log = logging.getLogger(__name__)

_PICTURES = (".png", ".jpg", ".jpeg")
_FILES_HELD = 4  # packed ones: an image, its noise, its mask and the widths of its PSF


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

    @property
    def pixel_scale(self) -> float | None:
        """Arcseconds per pixel, the root of its area, if there are celestial coordinates."""
        if self.wcs is None or not self.wcs.has_celestial:
            return None
        return 3600 * float(np.sqrt(proj_plane_pixel_area(self.wcs.celestial)))


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
        return np.asarray(hdu.data), _known(hdu.header, path, hdus[0].header)


@lru_cache(maxsize=_FILES_HELD)
def _held(path: Path, ext: int | str | None, changed: int) -> tuple[np.ndarray, "ImageData"]:
    """As :func:`_read_whole`, once for all parts that are asked for."""
    data, known = _read_whole(path, ext)
    if data.ndim == 3 and len(data) == 1:
        data = data[0]
    return data, known


def _known(
    header: Mapping[str, Any], path: Path, primary: Mapping[str, Any] | None = None
) -> "ImageData":
    """What a header says of an image, without its pixels.

    That of the file, ``primary``, speaks for its extensions where they are silent.
    """
    wcs = celestial_wcs(header)
    of_file = Cards(*([] if primary is None else [primary]))
    how_long = {key: of_file[key] for key in ("EXPTIME", "D001OUUN") if key in of_file}
    numbers = header_numbers(Cards(header, how_long), wcs)
    both = header_numbers(Cards(header, of_file), wcs) if None in numbers.values() else numbers
    numbers = {k: both[k] if value is None else value for k, value in numbers.items()}
    return ImageData(data=np.zeros((0, 0), np.float32), wcs=wcs, name=str(path), **numbers)


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
    wcs, pixel_scale, zeropoint, saturation, name
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
                shape = tuple(hdu.shape)
                known = _known(hdu.header, self.path, hdus[0].header)
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
        self.pixel_scale = known.pixel_scale

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
        raise ValueError(f"{path} cannot be read as FITS: {one_line(error)}") from error


def split_extension(name: str | Path) -> tuple[Path, str | None]:
    """The file, and the extension that ``FILE[EXT]`` names, None if it names none."""
    named = re.fullmatch(r"(.+)\[(\w+(?:,\d+)?)\]", str(name))
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


def _find_hdu(hdus: fits.HDUList, ext: int | str | None, path: Path) -> fits.ImageHDU:
    images = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    if ext is not None:
        key: int | str | tuple[str, int] = int(ext) if str(ext).lstrip("-").isdigit() else ext
        if isinstance(key, str) and (versioned := re.fullmatch(r"(\w+),(\d+)", key)):
            key = versioned[1], int(versioned[2])
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


def _read_picture(path: Path) -> ImageData:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            # Row 0 of a picture is its top; of an astronomical image, its bottom.
            data = np.asarray(picture.convert("F"), dtype=np.float32)[::-1]
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {one_line(error)}") from error
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
