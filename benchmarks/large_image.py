"""Time and peak memory of segmenting one large image.

python benchmarks/large_image.py --size 4096 -o benchmarks/large_image.json
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

import probablend
from probablend.emulate.blend import FieldConfig, draw_field
from probablend.emulate.sources import open_source
from probablend.survey import get_survey


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("large_image.json"))
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--samples", type=int, default=16)
    arguments = parser.parse_args()
    survey = get_survey("euclid-vis")
    galaxies = open_source("parametric", survey, "test", n_galaxies=500, n_stars=20, seed=5)
    patch = draw_field(galaxies, FieldConfig(size=1024), generator=np.random.default_rng(5))
    n = -(-arguments.size // 1024)
    image = np.tile(patch.image, (n, n))[: arguments.size, : arguments.size].copy()
    began = time.perf_counter()
    result = probablend.segment(image, rms=patch.rms, n_samples=arguments.samples)
    seconds = time.perf_counter() - began
    folder = arguments.output.with_suffix(".products")
    result.write(folder, keep_samples=True, overwrite=True)
    for product in folder.iterdir():
        product.unlink()
    folder.rmdir()
    # Linux counts in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = {
        "command": "python benchmarks/large_image.py " + " ".join(sys.argv[1:]),
        "version": probablend.__version__,
        "threads": torch.get_num_threads(),
        "size": arguments.size,
        "samples": arguments.samples,
        "objects": len(result.catalog),
        "seconds": seconds,
        "megapixels_per_second": image.size / 1e6 / seconds,
        "peak_gigabytes": peak * (1 if sys.platform == "darwin" else 1024) / 1e9,
    }
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
