"""Galaxies that stand alone, emulated and real, as Euclid sees them: is each taken for one?

PROBABLEND_TEST_DATA=… python benchmarks/alone.py -n 100 -o docs/results/alone
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table, vstack
from real_pairs import RealGalaxies, write_catalog

from probablend import __version__
from probablend.emulate.blend import make_scene
from probablend.emulate.sources import open_source
from probablend.emulate.stamps import Galaxies
from probablend.evaluate.detection import positions
from probablend.evaluate.match import match_positions
from probablend.evaluate.methods import open_method, weights_hash
from probablend.evaluate.pairs import PairsConfig
from probablend.evaluate.photometry import flux_scores, share_inside, truth_ranks
from probablend.evaluate.record import write_json
from probablend.survey import get_survey

EMULATED = ("parametric", "structured", "irregular")
REAL = "real, HST"
MAG_RANGES = ((21.0, 22.0), (22.0, 23.0), (23.0, 24.0))
METHODS = ("field", "sep", "sextractor")
N_SAMPLES = 16


def score(name: str, galaxies: Galaxies, config: PairsConfig) -> dict[str, float]:
    """What a method says of the central galaxies of pairs, their companions taken away."""
    method = open_method(name, n_samples=config.n_samples)
    rows, more, snr = [], 0, []
    for k in range(config.n):
        pair = config.scene(galaxies, k)
        generator = np.random.default_rng([config.seed, k, 2])
        scene = make_scene(pair.sources[:1], pair.survey, pair.image.shape, generator=generator)
        snr.append(float(np.sqrt((scene.noiseless.astype(float) ** 2).sum()) / scene.rms))
        said = method(scene, config.seed + k)
        more += len(said.catalog) > 1
        _, row = match_positions(positions(scene.catalog), positions(said.catalog))
        if not len(row):
            continue
        one = Table({"flux": np.asarray(said.catalog["flux"], float)[row]})
        one["flux_true"] = np.asarray(scene.catalog["flux"], float)
        if said.draws is not None:
            one["rank"] = truth_ranks(scene.catalog, said.draws[:, row])["flux"]
            for key in ("p_blend", "p_blend_maps", "p_blend_footprints"):
                one[key] = np.asarray(said.catalog[key], float)[row]
        rows.append(one)
    table = vstack(rows)
    scores = {
        "snr": float(np.median(snr)), "found": len(table) / config.n, "more": more / config.n,
        **flux_scores(table),
    }  # fmt: skip
    if "rank" in table.colnames:
        scores["coverage68"] = share_inside(np.asarray(table["rank"], float))["68"]
        scores["p_blend_above_half"] = float((table["p_blend"] > 0.5).mean())
        scores |= {key: float(table[key].mean()) for key in table.colnames if "p_blend" in key}
    return scores


def table(report: dict[str, Any]) -> str:
    """The scores as Markdown."""
    lines = [
        f"`{report['command']}`",
        "",
        f"probablend {report['version']}, `field` {report['weights']}; {report['n']} galaxies of "
        f"each kind and magnitude, `{report['survey']}`.",
        "",
        "| galaxies | mag | S/N | | found | more than one | mean `p_blend` (of maps, of "
        "footprints) | above 0.5 | flux: bias, mag | NMAD, mag | in 68 % interval |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for s in report["scores"]:
        voices = "–"
        if "p_blend" in s:
            voices = f"{s['p_blend']:.2f} ({s['p_blend_maps']:.2f}, {s['p_blend_footprints']:.2f})"
        cells = [
            s["kind"], "–".join(f"{m:g}" for m in s["mag_range"]), f"{s['snr']:.0f}",
            s["method"], f"{s['found']:.0%}", f"{s['more']:.0%}", voices,
            f"{s['p_blend_above_half']:.0%}" if "p_blend" in s else "–",
            f"{s['bias']:+.3f}", f"{s['nmad']:.3f}",
            f"{s['coverage68']:.2f}" if "p_blend" in s else "–",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--survey", default="euclid-vis")
    parser.add_argument("--seed", type=int, default=7100)
    args = parser.parse_args()
    survey = get_survey(args.survey)
    data = Path(os.environ["PROBABLEND_TEST_DATA"]) / "hst_cosmos_f814w"
    scores = []
    with tempfile.TemporaryDirectory() as folder:
        kinds = {kind: open_source(kind, survey, "test") for kind in EMULATED}
        # Four fifths of a set of which no part was trained on.
        kinds[REAL] = RealGalaxies(survey, write_catalog(data, Path(folder)), "train")
        for kind, galaxies in kinds.items():
            for mag_range in MAG_RANGES:
                config = PairsConfig(
                    survey=args.survey, source="cosmos" if kind == REAL else kind, n=args.n,
                    mag_range=mag_range, n_samples=N_SAMPLES, seed=args.seed,
                )  # fmt: skip
                for method in METHODS:
                    said = score(method, galaxies, config)
                    scores.append({"kind": kind, "mag_range": mag_range, "method": method} | said)
                    print(scores[-1], flush=True)
    report: dict[str, Any] = {
        "command": "python benchmarks/alone.py " + " ".join(sys.argv[1:]),
        "version": __version__, "weights": weights_hash("field"), "n": args.n,
        "survey": args.survey, "scores": scores,
    }  # fmt: skip
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(args.output / "alone.json", report)
    (args.output / "alone.md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
