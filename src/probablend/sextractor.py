"""The catalogue under SExtractor's names, for scripts that know no others.

Every column that SExtractor has too goes by its name, in its convention: the first pixel at 1,
angles in degrees. Our other columns follow, in capitals. Undefined numbers are NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.table import QTable

from probablend.catalog import COLUMNS, UCDS, describe
from probablend.flags import Flag

__all__ = [
    "COLUMN_NAMES",
    "EQUIVALENTS",
    "Equivalent",
    "check_columns",
    "named_columns",
    "own_columns",
]

COLUMN_NAMES = ("probablend", "sextractor")
_RMS = 1 / np.sqrt(2 * np.log(2))  # of a Gaussian along an axis, in units of its half-light radius
_BLENDED = 2  # "the object was originally blended with another one"
# SExtractor's bits: 1 bad pixels, 4 saturated, 8 truncated, 16 aperture incomplete. OUT_OF_RANGE
# has none.
_BITS = {
    Flag.MASKED_PIXELS: 1,
    Flag.SATURATED: 4,
    Flag.TRUNCATED: 8,
    Flag.NO_DATA: 16,
    Flag.CUT: 16,
}


@dataclass(frozen=True)
class Equivalent:
    """A column of SExtractor's, made of ours.

    Parameters
    ----------
    of : tuple of str
        Columns that it is made of.
    to : callable
        From their values to its own.
    ucd : str
        Its Unified Content Descriptor.
    description : str
        What it is.
    unit : Unit, optional
        That of the first of ``of`` if not given.
    back : callable, optional
        From its values to those of the one column that it is made of; the same if not given.
    """

    of: tuple[str, ...]
    to: Callable[..., np.ndarray]
    ucd: str
    description: str
    unit: u.UnitBase | None = None
    back: Callable[[np.ndarray], np.ndarray] | None = None


def _same(values: np.ndarray) -> np.ndarray:
    return values


def _axis_ratio(g1: np.ndarray, g2: np.ndarray) -> np.ndarray:
    g = np.hypot(g1, g2)
    return (1 - g) / (1 + g)


def _flags(flags: np.ndarray, p_blend: np.ndarray) -> np.ndarray:
    theirs = np.where(p_blend > 0.5, _BLENDED, 0)
    for ours, bit in _BITS.items():
        theirs |= np.where(flags & ours, bit, 0)
    return theirs.astype(np.int16)


EQUIVALENTS: dict[str, Equivalent] = {
    "NUMBER": Equivalent(("id",), _same, "meta.id;meta.main", "number in LABELS, from 1"),
    "X_IMAGE": Equivalent(
        ("x",),
        lambda x: x + 1,
        "pos.cartesian.x;instr.det",
        "column, first pixel at 1",
        back=lambda x: x - 1,
    ),
    "Y_IMAGE": Equivalent(
        ("y",),
        lambda y: y + 1,
        "pos.cartesian.y;instr.det",
        "row, first pixel at 1",
        back=lambda y: y - 1,
    ),
    "ALPHA_J2000": Equivalent(("ra",), _same, "pos.eq.ra;meta.main", "right ascension, ICRS"),
    "DELTA_J2000": Equivalent(("dec",), _same, "pos.eq.dec;meta.main", "declination, ICRS"),
    "FLUX_AUTO": Equivalent(("flux",), _same, "phot.flux", "total flux, median of the posterior"),
    "FLUXERR_AUTO": Equivalent(
        ("flux_err",), _same, "stat.error;phot.flux", "half the width of the 68 % interval of flux"
    ),
    "MAG_AUTO": Equivalent(("mag",), _same, "phot.mag", "magnitude of FLUX_AUTO"),
    "MAGERR_AUTO": Equivalent(
        ("mag_err",), _same, "stat.error;phot.mag", "half the width of the 68 % interval of mag"
    ),
    "FLUX_RADIUS": Equivalent(
        ("hlr",), _same, "phys.angSize;src", "circularised half-light radius before the PSF"
    ),
    "A_IMAGE": Equivalent(
        ("hlr", "g1", "g2"),
        lambda hlr, g1, g2: _RMS * hlr / np.sqrt(_axis_ratio(g1, g2)),
        "phys.angSize.smajAxis;src",
        "RMS along the major axis, before the PSF, of a Gaussian of this half-light radius",
    ),
    "B_IMAGE": Equivalent(
        ("hlr", "g1", "g2"),
        lambda hlr, g1, g2: _RMS * hlr * np.sqrt(_axis_ratio(g1, g2)),
        "phys.angSize.sminAxis;src",
        "the same along the minor axis",
    ),
    "THETA_IMAGE": Equivalent(
        ("g1", "g2"),
        lambda g1, g2: np.degrees(0.5 * np.arctan2(g2, g1)),
        "pos.posAng;instr.det",
        "angle of the major axis from x towards y",
        u.deg,
    ),
    "ELLIPTICITY": Equivalent(
        ("g1", "g2"),
        lambda g1, g2: 1 - _axis_ratio(g1, g2),
        "src.ellipticity",
        "1 - B_IMAGE / A_IMAGE",
    ),
    "ISOAREA_IMAGE": Equivalent(("n_pixels",), _same, "phys.angArea;src", "of the footprint"),
    "FLAGS": Equivalent(
        ("flags", "p_blend"),
        _flags,
        "meta.code",
        "1 bad pixels; 2 blended (P_BLEND > 0.5); 4 saturated; 8 truncated; 16 incomplete",
    ),
    "CLASS_STAR": Equivalent(
        ("p_star",), _same, "src.class.starGalaxy", "probability that a source here is a star"
    ),
}


def check_columns(columns: str) -> None:
    """Refuse names of columns that are not known, before any work is done."""
    if columns not in COLUMN_NAMES:
        raise ValueError(f"columns must be one of {', '.join(COLUMN_NAMES)}; got {columns!r}")


def named_columns(catalog: QTable, columns: str) -> QTable:
    """The catalogue under the names that were asked for.

    Parameters
    ----------
    catalog : QTable
        Some of the columns of :data:`~probablend.catalog.COLUMNS`.
    columns : {"probablend", "sextractor"}
        Whose names.

    Returns
    -------
    QTable
        ``catalog`` itself, or one with those of :data:`EQUIVALENTS` that its columns give,
        followed by its other columns in capitals; its ``flags`` as ``PB_FLAGS``.

    Raises
    ------
    ValueError
        If the names are not known.
    """
    check_columns(columns)
    if columns == "probablend":
        return catalog
    table = QTable(meta=catalog.meta)
    for name, one in EQUIVALENTS.items():
        if not set(one.of) <= set(catalog.colnames):
            continue
        sources = [catalog[key] for key in one.of]
        values = one.to(*(np.asarray(s) for s in sources))
        unit = one.unit or sources[0].unit
        table[name] = values if unit is None else u.Quantity(values, unit, dtype=values.dtype)
        describe(table, name, one.description, one.ucd)
        table[name].info.format = sources[0].info.format
    renamed = {one.of[0] for one in EQUIVALENTS.values() if len(one.of) == 1}
    for name in catalog.colnames:
        if name not in renamed:
            table["PB_FLAGS" if name == "flags" else name.upper()] = catalog[name]
    return table


def own_columns(catalog: QTable) -> QTable:
    """The catalogue under our own names, whichever it was written under.

    Parameters
    ----------
    catalog : QTable
        As :func:`named_columns` gives it.

    Returns
    -------
    QTable
        ``catalog`` itself if the names are ours, else one with the columns of
        :data:`~probablend.catalog.COLUMNS` that it holds.
    """
    if "NUMBER" not in catalog.colnames:
        return catalog
    single = {one.of[0]: name for name, one in EQUIVALENTS.items() if len(one.of) == 1}
    table = QTable(meta=catalog.meta)
    for ours, (_, _, description) in COLUMNS.items():
        theirs = single.get(ours, "PB_FLAGS" if ours == "flags" else ours.upper())
        if theirs not in catalog.colnames:
            continue
        back = EQUIVALENTS[theirs].back if theirs in EQUIVALENTS else None
        if back is None:
            table[ours] = catalog[theirs]
        else:
            unit = catalog[theirs].unit
            table[ours] = u.Quantity(back(catalog[theirs].value), unit)
        describe(table, ours, description, UCDS[ours])
    return table
