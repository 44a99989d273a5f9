"""How the two statements of a source on blending become one probability.

python benchmarks/pooling.py -o benchmarks/pooling

On validation fields of several surveys, and of many that might be, with galaxies of all kinds: the
share of class maps with a blended pixel in the footprint, the share of joint draws in which the
footprint overlaps another, and whether the source is blended. Fits the weights of
probablend.infer.sources.pool_blending, and scores those that are in it beside a fit that has not
seen the survey. Surveys that might be count as much as those with a name: all these are alike.
"""

import argparse
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
from probablend.emulate.stamps import Galaxies
from probablend.evaluate.calibration import brier_score, chance_ece, reliability
from probablend.evaluate.detection import positions
from probablend.evaluate.match import match_positions
from probablend.evaluate.record import write_json
from probablend.infer.scan import DRAWS_PER_SAMPLE
from probablend.infer.segment import segment
from probablend.infer.sources import N_MAPS, N_OVERLAP, POOL, ln_odds, pool_blending
from probablend.survey import Survey, draw_survey, get_survey

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
# Surveys that might be: how many of each kind of galaxies, and galaxies in a field of each.
MIGHT_BE, KINDS, IN_FIELD = 20, ("parametric", "structured", "irregular"), 60
SIDES = (200, 420)  # pixels, least and most
SEED = 4242
N_SAMPLES = N_MAPS // DRAWS_PER_SAMPLE


Part = tuple[np.ndarray, np.ndarray]


def look(survey: Survey, galaxies: Galaxies, config: FieldConfig, model: str, k: int) -> Part:
    """Both statements of matched sources of a field, (2, source), and whether they are blended."""
    scene = draw_field(galaxies, config, generator=np.random.default_rng([SEED, k]))
    result = segment(
        scene.image, rms=scene.rms, background="none", psf=survey_psf(survey),
        n_samples=N_SAMPLES, seed=k, model=model,
    )  # fmt: skip
    t, f = match_positions(positions(scene.catalog), positions(result.catalog))
    shares = ("p_blend_maps", "p_blend_footprints")
    said = np.stack([np.asarray(result.catalog[name], float)[f] for name in shares])
    return said, np.asarray(scene.catalog["blended"], bool)[t]


def known(name: str, model: str) -> Part:
    """Fields of a survey with a name."""
    survey = get_survey(name)
    density, size, n = SURVEYS[name]
    galaxies = open_source("parametric", survey, "validation", seed=SEED)
    config = FieldConfig(size=size, density=density)
    return joined([look(survey, galaxies, config, model, k) for k in range(n)])


def might_be(kind: str, model: str) -> Part:
    """A field of each of some surveys that might be."""
    parts = []
    for k in range(MIGHT_BE):
        survey = draw_survey(np.random.default_rng([SEED, KINDS.index(kind), k]))
        side = int(np.clip(60 * np.sqrt(IN_FIELD / 150) / survey.scale, *SIDES))
        density = float(np.clip(IN_FIELD / (side * survey.scale / 60) ** 2, 20, 300))
        galaxies = open_source(kind, survey, "validation", seed=SEED + k)
        config = FieldConfig(size=side, density=density)
        parts.append(look(survey, galaxies, config, model, k))
    return joined(parts)


def joined(parts: list[Part]) -> Part:
    return np.concatenate([p[0] for p in parts], axis=1), np.concatenate([p[1] for p in parts])


def fit(parts: dict[str, Part]) -> np.ndarray:
    """Weights that make what is true most probable; what has a name and what might be alike."""
    n = {key: sum((key in KINDS) == (other in KINDS) for other in parts) for key in parts}

    def loss(weights: np.ndarray) -> float:
        return sum(
            -np.log(expit(np.where(true, 1, -1) * (weights @ seen(said)))).mean() / n[key]
            for key, (said, true) in parts.items()
        )

    return minimize(loss, np.zeros(3)).x


def seen(said: np.ndarray) -> np.ndarray:
    """What is weighted, (3, source)."""
    by_pixels, by_footprints = said
    return np.stack(
        [np.ones(said.shape[1]), ln_odds(by_pixels, N_MAPS), ln_odds(by_footprints, N_OVERLAP)]
    )


def scores(probability: np.ndarray, true: np.ndarray) -> dict[str, float]:
    probability = np.clip(probability, 1e-4, 1 - 1e-4)
    return {
        "mean": float(probability.mean()),
        "ece": reliability(probability, true).ece,
        "ece_by_chance": chance_ece(probability),
        "brier": brier_score(probability, true),
        "log_loss": float(-np.log(np.where(true, probability, 1 - probability)).mean()),
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
        "| | sources | blended | mean of the two shares: mean, ECE, log loss | pooled "
        "| pooled by a fit without it | ECE by chance |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in report["surveys"].items():
        cells = [
            f"{r[key]['mean']:.3f}, {r[key]['ece']:.3f}, {r[key]['log_loss']:.4f}"
            for key in ("plain", "pooled", "left_out")
        ]
        title = f"any survey, {name}" if name in KINDS else f"`{name}`"
        cells = [title, str(r["n"]), f"{r['blended']:.3f}", *cells]
        lines.append(f"| {' | '.join(cells)} | {r['pooled']['ece_by_chance']:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="without a suffix")
    parser.add_argument("--model", default="field")
    arguments = parser.parse_args()
    parts = {name: known(name, arguments.model) for name in SURVEYS}
    parts |= {kind: might_be(kind, arguments.model) for kind in KINDS}
    fitted = {name: part for name, part in parts.items() if name not in APART}
    report: dict[str, Any] = {
        "command": "python benchmarks/pooling.py " + " ".join(sys.argv[1:]),
        "version": __version__,
        "model": arguments.model,
        "weights": file_hash(find_model(arguments.model)),
        "fitted": fit(fitted).tolist(),
        "used": list(POOL),
        "surveys": {},
    }
    for name, (said, true) in parts.items():
        others = fit({key: part for key, part in fitted.items() if key != name})
        report["surveys"][name] = {
            "n": len(true),
            "blended": float(true.mean()),
            "plain": scores(said.mean(axis=0), true),
            "pooled": scores(pool_blending(*said), true),
            "left_out": scores(expit(others @ seen(said)), true),
        }
    write_json(arguments.output.with_suffix(".json"), report)
    arguments.output.with_suffix(".md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
