"""Time and peak memory of `probablend segment` against size of the image and density of sources.

python benchmarks/scaling.py --sizes 512 1024 2048 4096 8192 19200 -o benchmarks/scaling.json
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from astropy.io import fits
from matplotlib.figure import Figure

import probablend
from probablend.emulate.blend import FieldConfig, Scene, draw_field
from probablend.emulate.sources import open_source
from probablend.evaluate.record import write_json
from probablend.survey import get_survey

PATCH = 1024  # the field that larger images repeat, pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("scaling.json"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--precision", default="single", help="or bfloat16")
    parser.add_argument("--density", type=float, default=160.0, help="where the size changes")
    parser.add_argument(
        "--densities", type=float, nargs="*", default=[10.0, 30.0, 80.0, 160.0, 320.0],
        help="galaxies per arcmin², at the size --density-size",
    )  # fmt: skip
    parser.add_argument("--density-size", type=int, default=2048)
    parser.add_argument("--folder", type=Path, help="where the images and products go, then leave")
    arguments = parser.parse_args()
    survey = get_survey("euclid-vis")
    galaxies = open_source("parametric", survey, "test", n_galaxies=800, n_stars=30, seed=5)

    @cache
    def patch(density: float) -> Scene:
        config = FieldConfig(size=PATCH, density=density)
        return draw_field(galaxies, config, generator=np.random.default_rng(5))

    def run(size: int, density: float) -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            cost = measure(
                Path(folder), patch(density), size, survey, arguments.samples, arguments.precision
            )
        print(json.dumps(cost), flush=True)
        return {"density": density} | cost

    runs = [run(size, arguments.density) for size in arguments.sizes]
    by_density = [run(arguments.density_size, density) for density in arguments.densities]
    report = {
        "command": "python benchmarks/scaling.py " + " ".join(sys.argv[1:]),
        "version": probablend.__version__,
        "threads": torch.get_num_threads(),
        "samples": arguments.samples,
        "precision": arguments.precision,
        "density": arguments.density,
        "runs": runs,
        "density_size": arguments.density_size,
        "runs_by_density": by_density,
    }
    write_json(arguments.output, report)
    if len(runs) > 1 and by_density:
        draw(runs, by_density).savefig(arguments.output.with_suffix(".png"), dpi=100)


def measure(
    folder: Path, patch: Scene, size: int, survey, n_samples: int, precision: str
) -> dict[str, float]:
    """One run of the program, as a user starts it, and what it cost."""
    path = folder / "image.fits"
    write(path, patch.image, size)
    command = [
        sys.executable, "-c", "from probablend.cli import main; main()", "--quiet", "segment",
        str(path), "--rms", str(patch.rms), "--psf-fwhm", str(survey.psf_fwhm_pixels),
        "--background", "none", "--samples", str(n_samples), "--precision", precision,
        "-o", str(folder / "out"),
    ]  # fmt: skip
    began = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"probablend segment ended with status {status}")
    with fits.open(folder / "out" / "catalog.fits") as hdus:
        n = len(hdus[1].data)
    # Linux counts in KiB, macOS in bytes.
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    return {
        "size": size,
        "megapixels": size**2 / 1e6,
        "sources": n,
        "seconds": seconds,
        "megapixels_per_second": size**2 / 1e6 / seconds,
        "peak_gigabytes": peak,
    }


def write(path: Path, patch: np.ndarray, size: int) -> None:
    """A FITS image that repeats a patch, written strip by strip."""
    header = fits.PrimaryHDU(np.zeros((1, 1), np.float32)).header
    header["NAXIS1"] = header["NAXIS2"] = size
    row = np.tile(patch, (1, -(-size // PATCH)))[:, :size].astype(">f4")
    with path.open("wb") as handle:
        handle.write(header.tostring(padding=True).encode("ascii"))
        for first in range(0, size, PATCH):
            handle.write(row[: min(PATCH, size - first)].tobytes())
        handle.truncate(-(-handle.tell() // 2880) * 2880)


def draw(runs: list[dict[str, float]], by_density: list[dict[str, float]]) -> Figure:
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    rows = figure.subplots(2, 2)
    per_arcmin = "galaxies per arcmin²"
    series = ((runs, "megapixels", "image, Mpx"), (by_density, "density", per_arcmin))
    for (left, right), (costs, key, label) in zip(rows, series, strict=True):
        at = [cost[key] for cost in costs]
        left.loglog(at, [cost["seconds"] for cost in costs], "o-")
        right.semilogx(at, [cost["peak_gigabytes"] for cost in costs], "o-")
        left.set(xlabel=label, ylabel="seconds, start to finish")
        right.set(xlabel=label, ylabel="peak memory, GB", ylim=(0, None))
    return figure


if __name__ == "__main__":
    main()
