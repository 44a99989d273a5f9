"""Preparing images: from pixels to image / noise, with what is missing marked."""

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy import ndimage

from probablend.background import (
    MAX_SIGNAL,
    estimate_sky,
    level_of_empty_pixels,
    noise_of_sky,
    sky_between_sources,
)
from probablend.correlation import correlation_factor, noise_factors
from probablend.images import as_plane

__all__ = [
    "NothingToSegmentError",
    "PreparedImage",
    "masked_pixels",
    "prepare_image",
    "rms_of_variance",
    "rms_of_weight",
    "usable_at",
]

log = logging.getLogger(__name__)

_REGION = 1024  # pixels in the middle that tell how correlated the noise is
_MOST_MASKED = 0.7  # share of them
# Noise that is given, over the scatter of the pixels: crowds make that larger, drizzling smaller.
_LEAST_NOISE, _MOST_NOISE = 0.3, 4.0
# It is that of pixels alone if correlated noise is this much stronger, and it by less than a part.
_CORRELATED, _PART = 1.2, 0.3
# Times the noise; pixels, and the share of them that a mask leaves out if it marks sources.
_BRIGHT, _MANY, _NEARLY_ALL = 10.0, 200, 0.9
# A background is taken out when its level or its changes are larger than so many times the noise.
# Halos of large galaxies look like changes, and where no sky is seen a level may be theirs.
_LEVEL_TOLERANCE, _BACKGROUND_TOLERANCE = 0.1, 0.3
_LEAST_LEVEL = 0.02  # of empty pixels: what it is known to, in units of the noise
_AROUND = np.array([(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])  # a pixel and its eight
# A patch of exact zeros this large is where a mosaic has no data.
_MIN_HOLE = 100


class NothingToSegmentError(ValueError):
    """An image, or a part of one, without a usable pixel."""


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """An image in units of its noise.

    Parameters
    ----------
    signal : ndarray, shape (y, x), float32
        (image − background) / rms; 0 where masked.
    rms : ndarray or float
        Noise per pixel, file units.
    mask : ndarray of bool, shape (y, x)
        True = do not use.
    background : float
        Median of what was subtracted, file units; 0 if nothing was.
    flat : bool
        Whether that is one level, of the pixels where no source is seen.
    """

    signal: np.ndarray
    rms: np.ndarray | float
    mask: np.ndarray = field(repr=False)
    background: float = 0.0
    flat: bool = False

    @cached_property
    def noise_factors(self) -> tuple[float, float]:
        """How correlated the noise is, in the middle.

        See :func:`~probablend.correlation.noise_factors`.
        """
        middle = _middle(self.mask)
        return noise_factors(self.signal[middle], self.mask[middle])


def masked_pixels(flags: np.ndarray, bits: int = -1) -> np.ndarray:
    """Which pixels of a map of flags are not to be used; those that are not numbers never are."""
    flags = np.asarray(flags)
    if bits < 0:
        return np.nan_to_num(flags, nan=1.0) != 0
    whole = flags if flags.dtype.kind in "iub" else np.where(np.isfinite(flags), flags, -1)
    return (whole.astype(np.int64) & bits) != 0


def usable_at(pixel: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Whether most of the 3 × 3 pixels around some pixels, (pixel, 2), are not masked.

    A hole of a cosmic ray takes no source away; the border of a mask gives none.
    """
    around = pixel[:, None] + _AROUND
    inside = ((around >= 0) & (around < mask.shape)).all(axis=2)
    row, column = np.moveaxis(around.clip(0, np.array(mask.shape) - 1), 2, 0)
    return (inside & ~mask[row, column]).sum(axis=1) * 2 > inside.sum(axis=1)


def rms_of_weight(weight: np.ndarray) -> np.ndarray:
    """Noise per pixel of inverse variances; NaN, which means missing, where there is no weight."""
    return np.where(weight > 0, weight, np.nan) ** -0.5


def rms_of_variance(variance: np.ndarray) -> np.ndarray:
    """Noise per pixel of variances; NaN, which means missing, where there is none."""
    return np.where(variance > 0, variance, np.nan) ** 0.5


def prepare_image(
    image: np.ndarray,
    *,
    rms: float | np.ndarray | None = None,
    mask: np.ndarray | None = None,
    background: str | float = "auto",
    compare_noise: bool = True,
) -> PreparedImage:
    """Subtract the background if there is one, divide by the noise, mark what is missing.

    Parameters
    ----------
    image : ndarray, shape (y, x)
        Pixels, any unit.
    rms : float or ndarray, optional
        Noise per pixel of the sky, same unit, as strong as it is over the area of a PSF: of
        correlated noise more than the scatter of its pixels. Estimated if not given, as a map where
        it changes over a large image by more than 4 %, and then raised if it is correlated, see
        :func:`~probablend.correlation.correlation_factor`. A map loses the photons of sources and
        its pixel-to-pixel scatter, see :func:`~probablend.background.noise_of_sky`; its pixels
        that are not positive and finite are masked: zero means missing.
    mask : ndarray of bool, optional
        True = do not use. Pixels that are not finite, and patches of exact zeros in an image
        that is not of whole numbers (where a mosaic has no data), are masked anyway.
    background : {"auto", "subtract", "none"} or float
        ``"auto"`` subtracts a map if its level exceeds 0.1 of the noise (0.3 where hardly any sky
        is seen between the sources), or its changes 0.3; else the level of the pixels where no
        source is seen, if that exceeds 0.02. A number is a level, in the image's unit.
    compare_noise : bool
        Whether to warn if the noise that is given is far from the scatter of the pixels.

    Returns
    -------
    PreparedImage

    Raises
    ------
    ValueError
        If nothing is left to work on, the image is constant, the noise is not positive, or
        shapes differ.
    """
    hidden = np.ma.getmaskarray(image)
    image = as_plane(np.asarray(image), "image")
    told = not isinstance(background, str)
    if not (np.isfinite(background) if told else background in ("auto", "subtract", "none")):
        raise ValueError(f"background must be auto, subtract, none or a level; got {background!r}")
    wanted = background in ("auto", "subtract")
    given = None if rms is None else _check_rms(rms, image.shape)
    bad = _unusable(image, hidden, mask, given)
    if bad.all():
        raise NothingToSegmentError(
            "image has no usable pixel: all are NaN, masked or without noise"
        )
    good = image[~bad]
    if good.min() == good.max():
        raise NothingToSegmentError(f"image is constant ({good[0]:g}): there is nothing to segment")

    clean = np.where(bad, np.median(good), image).astype(np.float32)
    level: np.ndarray | float = 0.0
    spread = np.nan
    if given is None or compare_noise or wanted:
        level, spread = estimate_sky(clean, bad)
    seen = None  # level and noise of the sky between the sources, where those fill the image
    if given is None:
        if not (np.isfinite(spread) and spread > 0):
            raise NothingToSegmentError("the noise cannot be estimated: give it with rms")
        seen = sky_between_sources(clean, bad, level, spread)
        level, noise = seen or (level, spread)
        noise = noise * _correlation(clean, bad, level, noise)
    else:
        noise = given
        if compare_noise:
            _compare_noise(_typical(noise, bad), spread)
    # Half the field may be deeper: compare with the typical noise.
    typical = _typical(noise, bad)
    if mask is not None and compare_noise:
        _warn_of_sources(image, np.asarray(mask, bool), float(np.median(good)), typical)
    if given is not None and wanted:
        large = background == "subtract" or max(_strength(level)) > _LEVEL_TOLERANCE * typical
        seen = sky_between_sources(clean, bad, level, spread) if large else None
        level, _ = seen or (level, spread)
    subtract = background == "subtract"
    if background == "auto":
        height, changes = _strength(level)
        least = _LEVEL_TOLERANCE if seen else _BACKGROUND_TOLERANCE
        subtract = height > least * typical or changes > _BACKGROUND_TOLERANCE * typical
    if told:
        level, subtract = float(background), True
    elif subtract:
        log.info("subtracted a background of median %.4g", float(np.median(level)))
    if given is not None and compare_noise:
        _warn_of_correlation(clean, bad, level, noise, spread)
    level = level if subtract else 0.0
    if isinstance(given, np.ndarray):
        noise = noise_of_sky(given, clean - level, bad)
    prepared = _in_noise(clean, level, noise, bad)
    if background != "auto" or subtract:
        return prepared
    height = level_of_empty_pixels(prepared.signal, prepared.mask)
    if abs(height) < _LEAST_LEVEL:
        return prepared
    log.info(
        "subtracted the level of empty pixels: %.4g, %+.2f of the noise", height * typical, height
    )
    return replace(_in_noise(clean, height * typical, noise, bad), flat=True)


def _in_noise(
    clean: np.ndarray, level: np.ndarray | float, noise: np.ndarray | float, bad: np.ndarray
) -> PreparedImage:
    """An image less its background, over its noise."""
    divisor = np.where(bad, 1, noise) if isinstance(noise, np.ndarray) else noise
    with np.errstate(over="ignore"):
        signal = ((clean - level) / divisor).astype(np.float32)
    bad = bad | ~(np.abs(signal) < MAX_SIGNAL)
    if bad.all():
        raise NothingToSegmentError(
            f"every pixel exceeds {MAX_SIGNAL:g} times the noise: is rms in the image's unit?"
        )
    signal[bad] = 0
    return PreparedImage(signal=signal, rms=noise, mask=bad, background=float(np.median(level)))


def _unusable(
    image: np.ndarray,
    hidden: np.ndarray,
    mask: np.ndarray | None,
    noise: float | np.ndarray | None,
) -> np.ndarray:
    """Pixels that are missing, masked or without noise; ``hidden`` by the array itself."""
    bad = ~np.isfinite(image) | _holes(image)
    if hidden.any():
        bad |= hidden.reshape(image.shape)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != image.shape:
            raise ValueError(f"mask must have the image's shape {image.shape}; got {mask.shape}")
        bad |= mask.astype(bool)
    if isinstance(noise, np.ndarray):
        bad |= ~(np.isfinite(noise) & (noise > 0))
    return bad


def _correlation(
    clean: np.ndarray, bad: np.ndarray, level: float | np.ndarray, noise: float | np.ndarray
) -> float:
    """By what the noise counts as more than the scatter of pixels; says what was estimated."""
    factor = _factor(clean, bad, level, noise)
    typical = _typical(noise, bad)
    log.info(
        "estimated noise: %.4g per pixel%s%s", typical,
        ", a map, since it changes over the image" if isinstance(noise, np.ndarray) else "",
        f", counted as {typical * factor:.4g}, since it is correlated: {factor:.2f} times as "
        "strong on the scale of a source" if factor > 1 else "",
    )  # fmt: skip
    return factor


def _factor(
    clean: np.ndarray, bad: np.ndarray, level: float | np.ndarray, noise: float | np.ndarray
) -> float:
    """How correlated the noise is in the middle, once the background is gone."""
    middle = _middle(bad)
    here, under = (v[middle] if isinstance(v, np.ndarray) else v for v in (level, noise))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        flat = np.nan_to_num((clean[middle] - here) / under).clip(-MAX_SIGNAL, MAX_SIGNAL)
    return correlation_factor(flat.astype(np.float32), bad[middle])


def _strength(level: float | np.ndarray) -> tuple[float, float]:
    """How high a background is, and how much it changes."""
    return abs(float(np.median(level))), float(np.std(level, dtype=float))


def _middle(mask: np.ndarray) -> tuple[slice, ...]:
    """What tells how correlated the noise is: the middle, or all if that has hardly a pixel."""
    box = tuple(slice(max(0, (n - _REGION) // 2), (n + _REGION) // 2) for n in mask.shape)
    return box if np.mean(mask[box]) < _MOST_MASKED else (slice(None), slice(None))


def _typical(noise: float | np.ndarray, bad: np.ndarray) -> float:
    """The noise of most pixels."""
    return float(np.median(noise[~bad])) if isinstance(noise, np.ndarray) else noise


def _compare_noise(given: float, spread: float) -> None:
    """Say so if the noise that was given is not that of the pixels."""
    if not (spread > 0 and _LEAST_NOISE < given / spread < _MOST_NOISE):
        log.warning(
            "the noise that was given, %.3g per pixel, is %.2g times what the pixels scatter by: "
            "rms is a standard deviation, variance its square, weight one over that",
            given, given / spread if spread > 0 else np.inf,
        )  # fmt: skip


def _warn_of_correlation(
    clean: np.ndarray,
    bad: np.ndarray,
    level: float | np.ndarray,
    noise: float | np.ndarray,
    spread: float,
) -> None:
    """Say so if the noise that was given is that of pixels, and theirs is correlated."""
    given = _typical(noise, bad)
    if not _LEAST_NOISE * spread < given < (1 + _PART * (_MOST_NOISE - 1)) * spread:
        return
    factor = _factor(clean, bad, level, noise)
    if factor > _CORRELATED and given < (1 + _PART * (factor - 1)) * spread:
        log.warning(
            "the noise that was given is what pixels scatter by, but theirs is correlated: over "
            "the area of a PSF it is %.2f times as strong, which is what is meant; give it times "
            "that, or none to have it estimated", factor,
        )  # fmt: skip


def _warn_of_sources(image: np.ndarray, mask: np.ndarray, level: float, noise: float) -> None:
    """Say so if a mask leaves out nearly all that is bright: some mark what was detected."""
    # A hot pixel or a cosmic ray has not as bright a neighbourhood.
    smooth = ndimage.median_filter(np.nan_to_num(image - level), 3)
    bright = smooth > _BRIGHT * noise
    n, masked = int(bright.sum()), int((bright & mask).sum())
    if n >= _MANY and masked > _NEARLY_ALL * n:
        log.warning(
            "the mask leaves out %d of %d pixels brighter than %g times the noise: if it marks "
            "what was detected, too, say which bits count (flag_bits, --flag-bits)",
            masked, n, _BRIGHT,
        )  # fmt: skip


def _holes(image: np.ndarray) -> np.ndarray:
    """Patches of exact zeros: no data there. A picture or counts may well be zero."""
    zero = image == 0
    finite = image[np.isfinite(image)]
    if zero.sum() < _MIN_HOLE or (finite == np.round(finite)).all():
        return np.zeros(image.shape, dtype=bool)
    patches, _ = ndimage.label(zero, structure=np.ones((3, 3)))
    large = np.bincount(patches.ravel()) >= _MIN_HOLE
    large[0] = False
    return large[patches]


def _check_rms(rms: float | np.ndarray, shape: tuple[int, ...]) -> float | np.ndarray:
    missing = np.ma.getmaskarray(rms)
    values = np.where(missing, np.float32(np.nan), np.asarray(rms, dtype=np.float32))
    if values.ndim == 0:
        if not (np.isfinite(values) and values > 0):
            raise ValueError(f"rms must be positive; got {float(values):g}")
        return float(values)
    if values.shape != shape:
        raise ValueError(f"rms must have the image's shape {shape}; got {values.shape}")
    if not (values > 0).any():
        raise NothingToSegmentError("rms must be positive; the map has no positive pixel")
    if (values < 0).any():
        n_negative = int((values < 0).sum())
        raise ValueError(f"rms must be positive; the map has {n_negative} negative pixels")
    return values
