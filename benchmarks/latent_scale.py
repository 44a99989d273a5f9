"""Width of the latent fields at inference, on held-out scenes: before and after.

python benchmarks/latent_scale.py -o benchmarks/latent_scale.json
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from probablend import __version__
from probablend.checkpoint import find_model, load_tensors, save_tensors
from probablend.emulate.blend import FieldConfig, draw_field
from probablend.emulate.sources import open_source
from probablend.evaluate.calibration import active_pixels, reliability
from probablend.evaluate.samples import no_overlap_share, sample_distances
from probablend.infer.segment import segment
from probablend.survey import get_survey

FIELDS = (("euclid-vis", 200.0, 896), ("lsst-i", 150.0, 512))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("latent_scale.json"))
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 0.75, 0.5, 0.4])
    arguments = parser.parse_args()
    scenes = []
    for name, density, size in FIELDS:
        survey = get_survey(name)
        galaxies = open_source("parametric", survey, "validation", n_galaxies=1500, seed=31)
        config = FieldConfig(size=size, density=density)
        generator = np.random.default_rng([31])
        scenes.append((galaxies, draw_field(galaxies, config, generator=generator)))
    tensors, meta = load_tensors(find_model("field"))
    rows = {}
    for scale in arguments.scales:
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "scaled.safetensors"
            settings = meta["model"] | {"latent_scale": scale}
            save_tensors(weights, tensors, meta | {"model": settings})
            rows[f"{scale:g}"] = score(weights, scenes)
        print(scale, rows[f"{scale:g}"], flush=True)
    report = {
        "command": f"python benchmarks/latent_scale.py -o {arguments.output}",
        "version": __version__,
        "scales": rows,
    }
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def score(weights: Path, scenes: list) -> dict:
    """Calibration and sample distances of held-out fields, and isolated stamps."""
    row = {}
    for galaxies, scene in scenes:
        fwhm = galaxies.survey.psf_fwhm_pixels
        result = segment(scene.image, rms=scene.rms, model=weights, psf_fwhm=fwhm)
        truth = scene.classes == 2
        active = active_pixels(result.p_blend, truth)
        ged, hm = sample_distances(result.samples, scene.classes)
        row[galaxies.survey.name] = {
            "ece_blend_active": reliability(result.p_blend[active], truth[active]).ece,
            "mean_p_blend": float(result.p_blend.mean()),
            "share_of_blend": float(truth.mean()),
            "ged2": ged,
            "hm_iou": hm,
        }
    clear = no_overlap_share(scenes[0][0], n_stamps=30, n_samples=8, seed=5, model=weights)
    return row | {"no_overlap_share": clear}


if __name__ == "__main__":
    main()
