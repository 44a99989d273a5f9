"""What a field model learns from: the likelihood of the truth of emulated scenes."""

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from probablend.emulate.damage import IGNORED
from probablend.emulate.scenes import SceneBatch, Sources, where_true
from probablend.models.field_distribution import Candidates, FieldDistribution
from probablend.models.fields import spline_matrix
from probablend.models.fit import Fits
from probablend.models.source import truth

if TYPE_CHECKING:
    from probablend.models.field import FieldNetwork

__all__ = ["Lesson", "learn", "looked_for", "partners", "study", "training_loss"]

_MIN_TRUE_PIXELS = 5  # sources with smaller footprints are not looked for
_MATCH_RADIUS = 3.0  # pixels
_MATCH_SHARE = 0.3  # of the half-light radius, if that is more
_SHARP = 0.05  # errors of ln flux below this count by their square
_HEAT_WIDTH = 1.0  # σ of the target around a centre, pixels
_WORST = 200.0  # nats: one source that nothing explains must not spoil a step
# Most of the nats of the classes are pixels on the rim of a footprint, of which nothing can be
# known; they would outvote the few that say whether there is a galaxy, and those of its flux.
_WEIGHT = {
    "cross_entropy": 0.3, "centres": 3.0, "existence": 3.0, "existence_given": 2.0,
    "flow_peaks": 2.0, "flow": 2.0, "photometry": 0.5,
}  # fmt: skip
_WITHOUT_FITS = 0.25  # of the steps
_FITTED = 16  # sources, peaks and blank positions of a scene that are looked at, if they are fitted
_USUAL = 8  # sources in a scene; where there are n, each counts ∛(this / n)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What there is to learn at some positions: what is seen there, and the truth.

    Parameters
    ----------
    seen : Tensor, shape (position, channel)
        Of :meth:`~probablend.models.field_distribution.FieldDistribution.seen`.
    fits : Fits, optional
        What fits say there.
    detected : Tensor of bool, shape (position,)
        Whether it is a peak of the network, or a position from elsewhere.
    there, is_star, has_shape : Tensor of bool, shape (position,)
        Whether there is a source, it is a star, and its size and shape are known.
    wanted : Tensor, shape (position, 10)
        Its free parameters, of :func:`~probablend.models.source.truth`; any, if there is none.
    weight : Tensor, shape (position,)
        How much it counts.
    """

    seen: Tensor
    fits: Fits | None
    detected: Tensor
    there: Tensor
    is_star: Tensor
    has_shape: Tensor
    wanted: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.seen)

    def keep(self, which: Tensor) -> "Lesson":
        """Some of the positions, by their index."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "fits"}
        fits = None if self.fits is None else self.fits.keep(which)
        return Lesson(fits=fits, **{key: value[which] for key, value in own.items()})


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
        said = replace(said, fitting=_fitting(generator))
    kept = looked_for(batch)
    terms = {
        "cross_entropy": _class_loss(network, said, batch.classes, generator),
        "centres": _heat_loss(said.heat_logits, kept),
    }
    peaks, given = _peaks(said, kept, generator), _positions(said, kept, generator)
    terms |= _peak_loss(network, peaks) | _source_loss(network, given)
    return _weighted({key: value / n for key, value in terms.items()})


def study(
    network: "FieldNetwork", batch: SceneBatch, *, generator: torch.Generator
) -> tuple[Lesson, Lesson]:
    """What there is to learn of the sources of scenes: at peaks, and at positions from elsewhere.

    Parameters
    ----------
    network, batch, generator
        As for :func:`training_loss`.
    """
    generator = _generator_on(batch.image.device, generator)
    said, kept = network(batch.image, **batch.known), looked_for(batch)
    return _peaks(said, kept, generator), _positions(said, kept, generator)


def learn(
    network: "FieldNetwork", lesson: Lesson, *, generator: torch.Generator
) -> dict[str, Tensor]:
    """The terms of :func:`training_loss` that are about sources, summed over positions.

    Parameters
    ----------
    network : FieldNetwork
        In training mode.
    lesson : Lesson
        Positions of many scenes.
    generator : torch.Generator
        Decides whether fits are looked at.
    """
    generator = _generator_on(lesson.seen.device, generator)
    if lesson.fits is not None and not _fitting(generator):
        lesson = replace(lesson, fits=None)
    peaks, given = (lesson.keep(where_true(d)) for d in (lesson.detected, ~lesson.detected))
    return _weighted(_peak_loss(network, peaks) | _source_loss(network, given))


def _weighted(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    loss = torch.stack([_WEIGHT.get(key, 1.0) * value for key, value in terms.items()]).sum()
    return {"loss": loss} | terms


def _fitting(generator: torch.Generator) -> bool:
    drawn = torch.rand((), generator=generator, device=generator.device)
    return bool(drawn >= _WITHOUT_FITS)


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


def _peaks(said: FieldDistribution, kept: Sources, generator: torch.Generator) -> Lesson:
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
    seen, fits = said.look(scene, y, x, detected=True)
    real = where_true(partner >= 0)
    own = kept.keep(partner[real])
    noise = torch.randn(len(own), 5, generator=generator, device=generator.device)
    weight = (_weights(kept, len(said.image)) / share)[scene]
    return _lesson(said, (scene, y, x), (seen, fits), own, real, noise, weight, detected=True)


def _positions(said: FieldDistribution, kept: Sources, generator: torch.Generator) -> Lesson:
    """What is at positions from elsewhere: jittered true ones, and blank ones."""
    n_y, n_x = said.shape_yx
    inside = (kept.y > -0.5) & (kept.y < n_y - 0.5) & (kept.x > -0.5) & (kept.x < n_x - 0.5)
    own = where_true(inside)
    own, share = _some(own, kept.scene[own], said, generator)
    sources = kept.keep(own)
    n = len(sources)
    noise = torch.randn(n, 7, generator=generator, device=generator.device)
    spread = 0.7 * torch.rand(n, generator=generator, device=generator.device)
    y = sources.y + spread * noise[:, 5]
    x = sources.x + spread * noise[:, 6]
    # As many positions at random, of which those near no source are blank.
    at = torch.rand(n, 2, generator=generator, device=generator.device)
    at = at * torch.tensor(said.shape_yx, device=at.device) - 0.5
    blank = sources.scene.new_zeros(0)
    if n:
        away = _distances(sources.scene, at[:, 0], at[:, 1], kept)
        blank = where_true((away > _match_radius(kept)).all(dim=1))
    scene = torch.cat([sources.scene, sources.scene[blank]])
    y, x = torch.cat([y, at[blank, 0]]), torch.cat([x, at[blank, 1]])
    seen, fits = said.look(scene, y, x, detected=False)
    weight = (_weights(kept, len(said.image)) / share)[scene]
    real = torch.arange(n, device=scene.device)
    return _lesson(said, (scene, y, x), (seen, fits), sources, real, noise[:, :5], weight,
                   detected=False)  # fmt: skip


def _lesson(
    said: FieldDistribution,
    at: tuple[Tensor, Tensor, Tensor],
    seen: tuple[Tensor, Fits | None],
    own: Sources,
    real: Tensor,
    noise: Tensor,
    weight: Tensor,
    *,
    detected: bool,
) -> Lesson:
    """Of positions of which some, ``real``, are those of true sources."""
    scene, y, x = at
    fwhm = said.log_fwhm_at(scene[real], y[real], x[real]).exp()
    wanted = truth(own, y[real], x[real], fwhm, noise)

    def among_all(values: Tensor) -> Tensor:
        return values.new_zeros(len(scene), *values.shape[1:]).index_copy(0, real, values)

    return Lesson(
        seen=seen[0], fits=seen[1], weight=weight, wanted=among_all(wanted),
        detected=torch.full_like(scene, detected, dtype=torch.bool),
        there=among_all(torch.ones_like(real)).bool(),
        is_star=among_all(own.is_star.long()).bool(),
        has_shape=among_all(own.has_shape.long()).bool(),
    )  # fmt: skip


def _peak_loss(network: "FieldNetwork", lesson: Lesson) -> dict[str, Tensor]:
    if not len(lesson):
        zero = lesson.weight.new_zeros(())
        return {"existence": zero, "flow_peaks": zero}
    context = network.context(lesson.seen, detected=True, fits=lesson.fits)
    existence, nats = _likelihood(network, context, lesson)
    return {"existence": existence, "flow_peaks": nats}


def _source_loss(network: "FieldNetwork", lesson: Lesson) -> dict[str, Tensor]:
    if not len(lesson):
        learnt = network.photometry is not None
        names = ["flow", "star", "existence_given", *["photometry"] * learnt]
        return dict.fromkeys(names, lesson.weight.new_zeros(()))
    context = network.context(lesson.seen, detected=False, fits=lesson.fits)
    existence, nats = _likelihood(network, context, lesson)
    own = where_true(lesson.there)
    context, weight = context[own], lesson.weight[own]
    star = F.binary_cross_entropy_with_logits(
        network.kinds(context)[:, 1], lesson.is_star[own].to(context), weight=weight,
        reduction="sum",
    )  # fmt: skip
    terms = {"flow": nats, "star": star, "existence_given": existence}
    if network.photometry is not None:
        error = context[:, network.config.context] - lesson.wanted[own, 0]
        off = F.smooth_l1_loss(error, torch.zeros_like(error), beta=_SHARP, reduction="none")
        terms["photometry"] = (off * weight).sum() / _SHARP
    return terms


def _likelihood(network: "FieldNetwork", context: Tensor, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """−log of the probability that there is a source, or is none, and of what it is."""
    existence = F.binary_cross_entropy_with_logits(
        network.kinds(context)[:, 0], lesson.there.to(context), weight=lesson.weight,
        reduction="sum",
    )  # fmt: skip
    known = where_true(lesson.there & lesson.has_shape)  # real galaxies may have none
    if not len(known):
        return existence, existence.new_zeros(())
    nats = -network.flow(context[known]).log_prob(lesson.wanted[known])
    return existence, (nats.clamp(max=_WORST) * lesson.weight[known]).sum()


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


def _match_radius(kept: Sources) -> Tensor:
    """How far from each source a position is still its own: of a large one the middle is wide."""
    return (_MATCH_SHARE * kept.hlr).nan_to_num(0.0).clamp(min=_MATCH_RADIUS)


def partners(found: Candidates, kept: Sources) -> Tensor:
    """True source of each peak, −1 for none: each other's nearest, within the radius."""
    if not len(found) or not len(kept):
        return torch.full_like(found.scene, -1)
    distance = _distances(found.scene, found.y, found.x, kept)
    least, nearest = distance.min(dim=1)
    mutual = distance.argmin(dim=0)[nearest] == torch.arange(len(least), device=least.device)
    return torch.where(mutual & (least < _match_radius(kept)[nearest]), nearest, -1)
