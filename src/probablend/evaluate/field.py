"""Scores on emulated fields: any number of methods, the same scenes, the same truth.

What each method scores is kept in a file of its own, so that a run that stops goes on, and
tables and figures can be made again without it.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from probablend.emulate.blend import FieldConfig, Scene, draw_field
from probablend.emulate.stamps import Galaxies
from probablend.evaluate.calibration import (
    Reliability,
    active_pixels,
    average_precision,
    brier_score,
    chance_ece,
    reliability,
)
from probablend.evaluate.detection import (
    THRESHOLDS,
    BlendedCurve,
    DetectionScores,
    RegionCurve,
    blended_curve,
    completeness_at_purity,
    detect_scores,
    detection_curve,
    iou,
    positions,
    region_curve,
)
from probablend.evaluate.match import match_positions
from probablend.evaluate.methods import (
    FORCED,
    Method,
    Prediction,
    is_known,
    method_file,
    model_of,
    open_method,
    refuse_pair_networks,
    weights_hash,
)
from probablend.evaluate.photometry import SHAPE_PARAMETERS, coverage_text, photometry
from probablend.evaluate.record import begin, check_names, read_run, write_json
from probablend.evaluate.samples import (
    latent_diversity,
    no_overlap_share,
    sample_distances,
    sample_diversity,
)
from probablend.plot import (
    plot_completeness_purity,
    plot_gallery,
    plot_pits,
    plot_reliability,
)

MIN_PURITY = 0.95
_GALLERY = 160  # side of the cut-out that is shown, pixels

__all__ = [
    "FieldScores",
    "FieldsConfig",
    "draw_gallery",
    "evaluate_fields",
    "evaluate_scene",
    "read_results",
    "results_table",
    "score_scenes",
]


@dataclass(frozen=True, kw_only=True)
class FieldsConfig:
    """Which fields.

    Parameters
    ----------
    survey, source : str
        What they are drawn for, and from.
    n : int
        How many.
    field : FieldConfig
        What they are like.
    n_samples : int
        Posterior samples of class maps.
    n_stamps : int
        Empty and isolated stamps for :func:`~probablend.evaluate.samples.no_overlap_share`.
    seed : int
        Seeds fields and samples.
    """

    survey: str = "euclid-vis"
    source: str = "parametric"
    n: int = 4
    field: FieldConfig
    n_samples: int = 16
    n_stamps: int = 100
    seed: int = 1000

    def scene(self, galaxies: Galaxies, k: int) -> Scene:
        """Field number ``k``."""
        generator = np.random.default_rng([self.seed, k, 1])
        return draw_field(galaxies, self.field, generator=generator)


@dataclass(frozen=True, kw_only=True)
class FieldScores:
    """Scores of one method over some scenes.

    Parameters
    ----------
    detection : DetectionScores
        Counts behind completeness and purity.
    blended : BlendedCurve, optional
        The blended flag at each threshold, of a method that has one.
    regions : RegionCurve, optional
        Overlap regions at each threshold, of a method with ``P_BLEND``.
    values : dict of float
        Everything that is one number.
    curves : dict of Reliability
        Reliability diagrams.
    photometry : dict, optional
        See :func:`~probablend.evaluate.photometry.photometry`.
    found : dict, optional
        Of a method with ``p_source``, see :func:`~probablend.evaluate.detection.detection_curve`.
    """

    detection: DetectionScores
    blended: BlendedCurve | None
    regions: RegionCurve | None
    values: dict[str, float]
    curves: dict[str, Reliability]
    photometry: dict[str, Any] | None = None
    found: dict[str, list[float | None]] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for a JSON file."""
        curve = self.blended
        return {
            "completeness": _number(self.detection.completeness),
            "completeness_blended": _number(self.detection.completeness_blended),
            "purity": _number(self.detection.purity),
            **self.values,
            "photometry": self.photometry,
            "at_purity": self.found and completeness_at_purity(self.found, MIN_PURITY),
            "found": self.found,
            "n_true": self.detection.n_true,
            "n_true_blended": self.detection.n_true_blended,
            "blended_flag": None
            if curve is None
            else {
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
            "reliability": {
                name: {"predicted": c.predicted.tolist(), "observed": c.observed.tolist()}
                for name, c in self.curves.items()
            },
        }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)  # JSON knows no NaN


def _plain(values: np.ndarray) -> list[float | None]:
    return [_number(v) for v in values]


def score_scenes(scenes: list[Scene], predictions: list[Prediction]) -> FieldScores:
    """Score a method's predictions of some scenes together.

    Parameters
    ----------
    scenes : list of Scene
        The truth.
    predictions : list of Prediction
        One per scene.
    """
    pairs = list(zip(scenes, predictions, strict=True))
    detection = [detect_scores(s.catalog, p.catalog, s.image.shape) for s, p in pairs]
    flags = None
    if all("p_blend" in p.catalog.colnames for p in predictions):
        flags = _total([blended_curve(s.catalog, p.catalog, p.labels) for s, p in pairs])
    truth = np.stack([s.classes for s in scenes])
    p_galaxy = [p.p_galaxy for p in predictions if p.p_galaxy is not None]
    p_blend = [p.p_blend for p in predictions if p.p_blend is not None]
    values: dict[str, float] = {}
    regions, curves = None, {}
    if len(p_blend) == len(scenes):
        regions = _total([
            region_curve(np.nan_to_num(p), (t == 2) & np.isfinite(p))
            for p, t in zip(p_blend, truth, strict=True)
        ])  # fmt: skip
    soft = regions is not None  # else P_GALAXY is a mask, not a probability
    for name, maps, t in (("galaxy", p_galaxy, truth > 0), ("blend", p_blend, truth == 2)):
        if len(maps) < len(scenes):
            continue
        p = np.stack(maps)
        p, t = p[np.isfinite(p)], t[np.isfinite(p)]  # what is masked is no statement
        values[f"iou_{name}"] = iou(p > 0.5, t)
        active = active_pixels(p, t)
        if soft and active.any():
            values[f"ece_{name}_all"] = reliability(p, t).ece
            curves[f"P_{name.upper()}"] = reliability(p[active], t[active])
            values[f"ece_{name}_active"] = curves[f"P_{name.upper()}"].ece
            values[f"brier_{name}_active"] = brier_score(p[active], t[active])
    if flags is not None:
        said, true = matched_flags(scenes, predictions)
        if true.any():
            values["average_precision_p_blend"] = average_precision(said, true)
        if soft and len(said):
            curves["p_blend"] = reliability(said, true)
            values["ece_p_blend"] = curves["p_blend"].ece
            values["ece_p_blend_by_chance"] = chance_ece(said)
    drawn = [
        (p.samples, p.p_galaxy, s.classes)
        for s, p in pairs
        if p.samples is not None and p.p_galaxy is not None
    ]
    if drawn:
        distances = np.mean([sample_distances(maps, true) for maps, _, true in drawn], axis=0)
        values["ged2"], values["hm_iou"] = (float(d) for d in distances)
        diversity = [sample_diversity(probability, maps) for maps, probability, _ in drawn]
        values["sample_diversity"] = float(np.mean(diversity))
    values |= _agreement(predictions)
    found = None
    candidates = [p.candidates() for p in predictions if p.candidates is not None]
    if len(candidates) == len(predictions):
        found = detection_curve([s.catalog for s in scenes], candidates, scenes[0].image.shape)
    fluxes = None
    if all("flux" in p.catalog.colnames for p in predictions):
        fluxes = photometry(
            scenes,
            [p.catalog for p in predictions],
            [p.labels for p in predictions],
            [p.draws for p in predictions],
        )
    return FieldScores(
        detection=_total(detection),
        blended=flags,
        regions=regions,
        values=values,
        curves=curves,
        photometry=fluxes,
        found=found,
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


def _agreement(predictions: list[Prediction]) -> dict[str, float]:
    """How far the statements on blending of one method agree, over all its detections."""
    names = ("p_blend_maps", "p_blend_footprints", "p_blend", "blendedness")
    catalogs = [p.catalog for p in predictions]
    if not all(name in c.colnames for c in catalogs for name in names):
        return {}
    by_pixels, by_footprints, p_blend, blendedness = (
        np.concatenate([np.asarray(c[name], float) for c in catalogs]) for name in names
    )
    if not len(p_blend):  # nothing was detected: there is nothing to agree on
        return {}
    values = {
        "same_verdict": float(((by_pixels > 0.5) == (by_footprints > 0.5)).mean()),
        "mean_difference": float((by_pixels - by_footprints).mean()),
    }
    for name, a, b in (
        ("rank_correlation", by_pixels, by_footprints),
        ("rank_correlation_with_blendedness", p_blend, blendedness),
    ):
        if len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0:
            values[name] = float(spearmanr(a, b).statistic)
    return values


def run_method(
    name: str,
    method: Method,
    scenes: Sequence[Callable[[], Scene]],
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], Figure | None]:
    """Scores of a method over some scenes, and what it says of the middle of the first one."""
    seen, said, seconds = [], [], 0.0
    for k, make in enumerate(scenes):
        scene = make()
        began = time.perf_counter()
        said.append(method(scene, seed + k))
        seconds += time.perf_counter() - began
        seen.append(scene)
        if progress:
            progress(k + 1, len(scenes))
    scores = score_scenes(seen, said).as_dict()
    scores["megapixels_per_second"] = sum(s.image.size for s in seen) / 1e6 / seconds
    if said[0].samples is not None and (model := model_of(name)) is not None:
        scores["latent_diversity"] = latent_diversity(model, seen[0], seed=seed)
    return scores, draw_gallery(seen[0], said[0])


def draw_gallery(scene: Scene, said: Prediction) -> Figure | None:
    """The middle of a scene and what is said of it; None of a method without samples."""
    if said.samples is None or said.p_galaxy is None or said.p_blend is None:
        return None
    n_y, n_x = scene.image.shape
    top, left = max(0, (n_y - _GALLERY) // 2), max(0, (n_x - _GALLERY) // 2)
    box = (slice(top, top + _GALLERY), slice(left, left + _GALLERY))
    return plot_gallery(
        scene.image[box] / scene.rms, scene.classes[box], said.p_galaxy[box], said.p_blend[box],
        said.samples[(slice(4), *box)],
    )  # fmt: skip


def evaluate_fields(
    galaxies: Galaxies,
    config: FieldsConfig,
    methods: Sequence[str],
    directory: Path,
    *,
    command: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Let every method look at the same emulated fields and score what it says.

    Parameters
    ----------
    galaxies : Galaxies
        The test split.
    config : FieldsConfig
        Which fields.
    methods : sequence of str
        See :func:`~probablend.evaluate.methods.open_method`.
    directory : Path
        Gets ``fields/METHOD.json``, ``results.json``, ``results.md`` and figures. A method
        whose file is there, of the same fields and weights, is not run again.
    command : str
        The command line, to be repeated in the results.
    progress : callable, optional
        Told the method, how many fields are done, and of how many.

    Returns
    -------
    dict
        What ``results.json`` holds.

    Raises
    ------
    ValueError
        If a method is unknown, or a file belongs to other fields.
    """
    if forced := [name for name in methods if name.endswith(FORCED)]:
        raise ValueError(f"{forced[0]}: in fields sources are detected; use it with pairs")
    check_names(methods, [method_file(name) for name in methods])
    refuse_pair_networks(methods)
    opened = {name: open_method(name, n_samples=config.n_samples) for name in methods}
    setting = asdict(config) | {"survey": galaxies.survey.as_dict()}
    begin(directory / "fields", setting, command)
    scenes = [partial(config.scene, galaxies, k) for k in range(config.n)]
    for name, method in opened.items():
        path = _path(directory, name)
        weights = weights_hash(name)
        if path.exists():
            if json.loads(path.read_text())["weights"] != weights:
                raise ValueError(f"{path} was made with other weights: remove it, or rename them")
            continue
        tell = None if progress is None else partial(progress, name)
        scores, gallery = run_method(name, method, scenes, seed=config.seed, progress=tell)
        model = model_of(name)
        if model is not None:
            scores["no_overlap_share"] = no_overlap_share(
                galaxies, n_stamps=config.n_stamps, n_samples=config.n_samples,
                seed=config.seed, model=model, mag_range=config.field.mag_range,
            )  # fmt: skip
        _keep(directory, name, weights, scores, gallery)
    return read_results(directory)


def evaluate_scene(
    scene: Scene,
    methods: Mapping[str, Method],
    directory: Path,
    *,
    n_samples: int = 16,
    seed: int = 0,
    command: str = "",
) -> dict[str, Any]:
    """Score methods on a scene with its truth, such as one that was written before.

    Parameters
    ----------
    scene : Scene
        With its truth.
    methods : mapping of Method
        By name.
    directory : Path
        As in :func:`evaluate_fields`; nothing is skipped.
    n_samples : int
        Posterior samples that the methods draw, for the record.
    seed : int
        Seeds the samples.
    command : str
        The command line, to be repeated in the results.

    Raises
    ------
    ValueError
        If the folder holds the evaluation of something else.
    """
    check_names(list(methods), [method_file(name) for name in methods])
    refuse_pair_networks(methods)
    image = hashlib.sha256(scene.image.tobytes()).hexdigest()[:16]
    setting = {
        "survey": scene.survey.as_dict(), "n": 1, "scene": image, "n_samples": n_samples,
        "seed": seed,
    }  # fmt: skip
    begin(directory / "fields", setting, command)
    for name, method in methods.items():
        scores, gallery = run_method(name, method, [lambda: scene], seed=seed)
        weights = weights_hash(name) if is_known(name) else None
        _keep(directory, name, weights, scores, gallery)
    return read_results(directory)


def _path(directory: Path, name: str) -> Path:
    return directory / "fields" / f"{method_file(name)}.json"


def _keep(
    directory: Path,
    name: str,
    weights: str | None,
    scores: dict[str, Any],
    gallery: Figure | None,
) -> None:
    if gallery is not None:
        gallery.savefig(directory / f"gallery-{method_file(name)}.png", dpi=80)
    write_json(_path(directory, name), {"name": name, "weights": weights, "scores": scores})


def read_results(directory: Path) -> dict[str, Any]:
    """Gather what is kept in a folder, and write results and figures.

    Raises
    ------
    FileNotFoundError
        If it holds no evaluation of fields.
    """
    results = read_run(directory / "fields", "fields") | {"methods": {}, "weights": {}}
    for path in sorted((directory / "fields").glob("*.json")):
        kept = json.loads(path.read_text())
        if "scores" in kept:
            results["methods"][kept["name"]] = kept["scores"]
            if kept["weights"]:
                results["weights"][kept["name"]] = kept["weights"]
    # What has posteriors first.
    order = sorted(results["methods"], key=lambda n: ("ged2" not in results["methods"][n], n))
    results["methods"] = {name: results["methods"][name] for name in order}
    write_json(directory / "results.json", results)
    (directory / "results.md").write_text(results_table(results))
    for name, figure in _figures(results["methods"]).items():
        figure.savefig(directory / f"{name}.png", dpi=100)
    return results


def completeness_at(curve: dict[str, list[float]], purity: float, prefix: str = "") -> float | None:
    """Best completeness of a curve of ``results.json`` among the points of at least a purity."""
    pairs = zip(curve[prefix + "completeness"], curve[prefix + "purity"], strict=True)
    return max((c for c, p in pairs if p is not None and p >= purity), default=None)


Cell = Callable[[dict[str, Any]], str | None]


def results_table(results: dict[str, Any]) -> str:
    """The numbers of ``results.json`` as Markdown."""
    methods, config = results["methods"], results["setting"]
    survey = config["survey"]["name"]
    what = f"{config['n']} scene, `{survey}`"
    if "field" in config:
        what = (
            f"{config['n']} fields of {config['field']['size']}² pixels, `{survey}`, "
            f"{config['field']['density']:g} galaxies per arcmin², {config['n_samples']} samples, "
            f"seed {config['seed']}"
        )
    weights = "".join(f", `{name}` {hash_}" for name, hash_ in results["weights"].items())
    lines = [
        f"`{results['command']}`",
        "",
        f"probablend {config['version']}{weights}; {what}.",
        "",
        "| | " + " | ".join(Path(name).name for name in methods) + " |",
        "|---" * (1 + len(methods)) + "|",
    ]
    for text, cell in _rows():
        cells = [cell(m) for m in methods.values()]
        if any(cells):
            lines.append(f"| {text} | " + " | ".join(c or "–" for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _value(*keys: str, form: str = ".3f") -> Cell:
    """Cell that reads a number from nested dictionaries; none where there is none."""

    def cell(m: Any) -> str | None:
        for key in keys:
            m = m.get(key) if isinstance(m, dict) else None
        return None if m is None else format(m, form)

    return cell


def _rows() -> list[tuple[str, Cell]]:
    """Text and content of every row."""
    rows = [
        ("completeness, all detectable", _value("completeness")),
        ("completeness, blended", _value("completeness_blended")),
        ("purity of the objects", _value("purity")),
    ]
    for text, key in (("all detectable", "completeness"), ("blended", "completeness_blended")):
        rows.append((f"completeness, {text}, at purity ≥ {MIN_PURITY}", _value("at_purity", key)))
    rows += [
        ("… where p_source ≥", _value("at_purity", "threshold", form=".2f")),
        ("IoU of the galaxy class", _value("iou_galaxy")),
        ("IoU of the blend class", _value("iou_blend")),
        ("ECE of P_GALAXY, active pixels", _value("ece_galaxy_active")),
        ("ECE of P_BLEND, active pixels", _value("ece_blend_active")),
        ("Brier score of P_BLEND, active pixels", _value("brier_blend_active")),
        ("ECE of p_blend, objects", _value("ece_p_blend")),
        ("… expected of the right probabilities", _value("ece_p_blend_by_chance")),
        ("average precision of p_blend, objects", _value("average_precision_p_blend")),
    ]

    def curve(key: str, purity: float, prefix: str) -> Cell:
        def cell(m: dict[str, Any]) -> str | None:
            best = completeness_at(m[key], purity, prefix) if m[key] else None
            return None if best is None else f"{best:.3f}"

        return cell

    for what, key, prefix in (
        ("overlap regions found", "regions", ""),
        ("blended galaxies announced", "blended_flag", ""),
        ("blended galaxies flagged one to one", "blended_flag", "strict_"),
    ):
        for purity in (0.65, 0.85):
            rows.append((f"{what}, at purity ≥ {purity:.2f}", curve(key, purity, prefix)))
    group, shape = ("photometry", "flux_blended_snr10"), ("photometry", "shape")

    def share(part: str, whole: str) -> Cell:
        def cell(m: dict[str, Any]) -> str | None:
            pairs = (m["photometry"] or {}).get("pairs", {})
            n = pairs.get(whole, 0)
            return f"{pairs[part] / n:.3f} of {n}" if n and part in pairs else None

        return cell

    def covered(name: str) -> Cell:
        return lambda m: coverage_text((m["photometry"] or {}).get("coverage", {}).get(name))

    rows += [
        ("blended galaxies of S/N > 10 that are found", _value(*group, "n", form="d")),
        ("flux of blended galaxies, S/N > 10: NMAD, mag", _value(*group, "nmad")),
        ("… beyond 0.75 mag", _value(*group, "outliers")),
        ("… median bias, mag", _value(*group, "bias", form="+.3f")),
        ("… mean relative error", _value(*group, "mean_relative")),
        ("size of galaxies: bias, ln", _value(*shape, "ln_hlr_bias", form="+.3f")),
        ("… scatter, ln", _value(*shape, "ln_hlr_nmad")),
    ]
    for name in ("g1", "g2"):
        key = f"{name}_multiplicative_bias"
        rows += [(f"{name}: multiplicative bias", _value(*shape, key, form="+.3f")),
                 ("… scatter", _value(*shape, f"{name}_nmad"))]  # fmt: skip
    rows += [
        ("close pairs seen as one", share("unrecognised", "pairs")),
        ("… that are announced (p_blend > 0.5)", share("announced", "unrecognised")),
    ]
    rows += [
        (f"truths in the 68 / 95 % intervals of {name} (worst bin)", covered(name))
        for name in SHAPE_PARAMETERS
    ]
    rows += [
        ("class maps and footprints agree on who is blended", _value("same_verdict")),
        ("samples without overlap, empty stamps", _value("no_overlap_share", "empty")),
        ("samples without overlap, isolated galaxies", _value("no_overlap_share", "isolated")),
        ("GED² of the class maps, patches of 128²", _value("ged2")),
        ("HM-IoU of the class maps", _value("hm_iou")),
        ("active pixels in which two samples differ", _value("sample_diversity")),
        (
            "… whose most probable class differs between two latents",
            _value("latent_diversity"),
        ),
        ("Mpx/s, same run", _value("megapixels_per_second", form=".2f")),
    ]
    return rows


def _figures(methods: dict[str, Any]) -> dict[str, Figure]:
    """Reliability, completeness and purity, and the places of the truth."""
    names = ("P_GALAXY", "P_BLEND", "p_blend")
    figure = Figure(figsize=(22.5, 4.6), layout="constrained")
    axes = figure.subplots(1, 5)
    for name, m in methods.items():
        for ax, key in zip(axes, names, strict=False):
            if key in m["reliability"]:
                c = m["reliability"][key]
                plot_reliability(
                    np.array(c["predicted"]), np.array(c["observed"]), ax, label=Path(name).name
                ).set_title(key + (", objects" if key == "p_blend" else ", active pixels"))
        found = m["found"] or {key: [m[key]] for key in ("completeness_blended", "purity")}
        for ax, curve, key in (
            (axes[3], found, "completeness_blended"),
            (axes[4], m["blended_flag"], "completeness"),
        ):
            if curve is not None:
                completeness, purity = (np.array(curve[k], float) for k in (key, "purity"))
                plot_completeness_purity(completeness, purity, ax, label=Path(name).name)
    axes[3].set(title="blended galaxies found", xlim=(0.5, 1))
    axes[4].set_title("blended galaxies announced")
    figures = {"calibration": figure}
    ranked = {
        name: m["photometry"]["places"]
        for name, m in methods.items()
        if m["photometry"] and "places" in m["photometry"]
    }
    if ranked:
        figures["pit"] = plot_pits(ranked)
    return figures
