"""Noise and background that are estimated on crowded fields, beside the truth: three methods.

python benchmarks/sky.py -o benchmarks/sky
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sep
import torch
from photutils.background import Background2D
from surveys import DENSITIES, drizzled

from probablend import __version__
from probablend.background import level_of_empty_pixels
from probablend.emulate.blend import FieldConfig, Scene, draw_field
from probablend.emulate.sources import open_source
from probablend.evaluate.record import write_json
from probablend.prepare import prepare_image
from probablend.survey import get_survey

BOX = 128
LEVELS = (-0.05, 0.0, 0.05)  # of a sky, in units of the noise


def ours(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Noise and background, maps."""
    prepared = prepare_image(image, background="subtract")
    noise = np.broadcast_to(np.asarray(prepared.rms), image.shape)
    return noise, image - prepared.signal * noise


def sextractor(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mesh = sep.Background(image, bw=BOX, bh=BOX, fw=3, fh=3)
    return mesh.rms(), mesh.back()


def photutils(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mesh = Background2D(image, BOX, filter_size=3)
    return mesh.background_rms, mesh.background


def stepped(scene: Scene, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The same sky, its noise half as strong again on one side; and that noise."""
    noise = np.broadcast_to(scene.rms, scene.image.shape).copy()
    noise[:, noise.shape[1] // 2 :] *= 1.5
    image = scene.noiseless + noise * generator.standard_normal(noise.shape)
    return image.astype(np.float32), noise


def run(args: argparse.Namespace) -> dict[str, Any]:
    methods: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
        "probablend": ours, "SExtractor": sextractor, "photutils": photutils,
    }  # fmt: skip
    report: dict[str, Any] = {"command": args.command, "version": __version__, "surveys": {}}
    for name in args.surveys:
        survey = get_survey(name)
        galaxies = open_source("parametric", survey, split="test")
        config = FieldConfig(size=args.size, density=DENSITIES[name])
        generator = np.random.default_rng([args.seed, 11])
        scene = draw_field(galaxies, config, generator=generator)
        flat = np.broadcast_to(scene.rms, scene.image.shape)
        skies = {
            "white": (scene.image, flat),
            "correlated": (
                drizzled(scene, torch.Generator().manual_seed(args.seed)).image, flat,
            ),
            "in two halves": stepped(scene, generator),
        }  # fmt: skip
        report["surveys"][name] = {
            kind: {method: _compare(image, true, estimate) for method, estimate in methods.items()}
            | {"level of empty pixels": _levels(image, true)}
            for kind, (image, true) in skies.items()
        }
    return report


def _levels(image: np.ndarray, true: np.ndarray) -> list[float]:
    """What is found of levels, in units of the noise, which is told."""
    nothing = np.zeros(image.shape, dtype=bool)
    signal = (image / true).astype(np.float32)
    return [level_of_empty_pixels(signal + np.float32(v), nothing) for v in LEVELS]


def _compare(
    image: np.ndarray,
    true: np.ndarray,
    estimate: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> dict[str, float]:
    noise, background = estimate(np.ascontiguousarray(image))
    ratio = noise / true
    return {
        "noise": float(np.median(ratio)),
        "off_by_a_tenth": float(np.mean(np.abs(ratio - 1) > 0.1)),
        "background": float(np.median(background / true)),
    }


def table(report: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    first = next(iter(next(iter(report["surveys"].values())).values()))
    lines = [
        f"`{report['command']}`",
        "",
        f"probablend {report['version']}; fields of {report['size']}² pixels; median of the "
        "estimated noise over the true one, share of the pixels where it is off by more than a "
        "tenth, and median of the estimated background, which is 0, over the noise; and, where the "
        "noise is told, what empty pixels say of a level of −0.05, 0 and +0.05:",
        "",
        "| | noise | " + " | ".join(first) + " |",
        "|---|---|" + "---|" * len(first),
    ]
    for name, skies in report["surveys"].items():
        for kind, said in skies.items():
            cells = [
                ", ".join(f"{level:+.3f}" for level in s)
                if isinstance(s, list)
                else f"{s['noise']:.3f}, {s['off_by_a_tenth']:.0%}, {s['background']:+.3f}"
                for s in said.values()
            ]
            lines.append(f"| `{name}` | {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=8000)
    parser.add_argument("--surveys", nargs="+", default=list(DENSITIES))
    args = parser.parse_args()
    args.command = "python benchmarks/sky.py " + " ".join(sys.argv[1:])
    report = run(args) | {"size": args.size}
    write_json(args.output.with_suffix(".json"), report)
    args.output.with_suffix(".md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
