"""Training scenes composed on the training device from a bank of stamps.

The same scenes as :func:`~probablend.emulate.blend.draw_field`, a batch at a time and with
nothing but tensor operations. Batch ``i`` depends on the seed and on ``i`` alone: a
resumed run sees the same scenes.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from astropy.stats import gaussian_sigma_to_fwhm
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from probablend.emulate.blend import COUNTS_SLOPE, FIELD_MARGIN, STAR_COUNTS_SLOPE
from probablend.emulate.classes import FOOTPRINT_THRESHOLD
from probablend.emulate.damage import damage, seam, tilt_sky
from probablend.emulate.noise import correlate, draw_kernels, noise_factors
from probablend.emulate.scenes import SceneBatch, SceneConfig, Sources, where_true
from probablend.psf import STARS_UNSURE

if TYPE_CHECKING:
    from probablend.emulate.bank import Bank

__all__ = ["SceneBatches", "compose", "draw_batch", "draw_depth"]

# A crowded scene: more galaxies, most of them with a companion, bright ones as common as faint.
_CROWDED_DENSITY = (100.0, 400.0)
_CROWDED_COMPANIONS = (0.4, 0.8)
_CROWDED_SLOPE = 0.15
# Noise of the parts of a scene whose depth changes, in units of the deepest one.
_SHALLOWEST = 2.5
# How uncertain estimates of the noise factors are on small images, in their logarithms; on larger
# ones less.
_UNSURE = (0.03, 0.08)
_WIDTH_UNSURE = 0.03  # the same of the logarithm of the width of a PSF that few stars tell of


class SceneBatches(Dataset[SceneBatch]):
    """Batches of scenes, composed when they are asked for; the first ones are crowded.

    For any training loop: ``DataLoader(SceneBatches(…), batch_size=None)``.

    Parameters
    ----------
    bank : Bank
        On the device to work on.
    config : SceneConfig
        What to draw.
    n_batches : int
        How many.
    batch_size : int
        Scenes in each.
    seed : int
        A batch depends on it and on its number alone.
    """

    def __init__(
        self, bank: "Bank", config: SceneConfig, *, n_batches: int, batch_size: int, seed: int
    ) -> None:
        self.bank, self.config = bank, config
        self.n_batches, self.batch_size, self.seed = n_batches, batch_size, seed

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, index: int) -> SceneBatch:
        if not 0 <= index < self.n_batches:
            raise IndexError(f"there are {self.n_batches} batches, from 0; got {index}")
        return draw_batch(
            self.bank, self.config, n=self.batch_size, seed=self.seed, index=index,
            progress=index / self.n_batches,
        )  # fmt: skip


def draw_batch(
    bank: "Bank", config: SceneConfig, *, n: int, seed: int, index: int, progress: float = 1.0
) -> SceneBatch:
    """Batch ``index`` of scenes.

    Parameters
    ----------
    bank : Bank
        On the device to work on.
    config : SceneConfig
        What to draw.
    n : int
        Scenes.
    seed, index : int
        The batch depends on them alone.
    progress : float
        How far the training is, 0 to 1: the first scenes are crowded.
    """
    device = bank.pixels.device
    generator = torch.Generator(device).manual_seed((seed * 9_999_991 + index + 1) % 2**63)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    # Kind of each scene.
    survey = (uniform(n) * len(bank.surveys)).long().clamp(max=len(bank.surveys) - 1)
    usual = _as_usual(bank.scale, config)[survey]
    isolated = uniform(n) < usual * config.isolated_fraction
    paired = torch.zeros_like(isolated)
    if config.pair_fraction:
        paired = ~isolated & (uniform(n) < usual * config.pair_fraction)
    single = isolated | paired  # neither density nor stars
    crowded = ~single & (uniform(n) < config.crowded_share_at(progress))
    sparse = ~single & ~crowded & (uniform(n) < config.sparse_fraction)

    def between(low_high: tuple[float, float], crowd: tuple[float, float]) -> Tensor:
        low = torch.where(crowded, crowd[0], low_high[0])
        return low + (torch.where(crowded, crowd[1], low_high[1]) - low) * uniform(n)

    logs = [tuple(math.log(v) for v in r) for r in (config.density_range, _CROWDED_DENSITY)]
    density = between(logs[0], logs[1]).exp()  # type: ignore[arg-type]
    density = torch.where(sparse, density / config.sparse_factor, density)
    companions = between(config.companion_range, _CROWDED_COMPANIONS)

    # How many of what, and where. A scene's galaxies come first, then its stars.
    side = config.size + 2 * FIELD_MARGIN
    area = (side * bank.scale[survey] / 60) ** 2
    n_galaxies = torch.poisson(density * area, generator=generator).long()
    n_galaxies = torch.where(isolated, 1, torch.where(paired, 2, n_galaxies))
    star_density = torch.where(single, 0.0, config.star_density if bank.has_stars else 0.0)
    n_stars = torch.poisson(star_density * area, generator=generator).long()
    scene = torch.repeat_interleave(torch.arange(n, device=device), n_galaxies + n_stars)
    first = (n_galaxies + n_stars).cumsum(0) - (n_galaxies + n_stars)
    order = torch.arange(len(scene), device=device) - first[scene]
    is_star = order >= n_galaxies[scene]
    centre = uniform(len(scene), 2) * side - FIELD_MARGIN
    alone = isolated[scene]
    centre = torch.where(alone[:, None], uniform(len(scene), 2) * config.size, centre)
    # The last galaxies of a scene are companions of the first ones.
    n_beside = (companions * n_galaxies + uniform(n)).long() * ~paired
    n_beside = torch.minimum(n_beside, (n_galaxies - 1).clamp(min=0))
    n_hosts = (n_galaxies - n_beside)[scene]
    is_companion = (order >= n_hosts) & ~is_star
    host = first[scene] + (uniform(len(scene)) * n_hosts).long()
    radius = uniform(len(scene)) * config.companion_distance / bank.scale[survey[scene]]
    angle = 2 * math.pi * uniform(len(scene))
    beside = centre[host.clamp(max=max(len(scene) - 1, 0))]
    beside = beside + radius[:, None] * torch.stack([angle.sin(), angle.cos()], dim=1)
    centre = torch.where(is_companion[:, None], beside, centre)

    slope = torch.where(crowded[scene], _CROWDED_SLOPE, COUNTS_SLOPE)
    slope = torch.where(is_star, STAR_COUNTS_SLOPE, slope)
    slope = torch.where(alone, 1e-3, slope)  # bright ones as common as faint
    low, high = (10 ** (slope * m) for m in config.mag_range)
    mag = (low + uniform(len(scene)) * (high - low)).log10() / slope

    central, beside = (paired[scene] & (order == k) for k in (0, 1))
    if config.pair_fraction:
        mag = _pair_mags(mag, central, beside, config.pair_mag_range, uniform(len(scene)))
    which = _choose(bank, 2 * survey[scene] + is_star, mag, uniform(len(scene)))
    if config.pair_fraction:
        polar = uniform(2, int(beside.sum()))
        centre = _pair_centres(centre, bank.hlr[which], central, beside, config.size, polar)
    if config.pair_spread:
        shift = config.pair_spread * (2 * uniform(n, 2) - 1)
        centre = centre + torch.where((central | beside)[:, None], shift[scene], 0.0)
    if config.centred_fraction and len(scene):
        chosen = uniform(n) < config.centred_fraction
        away = (config.size - 1) / 2 - centre
        order = torch.hypot(*away.T).argsort()
        order = order[scene[order].argsort(stable=True)]  # by scene, then by distance
        nearest = order[first.clamp(max=len(order) - 1)]
        shift = torch.where(chosen[:, None], away[nearest], 0.0)
        centre = centre + shift[scene]
    turned = uniform(len(scene), 3) < 0.5
    if config.psf_fraction:
        of_scene = uniform(n, 3) < 0.5
        turned = of_scene[scene]
    turns = turned.unbind(1)
    noise = torch.randn(n, config.size, config.size, generator=generator, device=device)
    if config.correlated_fraction:
        correlated = uniform(n) < config.correlated_fraction
        kernels = draw_kernels(n, generator=generator, device=device)
        noise = torch.where(correlated[:, None, None], correlate(noise, kernels), noise)
    depth = None
    if config.depth_fraction:
        depth = draw_depth(n, config.size, fraction=config.depth_fraction, generator=generator)
    batch = compose(bank, survey, scene, which, centre, mag, turns, noise, depth)
    if config.correlated_fraction or config.sky_fraction:
        factors = torch.ones(n, 2, device=device)
        if config.correlated_fraction:
            factors = torch.where(correlated[:, None], noise_factors(kernels), factors)
        batch = replace(batch, noise_factors=factors)
    if config.sky_fraction:
        batch = tilt_sky(batch, fraction=config.sky_fraction, generator=generator)
    if config.seam_fraction:
        batch = seam(batch, fraction=config.seam_fraction, generator=generator)
    if config.damaged_fraction:
        batch = damage(batch, fraction=config.damaged_fraction, generator=generator)
    if batch.noise_factors is not None:
        unsure = uniform(n, 1) * torch.randn(n, 2, generator=generator, device=device)
        seen = batch.noise_factors * (unsure * unsure.new_tensor(_UNSURE)).exp()
        batch = replace(batch, noise_factors=seen.clamp(min=1))
    if config.wings_fraction:
        told = uniform(n, 1) < config.wings_fraction
        limits = torch.tensor([_WIDTH_UNSURE, *STARS_UNSURE], device=device)
        unsure = uniform(n, 1) * torch.randn(n, 4, generator=generator, device=device) * limits
        wings = torch.where(told, bank.psf_wings[survey] + unsure[:, 1:], torch.nan)
        fwhm = batch.psf_fwhm * unsure[:, 0].exp()
        batch = replace(batch, psf_fwhm=fwhm, psf_wings=wings)
    if config.psf_fraction:
        known = uniform(n) < config.psf_fraction
        image, fwhm = _turned(bank.psf[survey], of_scene), bank.psf_fwhm[survey]
        wings = bank.psf_wings[survey]
        told = torch.full_like(wings, torch.nan) if batch.psf_wings is None else batch.psf_wings
        if config.psf_error:
            error = config.psf_error * (2 * uniform(n, 2) - 1) ** 3
            grain = torch.randn(image.shape, generator=generator, device=device)
            image = _mistaken(image, fwhm, error, grain)
            fwhm = fwhm * (1 + error[:, 0])
            wings = torch.where(told.isfinite(), told, wings)
        image = torch.where(known[:, None, None], image, torch.nan)
        fwhm = torch.where(known, fwhm, batch.psf_fwhm)
        wings = torch.where(known[:, None], wings, told)
        batch = replace(batch, psf_fwhm=fwhm, psf_wings=wings, psf_image=image)
    return batch


def _turned(image: Tensor, turned: Tensor) -> Tensor:
    """Images (scene, y, x) turned as stamps are; (scene, 3) as ``turns`` of :func:`compose`."""
    swap, flip_y, flip_x = turned[:, :, None, None].unbind(1)
    image = torch.where(swap, image.mT, image)
    image = torch.where(flip_y, image.flip(1), image)
    return torch.where(flip_x, image.flip(2), image)


def _mistaken(image: Tensor, fwhm: Tensor, error: Tensor, grain: Tensor) -> Tensor:
    """PSFs (scene, y, x) as they may be measured: too wide or too narrow, and with noise.

    ``error`` (scene, 2): of the width, and ten times the noise of a pixel near the middle, for a
    brightest one of 1.
    """
    laplacian = image.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    curved = F.conv2d(image[:, None], laplacian[None, None], padding=1)[:, 0]
    # To spread by t is to widen σ² by 2 t.
    spread = error[:, 0] * (fwhm / gaussian_sigma_to_fwhm) ** 2
    noise = 0.1 * error[:, 1] * image.amax(dim=(1, 2))
    t = torch.arange(image.shape[-1], device=image.device) - image.shape[-1] // 2
    near = torch.exp(-0.5 * (t[:, None] ** 2 + t**2) / (2 * fwhm[:, None, None]) ** 2)
    image = image + spread[:, None, None] * curved + noise[:, None, None] * near * grain
    return image / image.sum(dim=(1, 2), keepdim=True)


def _as_usual(scale: Tensor, config: SceneConfig) -> Tensor:
    """How often scenes of one or two galaxies are drawn, as a share of what is asked for."""
    if not config.few:
        return torch.ones_like(scale)
    density = math.sqrt(math.prod(config.density_range))
    return (density * (config.size * scale / 60) ** 2 / config.few).clamp(max=1)


def draw_depth(n: int, size: int, *, fraction: float, generator: torch.Generator) -> Tensor:
    """Noise per pixel where exposures overlap in part.

    Parameters
    ----------
    n, size : int
        Scenes, and their side, pixels.
    fraction : float
        Share of the scenes in which it changes.
    generator : torch.Generator
        On the device to work on.

    Returns
    -------
    Tensor, shape (scene, y, x)
        In units of the survey's noise: 1 all over, or on one side of each of one to three lines
        up to 2.5 times as much.
    """
    device = generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    chosen = uniform(n) < fraction
    n_lines = 1 + (3 * uniform(n)).long()
    # Exposures are rarely turned against each other: half of the lines run along an axis.
    angle = 2 * math.pi * uniform(n, 3)
    angle = torch.where(uniform(n, 3) < 0.5, (angle * 2 / math.pi).round() * math.pi / 2, angle)
    offset = size * (uniform(n, 3) - 0.5)
    share = uniform(n, 3) * math.log(_SHALLOWEST)
    span = torch.arange(size, device=device) - (size - 1) / 2
    beyond = span[:, None] * angle.sin()[..., None, None] + span * angle.cos()[..., None, None]
    beyond = beyond > offset[..., None, None]  # (scene, line, y, x)
    used = torch.arange(3, device=device) < n_lines[:, None]
    log_noise = (beyond * (share * used)[..., None, None]).sum(dim=1)
    log_noise = log_noise.clamp(max=math.log(_SHALLOWEST))
    return torch.where(chosen[:, None, None], log_noise.exp(), 1.0)


def _pair_mags(
    mag: Tensor,
    central: Tensor,
    beside: Tensor,
    mag_range: tuple[float, float],
    uniform: Tensor,
) -> Tensor:
    """Magnitudes of pairs: number counts, and within 2 mag of that."""
    bright, faint = mag_range
    low, high = (10 ** (COUNTS_SLOPE * m) for m in mag_range)
    first = (low + uniform[central] * (high - low)).log10() / COUNTS_SLOPE
    brightest, faintest = (first - 2).clamp(min=bright), (first + 2).clamp(max=faint)
    mag = mag.clone()
    mag[central] = first
    mag[beside] = brightest + uniform[beside] * (faintest - brightest)
    return mag


def _pair_centres(
    centre: Tensor, hlr: Tensor, central: Tensor, beside: Tensor, size: int, uniform: Tensor
) -> Tensor:
    """Places of pairs: the middle, and a shift between one and four radii from it."""
    typical = hlr.nanmedian()  # of galaxies whose own is not known
    first, second = (torch.where(r.isnan(), typical, r) for r in (hlr[central], hlr[beside]))
    r_max = (4 * torch.minimum(first, second)).clamp(max=size / 2)
    r_min = torch.maximum(first, second)
    r_min = torch.where(r_min > r_max, 0.8 * r_max, r_min)
    radius, angle = r_min + uniform[0] * (r_max - r_min), 2 * math.pi * uniform[1]
    middle = torch.full_like(centre[central], (size - 1) / 2)
    centre = centre.clone()
    centre[central] = middle
    centre[beside] = middle + radius[:, None] * torch.stack([angle.sin(), angle.cos()], dim=1)
    return centre


def _choose(bank: "Bank", group: Tensor, mag: Tensor, uniform: Tensor) -> Tensor:
    """Stamps of a group near a magnitude: within 0.1 mag, or the 16 nearest; of stars, the 4.

    A stamp holds what stands out of the noise at its own magnitude: one of a much fainter source
    would show its border. Stars differ in nothing else.
    """
    least = torch.where(group % 2 == 1, 4, 16)
    step = 100.0  # magnitudes never reach from one group into the next
    keys = bank.group * step + bank.mag
    wanted = group * step + mag
    low_end = torch.searchsorted(keys, group * step - step / 2)
    high_end = torch.searchsorted(keys, group * step + step / 2)
    low = torch.searchsorted(keys, wanted - 0.1)
    high = torch.searchsorted(keys, wanted + 0.1)
    few = high - low < least
    low = torch.where(few, torch.searchsorted(keys, wanted) - least // 2, low)
    low = torch.maximum(torch.minimum(low, high_end - least), low_end)
    high = torch.minimum(torch.where(few, low + least, high), high_end)
    return torch.minimum(low + (uniform * (high - low)).long(), high - 1)


def compose(
    bank: "Bank",
    survey: Tensor,
    scene: Tensor,
    which: Tensor,
    centre: Tensor,
    mag: Tensor,
    turns: tuple[Tensor, ...],
    noise: Tensor,
    depth: Tensor | None = None,
) -> SceneBatch:
    """Add stamps up, measure the truth and expose.

    Parameters
    ----------
    bank : Bank
        The stamps.
    survey : Tensor of int64, shape (scene,)
        Survey of each scene.
    scene, which : Tensor of int64, shape (source,)
        Scene of each source, and its stamp.
    centre : Tensor, shape (source, 2)
        Where it is wanted, (y, x); it comes within half a pixel: no interpolation.
    mag : Tensor, shape (source,)
        Its AB magnitude.
    turns : three Tensors of bool, shape (source,)
        Whether the stamp is transposed, then flipped in y, then in x.
    noise : Tensor, shape (scene, y, x)
        Standard normal.
    depth : Tensor, shape (scene, y, x), optional
        Noise of each pixel in units of the survey's. The scene comes in units of the noise of
        each pixel, the flux of a source in that of its central one, as images are prepared.
    """
    n, size, _ = noise.shape
    swap, flip_y, flip_x = turns
    side = bank.side[which]
    y, x = bank.y[which], bank.x[which]
    y, x = torch.where(swap, x, y), torch.where(swap, y, x)
    y = torch.where(flip_y, side - 1 - y, y)
    x = torch.where(flip_x, side - 1 - x, x)
    y0 = (centre[:, 0] - y).round().long()
    x0 = (centre[:, 1] - x).round().long()
    seen = where_true((y0 < size) & (x0 < size) & (y0 + side > 0) & (x0 + side > 0))
    scene, which, side, y0, x0, y, x, mag = (
        t[seen] for t in (scene, which, side, y0, x0, y, x, mag)
    )
    swap, flip_y, flip_x = swap[seen], flip_y[seen], flip_x[seen]
    n_sources = len(which)

    # One entry per pixel: the whole stamp if its centre is in the scene, what is seen if not.
    whole = (y0 + y > -0.5) & (y0 + y < size - 0.5) & (x0 + x > -0.5) & (x0 + x < size - 0.5)
    row_0, row_1 = _span(y0, side, size, whole)
    column_0, column_1 = _span(x0, side, size, whole)
    n_columns = column_1 - column_0
    n_each = (row_1 - row_0) * n_columns
    source = torch.repeat_interleave(torch.arange(n_sources, device=side.device), n_each)
    local = torch.arange(len(source), device=side.device) - (n_each.cumsum(0) - n_each)[source]
    width = side[source]
    row = local // n_columns[source]
    column = local - row * n_columns[source] + column_0[source]
    row = row + row_0[source]
    # Undo the turns to find the pixel in the bank.
    r = torch.where(flip_y[source], width - 1 - row, row)
    c = torch.where(flip_x[source], width - 1 - column, column)
    r, c = torch.where(swap[source], c, r), torch.where(swap[source], r, c)
    flux = 10 ** (-0.4 * (mag - bank.mag_of_sigma[survey[scene]]))
    value = bank.pixels[bank.start[which][source] + r * width + c].float()
    value = value * (flux * bank.peak[which])[source]
    row, column = row + y0[source], column + x0[source]

    def total(values: Tensor, index: Tensor = source, length: int = n_sources) -> Tensor:
        return torch.zeros(length, device=values.device).index_add_(0, index, values)

    inside = where_true((row >= 0) & (row < size) & (column >= 0) & (column < size))
    if depth is not None:
        last = size - 1
        middle = (torch.stack([y0 + y, x0 + x]).round().long()).clamp(0, last)
        # Beyond the border the depth is that of the border.
        noise_here = depth[scene[source], row.clamp(0, last), column.clamp(0, last)]
        value = value / noise_here
        flux = flux / depth[scene, middle[0], middle[1]]
    target = (scene[source] * size + row) * size + column
    here, at, visible = source[inside], target[inside], value[inside]
    bright = visible > FOOTPRINT_THRESHOLD
    noiseless = total(visible, at, n * size * size)
    count = total(bright.float(), at, n * size * size)

    # Footprint: area and second moments about the centre of the light.
    footprint = where_true(value > FOOTPRINT_THRESHOLD)
    own = source[footprint]
    dy = (row[footprint] - (y0 + y)[own]).float()
    dx = (column[footprint] - (x0 + x)[own]).float()
    n_pixels = total(torch.ones_like(dy), own)
    area = n_pixels.clamp(min=1)
    # A pixel is not a point: 1/12.
    yy = total(dy * dy, own) / area + 1 / 12
    xx, xy = total(dx * dx, own) / area + 1 / 12, total(dx * dy, own) / area

    power = total(visible**2, here)
    with_all = total(visible * noiseless[at], here)
    shared = bright & (count[at] > 1)
    sources = Sources(
        scene=scene,
        y=y0 + y,
        x=x0 + x,
        flux=flux,
        hlr=bank.hlr[which],
        # As in the pixel frame: transposing turns g1 round, each flip g2.
        g1=torch.where(swap, -1, 1) * bank.g1[which],
        g2=torch.where(flip_y ^ flip_x, -1, 1) * bank.g2[which],
        is_star=bank.group[which] % 2 == 1,
        n_pixels=n_pixels,
        e1=(xx - yy) / (xx + yy),
        e2=2 * xy / (xx + yy),
        snr=total(value**2).sqrt(),
        blended=total(shared.float(), here) > 0,
        blendedness=1 - power / with_all.clamp(min=1e-30),
    )
    noiseless = noiseless.reshape(n, size, size)
    electrons = bank.electrons_of_sigma[survey][:, None, None]
    if depth is not None:  # exposures that are missing took their share of the electrons along
        electrons = electrons / depth
    variance = 1 + noiseless.clamp(min=0) / electrons
    image = noiseless + noise * variance.sqrt()
    return SceneBatch(
        image=image[:, None],
        noiseless=noiseless,
        classes=count.reshape(n, size, size).long().clamp(max=2),
        psf_fwhm=bank.psf_fwhm[survey],
        sources=sources,
        footprints=torch.stack([here, at])[:, where_true(bright)],
    )


def _span(first: Tensor, side: Tensor, size: int, whole: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (or columns) of a stamp to look at: all, or those in the scene."""
    low = torch.where(whole, 0, (-first).clamp(min=0))
    return low, torch.where(whole, side, torch.minimum(side, size - first))
