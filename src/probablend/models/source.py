"""Posterior of a source's flux, size, shape, position and footprint, as a distribution.

A conditional normalizing flow (neural spline flow, arXiv:1906.04032) over ten numbers given
what the network sees at a position, as in neural posterior estimation for catalogues
(arXiv:2510.15315). The flow works with unbounded numbers; :class:`SourcePosterior` speaks
of the quantities themselves and carries the Jacobian.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import zuko
from torch import Tensor, nn
from torch.distributions import AffineTransform, Transform
from torch.nn import functional as F

from probablend.emulate.scenes import Sources

__all__ = [
    "DESCRIPTIONS",
    "N_TRUSTED",
    "PARAMETERS",
    "SourceFlow",
    "SourcePosterior",
    "stretch",
    "to_free",
    "to_physical",
    "truth",
]

DESCRIPTIONS = {
    "flux": "total flux, image units",
    "hlr": "circularised half-light radius before the PSF",
    "g1": "reduced shear along x, before the PSF",
    "g2": "reduced shear along the diagonal, before the PSF",
    "y": "row of the centre, first pixel at 0",
    "x": "column of the centre, first pixel at 0",
    "radius": "of the circle that is as large as the footprint",
    "e1": "ellipticity of the footprint, (a^2 - b^2)/(a^2 + b^2), along x",
    "e2": "the same along the diagonal",
    "blendedness": "1 - <g,g>/<g,sum of all>",
}
PARAMETERS = tuple(DESCRIPTIONS)
N_TRUSTED = 5  # from hlr to x
# Where the flow starts: typical value and spread of each free parameter.
_MEAN = (5.0, 0.9, 0.0, 0.0, 0.0, 0.0, 1.6, 0.0, 0.0, -4.5)
_SPREAD = (1.5, 0.6, 0.6, 0.6, 0.5, 0.5, 0.5, 0.6, 0.6, 2.0)
_FLOOR = 1e-3  # blendedness below this is as good as none, and learnt as about this
_ROUND = 1e-6  # single precision ends here before 1
_FAR = 60.0  # of logarithms: beyond, single precision soon ends
_LOG_SCALE = (-6.0, 2.0)
_N_DRAWS = 512  # behind means and intervals


def stretch(v1: Tensor, v2: Tensor) -> tuple[Tensor, Tensor]:
    """Shape in the unit disc → plane, ``|v|`` → 2 artanh ``|v|``."""
    length = torch.hypot(v1, v2).clamp(1e-6, 1 - 1e-6)
    factor = 2 * torch.atanh(length) / length
    return v1 * factor, v2 * factor


def _shrink(v1: Tensor, v2: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of :func:`stretch`."""
    length = torch.hypot(v1, v2).clamp(min=1e-6)
    factor = torch.tanh(length / 2).clamp(max=1 - _ROUND) / length
    return v1 * factor, v2 * factor


def to_free(values: Tensor) -> Tensor:
    """Physical parameters → unbounded ones, (..., 10) → (..., 10)."""
    flux, hlr, g1, g2, y, x, radius, e1, e2, blended = values.unbind(-1)
    g1, g2 = stretch(g1, g2)
    e1, e2 = stretch(e1, e2)
    shape = flux.log(), hlr.log(), g1, g2, y, x, radius.log(), e1, e2
    return torch.stack([*shape, blended.logit()], dim=-1)


def to_physical(free: Tensor) -> Tensor:
    """Inverse of :func:`to_free`."""
    flux, hlr, g1, g2, y, x, radius, e1, e2, logit = free.unbind(-1)
    g1, g2 = _shrink(g1, g2)
    e1, e2 = _shrink(e1, e2)
    blended = torch.sigmoid(logit.clamp(min=-_FAR)).clamp(max=1 - _ROUND)
    # A posterior that was widened many times may reach any number; none is infinite.
    flux, hlr, radius = (v.clamp(-_FAR, _FAR).exp() for v in (flux, hlr, radius))
    return torch.stack([flux, hlr, g1, g2, y, x, radius, e1, e2, blended], dim=-1)


# Parameters that are possible, in place of those that are not.
_ANY = (1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.5)


def _possible(values: Tensor) -> Tensor:
    """Whether there can be such a source, (..., 10) → (...)."""
    flux, hlr, g1, g2, _, _, radius, e1, e2, blended = values.unbind(-1)
    positive = (flux > 0) & (hlr > 0) & (radius > 0) & (blended > 0) & (blended < 1)
    inside = (torch.hypot(g1, g2) < 1) & (torch.hypot(e1, e2) < 1)
    return positive & inside & torch.isfinite(values).all(dim=-1)


def _log_jacobian(values: Tensor) -> Tensor:
    """Log |∂ free / ∂ physical|, (...)."""
    flux, hlr, g1, g2, _, _, radius, e1, e2, blended = values.unbind(-1)

    def disc(v1: Tensor, v2: Tensor) -> Tensor:
        r = torch.hypot(v1, v2).clamp(1e-6, 1 - 1e-6)
        return (2 / (1 - r**2) * 2 * torch.atanh(r) / r).log()

    slope = 1 / blended + 1 / (1 - blended)
    return slope.log() + disc(g1, g2) + disc(e1, e2) - flux.log() - hlr.log() - radius.log()


def truth(sources: Sources, y: Tensor, x: Tensor, fwhm: Tensor, noise: Tensor) -> Tensor:
    """What the flow learns: free parameters of known sources, seen from given positions.

    Parameters
    ----------
    sources : Sources
        The truth.
    y, x : Tensor, shape (source,)
        Positions asked about.
    fwhm : Tensor, shape (source,)
        Of the PSF, pixels.
    noise : Tensor, shape (source, 5)
        Standard normal. A point source has no size: it becomes one of about a twentieth of
        the PSF with an arbitrary small shape, so that densities stay finite. Counts of
        pixels and blendednesses near 0 are spread out in the same way.
    """
    star = sources.is_star
    hlr = torch.where(star, 0.05 * fwhm * (0.3 * noise[:, 0]).exp(), sources.hlr.clamp(min=1e-3))
    g1 = torch.where(star, (0.1 * noise[:, 1]).clamp(-0.5, 0.5), sources.g1)
    g2 = torch.where(star, (0.1 * noise[:, 2]).clamp(-0.5, 0.5), sources.g2)
    n_pixels = (sources.n_pixels + 0.3 * noise[:, 3]).clamp(min=0.5)
    values = torch.stack(
        [sources.flux, hlr, g1, g2, sources.y - y, sources.x - x, (n_pixels / torch.pi).sqrt(),
         sources.e1, sources.e2, (sources.blendedness.clamp(0, 1) + _FLOOR) / (1 + 2 * _FLOOR)],
        dim=-1,
    )  # fmt: skip
    free = to_free(values)
    return torch.cat([free[:, :-1], free[:, -1:] + 0.2 * noise[:, 4:5]], dim=1)


class _Standardize(zuko.lazy.LazyTransform):
    """(value − location) / scale, both from the context and what follows it."""

    def __init__(self, n_context: int, *, shifted: bool, fitted: bool) -> None:
        super().__init__()
        self.shifted, self.fitted = shifted, fitted
        self.location = nn.Linear(n_context, len(PARAMETERS))
        self.log_scale = nn.Linear(n_context, len(PARAMETERS))
        for layer, start in ((self.location, _MEAN), (self.log_scale, _SPREAD)):
            nn.init.normal_(layer.weight, std=0.01)
            value = torch.tensor(start)
            if shifted:
                value[0] = 0.0 if layer is self.location else 0.3
            layer.bias.data = value.log() if layer is self.log_scale else value

    def forward(self, c: Tensor) -> Transform:
        seen = c[..., : self.location.in_features]
        scale = self.log_scale(seen).clamp(*_LOG_SCALE).exp()
        location = self.location(seen)
        if self.shifted:
            n = self.location.in_features
            first, others = location[..., :1] + c[..., n : n + 1], location[..., 1:]
            if self.fitted:
                trust, fits = c[..., n + 1 :].chunk(2, dim=-1)
                some, rest = others.split([N_TRUSTED, others.shape[-1] - N_TRUSTED], dim=-1)
                others = torch.cat([torch.lerp(some, fits, trust), rest], dim=-1)
            location = torch.cat([first, others], dim=-1)
        return AffineTransform(location, scale).inv


class _Spline(zuko.flows.autoregressive.MaskedAutoregressiveTransform):
    """A spline that does not see the estimates behind its context."""

    def __init__(self, *, context: int, **settings: Any) -> None:
        super().__init__(context=context, **settings)
        self.n_context = context

    def forward(self, c: Tensor) -> Transform:
        return super().forward(c[..., : self.n_context])


class SourceFlow(zuko.lazy.Flow):
    """p(free parameters | context).

    Parameters
    ----------
    n_context : int
        Length of the context.
    hidden : sequence of int
        Widths of the layers that turn it into splines.
    n_transforms, bins : int
        Autoregressive spline transforms, and bins of each spline.
    shifted : bool
        Whether the number after the context is a first estimate of ln flux, from which the flow
        counts.
    fitted : bool
        Whether after it comes how far a fit is to be trusted for size, shape and place, and what it
        says of these, ``N_TRUSTED`` numbers each: the flow counts from between that and its own.
    """

    def __init__(
        self,
        n_context: int,
        *,
        hidden: Sequence[int] = (128, 128),
        n_transforms: int = 2,
        bins: int = 8,
        shifted: bool = False,
        fitted: bool = False,
    ) -> None:
        n = len(PARAMETERS)
        orders = [torch.arange(n), torch.arange(n).flip(0)]
        splines = [
            _Spline(
                features=n,
                context=n_context,
                order=orders[k % 2],
                univariate=zuko.transforms.MonotonicRQSTransform,
                shapes=[(bins,), (bins,), (bins - 1,)],
                hidden_features=hidden,
                activation=nn.SiLU,
            )
            for k in range(n_transforms)
        ]
        base = zuko.lazy.UnconditionalDistribution(
            zuko.distributions.DiagNormal, torch.zeros(n), torch.ones(n), buffer=True
        )
        standardize = _Standardize(n_context, shifted=shifted, fitted=fitted)
        super().__init__([standardize, *splines], base)
        self.order = orders
        self.n_context = n_context

    def invert(self, context: Tensor, base: Tensor) -> Tensor:
        """Free parameters that belong to standard normal numbers.

        What ``self(context).transform.inv(base)`` returns, at a tenth of the cost: each step
        of the inversion computes the one spline that it needs, and what a layer sees of the
        context is computed once for all draws.

        Parameters
        ----------
        context : Tensor, shape (source, channel)
            What was seen.
        base : Tensor, shape (sample, source, parameter)
            Standard normal.
        """
        standardize, *splines = self.transform.transforms
        seen = context[..., : self.n_context]
        for number, spline in reversed(list(enumerate(splines))):
            base = _invert_spline(spline, self.order[number % 2].tolist(), seen, base)
        return standardize(context).inv(base)


def _invert_spline(
    spline: zuko.flows.autoregressive.MaskedAutoregressiveTransform,
    order: list[int],
    context: Tensor,
    base: Tensor,
) -> Tensor:
    """Inverse of one autoregressive transform, parameter by parameter.

    A hidden unit sees the first few parameters in the order only. Sorted by how many, the units
    are computed once each, as soon as what they see is known.
    """
    n = base.shape[-1]
    sequence = sorted(range(n), key=order.__getitem__)
    layers = [m for m in spline.hyper if isinstance(m, zuko.nn.MaskedLinear)]
    weights = [layer.mask * layer.weight for layer in layers]
    # Everything lies (unit, sample · source): what is summed over comes first.
    seen = F.linear(context, weights[0][:, n:], layers[0].bias).T[:, None]
    # How many parameters, in their order, each hidden unit sees.
    rank = torch.tensor([order[k] + 1 for k in range(n)], device=base.device)
    sights = layers[0].mask[:, :n] > 0
    levels: list[Tensor] = []
    for layer in layers[:-1]:
        if levels:
            sights = (layer.mask.float() @ sights.float()) > 0
        levels.append((sights * rank).amax(dim=1))
    units = [level.argsort(stable=True) for level in levels]
    ends = [[0, *torch.bincount(level, minlength=n + 1).cumsum(0).tolist()] for level in levels]
    inner = [w[own][:, below] for w, own, below in
             zip(weights[1:-1], units[1:], units[:-1], strict=True)]  # fmt: skip
    outer = weights[-1][:, units[-1]]

    points = base.movedim(-1, 0).reshape(n, base[..., 0].numel())
    hidden = [base.new_empty(len(level), points.shape[1]) for level in levels]
    values = torch.zeros_like(points)
    for step, k in enumerate(sequence):
        for j, (own, end) in enumerate(zip(units, ends, strict=True)):
            new = own[end[step] : end[step + 1]]
            if j == 0:
                sums = (weights[0][new, :n] @ values).view(len(new), *base.shape[:-1])
                sums = (sums + seen[new]).reshape(len(new), points.shape[1])
            else:
                known = ends[j - 1][step + 1]
                rows = inner[j - 1][end[step] : end[step + 1], :known]
                sums = rows @ hidden[j - 1][:known] + layers[j].bias[new][:, None]
            hidden[j][end[step] : end[step + 1]] = F.silu(sums)
        mine, known = slice(k * spline.total, (k + 1) * spline.total), ends[-1][step + 1]
        numbers = outer[mine, :known] @ hidden[-1][:known] + layers[-1].bias[mine][:, None]
        values[k] = _invert_quadratic(numbers, points[k])
    return values.view(n, *base.shape[:-1]).movedim(0, -1)


_BOUND, _SLOPE = 5.0, 1e-3  # of zuko's MonotonicRQSTransform


def _invert_quadratic(numbers: Tensor, y: Tensor) -> Tensor:
    """Inverse of a rational-quadratic spline, as zuko's; its numbers come first, (3 K − 1, n).

    Gregory & Delbourgo 1982; eqs. 6–8 of arXiv:1906.04032.
    """
    bins = (len(numbers) + 1) // 3
    lowest = abs(math.log(_SLOPE))
    knots = []
    for part in (numbers[:bins], numbers[bins : 2 * bins]):
        share = (part / (1 + (2 * part / lowest).abs())).softmax(dim=0)
        knots.append(F.pad(_BOUND * (2 * share.cumsum(dim=0) - 1), (0, 0, 1, 0), value=-_BOUND))
    part = numbers[2 * bins :]
    slopes = F.pad((part / (1 + (part / lowest).abs())).exp(), (0, 0, 1, 1), value=1.0)
    across, up = knots
    k = (up < y).sum(dim=0) - 1
    inside = (k >= 0) & (k < bins)
    low = (k % bins)[None]
    (x0, x1), (y0, y1), (d0, d1) = (
        (t.gather(0, low)[0], t.gather(0, low + 1)[0]) for t in (across, up, slopes)
    )
    s = (y1 - y0) / (x1 - x0)
    rest, bend = inside * (y - y0), d0 + d1 - 2 * s
    a = (y1 - y0) * (s - d0) + rest * bend
    b = (y1 - y0) * d0 - rest * bend
    c = -s * rest
    z = 2 * c / (-b - (b**2 - 4 * a * c).clamp(min=0).sqrt())
    return torch.where(inside, x0 + z * (x1 - x0), y)


@dataclass(frozen=True, kw_only=True)
class SourcePosterior:
    """Joint posterior of the parameters of some sources; independent between sources.

    Parameters
    ----------
    flow : SourceFlow
        The density.
    context : Tensor, shape (source, channel)
        What was seen at each position.
    y, x : Tensor, shape (source,)
        The positions, pixels.
    unit : Tensor, shape (source,)
        Noise per pixel at each position, image units: fluxes are in image units.
    spread : Tensor, shape (source,)
        How many times wider than learnt, in standard normal numbers; more than 1 where the
        surroundings are unlike the training.
    """

    flow: SourceFlow
    context: Tensor
    y: Tensor
    x: Tensor
    unit: Tensor
    spread: Tensor

    def __len__(self) -> int:
        return len(self.context)

    def _shift(self) -> tuple[Tensor, Tensor]:
        zero, one = torch.zeros_like(self.unit), torch.ones_like(self.unit)
        factor = torch.stack([self.unit, *[one] * 9], dim=-1)
        offset = torch.stack([*[zero] * 4, self.y, self.x, *[zero] * 4], dim=-1)
        return factor, offset

    def transform(self, base: Tensor) -> Tensor:
        """Parameters that belong to standard normal numbers, (sample, source, 10)."""
        factor, offset = self._shift()
        free = self.flow.invert(self.context, base * self.spread[:, None])
        return to_physical(free) * factor + offset

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws, (sample, source, 10), in the order of ``PARAMETERS``.

        Others every time, but for a generator of the same seed.
        """
        shape = (n, len(self), len(PARAMETERS))
        return self.transform(torch.randn(shape, generator=generator).to(self.context))

    def log_prob(self, values: Tensor | np.ndarray) -> Tensor:
        """Log density of parameters, (..., source, 10) → (..., source); −∞ where there is none."""
        values = torch.as_tensor(values, dtype=self.unit.dtype, device=self.unit.device)
        factor, offset = self._shift()
        scaled = (values - offset) / factor
        possible = _possible(scaled)
        scaled = torch.where(possible[..., None], scaled, scaled.new_tensor(_ANY))
        transform = self.flow(self.context).transform
        base, log_slope = transform.call_and_ladj(to_free(scaled))
        normal = torch.distributions.Normal(0, self.spread[:, None]).log_prob(base).sum(dim=-1)
        density = normal + log_slope + _log_jacobian(scaled) - self.unit.log()
        return torch.where(possible, density, -torch.inf)

    def __getitem__(self, which: Any) -> "SourcePosterior":
        """That of some of the sources: numbers, a slice or a mask; of a single one, too."""
        rows = torch.arange(len(self), device=self.unit.device)[which].reshape(-1)
        parts = {
            name: getattr(self, name)[rows] for name in ("context", "y", "x", "unit", "spread")
        }
        return replace(self, **parts)

    @property
    def mean(self) -> Tensor:
        """Mean of every parameter, (source, 10), of 512 draws that are always the same."""
        return self._some_draws().mean(dim=0)

    def interval(self, level: float = 0.68) -> tuple[Tensor, Tensor]:
        """Ends of the central interval of every parameter, (source, 10) each, of such draws.

        Raises
        ------
        ValueError
            If the level does not lie between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1; got {level}")
        if not len(self):
            return self.mean, self.mean
        low, high = self._some_draws().quantile(
            torch.tensor([(1 - level) / 2, (1 + level) / 2]).to(self.unit), dim=0
        )
        return low, high

    @torch.no_grad()
    def _some_draws(self) -> Tensor:
        return self.sample(_N_DRAWS, generator=torch.Generator().manual_seed(0))
