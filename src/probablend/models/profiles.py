"""Profiles that fits are made with: galaxies as sums of Gaussians, PSFs as Moffat's.

Galaxies are Sérsic's (Hogg & Lang 2013, arXiv:1210.6563, for the sums); a Moffat profile takes the
place of a PSF of which only width and wings are known.
"""

from functools import cache

import galsim
import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from probablend.psf import SIDE, light_in_wings

__all__ = ["moffat_images", "sersic_gaussians"]

_BETAS = (1.8, 2.2, 2.7, 3.3, 4.0, 5.0, 7.0, 10.0)  # of Moffat profiles
_USUAL_BETA = 3.0
_FINER = 5  # points per pixel where PSFs are drawn


@cache
def sersic_gaussians() -> tuple[Tensor, Tensor, Tensor]:
    """Sérsic profiles of unit radius as sums of Gaussians.

    ln n, (index,); ½σ² of the Gaussians, (Gaussian,); their shares of the light.
    """
    indices = np.array([0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0])
    sigma = np.geomspace(0.02, 6.0, 12)
    k = np.geomspace(1e-2, 150.0, 150)
    basis = np.exp(-0.5 * (sigma * k[:, None]) ** 2)
    whole = 30.0  # that the shares add up counts as much as many of the others
    shares = []
    for index in indices.tolist():
        # Cut as the emulated ones are; an index below 0.8 ends of its own accord.
        cut = 8.0 if index > 0.8 else 0.0
        profile = galsim.Sersic(n=index, half_light_radius=1.0, trunc=cut)
        wanted = [profile.kValue(one, 0.0).real for one in k.tolist()]
        share, _ = nnls(np.vstack([basis, np.full(len(sigma), whole)]), np.append(wanted, whole))
        shares.append(share / share.sum())
    with torch.inference_mode(False):  # it outlives whoever asks first
        return (
            torch.tensor(np.log(indices), dtype=torch.float32),
            torch.tensor(0.5 * sigma**2, dtype=torch.float32),
            torch.tensor(np.array(shares), dtype=torch.float32),
        )


def moffat_images(fwhm: Tensor, wings: Tensor | None = None) -> Tensor:
    """Images of round Moffat PSFs, the response of the pixel in them, of unit sum.

    Parameters
    ----------
    fwhm : Tensor, shape (psf,)
        Before the pixel response, pixels.
    wings : Tensor, shape (psf,), optional
        First of the numbers of :func:`~probablend.psf.light_in_wings`; NaN where not known.

    Returns
    -------
    Tensor, shape (psf, SIDE, SIDE)
    """
    beta = torch.full_like(fwhm, _USUAL_BETA)
    if wings is not None:
        known, betas = (t.to(fwhm) for t in _wings_of_betas())
        above = torch.searchsorted(known, wings.nan_to_num().contiguous())
        above = above.clamp(1, len(known) - 1)
        part = (wings.nan_to_num() - known[above - 1]) / (known[above] - known[above - 1])
        said = torch.lerp(betas[above - 1], betas[above], part.clamp(0, 1))
        beta = torch.where(wings.isfinite(), said, beta)
    scale = fwhm / (2 * (2 ** (1 / beta) - 1).sqrt())
    n = SIDE * _FINER
    t = (torch.arange(n, device=fwhm.device, dtype=fwhm.dtype) - (n - 1) / 2) / _FINER
    r2 = t[:, None] ** 2 + t**2
    fine = (1 + r2 / scale[:, None, None] ** 2) ** -beta[:, None, None]
    image = fine.unflatten(2, (SIDE, _FINER)).unflatten(1, (SIDE, _FINER)).sum((2, 4))
    return image / image.sum(dim=(1, 2), keepdim=True)


@cache
def _wings_of_betas() -> tuple[Tensor, Tensor]:
    """Light in the wings of Moffat profiles, ascending, and their β."""
    side, fwhm = 301, 6
    wings = []
    for beta in _BETAS:
        drawn = galsim.Moffat(beta=beta, fwhm=fwhm).drawImage(
            nx=side, ny=side, scale=1.0, method="no_pixel"
        )
        wings.append(float(light_in_wings(drawn.array, fwhm, total=1.0, pixel=0.0)[0]))
    with torch.inference_mode(False):
        return torch.tensor(wings), torch.tensor(_BETAS)
