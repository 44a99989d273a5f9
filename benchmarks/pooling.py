"""How the two statements of a source on blending become one probability.

python benchmarks/pooling.py -o benchmarks/pooling

On validation fields of several surveys: the share of class maps with a blended pixel in the
footprint, the share of joint draws in which the footprint overlaps another, and whether the source
is blended. Fits the weights of probablend.infer.sources.pool_blending, and scores those that are
in it beside a fit that has not seen the survey.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from probablend import __version__
from probablend.checkpoint import file_hash, find_model
from probablend.emulate.blend import FieldConfig, draw_field
from probablend.emulate.psf import survey_psf
from probablend.emulate.sources import open_source
from probablend.evaluate.calibration import brier_score, chance_ece, reliability
from probablend.evaluate.detection import positions
from probablend.evaluate.match import match_positions
from probablend.infer.scan import DRAWS_PER_SAMPLE
from probablend.infer.segment import segment
from probablend.infer.sources import N_OVERLAP, POOL, ln_odds, pool_blending
from probablend.survey import get_survey

# Galaxies per arcmin², side in pixels, fields.
SURVEYS = {
    "euclid-vis": (200.0, 768, 3),
    "lsst-i": (150.0, 512, 2),
    "hsc-i": (100.0, 768, 2),
    "des-i": (60.0, 640, 2),
    "roman-f158": (200.0, 640, 2),
}
# Galaxies below the noise, which no map shows, blend most there: it would spoil the others.
APART = ("des-i",)
SEED = 4242
N_SAMPLES = 16
N_MAPS = N_SAMPLES * DRAWS_PER_SAMPLE


def look(name: str, model: str) -> tuple[np.ndarray, np.ndarray]:
    """Both statements of matched sources, (2, source), and whether they are blended."""
    survey = get_survey(name)
    density, size, n = SURVEYS[name]
    galaxies = open_source("parametric", survey, "validation", seed=SEED)
    config = FieldConfig(size=size, density=density)
    said, true = [], []
    for k in range(n):
        scene = draw_field(galaxies, config, generator=np.random.default_rng([SEED, k]))
        result = segment(
            scene.image, rms=scene.rms, background="none", psf=survey_psf(survey),
            n_samples=N_SAMPLES, seed=k, model=model,
        )  # fmt: skip
        t, f = match_positions(positions(scene.catalog), positions(result.catalog))
        shares = ("p_blend_maps", "p_blend_footprints")
        said.append(np.stack([np.asarray(result.catalog[name], float)[f] for name in shares]))
        true.append(np.asarray(scene.catalog["blended"], bool)[t])
    return np.concatenate(said, axis=1), np.concatenate(true)


def fit(parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Weights that make what is true most probable; every survey counts alike."""

    def loss(weights: np.ndarray) -> float:
        return sum(
            -np.log(expit(np.where(true, 1, -1) * (weights @ seen(said)))).mean()
            for said, true in parts
        )

    return minimize(loss, np.zeros(3)).x


def seen(said: np.ndarray) -> np.ndarray:
    """What is weighted, (3, source)."""
    by_pixels, by_footprints = said
    return np.stack(
        [np.ones(said.shape[1]), ln_odds(by_pixels, N_MAPS), ln_odds(by_footprints, N_OVERLAP)]
    )


def scores(probability: np.ndarray, true: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(probability.mean()),
        "ece": reliability(probability, true).ece,
        "ece_by_chance": chance_ece(probability),
        "brier": brier_score(probability, true),
    }


def table(report: dict[str, Any]) -> str:
    """The scores as Markdown."""
    lines = [
        f"`{report['command']}`",
        "",
        f"probablend {report['version']}, `{report['model']}` {report['weights']}; weights fitted "
        f"to all but {', '.join(APART)}: {', '.join(f'{w:.2f}' for w in report['fitted'])}; in "
        f"use: {', '.join(f'{w:.2f}' for w in report['used'])}.",
        "",
        "| | sources | blended | mean of the two shares: mean, ECE, Brier | pooled "
        "| pooled by a fit without the survey | ECE by chance |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in report["surveys"].items():
        cells = [
            f"{r[key]['mean']:.3f}, {r[key]['ece']:.3f}, {r[key]['brier']:.4f}"
            for key in ("plain", "pooled", "left_out")
        ]
        cells = [f"`{name}`", str(r["n"]), f"{r['blended']:.3f}", *cells]
        lines.append(f"| {' | '.join(cells)} | {r['pooled']['ece_by_chance']:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="without a suffix")
    parser.add_argument("--model", default="field")
    arguments = parser.parse_args()
    parts = {name: look(name, arguments.model) for name in SURVEYS}
    fitted = {name: part for name, part in parts.items() if name not in APART}
    report: dict[str, Any] = {
        "command": "python benchmarks/pooling.py " + " ".join(sys.argv[1:]),
        "version": __version__,
        "model": arguments.model,
        "weights": file_hash(find_model(arguments.model)),
        "fitted": fit(list(fitted.values())).tolist(),
        "used": list(POOL),
        "surveys": {},
    }
    for name, (said, true) in parts.items():
        others = fit([part for other, part in fitted.items() if other != name])
        report["surveys"][name] = {
            "n": len(true),
            "blended": float(true.mean()),
            "plain": scores(said.mean(axis=0), true),
            "pooled": scores(pool_blending(*said, n_maps=N_MAPS), true),
            "left_out": scores(expit(others @ seen(said)), true),
        }
    arguments.output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    arguments.output.with_suffix(".md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
