"""A PSF in numbers: its width, and how much of a point source's light lies in its wings.

A full width at half maximum says nothing of what lies beyond: with the same width a Moffat or an
Airy profile has a tenth of its light where a Gaussian has none, and a network that does not know
takes wings for the galaxy's or the galaxy's for wings. Three numbers say it: the logarithm of the
share of the light within Gaussian weights of one, two and four FWHM, over that of a Gaussian PSF.
They hardly depend on the pixels. Where sources are fitted, an image says what these numbers do not:
rings, spikes and lobes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import galsim
import numpy as np
from astropy.io import fits
from astropy.stats import gaussian_sigma_to_fwhm, mad_std
from scipy.optimize import least_squares

from probablend.images import read_image, split_extension

__all__ = [
    "N_WINGS",
    "PSF",
    "SIDE",
    "STARS_UNSURE",
    "WEIGHTS",
    "as_psf",
    "centred",
    "clean_psf",
    "fwhm_before_pixel",
    "half_maximum_width",
    "interpolated",
    "light_in_wings",
    "over_gaussian",
    "read_psf",
]

WEIGHTS = (1.0, 2.0, 4.0)  # σ of the weights, in FWHM
N_WINGS = len(WEIGHTS)
SIDE = 41  # pixels, of the image of a PSF that sources are fitted with
_ORIGINS = ("given", "measured", "assumed")
STARS_UNSURE = (0.05, 0.04, 0.03)  # of these logarithms, what few stars may leave open
_FINER = 6  # points per pixel where a width is measured
_FEWEST = 5  # pixels, side of an image of a PSF
_MOFFAT, _BARE = (3.0, 30.0), (20.0, 50.0)  # exponents of Moffat profiles
_LONGEST = 0.5  # ellipticities up to this
_MISFIT = 0.012  # of the brightest pixel
_SHARPEST = 0.6  # pixels, FWHM before the pixel
_RESOLVED = 2.5  # samples: a FWHM that interpolation finds wherever they lie
_MOST_SKY = 0.3  # of the light, were all of the image as bright as its border
_STANDS_OUT = 3.0  # standard deviations
_OFF_CENTRE = 0.25  # of the side, at most
_CENTRED = 0.02  # pixels
_WHOLE = 0.6  # of its half side: beyond, the image of a PSF falls to zero at the border


def clean_psf(image: np.ndarray, name: str) -> np.ndarray:
    """An image of a PSF to draw with: without a pedestal, and falling to zero at its border.

    Otherwise a square would surround every bright star.

    Parameters
    ----------
    image : ndarray, shape (y, x)
        Any unit.
    name : str
        For messages.

    Raises
    ------
    ValueError
        If it is no image, is not finite or holds nothing.
    """
    image = _plane(image, name)
    image = np.clip(image - np.median(_border(image)), 0, None)
    y, x = np.indices(image.shape)
    peak_y, peak_x = np.unravel_index(image.argmax(), image.shape)
    reach = np.hypot(y - peak_y, x - peak_x) / (min(image.shape) / 2)
    image *= 0.5 * (1 + np.cos(np.pi * np.clip((reach - _WHOLE) / (1 - _WHOLE), 0, 1)))
    if not image.sum() > 0:
        raise ValueError(f"{name} holds nothing that stands out of its border")
    return image


def _plane(image: np.ndarray, name: str) -> np.ndarray:
    """An image of a PSF as numbers; refused if it is none."""
    image = np.ma.filled(np.ma.asarray(image).astype(float), np.nan)
    if image.ndim != 2 or min(image.shape) < _FEWEST:
        raise ValueError(
            f"{name} must be an image of at least {_FEWEST} x {_FEWEST} pixels; "
            f"got shape {image.shape}"
        )
    if n_bad := int((~np.isfinite(image)).sum()):
        raise ValueError(
            f"{name} must hold finite numbers; {n_bad} pixels are not: cut them off, or set them "
            "to what they should be"
        )
    level = np.median(_border(image))
    if level - image.min() > image.max() - level:
        raise ValueError(f"{name} must be bright on dark: is its sign the right one?")
    return image


def _border(image: np.ndarray) -> np.ndarray:
    """Pixels of its first and last rows and columns."""
    return np.concatenate([image[[0, -1]].ravel(), image[:, [0, -1]].ravel()])


def _core_fit(
    image: np.ndarray, pixel: float, *, core: bool = False
) -> tuple[float, float, np.ndarray]:
    """An elliptical Moffat profile, integrated over pixels, fitted to the brightest few of them.

    Parameters
    ----------
    image : ndarray, shape (y, x)
        A point source.
    pixel : float
        Side of the pixels that its light was gathered in.
    core : bool
        Whether it is round and has hardly any wings, and is fitted to what is above half maximum.

    Returns
    -------
    float, float, ndarray
        FWHM before the pixel response; brightest pixel; what is left of the pixels.
    """
    width = 2 * np.sqrt((image > image.max() / 2).sum() / np.pi)
    n_around = max(1, round(width / 3)) if core else int(np.ceil(width / 2)) + 1
    betas = _BARE if core else _MOFFAT
    peak = [int(p) for p in np.unravel_index(image.argmax(), image.shape)]
    first = [max(0, p - n_around) for p in peak]
    box = [slice(low, p + n_around + 1) for low, p in zip(first, peak, strict=True)]
    data = image[tuple(box)] / image.max()
    within = pixel * ((np.arange(_FINER) + 0.5) / _FINER - 0.5)
    y, x = ((np.arange(n)[:, None] + within).ravel() for n in data.shape)

    def off(said: np.ndarray) -> np.ndarray:
        light, at_y, at_x, ln_fwhm, ln_beta, *ellipticity = said
        beta = np.exp(ln_beta)
        scale = np.exp(ln_fwhm) / (2 * np.sqrt(2 ** (1 / beta) - 1))
        dy, dx = y[:, None] - at_y, x - at_x
        e1, e2 = ellipticity or (0.0, 0.0)
        r2 = (1 + e1) * dy**2 + (1 - e1) * dx**2 - 2 * e2 * dx * dy
        r2 /= np.sqrt(1 - e1**2 - e2**2)  # of circles as large as the ellipses
        fine = np.exp(light) * (1 + r2 / scale**2) ** -beta
        n_y, n_x = data.shape
        return (fine.reshape(n_y, _FINER, n_x, _FINER).mean(axis=(1, 3)) - data).ravel()

    at = [p - low for p, low in zip(peak, first, strict=True)]
    shape = [] if core else [_LONGEST] * 2  # few pixels tell nothing of it
    start = [0.2, *at, np.log(max(0.9 * width, 0.7)), np.log(1.3 * betas[0]), *np.zeros(len(shape))]
    low = [-3, at[0] - 1, at[1] - 1, np.log(0.3), np.log(betas[0]), *(-e for e in shape)]
    high = [4, at[0] + 1, at[1] + 1, np.log(3 * width + 1), np.log(betas[1]), *shape]
    fit = least_squares(off, start, bounds=(low, high))
    return float(np.exp(fit.x[3])), float(image.max()), fit.fun * image.max()


def _without_noise(image: np.ndarray, noise: float) -> np.ndarray:
    """What is around the peak as far as rings about it stand out of the noise; 0 beyond."""
    y, x = np.indices(image.shape)
    peak_y, peak_x = np.unravel_index(image.argmax(), image.shape)
    ring = np.hypot(y - peak_y, x - peak_x).round().astype(int)
    n = np.bincount(ring.ravel())
    mean = np.bincount(ring.ravel(), image.ravel()) / np.maximum(n, 1)
    lost = (mean <= _STANDS_OUT * noise / np.sqrt(np.maximum(n, 1))) & (n > 0)
    last = int(np.argmax(lost)) if lost.any() else len(n)
    return np.where(ring < last, image, 0.0)


def interpolated(image: np.ndarray) -> galsim.GSObject:
    """What lies between the pixels of an image, which are one unit wide; of unit flux."""
    return galsim.InterpolatedImage(
        galsim.Image(image, scale=1.0), x_interpolant="lanczos5", flux=1.0,
        gsparams=galsim.GSParams(folding_threshold=1e-2),
    )  # fmt: skip


def centred(image: np.ndarray, sampling: float = 1.0) -> np.ndarray:
    """A point source moved to the middle of (SIDE, SIDE) pixels, of unit sum.

    Their sides are ``1 / sampling`` of those of ``image``.
    """
    core = np.where(image > 0.1 * image.max(), image, 0.0)
    y, x = (
        float((axis * core).sum() / core.sum()) - (n - 1) / 2
        for axis, n in zip(np.indices(image.shape), image.shape, strict=True)
    )
    if sampling == 1 and max(abs(y), abs(x)) < _CENTRED and min(n % 2 for n in image.shape):
        seen = np.zeros((SIDE, SIDE))  # there is nothing to interpolate
        reach = [min(SIDE, n) // 2 for n in image.shape]
        own, its = (
            tuple(slice(n // 2 - r, n // 2 + r + 1) for n, r in zip(shape, reach, strict=True))
            for shape in (seen.shape, image.shape)
        )
        seen[own] = image[its]
    else:
        seen = interpolated(image).shift(-x, -y).drawImage(
            nx=SIDE, ny=SIDE, scale=1 / sampling, method="no_pixel"
        ).array  # fmt: skip
    return (seen / seen.sum()).astype(np.float32)


def half_maximum_width(image: np.ndarray) -> float:
    """Diameter of the circle that is as large as what lies above half of the peak, pixels."""
    n_y, n_x = (_FINER * n for n in image.shape)
    smooth = interpolated(image)
    fine = smooth.drawImage(nx=n_x, ny=n_y, scale=1 / _FINER, method="no_pixel").array
    return float(2 * np.sqrt((fine > 0.5 * fine.max()).sum() / np.pi) / _FINER)


def fwhm_before_pixel(
    images: Sequence[np.ndarray], *, pixel: float = 1.0, noise: float = 0.0
) -> float:
    """FWHM of a PSF before the response of the pixels that its light was gathered in.

    Parameters
    ----------
    images : sequence of ndarray, shape (y, x)
        Point sources near their middles, their background 0.
    pixel : float
        Side of those pixels, in pixels of the images.
    noise : float
        Of each pixel.

    Returns
    -------
    float
        Where it is resolved, that of what is interpolated between the samples; else that of a
        Moffat profile or, if the images are none, of one without wings fitted to their cores.
    """
    widths = np.array([half_maximum_width(image) for image in images])
    fwhm2 = float(np.median(widths)) ** 2 - (gaussian_sigma_to_fwhm * pixel) ** 2 / 12
    if fwhm2 >= _RESOLVED**2:
        return float(np.sqrt(fwhm2))
    # Interpolation between so few samples depends on where they lie.
    fits = [_core_fit(image, pixel) for image in images]
    bright = np.median([peak for _, peak, _ in fits])
    misfits = [
        ((left**2).sum() - noise**2 * (left.size - 7)) / (peak**2 * left.size)
        for _, peak, left in fits
        if peak >= bright
    ]
    if np.median(misfits) > _MISFIT**2:  # diffraction rings, say
        fits = [_core_fit(image, pixel, core=True) for image in images]
    return float(np.median([fwhm for fwhm, _, _ in fits]))


@dataclass(frozen=True, kw_only=True)
class PSF:
    """What the field model is told of a PSF.

    Parameters
    ----------
    fwhm : float
        Full width at half maximum before the pixel response, pixels.
    wings : tuple of 3 float, optional
        See :func:`light_in_wings`; None if they are not known.
    origin : str
        ``"given"``, ``"measured"`` on the image's own stars, or ``"assumed"`` without any (at
        most as wide as the narrowest sources).
    image : ndarray, shape (41, 41), optional
        Of a point source in the middle, as the pixels of the image see it, of unit sum; None if
        its width, and the light in its wings, are all that is known.
    """

    fwhm: float
    wings: tuple[float, float, float] | None = None
    origin: str = "given"
    image: np.ndarray | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.origin not in _ORIGINS:
            raise ValueError(f"the origin of a PSF is one of {_ORIGINS}; got {self.origin!r}")
        if not (np.isfinite(self.fwhm) and self.fwhm > 0):
            raise ValueError(f"the fwhm of a PSF must be positive, pixels; got {self.fwhm}")
        wings = self.wings
        if wings is not None and not (len(wings) == N_WINGS and np.isfinite(wings).all()):
            raise ValueError(f"the wings of a PSF are {N_WINGS} finite numbers; got {wings}")
        if self.image is not None and self.image.shape != (SIDE, SIDE):
            raise ValueError(
                f"the image of a PSF has {SIDE} x {SIDE} pixels; got shape {self.image.shape}: "
                "PSF.of makes it from any"
            )

    def __str__(self) -> str:
        if self.wings is None:
            return f"FWHM {self.fwhm:.2f} pixels"
        share = np.exp(self.wings[0])
        return f"FWHM {self.fwhm:.2f} pixels, {share:.2f} of a Gaussian's light near it"

    @classmethod
    def of(cls, image: np.ndarray, *, sampling: float = 1.0, name: str = "psf") -> "PSF":
        """Measure one.

        Parameters
        ----------
        image : ndarray, shape (y, x)
            As PSFEx, photutils or a pipeline give it, the response of the pixels in it and no
            background; any unit. The larger the better: what lies beyond counts as no light.
        sampling : float
            Side of its pixels, in those of the image that it is for: 1 / oversampling.
        name : str
            For messages.

        Raises
        ------
        ValueError
            If it is no image, is not finite or holds nothing, has a background or its peak far
            from the middle, or is as sharp as a pixel.
        """
        if not (np.isfinite(sampling) and sampling > 0):
            raise ValueError(f"the sampling of {name} must be positive; got {sampling}")
        image = _plane(image, name)
        border = _border(image)
        level, noise = float(np.median(border)), float(mad_std(border))
        if not image.max() > level + _STANDS_OUT * noise:
            raise ValueError(f"{name} holds nothing that stands out of its border")
        alone = _without_noise(image, noise)
        significant = level > _STANDS_OUT * noise / np.sqrt(len(border))
        if not alone.sum() > 0 or (significant and level * image.size > _MOST_SKY * alone.sum()):
            raise ValueError(f"{name} must have no background: take out that of its border")
        peak = np.unravel_index(image.argmax(), image.shape)
        off = max(abs(p - (n - 1) / 2) / n for p, n in zip(peak, image.shape, strict=True))
        if off > _OFF_CENTRE:
            raise ValueError(
                f"{name} must be an image of one point source in its middle; the brightest pixel "
                f"is at y, x = {peak[0]}, {peak[1]} of {image.shape[0]} x {image.shape[1]}"
            )
        pixel = 1 / sampling
        fwhm = fwhm_before_pixel([image], pixel=pixel, noise=noise)
        if fwhm < _SHARPEST * pixel:
            raise ValueError(
                f"{name} is hardly wider than a pixel: it must be sampled on the pixels of the "
                "image, their response in it"
            )
        wings = light_in_wings(alone, fwhm, pixel=pixel)
        seen = centred(alone, sampling)
        return cls(fwhm=fwhm * sampling, wings=tuple(wings.tolist()), image=seen)

    @classmethod
    def read(cls, path: str | Path) -> "PSF":
        """Measure the one in a file.

        Parameters
        ----------
        path : str or Path
            An image (``FILE[EXT]`` names an extension), or what PSFEx writes, of which the PSF in
            the middle of the field is taken.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file, or no PSF in it.
        """
        image, sampling = read_psf(path)
        return cls.of(image, sampling=sampling, name=str(path))


def as_psf(psf: "PSF | np.ndarray | str | Path") -> PSF:
    """A PSF that is given as one, as an image, or as a file."""
    if isinstance(psf, PSF):
        return psf
    return PSF.read(psf) if isinstance(psf, str | Path) else PSF.of(psf)


def read_psf(path: str | Path) -> tuple[np.ndarray, float]:
    """Image of a PSF in a file, as :meth:`PSF.read` takes it, and its sampling."""
    name, extension = split_extension(path)
    models: list[tuple[np.ndarray, float]] = []
    if name.is_file():
        try:
            with fits.open(name) as hdus:
                for number, hdu in enumerate(hdus):
                    wanted = extension in (None, str(number), hdu.name)
                    if not (wanted and isinstance(hdu, fits.BinTableHDU)):
                        continue
                    if "PSF_MASK" in hdu.columns.names:
                        planes = np.asarray(hdu.data["PSF_MASK"][0], dtype=float)
                        models.append((planes[0], float(hdu.header.get("PSF_SAMP", 1.0))))
        except OSError:
            pass  # no FITS file: read_image says what it is
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(f"psf {path} cannot be read as a file of PSFEx: {error}") from error
    if len(models) > 1:
        raise ValueError(f"psf {path} holds PSFs of {len(models)} chips: name one, {name}[1]")
    if models:
        return models[0]
    try:
        return np.asarray(read_image(path).data, dtype=float), 1.0
    except FileNotFoundError as error:
        raise FileNotFoundError(f"psf {path} does not exist") from error


def light_in_wings(
    image: np.ndarray, fwhm: float, *, total: float | None = None, pixel: float = 1.0
) -> np.ndarray:
    """Light within Gaussian weights, over that of a Gaussian PSF of the same width.

    Parameters
    ----------
    image : ndarray, shape (y, x)
        Of a point source, its background 0.
    fwhm : float
        Before the pixel response, in pixels of the image.
    total : float, optional
        All of its light; that of the image if not given.
    pixel : float
        Side of the pixels that its light was gathered in, pixels; 0 for a profile at points.

    Returns
    -------
    ndarray, shape (3,)
        Natural logarithms, for weights of σ = 1, 2 and 4 FWHM; 0 for a Gaussian.
    """
    image = np.asarray(image, dtype=float)
    total = image.sum() if total is None else total
    y, x = (axis.astype(float) for axis in np.indices(image.shape))
    # The centre of the light of the core, which wings and noise hardly move.
    core = np.where(image > 0.1 * image.max(), image, 0.0)
    y, x = (axis - (core * axis).sum() / core.sum() for axis in (y, x))
    shares = [
        (image * np.exp(-0.5 * (y**2 + x**2) / (weight * fwhm) ** 2)).sum() / total
        for weight in WEIGHTS
    ]
    return over_gaussian(shares, fwhm, pixel=pixel)


def over_gaussian(shares: Sequence[float], fwhm: float, *, pixel: float = 1.0) -> np.ndarray:
    """Shares of a point source's light within the weights, over those of a Gaussian PSF.

    Parameters
    ----------
    shares : sequence of 3 float
        Within Gaussian weights of σ = 1, 2 and 4 FWHM.
    fwhm, pixel : float
        As for :func:`light_in_wings`.

    Returns
    -------
    ndarray, shape (3,)
        Natural logarithms.
    """
    sigma2 = (np.array(WEIGHTS) * fwhm) ** 2
    width2 = (fwhm / gaussian_sigma_to_fwhm) ** 2 + pixel**2 / 12
    return np.log(np.maximum(shares, 1e-3) * (sigma2 + width2) / sigma2)
