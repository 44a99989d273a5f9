"""The networks at equal training time, on the same scenes.

python benchmarks/models.py --seconds 900 -o benchmarks/models
"""

import argparse
import json
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from probablend import __version__
from probablend.checkpoint import load_tensors
from probablend.config import TrainConfig, read_train_config
from probablend.emulate.bank import load_bank
from probablend.emulate.blend import FieldConfig, draw_field
from probablend.emulate.compose import draw_batch
from probablend.emulate.sources import open_source
from probablend.evaluate.calibration import active_pixels, reliability
from probablend.evaluate.detection import iou
from probablend.evaluate.record import write_json
from probablend.evaluate.samples import sample_distances
from probablend.infer.segment import segment
from probablend.models import build_model
from probablend.survey import get_survey
from probablend.train import train

KINDS = ("punet", "hpunet", "ssn", "field")
N_SAMPLES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("models"))
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--work", type=Path, default=Path("runs/models"), help="checkpoints")
    arguments = parser.parse_args()
    base = read_train_config(Path(str(files("probablend") / "configs" / "field-base.toml")))
    base = replace(base, surveys=("euclid-vis",), validate_every=10**6, n_validation=64)
    base = replace(base, bank=replace(base.bank, refresh_every=0))
    rows = {}
    for kind in KINDS:
        config = replace(base, name=kind, model={"kind": kind, "channels": base.model["channels"]})
        folder = arguments.work / f"{kind}-{arguments.seconds:.0f}s"
        weights = folder / f"{kind}.safetensors"
        if not weights.exists():
            started = folder / "last.safetensors"
            if started.exists():
                n_steps = load_tensors(started)[1]["config"]["optimizer"]["n_steps"]
            else:
                seconds = step_seconds(config, arguments.work / f"timing-{kind}")
                n_steps = int(arguments.seconds / seconds)
            config = replace(config, optimizer=replace(config.optimizer, n_steps=n_steps))
            train(config, folder, resume=started.exists())
        rows[kind] = score(weights) | {"steps": read_steps(weights)}
        print(kind, rows[kind], flush=True)
    report = {
        "command": f"python benchmarks/models.py --seconds {arguments.seconds:g} "
        f"-o {arguments.output}",
        "version": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": arguments.seconds,
        "models": rows,
    }
    write_json(arguments.output.with_suffix(".json"), report)
    arguments.output.with_suffix(".md").write_text(as_table(report))
    print(as_table(report))


def step_seconds(config: TrainConfig, folder: Path) -> float:
    """Time of a training step, emulator included, in the middle of the curriculum."""
    path = folder / "bank-train-0.safetensors"
    if not path.exists():
        short = replace(config, optimizer=replace(config.optimizer, n_steps=2), n_validation=16)
        train(short, folder)
    bank = load_bank(path)
    model = build_model(config.model_settings).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters())
    times = []
    for step in range(12):
        began = time.perf_counter()
        batch = draw_batch(
            bank, config.scenes, n=config.optimizer.batch_size, seed=1, index=step, progress=0.25
        )
        generator = torch.Generator().manual_seed(step)
        loss = model.training_loss(batch, generator=generator, beta=1.0)["loss"]
        optimizer.zero_grad()
        (loss / config.scenes.size**2).backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
    return float(np.median(times[2:]))


def score(weights: Path) -> dict[str, float]:
    """Samples of two held-out fields against the truth."""
    survey = get_survey("euclid-vis")
    galaxies = open_source("parametric", survey, "test", seed=500)
    distances, p_galaxy, p_blend, truth, seconds = [], [], [], [], 0.0
    for k in range(2):
        scene = draw_field(
            galaxies, FieldConfig(size=768), generator=np.random.default_rng([500, k])
        )
        began = time.perf_counter()
        result = segment(
            scene.image, rms=scene.rms, n_samples=N_SAMPLES, seed=k, model=weights,
            psf_fwhm=survey.psf_fwhm_pixels,
        )  # fmt: skip
        seconds += time.perf_counter() - began
        distances.append(sample_distances(result.samples, scene.classes))
        p_galaxy.append(result.p_galaxy)
        p_blend.append(result.p_blend)
        truth.append(scene.classes)
    classes = np.stack(truth)
    galaxy, blend = np.stack(p_galaxy), np.stack(p_blend)
    ged, hm = np.mean(distances, axis=0)
    values = {"ged2": float(ged), "hm_iou": float(hm)}
    for name, p, t in (("galaxy", galaxy, classes > 0), ("blend", blend, classes == 2)):
        active = active_pixels(p, t)
        values[f"ece_{name}"] = reliability(p[active], t[active]).ece
        values[f"iou_{name}"] = iou(p > 0.5, t)
    values["seconds_per_megapixel_per_sample"] = seconds / (classes.size / 1e6) / N_SAMPLES
    return values


def read_steps(weights: Path) -> int:
    """How many steps a training took."""
    meta = json.loads(weights.with_suffix(".json").read_text())
    return int(meta["config"]["optimizer"]["n_steps"])


def as_table(report: dict) -> str:
    """The rows as Markdown."""
    lines = [
        f"`{report['command']}`",
        "",
        f"{report['seconds']:g} s of training each, two held-out fields of 768² pixels, "
        f"{N_SAMPLES} samples, patches of 128².",
        "",
        "| | steps | GED² | HM-IoU | ECE P_GALAXY | ECE P_BLEND | IoU galaxy | IoU blend "
        "| s / Mpx / sample |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, r in report["models"].items():
        lines.append(
            f"| `{kind}` | {r['steps']} | {r['ged2']:.3f} | {r['hm_iou']:.3f} "
            f"| {r['ece_galaxy']:.3f} | {r['ece_blend']:.3f} | {r['iou_galaxy']:.3f} "
            f"| {r['iou_blend']:.3f} | {r['seconds_per_megapixel_per_sample']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
