"""What pixel scale and zero point are worth to posteriors, and what they do when they are wrong.

python benchmarks/told.py -o benchmarks/told

Fields of each survey, of which nothing is told, one or both, or both with an error. The model is
conditioned on them: how large, and how many, galaxies of a flux are depends on the survey.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from surveys import DENSITIES, LARGER, draw

from probablend import __version__
from probablend.checkpoint import file_hash, find_model
from probablend.emulate.blend import FieldConfig, Scene
from probablend.emulate.psf import told_of
from probablend.emulate.sources import open_source
from probablend.evaluate.photometry import (
    coverage_scores,
    flux_scores,
    matched_sources,
    shape_scores,
)
from probablend.evaluate.record import write_json
from probablend.infer.segment import segment
from probablend.survey import get_survey

# How large pixels are said to be, over the truth, and how much deeper the image, mag.
TOLD: dict[str, tuple[float | None, float | None]] = {
    "nothing": (None, None),
    "pixel scale": (1.0, None),
    "zero point": (None, 0.0),
    "both": (1.0, 0.0),
    "both, 0.3 mag too deep": (1.0, 0.3),
    "both, 2.5 mag too shallow": (1.0, -2.5),
    "both, pixels half as large again": (1.5, 0.0),
}
SIZE, SEED, MIN_SNR = 640, 9400, 10.0  # pixels


def look(scene: Scene, kind: str, seed: int) -> tuple[Table, np.ndarray]:
    """Galaxies that were found, and of all sources half the width of the interval of flux, mag."""
    factor, deeper = TOLD[kind]
    told = told_of(scene.survey)
    told["pixel_scale"] = None if factor is None else factor * told["pixel_scale"]
    told["zeropoint"] = None if deeper is None else told["zeropoint"] + deeper
    said = segment(scene.image, rms=scene.rms, background="none", n_samples=1, seed=seed, **told)
    assert said.sources is not None
    low, high = np.quantile(said.sources.parameter("flux"), [0.16, 0.84], axis=0)
    found = matched_sources(scene, said.catalog, said.sources.draws)
    return found[~np.asarray(found["is_star"], bool)], 1.25 * np.log10(high / low)


def judge(scene: Scene, seed: int) -> dict[str, Any]:
    """Scores of a field by what is told of it."""
    rows = {}
    for kind in TOLD:
        found, half_width = look(scene, kind, seed)
        bright = found[np.asarray(found["snr"]) > MIN_SNR]
        coverage = coverage_scores(bright)
        rows[kind] = {
            "n": len(bright),
            "found": len(found),
            "rows": len(half_width),
            "half_width": float(np.median(half_width)),
            "flux": flux_scores(bright),
            "size": shape_scores(bright),
            "coverage_flux": coverage["flux"]["68"],
            "coverage_hlr": coverage["hlr"]["68"],
        }
    return rows


def table(report: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = [
        f"`{report['command']}`",
        "",
        f"probablend {report['version']}, `field` {report['weights']}; galaxies of S/N > "
        f"{MIN_SNR:g}, but for the width of intervals, of all sources.",
        "",
        "| survey (galaxies) | told | 68 % intervals of flux hold | too bright by, mag | NMAD, mag "
        "| half the interval, mag | of size hold | size: NMAD of ln |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in report["surveys"].items():
        for kind, row in rows.items():
            cells = [
                f"`{name}` ({row['n']})", kind, f"{row['coverage_flux']:.3f}",
                f"{row['flux']['bias']:+.3f}", f"{row['flux']['nmad']:.3f}",
                f"{row['half_width']:.3f}", f"{row['coverage_hlr']:.3f}",
                f"{row['size']['ln_hlr_nmad']:.3f}",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="without a suffix")
    parser.add_argument("--surveys", nargs="+", default=list(DENSITIES), choices=list(DENSITIES))
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "command": "python benchmarks/told.py " + " ".join(sys.argv[1:]),
        "version": __version__,
        "weights": file_hash(find_model("field")),
        "surveys": {},
    }
    for name in arguments.surveys:
        galaxies = open_source("parametric", get_survey(name), split="test")
        side = SIZE * LARGER.get(name, 1)
        scene = draw(galaxies, FieldConfig(size=side, density=DENSITIES[name]), SEED, 0)
        report["surveys"][name] = judge(scene, SEED)
        print(table({**report, "surveys": {name: report["surveys"][name]}}), flush=True)
    write_json(arguments.output.with_suffix(".json"), report)
    arguments.output.with_suffix(".md").write_text(table(report))


if __name__ == "__main__":
    main()
