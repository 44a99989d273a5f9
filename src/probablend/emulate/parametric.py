"""Parametric galaxies with the sizes and shapes of real ones.

Three families share one geometry (all components of a galaxy have the same ellipse, so its
shape is exactly defined): single Sérsic profiles, bulge + disc, and discs with knots of
star formation, of which size, shape and centre are those of the disc.

The distributions:

- size: log-normal, major-axis half-light radius 0.434″ at 23 mag, scatter 0.45 in the natural
  logarithm, as measured on the Sérsic fits of COSMOS F814W galaxies that come with GalSim's
  COSMOS sample (Mandelbaum et al. 2014, ApJS 212, 5, arXiv:1308.4982); slope −0.269 per
  magnitude (Miller et al. 2013, MNRAS 429, 2858, arXiv:1210.8201, appendix B);
- Sérsic index: log-normal, median 1.4, scatter 0.75 in ln n, between 0.5 and 4.5, from the
  same fits; a tenth of the galaxies are bulge-dominated, n ≈ 4 (Miller et al.);
- axis ratios of discs and of bulges, bulge fractions, bulge sizes: Miller et al. 2013.
"""

import galsim
import numpy as np
from astropy.table import Table
from scipy.optimize import brentq
from scipy.special import gammainc, gammaincinv

from probablend.emulate.psf import psf_profile
from probablend.emulate.stamps import ProfileGalaxies, Split
from probablend.survey import Survey

__all__ = [
    "BULGE_SHARE",
    "MAX_SHEAR",
    "RADIUS_SCATTER",
    "SERSIC_INDEX",
    "SERSIC_RANGE",
    "ParametricGalaxies",
    "bulge_density",
    "draw_disc_shears",
    "half_light_radius",
    "median_radius",
    "sersic_profile",
    "shares",
    "shear_density",
]

SERSIC_INDEX = (1.4, 0.75)  # median, scatter in ln n
SERSIC_RANGE = (0.5, 4.5)
RADIUS_SCATTER = 0.45  # in ln of the major-axis half-light radius
MAX_SHEAR = 0.804  # of discs

BULGE_SHARE = 0.10  # Miller et al.: a tenth is bulge-dominated

_KINDS = ("sersic", "bulge+disc", "knots")
_SHARES = (0.55, 0.30, 0.15)
_SPLIT_KEYS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}
_TRUNCATION = 8.0  # half-light radii
_GSPARAMS = galsim.GSParams(folding_threshold=1e-2)
# Miller et al. 2013: half-light radius of the bulge = exponential scale length of the disc.
_BULGE_OVER_DISC = 1 / 1.678
_ID_BLOCK = 10_000_000  # identifiers of one split never reach those of the next


class ParametricGalaxies(ProfileGalaxies):
    """One split of an endless population of parametric galaxies, and stars.

    Parameters
    ----------
    survey : Survey
        What the stamps are drawn for.
    split : {"train", "validation", "test"}
        The splits use different random streams and identifiers.
    n_galaxies : int
        Size of the population.
    n_stars : int
        Point sources beside them.
    mag_range : tuple of float
        Brightest and faintest AB magnitude.
    seed : int
        Seeds the population.

    Raises
    ------
    ValueError
        If the split is unknown or the magnitude range is empty.
    """

    def __init__(
        self,
        survey: Survey,
        split: Split = "train",
        *,
        n_galaxies: int = 4000,
        n_stars: int = 200,
        mag_range: tuple[float, float] = (18.25, 26.25),
        seed: int = 0,
    ) -> None:
        if split not in _SPLIT_KEYS:
            raise ValueError(f"split must be one of {list(_SPLIT_KEYS)}; got {split!r}")
        if not mag_range[0] < mag_range[1]:
            raise ValueError(f"mag_range must go from bright to faint; got {mag_range}")
        if n_galaxies < 1:
            raise ValueError(f"n_galaxies must be at least 1; got {n_galaxies}")
        self.survey = survey
        self.psf = psf_profile(survey)
        generator = np.random.default_rng([seed, _SPLIT_KEYS[split]])
        self.table = _population(n_galaxies, n_stars, mag_range, generator)
        self.table["galaxy"] += _SPLIT_KEYS[split] * _ID_BLOCK
        self._seed = seed
        self.prepare()

    def profile(self, index: int) -> galsim.GSObject:
        """Galaxy of row ``index`` before the PSF, unit flux, arcseconds."""
        row = self.table[index]
        # GalSim takes the half-light radius of the unsheared, round profile; its shear keeps
        # the area, so that radius is the circularised one.
        disc = galsim.Exponential(half_light_radius=row["scale_radius"], gsparams=_GSPARAMS)
        match row["kind"]:
            case "sersic":
                profile = sersic_profile(row["sersic_n"], row["scale_radius"])
            case "bulge+disc":
                radius = row["scale_radius"] * _BULGE_OVER_DISC
                bulge = galsim.DeVaucouleurs(
                    half_light_radius=radius, trunc=_TRUNCATION * radius, gsparams=_GSPARAMS
                )
                profile = row["bulge_fraction"] * bulge + (1 - row["bulge_fraction"]) * disc
            case _:
                knots = galsim.RandomKnots(
                    int(row["n_knots"]),
                    profile=disc,
                    rng=galsim.BaseDeviate(int(row["galaxy"]) + 1 + self._seed),
                )
                # A knot is a star-forming region of a fifteenth of the galaxy, not a point.
                soft = galsim.Gaussian(sigma=0.15 * float(row["scale_radius"]))
                share = row["knot_fraction"]
                profile = share * galsim.Convolve(knots, soft) + (1 - share) * disc
        return profile.shear(galsim.Shear(g1=float(row["g1"]), g2=float(row["g2"])))

    def shape(self, index: int) -> tuple[float, float, float]:
        """Circularised half-light radius (arcsec), g1 and g2 of row ``index``."""
        row = self.table[index]
        return float(row["hlr"]), float(row["g1"]), float(row["g2"])


def sersic_profile(index: float, radius: float) -> galsim.GSObject:
    """Round Sérsic profile of unit flux and half-light radius ``radius`` (arcsec)."""
    # Cut as SDSS does (7–8 r_e): the wings of n > 2 never end otherwise.
    return galsim.Sersic(
        n=index, half_light_radius=radius, trunc=_TRUNCATION * radius, gsparams=_GSPARAMS
    )


def half_light_radius(bulge_fraction: float) -> float:
    """Half-light radius of bulge (n = 4) + disc (n = 1), in units of the disc's.

    Parameters
    ----------
    bulge_fraction : float
        Share of the light in the bulge, whose own half-light radius is 1/1.678 of the disc's.
    """
    b1, b4 = gammaincinv(2.0, 0.5), gammaincinv(8.0, 0.5)

    def excess(r: float) -> float:
        disc = gammainc(2.0, b1 * r)
        bulge = gammainc(8.0, b4 * (r / _BULGE_OVER_DISC) ** 0.25)
        return bulge_fraction * bulge + (1 - bulge_fraction) * disc - 0.5

    return float(brentq(excess, 0.1, 2.0))


def _population(
    n_galaxies: int, n_stars: int, mag_range: tuple[float, float], generator: np.random.Generator
) -> Table:
    n = n_galaxies + n_stars
    # Six times more at the faint end than at the bright one: bright galaxies, which are rare
    # on the sky, must not always be the same few, and big stamps cost memory.
    low, high = (10 ** (0.1 * m) for m in mag_range)
    mag = 10 * np.log10(generator.uniform(low, high, size=n))
    drawn = generator.choice(_KINDS, size=n, p=_SHARES)
    is_bulge = generator.uniform(size=n) < BULGE_SHARE
    q = np.where(is_bulge, _bulge_axis_ratio(n, generator), _disc_axis_ratio(n, generator))
    angle = generator.uniform(0, np.pi, size=n)
    g = (1 - q) / (1 + q)
    major = _half_light_radius(mag, generator)
    kind = np.where(is_bulge, "sersic", drawn)
    fraction = np.clip(np.abs(generator.normal(0, 0.1, size=n)), 0, 1)
    spread = np.where(is_bulge, 0.2, SERSIC_INDEX[1]) * generator.normal(size=n)
    log_n = np.where(is_bulge, np.log(4.0), np.log(SERSIC_INDEX[0])) + spread
    # Steps of a quarter: GalSim tabulates each Sérsic index it meets.
    sersic_n = np.clip(np.round(np.exp(log_n) * 4) / 4, *SERSIC_RANGE)
    circular = major * np.sqrt(q)
    is_pair = kind == "bulge+disc"
    ratio = np.array(
        [half_light_radius(f) if p else 1.0 for f, p in zip(fraction, is_pair, strict=True)]
    )
    return Table(
        {
            "galaxy": np.arange(n),
            "mag": mag,
            "is_star": np.arange(n) >= n_galaxies,
            "kind": kind,
            "hlr": circular * ratio,
            "scale_radius": circular,
            "sersic_n": sersic_n,
            "bulge_fraction": fraction,
            "g1": g * np.cos(2 * angle),
            "g2": g * np.sin(2 * angle),
            "n_knots": generator.integers(5, 40, size=n),
            "knot_fraction": generator.uniform(0.1, 0.5, size=n),
        }
    )


def median_radius(mag: np.ndarray) -> np.ndarray:
    """Median half-light radius along the major axis, arcsec."""
    return 0.434 * np.exp(-0.269 * (mag - 23.0))


def _half_light_radius(mag: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Major-axis half-light radius, arcsec."""
    return median_radius(mag) * np.exp(RADIUS_SCATTER * generator.normal(size=len(mag)))


def shear_density(g: np.ndarray) -> np.ndarray:
    """Density of the shape of discs in the plane (g1, g2), not normalised; ``|g|`` given."""
    inside = g < MAX_SHEAR
    fall = 1 - np.exp((np.minimum(g, MAX_SHEAR) - MAX_SHEAR) / 0.2539)
    return np.where(inside, fall / ((1 + g) * np.sqrt(g**2 + 0.0256**2)), 0.0)


def draw_disc_shears(n: int, generator: np.random.Generator) -> np.ndarray:
    """``|g|`` of discs, shape (n,)."""
    g = np.linspace(0, MAX_SHEAR, 2000)[1:-1]
    return _draw(g, g * shear_density(g), n, generator)


def _disc_axis_ratio(n: int, generator: np.random.Generator) -> np.ndarray:
    g = draw_disc_shears(n, generator)
    return (1 - g) / (1 + g)


def _bulge_axis_ratio(n: int, generator: np.random.Generator) -> np.ndarray:
    e = np.linspace(0, 0.8, 2000)[1:-1]
    e = _draw(e, e * _bulge_fall(e), n, generator)
    return (1 - e) / (1 + e)


def _bulge_fall(e: np.ndarray) -> np.ndarray:
    return np.exp(-2.368 * e - 6.691 * e**2)


def bulge_density(g: np.ndarray) -> np.ndarray:
    """As :func:`shear_density`, of bulge-dominated galaxies."""
    return np.where(g < 0.8, _bulge_fall(np.minimum(g, 0.8)), 0.0)


def shares() -> dict[str, float]:
    """Shares of the kinds of galaxies that are not bulge-dominated."""
    return dict(zip(_KINDS, _SHARES, strict=True))


def _draw(x: np.ndarray, density: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    cumulative = np.cumsum(density)
    return np.interp(generator.uniform(0, cumulative[-1], size=n), cumulative, x)
