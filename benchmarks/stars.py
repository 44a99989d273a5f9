"""The PSF that is measured on the stars of emulated fields, beside the true one.

python benchmarks/stars.py -o benchmarks/stars
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from surveys import DENSITIES, LARGER

from probablend import __version__
from probablend.emulate.blend import FieldConfig, draw_field
from probablend.emulate.psf import survey_psf
from probablend.emulate.sources import open_source
from probablend.evaluate.record import write_json
from probablend.infer.psf import measure_psf
from probablend.survey import get_survey

# The PSFs of the surveys, and others for DES.
OTHERS: dict[str, dict[str, Any]] = {
    "Gaussian": {"psf_profile": "gaussian"},
    "Moffat, β = 2.5": {"psf_profile": "moffat", "psf_beta": 2.5},
}


def table(report: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = [
        f"`{report['command']}`",
        "",
        f"probablend {report['version']}, {report['n']} fields each; light is that under a weight "
        "of σ = FWHM over a Gaussian PSF's; – where stars do not tell.",
        "",
        "| | FWHM, px: true | measured | light: true | measured |",
        "|---|---|---|---|---|",
    ]
    for name, row in report["surveys"].items():
        fwhm = ", ".join("–" if said is None else f"{said['fwhm']:.2f}" for said in row["said"])
        light = ", ".join(
            "–" if said is None or said["wings"] is None else f"{np.exp(said['wings'][0]):.2f}"
            for said in row["said"]
        )
        lines.append(
            f"| {name} | {row['fwhm']:.2f} | {fwhm} | {np.exp(row['wings'][0]):.2f} | {light} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("-n", type=int, default=3)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=8000)
    args = parser.parse_args()
    report: dict[str, Any] = {
        "command": "python benchmarks/stars.py " + " ".join(sys.argv[1:]),
        "version": __version__,
        "n": args.n,
        "surveys": {},
    }
    cases = [(f"`{name}`", name, {}) for name in DENSITIES]
    cases += [(f"`des-i`, {name}", "des-i", other) for name, other in OTHERS.items()]
    for label, name, other in cases:
        survey = replace(get_survey(name), **other)
        config = FieldConfig(size=args.size * LARGER.get(name, 1), density=DENSITIES[name])
        galaxies = open_source("parametric", survey, "test", seed=args.seed)
        said: list[dict[str, Any] | None] = []
        for k in range(args.n):
            scene = draw_field(galaxies, config, generator=np.random.default_rng([args.seed, k]))
            signal = scene.image / survey.sky_rms
            found = measure_psf(signal, np.zeros(signal.shape, bool))
            sure = found is not None and found.origin == "measured"
            said.append({"fwhm": found.fwhm, "wings": found.wings} if sure else None)
        true = survey_psf(survey)
        report["surveys"][label] = {"fwhm": true.fwhm, "wings": true.wings, "said": said}
        print(label, report["surveys"][label], flush=True)
    write_json(args.output.with_suffix(".json"), report)
    args.output.with_suffix(".md").write_text(table(report))


if __name__ == "__main__":
    main()
