"""Zarr arrays as images: chunks that are read and written one by one, compressed.

The FITS cards of an image, coordinates among them, lie in its attribute ``fits_header``. Arrays
carry the names of their axes, as xarray reads them.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

__all__ = ["HEADER", "check_zarr", "group_header", "make_zarr", "open_zarr"]

HEADER = "fits_header"


def check_zarr() -> None:
    """Refuse, before any work is done, what cannot be read or written.

    Raises
    ------
    ValueError
        If the package is missing.
    """
    if find_spec("zarr") is None:
        raise ValueError("Zarr needs the package zarr: pip install 'probablend[zarr]'")


def open_zarr(path: Path, name: int | str | None) -> tuple[Any, fits.Header]:
    """An array, and the FITS cards that come with it.

    Parameters
    ----------
    path : Path
        Of an array, or of a group of arrays.
    name : int, str or None
        Which of a group; the first 2-D one if not given.

    Raises
    ------
    ValueError
        If there is no such array.
    """
    store = _open(path)
    if hasattr(store, "arrays"):
        arrays = dict(sorted(store.arrays()))
        planes = [key for key, array in arrays.items() if array.ndim == 2]
        if name is None and planes:
            name = planes[0]
        if str(name) not in arrays:
            wanted = "with two axes" if name is None else name
            raise ValueError(f"{path} has no array {wanted}; it has {', '.join(arrays) or 'none'}")
        store = arrays[str(name)]
    return store, _cards(store)


def group_header(path: Path) -> fits.Header:
    """FITS cards of a group, not of one of its arrays."""
    return _cards(_open(path))


def _open(path: Path) -> Any:
    check_zarr()
    import zarr

    try:
        return zarr.open(path, mode="r")
    except Exception as error:
        text = str(error).strip().splitlines()
        raise ValueError(f"{path} cannot be read as Zarr: {text[0] if text else error}") from error


def _cards(store: Any) -> fits.Header:
    return fits.Header.fromstring(str(store.attrs.get(HEADER, "")), sep="\n")


def make_zarr(
    path: Path,
    primary: fits.Header,
    header: fits.Header,
    planes: dict[str, str],
    shape: tuple[int, ...],
    chunk: int,
) -> None:
    """A group of empty arrays.

    Parameters
    ----------
    path : Path
        Of the group, which must not exist.
    primary, header : Header
        Cards of the group, and of every array.
    planes : dict
        Name and type of each array.
    shape : tuple of int
        Of each array, (y, x) or (sample, y, x).
    chunk : int
        Side of a chunk, pixels.
    """
    check_zarr()
    import zarr

    group = zarr.create_group(path)
    group.attrs[HEADER] = primary.tostring(sep="\n")
    for name, kind in planes.items():
        dtype = np.dtype(kind).newbyteorder("=")
        array = group.create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=(*[1] * (len(shape) - 2), chunk, chunk),
            fill_value=np.nan if dtype.kind == "f" else 0,
            dimension_names=("sample", "y", "x")[-len(shape) :],
        )
        array.attrs[HEADER] = header.tostring(sep="\n")
