"""A deblender for the Blending ToolKit: it draws the blends, probablend takes them apart.

The Blending ToolKit (Mendoza et al. 2025, arXiv:2409.06986) compares deblenders on scenes that it
draws, by metrics of its own. It is installed with ``pip install 'probablend[btk]'``.
"""

from pathlib import Path
from typing import Any

import galsim
import numpy as np
from astropy.table import Table
from surveycodex.utilities import mean_sky_level

from probablend.infer.segment import DEFAULT_MODEL, segment
from probablend.infer.segmentation import Segmentation

try:
    from btk.blend_batch import BlendBatch, DeblendExample
    from btk.deblend import Deblender
except ImportError as error:
    raise ImportError(
        "the Blending ToolKit is not installed: pip install 'probablend[btk]'"
    ) from error

__all__ = ["ProbablendDeblender"]

_PSF_SIDE = 65  # pixels, of the image of the PSF
_LARGEST_SHEAR, _LEAST_RADIUS = 0.8, 0.1  # of a template; pixels


class ProbablendDeblender(Deblender):
    """Detection, segmentation and deblended images of one band.

    Segmentations are footprints that hold a pixel with a probability of more than one half; they
    may overlap. A deblended image is the blend times the source's share of the light: the shares
    are those of exponential profiles at the posterior's medians under the PSF, each weighted by
    the probability that the pixel belongs to its footprint.

    Parameters
    ----------
    max_n_sources : int
        As of every deblender. If there are more, the most probable ones are given.
    band : str
        Name of the band to work on, as the survey calls it.
    model, n_samples, seed, device, min_p_source
        See :func:`~probablend.segment`.

    Raises
    ------
    ValueError
        When deblending, if the survey has no such band.
    """

    def __init__(
        self,
        max_n_sources: int,
        band: str = "i",
        *,
        model: str | Path = DEFAULT_MODEL,
        n_samples: int = 4,
        seed: int = 0,
        device: str = "auto",
        min_p_source: float = 0.5,
    ) -> None:
        super().__init__(max_n_sources)
        self.band = band
        self.settings: dict[str, Any] = {
            "model": model,
            "n_samples": n_samples,
            "seed": seed,
            "device": device,
            "min_p_source": min_p_source,
        }

    def deblend(self, ii: int, blend_batch: BlendBatch) -> DeblendExample:
        """Deblend the ``ii``-th example of a batch."""
        survey = blend_batch.survey
        bands = list(survey.available_filters)
        if self.band not in bands:
            raise ValueError(f"{survey.name} has no band {self.band!r}; it has {', '.join(bands)}")
        number, band = bands.index(self.band), survey.get_filter(self.band)
        image = blend_batch.blend_images[ii, number]
        scale = survey.pixel_scale.to_value("arcsec")
        psf = blend_batch.psf[number]
        if not isinstance(psf, galsim.GSObject):  # a batch that was read from disk
            psf = galsim.Gaussian(fwhm=band.psf_fwhm.to_value("arcsec"))
        result = segment(
            image,
            rms=float(np.sqrt(mean_sky_level(survey, band).to_value("electron"))),
            background="none",
            psf_fwhm=psf.calculateFWHM() / scale,
            psf=psf.drawImage(nx=_PSF_SIDE, ny=_PSF_SIDE, scale=scale).array,
            **self.settings,
        )
        assert result.sources is not None
        order = np.argsort(-np.asarray(result.catalog["p_source"]), kind="stable")
        kept = np.sort(order[: self.max_n_sources])
        footprints = np.zeros((self.max_n_sources, *image.shape))
        light = np.zeros_like(footprints)
        for k, source in enumerate(kept):
            box, p = result.sources.footprint(int(source), image.shape)
            footprints[k][box] = p
            light[k] = _template(result, int(source), psf, scale)
        return DeblendExample(
            self.max_n_sources,
            _catalog(result, kept, blend_batch.wcs),
            1,  # one band
            blend_batch.image_size,
            footprints > 0.5,
            _share(image, footprints, light)[:, None],
        )


def _template(result: Segmentation, k: int, psf: galsim.GSObject, scale: float) -> np.ndarray:
    """A source's light as its medians have it: an exponential, or the PSF for a star."""
    row, (n_y, n_x) = result.catalog[k], result.labels.shape
    profile, flux = psf, float(row["flux"])
    if row["p_star"] < 0.5:
        g = np.array([row["g1"], row["g2"]], dtype=float)
        g *= min(1.0, _LARGEST_SHEAR / max(float(np.hypot(*g)), 1e-9))
        hlr = max(float(row["hlr"].value), _LEAST_RADIUS) * scale
        profile = galsim.Convolve(galsim.Exponential(hlr).shear(g1=g[0], g2=g[1]), psf)
    y, x = float(row["y"].value), float(row["x"].value)
    drawn = profile.withFlux(flux).drawImage(
        nx=n_x, ny=n_y, scale=scale, offset=(x - (n_x - 1) / 2, y - (n_y - 1) / 2)
    )
    return np.clip(drawn.array, 0, None)


def _share(image: np.ndarray, footprints: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Each source's part of the image, (source, y, x); not negative."""
    weight = footprints * light
    total = weight.sum(axis=0)
    share = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    return np.clip(image, 0, None) * share * footprints.max(axis=0, initial=0.0)


def _catalog(result: Segmentation, kept: np.ndarray, wcs: Any) -> Table:
    """Our columns for the sources kept, with positions in the toolkit's convention: arcseconds."""
    ours = result.catalog[kept]
    names = [name for name in ours.colnames if name not in ("x", "y", "ra", "dec")]
    table = Table({name: np.asarray(ours[name]) for name in names})
    x, y = ours["x"].value, ours["y"].value
    ra, dec = wcs.pixel_to_world_values(x, y)
    # Scenes lie around (0, 0): a right ascension of 359.9° is one of −0.1°.
    table["ra"] = 3600 * ((np.asarray(ra) + 180) % 360 - 180)
    table["dec"] = 3600 * np.asarray(dec)
    table["x_peak"], table["y_peak"] = x, y
    return table
