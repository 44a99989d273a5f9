"""Emulated scenes as FITS files: an image as a telescope would deliver it, and the truth."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from probablend._version import __version__
from probablend.emulate.blend import Placed, Scene
from probablend.emulate.classes import FOOTPRINT_THRESHOLD
from probablend.emulate.psf import psf_image
from probablend.emulate.stamps import Stamp
from probablend.psf import read_psf
from probablend.survey import Survey, get_survey, survey_from

__all__ = ["check_new", "read_scene", "read_truth", "scene_wcs", "write_scene"]

# Where emulated skies are put: the centre of the COSMOS field, degrees.
_SKY_CENTRE = (150.1163, 2.2009)
_PSF_FILE = "PSF_FILE"  # extension: the image that the PSF is drawn from
_PSF_SIDE = 65  # pixels, of the PSF on those of the scene
# All that a survey is: card → field of Survey, comment.
_SURVEY_CARDS = {
    "SURVEY": ("name", "survey and band"),
    "MAGZERO": ("zeropoint", "AB magnitude of one count"),
    "GAIN": ("gain", "electrons per count"),
    "PIXSCALE": ("pixel_scale", "arcsec per pixel"),
    "SKYRMS": ("sky_rms", "sky noise per pixel, counts"),
    "PSFPROF": ("psf_profile", "profile of the PSF"),
    "PSFWIDTH": ("psf_fwhm", "FWHM of the PSF, arcsec"),
    "PSFBETA": ("psf_beta", "Moffat slope"),
    "PSFDIFF": ("diffraction_scale", "wavelength over diameter, arcsec"),
    "PSFOBSC": ("obscuration", "central obstruction over mirror, diameters"),
    "PSFG1": ("psf_g1", "shear of the PSF"),
    "PSFG2": ("psf_g2", "shear of the PSF"),
}


def scene_wcs(scene: Scene) -> WCS:
    """Tangent projection at the survey's pixel scale, north up."""
    wcs = WCS(naxis=2)
    n_y, n_x = scene.image.shape
    step = scene.survey.scale / 3600
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = _SKY_CENTRE
    wcs.wcs.crpix = [(n_x + 1) / 2, (n_y + 1) / 2]
    wcs.wcs.cdelt = [-step, step]
    wcs.wcs.cunit = ["deg", "deg"]
    return wcs


def _paths(directory: Path, name: str) -> list[Path]:
    """Of an image and its truth."""
    return [directory / f"{name}.fits", directory / f"{name}_truth.fits"]


def check_new(directory: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Refuse to write scenes where others are.

    Raises
    ------
    FileExistsError
        If one is there and may not be replaced.
    """
    for path in (path for name in names for path in _paths(directory, name)):
        if path.exists() and not overwrite:
            raise FileExistsError(
                f"{path} exists already: choose another folder, or overwrite (--overwrite)"
            )


def write_scene(scene: Scene, directory: Path, name: str, *, seed: int, overwrite: bool) -> None:
    """Write ``NAME.fits`` and ``NAME_truth.fits``.

    The image file holds ``SCI`` (counts), ``RMS`` (sky noise per pixel, counts), ``PSF`` (on the
    same pixels) and, of a survey whose PSF is an image, that image as ``PSF_FILE``. The truth
    file holds ``CLASSES``, ``NOISELESS`` (counts), the table ``CATALOG`` (see
    :attr:`~probablend.emulate.blend.Scene.catalog`) and the table ``FOOTPRINTS`` with one row
    per source and footprint pixel: ``id, x, y, flux``, the last being the noiseless counts of
    that source in that pixel. Footprints overlap, and so do the rows. The primary headers say all
    that the survey is.

    Parameters
    ----------
    scene : Scene
        What to write.
    directory : Path
        Made if it does not exist.
    name : str
        Stem of the files.
    seed : int
        Of the emulation, for the header.
    overwrite : bool
        Whether files that are there already may be replaced.

    Raises
    ------
    FileExistsError
        If one is there and may not.
    """
    check_new(directory, [name], overwrite=overwrite)
    directory.mkdir(parents=True, exist_ok=True)
    paths = _paths(directory, name)
    header = scene_wcs(scene).to_header()
    known = scene.survey.as_dict()
    cards: dict[str, tuple[Any, str]] = {
        card: (known[key], comment)
        for card, (key, comment) in _SURVEY_CARDS.items()
        if key in known
    }
    cards |= {
        "PSFFWHM": (scene.survey.psf_fwhm_pixels, "FWHM of the PSF, pixels"),
        "FOOTLEV": (FOOTPRINT_THRESHOLD, "footprint threshold, units of SKYRMS"),
        "PBSEED": (seed, "seed"),
        "PBVERS": (__version__, "version of probablend"),
    }
    primary = fits.Header([(key, *card) for key, card in cards.items()])
    header["MAGZERO"] = cards["MAGZERO"]  # where it is looked for
    rms = np.full(scene.image.shape, scene.rms, dtype=np.float32)
    image = fits.HDUList(
        [
            fits.PrimaryHDU(header=primary),
            fits.ImageHDU(scene.image, header, name="SCI"),
            fits.ImageHDU(rms, header, name="RMS"),
        ]
    )
    image.append(fits.ImageHDU(psf_image(scene.survey, _PSF_SIDE), name="PSF"))
    if scene.survey.psf_file:  # a scene is whole without that file
        image.append(fits.ImageHDU(read_psf(scene.survey.psf_file)[0], name=_PSF_FILE))
    truth = fits.HDUList(
        [
            fits.PrimaryHDU(header=primary),
            fits.ImageHDU(scene.classes, header, name="CLASSES"),
            fits.ImageHDU(scene.noiseless, header, name="NOISELESS"),
            fits.BinTableHDU(scene.catalog, name="CATALOG"),
            fits.BinTableHDU(_footprints(scene), name="FOOTPRINTS"),
        ]
    )
    parts = [path.with_name(f".{path.name}.part") for path in paths]
    try:
        for part, hdus in zip(parts, (image, truth), strict=True):
            hdus.writeto(part, overwrite=True)
        for part, path in zip(parts, paths, strict=True):
            os.replace(part, path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def _footprints(scene: Scene) -> Table:
    level = FOOTPRINT_THRESHOLD * scene.rms
    parts = []
    for k, source in enumerate(scene.sources):
        where, part = source.slices(scene.image.shape)
        y, x = np.nonzero(part > level)
        flux = part[y, x]
        parts.append((np.full(len(y), k + 1), x + where[1].start, y + where[0].start, flux))
    columns = [np.concatenate(c) for c in zip(*parts, strict=True)] if parts else [np.zeros(0)] * 4
    names, types = ("id", "x", "y", "flux"), (np.int32, np.int32, np.int32, np.float32)
    return Table({n: c.astype(t) for n, c, t in zip(names, columns, types, strict=True)})


def read_truth(path: Path) -> tuple[np.ndarray, Table, Table]:
    """Class map, catalogue and footprints of a truth file.

    Parameters
    ----------
    path : Path
        What :func:`write_scene` wrote.

    Returns
    -------
    classes : ndarray of uint8, shape (y, x)
    catalog : Table
        One row per source.
    footprints : Table
        ``id, x, y, flux``, one row per source and footprint pixel.

    Raises
    ------
    OSError
        If the file is not there or is no FITS file.
    KeyError
        If it is no truth file.
    """
    with fits.open(path) as hdus:
        return (
            np.asarray(hdus["CLASSES"].data),
            Table(hdus["CATALOG"].data),
            Table(hdus["FOOTPRINTS"].data),
        )


def read_scene(path: Path) -> Scene:
    """A scene that :func:`write_scene` wrote, from its image ``NAME.fits``.

    Of every source only what is inside its footprint is known again.

    Raises
    ------
    FileNotFoundError
        If the image or ``NAME_truth.fits`` beside it is not there.
    ValueError
        If they are other files, or do not say what the survey is.
    """
    truth_path = path.with_name(f"{path.stem}_truth.fits")
    for file in (path, truth_path):
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist; 'probablend emulate' writes both")
    try:
        _, catalog, footprints = read_truth(truth_path)
        with fits.open(path) as hdus:
            image = np.asarray(hdus["SCI"].data, np.float32)
            survey = _read_survey(hdus[0].header, path)
        with fits.open(truth_path) as hdus:
            noiseless = np.asarray(hdus["NOISELESS"].data, np.float32)
    except (KeyError, OSError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path} is no emulated scene with its truth: {said}") from error
    n_footprints = np.zeros(image.shape, dtype=np.int32)
    np.add.at(n_footprints, (footprints["y"], footprints["x"]), 1)
    order = np.argsort(footprints["id"], kind="stable")
    ids = np.asarray(footprints["id"])[order]
    ends = np.searchsorted(ids, np.arange(1, len(catalog) + 2))
    sources = []
    for row, first, last in zip(catalog, ends[:-1], ends[1:], strict=True):
        own = footprints[order[first:last]]
        y, x = (np.append(own[k], np.floor(row[k] + 0.5)).astype(int) for k in ("y", "x"))
        y0, x0 = int(y.min()), int(x.min())
        stamp = np.zeros((y.max() - y0 + 1, x.max() - x0 + 1), dtype=np.float32)
        stamp[y[:-1] - y0, x[:-1] - x0] = own["flux"]
        known = {k: float(row[k]) for k in ("flux", "hlr", "g1", "g2")}
        sources.append(
            Placed(
                Stamp(image=stamp, y=float(row["y"]) - y0, x=float(row["x"]) - x0,
                      galaxy=int(row["galaxy"]), is_star=bool(row["is_star"]), **known),
                y0, x0,
            )
        )  # fmt: skip
    return Scene(survey=survey, image=image, noiseless=noiseless, n_footprints=n_footprints,
                 sources=sources)  # fmt: skip


def _read_survey(header: fits.Header, path: Path) -> Survey:
    if "PSFPROF" not in header:  # written before headers said it all
        return get_survey(header["SURVEY"])
    values = {key: header[card] for card, (key, _) in _SURVEY_CARDS.items() if card in header}
    if values.get("psf_profile") == "image":
        with fits.open(path) as hdus:  # an earlier version wrote it as PSF
            name = _PSF_FILE if _PSF_FILE in hdus else "PSF"
        values["psf_file"] = f"{path}[{name}]"
    return survey_from(values, where=f"the header of {path}")
