"""What a FITS header says of an image: coordinates, zero point, saturation."""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning
from astropy.wcs.utils import proj_plane_pixel_area

__all__ = ["Cards", "celestial_wcs", "header_numbers", "one_line", "unit_zeropoint"]

log = logging.getLogger(__name__)

# Units that astropy does not know by these names, in maggies.
_MAGGIES = {"nanomaggy": 1e-9, "nanomaggies": 1e-9, "nmgy": 1e-9, "maggy": 1.0, "maggies": 1.0}
_ZEROPOINT_KEYS = (
    "PHOTZP", "MAGZERO", "MAGZP", "MAGZEROP", "MAG_ZERO", "ZEROPNT", "ZEROPT", "ZP",
)  # fmt: skip
# What a detector counts, in all or in a second.
_COUNTED = re.compile(
    r"(?:electrons?|e-?|counts?|cts?|dn|adu)(?P<rate> ?/ ?s(?:ec(?:onds?)?)?| s-1)?|(?P<cps>cps)"
)
_NO_ZEROPOINT = 90.0  # mag: -99 and the like stand for none


class Cards(Mapping[str, Any]):
    """Several headers as one: of each card the first that has it, and that can be read."""

    def __init__(self, *headers: Mapping[str, Any]) -> None:
        self._headers = headers

    def __getitem__(self, key: str) -> Any:
        for header in self._headers:
            try:
                return header[key]
            except (KeyError, fits.VerifyError):
                continue
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter({key for header in self._headers for key in header})

    def __len__(self) -> int:
        return len(set(self))


def header_numbers(
    header: Mapping[str, Any], wcs: WCS | None = None, unit: u.UnitBase | None = None
) -> dict[str, Any]:
    """Zero point and saturation level, named as in :class:`ImageData`, if a header has them.

    A zero point of its own; or that of ``BUNIT`` where it is a flux density, per pixel or per solid
    angle, of which ``PIXAR_SR`` or the coordinates say how much a pixel has; or that of electrons
    and counts by ``PHOTFLAM`` and ``PHOTPLAM`` (HST). A ``unit`` that is known wins over ``BUNIT``.

    Raises
    ------
    ValueError
        If pixels are not linear, as in stacks of Pan-STARRS.
    """
    if "BSOFTEN" in header and "BOFFSET" in header:
        raise ValueError(
            "pixels are compressed, as in stacks of Pan-STARRS (BSOFTEN, BOFFSET); linear ones "
            "are wanted: BOFFSET + 2 BSOFTEN sinh(pixel / 1.0857362), without these two cards"
        )
    zeropoint = _number(header, _ZEROPOINT_KEYS, most=_NO_ZEROPOINT)
    if zeropoint is None and (one := _number(header, ("FLUXMAG0",), positive=True)):
        zeropoint = 2.5 * float(np.log10(one))  # of the flux of 0 mag
    text = _text(header, "BUNIT") if unit is None else unit.to_string()
    if zeropoint is None:
        area = _number(header, ("PIXAR_SR",), positive=True)
        if area is None and wcs is not None:
            area = float((proj_plane_pixel_area(wcs.celestial) * u.deg**2).to_value(u.sr))
        zeropoint = unit_zeropoint(_of_pixels(_unit(text) if unit is None else unit, area))
    if zeropoint is None:
        zeropoint = _hubble_zeropoint(header, text)
    if zeropoint is None and (per := _number(header, ("MAGZPT",), most=_NO_ZEROPOINT)):
        seconds = _number(header, ("EXPTIME",))
        if seconds in (None, 1.0):
            zeropoint = per
        else:
            log.warning(
                "MAGZPT %g is not used: of one count per second or of one of the %g s, zeropoint "
                "(--zeropoint) says", per, seconds,
            )  # fmt: skip
    return {
        "zeropoint": zeropoint,
        "saturation": _number(header, ("SATURATE",), positive=True),
    }


def celestial_wcs(header: fits.Header) -> WCS | None:
    """World coordinates of a header; None if it has none of the sky that can be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        try:
            wcs = WCS(header, naxis=2)
        except Exception as error:
            log.warning("the header's world coordinates cannot be used: %s", one_line(error))
            return None
    return wcs if wcs.has_celestial else None


def _hubble_zeropoint(header: Mapping[str, Any], unit: str) -> float | None:
    """That of the calibration of HST, of which one unit is an electron or a count per second.

    Of images that count all that came, the exposure time has it. What drizzling wrote,
    ``D001OUUN``, wins over the unit, which older files kept as it was.
    """
    flux = _number(header, ("PHOTFLAM",), positive=True)  # erg / s / cm² / Å
    pivot = _number(header, ("PHOTPLAM",), positive=True)  # Å
    counted = _COUNTED.fullmatch((_text(header, "D001OUUN") or unit).lower())
    if flux is None or pivot is None or counted is None:
        return None
    seconds = (
        1.0 if counted["rate"] or counted["cps"] else _number(header, ("EXPTIME",), positive=True)
    )
    if seconds is None:
        return None
    density = flux * u.erg / (u.s * u.cm**2 * u.AA)
    one = density.to(u.ABmag, u.spectral_density(pivot * u.AA))
    return float(one.value + 2.5 * np.log10(seconds))


def _text(header: Mapping[str, Any], key: str) -> str:
    return str(header.get(key, "")).strip()


def _unit(text: str) -> u.UnitBase | None:
    """Of the pixels; None if it is not said, or not understood."""
    if text.lower() in _MAGGIES:
        return u.Unit(_MAGGIES[text.lower()] * u.ABflux)
    unit = u.Unit(text, parse_strict="silent") if text else None
    return None if isinstance(unit, u.UnrecognizedUnit) else unit


def _of_pixels(unit: u.UnitBase | None, area: float | None) -> u.UnitBase | None:
    """A unit per solid angle as that of the sum of pixels, if their area (sr) is known."""
    if unit is None or not area or not unit.is_equivalent(u.Jy / u.sr):
        return unit
    return u.Unit(area * unit * u.sr)


def unit_zeropoint(unit: u.UnitBase | None) -> float | None:
    """AB magnitude of one unit, where it is a flux density."""
    if unit is None or not unit.is_equivalent(u.ABflux):
        return None
    return float((1 * unit).to(u.ABmag).value)


def _number(
    header: Mapping[str, Any],
    keys: tuple[str, ...],
    *,
    positive: bool = False,
    most: float = np.inf,
) -> float | None:
    """First of some keywords that holds a finite number, as text maybe, and none too large."""
    for key in keys:
        value = header.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            continue
        try:
            number = float(value)
        except ValueError:
            continue
        if np.isfinite(number) and abs(number) <= most and (number > 0 or not positive):
            return number
    return None


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
