"""Real galaxies: GalSim's COSMOS sample (HST F814W), deconvolved and seen by another survey.

GalSim takes HST's PSF out of each galaxy and puts the survey's in. The target PSF must be
the broader one; the noise of the HST image is then suppressed with the fine detail, and what is
left of it is taken out.
"""

from functools import cached_property
from pathlib import Path

import galsim
import numpy as np
from astropy.table import Table

from probablend.emulate.denoise import denoised, wavelets
from probablend.emulate.psf import psf_profile
from probablend.emulate.stamps import (
    ProfileGalaxies,
    Split,
    Stamp,
    UnsuitableError,
    split_indices,
)
from probablend.survey import Survey

__all__ = ["CosmosGalaxies"]

_HST_SCALE = 0.03  # arcsec per pixel of the parametric fits
_HST_FWHM = 0.095  # arcsec
_NOISE_PIXELS = 160  # of the survey, in which the noise of stamps is measured


class CosmosGalaxies(ProfileGalaxies):
    """One split of a GalSim real-galaxy catalogue.

    Parameters
    ----------
    survey : Survey
        Its PSF must be broader than HST's.
    catalog : Path
        ``real_galaxy_catalog_….fits``; the images it names lie beside it. If there is a
        ``…_fits.fits``, sizes and shapes come from its Sérsic fits.
    split : {"train", "validation", "test"}
        Galaxies are split before anything is blended.
    n_stars : int
        Point sources to put beside them.

    Raises
    ------
    ValueError
        If the PSF is not broader, or the catalogue cannot be read.
    """

    def __init__(
        self, survey: Survey, catalog: Path, split: Split = "train", *, n_stars: int = 0
    ) -> None:
        fwhm = float(survey.psf_fwhm.to_value("arcsec"))
        if fwhm <= _HST_FWHM:
            raise UnsuitableError(
                f"cosmos galaxies need a PSF broader than HST's {_HST_FWHM}″; "
                f"{survey.name} has {fwhm:.3g}″"
            )
        try:
            self._catalog = galsim.RealGalaxyCatalog(catalog.name, dir=str(catalog.parent))
        except (OSError, LookupError, galsim.GalSimError) as error:
            raise ValueError(f"{catalog} is not a real-galaxy catalogue: {error}") from error
        self.survey = survey
        self.psf = psf_profile(survey)
        rows = split_indices(self._catalog.nobjects, split)
        generator = np.random.default_rng([3242143, len(rows)])
        idents = np.asarray(self._catalog.ident, dtype=int)[rows]
        mags = np.asarray(self._catalog.cat["MAG"], dtype=float)[rows]
        if n_stars:
            idents = np.concatenate([idents, -1 - np.arange(n_stars)])
            mags = np.concatenate([mags, generator.uniform(18, 26, size=n_stars)])
        self.table = Table(
            {
                "galaxy": idents,
                "mag": mags,
                "is_star": np.arange(len(idents)) >= len(rows),
                "row": np.concatenate([rows, np.full(n_stars, -1)]),
            }
        )
        self._shapes = _read_fits_shapes(catalog)
        self.prepare()

    def profile(self, index: int) -> galsim.GSObject:
        """Galaxy of row ``index`` before the PSF, unit flux, arcseconds."""
        galaxy = galsim.RealGalaxy(self._catalog, index=int(self.table["row"][index]))
        return galaxy.withFlux(1.0)

    def draw(self, index: int, mag: float, *, generator: np.random.Generator) -> Stamp:
        """See :meth:`Galaxies.draw`; for a galaxy that is lost in HST's noise, the next one.

        Raises
        ------
        UnsuitableError
            If all are.
        """
        kind = np.asarray(self.table["is_star"]) == self.table["is_star"][index]
        for row in np.roll(np.flatnonzero(kind), -int(kind[:index].sum())):
            stamp = super().draw(int(row), mag, generator=generator)
            if stamp.image.any():
                return stamp
        raise UnsuitableError("no galaxy of this set stands out of the noise of its image")

    def clean(self, image: np.ndarray, index: int, flux: float) -> np.ndarray:
        """See :meth:`ProfileGalaxies.clean`; all of the flux is in the image, if it stands out."""
        row = int(self.table["row"][index])
        light = float(self._catalog.getGalImage(row).array.sum())
        if not light > 0:
            return np.zeros_like(image)
        noise = np.sqrt(self._catalog.variance[row]) * self._noise_levels
        galaxy = denoised(image, flux / light * noise)
        light = float(galaxy.sum())
        return galaxy * np.float32(flux / light) if light > 0 else galaxy

    @cached_property
    def _noise_levels(self) -> np.ndarray:
        """Noise in each of the wavelets of a stamp, for one of 1 per pixel of HST.

        That of the first galaxy: their PSFs are alike.
        """
        row = int(self.table["row"][np.flatnonzero(~np.asarray(self.table["is_star"]))[0]])
        hst = galsim.RealGalaxy(self._catalog, index=row)
        scale = self._catalog.pixel_scale[row]
        side = int(np.ceil(_NOISE_PIXELS * max(self.survey.scale / scale, 1)))
        noise = galsim.Image(side, side, scale=scale)
        sky = self._catalog.getNoise(row, rng=galsim.BaseDeviate(1)).withVariance(1.0)
        noise.addNoise(sky)
        seen = galsim.Convolve(
            galsim.InterpolatedImage(noise), galsim.Deconvolve(hst.original_psf), self.psf
        )
        drawn = seen.drawImage(
            nx=_NOISE_PIXELS, ny=_NOISE_PIXELS, scale=self.survey.scale
        ).array  # fmt: skip
        inner = slice(_NOISE_PIXELS // 6, -_NOISE_PIXELS // 6)  # borders are smoothed with nothing
        return wavelets(drawn)[:, inner, inner].std(axis=(1, 2))

    def shape(self, index: int) -> tuple[float, float, float]:
        """Circularised half-light radius (arcsec), g1 and g2; NaN if there is no fit."""
        nothing = (float("nan"),) * 3
        return self._shapes.get(int(self.table["galaxy"][index]), nothing)


def _read_fits_shapes(catalog: Path) -> dict[int, tuple[float, float, float]]:
    """Size and shape by identifier from the Sérsic fits beside a catalogue."""
    path = catalog.with_name(f"{catalog.stem}_fits.fits")
    if not path.is_file():
        return {}
    fits = Table.read(path)
    shapes = {}
    for row in fits:
        # GalSim's columns: intensity, half-light radius (pixels), n, q, boxiness, x, y, angle.
        _, radius, _, q, _, _, _, angle = np.asarray(row["sersicfit"], dtype=float)[:8]
        g = (1 - q) / (1 + q)
        hlr = radius * np.sqrt(q) * _HST_SCALE
        shapes[int(row["IDENT"])] = (
            float(hlr), float(g * np.cos(2 * angle)), float(g * np.sin(2 * angle))
        )  # fmt: skip
    return shapes
