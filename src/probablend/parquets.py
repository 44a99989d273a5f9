"""Parquet files as astropy tables: astropy's own reader needs pandas, which nothing here does."""

from pathlib import Path
from typing import Any

import astropy.units as u
from astropy.table import QTable
from astropy.table.meta import get_header_from_yaml

__all__ = ["read_parquet"]

_HEADER = b"table_meta_yaml"  # where astropy keeps units and descriptions


def read_parquet(path: Path) -> QTable:
    """Columns of a Parquet file, or of all in a folder, with what is said of them.

    Parameters
    ----------
    path : Path
        As astropy, pandas or :func:`~probablend.hats.write_hats` wrote it.

    Raises
    ------
    ImportError
        If pyarrow is missing.
    """
    from pyarrow import dataset

    arrow = dataset.dataset(path).to_table()
    said = _said(arrow.schema)
    table = QTable()
    for name in arrow.column_names:
        values = arrow[name].to_numpy()
        if values.dtype.kind == "O":
            values = values.astype(str)
        about = said.get(name, {})
        unit = about.get("unit")
        table[name] = u.Quantity(values, unit, dtype=values.dtype) if unit else values
        table[name].info.description = about.get("description") or None
        table[name].info.meta = about.get("meta") or {}
    return table


def _said(schema: Any) -> dict[str, dict[str, Any]]:
    """Unit, description and meta of columns: in astropy's header, or with each column."""
    if _HEADER in (schema.metadata or {}):
        header = get_header_from_yaml(schema.metadata[_HEADER].decode().split("\n"))
        return {column["name"]: column for column in header["datatype"]}
    said = {}
    for field in schema:
        words = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
        ucd = words.pop("ucd", "")
        said[field.name] = words | ({"meta": {"ucd": ucd}} if ucd else {})
    return said
