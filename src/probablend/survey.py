"""What a survey's image looks like: pixel scale, zero point, gain, sky noise and PSF.

A :class:`Survey` describes one co-added image in one band. The built-in ones come from
``surveycodex``, which cites a reference for each number; any other is read from a TOML
file. Astropy units stop here: everything downstream works in pixels and counts.
"""

import logging
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import surveycodex
from astropy.stats import gaussian_sigma_to_fwhm
from astropy.units import Quantity
from surveycodex.utilities import mean_sky_level

__all__ = [
    "PSF_PROFILES",
    "PSF_RANGE",
    "Survey",
    "available_surveys",
    "draw_survey",
    "get_survey",
    "limiting_flux",
    "read_survey",
    "survey_from",
]

log = logging.getLogger(__name__)

_LEAST_BETA, _MOST_BETA = 1.1, 100.0  # of a Moffat profile that need not be cut, or is a Gaussian
_SHARPEST = 0.2  # of a pixel
_MOST_ZEROPOINT = 60.0  # mag
_FEWEST_ELECTRONS = 5.0  # per pixel: below, no sky is seen from the ground or from space
PSF_PROFILES = ("gaussian", "moffat", "kolmogorov", "airy", "image")
# Of surveys that might be: FWHM in pixels; arcseconds per pixel, so that scenes hold some galaxies
# and not hundreds.
PSF_RANGE = (1.3, 7.0)
_SCALE_RANGE = (0.03, 0.4)
# Of Moffat profiles, even in 1/β, as the light in their wings is. Stars of KiDS say 1.9.
_BETA_RANGE = (1.8, 4.5)
# Telescopes on the ground see what is like a Moffat profile: it comes twice as often.
_PROFILES = ("gaussian", "moffat", "moffat", "kolmogorov", "airy")


@dataclass(frozen=True, kw_only=True)
class Survey:
    """One survey in one band.

    Parameters
    ----------
    name : str
        How the survey is called on the command line.
    pixel_scale : Quantity
        Angle per pixel.
    zeropoint : float
        AB magnitude of one count in the image.
    gain : float
        Electrons per count.
    sky_rms : float
        Sky noise per pixel, counts.
    psf_fwhm : Quantity
        Full width at half maximum of the PSF, an angle, before the pixel.
    psf_profile : {"gaussian", "moffat", "kolmogorov", "airy", "image"}
        Shape of the PSF. ``"airy"`` is a diffraction pattern of ``diffraction_scale``
        and ``obscuration``, widened by a Gaussian to the FWHM; ``"image"`` is ``psf_file``,
        stretched to the FWHM.
    psf_beta : float
        Moffat slope; read by ``"moffat"`` only.
    diffraction_scale : Quantity or None
        Wavelength over diameter, an angle; needed by ``"airy"`` only.
    obscuration : float
        Diameter of the central obstruction over that of the mirror; ``"airy"`` only.
    psf_g1, psf_g2 : float
        Shear of the PSF, pixel frame.
    psf_file : str
        FITS image of the PSF, or ``file.fits[NUMBER]`` of an extension; ``"image"`` only. It holds
        the response of its own pixels, or of the detector's if PSFEx wrote it.

    Raises
    ------
    ValueError
        If a number is not positive and finite, or the PSF is not described.
    """

    name: str
    pixel_scale: Quantity
    zeropoint: float
    gain: float
    sky_rms: float
    psf_fwhm: Quantity
    psf_profile: str = "moffat"
    psf_beta: float = 3.0
    diffraction_scale: Quantity | None = None
    obscuration: float = 0.0
    psf_g1: float = 0.0
    psf_g2: float = 0.0
    psf_file: str = ""

    def __post_init__(self) -> None:
        positive = {
            "pixel_scale": self.pixel_scale.to_value(u.arcsec),
            "gain": self.gain,
            "sky_rms": self.sky_rms,
            "psf_fwhm": self.psf_fwhm.to_value(u.arcsec),
        }
        for key, value in positive.items():
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"{key} must be positive and finite; got {value}")
        if not abs(self.zeropoint) <= _MOST_ZEROPOINT:
            raise ValueError(
                f"zeropoint must lie within {_MOST_ZEROPOINT:g} mag of 0; got {self.zeropoint}"
            )
        if not self.psf_fwhm >= _SHARPEST * self.pixel_scale:
            raise ValueError(
                f"psf_fwhm must be at least {_SHARPEST:g} of a pixel; got {self.psf_fwhm} and "
                f"pixels of {self.pixel_scale}"
            )
        if self.psf_profile not in PSF_PROFILES:
            raise ValueError(f"psf_profile must be one of {PSF_PROFILES}; got {self.psf_profile!r}")
        if not np.hypot(self.psf_g1, self.psf_g2) < 1:
            raise ValueError(
                f"psf_g1, psf_g2 must be a shear below 1; got {self.psf_g1}, {self.psf_g2}"
            )
        if not _LEAST_BETA < self.psf_beta <= _MOST_BETA:
            raise ValueError(
                f"psf_beta must be above {_LEAST_BETA} and at most {_MOST_BETA:g}; got "
                f"{self.psf_beta}: beyond, a Moffat profile is a Gaussian"
            )
        if not 0 <= self.obscuration < 1:
            raise ValueError(f"obscuration must lie between 0 and 1; got {self.obscuration}")
        if self.diffraction_scale is not None and not (
            0 * u.arcsec < self.diffraction_scale < np.inf * u.arcsec
        ):
            raise ValueError(
                f"diffraction_scale must be positive, arcsec; got {self.diffraction_scale}"
            )
        if self.psf_profile == "airy" and self.diffraction_scale is None:
            raise ValueError("psf_profile 'airy' needs diffraction_scale (wavelength / diameter)")
        if (self.psf_profile == "image") != bool(self.psf_file):
            raise ValueError(
                f"psf_file belongs to psf_profile 'image', which needs it; got {self.psf_file!r} "
                f"with {self.psf_profile!r}"
            )

    @property
    def scale(self) -> float:
        """Arcseconds per pixel."""
        return float(self.pixel_scale.to_value(u.arcsec))

    @property
    def psf_fwhm_pixels(self) -> float:
        """FWHM of the PSF in pixels."""
        return float((self.psf_fwhm / self.pixel_scale).to_value(u.dimensionless_unscaled))

    @property
    def depth(self) -> float:
        """AB magnitude of a point source of 5 σ, from the sky alone."""
        return float(self.mag(limiting_flux(self.sky_rms, self.psf_fwhm_pixels)))

    def as_dict(self) -> dict[str, float | str]:
        """Plain values, angles in arcseconds, as :func:`survey_from` takes them."""
        values: dict[str, float | str] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and value != "":
                is_angle = isinstance(value, Quantity)
                values[item.name] = float(value.to_value(u.arcsec)) if is_angle else value
        return values

    def flux(self, mag: float | np.ndarray) -> np.ndarray:
        """Counts in the image of AB magnitude ``mag``, same shape."""
        return 10.0 ** (-0.4 * (np.asarray(mag, dtype=float) - self.zeropoint))

    def mag(self, flux: float | np.ndarray) -> np.ndarray:
        """AB magnitude of ``flux`` counts; NaN where the flux is not positive."""
        flux = np.asarray(flux, dtype=float)
        safe = np.where(flux > 0, flux, np.nan)
        return self.zeropoint - 2.5 * np.log10(safe)


def limiting_flux(rms: float, fwhm: float) -> float:
    """Flux of a point source of 5 σ under a noise per pixel, with a Gaussian PSF (FWHM, pixels)."""
    return 5 * rms * math.sqrt(4 * math.pi) * fwhm / gaussian_sigma_to_fwhm  # √(effective area)


# name → (survey, filter, PSF profile). Space telescopes are close to their diffraction
# limit; long exposures through the atmosphere have a Kolmogorov PSF.
_CODEX = {
    "euclid-vis": ("Euclid_VIS", "IE", "airy"),
    **{f"lsst-{band}": ("LSST", band, "kolmogorov") for band in "ugrizy"},
    **{f"hsc-{band}": ("HSC", band, "kolmogorov") for band in "grizy"},
    **{f"des-{band}": ("DES", band, "kolmogorov") for band in "grizY"},
    "roman-f106": ("Roman_WFI", "F106", "airy"),
    "roman-f129": ("Roman_WFI", "F129", "airy"),
    "roman-f158": ("Roman_WFI", "F158", "airy"),
    "cosmos-f814w": ("COSMOS", "f814w", "airy"),
}
# Of the mirror's diameter (Krist, Hook & Stoehr 2011; GalSim's Roman module). The codex has the
# share of the area: for Roman with struts and baffles, for Hubble this same number.
_OBSCURATIONS = {"COSMOS": 0.33, "Roman_WFI": 0.32}
_ALIASES = {"roman": "roman-f158", "des": "des-i", "hsc": "hsc-i", "lsst": "lsst-i"}


def _from_codex(name: str) -> Survey:
    survey_name, band, profile = _CODEX[name]
    codex = surveycodex.get_survey(survey_name)
    filt = codex.get_filter(band)
    gain = float(codex.gain.value)  # e⁻ per ADU
    exposure = filt.full_exposure_time.to_value(u.s)
    sky_electrons = float(mean_sky_level(codex, filt).value)
    return Survey(
        name=name,
        pixel_scale=codex.pixel_scale,
        # surveycodex: magnitude of 1 e⁻/s. Ours: of 1 ADU over the whole exposure.
        zeropoint=float(filt.zeropoint.value) + 2.5 * math.log10(exposure / gain),
        gain=gain,
        sky_rms=math.sqrt(sky_electrons) / gain,
        psf_fwhm=filt.psf_fwhm,
        psf_profile=profile,
        diffraction_scale=(filt.effective_wavelength / codex.mirror_diameter).to(
            u.arcsec, equivalencies=u.dimensionless_angles()
        ),
        obscuration=_OBSCURATIONS.get(survey_name) or math.sqrt(float(codex.obscuration)),
    )


def _candels_f160w() -> Survey:
    """CANDELS wide, WFC3 F160W.

    Zero point and pixel scale as in arXiv:1905.01324; 5 σ depth 27.36 mag in an aperture
    of 0.17″ radius (Guo et al. 2013, GOODS-S wide); exposure 2 × 1 300 s (Grogin et al.
    2011), images in counts per second.
    """
    scale, zeropoint, radius, depth = 0.06, 25.96, 0.17, 27.36
    n_pixels = math.pi * (radius / scale) ** 2
    return Survey(
        name="candels-f160w",
        pixel_scale=scale * u.arcsec,
        zeropoint=zeropoint,
        gain=2600.0,
        sky_rms=10 ** (-0.4 * (depth - zeropoint)) / (5 * math.sqrt(n_pixels)),
        psf_fwhm=0.18 * u.arcsec,
        psf_profile="airy",
        diffraction_scale=(1.54e-6 / 2.4) * u.rad,
        obscuration=_OBSCURATIONS["COSMOS"],
    )


def available_surveys() -> list[str]:
    """Names that :func:`get_survey` knows, without their aliases."""
    return sorted([*_CODEX, "candels-f160w"])


def get_survey(name: str | Path) -> Survey:
    """Survey by name, or from a TOML file.

    Parameters
    ----------
    name : str or Path
        One of :func:`available_surveys`, an alias (``lsst``, ``hsc``, ``des``, ``roman``),
        or the path of a TOML file (see :func:`read_survey`).

    Raises
    ------
    ValueError
        If the name is not known.
    FileNotFoundError
        If a TOML file is named that does not exist.
    """
    text = str(name)
    if text.endswith(".toml"):
        return read_survey(Path(text))
    key = text.lower()
    key = _ALIASES.get(key, key)
    key = "des-Y" if key == "des-y" else key
    if key == "candels-f160w":
        return _candels_f160w()
    if key not in _CODEX:
        raise ValueError(
            f"unknown survey {text!r}; known: {', '.join(available_surveys())}; or give a TOML file"
        )
    return _from_codex(key)


def draw_survey(
    generator: np.random.Generator, *, psf_files: Sequence[str] = (), image_fraction: float = 1 / 3
) -> Survey:
    """A survey that might be: any PSF of 1.3 to 7 pixels, any depth.

    Parameters
    ----------
    generator : numpy.random.Generator
        Chooses PSF (width, profile, ellipticity), pixel scale, depth and gain.
    psf_files : sequence of str
        Images of real PSFs, as in :class:`Survey`.
    image_fraction : float
        Share of the surveys that have one of them, where there are any.
    """

    def between(low: float, high: float) -> float:
        return float(np.exp(generator.uniform(np.log(low), np.log(high))))

    pixels = between(*PSF_RANGE)
    low, high = (scale * pixels for scale in _SCALE_RANGE)
    fwhm = between(max(low, 0.1), min(high, 1.4))
    profile = str(generator.choice(_PROFILES))
    depth, zeropoint = generator.uniform(23.5, 28.0), 25.0
    sky_rms = 10 ** (-0.4 * (depth - zeropoint)) / limiting_flux(1.0, pixels)
    shear, angle = 0.1 * generator.uniform() ** 2, generator.uniform(0, 2 * math.pi)
    psf_file = ""
    if psf_files and generator.uniform() < image_fraction:
        profile, psf_file = "image", str(generator.choice(psf_files))
    return Survey(
        name=f"{profile}-{pixels:.2f}px",
        pixel_scale=fwhm / pixels * u.arcsec,
        zeropoint=zeropoint,
        gain=between(10, 1000) / sky_rms,
        sky_rms=sky_rms,
        psf_fwhm=fwhm * u.arcsec,
        psf_profile=profile,
        psf_beta=float(1 / generator.uniform(1 / _BETA_RANGE[1], 1 / _BETA_RANGE[0])),
        diffraction_scale=fwhm / generator.uniform(1.05, 1.6) * u.arcsec,
        obscuration=float(generator.uniform(0, 0.45)),
        psf_g1=shear * math.cos(angle),
        psf_g2=shear * math.sin(angle),
        psf_file=psf_file,
    )


def read_survey(path: Path) -> Survey:
    """Survey from a TOML file.

    Angles are in arcseconds. For example::

        name = "my-survey"
        pixel_scale = 0.2
        zeropoint = 27.0
        gain = 150.0
        sky_rms = 0.05
        psf_fwhm = 0.7
        psf_profile = "moffat"

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not TOML, a key is missing or unknown, or a value is out of range.
    """
    if not path.is_file():
        raise FileNotFoundError(f"survey file {path} does not exist")
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"survey file {path} is not valid TOML: {error}") from error
    survey = survey_from(values, where=f"survey file {path}")
    _warn_of_gain(path, survey)
    return survey


@cache
def _warn_of_gain(path: Path, survey: Survey) -> None:
    """Say, once, that there are next to no electrons from the sky."""
    if (electrons := (survey.sky_rms * survey.gain) ** 2) < _FEWEST_ELECTRONS:
        log.warning(
            "survey file %s: a sky noise of %g counts at a gain of %g is that of %.2g electrons "
            "per pixel: is gain in electrons per count?",
            path, survey.sky_rms, survey.gain, electrons,
        )  # fmt: skip


def survey_from(values: Mapping[str, Any], *, where: str) -> Survey:
    """Survey from plain values, as :meth:`Survey.as_dict` gives them.

    Parameters
    ----------
    values : mapping
        Its fields, angles in arcseconds.
    where : str
        Where they come from, for the error message.

    Raises
    ------
    ValueError
        If a key is missing or unknown, or a value is out of range.
    """
    known = {field.name for field in fields(Survey)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{where} has unknown keys {unknown}; known keys: {sorted(known)}")
    needed = {"name", "pixel_scale", "zeropoint", "gain", "sky_rms", "psf_fwhm"}
    missing = sorted(needed - set(values))
    if missing:
        raise ValueError(f"{where} lacks {missing}")
    text_keys = {"name", "psf_profile", "psf_file"}
    for key, value in values.items():
        wanted = str if key in text_keys else (int, float)
        if not isinstance(value, wanted) or isinstance(value, bool):
            kind = "text" if key in text_keys else "a number"
            raise ValueError(f"{where}: {key} must be {kind}; got {value!r}")
    try:
        values = {k: v if k in text_keys else float(v) for k, v in values.items()}
    except OverflowError as error:
        raise ValueError(f"{where}: a number is too large: {error}") from error
    if not (values["name"].strip() and values["name"].isascii() and values["name"].isprintable()):
        raise ValueError(f"{where}: name must be plain text, for headers; got {values['name']!r}")
    angles = {"pixel_scale", "psf_fwhm", "diffraction_scale"} & set(values)
    return Survey(**{**values, **{key: values[key] * u.arcsec for key in angles}})
