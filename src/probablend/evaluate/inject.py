"""Proof on a user's own image: galaxies injected into it, and the image turned negative.

Emulated galaxies are added anywhere and close to real sources, in the noise and with the PSF of
that image, a few at a time and far from each other. The model sees each such
image anew. What it says of the injected ones is compared with what was put in. In the negative
image, where the sky is as it was and nothing else is, every detection is a false one.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import astropy.units as u
import numpy as np
import torch
from astropy.io import fits
from astropy.table import Table, vstack
from scipy.spatial import KDTree

from probablend._version import __version__
from probablend.catalog import write_table
from probablend.checkpoint import knows_sources, load_model, pixels_only
from probablend.emulate.blend import COUNTS_SLOPE, Placed, draw_mags, place
from probablend.emulate.classes import FOOTPRINT_THRESHOLD
from probablend.emulate.parametric import ParametricGalaxies
from probablend.emulate.psf import moffat_beta, survey_psf
from probablend.emulate.stamps import Galaxies
from probablend.evaluate.calibration import brier_score, chance_ece, reliability
from probablend.evaluate.detection import positions
from probablend.evaluate.match import match_positions
from probablend.evaluate.photometry import (
    BINS,
    coverage_scores,
    flux_scores,
    rank_histograms,
    share_inside,
    truth_ranks,
)
from probablend.evaluate.record import write_json
from probablend.evaluate.verdict import injection_figure, injection_table, verdict
from probablend.images import ImageData
from probablend.infer.outputs import check_folder
from probablend.infer.segment import check_numbers, psf_of_stars, segment, typical_noise
from probablend.infer.segmentation import Segmentation
from probablend.infer.sources import N_DRAWS
from probablend.models.source import PARAMETERS, SourcePosterior
from probablend.prepare import prepare_image
from probablend.psf import PSF, as_psf, read_psf
from probablend.survey import Survey, limiting_flux

__all__ = ["InjectionConfig", "inject"]

_APART = 48.0  # pixels between two injected galaxies of a round
_BORDER = 8.0  # pixels of the image's border without any
_MOST_ROUNDS = 100
_BRIGHT, _FAINT = 6.0, 0.5  # magnitudes around the depth of the image
_DEPTH = 26.0  # 5 σ, of an image whose zero point is not known
_MIN_IN_BIN = 20
_FACTORS = np.geomspace(0.25, 4, 17)  # of errors, that are tried
# Fainter ones are found where noise makes them brighter, and their truth is not in the interval.
_CLEAR = 10.0  # S/N


@dataclass(frozen=True, kw_only=True)
class InjectionConfig:
    """What is injected.

    Parameters
    ----------
    n : int
        How many galaxies, in all rounds together.
    companions : float
        Share of them that are put beside a real source.
    companion_distance : float
        Largest distance of such a companion, FWHM of the PSF; uniform below it.
    seed : int
        Seeds galaxies, places and the model's draws.
    """

    n: int = 1000
    companions: float = 0.5
    companion_distance: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1; got {self.n}")
        if not 0 <= self.companions <= 1:
            raise ValueError(f"companions must lie between 0 and 1; got {self.companions}")
        if not self.companion_distance > 0:
            raise ValueError(f"companion_distance must be positive; got {self.companion_distance}")


def inject(
    image: ImageData | np.ndarray,
    directory: Path,
    config: InjectionConfig,
    *,
    rms: float | np.ndarray | None = None,
    mask: np.ndarray | None = None,
    background: str | float = "auto",
    model: str | Path = "field",
    psf: np.ndarray | str | Path | None = None,
    psf_fwhm: float | None = None,
    pixel_scale: float | None = None,
    zeropoint: float | None = None,
    gain: float | None = None,
    error_factor: float = 1.0,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Judge a model on an image, by galaxies injected into it.

    Parameters
    ----------
    image : ImageData or ndarray, shape (y, x)
        The user's own.
    directory : Path
        Gets ``inject.json``, ``inject.md``, ``inject.png`` and ``injected.fits``.
    config : InjectionConfig
        What is injected.
    rms, mask, background, psf_fwhm
        As for :func:`~probablend.segment`.
    psf : ndarray of shape (y, x) or path, optional
        Image of the PSF, which what is injected has then, falling to zero at its border. If not
        given, a Moffat profile of ``psf_fwhm`` and β = 3 or, without that, what the image's stars
        look like; if those do not show it, a Moffat profile as wide and with as much light near
        its middle as theirs. The model is told of what is drawn.
    model : str or Path
        Weights.
    pixel_scale : float, optional
        Arcseconds per pixel; read from the WCS if not given. It sets the sizes of galaxies.
    zeropoint : float, optional
        AB magnitude of one count; read from the header if not given. If it is not known, a
        depth of 26 mag (5 σ, point source) is assumed, which sets sizes too.
    gain : float, optional
        Electrons per count, for the shot noise of what is injected; none if not given.
    error_factor : float
        See :func:`~probablend.segment`: to try the one that an earlier test found.
    command : str
        The command line, to be repeated in the results.
    progress : callable, optional
        Told how many galaxies have been injected, and of how many.

    Returns
    -------
    dict
        What ``inject.json`` holds.

    Raises
    ------
    ValueError
        If the model knows pixels only, the pixel scale is not known, or the image has no room.
    OSError
        If the folder cannot be written.
    """
    check_numbers(psf_fwhm=psf_fwhm, pixel_scale=pixel_scale, zeropoint=zeropoint, gain=gain,
                  error_factor=error_factor)  # fmt: skip
    check_folder(directory)
    if not knows_sources(model):
        raise pixels_only(model)
    if isinstance(psf, PSF):
        raise ValueError("psf must be an image of the PSF or its file: galaxies get it")
    data = image if isinstance(image, ImageData) else ImageData(data=image)
    scale = data.pixel_scale if pixel_scale is None else pixel_scale
    if scale is None:
        raise ValueError(
            f"{data.name} has no celestial coordinates, and the sizes of galaxies depend on the "
            "pixel scale: give pixel_scale, arcsec"
        )
    prepared = prepare_image(data.data, rms=rms, mask=mask, background=background)
    sky = np.where(prepared.mask, np.nan, prepared.signal * prepared.rms)
    if psf is not None:
        known = as_psf(psf)
    elif psf_fwhm is not None:
        known = PSF(fwhm=psf_fwhm)
    else:
        known = psf_of_stars(prepared, load_model(model)[1])
    fwhm = known.fwhm if psf_fwhm is None else psf_fwhm
    typical = typical_noise(prepared)
    known_zeropoint = data.zeropoint if zeropoint is None else zeropoint
    survey, depth = _describe(scale, typical, fwhm, known_zeropoint, gain)
    mag_range = (depth - _BRIGHT, depth + _FAINT)
    with TemporaryDirectory(prefix="probablend-") as own:
        # The model is told of the PSF as it is drawn: of an image, falling to zero at its border.
        if known.image is not None:
            pixels = known.image if psf is None else _pixels(psf, known)
            fits.writeto(Path(own) / "psf.fits", np.asarray(pixels, np.float32))
            survey = replace(survey, psf_profile="image", psf_file=f"{own}/psf.fits")
            drawn, its_psf = f"its image is {known.origin}", survey_psf(survey)
        elif known.wings is not None:
            # Far wings too. Real sources have not the image of that profile: none is told.
            survey = replace(survey, psf_beta=moffat_beta(known.wings[0]))
            drawn = f"β = {survey.psf_beta:.2f}"
            its_psf = replace(survey_psf(survey), image=None)
        else:
            drawn, its_psf = f"β = {survey.psf_beta:.2f}, which the model is not told", known

        def look(pixels: np.ndarray) -> Segmentation:
            return segment(
                pixels, rms=prepared.rms, mask=prepared.mask, background="none", model=model,
                seed=config.seed, psf=its_psf, error_factor=error_factor,
                zeropoint=survey.zeropoint,
            )  # fmt: skip

        before = look(sky)
        galaxies = ParametricGalaxies(
            survey, "test", n_galaxies=max(500, config.n), n_stars=0, mag_range=mag_range,
            seed=config.seed,
        )  # fmt: skip
        generator = np.random.default_rng([config.seed, 23])
        tables: list[Table] = []
        done = 0
        for number in range(_MOST_ROUNDS):
            places, beside = _places(
                before, prepared.mask, config, fwhm, config.n - done, generator
            )
            if not len(places):
                break
            sources = [_draw(galaxies, at, mag_range, generator) for at in places]
            after = look(_add(sky, sources, gain, generator))
            # Draws of every round are its own: the error of the same few would be that of all.
            normal = torch.Generator().manual_seed(1000 * config.seed + number)
            tables.append(_judge(sources, before, after, prepared.rms, error_factor, normal))
            tables[-1]["beside"] = beside
            done += len(sources)
            if progress:
                progress(done, config.n)
            if done >= config.n:
                break
    if not tables:
        raise ValueError(
            f"image of {sky.shape[1]} × {sky.shape[0]} pixels has no room for injected galaxies"
        )
    table = vstack(tables, metadata_conflicts="silent")
    table["mag"] = survey.mag(np.asarray(table["flux_true"], float))
    negative = look(-sky)
    mags = {
        "detections": survey.mag(np.asarray(before.catalog["flux"], float)),
        "false": survey.mag(np.asarray(negative.catalog["flux"], float)),
    }
    report = {
        "command": command,
        "version": __version__,
        "image": data.name,
        "model": before.meta["model"],
        "weights": before.meta["weights_hash"],
        "setting": asdict(config),
        "psf_fwhm": fwhm,
        "psf_wings": None if its_psf.wings is None else list(its_psf.wings),
        "psf_drawn": drawn,
        "rms": typical,
        "pixel_scale": scale,
        "zeropoint": known_zeropoint,
        "depth": depth,
        "n_detections": len(before.catalog),
        "n_negative": len(negative.catalog),
        "error_factor_given": error_factor,
        **_scores(table, depth, mags),
    }
    report["verdict"] = verdict(report)
    directory.mkdir(parents=True, exist_ok=True)
    write_table(table, directory / "injected.fits")
    (directory / "inject.md").write_text(injection_table(report))
    write_json(directory / "inject.json", report)
    injection_figure(report, table).savefig(directory / "inject.png", dpi=100)
    return report


def _pixels(psf: np.ndarray | str | Path, known: PSF) -> np.ndarray:
    """The image of a PSF, all of it, on the pixels of the image that it is for."""
    pixels, sampling = read_psf(psf) if isinstance(psf, str | Path) else (psf, 1.0)
    if sampling == 1:
        return np.asarray(pixels)
    assert known.image is not None
    return known.image


def _describe(
    scale: float, rms: float, fwhm: float, zeropoint: float | None, gain: float | None
) -> tuple[Survey, float]:
    """The image as a survey, and the magnitude of a point source of S/N 5."""
    flux = limiting_flux(rms, fwhm)
    zeropoint = _DEPTH + 2.5 * float(np.log10(flux)) if zeropoint is None else zeropoint
    survey = Survey(
        name="image",
        pixel_scale=scale * u.arcsec,
        zeropoint=zeropoint,
        gain=gain or 1e6 / rms,
        sky_rms=rms,
        psf_fwhm=fwhm * scale * u.arcsec,
        psf_profile="moffat",
    )
    return survey, float(zeropoint - 2.5 * np.log10(flux))


def _places(
    before: Segmentation,
    mask: np.ndarray,
    config: InjectionConfig,
    fwhm: float,
    n: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Where to put a round of galaxies, (y, x): far from each other, on good pixels.

    And whether each was put beside a real source.
    """
    n_y, n_x = mask.shape
    if min(n_y, n_x) <= 2 * _BORDER:
        return np.zeros((0, 2)), np.zeros(0, bool)
    real = positions(before.catalog)
    tried = 8 * n + 200
    at = generator.uniform(_BORDER, [n_y - _BORDER, n_x - _BORDER], size=(tried, 2))
    beside = generator.uniform(size=tried) < config.companions
    beside &= len(real) > 0
    if len(real):
        radius = generator.uniform(0, config.companion_distance * fwhm, size=tried)
        angle = generator.uniform(0, 2 * np.pi, size=tried)
        shift = radius[:, None] * np.c_[np.sin(angle), np.cos(angle)]
        near = real[generator.integers(len(real), size=tried)] + shift
        at = np.where(beside[:, None], near, at)
    size = np.array([n_y, n_x])
    good = ((at >= _BORDER) & (at <= size - _BORDER)).all(axis=1)
    good &= ~mask[tuple(np.round(at).astype(int).clip(0, size - 1).T)]
    kept: list[int] = []
    for k in np.flatnonzero(good):
        if len(kept) == n:
            break
        if all(np.hypot(*(at[k] - at[other])) >= _APART for other in kept):
            kept.append(int(k))
    return at[kept], beside[kept]


def _draw(
    galaxies: Galaxies,
    at: np.ndarray,
    mag_range: tuple[float, float],
    generator: np.random.Generator,
) -> Placed:
    """A galaxy with the number counts of the sky."""
    mag = float(draw_mags(1, COUNTS_SLOPE, mag_range, generator)[0])
    row = galaxies.choose(mag, generator=generator)
    return place(galaxies.draw(row, mag, generator=generator), at)


def _add(
    sky: np.ndarray, sources: list[Placed], gain: float | None, generator: np.random.Generator
) -> np.ndarray:
    image = sky.copy()
    for source in sources:
        where, part = source.slices(sky.shape)
        image[where] += part
        if gain:
            shot = np.sqrt(np.clip(part, 0, None) / gain)
            image[where] += shot * generator.standard_normal(part.shape, dtype=np.float32)
    return image


def _judge(
    sources: list[Placed],
    before: Segmentation,
    after: Segmentation,
    rms: float | np.ndarray,
    given: float,
    generator: torch.Generator,
) -> Table:
    """What became of the injected galaxies of a round."""
    noise = np.broadcast_to(np.asarray(rms, float), before.labels.shape)
    own = np.array([[s.y, s.x] for s in sources])
    flux_true = np.array([s.stamp.flux for s in sources])
    row, merged, separation = _found(own, flux_true, before, after)
    snr, overlaps = [], []
    for source in sources:
        where, part = source.slices(before.labels.shape)
        good = ~before.mask[where]
        snr.append(np.sqrt(((part / np.where(good, noise[where], np.inf)) ** 2).sum()))
        footprint = good & (part > FOOTPRINT_THRESHOLD * noise[where])
        overlaps.append(bool((footprint & (before.labels[where] > 0)).any()))
    table = Table(
        {
            "x": own[:, 1],
            "y": own[:, 0],
            "flux_true": flux_true,
            "hlr_true": [s.stamp.hlr for s in sources],
            "g1_true": [s.stamp.g1 for s in sources],
            "g2_true": [s.stamp.g2 for s in sources],
            "snr": snr,
            "separation": separation,
            "overlaps": overlaps,
            "is_star": np.zeros(len(own), bool),
            "merged": merged,
            "found": row >= 0,
        }
    )
    t = np.flatnonzero(row >= 0)
    f = row[t]
    for name in ("flux", "flux_err", "p_source", "p_blend"):
        values = np.full(len(own), np.nan)
        values[t] = np.asarray(after.catalog[name], float)[f]
        table[name] = values
    truth = Table({name: table[f"{name}_true"][t] for name in ("flux", "hlr", "g1", "g2")})
    assert after.sources is not None
    for name, rank in truth_ranks(truth, after.sources.draws[:, f]).items():
        values = np.full(len(own), np.nan)
        values[t] = rank
        table[f"rank_{name}"] = values
    values = np.full(len(own), np.nan)
    flux = torch.as_tensor(np.asarray(truth["flux"], np.float32))
    values[t] = _wanted_factor(after.sources.posterior[f], flux, given, generator)
    table["error_factor"] = values
    return table


def _found(
    own: np.ndarray, flux: np.ndarray, before: Segmentation, after: Segmentation
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row in the catalogue of each injected galaxy, whether it is merged, and its separation.

    From the nearest real source; -1 if it has no row. Real sources take part in the match: a galaxy
    is not found by its neighbour. Where there is one source, which lies on both, instead of two, it
    is that of the brighter.
    """
    real = positions(before.catalog)
    row = np.full(len(own) + len(real), -1)
    t, f = match_positions(np.concatenate([own, real]), positions(after.catalog))
    row[t] = f
    mine = row[: len(own)]
    if not len(real):
        return mine, np.zeros(len(own), bool), np.full(len(own), np.inf)
    separation, nearest = KDTree(real).query(own)
    its = row[len(own) + nearest]

    def lies_on(places: np.ndarray, row: np.ndarray) -> np.ndarray:
        last = np.array(after.labels.shape) - 1
        owner = after.labels[tuple(np.round(places).astype(int).clip(0, last).T)]
        return (row >= 0) & (owner == np.append(after.catalog["id"], 0)[row])

    merged = (its < 0) & lies_on(real[nearest], mine) | (mine < 0) & lies_on(own, its)
    brighter = flux > np.asarray(before.catalog["flux"], float)[nearest]
    row = np.where(merged, np.where(brighter, np.maximum(mine, its), -1), mine)
    by_flux = np.argsort(-flux, kind="stable")  # of several in one source the brightest is found
    first = by_flux[np.unique(row[by_flux], return_index=True)[1]]
    return np.where(np.isin(np.arange(len(own)), first), row, -1), merged, separation


@torch.inference_mode()
def _wanted_factor(
    posterior: SourcePosterior, flux: torch.Tensor, given: float, generator: torch.Generator
) -> np.ndarray:
    """Smallest error factor with which the 68 % interval of each source holds its flux."""
    if not len(posterior):
        return np.zeros(0)
    shape = (2 * N_DRAWS, len(posterior), len(PARAMETERS))
    base = torch.randn(shape, generator=generator).to(posterior.unit)
    outside = []
    for factor in _FACTORS:
        wide = replace(posterior, spread=posterior.spread * (factor / given))
        below = (wide.transform(base)[..., 0] < flux.to(base)).double().mean(dim=0)
        outside.append((below - 0.5).abs().cpu().numpy() - 0.34)
    off = np.minimum.accumulate(outside, axis=0)  # it never leaves what has grown
    # Decreasing along the factors: where each line crosses 0.
    return np.array([np.interp(0.0, -line, _FACTORS) for line in off.T])


def _resolved(separation: np.ndarray, merged: np.ndarray) -> float:
    """Distance that best tells galaxies that are seen as one with another from the others."""
    order = np.argsort(separation)
    apart_below = np.cumsum(~merged[order])
    merged_above = merged.sum() - np.cumsum(merged[order])
    return float(separation[order][np.argmin(apart_below + merged_above)])


def _scores(table: Table, depth: float, mags: dict[str, np.ndarray]) -> dict[str, Any]:
    """Scores of the injected galaxies; of magnitudes also how many detections are false."""
    found, merged = np.asarray(table["found"], bool), np.asarray(table["merged"], bool)
    seen = table[found]
    rank = np.asarray(seen["rank_flux"], float)
    scores: dict[str, Any] = {
        "n_injected": len(table),
        "n_found": int(found.sum()),
        "intervals": {},
        "close": {},
        "bins": [],
        "flux": flux_scores(seen),
        "coverage": coverage_scores(seen),
        "places": rank_histograms(seen),
    }
    # Those put anywhere are as often near others as the sky has it, those put beside them are not.
    beside = np.asarray(seen["beside"], bool)
    judged = (np.asarray(seen["snr"], float) >= _CLEAR) & (beside.all() | ~beside)
    if judged.any():
        wanted = np.asarray(seen["error_factor"], float)[judged]
        scores["intervals"] = {
            "above_snr": _CLEAR, "n": int(judged.sum()), **share_inside(rank[judged]),
            "error_factor": float(np.quantile(wanted, 0.68)),  # of 68 % it is enough
        }  # fmt: skip
    clear = np.asarray(table["snr"], float) >= _CLEAR
    separation = np.asarray(table["separation"], float)
    if clear.any():
        distance = _resolved(separation[clear], merged[clear])
        within = merged[clear & (separation <= distance)]
        if len(within) >= _MIN_IN_BIN and within.mean() > 0.5:
            scores["close"] = {"above_snr": _CLEAR, "merged_within": distance}
    if len(seen):
        p_blend, truth = np.asarray(seen["p_blend"], float), np.asarray(seen["overlaps"], bool)
        said = reliability(p_blend, truth, n_bins=10)
        scores["p_blend"] = {
            "ece": said.ece,
            "ece_by_chance": chance_ece(p_blend, n_bins=10),
            "brier": brier_score(p_blend, truth),
            "overlapping": float(truth.mean()),
            "mean": float(p_blend.mean()),
            "predicted": said.predicted.tolist(),
            "observed": said.observed.tolist(),
        }
    for key, edges in (
        ("snr", (0.0, *BINS["snr"])),
        ("mag", tuple(depth + np.arange(-_BRIGHT, _FAINT + 1))),
        ("separation", BINS["separation"]),
    ):
        values = np.asarray(table[key], float)
        for low, high in pairwise(edges):
            inside = (values >= low) & (values < high)
            if inside.sum() < _MIN_IN_BIN:
                continue
            row = {"bin": key, "low": low, "high": high if np.isfinite(high) else None}
            row |= {"injected": int(inside.sum()), "completeness": float(found[inside].mean())}
            row["found"] = int(found[inside].sum())
            if key == "mag":
                row |= {name: int(((m >= low) & (m < high)).sum()) for name, m in mags.items()}
            judged = inside & found
            if key == "separation":  # the flux of what is seen as one is that of both
                row["merged"] = int(merged[inside].sum())
                judged &= ~merged
            row["judged"] = int(judged.sum())
            some = table[judged]
            row |= {k: v for k, v in flux_scores(some).items() if k in ("bias", "nmad", "outliers")}
            if len(some) >= _MIN_IN_BIN:
                place = np.asarray(some["rank_flux"], float)
                row["coverage68"] = share_inside(place)["68"]
            scores["bins"].append(row)
    return scores
