"""What ``probablend segment`` wrote, whatever the format; planes stay in their files."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import QTable

from probablend.catalog import read_catalog
from probablend.images import ImageFile
from probablend.infer.footprints import Ellipses
from probablend.infer.outputs import CATALOG_FORMATS
from probablend.sextractor import own_columns
from probablend.zarrs import group_header, open_zarr

__all__ = ["Products"]

_MAPS_FORMATS = ("fits", "zarr")
_CHUNK = 4096  # sources whose draws are read at once


class Products:
    """The products in a folder.

    Parameters
    ----------
    folder : Path or str
        Holds maps and a catalogue; samples and a posterior if they were kept.

    Attributes
    ----------
    folder : Path
        Where they lie.
    header : Header
        Provenance.
    wcs : WCS or None
        Celestial coordinates.
    shape_yx : tuple of int
        Shape of every plane.
    samples : array-like, shape (sample, y, x), or None
        Class maps; None if they were not kept.
    catalog : QTable
        One row per source, under our own names, in the order of ``LABELS``.
    posterior : ndarray or None
        Joint draws: a record per row of the catalogue; None if they were not kept.

    Raises
    ------
    FileNotFoundError
        If there are no maps or no catalogue.
    ValueError
        If they cannot be read, or do not belong together.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        maps = _find(self.folder, "maps")
        if maps is None:
            raise FileNotFoundError(_no_maps(self.folder))
        self._maps = maps
        known = ImageFile(maps, ext="P_GALAXY")
        self.shape_yx, self.wcs = known.shape, known.wcs
        self.header = group_header(maps) if maps.suffix == ".zarr" else fits.getheader(maps)
        self.samples = None
        if (samples := _find(self.folder, "samples")) is not None:
            self.samples = _array(samples, "SAMPLES")
            self._check(samples, self.samples, "(sample, y, x)", 3)
        self.catalog = _read_catalog(self.folder)
        self.posterior = None
        if (draws := self.folder / "posterior.fits").exists():
            self.posterior = _array(draws, "POSTERIOR")
            if len(self.posterior) != len(self.catalog):
                raise ValueError(
                    f"{draws} has {len(self.posterior)} sources and the catalogue has "
                    f"{len(self.catalog)}: they do not belong together"
                )

    def plane(self, name: str) -> Any:
        """``P_GALAXY``, ``P_BLEND``, ``LABELS`` or ``MASK``: what is sliced is read."""
        plane = _array(self._maps, name)
        self._check(self._maps, plane, "(y, x)", 2)
        return plane

    def _check(self, path: Path, array: Any, wanted: str, n_axes: int) -> None:
        if len(array.shape) != n_axes or tuple(array.shape[-2:]) != self.shape_yx:
            raise ValueError(
                f"{path} has shape {tuple(array.shape)}; {wanted} with the shape of P_GALAXY, "
                f"{self.shape_yx}, is wanted"
            )

    @cached_property
    def ellipses(self) -> Ellipses:
        """Median footprints; circles of the same area where no draws were kept."""
        y, x, n_pixels = (np.asarray(self.catalog[k], dtype=float) for k in ("y", "x", "n_pixels"))
        shape = {
            "radius": np.sqrt(n_pixels / np.pi),
            "e1": np.zeros(len(x)),
            "e2": np.zeros(len(x)),
        }
        if self.posterior is not None:
            for first in range(0, len(x), _CHUNK):
                some = self.posterior[first : first + _CHUNK]
                for name, values in shape.items():
                    values[first : first + _CHUNK] = np.median(some[name], axis=1)
        return Ellipses(y=y, x=x, **shape)


def _find(folder: Path, stem: str) -> Path | None:
    paths = (folder / f"{stem}.{kind}" for kind in _MAPS_FORMATS)
    return next((path for path in paths if path.exists()), None)


def _no_maps(folder: Path) -> str:
    """Why there is nothing to look at."""
    if inside := sorted(path.parent for path in folder.glob("*/maps.*")):
        return f"{folder} holds products of several images: name one, as {inside[0]}"
    if any(folder.glob("catalog.*")):
        return f"{folder} holds no maps.fits, only a catalogue: --cutouts makes no maps to show"
    return f"{folder} holds no maps.fits: run 'probablend segment IMAGE -o {folder}'"


def _array(path: Path, name: str) -> Any:
    """Data of an extension or array, mapped from its file."""
    if path.suffix == ".zarr":
        return open_zarr(path, name)[0]
    try:
        with fits.open(path, memmap=True) as hdus:
            return hdus[name].data
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be read from {path}: {error}") from error


def _read_catalog(folder: Path) -> QTable:
    for kind in CATALOG_FORMATS:
        path = folder / f"catalog.{kind}"
        if not path.exists():
            continue
        try:
            return own_columns(read_catalog(path))
        except (OSError, ImportError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read as a catalogue: {error}") from error
    raise FileNotFoundError(f"{folder} holds no catalogue, catalog.{{{','.join(CATALOG_FORMATS)}}}")
