"""Megapixels and sources per second, ours beside the classical programs, same field, same run.

Also scenes per second of emulation and training, and the share of a step outside of the network.

python benchmarks/speed.py -o benchmarks/speed.json
"""

import argparse
import cProfile
import inspect
import pstats
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from emulation import measure as measure_training

import probablend
from probablend.config import find_config, read_train_config
from probablend.emulate.blend import FieldConfig, draw_field
from probablend.emulate.sources import open_source
from probablend.evaluate.classical import run_photutils, run_sep, run_sextractor
from probablend.evaluate.record import write_json
from probablend.infer import scan, sources
from probablend.infer.footprints import Ellipses
from probablend.models.field import FieldNetwork
from probablend.models.field_distribution import FieldDistribution
from probablend.survey import get_survey

TRAINING = "field-irregular"  # the last whose steps look at scenes
DENSITIES = (30.0, 160.0)  # galaxies per arcmin², to 26 mag


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("speed.json"))
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15, help="of training; 0 leaves it out")
    arguments = parser.parse_args()
    survey = get_survey("euclid-vis")
    galaxies = open_source("parametric", survey, "test", n_galaxies=1500, n_stars=60, seed=5)
    fields = {}
    for density in DENSITIES:
        config = FieldConfig(size=arguments.size, density=density)
        scene = draw_field(galaxies, config, generator=np.random.default_rng(5))
        fields[f"{density:g}"] = time_all(scene, survey, arguments.repeat)
    report = {
        "command": "python benchmarks/speed.py " + " ".join(sys.argv[1:]),
        "version": probablend.__version__,
        "threads": torch.get_num_threads(),
        "size": arguments.size,
        "fields": fields,
        "profile": profile(scene, survey),
        "training": measure_training(TRAINING, arguments.steps)[1] if arguments.steps else {},
    }
    write_json(arguments.output, report)
    arguments.output.with_suffix(".md").write_text(table(report))
    print(table(report))


def time_all(scene, survey, repeat: int) -> dict[str, dict[str, float]]:
    image, rms = scene.image, scene.rms
    width = survey.psf_fwhm_pixels

    def ours(n_samples: int, precision: str = "single") -> int:
        result = probablend.segment(
            image, rms=rms, n_samples=n_samples, psf_fwhm=width, background="none",
            precision=precision,
        )  # fmt: skip
        return len(result.catalog)

    methods: dict[str, Callable[[], int]] = {
        "probablend, 1 sample": lambda: ours(1),
        "probablend, 16 samples": lambda: ours(16),
        "probablend, 16 samples, bfloat16": lambda: ours(16, "bfloat16"),
        "SExtractor": lambda: len(run_sextractor(image, rms)[0]),
        "sep": lambda: len(run_sep(image, rms)[0]),
        "photutils": lambda: len(run_photutils(image, rms)[0]),
    }
    found = {}
    for name, method in methods.items():
        seconds = []
        for _ in range(repeat):
            began = time.perf_counter()
            n = method()
            seconds.append(time.perf_counter() - began)
        best = min(seconds)
        found[name] = {
            "seconds": best,
            "megapixels_per_second": image.size / 1e6 / best,
            "sources": n,
            "sources_per_second": n / best,
        }
    for values in found.values():
        values["speed_over_sextractor"] = found["SExtractor"]["seconds"] / values["seconds"]
    return found


PARTS = {
    "the network": FieldNetwork.forward,
    "drawing class maps": FieldDistribution.draw,
    "looking at positions": scan._seen,
    "fitting profiles": inspect.unwrap(scan.fit_sources),
    "drawing posteriors": inspect.unwrap(sources.draw_parameters),
    "footprints and overlaps": Ellipses.pixels,
}


def profile(scene, survey) -> dict[str, float]:
    """Shares of the time of one run with 16 samples, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run() -> None:
        probablend.segment(
            scene.image, rms=scene.rms, psf_fwhm=survey.psf_fwhm_pixels, background="none"
        )

    run()
    watch = cProfile.Profile()
    watch.runcall(run)
    torch.set_num_threads(threads)
    stats = pstats.Stats(watch).stats  # (file, line, function) → (…, own, with all below, …)
    whole = max(below for _, _, _, below, _ in stats.values())
    shares = {}
    for name, part in PARTS.items():
        code = part.__code__
        _, _, _, below, _ = stats[code.co_filename, code.co_firstlineno, code.co_name]
        shares[name] = below / whole
    return shares | {"the rest": 1 - sum(shares.values())}


def table(report: dict) -> str:
    scenes = read_train_config(find_config(f"{TRAINING}.toml")).scenes
    lines = [f"`{report['command']}`, {report['threads']} threads, {report['size']}² pixels.", ""]
    for density, field in report["fields"].items():
        lines += [
            f"{density} galaxies per arcmin²:", "",
            "| | s | Mpx/s | sources | sources/s | speed / SExtractor |",
            "|---|---|---|---|---|---|",
        ]  # fmt: skip
        lines += [
            f"| {name} | {v['seconds']:.2f} | {v['megapixels_per_second']:.2f} | {v['sources']} "
            f"| {v['sources_per_second']:.0f} | {v['speed_over_sextractor']:.3f} |"
            for name, v in field.items()
        ]
        lines.append("")
    if report["training"]:
        lines += [
            f"Emulation and training, scenes of {scenes.size}² pixels:", "",
            "| scenes | emulated/s | trained/s | share outside of the network |",
            "|---|---|---|---|",
        ]  # fmt: skip
        lines += [
            f"| {phase} | {v['emulated_scenes_per_second']:.0f} "
            f"| {v['trained_scenes_per_second']:.1f} | {100 * v['emulator_share']:.1f} % |"
            for phase, v in report["training"].items()
        ]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
