"""Scores on blends of two galaxies, the protocol of arXiv:1905.01324.

Any number of methods see the same pairs. What each says is kept in a table of its own, so
that a run that stops goes on, and so that scores and figures can be made again without it.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table, vstack
from matplotlib.figure import Figure

from probablend.emulate.blend import PAIR_SIZE, Scene, draw_pair
from probablend.emulate.stamps import Galaxies
from probablend.evaluate.detection import iou, objects_of, positions
from probablend.evaluate.field import draw_gallery
from probablend.evaluate.match import match_positions
from probablend.evaluate.methods import (
    FORCED,
    Method,
    Prediction,
    method_file,
    open_method,
    weights_hash,
)
from probablend.evaluate.photometry import (
    BINS,
    MIN_IN_BIN,
    SHAPE_PARAMETERS,
    binned_scatter,
    coverage_scores,
    coverage_text,
    fisher_limit,
    flux_scores,
    over_fisher,
    rank_histograms,
    shape_scores,
    signal_to_noise,
    truth_ranks,
)
from probablend.evaluate.record import begin, check_names, read_run, write_json
from probablend.models.pairs import MASKS
from probablend.plot import plot_pits, plot_running_scatter

__all__ = ["PairsConfig", "evaluate_pairs", "pair_scores", "read_results", "results_table"]

_ISOPHOTAL = " (isophotal)"


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Which pairs.

    Parameters
    ----------
    survey, source : str
        What they are drawn for, and from.
    n : int
        How many.
    mag_range : tuple of float
        Brightest and faintest AB magnitude.
    size : int
        Side of a stamp, pixels.
    n_samples : int
        Posterior samples of class maps.
    seed : int
        Seeds pairs and samples.
    """

    survey: str = "candels-f160w"
    source: str = "parametric"
    n: int = 1000
    mag_range: tuple[float, float] = (18.0, 23.0)
    size: int = PAIR_SIZE
    n_samples: int = 4
    seed: int = 3000

    def scene(self, galaxies: Galaxies, k: int) -> Scene:
        """Pair number ``k``."""
        return draw_pair(
            galaxies, generator=np.random.default_rng([self.seed, k, 1]),
            mag_range=self.mag_range, size=self.size,
        )  # fmt: skip


def score_pair(scene: Scene, said: Prediction) -> Table:
    """Two rows, central galaxy first: the truth, and what a method says of each.

    Returns
    -------
    Table
        Truth: ``galaxy`` (0 or 1), ``flux_true, hlr_true, g1_true, g2_true, snr, fisher``
        (least relative scatter), ``separation`` (pixels), ``relative`` (separation in units of
        the larger half-light radius), ``delta_mag`` (own magnitude − that of the other),
        ``blended``. Said: ``flux, flux_iso, hlr, g1, g2, p_blend``, NaN where nothing was
        found (``p_blend`` then of the object that covers the galaxy); ``found, forced``;
        ``n_objects``, and how many of them speak for the two, ``n_speaking``; ``rank_…``, the
        place of the truth in the posterior; ``iou_…`` of the masks of overlap, central galaxy and
        companion.
    """
    truth = scene.catalog
    if said.given is None:
        source, row = match_positions(positions(truth), positions(said.catalog))
    else:
        source, row = said.given, np.arange(len(said.given))
    table = Table({"galaxy": [0, 1]})
    for name in ("flux", "hlr", "g1", "g2"):
        table[f"{name}_true"] = np.asarray(truth[name], float)
    y, x, hlr, mag = (np.asarray(truth[k], float) for k in ("y", "x", "hlr", "mag"))
    separation = float(np.hypot(y[1] - y[0], x[1] - x[0]))
    table["separation"] = separation
    table["relative"] = separation / hlr.max()
    table["delta_mag"] = mag - mag[::-1]
    table["blended"] = np.asarray(truth["blended"], bool)
    table["snr"] = signal_to_noise(scene)
    table["fisher"] = fisher_limit(scene)
    for name in ("flux", "flux_iso", "hlr", "g1", "g2", "p_blend"):
        values = np.full(2, np.nan)
        if name in said.catalog.colnames:
            column = said.catalog[name]
            plain = np.asarray(column, float)
            values[source] = plain[row]
        table[name] = values
    ranks = {} if said.draws is None else truth_ranks(truth[source], said.draws[:, row])
    speaking = np.full(2, -1)
    speaking[source] = row
    if said.given is None:
        _, speaking = objects_of(truth, said.catalog, said.labels)
        if "p_blend" in said.catalog.colnames:
            p_blend = np.asarray(said.catalog["p_blend"], float)
            table["p_blend"] = [p_blend[k] if k >= 0 else np.nan for k in speaking]
    table["n_speaking"] = len(set(speaking[speaking >= 0]))
    for name in SHAPE_PARAMETERS:
        values = np.full(2, np.nan)
        values[source] = ranks.get(name, np.nan)
        table[f"rank_{name}"] = values
    table["found"] = np.isin([0, 1], source)
    table["n_objects"] = len(said.catalog)
    table["forced"] = said.given is not None
    for name, overlap in zip(MASKS, _mask_overlaps(scene, said), strict=True):
        table[f"iou_{name}"] = overlap
    return table


def _mask_overlaps(scene: Scene, said: Prediction) -> list[float]:
    """Intersection over union of overlap, central galaxy and companion; NaN where not said."""
    overlaps = [np.nan] * len(MASKS)
    if said.masks is not None:
        true = [scene.classes == 2, scene.footprint(0), scene.footprint(1)]
        overlaps = [iou(mask, t) for mask, t in zip(said.masks, true, strict=True)]
    elif said.p_blend is not None:
        overlaps[0] = iou(said.p_blend > 0.5, scene.classes == 2)
    return overlaps


def run_method(
    method: Method,
    galaxies: Galaxies,
    config: PairsConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """What a method says of all pairs, with the seconds it took in ``meta``."""
    tables, seconds = [], 0.0
    for k in range(config.n):
        scene = config.scene(galaxies, k)
        began = time.perf_counter()
        said = method(scene, config.seed + k)
        seconds += time.perf_counter() - began
        one = score_pair(scene, said)
        one.add_column(np.full(2, k), name="pair", index=0)
        tables.append(one)
        if progress:
            progress(k + 1, config.n)
    table = vstack(tables)
    table.meta["SECONDS"] = seconds
    return table


def pair_scores(table: Table, *, flux: str = "flux") -> dict[str, Any]:
    """Scores of one method from its table.

    Parameters
    ----------
    table : Table
        Rows of :func:`score_pair`, pair after pair.
    flux : str
        Which flux: ``flux`` or ``flux_iso``.

    Returns
    -------
    dict
        ``both_found`` (share of the pairs), in all and by separation; ``third_source``, the
        share of pairs with more than two objects, ``stray``, with one that neither is a galaxy nor
        lies on its centre;
        flux scores of central and companion galaxies, of all, and in ``bins`` of S/N, separation,
        separation over radius and difference of magnitude; ``over_fisher`` where S/N > 20 and the
        separation > 1.5 radii; ``shape``; coverage; ``seen_as_one``, the pairs that one object
        speaks for, and how many are ``announced``.
    """
    found = np.asarray(table["found"], bool)
    both = np.all(found.reshape(-1, 2), axis=1)
    first = table[::2]
    one = np.asarray(first["n_speaking"]) == 1
    separation = np.asarray(first["separation"], float)
    n_objects = np.asarray(first["n_objects"])
    seen = table[np.isfinite(np.asarray(table[flux], float))].copy()
    seen["flux"] = seen[flux]
    scores: dict[str, Any] = {
        "n": len(first),
        "forced": bool(first["forced"][0]),
        "both_found": float(both.mean()),
        "both_found_by_separation": [
            {
                "low": low,
                "high": high if np.isfinite(high) else None,  # JSON knows no infinity
                "n": int(some.sum()),
                "found": int(both[some].sum()),
            }
            for low, high in pairwise(BINS["separation"])
            if (some := (separation >= low) & (separation < high)).any()
        ],
        "third_source": float((n_objects > 2).mean()),
        "stray": float((n_objects > np.asarray(first["n_speaking"])).mean()),
        "flux_all": _fluxes(seen),
        "flux_central": _fluxes(seen[np.asarray(seen["galaxy"]) == 0]),
        "flux_companion": _fluxes(seen[np.asarray(seen["galaxy"]) == 1]),
        "bins": binned_scatter(seen),
    }
    clear = (np.asarray(seen["snr"]) > 20) & (np.asarray(seen["relative"]) > 1.5)
    scores["over_fisher"] = _over_fisher(seen[clear])
    announced = np.asarray(table["p_blend"], float).reshape(-1, 2)[one]
    scores["iou"] = {
        name: float(np.nanmean(np.asarray(first[f"iou_{name}"], float)))
        if np.isfinite(np.asarray(first[f"iou_{name}"], float)).any()
        else None
        for name in MASKS
    }
    scores["seen_as_one"] = int(one.sum())
    scores["announced"] = int((np.nan_to_num(announced) > 0.5).any(axis=1).sum())
    if np.isfinite(np.asarray(seen["rank_flux"], float)).any():
        seen["is_star"] = False
        scores["coverage"] = coverage_scores(seen)
        scores["shape"] = shape_scores(seen)
    return scores


def _fluxes(table: Table) -> dict[str, float]:
    scores = flux_scores(table)
    if scores["n"]:
        error = magnitude_error(table)
        scores["sigma"] = float(np.std(error[np.isfinite(error)]))
    return scores


def magnitude_error(table: Table) -> np.ndarray:
    """2.5 log10(measured / true) of every row; NaN where the flux is not positive."""
    ratio = np.asarray(table["flux"], float) / np.asarray(table["flux_true"], float)
    return 2.5 * np.log10(np.where(ratio > 0, ratio, np.nan))


def _over_fisher(table: Table) -> float | None:
    return over_fisher(table) if np.isfinite(table["fisher"]).sum() >= MIN_IN_BIN else None


def evaluate_pairs(
    galaxies: Galaxies,
    config: PairsConfig,
    methods: Sequence[str],
    directory: Path,
    *,
    command: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Let every method look at the same pairs and score what it says.

    Parameters
    ----------
    galaxies : Galaxies
        The test split.
    config : PairsConfig
        Which pairs.
    methods : sequence of str
        See :func:`~probablend.evaluate.methods.open_method`.
    directory : Path
        Gets ``pairs/METHOD.fits`` (what each said), ``results.json``, ``results.md`` and
        figures. A method whose table is there, of the same pairs and weights, is not run again.
    command : str
        The command line, to be repeated in the results.
    progress : callable, optional
        Told the method, how many pairs are done, and of how many.

    Returns
    -------
    dict
        What ``results.json`` holds.

    Raises
    ------
    ValueError
        If a method is unknown, or a table belongs to other pairs.
    """
    check_names(methods, [method_file(name) for name in methods])
    opened = {name: open_method(name, n_samples=config.n_samples) for name in methods}
    begin(directory / "pairs", asdict(config) | {"survey": galaxies.survey.as_dict()}, command)
    first = config.scene(galaxies, 0)
    for name, method in opened.items():
        path = table_path(directory, name)
        weights = weights_hash(name) or ""
        if path.exists():
            if Table.read(path).meta.get("WEIGHTS", "") != weights:
                raise ValueError(f"{path} was made with other weights: remove it, or rename them")
            continue
        tell = None if progress is None else partial(progress, name)
        table = run_method(method, galaxies, config, progress=tell)
        table.meta["METHOD"] = name
        table.meta["WEIGHTS"] = weights
        part = path.with_suffix(".part")
        table.write(part, format="fits", overwrite=True)
        # Class maps know nothing of positions that are told.
        gallery = None if name.endswith(FORCED) else draw_gallery(first, method(first, config.seed))
        if gallery is not None:
            gallery.savefig(directory / f"gallery-{method_file(name)}.png", dpi=80)
        os.replace(part, path)
    return read_results(directory)


def table_path(directory: Path, method: str) -> Path:
    """Where what a method says is kept."""
    return directory / "pairs" / f"{method_file(method)}.fits"


def read_results(directory: Path) -> dict[str, Any]:
    """Score the tables of a folder again, and write results and figures.

    Raises
    ------
    FileNotFoundError
        If it holds no tables.
    """
    results = read_run(directory / "pairs", "pairs")
    tables = {}
    for path in sorted((directory / "pairs").glob("*.fits")):
        table = Table.read(path)
        tables[str(table.meta["METHOD"])] = table
    results["methods"] = {}
    for name, table in tables.items():
        scores = {"seconds": float(table.meta["SECONDS"]), **pair_scores(table)}
        results["methods"][name] = scores
        if np.isfinite(np.asarray(table["flux_iso"], float)).any():
            results["methods"][name + _ISOPHOTAL] = scores | pair_scores(table, flux="flux_iso")
    results["n_common"] = _score_common(results["methods"], tables)
    write_json(directory / "results.json", results)
    (directory / "results.md").write_text(results_table(results))
    for name, figure in _figures(tables).items():
        figure.savefig(directory / f"{name}.png", dpi=100)
    return results


def _score_common(methods: dict[str, Any], tables: dict[str, Table]) -> int:
    """Add the scatter of the galaxies that every method measures; how many there are."""
    fluxes = {
        name: np.asarray(tables[name.removesuffix(_ISOPHOTAL)][_flux_column(name)], float)
        for name in methods
    }
    fluxes = {name: flux for name, flux in fluxes.items() if np.isfinite(flux).any()}
    if not fluxes:
        return 0
    common = np.logical_and.reduce([np.isfinite(flux) for flux in fluxes.values()])
    for name, flux in fluxes.items():
        table = tables[name.removesuffix(_ISOPHOTAL)][common].copy()
        table["flux"] = flux[common]
        methods[name]["nmad_common"] = flux_scores(table).get("nmad")
    return int(common.sum())


def _flux_column(name: str) -> str:
    return "flux_iso" if name.endswith(_ISOPHOTAL) else "flux"


def results_table(results: dict[str, Any]) -> str:
    """The numbers of ``results.json`` as Markdown."""
    config = results["setting"]
    bright, faint = config["mag_range"]
    lines = [
        f"`{results['command']}`",
        "",
        f"probablend {config['version']}, {config['n']} pairs of held-out galaxies, "
        f"`{config['survey']['name']}`, {bright:g} to {faint:g} mag, "
        f"source `{config['source']}`, seed {config['seed']}; {results['n_common']} galaxies are "
        "measured by all.",
        "",
        "| | both found | closer than 5 px | more than two | one of neither | seen as one "
        "| announced "
        "| IoU overlap / central / companion | measured | mean abs. flux error | median "
        "| NMAD, mag | of the common | beyond 0.75 mag "
        "| bias, mag "
        "| scatter / Fisher limit, S/N > 20, > 1.5 radii apart | s |",
        "|---" * 17 + "|",
    ]

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    for name, m in results["methods"].items():
        close = [b for b in m["both_found_by_separation"] if b["low"] == 0]
        one = m["seen_as_one"]
        f = m["flux_all"]
        cells = [
            number(None if m["forced"] else m["both_found"], ".1%"),
            f"{close[0]['found']} of {close[0]['n']}" if close and not m["forced"] else "–",
            number(None if m["forced"] else m["third_source"], ".1%"),
            number(None if m["forced"] else m["stray"], ".1%"),
            number(None if m["forced"] else one, "d"),
            number(None if m["forced"] or not one else m["announced"] / one, ".0%"),
            " / ".join(number(v, ".2f") for v in m["iou"].values()),
            *(number(f.get(k), form) for k, form in (
                ("n", "d"), ("mean_relative", ".1%"), ("median_relative", ".1%"),
                ("nmad", ".3f"))),
            number(m.get("nmad_common"), ".3f"),
            *(number(f.get(k), form) for k, form in (("outliers", ".1%"), ("bias", "+.3f"))),
            number(m["over_fisher"], ".1f"),
            number(m["seconds"], ".0f"),
        ]  # fmt: skip
        lines.append("| " + " | ".join([Path(name).name, *cells]) + " |")
    lines += ["", *_coverage_lines(results["methods"])]
    return "\n".join(lines) + "\n"


def _coverage_lines(methods: dict[str, Any]) -> list[str]:
    rows = [(name, m["coverage"]) for name, m in methods.items() if "coverage" in m]
    if not rows:
        return []
    lines = [
        "Share of the truths in the central 68 and 95 % intervals; in brackets the worst bin of "
        "S/N or separation.",
        "",
        "| | " + " | ".join(SHAPE_PARAMETERS) + " |",
        "|---" * (1 + len(SHAPE_PARAMETERS)) + "|",
    ]
    for name, coverage in rows:
        cells = [coverage_text(coverage.get(key)) or "–" for key in SHAPE_PARAMETERS]
        lines.append("| " + " | ".join([Path(name).name, *cells]) + " |")
    return lines


def _figures(tables: dict[str, Table]) -> dict[str, Figure]:
    """Magnitude errors against separation and Δmag, and the ranks of the truth."""
    figure = Figure(figsize=(14, 5), layout="constrained")
    axes = figure.subplots(1, 2)
    for name, table in tables.items():
        seen = table[np.isfinite(np.asarray(table["flux"], float))]
        error = magnitude_error(seen)
        for ax, key, text in (
            (axes[0], "relative", "separation / larger half-light radius"),
            (axes[1], "delta_mag", "own magnitude − that of the other"),
        ):
            plot_running_scatter(np.asarray(seen[key], float), error, ax, label=Path(name).name)
            ax.set(xlabel=text, ylabel="median (dashed) and NMAD of the magnitude error")
    for ax in axes:
        if legend := ax.get_legend():
            legend.remove()
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    figures = {"magnitude-error": figure}
    ranked = {
        name: table
        for name, table in tables.items()
        if np.isfinite(np.asarray(table["rank_flux"], float)).any()
    }
    if ranked:
        figures["pit"] = plot_pits({name: rank_histograms(t) for name, t in ranked.items()})
    return figures
