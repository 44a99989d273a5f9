"""Sérsic profiles fitted at positions: what an exact likelihood says, as summaries for a network.

Features of a convolution know what galaxies look like, but of a bright one they tell the flux to
some per cent only, and of the PSF they know four numbers. A fit by least squares knows the PSF
pixel by pixel and wastes no signal, but takes every galaxy for a Sérsic profile and believes it.
Its results are therefore no answer: they are among what the posterior is conditioned on, as any
summary may be, and how far they can be trusted is learnt.

Each source is fitted together with its strongest neighbours, in a window
(:mod:`~probablend.models.window`) as large as its light asks for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from astropy.stats import gaussian_sigma_to_fwhm
from torch import Tensor

from probablend.emulate.scenes import where_true
from probablend.models.profiles import moffat_images
from probablend.models.window import FITTED, NEAR, WINDOW, Group, Guess, Window
from probablend.threads import side_by_side

__all__ = ["N_FITTED", "REACH", "Fits", "fit_sources"]

N_FITTED = 2 * len(FITTED) + 5
_TOGETHER = 3  # profiles in a fit
_SAME = 1.5  # pixels: a peak this near is the source itself
_COMPARED = 256  # sources whose distances from all others are held at once
_BINS = (1, 2, 4)  # pixels of the image to a side of one of the window
_FITS_IN = 5.0  # pixels of the window, σ of the light; with more, the window must be larger
REACH = WINDOW * _BINS[-1]  # pixels: half a window, and half that of what throws light into it
_BRIGHTEST = 1e12  # pixel, in units of the noise
_LEAST_ODD = 1e-5  # of a PSF: less makes no difference
_SAME_WIDTH = 0.01  # of the logarithm of the width of a PSF
_AT_ONCE = 48  # profiles that are fitted; more do not fit into the cache


@dataclass(frozen=True)
class Fits:
    """What fits say.

    Parameters
    ----------
    value : Tensor, shape (source, 7)
        Parameters, in the order of ``FITTED``: logarithms of flux, in units of the noise per
        pixel, of radius, in pixels, and of index; place in pixels from the one asked about.
    error : Tensor, shape (source, 7)
        Their standard deviations, were the model right.
    misfit : Tensor, shape (source,)
        Mean square of what is left, in units of the noise, where the source stands out of it.
    blendedness : Tensor, shape (source,)
        1 − ⟨g,g⟩/⟨g,Σg⟩ of the profiles that were fitted together.
    bins : Tensor, shape (source,)
        Pixels of the image to a side of one of the window.
    known : Tensor, shape (source,)
        1 where the PSF was known pixel by pixel, 0 where a profile took its place.
    odd : Tensor, shape (source,)
        How much the PSF that is known differs from that profile: the mean square of the difference
        over that of the profile. The network itself knows nothing of it.
    """

    value: Tensor
    error: Tensor
    misfit: Tensor
    blendedness: Tensor
    bins: Tensor
    known: Tensor
    odd: Tensor

    def keep(self, which: Tensor) -> "Fits":
        """Those of some sources, by their index."""
        return Fits(**{f.name: getattr(self, f.name)[which] for f in fields(self)})

    @property
    def summary(self) -> Tensor:
        """As numbers of order one, (source, N_FITTED)."""
        ln_flux, ln_hlr, g1, g2, y, x, ln_n = self.value.unbind(1)
        blended = self.blendedness.clamp(1e-3, 1 - 1e-3)
        return torch.cat(
            [
                torch.stack([(ln_flux - 5) / 2.5, ln_hlr - 1, g1, g2, y, x, ln_n], dim=1),
                0.5 * self.error.clamp(1e-4, 1e2).log() + 1,
                torch.stack(
                    [self.misfit.clamp(0.05, 1e3).log(), 0.3 * torch.logit(blended),
                     self.bins.log2(), self.known,
                     self.known * (0.5 * (self.odd + _LEAST_ODD).log() + 3)],
                    dim=1,
                ),
            ],
            dim=1,
        )  # fmt: skip


@torch.no_grad()
def fit_sources(
    image: Tensor,
    sources: Guess,
    others: Guess,
    psf_image: Tensor | None = None,
    wings: Tensor | None = None,
) -> Fits:
    """Fit profiles to sources.

    Parameters
    ----------
    image : Tensor, shape (batch, y, x)
        In units of the noise; 0 where there is none.
    sources : Guess
        What is asked for.
    others : Guess
        What else is there. Of those nearer to a source than 1.5 pixels, the nearest is itself.
    psf_image : Tensor, shape (batch, SIDE, SIDE), optional
        Images of the PSFs, of unit sum, in the middle; NaN where not known: there, Moffat
        profiles take their place.
    wings : Tensor, shape (batch,), optional
        Light in their wings, see :func:`~probablend.models.profiles.moffat_images`.

    Returns
    -------
    Fits
    """
    psf, which, known, odd = _psfs(sources, others, psf_image, wings)
    which, which_others = which.split([len(sources), len(others)])
    image = image.clamp(-_BRIGHTEST, _BRIGHTEST)  # squares must stay numbers
    n = len(sources)
    value, error = image.new_zeros(n, len(FITTED)), image.new_ones(n, len(FITTED))
    misfit, blended = image.new_ones(n), image.new_zeros(n)
    windows = {b: Window(b, psf) for b in _BINS}
    all_light = torch.zeros_like(image)
    for b, same in _by_bins(_bins_of(others)):
        for part in same.split(_AT_ONCE):
            windows[b].add(all_light, others.keep(part), which_others[part])
    bins = _bins_of(sources)
    groups = [g for b, own in _by_bins(bins) for g in _groups(sources, own, others, b)]

    def fit_group(group: Group) -> tuple[Tensor, ...]:
        own = group.sources
        return windows[group.bins].fit(
            image, all_light, sources.keep(own), others, group, which[own]
        )

    fits = side_by_side(fit_group, groups, device=image.device)
    for group, fitted in zip(groups, fits, strict=True):
        own = group.sources
        value[own], error[own], misfit[own], blended[own] = fitted
    return Fits(value, error, misfit, blended, bins, known[which], odd[which])


def _psfs(
    sources: Guess, others: Guess, image: Tensor | None, wings: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Different PSFs, which of them each source and each other has; if known; how odd they are."""
    scene = torch.cat([sources.scene, others.scene])
    width = torch.cat([sources.fwhm, others.fwhm])
    # Of a map of widths there would be one for every source.
    rounded = (width.log() / _SAME_WIDTH).round()
    different, which = torch.unique(
        torch.stack([scene.to(width), rounded], dim=1), dim=0, return_inverse=True
    )
    scene = different[:, 0].long()
    psf = moffat_images(
        (different[:, 1] * _SAME_WIDTH).exp(), None if wings is None else wings[scene]
    )
    known, odd = torch.zeros_like(different[:, 0]), torch.zeros_like(different[:, 0])
    if image is not None:
        told = image[scene].isfinite().all(dim=2).all(dim=1)
        told_psf = torch.where(told[:, None, None], image[scene], psf)
        odd = ((told_psf - psf) ** 2).sum(dim=(1, 2)) / (psf**2).sum(dim=(1, 2))
        psf, known = told_psf, told.to(known)
    return psf, which, known, odd


def _bins_of(sources: Guess) -> Tensor:
    """How many pixels of the image make one of the window in which the light fits."""
    sigma = torch.hypot(sources.ln_hlr.exp() / 1.18, sources.fwhm / gaussian_sigma_to_fwhm)
    bins = torch.full_like(sigma, float(_BINS[0]))
    for small, large in pairwise(_BINS):
        bins = torch.where(sigma > small * _FITS_IN, large, bins)
    return bins


def _by_bins(bins: Tensor) -> list[tuple[int, Tensor]]:
    """Sources whose windows have pixels of one size, and this size."""
    return [(b, same) for b in _BINS if len(same := where_true(bins == b))]


def _groups(sources: Guess, own: Tensor, others: Guess, bins: int) -> Iterator[Group]:
    """Some of the sources with their strongest neighbours, those with as many together."""
    reach = bins * NEAR
    by_row = others.y.argsort(stable=True)
    rows = others.y[by_row]
    found = []
    for part in own.split(_COMPARED):
        y = sources.y[part]
        ends = torch.stack([y.min() - reach, y.max() + reach]).to(rows)
        first, last = torch.searchsorted(rows, ends).tolist()
        found.append(_neighbours(sources.keep(part), others, by_row[first:last], reach))
    itself, is_other, neighbours, count = map(torch.cat, zip(*found, strict=True))
    for n in range(neighbours.shape[1] + 1):
        for part in where_true(count == n).split(_AT_ONCE // (n + 1)):
            if len(part):
                yield Group(bins, own[part], itself[part], is_other[part], neighbours[part, :n])


def _neighbours(
    sources: Guess, others: Guess, some: Tensor, reach: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which of ``some`` others is itself, if any; its strongest neighbours; how many it has."""
    nobody = torch.zeros_like(sources.scene)
    neighbours = nobody.new_zeros(len(nobody), _TOGETHER - 1)
    if not len(some):
        return nobody, nobody.bool(), neighbours, nobody
    some = some.sort().values
    others = others.keep(some)
    offset = others.at - sources.at[:, None]
    distance = torch.hypot(offset[..., 0], offset[..., 1])
    near = sources.scene[:, None] == others.scene
    least, itself = torch.where(near, distance, torch.inf).min(dim=1)
    is_other = least < _SAME
    near &= offset.abs().amax(dim=2) < reach
    near[where_true(is_other), itself[is_other]] = False
    weight = torch.where(near, others.ln_flux - 2 * (distance + 2).log(), -torch.inf)
    weight, index = weight.topk(min(_TOGETHER - 1, len(others)), dim=1)
    neighbours[:, : index.shape[1]] = some[index]
    return some[itself], is_other, neighbours, (weight > -torch.inf).sum(dim=1)
