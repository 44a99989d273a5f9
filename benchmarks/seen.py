"""Whether 68 % intervals of the flux hold in bins of what a catalogue says, and of what is true.

A posterior promises that among galaxies which look alike as many truths lie inside as it says. It
does not promise that for galaxies which are alike in truth: those with a companion that the image
does not show, say.

python benchmarks/seen.py -o docs/results/seen/seen
"""

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table, vstack
from scipy.spatial import KDTree

from probablend import __version__
from probablend.checkpoint import file_hash, find_model
from probablend.emulate.blend import FieldConfig, Scene, draw_field
from probablend.emulate.psf import survey_psf
from probablend.emulate.sources import open_source
from probablend.evaluate.detection import MIN_FOOTPRINT, positions
from probablend.evaluate.match import match_positions
from probablend.evaluate.photometry import MIN_IN_BIN, signal_to_noise
from probablend.evaluate.record import write_json
from probablend.infer.segment import segment
from probablend.survey import get_survey

FIELDS = {"euclid-vis": (200.0, 4), "lsst-i": (150.0, 2)}  # galaxies per arcmin², fields
SIZE, SEED = 1024, 6100
STEPS = {
    "S/N": (5.0, 10.0, 20.0, 50.0, np.inf),
    "next one, px": (0.0, 5.0, 10.0, 15.0, np.inf),
    "p_blend": (0.0, 0.1, 0.3, 0.7, 0.9, 1.01),
}


def nearest(places: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance to the nearest of the others that is not the place itself."""
    distance, _ = KDTree(others).query(places, k=2)
    return np.where(distance[:, 0] > 0, distance[:, 0], distance[:, 1])


def look(scene: Scene, seed: int) -> Table:
    """Galaxies that were found: whether their flux is inside, and each quantity twice."""
    survey, truth = scene.survey, scene.catalog
    said = segment(
        scene.image, rms=scene.rms, background="none", psf=survey_psf(survey), seed=seed
    ).catalog
    t, f = match_positions(positions(truth), positions(said))
    galaxy = ~np.asarray(truth["is_star"], bool)[t]
    t, f = t[galaxy], f[galaxy]
    detectable = positions(truth)[np.asarray(truth["n_pixels"]) >= MIN_FOOTPRINT]
    flux = np.asarray(truth["flux"], float)[t]
    low, high = (np.asarray(said[f"flux_{q}"], float)[f] for q in ("q16", "q84"))
    return Table({
        "inside": (low < flux) & (flux < high),
        "S/N, said": np.asarray(said["flux"] / said["flux_err"], float)[f],
        "S/N, true": signal_to_noise(scene)[t],
        "next one, px, said": nearest(positions(said), positions(said))[f],
        "next one, px, true": nearest(positions(truth)[t], detectable),
        "p_blend, said": np.asarray(said["p_blend"], float)[f],
        "p_blend, true": np.asarray(truth["blended"], float)[t],
    })  # fmt: skip


def shares(table: Table) -> list[dict[str, Any]]:
    rows = []
    for name, steps in STEPS.items():
        for low, high in pairwise(steps):
            row: dict[str, Any] = {"what": name, "low": low, "high": min(high, 1e9)}
            for kind in ("said", "true"):
                value = np.asarray(table[f"{name}, {kind}"])
                some = table["inside"][(value >= low) & (value < high)]
                enough = len(some) >= MIN_IN_BIN
                row[kind] = {"n": len(some), "inside": float(some.mean()) if enough else None}
            rows.append(row)
    return rows


def as_text(report: dict[str, Any]) -> str:
    names = list(report["surveys"])
    lines = [
        f"`{report['command']}`",
        "",
        f"probablend {report['version']}, `field` {report['weights']}; of all galaxies that were "
        "found: "
        + ", ".join(f"`{k}` {v['inside']:.3f} of {v['n']}" for k, v in report["surveys"].items())
        + ".",
        "",
        "| |"
        + "".join(f" `{name}`, in bins of what is said | … of what is true |" for name in names),
        "|---|" + "---|---|" * len(names),
    ]
    for k, first in enumerate(report["surveys"][names[0]]["bins"]):
        high = f" to {first['high']:g}" if first["high"] < 1e9 else " and more"
        cells = [f"{first['what']} {first['low']:g}{high}".replace("1.01", "1")]
        for name in names:
            row = report["surveys"][name]["bins"][k]
            for kind in ("said", "true"):
                n, inside = row[kind]["n"], row[kind]["inside"]
                cells.append("–" if inside is None else f"{inside:.2f} ({n})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="without a suffix")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "command": "python benchmarks/seen.py " + " ".join(sys.argv[1:]),
        "version": __version__,
        "weights": file_hash(find_model("field")),
        "surveys": {},
    }
    for name, (density, n) in FIELDS.items():
        galaxies = open_source("parametric", get_survey(name), split="test")
        config = FieldConfig(size=SIZE, density=density)
        tables = []
        for k in range(n):
            generator = np.random.default_rng([SEED, k])
            tables.append(look(draw_field(galaxies, config, generator=generator), SEED + k))
        table = vstack(tables)
        report["surveys"][name] = {
            "n": len(table), "inside": float(table["inside"].mean()), "bins": shares(table),
        }  # fmt: skip
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output.with_suffix(".json"), report)
    arguments.output.with_suffix(".md").write_text(as_text(report))
    print(as_text(report))


if __name__ == "__main__":
    main()
