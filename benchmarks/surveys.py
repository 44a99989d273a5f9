"""One weight file on many surveys, and on correlated noise beside white noise.

python benchmarks/surveys.py -o docs/results/surveys
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probablend import __version__
from probablend.checkpoint import file_hash, find_model
from probablend.emulate.blend import FieldConfig, Scene, draw_field
from probablend.emulate.noise import correlate, gaussian_kernels, noise_rms
from probablend.emulate.sources import open_source
from probablend.emulate.stamps import Galaxies
from probablend.evaluate.field import score_scenes
from probablend.evaluate.methods import Prediction, open_method
from probablend.evaluate.photometry import coverage_text
from probablend.evaluate.record import write_json
from probablend.survey import get_survey

# Galaxies per arcmin² down to 26 mag: about as many per area of the PSF as there is room for.
DENSITIES = {
    "euclid-vis": 200.0,
    "lsst-i": 150.0,
    "hsc-i": 100.0,
    "des-i": 60.0,
    "cosmos-f814w": 200.0,
    "roman-f158": 200.0,
}
LARGER = {"cosmos-f814w": 2}  # small pixels: a field of this many times the side
# Fields of 1024² pixels that hold some two thousand galaxies.
FIELDS = {
    "euclid-vis": 4,
    "lsst-i": 2,
    "hsc-i": 4,
    "des-i": 3,
    "cosmos-f814w": 8,
    "roman-f158": 4,
}
FEWEST = 20  # galaxies, for a scatter
CLASSICAL = "sep"
KERNEL = 0.7  # σ in pixels of what drizzling leaves in the noise


def drizzled(scene: Scene, generator: torch.Generator) -> Scene:
    """The same sky under noise that is correlated, and as strong as before over a source."""
    white = torch.randn(1, *scene.image.shape, generator=generator)
    noise = correlate(white, gaussian_kernels(torch.tensor([KERNEL])))[0].numpy()
    strength = noise_rms(scene.noiseless, scene.survey)
    return replace(scene, image=(scene.noiseless + strength * noise).astype(np.float32))


def draw(galaxies: Galaxies, config: FieldConfig, seed: int, k: int) -> Scene:
    return draw_field(galaxies, config, generator=np.random.default_rng([seed, k, 11]))


def by_signal(said: Prediction, rms: float) -> Prediction:
    """A classical catalogue whose faint end can be cut: by isophotal signal to noise."""
    n_pixels = np.bincount(said.labels.ravel(), minlength=len(said.catalog) + 1)[1:]
    snr = np.asarray(said.catalog["flux_iso"]) / (rms * np.sqrt(np.maximum(n_pixels, 1)))
    ranked = said.catalog["x", "y"].copy()
    ranked["p_source"] = 1 - 4 / np.maximum(snr, 4)  # no probability, but as good for ordering
    return replace(said, candidates=lambda: ranked)


def score(scenes: list[Scene], name: str, seed: int) -> dict[str, Any]:
    method = open_method(name)
    said = [method(s, seed + k) for k, s in enumerate(scenes)]
    if name == CLASSICAL:
        said = [by_signal(one, scene.rms) for one, scene in zip(said, scenes, strict=True)]
    scores = score_scenes(scenes, said).as_dict()
    return {
        key: scores[key]
        for key in (
            "completeness", "completeness_blended", "purity", "at_purity", "photometry",
            "ece_blend_active", "ece_p_blend",
        )
        if key in scores
    }  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {
        "command": args.command,
        "version": __version__,
        "model": args.model,
        "weights": file_hash(find_model(args.model)),
        "surveys": {},
    }
    for name in args.surveys:
        survey = get_survey(name)
        config = FieldConfig(size=args.size * LARGER.get(name, 1), density=DENSITIES[name])
        galaxies = open_source("parametric", survey, split="test")
        make = partial(draw, galaxies, config, args.seed)
        scenes = [make(k) for k in range(args.n or FIELDS[name])]
        entry = {method: score(scenes, method, args.seed) for method in (args.model, CLASSICAL)}
        generator = torch.Generator().manual_seed(args.seed)
        scenes = [drizzled(scene, generator) for scene in scenes]
        entry[f"{args.model}, correlated noise"] = score(scenes, args.model, args.seed)
        report["surveys"][name] = {
            "density": config.density, "size": config.size, "n": len(scenes), "methods": entry,
        }  # fmt: skip
        print(table({**report, "surveys": {name: report["surveys"][name]}}), flush=True)
    return report


def table(report: dict[str, Any]) -> str:
    """The numbers as Markdown."""

    def number(value: float | None, form: str = ".3f") -> str:
        return "–" if value is None else format(value, form)

    lines = [
        f"`{report['command']}`",
        "",
        f"probablend {report['version']}, `{report['model']}` {report['weights']}.",
        "",
        "| | | completeness | blended | purity | blended, at purity ≥ 0.95 "
        "| blended, S/N > 10 | their flux: NMAD, mag "
        "| truths in the 68 / 95 % intervals of flux (worst bin) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in report["surveys"].items():
        for method, s in entry["methods"].items():
            flux = s["photometry"]["flux_blended_snr10"]
            cells = [
                number(s["completeness"]), number(s["completeness_blended"]), number(s["purity"]),
                number((s.get("at_purity") or {}).get("completeness_blended")),
                str(flux["n"]),
                number(flux.get("nmad") if flux["n"] >= FEWEST else None),
                coverage_text(s["photometry"]["coverage"].get("flux")) or "–",
            ]  # fmt: skip
            lines.append("| " + " | ".join([f"`{name}`", method, *cells]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("-n", type=int, help="fields of each survey")
    parser.add_argument("--model", default="field")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=6000)
    parser.add_argument("--surveys", nargs="+", default=list(DENSITIES), choices=list(DENSITIES))
    args = parser.parse_args()
    args.command = "python benchmarks/surveys.py " + " ".join(sys.argv[1:])
    report = run(args)
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(args.output / "results.json", report)
    (args.output / "results.md").write_text(table(report))


if __name__ == "__main__":
    main()
