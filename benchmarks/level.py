"""What a sky that is a little off does to fluxes, and what taking it out mends.

python benchmarks/level.py -o benchmarks/level
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sky import LEVELS
from surveys import DENSITIES, draw, score

from probablend import __version__
from probablend.emulate.blend import FieldConfig, Scene
from probablend.emulate.sources import open_source
from probablend.evaluate.record import write_json
from probablend.prepare import prepare_image
from probablend.survey import get_survey

FIELDS = {"cosmos-f814w": 3}
SEED = 6100


def raised(scene: Scene, level: float, background: str) -> Scene:
    """A scene on another sky, and what is made of it before anything is measured."""
    image = (scene.image + level * scene.rms).astype(np.float32)
    told = prepare_image(image, rms=scene.rms, background=background).background
    return replace(scene, image=image - np.float32(told))


def run(args: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {"command": args.command, "version": __version__, "surveys": {}}
    for name, n in FIELDS.items():
        galaxies = open_source("parametric", get_survey(name), split="test")
        config = FieldConfig(size=1024, density=DENSITIES[name])
        scenes = [draw(galaxies, config, SEED, k) for k in range(n)]
        rows = report["surveys"].setdefault(name, {})
        for level in LEVELS:
            for background in ("none", "auto"):
                said = score([raised(s, level, background) for s in scenes], args.model, SEED)
                flux = said["photometry"]["coverage"]["flux"]
                rows.setdefault(f"{level:+.2f}", {})[background] = {
                    "n": sum(b["n"] for b in flux["bins"] if b["bin"] == "snr"),
                    "68": flux["68"], "95": flux["95"],
                    "nmad": said["photometry"]["flux_all_snr10"]["nmad"],
                }  # fmt: skip
                print(name, level, background, rows[f"{level:+.2f}"][background], flush=True)
    return report


def table(report: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = [
        f"`{report['command']}`",
        "",
        "| | level of the sky, σ | left in: fluxes in the 68 / 95 % interval (NMAD, mag) "
        "| taken out |",
        "|---|---|---|---|",
    ]
    for name, rows in report["surveys"].items():
        for level, row in rows.items():
            cells = [f"{r['68']:.3f} / {r['95']:.3f} ({r['nmad']:.3f})"
                     for r in (row["none"], row["auto"])]  # fmt: skip
            n = row["none"]["n"]
            lines.append(f"| `{name}` ({n}) | {level} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="field")
    args = parser.parse_args()
    args.command = "python benchmarks/level.py " + " ".join(sys.argv[1:])
    report = run(args)
    write_json(args.output.with_suffix(".json"), report)
    args.output.with_suffix(".md").write_text(table(report))


if __name__ == "__main__":
    main()
