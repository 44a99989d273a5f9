"""Forced photometry: the posterior of what is at positions that the user supplies."""

import logging
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import QTable, Table
from astropy.utils.data import get_readable_fileobj
from astropy.wcs import WCS

from probablend.catalog import COLUMNS, build_table, set_flux_unit
from probablend.flags import Flag
from probablend.infer.segment import segment
from probablend.inputs import ImageLike, as_image
from probablend.parquets import read_parquet
from probablend.prepare import usable_at

log = logging.getLogger(__name__)

__all__ = ["measure", "pixel_positions", "plain_values", "read_positions"]

# Names of columns, and what the first pixel's centre is called.
_PIXELS = (("x", "y", 0), ("x_centroid", "y_centroid", 0), ("xcentroid", "ycentroid", 0),
           ("x_fit", "y_fit", 0), ("x_image", "y_image", 1), ("xwin_image", "ywin_image", 1),
           )  # fmt: skip
_SKY = (("ra", "dec"), ("alpha_j2000", "delta_j2000"), ("alphawin_j2000", "deltawin_j2000"),
        ("raj2000", "dej2000"), ("coord_ra", "coord_dec"))  # fmt: skip
_FITS = b"SIMPLE  ="  # how every FITS file begins
_TEXTS = {".ecsv": "ascii.ecsv", ".csv": "ascii.csv", ".cat": "ascii.sextractor",
          ".vot": "votable", ".votable": "votable", ".xml": "votable"}  # fmt: skip


def read_positions(path: Path | str) -> Table:
    """Read a catalogue: FITS (LDAC too), VOTable, ECSV, CSV, Parquet, SExtractor or other text.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read as a table.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"catalogue {path} does not exist")
    suffix = Path(path.name.removesuffix(".gz")).suffix
    try:
        if suffix == ".parquet":
            return read_parquet(path)
        with get_readable_fileobj(path, encoding="binary") as handle:
            is_fits = handle.read(len(_FITS)) == _FITS
        if is_fits:
            return _fits_table(path)
        kind = _TEXTS.get(suffix, "ascii")
        # Archives call columns by ID what users know by name.
        how = {"use_names_over_ids": True, "table_id": 0} if kind == "votable" else {}
        return Table.read(path, format=kind, **how)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read as a table: {said}") from error


def _fits_table(path: Path) -> Table:
    """The objects of an LDAC file, else the first table."""
    with fits.open(path) as hdus:
        tables = [
            k for k, hdu in enumerate(hdus) if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)
        ]
        objects = [k for k in tables if hdus[k].name == "LDAC_OBJECTS"]
    if not tables:
        raise ValueError("it holds no table")
    return Table.read(path, format="fits", hdu=(objects or tables)[0])


def pixel_positions(table: Table, wcs: WCS | None) -> np.ndarray:
    """Positions of a catalogue in pixels, (n, 2), y first, first pixel at 0; NaN where unknown.

    Raises
    ------
    ValueError
        If the catalogue has neither pixel nor sky positions, or these need a WCS. Sky
        positions win if the image has one: pixels may be those of another image.
    """
    table = _without_coordinates(table)
    names = {name.lower(): name for name in table.colnames}
    on_sky = next(([names[k] for k in pair] for pair in _SKY if set(pair) <= set(names)), None)
    if on_sky and wcs is not None:
        longitude, latitude = (plain_values(table[name], u.deg) for name in on_sky)
        good = np.isfinite(longitude) & (np.abs(latitude) <= 90)
        if good.any():  # a catalogue of an image without a WCS has them, all NaN
            log.info("positions from the columns %s and %s", *on_sky)
            at = np.full((len(table), 2), np.nan)
            sky = SkyCoord(longitude[good] * u.deg, latitude[good] * u.deg)
            x_, y_ = wcs.celestial.world_to_pixel(sky)
            at[good] = np.stack([y_, x_], axis=1)
            return at
    for x, y, first in _PIXELS:
        if x in names and y in names:
            log.info("positions from the columns %s and %s", names[x], names[y])
            values = [plain_values(table[names[key]]) - first for key in (y, x)]
            return np.stack(values, axis=1)
    if on_sky and wcs is None:
        raise ValueError("the positions are on the sky, and the image has no WCS")
    raise ValueError(
        f"the catalogue needs columns x and y (pixels) or ra and dec (degrees); "
        f"it has {', '.join(table.colnames[:12]) or 'none'}"
    )


def _without_coordinates(table: Table) -> Table:
    """The table with the first of its columns of coordinates as ra and dec, if it has not these."""
    names = {name.lower() for name in table.colnames}
    mixed = [name for name in table.colnames if isinstance(table[name], SkyCoord)]
    if not mixed or set(_SKY[0]) <= names:
        return table
    on_sky = table[mixed[0]].icrs
    table = QTable(table, copy=False)
    table["ra"], table["dec"] = on_sky.ra, on_sky.dec
    return table


def plain_values(column: Any, unit: u.Unit | None = None) -> np.ndarray:
    """Values as plain numbers, NaN where masked."""
    masked = np.ma.getmaskarray(column) if isinstance(column, np.ma.MaskedArray) else False
    if unit is not None and getattr(column, "unit", None) is not None:
        column = np.where(masked, np.nan, u.Quantity(column).to(unit).value)
    else:
        column = getattr(column, "value", column)
    try:
        return np.ma.filled(np.ma.asarray(column).astype(float), np.nan)
    except (TypeError, ValueError) as error:
        raise ValueError(f"positions must be numbers, ra and dec degrees: {error}") from error


def measure(
    image: ImageLike,
    positions: Table | SkyCoord | np.ndarray | str | Path,
    **settings: Any,
) -> QTable:
    """Measure sources at given positions.

    Parameters
    ----------
    image : path, ndarray, Tensor, ImageHDU, NDData (CCDData), Cutout2D or ImageData
        Of shape (y, x), in any unit.
    positions : Table, DataFrame, dict, SkyCoord of shape (n,), ndarray of shape (n, 2) or path
        A catalogue, or its file, with ``x, y`` (pixels, first at 0) or ``ra, dec`` (degrees),
        or their photutils, SExtractor and LSST names, or a column of coordinates; or an array of
        (x, y).
    **settings
        As of :func:`~probablend.infer.segment.segment`: noise, mask, PSF, seed and so on.

    Returns
    -------
    QTable
        The catalogue's columns, one row per position in the order given. Where nothing can
        be measured, outside the image or where most of 3 × 3 pixels are masked, the row is NaN and
        flagged ``NO_DATA``.

    Raises
    ------
    ValueError
        If the positions cannot be understood.
    """
    given = {key: settings.pop(key, None) for key in ("rms", "mask", "wcs")}
    data = as_image(image, **given)
    if isinstance(positions, str | Path):
        positions = read_positions(positions)
    if isinstance(positions, SkyCoord):
        on_sky = positions.icrs.reshape(-1)
        positions = QTable({"ra": on_sky.ra, "dec": on_sky.dec})
    if not isinstance(positions, Table) and hasattr(positions, "items"):  # of columns
        kept = (u.Quantity, SkyCoord, np.ma.MaskedArray)  # with their units and masks
        positions = QTable({
            str(name): one if isinstance(one, kept) else np.asarray(one)
            for name, one in positions.items()
        })  # fmt: skip
    if isinstance(positions, Table):
        at = pixel_positions(positions, data.wcs)
    else:
        at = np.asarray(positions, dtype=float)
        if at.ndim != 2 or at.shape[1] != 2:
            raise ValueError(f"positions must have shape (n, 2); got {at.shape}")
        at = at[:, ::-1]
    if np.ndim(data.data) != 2:
        raise ValueError(f"image must have 2 dimensions; got {np.ndim(data.data)}")
    n_y, n_x = np.shape(data.data)
    with np.errstate(invalid="ignore"):
        inside = (at > -0.5).all(axis=1) & (at[:, 0] < n_y - 0.5) & (at[:, 1] < n_x - 0.5)
    rows = np.flatnonzero(inside)
    if len(at) and not len(rows):
        log.warning(
            "none of the %d positions lies in the image; pixels count from 0, ra and dec are in "
            "degrees", len(at),
        )  # fmt: skip
    result = segment(data, positions=at[rows], **settings)
    if len(rows):
        pixel = np.floor(at[rows] + 0.5).astype(int)
        seen = usable_at(pixel, result.mask)
    else:
        seen = np.zeros(0, dtype=bool)
    n = len(at)
    columns: dict[str, np.ndarray] = {}
    for name, (dtype, _, _) in COLUMNS.items():
        if name not in result.catalog.colnames:
            continue
        empty = np.nan if np.issubdtype(dtype, np.floating) else 0
        values: np.ndarray = np.full(n, empty, dtype=dtype)
        column = result.catalog[name]
        values[rows[seen]] = np.asarray(column)[seen]
        columns[name] = values
    columns["id"] = np.arange(1, n + 1)
    lost = np.ones(n, dtype=bool)
    lost[rows[seen]] = False
    columns["flags"][lost] = Flag.NO_DATA
    group = np.asarray(result.catalog["parent"])
    columns["parent"] = _parents(group, rows, seen, columns["id"])
    unseen = np.bincount(group[~seen], minlength=len(group) + 1)
    columns["n_siblings"][rows[seen]] -= unseen[group[seen]]
    table = build_table(columns)
    if data.unit is not None:
        set_flux_unit(table, data.unit)
    table.meta.update({key: value for key, value in result.meta.items() if value is not None})
    return table


def _parents(parent: np.ndarray, rows: np.ndarray, seen: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Parents in rows of the input, among those that were measured."""
    first = np.zeros(len(ids), dtype=int)
    group = np.asarray(parent)[seen]
    kept = rows[seen]
    for number in np.unique(group):
        members = kept[group == number]
        first[members] = ids[members].min()
    return first
