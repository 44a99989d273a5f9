"""Galaxies injected into real images of the sky: what `probablend evaluate inject` says of each.

PROBABLEND_TEST_DATA=… python benchmarks/inject_real.py -o docs/results/inject
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from real_sky import fields

from probablend.evaluate.inject import InjectionConfig, inject
from probablend.evaluate.record import write_json
from probablend.images import ImageData

IMAGES = ("kids-r", "kids-i", "xdf-f160w", "decals-r", "dc2-i")


def table(report: dict[str, Any]) -> str:
    """One row per image."""
    lines = [
        f"`{report['command']}`",
        "",
        f"`{report['model']}` {report['weights']}; galaxies from 6 mag brighter to 0.5 mag "
        "fainter than the 5 σ depth, half of them beside real sources.",
        "",
        "| | found | NMAD, mag | in 68 / 95 % interval of flux | ECE of p_blend (by chance) "
        "| detections on the negative image | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in report["images"].items():
        flux = one["coverage"]["flux"]
        lines.append(
            f"| {name} | {one['n_found']} of {one['n_injected']} | {one['flux']['nmad']:.3f} "
            f"| {flux['68']:.2f} / {flux['95']:.2f} "
            f"| {one['p_blend']['ece']:.3f} ({one['p_blend']['ece_by_chance']:.3f}) "
            f"| {one['n_negative']} of {one['n_detections']} "
            f"| {one['verdict']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("-n", type=int, default=300)
    parser.add_argument("--images", nargs="+", default=IMAGES, choices=IMAGES)
    parser.add_argument("--model", default="field")
    args = parser.parse_args()
    command = "python benchmarks/inject_real.py " + " ".join(sys.argv[1:])
    report: dict[str, Any] = {"command": command, "n": args.n, "images": {}}
    for field in fields(Path(os.environ["PROBABLEND_TEST_DATA"])):
        if field.name not in args.images:
            continue
        one = inject(
            ImageData(data=field.image, name=field.name), args.output / field.name,
            InjectionConfig(n=args.n), model=args.model, rms=field.rms, psf=field.psf,
            psf_fwhm=field.psf_fwhm, pixel_scale=field.pixel_scale, zeropoint=field.zeropoint,
            command=command,
        )  # fmt: skip
        print(field.name, one["verdict"], flush=True)
        report |= {"model": one["model"], "weights": one["weights"]}
        report["images"][field.name] = one
    write_json(args.output / "results.json", report)
    (args.output / "results.md").write_text(table(report))


if __name__ == "__main__":
    main()
