"""What the viewer says of sources: all of them in brief, one of them in full, some as a file."""

import tempfile
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import QTable
from astropy.wcs import WCS

from probablend.catalog import write_catalog
from probablend.flags import flag_table
from probablend.infer.footprints import Ellipses
from probablend.models.source import PARAMETERS
from probablend.products import Products

__all__ = ["COLUMNS", "EXPORTS", "card", "export", "find_position", "pack", "selected"]

COLUMNS = ("id", "x", "y", "a", "b", "angle", "p_blend", "flux")
EXPORTS = {
    "fits": "application/fits",
    "csv": "text/csv; charset=utf-8",
    "reg": "text/plain; charset=utf-8",
}


def pack(products: Products) -> bytes:
    """``COLUMNS`` one after the other, float32, little-endian; NaN where a catalogue has none."""
    a, b, angle = products.ellipses.axes
    nothing = np.full(len(a), np.nan)
    shape = {"a": a, "b": b, "angle": angle}
    table = products.catalog
    columns = [shape[k] if k in shape else _plain(table, k, nothing) for k in COLUMNS]
    return np.stack(columns).astype("<f4").tobytes()


def _plain(table: QTable, name: str, nothing: np.ndarray) -> np.ndarray:
    if name not in table.colnames:
        return nothing
    return np.asarray(table[name], dtype=float)


def selected(products: Products, threshold: float) -> np.ndarray:
    """Numbers of the rows with ``p_blend`` above a threshold."""
    # In double precision, as the page compares: 0.3 in single precision is not 0.3.
    return np.flatnonzero(np.asarray(products.catalog["p_blend"], dtype=float) > threshold)


def card(products: Products, source_id: int) -> dict[str, Any]:
    """All that is known of one source, as JSON takes it: undefined numbers are None.

    Raises
    ------
    KeyError
        If there is no such source.
    """
    table = products.catalog
    ids = np.asarray(table["id"])
    rows = np.flatnonzero(ids == source_id)
    if not len(rows):
        raise KeyError(f"there is no source {source_id}")
    k = int(rows[0])
    values = [
        {
            "name": name,
            "value": _number(getattr(table[name][k], "value", table[name][k])),
            "unit": str(table[name].unit or ""),
            "description": table[name].info.description or "",
        }
        for name in table.colnames
    ]
    flags = int(table["flags"][k])
    siblings: list[int] = []
    if "parent" in table.colnames:
        siblings = [int(i) for i in ids[table["parent"] == table["parent"][k]] if i != source_id]
    return {
        "id": source_id,
        "values": values,
        "flags": [[f["name"], f["meaning"]] for f in flag_table() if flags & int(f["bit"])],
        "siblings": siblings,
        "draws": _draws(products, k),
    }


def _draws(products: Products, k: int) -> dict[str, list[float | None]]:
    """Joint draws of a source, with the axes and angle of its footprint."""
    if products.posterior is None:
        return {}
    record = products.posterior[k]
    draws = {name: np.asarray(record[name], dtype=float) for name in PARAMETERS}
    shape = Ellipses(**{name: draws[name] for name in ("y", "x", "radius", "e1", "e2")})
    draws |= dict(zip(("a", "b", "angle"), shape.axes, strict=True))
    return {name: [_number(v) for v in values] for name, values in draws.items()}


def _number(value: Any) -> float | int | None:
    number = value.item() if isinstance(value, np.generic | np.ndarray) else value
    return number if np.isfinite(number) else None


def export(products: Products, threshold: float, kind: str) -> bytes:
    """The rows with ``p_blend`` above a threshold, as a file.

    Parameters
    ----------
    products : Products
        Where they come from.
    threshold : float
        Of ``p_blend``.
    kind : {"fits", "csv", "reg"}
        A catalogue like that of the products, plain numbers, or footprints for ds9.
    """
    rows = selected(products, threshold)
    if kind == "reg":
        e = products.ellipses
        some = Ellipses(y=e.y[rows], x=e.x[rows], radius=e.radius[rows], e1=e.e1[rows],
                        e2=e.e2[rows])  # fmt: skip
        return some.to_regions(np.asarray(products.catalog["id"])[rows]).encode()
    table = products.catalog[rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"selection.{kind}"
        if kind == "fits":
            header = products.header.copy()
            header["PBSELECT"] = (f"p_blend > {threshold:g}", "rows of the catalogue")
            write_catalog(table, path, header)
        else:
            for column in table.itercols():
                column.info.format = None  # digits are cut where people read, not here
            table.write(path, format="ascii.csv")
        return path.read_bytes()


def find_position(
    text: str, frame: str, wcs: WCS | None, shape_yx: tuple[int, int]
) -> tuple[float, float]:
    """Pixel of a position as a user writes it.

    Parameters
    ----------
    text : str
        ``"RA Dec"`` in degrees or sexagesimal (hours, degrees), or ``"x y"``.
    frame : {"sky", "pixel"}
        Which of the two.
    wcs : WCS or None
        Celestial coordinates.
    shape_yx : tuple of int
        Of the image.

    Returns
    -------
    x, y : float

    Raises
    ------
    ValueError
        If it cannot be understood or lies outside the image.
    """
    x, y = _sky_pixel(text, wcs) if frame == "sky" else _two_numbers(text)
    n_y, n_x = shape_yx
    if not (-0.5 <= x <= n_x - 0.5 and -0.5 <= y <= n_y - 0.5):
        raise ValueError(f"{text} lies outside the image, at x = {x:.1f}, y = {y:.1f}")
    return x, y


def _two_numbers(text: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise ValueError(f'"x y" is wanted, two numbers; got {text!r}') from None
    return first, second


def _sky_pixel(text: str, wcs: WCS | None) -> tuple[float, float]:
    if wcs is None:
        raise ValueError("the image has no celestial coordinates: give pixels")
    words = text.replace(",", " ").split()
    hours = len(words) != 2 or any(mark in words[0].lower() for mark in ":hms")
    try:
        place = SkyCoord(" ".join(words), unit=(u.hourangle if hours else u.deg, u.deg))
        x, y = wcs.celestial.world_to_pixel(place)
    except Exception as error:  # astropy's parsers and projections fail in many ways
        raise ValueError(
            f'"RA Dec" is wanted, as 150.1 2.2 or 10:00:24 +02:12:00; got {text!r}'
        ) from error
    return float(x), float(y)
