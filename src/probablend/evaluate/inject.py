"""Proof on a user's own image: galaxies injected into it, and the image turned negative.

Emulated galaxies are added anywhere and close to real sources, in the noise and with the PSF of
that image, a few at a time and far from each other. The model sees each such
image anew. What it says of the injected ones is compared with what was put in. In the negative
image, where the sky is as it was and nothing else is, every detection is a false one.
"""

import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.table import Table, vstack
from matplotlib.figure import Figure
from scipy.spatial import KDTree
from scipy.stats import norm

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
    truth_ranks,
)
from probablend.evaluate.record import write_json
from probablend.images import ImageData, prepare_image
from probablend.infer.segment import Segmentation, psf_of_stars, segment, typical_noise
from probablend.plot import plot_pit, plot_reliability
from probablend.psf import PSF, as_psf, read_psf
from probablend.survey import Survey

__all__ = ["InjectionConfig", "inject", "injection_table", "verdict"]

_APART = 48.0  # pixels between two injected galaxies of a round
_BORDER = 8.0  # pixels of the image's border without any
_MOST_ROUNDS = 100
_BRIGHT, _FAINT = 6.0, 0.5  # magnitudes around the depth of the image
_DEPTH = 26.0  # 5 σ, of an image whose zero point is not known
_MIN_IN_BIN = 20
_FEW_PERCENT = 0.04
_UNDECIDED = 0.1  # an uncertainty of a share beyond which nothing follows from it
_FAR_OFF = 0.1  # how wrong intervals of some of the galaxies are that are warned of, …
_N_SIGMA = 3  # … if chance does not do that
# Relative error of a standard deviation that is read from the 68 % quantile of |pull|, times √n.
_FACTOR_ERROR = 0.96
_FALSE = 0.05  # share of false detections that is worth a word


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

    n: int = 400
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
    background: str = "auto",
    model: str | Path = "field",
    psf: np.ndarray | str | Path | None = None,
    psf_fwhm: float | None = None,
    pixel_scale: float | None = None,
    zeropoint: float | None = None,
    gain: float | None = None,
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
    """
    if not knows_sources(model):
        raise pixels_only(model)
    if isinstance(psf, PSF):
        raise ValueError("psf must be an image of the PSF or its file: galaxies get it")
    data = image if isinstance(image, ImageData) else ImageData(data=image)
    scale = _pixel_scale(data) if pixel_scale is None else pixel_scale
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"pixel_scale must be positive, arcsec; got {scale}")
    if psf_fwhm is not None and not (np.isfinite(psf_fwhm) and psf_fwhm > 0):
        raise ValueError(f"psf_fwhm must be positive; got {psf_fwhm}")
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
                seed=config.seed, psf=its_psf,
            )  # fmt: skip

        before = look(sky)
        galaxies = ParametricGalaxies(
            survey, "test", n_galaxies=max(500, config.n), n_stars=0, mag_range=mag_range,
            seed=config.seed,
        )  # fmt: skip
        generator = np.random.default_rng([config.seed, 23])
        tables: list[Table] = []
        done = 0
        for _ in range(_MOST_ROUNDS):
            places = _places(before, prepared.mask, config, fwhm, config.n - done, generator)
            if not len(places):
                break
            sources = [_draw(galaxies, at, mag_range, generator) for at in places]
            after = look(_add(sky, sources, gain, generator))
            tables.append(_judge(sources, before, after, prepared.rms))
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
        **_scores(table, depth, mags),
    }
    report["verdict"] = verdict(report)
    directory.mkdir(parents=True, exist_ok=True)
    write_table(table, directory / "injected.fits")
    (directory / "inject.md").write_text(injection_table(report))
    write_json(directory / "inject.json", report)
    _figure(report, table).savefig(directory / "inject.png", dpi=100)
    return report


def _pixels(psf: np.ndarray | str | Path, known: PSF) -> np.ndarray:
    """The image of a PSF, all of it, on the pixels of the image that it is for."""
    pixels, sampling = read_psf(psf) if isinstance(psf, str | Path) else (psf, 1.0)
    if sampling == 1:
        return np.asarray(pixels)
    assert known.image is not None
    return known.image


def _pixel_scale(data: ImageData) -> float:
    if data.wcs is None:
        raise ValueError(
            f"{data.name} has no celestial coordinates, and the sizes of galaxies depend on the "
            "pixel scale: give pixel_scale, arcsec"
        )
    return float(np.mean([s.to_value("arcsec") for s in data.wcs.proj_plane_pixel_scales()]))


def _describe(
    scale: float, rms: float, fwhm: float, zeropoint: float | None, gain: float | None
) -> tuple[Survey, float]:
    """The image as a survey, and the magnitude of a point source of S/N 5."""
    flux = 5 * rms * np.sqrt(4 * np.pi) * fwhm / 2.3548  # √(effective area) of a Gaussian
    zeropoint = _DEPTH + 2.5 * np.log10(flux) if zeropoint is None else zeropoint
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
) -> np.ndarray:
    """Where to put a round of galaxies, (y, x): far from each other, on good pixels."""
    n_y, n_x = mask.shape
    if min(n_y, n_x) <= 2 * _BORDER:
        return np.zeros((0, 2))
    real = positions(before.catalog)
    tried = 8 * n + 200
    at = generator.uniform(_BORDER, [n_y - _BORDER, n_x - _BORDER], size=(tried, 2))
    beside = generator.uniform(size=tried) < config.companions
    if len(real):
        radius = generator.uniform(0, config.companion_distance * fwhm, size=tried)
        angle = generator.uniform(0, 2 * np.pi, size=tried)
        shift = radius[:, None] * np.c_[np.sin(angle), np.cos(angle)]
        near = real[generator.integers(len(real), size=tried)] + shift
        at = np.where(beside[:, None], near, at)
    size = np.array([n_y, n_x])
    at = at[((at >= _BORDER) & (at <= size - _BORDER)).all(axis=1)]
    at = at[~mask[tuple(np.round(at).astype(int).clip(0, size - 1).T)]]
    kept: list[np.ndarray] = []
    for one in at:
        if len(kept) == n:
            break
        if all(np.hypot(*(one - other)) >= _APART for other in kept):
            kept.append(one)
    return np.array(kept).reshape(-1, 2)


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
    sources: list[Placed], before: Segmentation, after: Segmentation, rms: float | np.ndarray
) -> Table:
    """What became of the injected galaxies of a round."""
    noise = np.broadcast_to(np.asarray(rms, float), before.labels.shape)
    real, own = positions(before.catalog), np.array([[s.y, s.x] for s in sources])
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
            "flux_true": [s.stamp.flux for s in sources],
            "hlr_true": [s.stamp.hlr for s in sources],
            "g1_true": [s.stamp.g1 for s in sources],
            "g2_true": [s.stamp.g2 for s in sources],
            "snr": snr,
            "separation": KDTree(real).query(own)[0] if len(real) else np.full(len(own), np.inf),
            "overlaps": overlaps,
            "is_star": np.zeros(len(own), bool),
        }
    )
    # Real sources take part in the match: an injected galaxy is not found by its neighbour.
    t, f = match_positions(np.concatenate([own, real]), positions(after.catalog))
    mine = t < len(own)
    t, f = t[mine], f[mine]
    table["found"] = np.isin(np.arange(len(own)), t)
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
    return table


def _scores(table: Table, depth: float, mags: dict[str, np.ndarray]) -> dict[str, Any]:
    """Scores of the injected galaxies; of magnitudes also how many detections are false."""
    found = np.asarray(table["found"], bool)
    seen = table[found]
    rank = np.asarray(seen["rank_flux"], float)
    scores: dict[str, Any] = {
        "n_injected": len(table),
        "n_found": int(found.sum()),
        "bins": [],
        "flux": flux_scores(seen),
        "coverage": coverage_scores(seen),
        "places": rank_histograms(seen),
    }
    if len(seen):
        # By what the errors would have to be multiplied to hold 68 %.
        pulls = np.abs(norm.ppf(np.clip(rank, 1e-3, 1 - 1e-3)))
        scores["error_factor"] = float(np.quantile(pulls, 0.68) / norm.ppf(0.84))
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
            some = table[inside & found]
            row |= {k: v for k, v in flux_scores(some).items() if k in ("bias", "nmad", "outliers")}
            if len(some) >= _MIN_IN_BIN:
                place = np.asarray(some["rank_flux"], float)
                row["coverage68"] = float((np.abs(place - 0.5) <= 0.34).mean())
            scores["bins"].append(row)
    return scores


def verdict(report: dict[str, Any]) -> str:
    """One line that a person can act on."""
    parts = []
    coverage = report["coverage"].get("flux")
    if coverage is not None:
        share, n = coverage["68"], report["n_found"]
        sure = 2 * np.sqrt(0.68 * 0.32 / n)
        text = f"68 % intervals of the flux hold {100 * share:.0f} %: "
        if abs(share - 0.68) > max(_FEW_PERCENT, sure):
            kind = "too narrow" if share < 0.68 else "too wide"
            factor = report["error_factor"]
            unsure = 2 * factor * _FACTOR_ERROR / np.sqrt(n)
            text += f"{kind}, multiply the errors by {factor:.2f} (± {unsure:.2f})"
        elif sure > _UNDECIDED:
            text += f"{n} galaxies (± {100 * sure:.0f} %) are too few to tell, inject more"
        else:
            text += "trust them"
        if (row := _worst(report["bins"])) is not None:
            kind = "too narrow" if row["coverage68"] < 0.68 else "too wide"
            text += f" – but {_where(row)} they hold {100 * row['coverage68']:.0f} %: {kind}"
        parts.append(text)
    by_snr = [row for row in report["bins"] if row["bin"] == "snr"]
    deep = None  # every bin from there on is complete
    for row in reversed(by_snr):
        if row["completeness"] < 0.9:
            break
        deep = row["low"]
    if deep is not None:
        parts.append(f"above S/N {deep:g}, 90 % and more are found")
    elif by_snr:
        row = by_snr[-1]
        parts.append(f"{_where(row)}, {100 * row['completeness']:.0f} % are found")
    for row in report["bins"]:
        if row["bin"] == "mag" and row["false"] > _FALSE * max(row["detections"], 1):
            purity = max(0.0, 1 - row["false"] / max(row["detections"], 1))
            parts.append(f"fainter than {row['low']:.1f} mag purity drops to {100 * purity:.0f} %")
            break
    n, false = report["n_detections"], report["n_negative"]
    parts.append(
        f"{false} false detections on the negative image beside {n} on the image"
        + (f" ({100 * false / n:.1f} %)" if n else "")
    )
    return "; ".join(parts) + "."


def _worst(bins: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Galaxies alike in S/N or separation whose intervals are the most certainly wrong.

    Of what lies in the noise only what is scattered upwards is found, and too bright: left out.
    """
    wrong = []
    for row in bins:
        too_faint = row["bin"] == "snr" and not row["low"]
        if row["bin"] == "mag" or too_faint or "coverage68" not in row:
            continue
        off = abs(row["coverage68"] - 0.68)
        chance = np.sqrt(0.68 * 0.32 / row["found"])
        if off > max(_FAR_OFF, _N_SIGMA * chance):
            wrong.append((off / chance, row))
    return max(wrong, key=lambda one: one[0])[1] if wrong else None


def _where(row: dict[str, Any]) -> str:
    """A bin of S/N or separation in words."""
    low, high = row["low"], row["high"]
    if row["bin"] == "snr":
        return f"above S/N {low:g}" if high is None else f"of S/N {low:g} to {high:g}"
    if high is None:
        return f"beyond {low:g} px from a real source"
    if low:
        return f"{low:g} to {high:g} px from a real source"
    return f"within {high:g} px of a real source"


def injection_table(report: dict[str, Any]) -> str:
    """The numbers of ``inject.json`` as Markdown."""
    lines = [
        f"**{report['verdict']}**",
        "",
        f"`{report['command']}`",
        "",
        "What is injected has the PSF that the model is told: a wrong one does not show here.",
        "",
        f"{report['n_injected']} galaxies injected into {report['image']}, PSF "
        f"{report['psf_fwhm']:.2f} pixels ({report['psf_drawn']}), noise "
        f"{report['rms']:.4g} per pixel, 5 σ depth {report['depth']:.2f} mag"
        + ("" if report["zeropoint"] is not None else " (assumed: no zero point is known)")
        + f"; model `{report['model']}` {report['weights']}.",
        "",
        "| | injected | found | bias, mag | NMAD, mag | beyond 0.75 mag | in 68 % interval "
        "| detections | on the negative image |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = {"snr": "S/N", "mag": "mag", "separation": "separation, px"}

    def cell(row: dict[str, Any], key: str, style: str = ".3f") -> str:
        return format(row[key], style) if row.get(key) is not None else "–"

    for row in report["bins"]:
        style = ".1f" if row["bin"] == "mag" else "g"
        low, high = (None if row[k] is None else format(row[k], style) for k in ("low", "high"))
        ends = f"> {low}" if high is None else f"{low} – {high}"
        lines.append(
            f"| {names[row['bin']]} {ends} | {row['injected']} | {row['completeness']:.2f} | "
            f"{cell(row, 'bias', '+.3f')} | {cell(row, 'nmad')} | {cell(row, 'outliers')} | "
            f"{cell(row, 'coverage68', '.2f')} | {cell(row, 'detections', 'd')} | "
            f"{cell(row, 'false', 'd')} |"
        )
    lines += ["", "| | in the 68 / 95 % interval (worst bin) |", "|---|---|"]
    for name, one in report["coverage"].items():
        lines.append(
            f"| {name} | {one['68']:.2f} / {one['95']:.2f} "
            f"({one['68_worst_bin']:+.2f}, {one['95_worst_bin']:+.2f}) |"
        )
    if "p_blend" in report:
        said = report["p_blend"]
        lines += [
            "",
            f"Footprint of a detected source touched: {said['overlapping']:.2f} of the injected "
            f"galaxies; mean p_blend {said['mean']:.2f}; calibration error {said['ece']:.3f} "
            f"({said['ece_by_chance']:.3f} of the right probabilities), "
            f"Brier score {said['brier']:.3f}. Real galaxies that nothing detected make true "
            "blends that this comparison does not know.",
        ]
    return "\n".join(lines) + "\n"


def _figure(report: dict[str, Any], table: Table) -> Figure:
    """Completeness, flux errors, places of the truth and reliability of p_blend."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    axes = figure.subplots(2, 3)
    for ax, key, label in zip(
        axes[0, :2], ("snr", "separation"), ("S/N", "pixels to a real source"), strict=True
    ):
        rows = [row for row in report["bins"] if row["bin"] == key]
        ends = [row["high"] or 2 * max(row["low"], 1) for row in rows]
        for row, high in zip(rows, ends, strict=True):
            ax.plot([row["low"], high], [row["completeness"]] * 2, lw=3, color="C0")
        ax.set(xlabel=label, ylabel="found", ylim=(0, 1.02))
    axes[0, 0].set_xscale("symlog", linthresh=3)
    axes[0, 0].set_xlim(left=0)
    seen = table[np.asarray(table["found"], bool)]
    flux, true = np.asarray(seen["flux"], float), np.asarray(seen["flux_true"], float)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = 2.5 * np.log10(np.maximum(flux, 1e-30) / true)
    for ax, key, label in (
        (axes[0, 2], "snr", "S/N"),
        (axes[1, 0], "separation", "separation, px"),
    ):
        ax.plot(np.asarray(seen[key], float), error, ".", ms=3)
        ax.axhline(0, color="0.5", lw=0.8)
        ax.set(xlabel=label, ylabel="flux − truth, mag (> 0: too bright)", ylim=(-1.5, 1.5))
    if len(seen):
        axes[0, 2].set_xscale("log")
    plot_pit(np.array(report["places"]["flux"]), axes[1, 1]).set_title("flux")
    if "p_blend" in report:
        said = report["p_blend"]
        plot_reliability(np.array(said["predicted"]), np.array(said["observed"]), axes[1, 2])
        axes[1, 2].set_title("p_blend")
    figure.suptitle(textwrap.fill(report["verdict"], 160), fontsize=9)
    return figure
