"""Galaxies with structure: arms, bars, clumps, dust lanes and tidal asymmetry.

Beside the smooth profiles of :mod:`probablend.emulate.parametric`, a share of the galaxies are
discs painted on a fine grid, face on, and then sheared like the others: size, shape and flux
keep their exact meaning. Bright galaxies of this kind teach a network not to shred spirals; knots
and tails, what a single galaxy may look like. Half of them are irregular on all scales, as the
galaxies are that HST sees at redshifts near one; :class:`IrregularGalaxies` all are.
"""

import galsim
import numpy as np
from scipy import ndimage

from probablend.emulate.parametric import ParametricGalaxies

__all__ = ["IrregularGalaxies", "StructuredGalaxies", "paint_disc"]

_SIDE = 161  # pixels of the fine grid
_REACH = 4.5  # it spans ± this many half-light radii
_IRREGULAR = (0.2, 0.8)  # scatter of ln light
_SLOPE = (2.5, 3.5)  # of its power spectrum
_COARSEST = 2.0  # half-light radii: its largest structures
_GSPARAMS = galsim.GSParams(folding_threshold=1e-2, kvalue_accuracy=1e-4)


class StructuredGalaxies(ParametricGalaxies):
    """Parametric galaxies, a share of them discs with structure.

    Parameters
    ----------
    *args, **kwargs
        As for :class:`~probablend.emulate.parametric.ParametricGalaxies`.
    """

    _share = 0.5  # of the galaxies that are no spheroids: with structure
    _irregular = 0.5  # of those: irregular

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        generator = np.random.default_rng([self._seed, 5, int(self.table["galaxy"][0])])
        kind = np.asarray(self.table["kind"]).astype("U12")
        smooth = (kind != "sersic") | (np.asarray(self.table["sersic_n"]) < 2.5)
        kind[smooth & (generator.uniform(size=len(kind)) < self._share)] = "structured"
        circular = np.asarray(self.table["scale_radius"])
        self.table["kind"] = kind
        self.table["hlr"] = np.where(kind == "structured", circular, self.table["hlr"])

    def profile(self, index: int) -> galsim.GSObject:
        """Galaxy of row ``index`` before the PSF, unit flux, arcseconds."""
        row = self.table[index]
        if row["kind"] != "structured":
            return super().profile(index)
        generator = np.random.default_rng([int(row["galaxy"]), self._seed, 6])
        painted = paint_disc(generator, irregular=self._irregular)
        scale = 2 * _REACH * float(row["scale_radius"]) / _SIDE
        disc = galsim.InterpolatedImage(
            galsim.Image(painted, scale=scale), x_interpolant="cubic", flux=1.0, gsparams=_GSPARAMS,
            normalization="flux", calculate_stepk=False, calculate_maxk=False,
        )  # fmt: skip
        return disc.shear(galsim.Shear(g1=float(row["g1"]), g2=float(row["g2"])))


class IrregularGalaxies(StructuredGalaxies):
    """The same, where every galaxy that is no spheroid is irregular."""

    _share = 1.0
    _irregular = 1.0


def paint_disc(generator: np.random.Generator, *, irregular: float = 0.5) -> np.ndarray:
    """A disc seen face on, half of its light within one unit of the radius.

    Parameters
    ----------
    generator : numpy.random.Generator
        Chooses its structure.
    irregular : float
        Probability that it is irregular on all scales.

    Returns
    -------
    ndarray, shape (161, 161), float64
        Light per pixel, of unit sum; the grid spans ±4.5 half-light radii about the centroid.
    """
    # Painted in units of a first guess of the half-light radius, then brought to the true one.
    axis = np.linspace(-1, 1, _SIDE) * _REACH * (1 - 1 / _SIDE)
    light = _paint(axis, generator, irregular)
    centre = np.array(ndimage.center_of_mass(light))
    radius = _half_light_radius(light, centre) * (axis[1] - axis[0])
    middle = (_SIDE - 1) / 2
    # Output pixel k lies at (k − middle) · radius pixels from the centroid.
    brought = ndimage.affine_transform(
        light, [radius, radius], centre - middle * radius, order=1, mode="constant"
    )
    return brought / brought.sum()


def _half_light_radius(light: np.ndarray, centre: np.ndarray) -> float:
    """Radius of the circle about ``centre`` that holds half the light, pixels."""
    y, x = np.indices(light.shape)
    r = np.hypot(y - centre[0], x - centre[1]).ravel()
    order = np.argsort(r)
    inside = np.cumsum(light.ravel()[order]) / light.sum()
    return float(np.interp(0.5, inside, r[order]))


def _paint(axis: np.ndarray, generator: np.random.Generator, irregular: float) -> np.ndarray:
    """Disc, arms, bar, bulge, clumps, dust and what a neighbour stirred up."""
    uniform = generator.uniform
    y, x = np.meshgrid(axis, axis, indexing="ij")
    r, angle = np.hypot(y, x), np.arctan2(y, x)
    disc = np.exp(-1.678 * r)
    disc /= disc.sum()

    # Logarithmic arms: crests follow ln r = tan(pitch) · angle.
    n_arms = generator.choice([1, 2, 3, 4], p=[0.1, 0.6, 0.15, 0.15])
    pitch = np.radians(uniform(8, 30)) * generator.choice([-1, 1])
    phase = n_arms * (angle - np.log(r + 0.15) / np.tan(pitch)) + uniform(0, 2 * np.pi)
    sharp = uniform(0.5, 3.0)
    crest = np.exp(sharp * (np.cos(phase) - 1))
    strength = uniform(0, 0.9) * np.clip((r - 0.2) / 0.4, 0, 1)
    arms = disc * (1 - strength + strength * crest / crest.mean())
    parts = [(1.0, arms)]

    tilt = uniform(0, np.pi)
    along, across = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
    if uniform() < 0.4:
        length, width = uniform(0.35, 0.8), uniform(0.1, 0.2)
        parts.append(
            (uniform(0.05, 0.3), np.exp(-0.5 * ((along / length) ** 4 + (across / width) ** 2)))
        )
    parts.append((uniform(0, 0.4) * uniform(), np.exp(-((r / uniform(0.1, 0.25)) ** 0.8))))

    if uniform() < 0.7:  # star-forming clumps, where the arms are
        chance = (arms * crest).ravel() * (r.ravel() < 2.5)
        n_clumps = int(generator.integers(3, 40))
        places = generator.choice(r.size, size=n_clumps, p=chance / chance.sum())
        clumps = np.zeros(r.size)
        np.add.at(clumps, places, generator.pareto(1.5, size=n_clumps).clip(0, 20) + 0.3)
        width = uniform(0.04, 0.1) / (axis[1] - axis[0])
        parts.append((uniform(0.02, 0.3), ndimage.gaussian_filter(clumps.reshape(r.shape), width)))

    if uniform() < 0.25:  # a tail, or half a ring
        reach = np.log(r + 1e-3) / np.tan(np.radians(uniform(10, 40))) - angle + uniform(0, 6.3)
        off = np.abs((reach + np.pi) % (2 * np.pi) - np.pi)
        tail = np.exp(-0.5 * (off / uniform(0.15, 0.4)) ** 2) * np.exp(-0.7 * r)
        tail *= np.clip((r - uniform(0.8, 1.6)) / 0.3, 0, 1)
        parts.append((uniform(0.02, 0.12), tail))

    light = sum(share * part / part.sum() for share, part in parts)
    assert isinstance(light, np.ndarray)
    if uniform() < 0.5:  # lopsided
        light = light * (1 + uniform(0, 0.5) * np.clip(along / 2, -1, 1))
    if uniform() < 0.3:  # a lane of dust
        depth, width, shift = uniform(0.3, 0.9), uniform(0.05, 0.15), uniform(-0.15, 0.15)
        lane = np.exp(-0.5 * ((across - shift) / width) ** 2) * np.exp(-0.5 * (r / 1.5) ** 2)
        light = light * (1 - depth * lane)
    if uniform() < irregular:
        light = light * np.exp(uniform(*_IRREGULAR) * _irregular(generator, uniform(*_SLOPE)))
    edge = np.clip((_REACH * 0.97 - r) / (0.12 * _REACH), 0, 1)
    return light * edge


def _irregular(generator: np.random.Generator, slope: float) -> np.ndarray:
    """A Gaussian field of unit variance whose power falls with the wave number to ``slope``."""
    k = np.hypot(np.fft.fftfreq(_SIDE)[:, None], np.fft.rfftfreq(_SIDE)) * _SIDE / (2 * _REACH)
    amplitude = np.maximum(k, 1 / _COARSEST) ** (-slope / 2)
    white = np.fft.rfft2(generator.standard_normal((_SIDE, _SIDE)))
    field = np.fft.irfft2(amplitude * white, s=(_SIDE, _SIDE))
    return (field - field.mean()) / field.std()
