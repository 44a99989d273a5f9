"""The classical makers of catalogues: SExtractor, ``sep``, photutils and scarlet.

Each takes an image, sky subtracted, with its noise, and returns a catalogue ``x, y`` (pixels,
first at 0), ``p_blend``, ``flux`` (Kron, as FLUX_AUTO) and ``flux_iso`` (isophotal), and its
segmentation map. ``p_blend`` is 1 where an object came out of deblending; of SExtractor's flags
0.9 where a neighbour biases the magnitude (FLAGS & 1), else 0.6 after deblending (FLAGS & 2): two
points of a curve, not probabilities.
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import sep
from astropy.convolution import convolve
from astropy.io import fits
from astropy.stats import gaussian_fwhm_to_sigma
from astropy.table import Table, vstack
from photutils.segmentation import SourceCatalog, deblend_sources, detect_sources

__all__ = [
    "COLD",
    "FAINT",
    "HOT",
    "SURVEY",
    "Extraction",
    "find_sextractor",
    "run_photutils",
    "run_scarlet",
    "run_sep",
    "run_sextractor",
]

_MERGED = 1  # sep.OBJ_MERGED: came out of deblending, as SExtractor's FLAGS & 2 says
_BIASED, _DEBLENDED = 1, 2  # bits of FLAGS
_KRON_FACTOR, _LEAST_KRON = 2.5, 3.5  # SExtractor's PHOT_AUTOPARAMS
_MOST_FOR_SCARLET = 30  # it fits all sources of an image at once
_PROGRAMS = ("source-extractor", "sex", "sextractor")
_COLUMNS = ("X_IMAGE", "Y_IMAGE", "FLAGS", "FLUX_AUTO", "FLUX_ISO", "A_IMAGE", "B_IMAGE",
            "THETA_IMAGE", "KRON_RADIUS", "NUMBER")  # fmt: skip


def _tophat(diameter: float, side: int) -> np.ndarray:
    offset = np.arange(side) - side // 2
    inside = np.hypot(offset[:, None], offset) <= diameter / 2
    return inside / inside.sum()


def _gaussian(fwhm: float, side: int) -> np.ndarray:
    offset = np.arange(side) - side // 2
    kernel = np.exp(
        -0.5 * (offset[:, None] ** 2 + offset**2) / (fwhm * gaussian_fwhm_to_sigma) ** 2
    )
    return kernel / kernel.sum()


@dataclass(frozen=True, kw_only=True, eq=False)
class Extraction:
    """Settings under SExtractor's names.

    Parameters
    ----------
    detect_thresh : float
        In units of the noise per pixel.
    detect_minarea : int
        Least number of connected pixels.
    deblend_nthresh, deblend_mincont : int, float
        Levels and least contrast of deblending.
    kernel : ndarray
        The image is convolved with it for detection.
    """

    detect_thresh: float
    detect_minarea: int
    deblend_nthresh: int
    deblend_mincont: float
    kernel: np.ndarray


# The kernel is the 3 × 3 pyramid that SExtractor ships as default.conv.
SURVEY = Extraction(
    detect_thresh=1.5,
    detect_minarea=5,
    deblend_nthresh=32,
    deblend_mincont=0.005,
    kernel=np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16,
)
# As deep as leaves a purity of some 95 % on emulated Euclid and LSST fields.
FAINT = replace(SURVEY, detect_thresh=1.2, deblend_mincont=1e-4)
# The two modes of the CANDELS catalogues (Galametz et al. 2013, ApJS 206, 10), as in
# arXiv:1905.01324.
COLD = Extraction(
    detect_thresh=0.75,
    detect_minarea=5,
    deblend_nthresh=16,
    deblend_mincont=1e-4,
    kernel=_tophat(9.0, 9),
)
HOT = Extraction(
    detect_thresh=0.7,
    detect_minarea=10,
    deblend_nthresh=64,
    deblend_mincont=1e-3,
    kernel=_gaussian(4.0, 7),
)


def run_sep(image: np.ndarray, rms: float, *settings: Extraction) -> tuple[Table, np.ndarray]:
    """SExtractor's algorithm through ``sep``.

    Parameters
    ----------
    image : ndarray, shape (y, x)
        Sky subtracted.
    rms : float
        Noise per pixel.
    *settings : Extraction
        One or more runs, :data:`SURVEY` if none is given. Of the objects of a later run those
        are added that lie outside the Kron ellipses of the earlier ones (cold and hot mode).

    Returns
    -------
    catalog : Table
        See the module.
    labels : ndarray of int32, shape (y, x)
        0 = sky, 1…N the rows of the catalogue.
    """
    data = np.ascontiguousarray(image, dtype=np.float32)
    sep.set_extract_pixstack(max(sep.get_extract_pixstack(), data.size))
    sep.set_sub_object_limit(max(sep.get_sub_object_limit(), 100_000))
    return _merge([_one_sep_run(data, rms, one) for one in settings or (SURVEY,)])


def _one_sep_run(data: np.ndarray, rms: float, setting: Extraction) -> tuple[Table, np.ndarray]:
    objects, labels = sep.extract(
        data,
        setting.detect_thresh,
        err=rms,
        minarea=setting.detect_minarea,
        filter_kernel=setting.kernel.astype(np.float32),
        deblend_nthresh=setting.deblend_nthresh,
        deblend_cont=setting.deblend_mincont,
        segmentation_map=True,
    )
    merged = (objects["flag"] & _MERGED) > 0
    catalog = Table({"x": objects["x"], "y": objects["y"], "p_blend": merged.astype(float)})
    catalog["flux"], scale = _kron_flux(data, objects, labels)
    catalog["flux_iso"] = objects["flux"].astype(float)
    for key in ("a", "b"):
        catalog[key] = scale * objects[key]
    catalog["theta"] = objects["theta"]
    return catalog, labels


def _kron_flux(
    data: np.ndarray, objects: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """FLUX_AUTO, neighbours masked, and the size of its ellipse in units of a and b."""
    ids = np.arange(1, len(objects) + 1, dtype=np.int32)
    shape = [objects[key].astype(float) for key in ("x", "y", "a", "b", "theta")]
    shape[4] = np.clip(shape[4], -np.pi / 2, np.pi / 2)
    radius, _ = sep.kron_radius(data, *shape, 6.0, segmap=labels, seg_id=ids)
    scale = np.fmax(_KRON_FACTOR * radius, _LEAST_KRON)
    flux, _, _ = sep.sum_ellipse(data, *shape, scale, subpix=1, segmap=labels, seg_id=ids)
    return flux, scale


def _merge(runs: list[tuple[Table, np.ndarray]]) -> tuple[Table, np.ndarray]:
    """Add what a later run finds outside the ellipses ``a, b, theta`` of the earlier ones."""
    catalog, labels = runs[0]
    for later, later_labels in runs[1:]:
        dx = np.asarray(later["x"])[:, None] - np.asarray(catalog["x"])
        dy = np.asarray(later["y"])[:, None] - np.asarray(catalog["y"])
        cos, sin = np.cos(catalog["theta"]), np.sin(catalog["theta"])
        u = (dx * cos + dy * sin) / np.asarray(catalog["a"])
        v = (dy * cos - dx * sin) / np.asarray(catalog["b"])
        rows = np.flatnonzero(~(u**2 + v**2 <= 1).any(axis=1))
        number = np.zeros(len(later) + 1, dtype=labels.dtype)
        number[rows + 1] = len(catalog) + 1 + np.arange(len(rows))
        labels = np.where(labels > 0, labels, number[later_labels])
        catalog = vstack([catalog, later[rows]]) if len(rows) else catalog
    return catalog["x", "y", "p_blend", "flux", "flux_iso"], labels


def find_sextractor() -> str | None:
    """The SExtractor program on the PATH; None if there is none."""
    return next((found for name in _PROGRAMS if (found := shutil.which(name))), None)


def run_sextractor(
    image: np.ndarray, rms: float, *settings: Extraction
) -> tuple[Table, np.ndarray]:
    """The SExtractor program, as a user would run it; see :func:`run_sep`.

    Raises
    ------
    FileNotFoundError
        If it is not installed.
    ValueError
        If it fails.
    """
    program = find_sextractor()
    if program is None:
        raise FileNotFoundError(
            "SExtractor is not on the PATH: install it (Debian: source-extractor) or leave it out"
        )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        fits.writeto(place / "image.fits", np.asarray(image, np.float32))
        fits.writeto(place / "rms.fits", np.full(image.shape, rms, np.float32))
        (place / "columns.param").write_text("\n".join(_COLUMNS) + "\n")
        return _merge([_one_sextractor_run(program, place, one) for one in settings or (SURVEY,)])


def _one_sextractor_run(program: str, place: Path, setting: Extraction) -> tuple[Table, np.ndarray]:
    lines = [" ".join(f"{v:.6f}" for v in row) for row in setting.kernel]
    (place / "kernel.conv").write_text("\n".join(["CONV NORM", *lines]) + "\n")
    options = {
        "CATALOG_NAME": "catalog.fits",
        "CATALOG_TYPE": "FITS_1.0",
        "PARAMETERS_NAME": "columns.param",
        "FILTER_NAME": "kernel.conv",
        "DETECT_THRESH": f"{setting.detect_thresh:g}",
        "ANALYSIS_THRESH": f"{setting.detect_thresh:g}",
        "DETECT_MINAREA": f"{setting.detect_minarea}",
        "DEBLEND_NTHRESH": f"{setting.deblend_nthresh}",
        "DEBLEND_MINCONT": f"{setting.deblend_mincont:g}",
        "BACK_TYPE": "MANUAL",  # the sky is subtracted
        "BACK_VALUE": "0.0",
        "WEIGHT_TYPE": "MAP_RMS",
        "WEIGHT_IMAGE": "rms.fits",
        "CHECKIMAGE_TYPE": "SEGMENTATION",
        "CHECKIMAGE_NAME": "labels.fits",
        "MEMORY_OBJSTACK": "20000",
        "MEMORY_PIXSTACK": "3000000",
        "VERBOSE_TYPE": "QUIET",
        "WRITE_XML": "N",
    }
    command = [program, "image.fits"]
    for key, value in options.items():
        command += [f"-{key}", value]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split())[-300:]
        raise ValueError(f"SExtractor failed with status {done.returncode}: {said}")
    with fits.open(place / "catalog.fits") as hdus:
        found = Table(hdus[1].data)
    labels = fits.getdata(place / "labels.fits").astype(np.int32)
    kron = np.asarray(found["KRON_RADIUS"], float)
    column = {name: np.asarray(found[name], float) for name in _COLUMNS}
    flags = np.asarray(found["FLAGS"])
    catalog = Table(
        {
            "x": column["X_IMAGE"] - 1,
            "y": column["Y_IMAGE"] - 1,
            "p_blend": np.select([flags & _BIASED > 0, flags & _DEBLENDED > 0], [0.9, 0.6], 0.0),
            "flux": column["FLUX_AUTO"],
            "flux_iso": column["FLUX_ISO"],
            "a": kron * column["A_IMAGE"],  # KRON_RADIUS has the factor 2.5 in it
            "b": kron * column["B_IMAGE"],
            "theta": np.radians(column["THETA_IMAGE"]),
        }
    )
    return catalog, labels


def run_photutils(image: np.ndarray, rms: float) -> tuple[Table, np.ndarray]:
    """Segmentation and deblending with photutils, 1.5σ and its own defaults."""
    smooth = convolve(image, SURVEY.kernel)
    found = detect_sources(smooth, SURVEY.detect_thresh * rms, SURVEY.detect_minarea)
    if found is None:
        empty = Table({key: np.zeros(0) for key in ("x", "y", "p_blend", "flux", "flux_iso")})
        return empty, np.zeros(image.shape, np.int32)
    split = deblend_sources(smooth, found, SURVEY.detect_minarea, progress_bar=False)
    measured = SourceCatalog(image, split, convolved_data=smooth)
    catalog = Table(
        {
            "x": measured.x_centroid,
            "y": measured.y_centroid,
            "p_blend": np.isin(measured.labels, split.deblended_labels).astype(float),
            "flux": measured.kron_flux,
            "flux_iso": measured.segment_flux,
        }
    )
    return catalog, np.asarray(split.data, np.int32)


def run_scarlet(image: np.ndarray, rms: float, psf: np.ndarray) -> tuple[Table, np.ndarray]:
    """Scarlet (Melchior et al. 2018, arXiv:1802.10157): what ``sep`` finds, fitted together.

    Every source is a non-negative image before the PSF, started as the Gaussian of its moments.

    Parameters
    ----------
    image : ndarray, shape (y, x)
        Sky subtracted.
    rms : float
        Noise per pixel.
    psf : ndarray, shape (side, side)
        Of unit sum, the pixel included.

    Raises
    ------
    ValueError
        If there are too many sources to fit at once.
    """
    catalog, labels = run_sep(image, rms)
    if len(catalog) > _MOST_FOR_SCARLET:
        raise ValueError(
            f"scarlet fits all sources of an image at once: at most {_MOST_FOR_SCARLET} can be "
            f"afforded, found {len(catalog)}; use smaller scenes, or pairs"
        )
    if len(catalog):
        catalog["flux"] = _scarlet_fluxes(image, rms, psf, np.c_[catalog["y"], catalog["x"]])
    return catalog["x", "y", "p_blend", "flux"], labels


def _scarlet_fluxes(
    image: np.ndarray, rms: float, psf: np.ndarray, centres: np.ndarray
) -> np.ndarray:
    """Total fluxes of sources at ``centres``, (source, 2), y first."""
    import scarlet2
    from numpyro.distributions import constraints

    scarlet2.set_validation(False)  # or it prints a page for every scene
    pixels = np.asarray(image, np.float32)[None]
    observation = scarlet2.Observation(
        pixels, np.full_like(pixels, rms**-2), channels=["band"],
        psf=scarlet2.ArrayPSF(np.asarray(psf, np.float32)[None]),
    )  # fmt: skip
    with scarlet2.Scene(scarlet2.Frame.from_observations(observation)) as model:
        for centre in centres.astype(np.float32):
            try:
                light, shape = scarlet2.init.from_gaussian_moments(observation, centre)
            except ValueError:  # moments make no sense
                light = scarlet2.init.pixel_spectrum(observation, centre)
                shape = scarlet2.init.compact_morphology()
            scarlet2.Source(centre, light, shape)
    with scarlet2.Parameters(model):
        for k, source in enumerate(model.sources):
            scarlet2.Parameter(
                source.spectrum, name=f"light{k}", constraint=constraints.positive,
                stepsize=partial(scarlet2.relative_step, factor=0.05),
            )  # fmt: skip
            scarlet2.Parameter(
                source.morphology, name=f"shape{k}", constraint=constraints.unit_interval,
                stepsize=0.1,
            )  # fmt: skip
    fitted = model.fit(observation, max_iter=100, progress_bar=False)
    return np.array([float(scarlet2.measure.flux(source)[0]) for source in fitted.sources])
