"""A catalogue in pieces of the sky, for millions of rows that nobody reads at once.

The layout is HATS (https://hats.readthedocs.io): Parquet files, one per HEALPix pixel, finer
where there are more rows. LSDB opens it by position; pandas, pyarrow and Dask read it as the
Parquet data set that it is.
"""

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import QTable, Table

from probablend.parquets import read_parquet

__all__ = ["NO_SKY", "check_hats", "partition", "read_hats", "write_hats"]

log = logging.getLogger(__name__)

NO_SKY = "a HATS catalogue needs sky positions: give images with a WCS, or write parquet"

_FINEST = 29  # order of the index that every row carries
_DEEPEST = 12  # order of the smallest partition, 0.7 arcmin on a side
_INDEX = f"_healpix_{_FINEST}"
_MAX_ROWS = 1_000_000


def check_hats() -> None:
    """Refuse, before any work is done, what cannot be written.

    Raises
    ------
    ValueError
        If a package is missing.
    """
    if missing := [name for name in ("pyarrow", "astropy_healpix") if find_spec(name) is None]:
        raise ValueError(
            f"a HATS catalogue needs {' and '.join(missing)}: pip install 'probablend[parquet]'"
        )


def partition(index: np.ndarray, max_rows: int) -> np.ndarray:
    """Order of the HEALPix pixel that each row falls into.

    Parameters
    ----------
    index : ndarray of int, shape (row,)
        Nested HEALPix index of order 29.
    max_rows : int
        A pixel with more rows is divided in four, down to order 12.

    Returns
    -------
    ndarray of int, shape (row,)
    """
    orders = np.zeros(len(index), dtype=np.int64)
    for order in range(_DEEPEST):
        here = np.flatnonzero(orders == order)
        _, which, counts = np.unique(
            _pixel(index[here], order), return_inverse=True, return_counts=True
        )
        orders[here[counts[which] > max_rows]] += 1
    return orders


def write_hats(table: Table, path: Path, *, max_rows: int = _MAX_ROWS) -> None:
    """Write a catalogue as a folder of Parquet files.

    Parameters
    ----------
    table : Table
        With ``ra`` and ``dec``, degrees.
    path : Path
        The folder, which must not exist.
    max_rows : int
        Most rows of a file.

    Raises
    ------
    ValueError
        If no position is known, or a package is missing.
    """
    check_hats()
    from astropy_healpix import lonlat_to_healpix
    from pyarrow import parquet

    sky = [np.asarray(table[k], float) for k in ("ra", "dec")]
    placed = np.isfinite(sky[0] + sky[1])
    if len(table) and not placed.any():
        raise ValueError(NO_SKY)
    if n_lost := int((~placed).sum()):
        log.warning(
            "%d of %d rows have no sky position: a HATS catalogue leaves them out", n_lost,
            len(table),
        )  # fmt: skip
        table, sky = table[placed], [k[placed] for k in sky]
    index = np.asarray(
        lonlat_to_healpix(*(k * u.deg for k in sky), nside=2**_FINEST, order="nested"), np.int64
    )
    arrow = _arrow(table, index)
    data = path / "dataset"
    data.mkdir(parents=True)
    found = []
    for order, pixel, rows in _pieces(index, partition(index, max_rows)):
        folder = data / f"Norder={order}" / f"Dir={pixel // 10_000 * 10_000}"
        folder.mkdir(parents=True, exist_ok=True)
        parquet.write_table(arrow.take(rows), folder / f"Npix={pixel}.parquet")
        found.append((order, pixel))
    parquet.write_metadata(arrow.schema, data / "_common_metadata")
    lines = [f"{order},{pixel}" for order, pixel in found]
    (path / "partition_info.csv").write_text("\n".join(["Norder,Npix", *lines]) + "\n")
    properties = {
        "obs_collection": "probablend",
        "dataproduct_type": "object",
        "hats_nrows": len(table),
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": _INDEX,
        "hats_col_healpix_order": _FINEST,
        "hats_npix_suffix": ".parquet",
        "hats_max_rows": max_rows,
        "hats_order": max((order for order, _ in found), default=0),
        "hats_version": "v1.0",
    }
    text = "".join(f"{key}={value}\n" for key, value in properties.items())
    (path / "hats.properties").write_text(text)


def read_hats(path: Path) -> QTable:
    """All rows of a catalogue that :func:`write_hats` wrote, by ``id``.

    Parameters
    ----------
    path : Path
        The folder.

    Raises
    ------
    ValueError
        If a package is missing.
    """
    check_hats()
    table = read_parquet(path / "dataset")
    table.remove_column(_INDEX)
    table.sort("id")
    return table


def _pixel(index: np.ndarray, order: int | np.ndarray) -> np.ndarray:
    return index >> 2 * (_FINEST - np.asarray(order))


def _pieces(index: np.ndarray, orders: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Order, pixel and rows of each file, rows along the index."""
    for order in np.unique(orders):
        here = np.flatnonzero(orders == order)
        here = here[np.argsort(index[here], kind="stable")]
        pixels = _pixel(index[here], int(order))
        for rows in np.split(here, np.flatnonzero(np.diff(pixels)) + 1):
            yield int(order), int(_pixel(index[rows[0]], int(order))), rows


def _arrow(table: Table, index: np.ndarray) -> Any:
    """The columns as arrow takes them, with units and descriptions."""
    import pyarrow

    fields, arrays = [pyarrow.field(_INDEX, pyarrow.int64())], [pyarrow.array(index)]
    for column in table.itercols():
        array = pyarrow.array(np.asarray(column))
        said = {"unit": str(column.unit or ""), "description": column.info.description or "",
                "ucd": (column.info.meta or {}).get("ucd", "")}  # fmt: skip
        fields.append(pyarrow.field(column.info.name, array.type, metadata=said))
        arrays.append(array)
    schema = pyarrow.schema(fields, metadata={k: str(v) for k, v in table.meta.items()})
    return pyarrow.Table.from_arrays(arrays, schema=schema)
