"""What a field model learns from: the likelihood of the truth of emulated scenes."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from probablend.emulate.compose import SceneBatch, Sources, where_true
from probablend.emulate.damage import IGNORED
from probablend.models.field_distribution import Candidates, FieldDistribution
from probablend.models.fields import spline_matrix
from probablend.models.source import truth

if TYPE_CHECKING:
    from probablend.models.field import FieldNetwork

__all__ = ["looked_for", "partners", "training_loss"]

_MIN_TRUE_PIXELS = 5  # sources with smaller footprints are not looked for
_MATCH_RADIUS = 3.0  # pixels
_SHARP = 0.05  # errors of ln flux below this count by their square
_HEAT_WIDTH = 1.0  # σ of the target around a centre, pixels
_WORST = 200.0  # nats: one source that nothing explains must not spoil a step
# Most of the nats of the classes are pixels on the rim of a footprint, of which nothing can be
# known; they would outvote the few that say whether there is a galaxy, and those of its flux.
_WEIGHT = {
    "cross_entropy": 0.3, "centres": 3.0, "existence": 3.0, "existence_given": 2.0,
    "flow_peaks": 2.0, "flow": 2.0, "photometry": 0.5,
}  # fmt: skip
# A crowded scene has thirty times the sources of one with a lone galaxy, and would outvote it.
_WITHOUT_FITS = 0.25  # of the steps
_FITTED = 16  # sources, peaks and blank positions of a scene that are looked at, if they are fitted
_USUAL = 8  # sources in a scene; where there are n, each counts ∛(this / n)


def training_loss(
    network: "FieldNetwork", batch: SceneBatch, *, generator: torch.Generator
) -> dict[str, Tensor]:
    """Weighted sum of negative log likelihoods, nats per image, and its terms.

    Parameters
    ----------
    network : FieldNetwork
        In training mode.
    batch : SceneBatch
        Scenes with their truth.
    generator : torch.Generator
        Of the draws; its numbers decide those of one on the device.
    """
    n = len(batch.image)
    generator = _generator_on(batch.image.device, generator)
    said = network(batch.image, **batch.known)
    if network.config.fits:  # what it says without them is where they start
        drawn = torch.rand((), generator=generator, device=generator.device)
        said = replace(said, fitting=bool(drawn >= _WITHOUT_FITS))
    kept = looked_for(batch)
    size = batch.image.shape[-1]
    inside = (kept.y > -0.5) & (kept.y < size - 0.5) & (kept.x > -0.5) & (kept.x < size - 0.5)
    terms = {
        "cross_entropy": _class_loss(network, said, batch.classes, generator) / n,
        "centres": _heat_loss(said.heat_logits, kept) / n,
    }
    for key, value in _peak_loss(network, said, kept, generator).items():
        terms[key] = value / n
    for key, value in _source_loss(network, said, kept, inside, generator).items():
        terms[key] = value / n
    loss = torch.stack([_WEIGHT.get(key, 1.0) * value for key, value in terms.items()]).sum()
    return {"loss": loss} | terms


def looked_for(batch: SceneBatch) -> Sources:
    """The sources of scenes that are large enough to be found."""
    return batch.sources.keep(batch.sources.n_pixels >= _MIN_TRUE_PIXELS)


def _class_loss(
    network: "FieldNetwork", said: FieldDistribution, classes: Tensor, generator: torch.Generator
) -> Tensor:
    """−log of the likelihood averaged over draws of the fields, nats.

    Of every pixel on its own, plus that of small windows: the first makes probabilities
    right, the second makes the pixels of a draw agree with each other.
    """
    config = network.config
    cells = network.head(said.projected, None)  # (batch, y', x', class · stem²)
    n, n_y, n_x, _ = cells.shape
    # The truth on the same grid; what was padded does not count.
    missing = (n_x * config.stem - classes.shape[-1], n_y * config.stem - classes.shape[-2])
    padded = F.pad(classes, (0, missing[0], 0, missing[1]), value=IGNORED)
    target = F.pixel_unshuffle(padded[:, None], config.stem).movedim(1, -1)

    def nats(logits: Tensor, wanted: Tensor) -> Tensor:
        by_class = logits.unflatten(-1, (config.n_classes, -1)).movedim(-2, 1)
        return F.cross_entropy(by_class, wanted, reduction="none", ignore_index=IGNORED)

    def averaged(draws: Tensor) -> Tensor:
        return (math.log(config.n_draws) - torch.logsumexp(-draws, dim=0)).sum()

    drawn = network.uncertain(cells)
    certain = nats(cells[~drawn], target[~drawn]).sum()
    b, y, x = drawn.nonzero(as_tuple=True)
    fields = _training_fields(network, n, n_y, n_x, generator, cells.device)
    projected, wanted = said.projected[b, y, x], target[b, y, x]
    draws = torch.stack(
        [nats(network.head(projected, field[b, :, y, x]), wanted) for field in fields]
    )  # (draw, cell, pixel)
    # Windows start anywhere, so that no border between them stays.
    shift = torch.randint(config.window, (2,), generator=generator, device=generator.device)
    shift_y, shift_x = shift.tolist()
    rows, columns = 1 + -(-n_y // config.window), 1 + -(-n_x // config.window)
    window = (b * rows + (y + shift_y) // config.window) * columns
    window = window + (x + shift_x) // config.window
    totals = torch.zeros(len(draws), n * rows * columns, device=cells.device)
    totals = totals.index_add(1, window, draws.sum(dim=-1))
    loss = certain * (1 + config.joint_weight) + averaged(draws)
    return loss + config.joint_weight * averaged(totals)


def _training_fields(
    network: "FieldNetwork",
    n: int,
    n_y: int,
    n_x: int,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Unit Gaussian fields, (draw, batch, latent, y', x'), as inference draws them."""
    config = network.config
    levels = []
    for spacing in config.latent_spacings:
        along_y, along_x = (spline_matrix(m, spacing).to(device) for m in (n_y, n_x))
        noise = torch.randn(
            config.n_draws, n, config.latent_channels, along_y.shape[1], along_x.shape[1],
            generator=generator, device=device,
        )  # fmt: skip
        levels.append(along_y @ noise @ along_x.T)
    return torch.cat(levels, dim=2)


def _peak_loss(
    network: "FieldNetwork", said: FieldDistribution, kept: Sources, generator: torch.Generator
) -> dict[str, Tensor]:
    """What the network's own peaks are: nothing, or which true source."""
    with torch.no_grad():
        found = said.candidates(limit=128)
        partner = partners(found, kept)
        n_y, n_x = said.shape_yx
        edge = _MATCH_RADIUS  # partners may lie outside
        inner = (found.y > edge) & (found.y < n_y - 1 - edge)
        inner &= (found.x > edge) & (found.x < n_x - 1 - edge)
        inner = where_true(inner)
        inner, share = _some(inner, found.scene[inner], said, generator)
        scene, y, x, partner = (t[inner] for t in (found.scene, found.y, found.x, partner))
    zero = said.heat_logits.new_zeros(())
    if not len(scene):
        return {"existence": zero, "flow_peaks": zero}
    context = said.context(scene, y, x, detected=True)
    weight = (_weights(kept, len(said.image)) / share)[scene]
    real = partner >= 0
    existence = F.binary_cross_entropy_with_logits(
        network.kinds(context)[:, 0], real.to(context), weight=weight, reduction="sum"
    )
    if not bool(real.any()):
        return {"existence": existence, "flow_peaks": zero}
    real = where_true(real & kept.has_shape[partner.clamp(min=0)])
    own = kept.keep(partner[real])
    noise = torch.randn(len(own), 5, generator=generator, device=generator.device)
    fwhm = said.log_fwhm_at(own.scene, y[real], x[real]).exp()
    wanted = truth(own, y[real], x[real], fwhm, noise)
    nats = -network.flow(context[real]).log_prob(wanted)
    nats = nats.clamp(max=_WORST) * weight[real]
    return {"existence": existence, "flow_peaks": nats.sum()}


def _source_loss(
    network: "FieldNetwork",
    said: FieldDistribution,
    kept: Sources,
    inside: Tensor,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """What is at positions from elsewhere: jittered true ones, and blank ones."""
    own = where_true(inside)
    own, share = _some(own, kept.scene[own], said, generator)
    sources = kept.keep(own)
    n = len(sources)
    zero = said.heat_logits.new_zeros(())
    if n == 0:
        terms = dict.fromkeys(("flow", "star", "existence_given"), zero)
        return terms if network.photometry is None else terms | {"photometry": zero}
    noise = torch.randn(n, 7, generator=generator, device=generator.device)
    spread = 0.7 * torch.rand(n, generator=generator, device=generator.device)
    y = sources.y + spread * noise[:, 5]
    x = sources.x + spread * noise[:, 6]
    context = said.context(sources.scene, y, x, detected=False)
    fwhm = said.log_fwhm_at(sources.scene, y, x).exp()
    weights = _weights(kept, len(said.image)) / share
    weight = weights[sources.scene]
    known = where_true(sources.has_shape)  # real galaxies may have none
    wanted = truth(sources, y, x, fwhm, noise[:, :5])[known]
    nats = -network.flow(context[known]).log_prob(wanted)
    kind = network.kinds(context)
    star = F.binary_cross_entropy_with_logits(
        kind[:, 1], sources.is_star.to(nats), weight=weight, reduction="sum"
    )
    # As many positions at random, of which those near no source are blank.
    at = torch.rand(n, 2, generator=generator, device=generator.device)
    at = at * torch.tensor(said.shape_yx, device=at.device) - 0.5
    away = _distances(sources.scene, at[:, 0], at[:, 1], kept).amin(dim=1)
    blank = where_true(away > _MATCH_RADIUS)
    empty = said.context(sources.scene[blank], at[blank, 0], at[blank, 1], detected=False)
    logits = torch.cat([kind[:, 0], network.kinds(empty)[:, 0]])
    there = torch.cat([torch.ones(n), torch.zeros(len(empty))]).to(logits)
    existence = F.binary_cross_entropy_with_logits(
        logits, there, weight=torch.cat([weight, weights[sources.scene[blank]]]),
        reduction="sum",
    )  # fmt: skip
    nats = nats.clamp(max=_WORST) * weight[known]
    terms = {"flow": nats.sum(), "star": star, "existence_given": existence}
    if network.photometry is not None:
        error = context[:, network.config.context] - sources.flux.log()
        off = F.smooth_l1_loss(error, torch.zeros_like(error), beta=_SHARP, reduction="none")
        terms["photometry"] = (off * weight).sum() / _SHARP
    return terms


def _generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator on the device, whose numbers follow from those of another one."""
    if generator.device.type == device.type:
        return generator
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    return torch.Generator(device).manual_seed(int(seed))


def _some(
    which: Tensor, scene: Tensor, said: FieldDistribution, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A few of what is in each scene, at random, and which share of it: all, if none is fitted."""
    n_scenes = len(said.image)
    if not (said.network.config.fits and said.fitting):
        return which, torch.ones(n_scenes, device=which.device)
    shuffled = torch.rand(len(which), generator=generator, device=which.device).argsort()
    shuffled = shuffled[scene[shuffled].argsort(stable=True)]  # by scene, at random in each
    count = torch.bincount(scene, minlength=n_scenes)
    first = count.cumsum(0) - count
    place = torch.arange(len(which), device=which.device) - first[scene[shuffled]]
    share = (_FITTED / count.clamp(min=1)).clamp(max=1)
    return which[shuffled[place < _FITTED].sort().values], share


def _weights(kept: Sources, n_scenes: int) -> Tensor:
    """How much a source of each scene counts, (scene,)."""
    n = torch.bincount(kept.scene, minlength=n_scenes).clamp(min=1)
    return (_USUAL / n) ** (1 / 3)


def _distances(scene: Tensor, y: Tensor, x: Tensor, kept: Sources) -> Tensor:
    """Distances from positions to true sources, (position, source); far if scenes differ."""
    distance = torch.hypot(y[:, None] - kept.y, x[:, None] - kept.x)
    return torch.where(scene[:, None] == kept.scene, distance, 1e6)


def _heat_loss(logits: Tensor, kept: Sources) -> Tensor:
    """Cross-entropy with a Gaussian around every centre, summed over pixels."""
    n, n_y, n_x = logits.shape
    reach = math.ceil(4 * _HEAT_WIDTH)
    span = torch.arange(-reach, reach + 1, device=logits.device)
    row = kept.y.round().long()[:, None, None] + span[None, :, None]
    column = kept.x.round().long()[:, None, None] + span[None, None, :]
    distance = (row - kept.y[:, None, None]) ** 2 + (column - kept.x[:, None, None]) ** 2
    value = torch.exp(-0.5 * distance / _HEAT_WIDTH**2)
    inside = (row >= 0) & (row < n_y) & (column >= 0) & (column < n_x)
    index = (kept.scene[:, None, None] * n_y + row) * n_x + column
    target = torch.zeros(n * n_y * n_x, device=logits.device)
    target.scatter_reduce_(0, index[inside], value[inside], "amax")
    target = target.view_as(logits)
    # The entropy of the target is a constant: without it the term is 0 for perfect answers.
    entropy = F.binary_cross_entropy(target, target, reduction="sum")
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") - entropy


def partners(found: Candidates, kept: Sources) -> Tensor:
    """True source of each peak, −1 for none: each other's nearest, within the radius."""
    if not len(found) or not len(kept):
        return torch.full_like(found.scene, -1)
    distance = _distances(found.scene, found.y, found.x, kept)
    least, nearest = distance.min(dim=1)
    mutual = distance.argmin(dim=0)[nearest] == torch.arange(len(least), device=least.device)
    return torch.where(mutual & (least < _MATCH_RADIUS), nearest, -1)
