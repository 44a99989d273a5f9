"""Blends with exact truth: stamps placed in a scene.

A scene is Σₖ gₖ + noise, where gₖ is the noiseless image of galaxy k: galaxies are
transparent, fluxes add. Two protocols: **pairs** (two galaxies in a stamp, after
arXiv:1905.01324) and **fields** (many galaxies at survey density, with stars and close
companions). Stars count as sources: a point source on a galaxy is a blend too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from astropy.table import Table

from probablend.emulate.classes import FOOTPRINT_THRESHOLD, encode_classes
from probablend.emulate.noise import add_noise
from probablend.emulate.stamps import Galaxies, Stamp
from probablend.survey import Survey

__all__ = [
    "COUNTS_SLOPE",
    "FIELD_MARGIN",
    "STAR_COUNTS_SLOPE",
    "FieldConfig",
    "Placed",
    "Scene",
    "draw_field",
    "draw_mags",
    "draw_pair",
    "make_scene",
    "place",
]

COUNTS_SLOPE = 0.3  # number counts ∝ 10^(0.3 m), galaxies
STAR_COUNTS_SLOPE = 0.1  # stars at high latitude rise much more slowly
PAIR_SIZE = 128


@dataclass(frozen=True)
class Placed:
    """A stamp at its place in a scene.

    Parameters
    ----------
    stamp : Stamp
        The noiseless galaxy.
    y0, x0 : int
        Scene pixel of the stamp's first pixel; may be negative.
    """

    stamp: Stamp
    y0: int
    x0: int

    @property
    def y(self) -> float:
        """Centre in the scene, pixels."""
        return self.y0 + self.stamp.y

    @property
    def x(self) -> float:
        """Centre in the scene, pixels."""
        return self.x0 + self.stamp.x

    def slices(self, shape_yx: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray]:
        """Where the stamp falls in a scene of this shape, and the part of it that does."""
        n_y, n_x = self.stamp.image.shape
        y_low, y_high = max(self.y0, 0), min(self.y0 + n_y, shape_yx[0])
        x_low, x_high = max(self.x0, 0), min(self.x0 + n_x, shape_yx[1])
        if y_low >= y_high or x_low >= x_high:
            return (slice(0, 0), slice(0, 0)), self.stamp.image[:0, :0]
        part = self.stamp.image[
            y_low - self.y0 : y_high - self.y0, x_low - self.x0 : x_high - self.x0
        ]
        return (slice(y_low, y_high), slice(x_low, x_high)), part


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One emulated image with its truth.

    Parameters
    ----------
    survey : Survey
        What it was drawn for.
    image : ndarray, shape (y, x), float32
        Counts, with noise, sky subtracted.
    noiseless : ndarray, shape (y, x), float32
        Σₖ gₖ, counts.
    n_footprints : ndarray of int, shape (y, x)
        How many footprints cover each pixel.
    sources : list of Placed
        Every galaxy and star whose stamp reaches into the image, in the order of ``catalog``;
        the centre may lie outside.
    """

    survey: Survey
    image: np.ndarray
    noiseless: np.ndarray
    n_footprints: np.ndarray
    sources: list[Placed]

    @property
    def rms(self) -> float:
        """Sky noise per pixel, counts."""
        return self.survey.sky_rms

    @cached_property
    def classes(self) -> np.ndarray:
        """Pixel classes, uint8, shape (y, x): 0 sky, 1 one source, 2 blend."""
        return encode_classes(self.n_footprints)

    @cached_property
    def catalog(self) -> Table:
        """The truth, one row per source.

        ``id`` from 1, ``x, y`` (pixels, first pixel at 0), ``mag``, ``flux`` (counts, whole
        profile), ``hlr`` (pixels), ``g1, g2``, ``is_star``, ``n_pixels`` (of the footprint
        inside the image), ``blended`` (footprint shares a pixel with another),
        ``blendedness`` 1 − ⟨gₖ,gₖ⟩/⟨gₖ,Σg⟩ (Bosch et al. 2018) and ``galaxy``.
        """
        return _catalog(self.sources, self.survey, self.noiseless, self.n_footprints)

    def footprint(self, k: int) -> np.ndarray:
        """Footprint of source ``k``: bool, shape (y, x)."""
        mask = np.zeros(self.image.shape, dtype=bool)
        where, part = self.sources[k].slices(self.image.shape)
        mask[where] = part > FOOTPRINT_THRESHOLD * self.rms
        return mask


@dataclass(frozen=True, kw_only=True)
class FieldConfig:
    """How a field is populated.

    Parameters
    ----------
    size : int
        Side of the scene, pixels.
    density : float
        Galaxies per arcmin² in ``mag_range``.
    star_density : float
        Stars per arcmin² in ``mag_range``.
    mag_range : tuple of float
        Brightest and faintest AB magnitude.
    companion_fraction : float
        Share of the galaxies that are put near another one.
    companion_distance : float
        Largest distance of such a companion, arcsec; the distance is uniform below it.
    counts_slope : float
        Number counts of galaxies ∝ 10^(slope · mag); 0.3 on the sky.
    """

    size: int = 128
    density: float = 200.0
    star_density: float = 5.0
    mag_range: tuple[float, float] = (18.5, 26.0)
    companion_fraction: float = 0.1
    companion_distance: float = 2.0
    counts_slope: float = COUNTS_SLOPE

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1 pixel; got {self.size}")
        if self.density < 0 or self.star_density < 0:
            raise ValueError("density and star_density must not be negative")
        if not self.mag_range[0] < self.mag_range[1]:
            raise ValueError(f"mag_range must go from bright to faint; got {self.mag_range}")
        if not 0 <= self.companion_fraction <= 1:
            raise ValueError(
                f"companion_fraction must lie between 0 and 1; got {self.companion_fraction}"
            )
        if not self.companion_distance >= 0:
            raise ValueError(
                f"companion_distance must not be negative; got {self.companion_distance}"
            )


# Centres this far outside still throw light into the scene: a 19 mag galaxy reaches 0.5 σ
# some 50 pixels out.
FIELD_MARGIN = 64


def draw_field(galaxies: Galaxies, config: FieldConfig, *, generator: np.random.Generator) -> Scene:
    """Emulate a field at survey density.

    Parameters
    ----------
    galaxies : Galaxies
        Source of the stamps, of one split.
    config : FieldConfig
        Size, density, magnitudes and clustering.
    generator : numpy.random.Generator
        The only source of randomness.

    Returns
    -------
    Scene
        The catalogue lists every source whose stamp reaches into the image.
    """
    survey = galaxies.survey
    side = config.size + 2 * FIELD_MARGIN
    area = (side * survey.scale / 60) ** 2  # arcmin²
    n_galaxies = int(generator.poisson(config.density * area))
    n_stars = int(generator.poisson(config.star_density * area)) if galaxies.n_stars else 0
    centres = generator.uniform(
        -FIELD_MARGIN, config.size + FIELD_MARGIN, size=(n_galaxies + n_stars, 2)
    )
    is_companion = generator.uniform(size=n_galaxies) < config.companion_fraction
    for k in np.flatnonzero(is_companion) if n_galaxies > 1 else []:
        host = int(generator.integers(n_galaxies))
        radius = generator.uniform(0, config.companion_distance / survey.scale)
        angle = generator.uniform(0, 2 * np.pi)
        centres[k] = centres[host] + radius * np.array([np.sin(angle), np.cos(angle)])
    mags = np.concatenate(
        [
            draw_mags(n_galaxies, config.counts_slope, config.mag_range, generator),
            draw_mags(n_stars, STAR_COUNTS_SLOPE, config.mag_range, generator),
        ]
    )
    sources = []
    for order, (mag, centre) in enumerate(zip(mags.tolist(), centres, strict=True)):
        index = galaxies.choose(mag, generator=generator, is_star=order >= n_galaxies)
        sources.append(place(galaxies.draw(index, mag, generator=generator), centre))
    return make_scene(sources, survey, (config.size, config.size), generator=generator)


def draw_pair(
    galaxies: Galaxies,
    *,
    generator: np.random.Generator,
    mag_range: tuple[float, float] = (18.0, 23.0),
    size: int = PAIR_SIZE,
) -> Scene:
    """Emulate a blend of two galaxies.

    The first sits at the centre; the second has a magnitude within 2 of it and is shifted
    by r with max(Re₁, Re₂) ≤ r ≤ min(4 min(Re₁, Re₂), half the stamp); if that range is
    empty its lower end becomes 0.8 of the upper one.

    Parameters
    ----------
    galaxies : Galaxies
        Source of the stamps, of one split.
    generator : numpy.random.Generator
        The only source of randomness.
    mag_range : tuple of float
        Of the first galaxy and, clipped, of the second.
    size : int
        Side of the stamp, pixels.

    Returns
    -------
    Scene
        Catalogue row 0 is the central galaxy, row 1 the companion.

    Raises
    ------
    ValueError
        If the source holds a single galaxy, or does not know sizes.

    References
    ----------
    Boucaud, A. et al. 2020, MNRAS 491, 2481 (arXiv:1905.01324), section 2.
    """
    first_mag = float(draw_mags(1, COUNTS_SLOPE, mag_range, generator)[0])
    first = galaxies.draw(
        galaxies.choose(first_mag, generator=generator), first_mag, generator=generator
    )
    low, high = max(mag_range[0], first_mag - 2), min(mag_range[1], first_mag + 2)
    second_mag = float(generator.uniform(low, high))
    second = first
    for _ in range(1000):
        row = galaxies.choose(second_mag, generator=generator)
        second = galaxies.draw(row, second_mag, generator=generator)
        if second.galaxy != first.galaxy:
            break
    else:
        raise ValueError("a pair needs two galaxies; this source holds one at these magnitudes")
    if not np.isfinite([first.hlr, second.hlr]).all():
        raise ValueError("a pair needs half-light radii; this source does not know them")
    r_max = min(4 * min(first.hlr, second.hlr), size / 2)
    r_min = max(first.hlr, second.hlr)
    if r_min > r_max:
        r_min = 0.8 * r_max
    radius, angle = generator.uniform(r_min, r_max), generator.uniform(0, 2 * np.pi)
    centre = np.array([(size - 1) / 2, (size - 1) / 2])
    shift_yx = radius * np.array([np.sin(angle), np.cos(angle)])
    sources = [place(first, centre), place(second, centre + shift_yx)]
    return make_scene(sources, galaxies.survey, (size, size), generator=generator)


def draw_mags(
    n: int, slope: float, mag_range: tuple[float, float], generator: np.random.Generator
) -> np.ndarray:
    """Magnitudes with number counts ∝ 10^(slope · mag), shape (n,)."""
    if slope == 0:
        return generator.uniform(*mag_range, size=n)
    low, high = (10 ** (slope * m) for m in mag_range)
    return np.log10(generator.uniform(low, high, size=n)) / slope


def place(stamp: Stamp, centre_yx: np.ndarray) -> Placed:
    """Put the stamp's centre within half a pixel of ``centre_yx``: no interpolation."""
    y0 = int(np.round(centre_yx[0] - stamp.y))
    x0 = int(np.round(centre_yx[1] - stamp.x))
    return Placed(stamp, y0, x0)


def make_scene(
    sources: Sequence[Placed],
    survey: Survey,
    shape_yx: tuple[int, int],
    *,
    generator: np.random.Generator,
) -> Scene:
    """Add sources up, measure the truth and expose.

    Parameters
    ----------
    sources : sequence of Placed
        Galaxies and stars.
    survey : Survey
        Gives the noise.
    shape_yx : tuple of int
        Shape of the image.
    generator : numpy.random.Generator
        Draws the noise.

    Returns
    -------
    Scene
        With those of ``sources`` whose stamps reach into the image.
    """
    level = FOOTPRINT_THRESHOLD * survey.sky_rms
    noiseless = np.zeros(shape_yx, dtype=np.float32)
    n_footprints = np.zeros(shape_yx, dtype=np.int32)
    kept = []
    for source in sources:
        where, part = source.slices(shape_yx)
        noiseless[where] += part
        n_footprints[where] += part > level
        if part.size:
            kept.append(source)
    return Scene(
        survey=survey,
        image=add_noise(noiseless, survey, generator=generator),
        noiseless=noiseless,
        n_footprints=n_footprints,
        sources=kept,
    )


def _catalog(
    sources: list[Placed], survey: Survey, noiseless: np.ndarray, n_footprints: np.ndarray
) -> Table:
    level = FOOTPRINT_THRESHOLD * survey.sky_rms
    rows = []
    for k, source in enumerate(sources):
        stamp = source.stamp
        where, part = source.slices(noiseless.shape)
        footprint = part > level
        with_all = float((part * noiseless[where]).sum())
        own = float((part * part).sum())
        rows.append(
            (
                k + 1,
                source.x,
                source.y,
                float(survey.mag(stamp.flux)),
                stamp.flux,
                stamp.hlr,
                stamp.g1,
                stamp.g2,
                stamp.is_star,
                int(footprint.sum()),
                bool((n_footprints[where][footprint] > 1).any()),
                max(0.0, 1 - own / with_all) if with_all > 0 else 0.0,
                stamp.galaxy,
            )
        )
    names = ("id", "x", "y", "mag", "flux", "hlr", "g1", "g2", "is_star", "n_pixels", "blended",
             "blendedness", "galaxy")  # fmt: skip
    dtypes = (int, *[float] * 7, bool, int, bool, float, int)
    return Table(rows=rows or None, names=names, dtype=dtypes)
