"""Score segmentation on emulated fields with known truth, next to the classical baseline."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from probablend.emulate.blend import FieldConfig, Scene, draw_field
from probablend.emulate.stamps import Galaxies
from probablend.evaluate.calibration import active_pixels, brier_score, reliability
from probablend.evaluate.classical import run_sep
from probablend.evaluate.detection import (
    DETECTION_THRESHOLDS,
    THRESHOLDS,
    BlendedCurve,
    DetectionScores,
    RegionCurve,
    blended_curve,
    completeness_at_purity,
    detect_scores,
    iou,
    positions,
    region_curve,
)
from probablend.evaluate.match import match_positions
from probablend.evaluate.methods import Prediction
from probablend.evaluate.photometry import photometry
from probablend.evaluate.samples import (
    latent_diversity,
    no_overlap_share,
    sample_distances,
    sample_diversity,
)
from probablend.infer.segment import segment
from probablend.infer.sources import Measured

MIN_PURITY = 0.95

__all__ = ["FieldScores", "evaluate_field", "results_table", "score_scenes"]


@dataclass(frozen=True, kw_only=True)
class FieldScores:
    """Scores of one method over some scenes."""

    detection: DetectionScores
    blended: BlendedCurve
    regions: RegionCurve | None
    values: dict[str, float]
    photometry: dict[str, Any] | None = None
    at_purity: dict[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for a JSON file."""
        curve = self.blended
        return {
            "completeness": self.detection.completeness,
            "completeness_blended": self.detection.completeness_blended,
            "purity": self.detection.purity,
            **self.values,
            "photometry": self.photometry,
            "at_purity": self.at_purity,
            "n_true": self.detection.n_true,
            "n_true_blended": self.detection.n_true_blended,
            "blended_flag": {
                "threshold": THRESHOLDS.tolist(),
                "completeness": curve.completeness.tolist(),
                "purity": _plain(curve.purity),
                "strict_completeness": curve.strict_completeness.tolist(),
                "strict_purity": _plain(curve.strict_purity),
            },
            "regions": None
            if self.regions is None
            else {
                "threshold": THRESHOLDS.tolist(),
                "completeness": self.regions.completeness.tolist(),
                "purity": _plain(self.regions.purity),
            },
        }


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in values]


def score_scenes(scenes: list[Scene], predictions: list[Prediction]) -> FieldScores:
    """Score a method's predictions of some scenes together.

    Parameters
    ----------
    scenes : list of Scene
        The truth.
    predictions : list of Prediction
        One per scene.
    """
    detection = [
        detect_scores(s.catalog, p.catalog, s.image.shape)
        for s, p in zip(scenes, predictions, strict=True)
    ]
    curves = [
        blended_curve(s.catalog, p.catalog, p.labels)
        for s, p in zip(scenes, predictions, strict=True)
    ]
    truth = np.stack([s.classes for s in scenes])
    p_galaxy = np.stack([p.p_galaxy for p in predictions])
    values = {"iou_galaxy": iou(p_galaxy > 0.5, truth > 0)}
    regions = None
    if all(p.p_blend is not None for p in predictions):
        p_blend = np.stack([p.p_blend for p in predictions if p.p_blend is not None])
        regions = _total([region_curve(p, t == 2) for p, t in zip(p_blend, truth, strict=True)])
        values["iou_blend"] = iou(p_blend > 0.5, truth == 2)
        for name, p, t in (("galaxy", p_galaxy, truth > 0), ("blend", p_blend, truth == 2)):
            active = active_pixels(p, t)
            values[f"ece_{name}_all"] = reliability(p, t).ece
            values[f"ece_{name}_active"] = reliability(p[active], t[active]).ece
            values[f"brier_{name}_active"] = brier_score(p[active], t[active])
        said, true = matched_flags(scenes, predictions)
        if len(said):
            values["ece_p_blend"] = reliability(said, true).ece
    at_purity = None
    candidates = [p.candidates for p in predictions if p.candidates is not None]
    if len(candidates) == len(predictions):
        at_purity = completeness_at_purity(
            [s.catalog for s in scenes],
            candidates,
            scenes[0].image.shape,
            MIN_PURITY,
        )
    fluxes = None
    if all("flux" in p.catalog.colnames for p in predictions):
        fluxes = photometry(
            scenes, [p.catalog for p in predictions], [p.draws for p in predictions]
        )
    return FieldScores(
        detection=_total(detection),
        blended=_total(curves),
        regions=regions,
        values=values,
        photometry=fluxes,
        at_purity=at_purity,
    )


def matched_flags(
    scenes: list[Scene], predictions: list[Prediction]
) -> tuple[np.ndarray, np.ndarray]:
    """``p_blend`` of every object that matches a true source, and whether that is blended."""
    said, true = [], []
    for scene, prediction in zip(scenes, predictions, strict=True):
        t, f = match_positions(positions(scene.catalog), positions(prediction.catalog))
        said.append(np.asarray(prediction.catalog["p_blend"], dtype=float)[f])
        true.append(np.asarray(scene.catalog["blended"], dtype=bool)[t])
    return np.concatenate(said), np.concatenate(true)


def _total(parts: list[Any]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def evaluate_field(
    galaxies: Galaxies,
    config: FieldConfig,
    directory: Path,
    *,
    n_fields: int,
    n_samples: int,
    seed: int,
    model: str | Path,
    n_stamps: int = 100,
    command: str = "",
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Emulate fields of held-out galaxies, segment them, and write what came out.

    Parameters
    ----------
    galaxies : Galaxies
        The test split.
    config : FieldConfig
        What the fields are like.
    directory : Path
        Gets ``results.json``, ``results.md`` and figures.
    n_fields : int
        How many.
    n_samples : int
        Posterior samples.
    seed : int
        Seeds fields and samples.
    model : str or Path
        Weights.
    n_stamps : int
        Empty and isolated stamps for :func:`no_overlap_share`.
    command : str
        The command line, to be repeated in the results.
    progress : callable, optional
        Told what is done.

    Returns
    -------
    dict
        What ``results.json`` holds.
    """
    tell = progress or (lambda _: None)
    scenes, ours, sep_says, diversity, distances = [], [], [], [], []
    agreement: list[Measured] = []
    seconds = {"ours": 0.0, "sep": 0.0}
    for k in range(n_fields):
        scene = draw_field(galaxies, config, generator=np.random.default_rng([seed, k, 1]))
        scenes.append(scene)
        began = time.perf_counter()
        result = segment(
            scene.image, rms=scene.rms, n_samples=n_samples, seed=seed + k, model=model,
            psf_fwhm=scene.survey.psf_fwhm_pixels, zeropoint=scene.survey.zeropoint,
        )  # fmt: skip
        seconds["ours"] += time.perf_counter() - began
        candidates = None
        if result.sources is not None:
            candidates = segment(
                scene.image, rms=scene.rms, n_samples=1, seed=seed + k, model=model,
                psf_fwhm=scene.survey.psf_fwhm_pixels, min_p_source=DETECTION_THRESHOLDS[0],
            ).catalog["x", "y", "p_source"]  # fmt: skip
        ours.append(
            Prediction(
                catalog=result.catalog,
                labels=result.labels,
                p_galaxy=result.p_galaxy,
                p_blend=result.p_blend,
                draws=None if result.sources is None else result.sources.draws,
                candidates=candidates,
            )
        )
        distances.append(sample_distances(result.samples, scene.classes))
        diversity.append(sample_diversity(result))
        if result.sources is not None:
            agreement.append(result.sources)
        began = time.perf_counter()
        catalog, labels = run_sep(scene.image, scene.rms)
        seconds["sep"] += time.perf_counter() - began
        sep_says.append(
            Prediction(catalog=catalog, labels=labels, p_galaxy=(labels > 0).astype(float))
        )
        if k == 0:
            directory.mkdir(parents=True, exist_ok=True)
            result.plot().savefig(directory / "quicklook.png", dpi=80)
        tell(f"field {k + 1} of {n_fields}")
    scores = {"ours": score_scenes(scenes, ours), "sep": score_scenes(scenes, sep_says)}
    tell("empty and isolated stamps")
    clear = no_overlap_share(
        galaxies, n_stamps=n_stamps, n_samples=n_samples, seed=seed, model=model
    )
    n_pixels = n_fields * config.size**2
    results = {
        "command": command,
        "model": result.meta["model"],
        "weights_hash": result.meta["weights_hash"],
        "version": result.meta["version"],
        "survey": galaxies.survey.name,
        "seed": seed,
        "n_fields": n_fields,
        "size": config.size,
        "density": config.density,
        "n_samples": n_samples,
        "methods": {name: score.as_dict() for name, score in scores.items()},
        "ged2": float(np.mean([d[0] for d in distances])),
        "hm_iou": float(np.mean([d[1] for d in distances])),
        "sample_diversity": float(np.mean(diversity)),
        "latent_diversity": latent_diversity(model, scenes[0], seed=seed),
        "no_overlap_share": clear,
        "agreement": _agreement(agreement) if agreement else None,
        "megapixels_per_second": {k: n_pixels / 1e6 / s for k, s in seconds.items()},
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (directory / "results.md").write_text(results_table(results))
    _figure(scenes, ours, scores).savefig(directory / "calibration.png", dpi=100)
    return results


def _agreement(parts: list[Measured]) -> dict[str, float | None]:
    """How far the statements on blending agree, over all detections."""
    by_pixels = np.concatenate([m.by_pixels for m in parts])
    by_footprints = np.concatenate([m.by_footprints for m in parts])
    p_blend = np.concatenate([np.asarray(m.catalog["p_blend"], float) for m in parts])
    blendedness = np.concatenate([np.asarray(m.catalog["blendedness"], float) for m in parts])

    def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
        constant = len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0
        return None if constant else float(spearmanr(a, b).statistic)

    return {
        "same_verdict": float(((by_pixels > 0.5) == (by_footprints > 0.5)).mean()),
        "mean_difference": float((by_pixels - by_footprints).mean()),
        "rank_correlation": correlation(by_pixels, by_footprints),
        "rank_correlation_with_blendedness": correlation(p_blend, blendedness),
    }


def completeness_at(curve: dict[str, list[float]], purity: float, prefix: str = "") -> float:
    """Best completeness of a curve of ``results.json`` among the points of at least a purity."""
    pairs = zip(curve[prefix + "completeness"], curve[prefix + "purity"], strict=True)
    return max((c for c, p in pairs if p is not None and p >= purity), default=0.0)


def results_table(results: dict[str, Any]) -> str:
    """The numbers of ``results.json`` as a Markdown table."""
    ours, sep_says = results["methods"]["ours"], results["methods"]["sep"]
    rows = [
        ("completeness, all detectable", "completeness"),
        ("completeness, blended", "completeness_blended"),
        ("purity of the objects", "purity"),
        ("IoU of the galaxy class", "iou_galaxy"),
        ("IoU of the blend class", "iou_blend"),
        ("ECE of P_GALAXY, active pixels", "ece_galaxy_active"),
        ("ECE of P_BLEND, active pixels", "ece_blend_active"),
        ("Brier score of P_BLEND, active pixels", "brier_blend_active"),
        ("ECE of p_blend, objects", "ece_p_blend"),
    ]
    lines = [
        f"`{results['command']}`",
        "",
        f"Model `{results['model']}` ({results['weights_hash']}), probablend "
        f"{results['version']}, {results['n_fields']} fields of {results['size']}² pixels, "
        f"`{results['survey']}`, {results['density']:g} galaxies per arcmin², "
        f"{results['n_samples']} samples, seed {results['seed']}.",
        "",
        "| | probablend | sep |",
        "|---|---|---|",
    ]
    for text, key in rows:
        cells = [f"{s[key]:.3f}" if key in s else "–" for s in (ours, sep_says)]
        lines.append(f"| {text} | {cells[0]} | {cells[1]} |")
    if ours["at_purity"]:
        point = ours["at_purity"]
        for text, key in (("all detectable", "completeness"), ("blended", "completeness_blended")):
            lines.append(
                f"| completeness, {text}, at purity ≥ {MIN_PURITY} "
                f"(p_source ≥ {point['threshold']:.2f}) | {point[key]:.3f} | – |"
            )
    for what, key, prefix in (
        ("overlap regions found", "regions", ""),
        ("blended galaxies announced", "blended_flag", ""),
        ("blended galaxies flagged one to one", "blended_flag", "strict_"),
    ):
        for purity in (0.65, 0.85):
            cells = [
                f"{completeness_at(s[key], purity, prefix):.3f}" if s[key] else "–"
                for s in (ours, sep_says)
            ]
            lines.append(f"| {what}, at purity ≥ {purity:.2f} | {cells[0]} | {cells[1]} |")
    lines += _photometry_rows(ours["photometry"], sep_says["photometry"])
    if results["agreement"]:
        same = results["agreement"]["same_verdict"]
        lines.append(f"| class maps and footprints agree on who is blended | {same:.3f} | – |")
    share, speed = results["no_overlap_share"], results["megapixels_per_second"]
    lines += [
        f"| samples without overlap, empty stamps | {share['empty']:.3f} | – |",
        f"| samples without overlap, isolated galaxies | {share['isolated']:.3f} | – |",
        f"| GED² of the class maps, patches of 128² | {results['ged2']:.3f} | – |",
        f"| HM-IoU of the class maps | {results['hm_iou']:.3f} | – |",
        f"| active pixels in which two samples differ | {results['sample_diversity']:.3f} | – |",
        "| … whose most probable class differs between two latents "
        f"| {results['latent_diversity']:.3f} | – |",
        f"| Mpx/s, same run | {speed['ours']:.2f} | {speed['sep']:.2f} |",
        "",
    ]
    return "\n".join(lines)


def _photometry_rows(ours: dict[str, Any] | None, sep_says: dict[str, Any] | None) -> list[str]:
    both = (ours, sep_says)

    def row(text: str, get: Callable[[dict[str, Any]], str]) -> str:
        cells = [get(m) if m else "–" for m in both]
        return f"| {text} | {cells[0]} | {cells[1]} |"

    def number(group: str, key: str) -> Callable[[dict[str, Any]], str]:
        return lambda m: f"{m[group][key]:.3f}" if m[group].get("n") else "–"

    def announced(m: dict[str, Any]) -> str:
        n = m["pairs"].get("unrecognised", 0)
        return f"{m['pairs']['announced'] / n:.3f} of {n}" if n else "–"

    def covered(name: str) -> Callable[[dict[str, Any]], str]:
        def cell(m: dict[str, Any]) -> str:
            c = m["coverage"].get(name)
            if c is None:
                return "–"
            worst = f"({c['68_worst_bin']:+.3f}, {c['95_worst_bin']:+.3f})"
            return f"{c['68']:.3f} / {c['95']:.3f} {worst}"

        return cell

    group = "flux_blended_snr10"
    return [
        row("flux of blended galaxies, S/N > 10: NMAD, mag", number(group, "nmad")),
        row("… beyond 0.75 mag", number(group, "outliers")),
        row("… median bias, mag", number(group, "bias")),
        row("… mean relative error", number(group, "mean_relative")),
        row("close pairs seen as one that are announced (p_blend > 0.5)", announced),
        *[
            row(f"truths in the 68 / 95 % intervals of {name} (worst bin)", covered(name))
            for name in ("flux", "hlr", "g1", "g2")
        ],
    ]


def _figure(scenes: list[Scene], ours: list[Prediction], scores: dict[str, FieldScores]) -> Figure:
    from probablend.plot import plot_completeness_purity, plot_reliability

    truth = np.stack([s.classes for s in scenes])
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    axes = figure.subplots(1, 3)
    p_galaxy = np.stack([p.p_galaxy for p in ours])
    p_blend = np.stack([p.p_blend for p in ours if p.p_blend is not None])
    for ax, name, p, t in (
        (axes[0], "P_GALAXY", p_galaxy, truth > 0),
        (axes[1], "P_BLEND", p_blend, truth == 2),
    ):
        active = active_pixels(p, t)
        curve = reliability(p[active], t[active])
        plot_reliability(curve.predicted, curve.observed, ax).set_title(
            f"{name}, active pixels: ECE {curve.ece:.3f}"
        )
    for name, score in scores.items():
        plot_completeness_purity(
            score.blended.completeness, score.blended.purity, axes[2], label=name
        )
    axes[2].set_title("blended galaxies announced")
    return figure
