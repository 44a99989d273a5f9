"""Single galaxies, drawn without noise: the one interface behind which every source stands.

A :class:`Galaxies` is one split (train, validation or test) of a source. It knows a table
of its galaxies and draws any of them as a :class:`Stamp`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import galsim
import numpy as np
from astropy.table import Table

from probablend.survey import Survey

__all__ = [
    "SPLITS",
    "Galaxies",
    "Split",
    "Stamp",
    "UnsuitableError",
    "draw_stamp",
    "split_indices",
    "turn_stamp",
]

Split = Literal["train", "validation", "test"]
SPLITS: dict[Split, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}

# Sides of stamps in pixels. A stamp grows until its border is this far below the sky noise:
# a tenth of the footprint threshold, so that few wings are lost and no footprint is cut.
_SIDES = (24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_BORDER_LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """Noiseless image of one galaxy as the survey sees it.

    Parameters
    ----------
    image : ndarray, shape (y, x), float32
        Counts, PSF and pixel response included.
    flux : float
        Total flux of the profile, counts; the wings outside the stamp included.
    y, x : float
        Centre in the stamp, pixels, first pixel at 0.
    hlr : float
        Circularised half-light radius before the PSF, pixels; 0 for a star.
    g1, g2 : float
        Reduced shear components in the pixel frame.
    galaxy : int
        Identifier in the source; no two splits share one.
    is_star : bool
        Whether it is a point source.
    """

    image: np.ndarray
    flux: float
    y: float
    x: float
    hlr: float
    g1: float
    g2: float
    galaxy: int
    is_star: bool = False


def split_indices(n_galaxies: int, split: Split) -> np.ndarray:
    """Which galaxies of a real set belong to a split; the same every time.

    Parameters
    ----------
    n_galaxies : int
        Size of the set.
    split : {"train", "validation", "test"}
        Which part: 80, 10 and 10 %.

    Returns
    -------
    ndarray of int
        Sorted; the three splits are disjoint and cover the set.

    Raises
    ------
    ValueError
        If the split is not one of the three.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {list(SPLITS)}; got {split!r}")
    order = np.random.default_rng(20190501).permutation(n_galaxies)
    edges = np.round(np.cumsum([0.0, *SPLITS.values()]) * n_galaxies).astype(int)
    which = list(SPLITS).index(split)
    return np.sort(order[edges[which] : edges[which + 1]])


def draw_stamp(profile: galsim.GSObject, survey: Survey) -> tuple[np.ndarray, float, float]:
    """Draw a profile, already convolved with the PSF, in a stamp that holds it.

    Parameters
    ----------
    profile : galsim.GSObject
        In arcseconds and counts.
    survey : Survey
        Gives the pixel scale and the sky noise.

    Returns
    -------
    image : ndarray, shape (side, side), float32
        Counts per pixel.
    y, x : float
        Where the profile's origin lies, pixels.
    """
    level = _BORDER_LEVEL * survey.sky_rms
    sides = np.array(_SIDES)
    # GalSim's own size holds 99 % of the light and sets the cost of the Fourier transform: draw
    # that, more where the light at its border is not lost in the noise, and keep what is needed.
    first = int(np.searchsorted(sides, profile.getGoodImageSize(survey.scale)))
    for n in sides[min(first, len(sides) - 1) :].tolist():
        image = profile.drawImage(nx=n, ny=n, scale=survey.scale).array
        if _border(image, 0) < level:
            break
    for side in sides:
        edge = (n - side) // 2
        if side >= n or _border(image, edge) < level:
            break
    edge = max(edge, 0)
    image = image[edge : n - edge, edge : n - edge]
    centre = (len(image) - 1) / 2
    return image.astype(np.float32), centre, centre


def _border(image: np.ndarray, edge: int) -> float:
    """Largest value on the square ``edge`` pixels inside the border."""
    last = len(image) - 1 - edge
    sides = (image[edge], image[last], image[:, edge], image[:, last])
    return float(max(side[edge : last + 1].max() for side in sides))


class UnsuitableError(ValueError):
    """A survey that these galaxies cannot be drawn for."""


class Galaxies(ABC):
    """One split of a source of isolated galaxies, as a survey sees them.

    Attributes
    ----------
    survey : Survey
        What the stamps are drawn for.
    table : Table
        One row per galaxy: ``galaxy``, ``mag``, ``is_star``.
    """

    survey: Survey
    table: Table

    @abstractmethod
    def draw(self, index: int, mag: float, *, generator: np.random.Generator) -> Stamp:
        """Galaxy of row ``index`` at magnitude ``mag``, at a random sub-pixel position."""

    def prepare(self) -> None:
        """Sort the rows by magnitude, stars apart. A subclass calls it once."""
        mag = np.asarray(self.table["mag"], dtype=float)
        is_star = np.asarray(self.table["is_star"], dtype=bool)
        self._rows = {}
        for kind in (False, True):
            rows = np.flatnonzero(is_star == kind)
            rows = rows[np.argsort(mag[rows], kind="stable")]
            self._rows[kind] = (rows, mag[rows])

    @property
    def n_stars(self) -> int:
        """How many rows are stars."""
        return len(self._rows[True][0])

    def choose(self, mag: float, *, generator: np.random.Generator, is_star: bool = False) -> int:
        """Row of a galaxy (or star) whose own magnitude is near ``mag``.

        Size and shape go with magnitude, so the flux is scaled by little: one of the 16
        nearest, or of all within 0.1 mag if they are more.
        """
        rows, mags = self._rows[is_star]
        n = len(rows)
        if not n:
            raise ValueError(f"this source holds no {'stars' if is_star else 'galaxies'}")
        low, high = np.searchsorted(mags, [mag - 0.1, mag + 0.1])
        if high - low < 16:
            low = max(0, min(int(np.searchsorted(mags, mag)) - 8, n - 16))
            high = min(n, low + 16)
        return int(rows[generator.integers(low, high)])


def _turn(stamp: Stamp, generator: np.random.Generator) -> Stamp:
    """One of the eight flips and quarter turns."""
    image, y, x, g1, g2 = stamp.image, stamp.y, stamp.x, stamp.g1, stamp.g2
    swap, flip_y, flip_x = generator.integers(0, 2, size=3)
    if swap:
        image, y, x, g1 = image.T, x, y, -g1
    if flip_y:
        image, y, g2 = image[::-1], image.shape[0] - 1 - y, -g2
    if flip_x:
        image, x, g2 = image[:, ::-1], image.shape[1] - 1 - x, -g2
    return replace(stamp, image=image, y=y, x=x, g1=g1, g2=g2)


def turn_stamp(stamp: Stamp, scale: float, *, generator: np.random.Generator) -> Stamp:
    """Flip or turn a stamp at random and multiply its counts.

    Parameters
    ----------
    stamp : Stamp
        What to turn.
    scale : float
        Multiplies image and flux.
    generator : numpy.random.Generator
        Chooses one of the eight ways.
    """
    turned = _turn(stamp, generator)
    return replace(turned, image=turned.image * np.float32(scale), flux=stamp.flux * scale)


class ProfileGalaxies(Galaxies):
    """Galaxies that are GalSim profiles: parametric ones and deconvolved real ones."""

    psf: galsim.GSObject

    @abstractmethod
    def profile(self, index: int) -> galsim.GSObject:
        """Galaxy of row ``index`` before the PSF, unit flux, arcseconds."""

    @abstractmethod
    def shape(self, index: int) -> tuple[float, float, float]:
        """Circularised half-light radius (arcsec), g1 and g2 of row ``index``."""

    def clean(self, image: np.ndarray, index: int, flux: float) -> np.ndarray:
        """The image of row ``index``, of ``flux`` counts, without noise: profiles have none."""
        return image

    def draw(self, index: int, mag: float, *, generator: np.random.Generator) -> Stamp:
        """See :meth:`Galaxies.draw`."""
        survey = self.survey
        flux = float(survey.flux(mag))
        shift_yx = generator.uniform(-0.5, 0.5, size=2)  # survey pixels
        is_star = bool(self.table["is_star"][index])
        bare = self.psf if is_star else galsim.Convolve(self.profile(index), self.psf)
        seen = (bare * flux).shift(shift_yx[1] * survey.scale, shift_yx[0] * survey.scale)
        image, y, x = draw_stamp(seen, survey)
        if not is_star:
            image = self.clean(image, index, flux)
        hlr, g1, g2 = (0.0, 0.0, 0.0) if is_star else self.shape(index)
        return Stamp(
            image=image,
            flux=flux,
            y=y + shift_yx[0],
            x=x + shift_yx[1],
            hlr=hlr / survey.scale,
            g1=g1,
            g2=g2,
            galaxy=int(self.table["galaxy"][index]),
            is_star=is_star,
        )
