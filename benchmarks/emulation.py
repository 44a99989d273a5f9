"""Share of a training step that the emulator costs.

python benchmarks/emulation.py -o benchmarks/emulation.json

Of the trainings that made the shipped weights, at their first and their last step where these
differ. Banks are drawn anew now and then: that is shared by the scenes made from one.
"""

import argparse
import json
import platform
import shlex
import sys
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from probablend import __version__
from probablend.config import TrainConfig, read_train_config
from probablend.emulate.bank import Bank, draw_bank
from probablend.emulate.compose import draw_batch
from probablend.evaluate.record import write_json
from probablend.models import build_model
from probablend.models.start import freeze

_AT_ONCE = 64  # scenes: batches for a GPU are too large here
# The parts of which `field` was made, but those with fits, whose steps cost more.
CONFIGS = (
    "field-wide", "field-calm", "field-depth", "field-cutouts", "field-sky", "field-large",
    "field-rough", "field-wings", "field-stars", "field-crowds", "field-betas", "field-borders",
    "field-few", "field-irregular",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("emulation.json"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS))
    arguments = parser.parse_args()
    measured = [measure(name, arguments.steps) for name in arguments.configs]
    report = {
        "command": "python benchmarks/emulation.py " + shlex.join(sys.argv[1:]),
        "version": __version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "steps": arguments.steps,
        "bank": {"megabytes": max(bank["megabytes"] for bank, _ in measured)},
        "banks": dict(zip(arguments.configs, (bank for bank, _ in measured), strict=True)),
        "phases": {name: phase for _, phases in measured for name, phase in phases.items()},
    }
    write_json(arguments.output, report)
    print(json.dumps(report, indent=2))


def measure(name: str, n_steps: int) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """The bank of a training, and what its steps cost."""
    config = read_train_config(Path(str(files("probablend") / "configs" / f"{name}.toml")))
    began = time.perf_counter()
    bank = draw_bank(
        config.bank.source,
        config.surveys,
        "train",
        n_galaxies=config.bank.n_galaxies,
        n_stars=config.bank.n_stars,
        mag_range=config.scenes.mag_range,
        seed=config.seed,
        n_random_surveys=config.bank.n_random_surveys,
    )
    bank_seconds = time.perf_counter() - began
    steps = config.bank.refresh_every or config.optimizer.n_steps
    bank_ms = 1e3 * bank_seconds / (steps * config.optimizer.batch_size)
    few = replace(config.optimizer, batch_size=min(_AT_ONCE, config.optimizer.batch_size))
    config = replace(config, optimizer=few)
    phases = {name: 1.0}
    if config.scenes.crowded_share:
        phases = {f"{name}, first steps": 0.0, f"{name}, last steps": 1.0}
    return {
        "stamps": len(bank.mag),
        "megabytes": bank.n_bytes / 1e6,
        "seconds": bank_seconds,
        "refresh_every": config.bank.refresh_every,
    }, {
        phase: costs(*step_seconds(config, bank, n_steps, progress), config, bank_ms)
        for phase, progress in phases.items()
    }


def step_seconds(
    config: TrainConfig, bank: Bank, n_steps: int, progress: float
) -> tuple[float, float]:
    """Mean seconds of a step: in the emulator, and in the network."""
    model = build_model(config.model_settings).to(memory_format=torch.channels_last).train()
    frozen = freeze(model, config.frozen)
    for part in frozen:
        part.eval()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    emulate = learn = 0.0
    for step in range(n_steps + 2):
        began = time.perf_counter()
        scenes = draw_batch(
            bank, config.scenes, n=config.optimizer.batch_size, seed=1, index=step,
            progress=progress,
        )  # fmt: skip
        middle = time.perf_counter()
        generator = torch.Generator().manual_seed(step)
        terms = model.training_loss(scenes, generator=generator, beta=1.0)
        optimizer.zero_grad()
        (terms["loss"] / config.scenes.size**2).backward()
        optimizer.step()
        if step >= 2:  # the first two warm up
            emulate += middle - began
            learn += time.perf_counter() - middle
    return emulate / n_steps, learn / n_steps


def costs(emulate: float, learn: float, config: TrainConfig, bank_ms: float) -> dict[str, float]:
    """Of one scene; the redrawing of the bank stands beside the emulator that uses it."""
    batch = config.optimizer.batch_size
    emulator, network = (1e3 * seconds / batch for seconds in (emulate, learn))
    return {
        "emulator_ms_per_scene": emulator,
        "bank_ms_per_scene": bank_ms,
        "step_ms_per_scene": emulator + network,
        "emulated_scenes_per_second": 1e3 / emulator,
        "trained_scenes_per_second": 1e3 / (emulator + network),
        "emulator_share": emulator / (emulator + network),
        "share_with_bank": (emulator + bank_ms) / (emulator + bank_ms + network),
    }


if __name__ == "__main__":
    main()
