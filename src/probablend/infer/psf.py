"""The PSF, from the image's own stars: its width, the light in its wings, and its image."""

import logging
import warnings

import galsim
import numpy as np
import sep
from astropy.stats import gaussian_sigma_to_fwhm
from photutils.psf import fit_fwhm
from scipy import ndimage

from probablend.psf import (
    PSF,
    SIDE,
    STARS_UNSURE,
    WEIGHTS,
    centred,
    fwhm_before_pixel,
    interpolated,
    over_gaussian,
)

__all__ = ["measure_psf"]

log = logging.getLogger(__name__)

_MIN_PEAK = 30.0  # signal to noise in the smoothed image: brighter peaks are measured
_SMOOTH_RMS = 1 / (2 * np.sqrt(np.pi))  # noise of the smoothed image
_MAX_PEAKS = 400
_FIT, _CORE = 9, 5  # pixels, sides of the fitted boxes
_SPIKE = 0.6  # share of the light of 3 × 3 pixels in the middle one
_MIN_FOUND = 8
_MIN_SHARED = 4  # sources, and
_LEAST_SURE = 8  # of them: fewer might be galaxies
_LEAST_COMPARED, _MOST_COMPARED = 3, 4  # sources, by their shapes
_ONE_SHAPE = 0.035  # how much reduced shears of stars may scatter
_SHARE = 0.01  # of all of them, whose widths agree
_SPREAD = 1.08  # to this factor
_ODD, _ODD_SHARE = 3, 0.05  # sources may be narrower than stars, or this share of all
_REGION = 2048  # pixels: the middle of a large image is enough

_MAX_STARS = 50  # the brightest say what wings there are
_FEWEST = 5
# Edges of the rings, in FWHM, of which medians are taken; closer in all light counts.
_EDGES = np.concatenate([np.arange(1.25, 4, 0.25), np.arange(4, 8.01, 0.5)])
_MIDDLE, _AREA = (_EDGES[1:] + _EDGES[:-1]) / 2, np.pi * np.diff(_EDGES**2)
_SEEN = 0.7  # of the rings, at least
_FAR = _MIDDLE > 4  # what is there is sky, and wings that fall off like those of a mirror
_RESAMPLINGS = 40

# FWHM, pixels: the image of a narrower PSF depends on where a star lies, a wider one is cut off.
_SAMPLED = (2.0, 8.0)
_FEWEST_STACKED = 8
_STACKED, _KNOWN = 2.0, 3.0  # FWHM: within, pixels of stars say all; beyond, rings do


def measure_psf(signal: np.ndarray, mask: np.ndarray, rms: float | np.ndarray = 1.0) -> PSF | None:
    """The PSF before the pixel, from the narrowest bright sources.

    Stars are the narrowest sources and agree in width: they are those that have the narrowest
    width that several share, of Gaussians that are fitted to bright peaks. The FWHM is the median
    of their cores', the light in the wings what rings around all of them hold, and its image the
    median of theirs, moved to the middle of a pixel; far out, that of these rings.

    Parameters
    ----------
    signal : ndarray, shape (y, x)
        Image in units of its noise, background subtracted.
    mask : ndarray of bool, shape (y, x)
        True = not used.
    rms : float or ndarray, shape (y, x)
        The noise, of which only its changes over the image count: a map that knows of the
        photons of the stars would flatten them.

    Returns
    -------
    PSF or None
        None if there are too few bright sources; its ``wings`` are None if stars do not agree on
        them, its ``image`` if they do not, are few, or have a FWHM below two or above eight pixels.
        Of sources that are no stars the width is more than that of the PSF: it is ``"assumed"``.
    """
    n_y, n_x = signal.shape
    top, left = max(0, (n_y - _REGION) // 2), max(0, (n_x - _REGION) // 2)
    box = (slice(top, top + _REGION), slice(left, left + _REGION))
    mask = mask[box]
    signal = np.where(mask, 0.0, signal[box])
    if isinstance(rms, np.ndarray) and not mask.all():
        signal *= np.where(mask, 1.0, rms[box]) / np.median(rms[box][~mask])
    stars = _stars(signal, mask)
    if stars is None:
        return None
    y, x, width, sure = stars
    near = max(width, _CORE / np.sqrt(2))
    reach = int(np.ceil(near))
    away = np.hypot(*np.indices((2 * reach + 1,) * 2) - reach)
    cores = np.where(away <= near, _cut_outs(signal, y, x, reach), 0.0)
    cores = cores[np.isfinite(cores).all(axis=(1, 2))]
    if len(cores) < _MIN_SHARED:
        return None
    few = not sure or len(cores) < _LEAST_SURE
    fwhm = fwhm_before_pixel(list(cores[:_MAX_STARS]), noise=1.0)
    if few and not _alike(signal, y, x, width):
        log.info("no PSF is measured: the %d narrowest sources differ as galaxies do", len(cores))
        return PSF(fwhm=fwhm, origin="assumed")
    seen = np.where(mask, np.nan, signal)
    around = _around(seen, y, x, fwhm) if sure else None
    wings = None if around is None else _sure_wings(around, fwhm)
    image = None
    if around is not None and wings is not None and _SAMPLED[0] < fwhm < _SAMPLED[1]:
        image = _image(seen, y, x, fwhm, around.sum(axis=0))
    psf = PSF(fwhm=fwhm, wings=wings, origin="measured", image=image)
    known = (
        ", its wings unknown" if wings is None else ", and its image" if image is not None else ""
    )
    log.info("PSF of the image's stars: %s%s", psf, known)
    if few:
        log.warning(
            "the width of the PSF, %.2f pixels, is that of the %d narrowest sources that agree: if "
            "they are galaxies it is less; psf_fwhm (--psf-fwhm) says what it is", fwhm, len(cores),
        )  # fmt: skip
    return psf


def _alike(signal: np.ndarray, y: np.ndarray, x: np.ndarray, width: float) -> bool:
    """Whether sources may have one ellipticity, as stars have and galaxies have not.

    Of the brightest few, by moments with a Gaussian weight that adapts to them.
    """
    cuts = _cut_outs(signal, y[:_MOST_COMPARED], x[:_MOST_COMPARED], int(np.ceil(2 * width)))
    shapes = []
    for cut in np.nan_to_num(cuts):
        moments = galsim.hsm.FindAdaptiveMom(
            galsim.Image(cut), guess_sig=width / gaussian_sigma_to_fwhm, strict=False
        )
        if not moments.error_message:  # as of the sharpest
            shapes.append((moments.observed_shape.g1, moments.observed_shape.g2))
    if len(shapes) < _LEAST_COMPARED:
        return True  # which cannot be told
    return float(np.sqrt(np.var(shapes, axis=0, ddof=1).mean())) < _ONE_SHAPE


def _stars(
    signal: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, bool] | None:
    """Pixels of the stars, the brightest first, and the FWHM of a Gaussian that is like them.

    The last of what is returned is whether there are clearly fewer of a width just beyond theirs:
    of galaxies there would be more.
    """
    smooth = ndimage.gaussian_filter(signal, 1.0)
    peaks = (smooth == ndimage.maximum_filter(smooth, size=2 * _FIT + 1)) & (
        smooth > _MIN_PEAK * _SMOOTH_RMS
    )
    margin = _FIT // 2 + 1
    inner = np.zeros_like(peaks)
    inner[margin:-margin, margin:-margin] = True
    near_hole = ndimage.binary_dilation(mask, iterations=margin) if mask.any() else mask
    # A hot pixel holds all its light; of the narrowest PSF in use a pixel holds half.
    spike = signal > _SPIKE * 9 * ndimage.uniform_filter(signal, 3)
    y, x = np.nonzero(peaks & inner & ~near_hole & ~spike)
    if len(y) < _MIN_FOUND:
        return None
    order = np.argsort(-smooth[y, x], kind="stable")[:_MAX_PEAKS]
    y, x = y[order], x[order]
    at = list(zip(x, y, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The core alone, where it is resolved: wings are not Gaussian.
        widths = fit_fwhm(signal, xypos=at, fit_shape=_CORE)
        wider = np.flatnonzero(~(widths < 0.6 * _CORE))
        if len(wider):
            widths[wider] = fit_fwhm(signal, xypos=[at[k] for k in wider], fit_shape=_FIT)
    good = np.isfinite(widths) & (widths > 0.5) & (widths < 2 * _FIT)
    if good.sum() < _MIN_FOUND:
        return None
    y, x, widths = y[good], x[good], widths[good]
    ordered = np.sort(widths)
    # The narrowest width that several sources share: galaxies scatter, stars agree.
    least = max(_MIN_SHARED, round(_SHARE * len(widths)))
    upper = np.searchsorted(ordered, ordered * _SPREAD, side="right")
    crowded = np.flatnonzero(upper - np.arange(len(widths)) >= least)
    # What is wider than many others is no star, even if it agrees.
    if not len(crowded) or crowded[0] > max(_ODD, _ODD_SHARE * len(widths)):
        return None
    first, last = ordered[crowded[0]], ordered[upper[crowded[0]] - 1]
    star = (widths >= first) & (widths <= last)
    n = np.histogram(widths, [first, *(last * _SPREAD ** np.arange(3))])[0]
    sure = bool((n[:-1] - n[1:] > np.sqrt(n[:-1] + n[1:])).any())
    return y[star], x[star], float(np.median(widths[star])), sure


def _cut_outs(image: np.ndarray, y: np.ndarray, x: np.ndarray, reach: int) -> np.ndarray:
    """Squares around pixels, (source, y, x); NaN outside of the image."""
    wide = np.pad(image.astype(float), reach, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(wide, (2 * reach + 1, 2 * reach + 1))
    return windows[y, x]


def _around(image: np.ndarray, y: np.ndarray, x: np.ndarray, fwhm: float) -> np.ndarray | None:
    """What :func:`_rings` finds around the brightest stars, (star, number); None if they are few.

    Medians over rings do not see neighbours; in the sum over all stars the bright ones count,
    beside which neighbours are faint.
    """
    cuts = _cut_outs(image, y[:_MAX_STARS], x[:_MAX_STARS], int(np.ceil(_EDGES[-1] * fwhm)) + 1)
    rows = [row for row in (_rings(cut, fwhm) for cut in cuts) if row is not None]
    return np.array(rows) if len(rows) >= _FEWEST else None


def _sure_wings(around: np.ndarray, fwhm: float) -> tuple[float, float, float] | None:
    """How much light lies in the wings of stars; None if they disagree."""
    again = np.random.default_rng(0).integers(len(around), size=(_RESAMPLINGS, len(around)))
    unsure = np.std([_wings_of(around[own].sum(axis=0), fwhm) for own in again], axis=0)
    near, far, farthest = _wings_of(around.sum(axis=0), fwhm).tolist()
    return (near, far, farthest) if (unsure < STARS_UNSURE).all() else None


def _rings(cut: np.ndarray, fwhm: float) -> np.ndarray | None:
    """Of one star: light near it, as it is and within the weights, and light per pixel in rings."""
    y, x = (axis - (len(axis) - 1) / 2 for axis in np.indices(cut.shape).astype(float))
    core = np.where(np.hypot(y, x) < max(fwhm, 1.5), cut, 0.0)
    if not np.isfinite(core).all():
        return None
    core[core < 0.1 * core.max()] = 0
    y, x = (axis - (core * axis).sum() / core.sum() for axis in (y, x))
    r = np.hypot(y, x) / fwhm
    near = r < _EDGES[0]
    if not np.isfinite(cut[near]).all():
        return None
    weights = [np.ones(int(near.sum())), *(np.exp(-0.5 * (r[near] / w) ** 2) for w in WEIGHTS)]
    ring = np.digitize(r, _EDGES)
    some = [cut[(ring == k) & np.isfinite(cut)] for k in range(1, len(_EDGES))]
    seen = np.array([len(pixels) > 0 for pixels in some])
    if seen.mean() < _SEEN:
        return None
    medians = [float(np.median(pixels)) for pixels in some if len(pixels)]
    medians = np.interp(_MIDDLE, _MIDDLE[seen], medians)
    return np.concatenate([[(cut[near] * weight).sum() for weight in weights], medians])


def _wings_of(light: np.ndarray, fwhm: float) -> np.ndarray:
    """What :func:`_rings` found, in the numbers of :func:`~probablend.psf.light_in_wings`."""
    within, _, _ = _light_within(light, fwhm)
    return np.minimum(over_gaussian(within[1:] / within[0], fwhm), 0.0)


def _light_within(light: np.ndarray, fwhm: float) -> tuple[np.ndarray, float, float]:
    """All light of what :func:`_rings` found and that within the weights, (4,), and what is far.

    In units of the light near it. Far from a star there is the sky, and what a mirror scatters,
    which falls off with the third power of the distance, also beyond the last ring: per square of a
    FWHM, the first, and the second one FWHM away.
    """
    near, rings = light[:4] / light[0], light[4:] / light[0] * fwhm**2
    root = np.sqrt(_AREA[_FAR])
    terms = np.stack([_MIDDLE[_FAR] ** -3, np.ones(int(_FAR.sum()))], axis=1) * root[:, None]
    tail, level = np.linalg.lstsq(terms, rings[_FAR] * root, rcond=None)[0]
    if tail < 0:
        tail, level = 0.0, np.average(rings[_FAR], weights=_AREA[_FAR])
    beyond = np.arange(_EDGES[-1], 60.0, 0.1) + 0.05
    light_within = []
    for k, weight in enumerate((np.inf, *WEIGHTS)):
        fall = np.exp(-0.5 * (_MIDDLE / weight) ** 2)
        far = tail * (2 * np.pi * beyond**-2 * np.exp(-0.5 * (beyond / weight) ** 2)).sum() * 0.1
        sky = level * 2 * np.pi * _disc(weight)
        light_within.append(near[k] - sky + ((rings - level) * _AREA * fall).sum() + far)
    return np.array(light_within), float(level), float(tail)


def _disc(weight: float) -> float:
    """∫ r w(r) dr over what lies closer than the rings."""
    if np.isinf(weight):
        return float(_EDGES[0] ** 2 / 2)
    return float(weight**2 * (1 - np.exp(-0.5 * (_EDGES[0] / weight) ** 2)))


def _image(
    image: np.ndarray, y: np.ndarray, x: np.ndarray, fwhm: float, light: np.ndarray
) -> np.ndarray | None:
    """What a star in the middle looks like, (SIDE, SIDE), of unit sum; None if too few say so.

    ``light`` is what :func:`_rings` found, which tells of the sky and of what lies far out.
    """
    reach = min(int(np.ceil(_KNOWN * fwhm)) + 2, SIDE // 2)
    cuts = _cut_outs(image, y[:_MAX_STARS], x[:_MAX_STARS], reach)
    away = np.hypot(*np.indices(cuts.shape[1:]) - reach) / fwhm
    near, ring = away < _EDGES[0], (away > _STACKED) & (away < _KNOWN)
    stars = []
    for cut in cuts[np.isfinite(cuts[:, away < _STACKED]).all(axis=1)]:
        level = np.nanmedian(cut[ring]) if np.isfinite(cut[ring]).any() else np.nan
        star = np.where(np.isfinite(cut), cut, level) - level
        at_x, at_y, _ = sep.winpos(star, reach, reach, fwhm / gaussian_sigma_to_fwhm)
        if max(abs(at_x - reach), abs(at_y - reach)) < 1 and star[near].sum() > 0:
            moved = interpolated(star).shift(reach - at_x, reach - at_y).drawImage(
                nx=len(star), ny=len(star), scale=1.0, method="no_pixel"
            ).array  # fmt: skip
            stars.append(moved / moved[near].sum())
    if len(stars) < _FEWEST_STACKED:
        return None
    _, sky, tail = _light_within(light, fwhm)
    from_middle = np.hypot(*np.indices((SIDE, SIDE)) - SIDE // 2) / fwhm
    rings = light[4:] / light[0] * fwhm**2 - sky
    far = np.where(
        from_middle < _MIDDLE[_FAR][0],
        np.interp(from_middle, _MIDDLE, rings), tail * from_middle.clip(1) ** -3,
    ) / fwhm**2  # fmt: skip
    off = SIDE // 2 - reach
    inner = (slice(off, SIDE - off),) * 2
    stacked = np.median(stars, axis=0)
    stacked += far[inner][ring].mean() - stacked[ring].mean()
    share = np.clip((_KNOWN - away) / (_KNOWN - _STACKED), 0, 1)
    far[inner] += share * (stacked - far[inner])
    return centred(far)
