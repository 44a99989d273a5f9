"""What a training has cost and what more of it would buy.

From the log that a training leaves: scenes, hours and operations, the loss on held-out scenes
against the number of scenes, and the power law through it.

python benchmarks/learning.py runs/field/log.csv --config field-irregular.toml -o field
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import curve_fit
from torch.utils.flop_counter import FlopCounterMode

from probablend import __version__
from probablend.config import TrainConfig, find_config, read_train_config
from probablend.emulate.bank import draw_bank
from probablend.emulate.compose import draw_batch
from probablend.evaluate.record import write_json
from probablend.models import build_model
from probablend.models.start import freeze

_AT_ONCE = 16  # scenes whose operations are counted
SHOWN = ("cross_entropy", "centres", "existence", "flow_peaks", "photometry")
_FEWEST = 6  # validations


def operations(config: TrainConfig) -> float:
    """Floating-point operations of one scene: forward and backward, as torch counts them."""
    bank = draw_bank(
        "parametric", config.surveys[:1], "train", n_galaxies=60, n_stars=4,
        mag_range=config.scenes.mag_range, seed=1,
    )  # fmt: skip
    batch = draw_batch(bank, config.scenes, n=_AT_ONCE, seed=1, index=0)
    model = build_model(config.model_settings).train()
    freeze(model, config.frozen)
    with FlopCounterMode(display=False) as counted:
        terms = model.training_loss(batch, generator=torch.Generator().manual_seed(0), beta=1.0)
        terms["loss"].backward()
    return counted.get_total_flops() / _AT_ONCE


def power_law(scenes: np.ndarray, loss: np.ndarray) -> dict[str, float] | None:
    """Loss = floor + fall · scenes^−exponent through the log; None where that is no law.

    Nor where hardly a validation is left beside the three numbers that are fitted.
    """
    if len(loss) < _FEWEST:
        return None

    def law(n: np.ndarray, floor: float, fall: float, exponent: float) -> np.ndarray:
        return floor + fall * (n / scenes[0]) ** -exponent

    start = (loss[-1], loss[0] - loss[-1], 0.5)
    try:
        (floor, fall, exponent), _ = curve_fit(law, scenes, loss, start, maxfev=20_000)
    except RuntimeError:
        return None
    if not (fall > 0 and exponent > 0.02):
        return None
    now, later = (law(n * scenes[-1], floor, fall, exponent) for n in (1, 10))
    return {"floor": floor, "exponent": exponent, "now": float(now), "ten_times": float(later)}


def table(report: dict[str, Any]) -> str:
    law = report["power_law"]
    lines = [
        f"`{report['command']}`",
        "",
        "| | |",
        "|---|---|",
        f"| scenes of {report['size']}² pixels | {report['scenes']:,} |",
        f"| hours, on the machine that made the log | {report['hours']:.2f} |",
        f"| operations per scene, forward and backward | {report['gflop_per_scene']:.1f} GFLOP |",
        f"| of the whole training | {report['pflop']:.2f} PFLOP |",
        f"| held-out loss, first and last validation | {report['loss'][0]:.1f}, "
        f"{report['loss'][-1]:.1f} nats per scene |",
    ]
    if law:
        lines.append(
            f"| ten times the scenes, by the power law through it | {law['ten_times']:.1f} "
            f"(floor {law['floor']:.1f}, exponent {law['exponent']:.2f}) |"
        )
    else:
        lines.append("| ten times the scenes | the log is no falling power law: it does not tell |")
    return "\n".join(lines) + "\n"


def draw(report: dict[str, Any], rows: list[dict[str, float]]) -> Figure:
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    scenes = np.array(report["scenes_at"]) / 1000
    left.plot(scenes, report["loss"], "o-")
    left.set(xlabel="thousands of scenes", ylabel="held-out loss, nats per scene")
    for key in SHOWN:
        values = np.array([row[key] for row in rows if key in row])
        if len(values) == len(scenes):
            middle.plot(scenes, values - values[-1], "o-", label=key, ms=3)
    middle.set(xlabel="thousands of scenes", ylabel="nats above the last validation")
    middle.legend(fontsize=8)
    for key, label in (
        ("flux_nmad", "NMAD of blended fluxes, mag"),
        ("coverage_error", "distance of 68 % intervals from 0.68"),
    ):
        values = [row.get(key) for row in rows]
        if all(v is not None for v in values):
            right.plot(scenes, values, "o-", label=label, ms=3)
    right.set(xlabel="thousands of scenes", ylim=(0, None))
    right.legend(fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path, help="log.csv of a training")
    parser.add_argument("--config", required=True, help="its TOML file")
    parser.add_argument("-o", "--output", type=Path, default=Path("learning"))
    arguments = parser.parse_args()
    config = read_train_config(find_config(arguments.config))
    with arguments.log.open() as handle:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(handle)]
    per_step = config.optimizer.batch_size * config.optimizer.n_batches
    scenes = np.array([row["step"] for row in rows]) * per_step
    loss = np.array([row["loss"] for row in rows])
    each = operations(config)
    report = {
        "command": "python benchmarks/learning.py " + " ".join(sys.argv[1:]),
        "version": __version__,
        "size": config.scenes.size,
        "scenes": int(scenes[-1]),
        "hours": rows[-1]["seconds"] / 3600,
        "gflop_per_scene": each / 1e9,
        "pflop": each * scenes[-1] / 1e15,
        "scenes_at": scenes.tolist(),
        "loss": loss.tolist(),
        "power_law": power_law(scenes.astype(float), loss),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output.with_suffix(".json"), report)
    arguments.output.with_suffix(".md").write_text(table(report))
    draw(report, rows).savefig(arguments.output.with_suffix(".png"), dpi=100)
    print(table(report))


if __name__ == "__main__":
    main()
