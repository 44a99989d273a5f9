"""Planes of pixels in files: made empty, written and read in boxes, never held as a whole."""

import os
from pathlib import Path

import numpy as np
from astropy.io import fits

from probablend.zarrs import HEADER, make_zarr

__all__ = ["FitsPlanes", "Planes", "RawPlane", "ZarrPlanes", "make_planes", "open_planes"]

Box = tuple[slice, slice]
_CHUNK = 512  # pixels: blocks are made of whole chunks, so that no two write the same


class RawPlane:
    """A plane of little-endian int32 and nothing else.

    Parameters
    ----------
    path : Path
        The file.
    n_x : int
        Its columns.
    """

    def __init__(self, path: Path, n_x: int) -> None:
        self.path, self.n_x = path, n_x

    def make(self, n_y: int) -> None:
        """Zeros that take no room yet."""
        with self.path.open("wb") as handle:
            handle.truncate(4 * n_y * self.n_x)

    def write(self, box: Box, values: np.ndarray) -> None:
        """Write a box."""
        _write_rows(self.path, 0, self.n_x, box, values.astype("<i4"))

    def read(self, box: Box) -> np.ndarray:
        """A box, int64."""
        rows = []
        with self.path.open("rb") as handle:
            for row in range(box[0].start, box[0].stop):
                handle.seek(4 * (row * self.n_x + box[1].start))
                rows.append(np.frombuffer(handle.read(4 * (box[1].stop - box[1].start)), "<i4"))
        return np.stack(rows).astype(np.int64)


class FitsPlanes:
    """Extensions of a FITS file.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as handle, fits.open(handle, memmap=False) as hdus:
            self._known = {
                hdu.name: (hdu.fileinfo()["datLoc"], hdu.shape, np.dtype(_type_of(hdu)))
                for hdu in hdus[1:]
            }

    def write(self, name: str, box: Box, values: np.ndarray, *, sample: int = 0) -> None:
        """Write a box of an extension, or of one plane of a cube."""
        offset, shape, dtype = self._known[name]
        offset += sample * shape[-2] * shape[-1] * dtype.itemsize
        _write_rows(self.path, offset, shape[-1], box, values.astype(dtype))

    def set_card(self, key: str, value: int) -> None:
        """Change a number that the primary header holds already."""
        header = fits.getheader(self.path)
        header[key] = value
        with self.path.open("r+b") as handle:
            handle.write(padded(header))


class ZarrPlanes:
    """Arrays of a Zarr group.

    Parameters
    ----------
    path : Path
        The group.
    """

    def __init__(self, path: Path) -> None:
        import zarr

        self.group = zarr.open_group(path, mode="r+")

    def write(self, name: str, box: Box, values: np.ndarray, *, sample: int = 0) -> None:
        """Write a box of an array, or of one plane of a cube."""
        array = self.group[name]
        array[box if array.ndim == 2 else (sample, *box)] = values.astype(array.dtype)

    def set_card(self, key: str, value: int) -> None:
        """Change a card of the group."""
        header = fits.Header.fromstring(str(self.group.attrs[HEADER]), sep="\n")
        header[key] = value
        self.group.attrs[HEADER] = header.tostring(sep="\n")


Planes = FitsPlanes | ZarrPlanes


def make_planes(
    path: Path,
    primary: fits.Header,
    header: fits.Header,
    planes: dict[str, str],
    shape: tuple[int, ...],
    block: int | None,
) -> None:
    """Empty planes that take no room yet; Zarr if the name says so, else FITS.

    Parameters
    ----------
    path : Path
        What to make.
    primary, header : Header
        Cards of the whole, and of every plane.
    planes : dict
        Name and type of each plane.
    shape : tuple of int
        (y, x) or (sample, y, x).
    block : int or None
        Side of the blocks in which they will be written, pixels; None if there is but one.
    """
    if path.suffix == ".zarr":
        chunk = _CHUNK if block is None or block % _CHUNK == 0 else block
        make_zarr(path, primary, header, planes, shape, chunk)
        return
    with path.open("wb") as handle:
        handle.write(padded(fits.PrimaryHDU(header=primary).header))
        for name, kind in planes.items():
            card = fits.ImageHDU(np.zeros((1,) * len(shape), kind), header, name=name).header
            for k, n in enumerate(reversed(shape), start=1):
                card[f"NAXIS{k}"] = n
            handle.write(padded(card))
            n_bytes = int(np.prod(shape)) * np.dtype(kind).itemsize
            handle.seek(handle.tell() + -(-n_bytes // 2880) * 2880)
        handle.truncate()


def open_planes(path: Path) -> Planes:
    """Planes that were made, to be written."""
    return ZarrPlanes(path) if path.suffix == ".zarr" else FitsPlanes(path)


def padded(header: fits.Header) -> bytes:
    """A header as it stands in a FITS file."""
    return header.tostring(sep="", endcard=True, padding=True).encode("ascii")


def _type_of(hdu: fits.ImageHDU) -> str:
    return {8: "u1", 32: ">i4", -32: ">f4"}[hdu.header["BITPIX"]]


def _write_rows(path: Path, offset: int, n_x: int, box: Box, values: np.ndarray) -> None:
    """Rows of a box into a plane that begins at some byte of a file."""
    size = values.dtype.itemsize
    with path.open("r+b") as handle:
        for k, row in enumerate(range(box[0].start, box[0].stop)):
            handle.seek(offset + (row * n_x + box[1].start) * size)
            handle.write(np.ascontiguousarray(values[k]).tobytes())
        handle.flush()
        os.fsync(handle.fileno())
