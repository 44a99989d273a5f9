"""Windows around sources, in which Sérsic profiles are drawn and fitted.

Profiles are sums of Gaussians (Hogg & Lang 2013, arXiv:1210.6563), convolved with the PSF in
Fourier space; what fits best is found by Levenberg and Marquardt's method (doi:10.1137/0111030).
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from probablend.models.profiles import sersic_gaussians
from probablend.psf import SIDE

__all__ = ["FITTED", "NEAR", "WINDOW", "Group", "Guess", "Window"]

FITTED = ("ln_flux", "ln_hlr", "g1", "g2", "y", "x", "ln_n")
_N = len(FITTED)
WINDOW, _EDGE = 48, 3  # side, and how much of it only sees what wraps around, pixels of the window
NEAR = WINDOW / 2 - _EDGE  # neighbours up to this far, pixels of the window
_STEPS = 8
_MISFIT = 0.03  # of a pixel's light: no PSF and no profile is known better
_PRIOR = (0.5, 0.5, 0.25, 0.25, 0.5, 0.5, 0.6)  # standard deviations about where it starts
_LONGEST = (1.0, 0.7, 0.3, 0.3, 1.0, 1.0, 0.7)  # steps
_MAX_SHEAR = 0.85
_INDEX, _USUAL_INDEX = (0.5, 6.0), 1.4
_STANDS_OUT = 0.3  # of the noise
_FLUXES = (-5.0, 20.0)  # logarithms, in units of the noise
_AS_GOOD = 0.01  # of χ²: near the end single precision tells no better from worse


@dataclass(frozen=True)
class Guess:
    """Where fits start, every field of shape (source,).

    Parameters
    ----------
    scene : Tensor of int64
        Which image.
    y, x : Tensor
        Centre, pixels.
    ln_flux : Tensor
        In units of the noise per pixel.
    ln_hlr : Tensor
        Before the PSF, pixels.
    g1, g2 : Tensor
        Shape before the PSF.
    fwhm : Tensor
        Of the PSF, pixels.
    """

    scene: Tensor
    y: Tensor
    x: Tensor
    ln_flux: Tensor
    ln_hlr: Tensor
    g1: Tensor
    g2: Tensor
    fwhm: Tensor

    def __len__(self) -> int:
        return len(self.scene)

    def keep(self, which: Tensor) -> "Guess":
        """Those for which ``which`` is true, or of these numbers."""
        return Guess(**{f.name: getattr(self, f.name)[which] for f in fields(self)})

    @property
    def at(self) -> Tensor:
        """Centre, (source, 2)."""
        return torch.stack([self.y, self.x], dim=-1)

    @property
    def values(self) -> Tensor:
        """As ``FITTED``, the Sérsic index a usual one, (source, 7)."""
        usual = torch.full_like(self.ln_flux, math.log(_USUAL_INDEX))
        values = (self.ln_flux, self.ln_hlr, self.g1, self.g2, self.y, self.x, usual)
        return torch.stack([v.to(self.y) for v in values], dim=-1)  # places may be doubles


@dataclass(frozen=True)
class Group:
    """Sources that are fitted at once, each with as many neighbours.

    Parameters
    ----------
    bins : int
        Pixels of the image to a side of one of the window.
    sources : Tensor of int64, shape (source,)
        Which these are.
    itself : Tensor of int64, shape (source,)
        Which of the others each is.
    is_other : Tensor of bool, shape (source,)
        Whether it is one of them at all.
    neighbours : Tensor of int64, shape (source, neighbour)
        Which of the others are fitted with it.
    """

    bins: int
    sources: Tensor
    itself: Tensor
    is_other: Tensor
    neighbours: Tensor


class Window:
    """Fits in windows of one kind.

    Parameters
    ----------
    bins : int
        Pixels of the image to a side of one of the window.
    psf : Tensor, shape (psf, SIDE, SIDE)
        Images of PSFs, of unit sum, in the middle.
    """

    _radii = (math.log(0.05), math.log(WINDOW / 3))  # ln half-light radius

    def __init__(self, bins: int, psf: Tensor) -> None:
        self.bins = bins
        k_y = 2 * math.pi * torch.fft.fftfreq(WINDOW, device=psf.device)
        k_x = 2 * math.pi * torch.fft.rfftfreq(WINDOW, device=psf.device)
        self.k_y = k_y[:, None].expand(-1, len(k_x)).flatten()
        self.k_x = k_x.expand(WINDOW, -1).flatten()
        t = torch.arange(SIDE, device=psf.device) - SIDE // 2
        rows, columns = (
            torch.polar(torch.ones_like(a), a) for a in (-k[:, None] * t / bins for k in (k_y, k_x))
        )
        seen = rows @ psf.to(rows.dtype) @ columns.T
        response = [self._box(k) for k in (k_y, k_x)]
        self.response = (seen * response[0][:, None] * response[1]).flatten(1)

    def _box(self, k: Tensor) -> Tensor:
        """Transform of ``bins`` pixels in a row, their middle at 0."""
        half = k / (2 * self.bins)
        return torch.sinc(self.bins * half / math.pi) / torch.sinc(half / math.pi)

    def render(self, values: Tensor, psf: Tensor, *, slopes: bool = True) -> tuple[Tensor, Tensor]:
        """Images and their derivatives: (source, profile, 7) → (…, y·x) and (…, 7, y·x).

        Without ``slopes``, images are all there is in place of both.
        """
        flux, hlr, g1, g2, y, x, ln_n = (v[..., None] for v in values.unbind(-1))
        flux, hlr = flux.exp(), hlr.exp()
        rest = 1 - g1**2 - g2**2
        scale = hlr / rest.sqrt()
        u = scale * ((1 + g1) * self.k_x + g2 * self.k_y)
        v = scale * (g2 * self.k_x + (1 - g1) * self.k_y)
        q = u * u + v * v
        known, half_square, shares = (t.to(values) for t in sersic_gaussians())
        at = ln_n[..., 0].contiguous()
        above = torch.searchsorted(known, at).clamp(1, len(known) - 1)
        step = known[above] - known[above - 1]
        rise = (shares[above] - shares[above - 1]) / step[..., None]
        share = shares[above - 1] + rise * (at - known[above - 1])[..., None]
        light, slope, change = torch.zeros_like(q), torch.zeros_like(q), torch.zeros_like(q)
        for j, half in enumerate(half_square.tolist()):
            one = torch.exp(-half * q)
            light.addcmul_(one, share[..., j : j + 1])
            if not slopes:
                continue
            slope.addcmul_(one, share[..., j : j + 1], value=-half)
            change.addcmul_(one, rise[..., j : j + 1])
        angle = -(self.k_y * y + self.k_x * x)
        moved = self.response[psf][:, None] * torch.polar(flux.expand_as(angle), angle)
        whole = moved * light
        if not slopes:
            drawn = self._image(whole).flatten(2)
            return drawn, drawn
        # d q / d g, of the scale too.
        by_g1 = 2 * scale * (u * self.k_x - v * self.k_y) + 2 * q * g1 / rest
        by_g2 = 2 * scale * (u * self.k_y + v * self.k_x) + 2 * q * g2 / rest
        sloped = moved * slope
        parts = torch.stack(
            [whole, sloped * (2 * q), sloped * by_g1, sloped * by_g2,
             whole * (-1j * self.k_y), whole * (-1j * self.k_x), moved * change],
            dim=2,
        )  # fmt: skip
        drawn = self._image(parts).flatten(3)
        return drawn[:, :, 0], drawn

    def _image(self, transform: Tensor) -> Tensor:
        """(…, y', x') in one → (…, y, x)."""
        return torch.fft.irfft2(transform.unflatten(-1, (WINDOW, -1)), s=(WINDOW, WINDOW))

    def _pixels(self, image: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and columns of windows, and which lie in the image; each (source, y, x)."""
        n_y, n_x = image.shape[1:]
        n = WINDOW * self.bins
        span = torch.arange(n, device=image.device)
        row = (first[:, 0, None] + span)[:, :, None].expand(-1, -1, n)
        column = (first[:, 1, None] + span)[:, None].expand(-1, n, -1)
        inside = (row >= 0) & (row < n_y) & (column >= 0) & (column < n_x)
        return row.clamp(0, n_y - 1), column.clamp(0, n_x - 1), inside

    def cut(self, image: Tensor, scene: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Windows of images from their first pixels on, and which pixels hold something."""
        row, column, inside = self._pixels(image, first)
        pixels = image[scene[:, None, None], row, column]
        good = inside & (pixels != 0)
        pixels = torch.where(good, pixels, 0.0)
        if self.bins == 1:
            return pixels, good.to(pixels)
        b = self.bins
        blocks = pixels.unflatten(2, (WINDOW, b)).unflatten(1, (WINDOW, b)).sum(dim=(2, 4)) / b
        whole = good.unflatten(2, (WINDOW, b)).unflatten(1, (WINDOW, b)).all(dim=4).all(dim=2)
        return blocks, whole.to(pixels)

    def add(self, image: Tensor, sources: Guess, psf: Tensor) -> None:
        """Add the light of sources to images."""
        b = self.bins
        first = self._first(sources)
        values = self._to_window(sources.values[:, None], first)
        drawn = self.render(values, psf, slopes=False)[0].view(-1, 1, WINDOW, WINDOW) / b
        if b > 1:
            drawn = F.interpolate(drawn, scale_factor=b, mode="bilinear")
        row, column, inside = self._pixels(image, first)
        index = (sources.scene[:, None, None] * image.shape[1] + row) * image.shape[2] + column
        image.view(-1).index_add_(0, index[inside], drawn[:, 0][inside])

    def _first(self, sources: Guess) -> Tensor:
        """First pixels of the windows, (source, 2)."""
        return sources.at.floor().long() - WINDOW * self.bins // 2

    def _to_window(self, values: Tensor, first: Tensor) -> Tensor:
        """Parameters in the image → in windows: places, and b² pixels that count as b."""
        b = self.bins
        values = values.clone()
        values[..., 0] -= math.log(b)
        values[..., 1] = (values[..., 1] - math.log(b)).clamp(*self._radii)
        values[..., 4:6] = (values[..., 4:6] - first[:, None] + 0.5) / b - 0.5
        return self._allowed(values.to(self.k_y))

    def fit(
        self,
        image: Tensor,
        all_light: Tensor,
        sources: Guess,
        others: Guess,
        group: Group,
        psf: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values, errors, misfits and blendednesses of a group.

        Parameters
        ----------
        image, all_light : Tensor, shape (batch, y, x)
            In units of the noise; and the light of all the others, where they are said to be.
        sources, others : Guess
            Those of the group, and all others.
        group : Group
            Which of the others are fitted with them.
        psf : Tensor of int64, shape (source,)
            Which PSF each has.

        Returns
        -------
        value, error, misfit, blendedness : Tensor
            As of :class:`~probablend.models.fit.Fits`.
        """
        b, n = self.bins, len(sources)
        first = self._first(sources)
        data, good = self.cut(image, sources.scene, first)
        data, good = data.flatten(1), good.flatten(1)
        values = self._to_window(sources.values[:, None], first)
        if len(others):  # without the light of all but the source and its neighbours
            index = torch.cat([group.itself[:, None], group.neighbours], dim=1)
            known = self._to_window(others.values[index], first)
            taken = self.render(known, psf, slopes=False)[0]
            taken[:, 0] *= group.is_other[:, None]
            rest, _ = self.cut(all_light, sources.scene, first)
            data = (data - rest.flatten(1) + taken.sum(dim=1)) * good
            values = torch.cat([values, known[:, 1:]], dim=1)
        # Pixels count less where they are bright, and not near the border.
        span = torch.arange(WINDOW, device=data.device)
        inner = (span >= _EDGE) & (span < WINDOW - _EDGE)
        weight = good * (inner[:, None] & inner).flatten()
        smooth = F.avg_pool2d(data.view(n, 1, WINDOW, WINDOW), 3, 1, 1).flatten(1)
        weight = weight / (1 + (_MISFIT * smooth) ** 2)
        values, covariance, parts = self._descend(data, weight, values, psf)
        own, model = parts[:, 0], parts.sum(dim=1)
        bright = (own > _STANDS_OUT) & (weight > 0)
        left = ((data - model) ** 2 * weight * bright).sum(dim=1)
        blended = 1 - (own**2).sum(dim=1) / (own * model).sum(dim=1).clamp(min=1e-9)
        found = values[:, 0].clone()
        found[:, :2] += math.log(b)
        found[:, 4:6] = (found[:, 4:6] + 0.5) * b - 0.5 - (sources.at - first).to(found)
        error = covariance.diagonal(dim1=1, dim2=2)[:, :_N].clamp(min=0).sqrt().to(data)
        error = error.nan_to_num(nan=1.0)
        error[:, 4:6] *= b
        return found, error, left / bright.sum(dim=1).clamp(min=1), blended

    def _descend(
        self, data: Tensor, weight: Tensor, values: Tensor, psf: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Best values, their covariance, and what the profiles look like."""
        begin, longest = values, values.new_tensor(_LONGEST)
        prior = values.new_tensor(_PRIOR).pow(-2).repeat(values.shape[1])

        def look(at: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """χ² of some fits at ``at``, its curvature and slope, and the profiles."""
            parts, slopes = self.render(at, psf[which])
            slopes = slopes.flatten(1, 2)
            left = data[which] - parts.sum(dim=1)
            off = (at - begin[which]).flatten(1)
            cost = (left**2 * weight[which]).sum(dim=1) + (prior * off**2).sum(dim=1)
            weighted = slopes * weight[which][:, None]
            curvature = weighted @ slopes.mT + torch.diag(prior)
            pull = (weighted @ left[..., None])[..., 0] - prior * off
            return cost, curvature, pull, parts

        going = torch.arange(len(values), device=values.device)
        cost, curvature, pull, parts = look(values, going)
        values, damping = values.clone(), values.new_full((len(values), 1), 1e-2)
        for _ in range(_STEPS):
            diagonal = curvature[going].diagonal(dim1=1, dim2=2)
            damped = curvature[going] + torch.diag_embed(damping[going] * diagonal)
            step = torch.linalg.solve(damped.double(), pull[going].double()).to(data)
            step = step.view(-1, *values.shape[1:]).clamp(-longest, longest)
            tried = self._allowed(values[going] + step)
            found = look(tried, going)
            gain = cost[going] - found[0]
            better = gain > -_AS_GOOD
            damping[going] = torch.where(
                better[:, None], 0.3 * damping[going], 5 * damping[going]
            ).clamp(1e-5, 1e4)
            (won,) = better.nonzero(as_tuple=True)
            values[going[won]] = tried[won]
            for kept, one in zip((cost, curvature, pull, parts), found, strict=True):
                kept[going[won]] = one[won]
            going = going[~better | (gain > _AS_GOOD)]  # the others have arrived
            if not len(going):
                break
        covariance = torch.linalg.inv(curvature.double())
        return values, covariance, parts

    def _allowed(self, values: Tensor) -> Tensor:
        """The nearest values that profiles can have."""
        flux, hlr, g1, g2, y, x, ln_n = values.unbind(-1)
        length = torch.hypot(g1, g2).clamp(min=1e-9)
        shrink = (_MAX_SHEAR / length).clamp(max=1)
        low, high = (math.log(v) for v in _INDEX)
        return torch.stack(
            [flux.clamp(*_FLUXES), hlr.clamp(*self._radii),
             g1 * shrink, g2 * shrink, y, x, ln_n.clamp(low, high)],
            dim=-1,
        )  # fmt: skip
