"""Planes of pixels in files: made empty, written and read in boxes, never held as a whole."""

import os
from pathlib import Path

import numpy as np
from astropy.io import fits

__all__ = ["make_fits", "padded", "plane_offsets", "read_box", "write_box"]


def make_fits(
    path: Path,
    primary: fits.Header,
    header: fits.Header,
    planes: dict[str, str],
    shape: tuple[int, ...],
) -> None:
    """A FITS file of zeros that takes no room yet."""
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


def padded(header: fits.Header) -> bytes:
    """A header as it stands in a file."""
    return header.tostring(sep="", endcard=True, padding=True).encode("ascii")


def plane_offsets(path: Path) -> dict[str, int]:
    """Where the pixels of each extension begin, bytes."""
    with path.open("rb") as handle, fits.open(handle, memmap=False) as hdus:
        return {hdu.name: hdu.fileinfo()["datLoc"] for hdu in hdus[1:]}


def write_box(
    path: Path, offset: int, n_x: int, core: tuple[slice, slice], values: np.ndarray
) -> None:
    """Write a box of pixels into a plane of a file."""
    size = values.dtype.itemsize
    with path.open("r+b") as handle:
        for k, row in enumerate(range(core[0].start, core[0].stop)):
            handle.seek(offset + (row * n_x + core[1].start) * size)
            handle.write(np.ascontiguousarray(values[k]).tobytes())
        handle.flush()
        os.fsync(handle.fileno())


def read_box(path: Path, n_x: int, core: tuple[slice, slice]) -> np.ndarray:
    """A box of a plane of little-endian int32 that begins with the file."""
    rows = []
    with path.open("rb") as handle:
        for row in range(core[0].start, core[0].stop):
            handle.seek(4 * (row * n_x + core[1].start))
            rows.append(np.frombuffer(handle.read(4 * (core[1].stop - core[1].start)), "<i4"))
    return np.stack(rows).astype(np.int64)
