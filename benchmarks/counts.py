"""Number counts of crowded fields: inferred from posteriors, and counted from catalogues.

python benchmarks/counts.py -o docs/results/counts

What is lost is measured on fields of another slope: the ratio of observed to true counts there,
which holds losses, false detections, scatter and bias. Then slope and density of each of many
fields are asked of the posterior draws, with errors and the model's prior accounted for, corrected
by that ratio or by the share of galaxies that are detected; and of point estimates: medians of the
same posteriors, Kron magnitudes of sep and of SExtractor, corrected, or as they are to 25 mag.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from probablend import __version__
from probablend.checkpoint import file_hash, find_model
from probablend.emulate.blend import FieldConfig, Scene, draw_field
from probablend.emulate.psf import survey_psf
from probablend.emulate.sources import open_source
from probablend.evaluate.classical import find_sextractor, run_sep, run_sextractor
from probablend.evaluate.detection import positions
from probablend.evaluate.match import match_positions
from probablend.evaluate.record import write_json
from probablend.infer.segment import segment
from probablend.inference import (
    CountsLikelihood,
    Population,
    counts_completeness,
    interval,
    sample_counts,
)
from probablend.survey import get_survey

MAG_RANGE = (20.0, 26.0)
SLOPE, CALIBRATION_SLOPE = 0.4, 0.3
DENSITY = 300.0  # galaxies per arcmin²
COMPANIONS = 0.3  # share of them put near another
PIVOT = 24.0
BORDER = 8  # pixels: what lies beyond the image throws light in
COUNTED_TO = 25.0
GRID = np.linspace(*MAG_RANGE, 241)
EDGES = np.array([20.0, 22.0, 23.0, 23.5, 24.0, 24.5, 25.0, 25.5, 26.0])
EVERYWHERE = np.ones_like(GRID)
OURS = "posterior draws"


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field: its true galaxies, and what each method says of it."""

    mag: np.ndarray  # (galaxy,)
    blended: np.ndarray  # (galaxy,)
    found: dict[str, np.ndarray]  # (galaxy,)
    mags: dict[str, np.ndarray]  # (draw, source); one draw of point estimates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("counts"))
    parser.add_argument("--fields", type=int, default=60)
    parser.add_argument("--calibration", type=int, default=20, help="fields for completeness")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=300, help="of emcee")
    parser.add_argument("--seed", type=int, default=3000)
    parser.add_argument("--model", default="field")
    given = parser.parse_args()
    report, figure = compare(given)
    given.output.mkdir(parents=True, exist_ok=True)
    write_json(given.output / "counts.json", report)
    (given.output / "counts.md").write_text(table(report))
    figure.savefig(given.output / "counts.png", dpi=100)
    print(table(report))


def compare(given: argparse.Namespace) -> tuple[dict[str, Any], Figure]:
    began = time.monotonic()
    survey = get_survey("euclid-vis")
    galaxies = open_source("parametric", survey, "test", seed=given.seed, mag_range=MAG_RANGE)

    def observe(slope: float, n: int, stream: int) -> list[Field]:
        config = FieldConfig(
            size=given.size, density=DENSITY, star_density=0, mag_range=MAG_RANGE,
            companion_fraction=COMPANIONS, counts_slope=slope,
        )  # fmt: skip
        generators = (np.random.default_rng([given.seed, stream, k]) for k in range(n))
        return [look(draw_field(galaxies, config, generator=g), given.model) for g in generators]

    calibration = observe(CALIBRATION_SLOPE, given.calibration, 0)
    fields = observe(SLOPE, given.fields, 1)
    area = ((given.size - 2 * BORDER) * survey.scale / 60) ** 2
    share = np.trapezoid(10 ** (SLOPE * (GRID - PIVOT)), GRID)
    truth = np.array([SLOPE, math.log(DENSITY * area / share)])
    chains = {
        name: np.array([sample_counts(ask(field), n_steps=given.steps, seed=k)
                        for k, field in enumerate(fields)])
        for name, ask in questions(calibration).items()
    }  # fmt: skip
    report = {
        "command": "python benchmarks/counts.py " + " ".join(sys.argv[1:]),
        "version": __version__,
        "model": given.model,
        "weights": file_hash(find_model(given.model)),
        "threads": torch.get_num_threads(),
        "fields": given.fields,
        "size": given.size,
        "galaxies_per_field": float(np.mean([len(field.mag) for field in fields])),
        "blended": float(np.concatenate([field.blended for field in fields]).mean()),
        "found": {name: float(np.concatenate([f.found[name] for f in fields]).mean())
                  for name in fields[0].found},
        "truth": dict(zip(("slope", "ln_density"), truth.tolist(), strict=True)),
        "methods": {name: score(chain, truth) for name, chain in chains.items()},
        "seconds": time.monotonic() - began,
    }  # fmt: skip
    return report, draw(chains, truth)


def look(scene: Scene, model: str) -> Field:
    """All methods on one field; what lies within the border counts neither as true nor as found."""
    survey, size = scene.survey, len(scene.image)
    result = segment(
        scene.image, rms=scene.rms, n_samples=1, model=model, background="none",
        psf=survey_psf(survey),
    )  # fmt: skip
    assert result.sources is not None
    draws = survey.mag(result.sources.parameter("flux"))
    at = positions(result.catalog)
    said = {OURS: (at, draws), "medians": (at, np.median(draws, axis=0, keepdims=True))}
    programs = {"sep": run_sep} | ({"SExtractor": run_sextractor} if find_sextractor() else {})
    for name, program in programs.items():
        catalog, _ = program(scene.image, scene.rms)
        flux = np.asarray(catalog["flux"])
        mag = survey.mag(np.where(flux > 0, flux, np.nan))
        said[name] = positions(catalog), mag[None]

    def inside(places: np.ndarray) -> np.ndarray:
        return ((places >= BORDER) & (places <= size - 1 - BORDER)).all(axis=1)

    true = positions(scene.catalog)
    kept = inside(true)
    matched = {name: match_positions(true, places)[0] for name, (places, _) in said.items()}
    return Field(
        mag=np.asarray(scene.catalog["mag"])[kept],
        blended=np.asarray(scene.catalog["blended"])[kept],
        found={name: np.isin(np.flatnonzero(kept), rows) for name, rows in matched.items()},
        mags={name: mags[:, inside(places)] for name, (places, mags) in said.items()},
    )


def questions(calibration: list[Field]) -> dict[str, Callable[[Field], CountsLikelihood]]:
    """Ways to ask a field for its counts, by name."""

    def completeness(name: str) -> np.ndarray:
        mag = np.concatenate([field.mag for field in calibration])
        found = np.concatenate([field.found[name] for field in calibration])
        return share(mag[found], mag)

    def observed(name: str) -> np.ndarray:
        said = np.concatenate([field.mags[name].ravel() for field in calibration])
        return share(said[np.isfinite(said)], np.concatenate([f.mag for f in calibration]))

    def share(some: np.ndarray, true: np.ndarray) -> np.ndarray:
        n_some, n_all = (np.histogram(m, EDGES)[0] for m in (some, true))
        middle = (EDGES[1:] + EDGES[:-1]) / 2
        return np.interp(GRID, middle[n_all > 0], n_some[n_all > 0] / n_all[n_all > 0])

    def ask(name: str, faintest: float, losses: np.ndarray, prior: float) -> Callable:
        population = Population(mag_range=(MAG_RANGE[0], faintest), slope=prior)

        def likelihood(field: Field) -> CountsLikelihood:
            mags = field.mags[name]
            usable = np.isfinite(population.log_prob_mag(mags)).any(axis=0)
            return CountsLikelihood(
                mags=mags[:, usable], population=population, grid=GRID, completeness=losses,
                pivot=PIVOT,
            )  # fmt: skip

        return likelihood

    prior = Population(mag_range=MAG_RANGE)
    held = counts_completeness(
        np.concatenate([field.mags[OURS] for field in calibration], axis=1),
        np.concatenate([field.mag for field in calibration]),
        EDGES, population=prior, slope=CALIBRATION_SLOPE,
    )  # fmt: skip
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    asked = {
        f"{OURS}, corrected": ask(OURS, MAG_RANGE[1], np.interp(GRID, middle, held), prior.slope),
        f"{OURS}, completeness": ask(OURS, MAG_RANGE[1], completeness(OURS), prior.slope),
    }
    for name in calibration[0].mags:
        if name != OURS:  # points have no prior in them
            asked[f"{name}, corrected"] = ask(name, MAG_RANGE[1], observed(name), 0.0)
            asked[f"{name}, to {COUNTED_TO:g} mag"] = ask(name, COUNTED_TO, EVERYWHERE, 0.0)
    return asked


def score(chains: np.ndarray, truth: np.ndarray) -> dict[str, dict[str, float]]:
    """Bias and coverage of slope and ln density over the fields, (field, draw, 2)."""
    scores = {}
    for k, name in enumerate(("slope", "ln_density")):
        draws = chains[..., k].T
        low, high = interval(draws, 0.68)
        error = np.median(draws, axis=0) - truth[k]
        width = (high - low) / 2
        scores[name] = {
            "bias": float(error.mean()),
            "bias_error": float(error.std(ddof=1) / math.sqrt(len(error))),
            "half_width": float(width.mean()),
            "bias_over_half_width": float((error / width).mean()),
            "inside_68": float(((low < truth[k]) & (truth[k] < high)).mean()),
        }
    return scores


def table(report: dict[str, Any]) -> str:
    """The scores as Markdown."""
    lines = [
        f"`{report['command']}`", "",
        f"probablend {report['version']}, `{report['model']}` {report['weights']}; "
        f"{report['fields']} fields of {report['size']}² pixels, "
        f"{report['galaxies_per_field']:.0f} galaxies each, {100 * report['blended']:.0f} % "
        f"of them blended; slope {report['truth']['slope']:g}, ln density at {PIVOT:g} mag "
        f"{report['truth']['ln_density']:.2f}.", "",
        "| | slope: bias | half 68 % interval | truth inside | ln density: bias "
        "| half 68 % interval | truth inside |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, scores in report["methods"].items():
        cells = [
            f"{s['bias']:+.3f} ± {s['bias_error']:.3f} | {s['half_width']:.3f} "
            f"| {100 * s['inside_68']:.0f} %"
            for s in scores.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(chains: dict[str, np.ndarray], truth: np.ndarray) -> Figure:
    """Every field's 68 % interval, methods below each other."""
    figure = Figure(figsize=(9, 0.9 + 0.75 * len(chains)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for k, (ax, label) in enumerate(zip(axes, ("slope", "ln density"), strict=True)):
        for row, chain in enumerate(chains.values()):
            low, high = interval(chain[..., k].T, 0.68)
            hit = (low < truth[k]) & (truth[k] < high)
            at = row + np.linspace(-0.35, 0.35, len(low))
            for chosen, colour, width in ((hit, "#4c9be8", 1.2), (~hit, "#ff8c1a", 2.2)):
                ax.hlines(at[chosen], low[chosen], high[chosen], color=colour, lw=width)
        ax.axvline(truth[k], color="k", lw=1)
        ax.set_xlabel(label)
    axes[0].set_yticks(range(len(chains)), chains)
    axes[0].set_ylim(len(chains) - 0.5, -0.5)
    return figure


if __name__ == "__main__":
    main()
