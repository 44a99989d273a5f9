"""The catalogue: one row per object.

Positions are 0-based: the centre of the first pixel is (0, 0).
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.table import QTable
from astropy.wcs import WCS, NoConvergence
from scipy import ndimage

from probablend.flags import Flag
from probablend.hats import read_hats, write_hats
from probablend.models.source import PARAMETERS
from probablend.parquets import read_parquet

log = logging.getLogger(__name__)

_SMOOTHING = 1.0  # pixels, of the image in which centres are measured

__all__ = [
    "COLUMNS",
    "UCDS",
    "blend_probability",
    "build_table",
    "catalog_of_labels",
    "describe",
    "provenance_header",
    "quantile_columns",
    "read_catalog",
    "set_flux_unit",
    "sky_positions",
    "write_catalog",
    "write_table",
]

_EXTENT = "pixels of the footprint: of the object in LABELS, or the median of its posterior"
# name → (type, unit, description). "flux" stands for the unit of the image times pixel.
COLUMNS: dict[str, tuple[type, u.Unit | str | None, str]] = {
    "id": (np.int32, None, "number of the object in LABELS, from 1"),
    "x": (np.float64, u.pix, "column of the centre; first pixel at 0"),
    "y": (np.float64, u.pix, "row of the centre; first pixel at 0"),
    "x_err": (np.float32, u.pix, "half the width of the 68 % interval of x"),
    "y_err": (np.float32, u.pix, "half the width of the 68 % interval of y"),
    "ra": (np.float64, u.deg, "right ascension of the centre; NaN without a WCS"),
    "dec": (np.float64, u.deg, "declination of the centre; NaN without a WCS"),
    "p_source": (np.float32, None, "probability that there is a source"),
    "p_star": (np.float32, None, "probability that a source here is a star"),
    "flux": (np.float64, None, "total flux, image units; median of the posterior"),
    "flux_err": (np.float64, None, "half the width of the 68 % interval of flux"),
    "flux_q05": (np.float64, None, "5 % quantile of flux"),
    "flux_q16": (np.float64, None, "16 % quantile of flux"),
    "flux_q84": (np.float64, None, "84 % quantile of flux"),
    "flux_q95": (np.float64, None, "95 % quantile of flux"),
    "mag": (np.float32, u.mag, "magnitude of flux; NaN without a zero point"),
    "mag_err": (np.float32, u.mag, "half the width of the 68 % interval of mag"),
    "hlr": (np.float32, u.pix, "circularised half-light radius before the PSF, median"),
    "hlr_err": (np.float32, u.pix, "half the width of the 68 % interval of hlr"),
    "hlr_arcsec": (np.float32, u.arcsec, "hlr in arcseconds; NaN if the pixel scale is not known"),
    "g1": (np.float32, None, "reduced shear along x, pixel frame, before the PSF, median"),
    "g1_err": (np.float32, None, "half the width of the 68 % interval of g1"),
    "g2": (np.float32, None, "reduced shear along the diagonal, pixel frame, median"),
    "g2_err": (np.float32, None, "half the width of the 68 % interval of g2"),
    "n_pixels": (np.int32, u.pix, _EXTENT),
    "p_blend": (np.float32, None, "probability that the footprint overlaps another galaxy's"),
    "p_blend_maps": (np.float32, None, "share of drawn class maps with a blend in the footprint"),
    "p_blend_footprints": (np.float32, None, "share of joint draws whose footprints overlap"),
    "blendedness": (np.float32, None, "1 - <g,g>/<g,sum of all> (Bosch et al. 2018), median"),
    "parent": (np.int32, None, "lowest id of the objects whose footprints touch"),
    "n_siblings": (np.int32, None, "other objects in that group"),
    "flags": (np.int32, None, "; ".join(f"{f.value} {f.name}" for f in Flag)),
    "cutout": (np.int64, None, "row of the nearest position in the table of cut-outs, from 0"),
}

# Unified Content Descriptors (UCD1+, IVOA controlled vocabulary): what other programs know a
# column by.
_SIZE, _SHAPE, _FLUX = "phys.angSize;src", "src.ellipticity", "phot.flux"
UCDS: dict[str, str] = {
    "id": "meta.id;meta.main",
    "x": "pos.cartesian.x;instr.det",
    "y": "pos.cartesian.y;instr.det",
    "x_err": "stat.error;pos.cartesian.x;instr.det",
    "y_err": "stat.error;pos.cartesian.y;instr.det",
    "ra": "pos.eq.ra;meta.main",
    "dec": "pos.eq.dec;meta.main",
    "p_source": "stat.probability",
    "p_star": "stat.probability;src.class.starGalaxy",
    "flux": _FLUX,
    "flux_err": f"stat.error;{_FLUX}",
    **{f"flux_{q}": f"{_FLUX};stat.min" for q in ("q05", "q16")},
    **{f"flux_{q}": f"{_FLUX};stat.max" for q in ("q84", "q95")},
    "mag": "phot.mag",
    "mag_err": "stat.error;phot.mag",
    "hlr": _SIZE,
    "hlr_err": f"stat.error;{_SIZE}",
    "hlr_arcsec": _SIZE,
    **dict.fromkeys(("g1", "g2", "e1", "e2"), _SHAPE),
    **{f"{name}_err": f"stat.error;{_SHAPE}" for name in ("g1", "g2")},
    "n_pixels": "phys.angArea;src",
    "radius": _SIZE,
    **dict.fromkeys(("p_blend", "p_blend_maps", "p_blend_footprints"), "stat.probability"),
    "blendedness": "stat.value",
    "parent": "meta.id.parent",
    "n_siblings": "meta.number;src",
    "flags": "meta.code",
    "cutout": "meta.record",
}

# How floats are printed where not with four decimals, by the first word of their name. In files
# they are whole.
_PRINTED = {"ra": ".7f", "dec": ".7f", "flux": ".6g"}

# Where a result comes from: key of its ``meta`` → FITS keyword and comment.
PROVENANCE = {
    "version": ("PBVERS", "version of probablend"),
    "model": ("PBMODEL", "weights"),
    "weights_hash": ("PBHASH", "SHA-256 of the weight file, 16 digits"),
    "psf_fwhm": ("PBFWHM", "FWHM of the PSF, pixels"),
    "error_factor": ("PBERRF", "posteriors are wider than learnt by this"),
    "zeropoint": ("PBZP", "AB magnitude of one unit of flux"),
    "pixel_scale": ("PBSCALE", "arcsec per pixel"),
    "psf_from": ("PBPSF", "PSF is given, measured on stars or assumed"),
    "psf_wings": ("PBWINGS", "ln of PSF's light near it over a Gaussian's"),
    "noise_factor": ("PBNFACT", "how correlated the noise is; 1 if white"),
    "roughness_factor": ("PBROUGH", "how rough the sky is; 1 if it is not"),
    "seed": ("PBSEED", "seed of the samples"),
    "n_samples": ("PBNSAMP", "posterior samples"),
    "precision": ("PBPREC", "of the convolutions"),
    "rms": ("PBRMS", "median noise per pixel, as over a PSF"),
    "background": ("PBBACK", "median background taken out"),
    "input": ("PBINPUT", "image"),
}


def build_table(columns: Mapping[str, np.ndarray]) -> QTable:
    """Table of some of ``COLUMNS``, in their order, with units and descriptions."""
    table = QTable()
    for name, (dtype, unit, description) in COLUMNS.items():
        if name not in columns:
            continue
        values: np.ndarray = np.asarray(columns[name], dtype=dtype)
        table[name] = values if unit is None else u.Quantity(values, unit, dtype=dtype)
        describe(table, name, description, UCDS[name])
        if values.dtype.kind == "f":
            table[name].info.format = _PRINTED.get(name.partition("_")[0], ".4f")
    return table


def describe(table: QTable, name: str, description: str, ucd: str) -> None:
    """Say, in place, what a column is: in words, and as a Unified Content Descriptor."""
    table[name].info.description = description
    table[name].info.meta = {"ucd": ucd}


def set_flux_unit(table: QTable, unit: u.UnitBase) -> None:
    """Say, in place, what unit the image had: fluxes are in it."""
    for name in table.colnames:
        if name == "flux" or name.startswith("flux_"):
            column = table[name]
            table[name] = u.Quantity(column, unit)
            describe(table, name, column.info.description, column.info.meta["ucd"])
            table[name].info.format = column.info.format


def provenance_header(meta: Mapping[str, Any]) -> fits.Header:
    """FITS cards that say where a result comes from."""
    header = fits.Header([("ORIGIN", "probablend", "software")])
    for key, (keyword, said) in PROVENANCE.items():
        value = meta.get(key)
        if isinstance(value, str):  # FITS knows ASCII only, and a card holds 68 characters
            value = value.encode("ascii", "replace").decode()[-60:]
        header[keyword] = (value, said)
    return header


def write_catalog(table: QTable, path: Path, header: fits.Header, name: str = "CATALOG") -> None:
    """Write a table in the format that its suffix names; provenance goes along."""
    if path.suffix == ".fits":
        table = table.copy(copy_data=False)
        for column in [c for c in table.itercols() if not _in_fits(c.unit)]:
            said = column.info
            table[said.name] = column.value
            describe(table, said.name, f"{said.description}, {said.unit}", said.meta["ucd"])
            table[said.name].info.format = said.format
        hdu = fits.BinTableHDU(table, name=name)
        for number, column in enumerate(table.itercols(), start=1):
            said = (column.info.description or "").encode("ascii", "replace").decode()
            hdu.header[f"TCOMM{number}"] = said
            if ucd := (column.info.meta or {}).get("ucd"):
                hdu.header[f"TUCD{number}"] = ucd
        fits.HDUList([fits.PrimaryHDU(header=header), hdu]).writeto(path)
        return
    table = table.copy()
    known = [card for card in header.cards if not isinstance(card.value, fits.card.Undefined)]
    table.meta.update({card.keyword: card.value for card in known})
    if path.suffix == ".hats":
        write_hats(table, path)
        return
    table.write(path, format="ascii.ecsv" if path.suffix == ".ecsv" else "parquet")


def read_catalog(path: Path) -> QTable:
    """A table that :func:`write_catalog` wrote, under the names that it has there."""
    if path.suffix == ".hats":
        return read_hats(path)
    if path.suffix == ".parquet":
        return read_parquet(path)
    if path.suffix == ".ecsv":
        return QTable.read(path, format="ascii.ecsv")
    table = QTable.read(path, mask_invalid=False)  # NaN is a value here, not a hole
    for number, name in enumerate(table.colnames, start=1):
        said, ucd = (table.meta.pop(f"{key}{number}", "") for key in ("TCOMM", "TUCD"))
        if said or ucd:
            describe(table, name, said, ucd)
    return table


def _in_fits(unit: u.UnitBase | None) -> bool:
    """Whether FITS has a word for a unit."""
    try:
        return unit is None or bool(unit.to_string(format="fits"))
    except ValueError:
        return False


def write_table(table: QTable, path: Path) -> None:
    """Write a catalogue on its own; its name appears only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".probablend-", dir=path.parent))
    try:
        header = provenance_header(table.meta)
        table = table.copy()
        table.meta.clear()
        write_catalog(table, work / path.name, header)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(work / path.name, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def quantile_columns(draws: np.ndarray, zeropoint: float | None) -> dict[str, np.ndarray]:
    """Columns that summarise posterior draws.

    Parameters
    ----------
    draws : ndarray, shape (draw, source, parameter)
        In the order of :data:`~probablend.models.source.PARAMETERS`; ``y`` and ``x`` are
        image positions.
    zeropoint : float or None
        AB magnitude of one unit of flux.
    """
    columns: dict[str, np.ndarray] = {}
    for k, name in enumerate(PARAMETERS):
        values = draws[..., k].astype(np.float64)
        if name in ("radius", "e1", "e2"):
            continue
        low, middle, high = _quantiles(values, (0.16, 0.5, 0.84))
        columns[name] = middle
        if name != "blendedness":
            columns[f"{name}_err"] = 0.5 * (high - low)
    flux = draws[..., 0].astype(np.float64)
    for name, level in (("q05", 0.05), ("q16", 0.16), ("q84", 0.84), ("q95", 0.95)):
        columns[f"flux_{name}"] = _quantiles(flux, (level,))[0]
    nothing = np.full(draws.shape[1], np.nan)
    columns["mag"] = columns["mag_err"] = nothing
    if zeropoint is not None:
        # A flux below what numbers can hold has no magnitude.
        positive = {k: np.where(columns[k] > 0, columns[k], np.nan)
                    for k in ("flux", "flux_q16", "flux_q84")}  # fmt: skip
        columns["mag"] = zeropoint - 2.5 * np.log10(positive["flux"])
        spread = np.log10(positive["flux_q84"] / positive["flux_q16"])
        columns["mag_err"] = 0.5 * 2.5 * spread
    radius = _quantiles(draws[..., PARAMETERS.index("radius")], (0.5,))[0]
    columns["n_pixels"] = np.maximum(np.round(np.pi * radius**2), 1)
    return columns


def _quantiles(values: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    if not values.shape[1]:
        return np.zeros((len(levels), 0))
    # Among n draws the truth has n + 1 places: k / (n + 1) lie below the k-th.
    return np.quantile(values, levels, axis=0, method="weibull")


def catalog_of_labels(
    labels: np.ndarray,
    signal: np.ndarray,
    draws: Sequence[tuple[np.ndarray, np.ndarray]],
    mask: np.ndarray,
    *,
    wcs: WCS | None = None,
) -> QTable:
    """Measure the objects of a label image: what a network that knows pixels only can say.

    Parameters
    ----------
    labels : ndarray of int, shape (y, x)
        0 = background, 1…N.
    signal : ndarray, shape (y, x)
        Image in units of the noise; weighs the centres.
    draws : sequence of (y, x)
        The blended pixels of each class map drawn from the posterior.
    mask : ndarray of bool, shape (y, x)
        True = not used.
    wcs : WCS, optional
        Celestial coordinates of the pixels.

    Returns
    -------
    QTable
        Some of the columns of ``COLUMNS``; no rows if there are no objects.
    """
    n = int(labels.max(initial=0))
    ids = np.arange(1, n + 1)
    flat = labels.ravel()
    n_pixels = np.bincount(flat, minlength=n + 1)[1:]
    y, x = _centres(labels, signal, n)
    ra, dec = sky_positions(x, y, wcs)
    columns = {
        "id": ids,
        "x": x,
        "y": y,
        "ra": ra,
        "dec": dec,
        "n_pixels": n_pixels,
        "p_blend": blend_probability(labels, draws),
        "flags": _flags(labels, mask, n),
    }
    return build_table(columns)


def sky_positions(x: np.ndarray, y: np.ndarray, wcs: WCS | None) -> tuple[np.ndarray, np.ndarray]:
    """ICRS coordinates, degrees; NaN where there are none."""
    nothing = np.full(len(x), np.nan)
    if wcs is None or not len(x):
        return nothing, nothing
    try:
        sky = wcs.celestial.pixel_to_world(x, y).icrs
        return sky.ra.deg, sky.dec.deg
    except (AttributeError, ValueError, NoConvergence) as error:
        log.warning("the world coordinates cannot be turned into ICRS (%s): ra, dec = NaN", error)
        return nothing, nothing


def _centres(labels: np.ndarray, signal: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroid of the upper half of each object's peak, (y, x).

    What a faint galaxy's part holds of a bright neighbour's wing would pull a plain centroid
    towards the neighbour.
    """
    index = np.arange(n + 1)
    smooth = ndimage.gaussian_filter(signal, _SMOOTHING, mode="nearest")
    low, high = (f(smooth, labels, index) for f in (ndimage.minimum, ndimage.maximum))
    inside = np.flatnonzero(labels)
    which = labels.ravel()[inside]
    weight = smooth.ravel()[inside].astype(float) - 0.5 * (low + high)[which]
    weight = np.clip(weight, 1e-6, None)  # a floor for objects of one level
    rows, columns = np.divmod(inside, labels.shape[1])
    total = np.bincount(which, weight, minlength=n + 1)[1:]
    y = np.bincount(which, weight * rows, minlength=n + 1)[1:] / total
    x = np.bincount(which, weight * columns, minlength=n + 1)[1:] / total
    return y, x


def blend_probability(
    labels: np.ndarray, draws: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Share of the posterior draws in which an object has, or touches, a blended pixel.

    Parameters
    ----------
    labels : ndarray of int, shape (y, x)
        0 = background, 1…N.
    draws : sequence of (y, x)
        The blended pixels of each class map that was drawn.

    Returns
    -------
    ndarray, shape (N,)
        1 − this is the probability that there is no overlap.
    """
    n = int(labels.max(initial=0))
    n_blended = np.zeros(n + 1)
    for y, x in draws:
        # LABELS cuts an overlap along a line; both sides have part in it. So an overlap counts
        # for every object that it touches.
        touched = np.zeros(n + 1, dtype=bool)
        for dy, dx in np.ndindex(3, 3):
            rows = np.clip(y + dy - 1, 0, labels.shape[0] - 1)
            columns = np.clip(x + dx - 1, 0, labels.shape[1] - 1)
            touched[labels[rows, columns]] = True
        n_blended += touched
    return n_blended[1:] / len(draws)


def _flags(labels: np.ndarray, mask: np.ndarray, n: int) -> np.ndarray:
    flags = np.zeros(n + 1, dtype=np.int32)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    flags[np.unique(border)] |= Flag.TRUNCATED
    if mask.any():
        near = ndimage.binary_dilation(mask, structure=np.ones((3, 3)))
        flags[np.unique(labels[near])] |= Flag.MASKED_PIXELS
    return flags[1:]
