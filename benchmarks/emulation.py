"""Share of a training step that the emulator costs.

python benchmarks/emulation.py -o benchmarks/emulation.json
"""

import argparse
import json
import platform
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from probablend import __version__
from probablend.config import read_train_config
from probablend.emulate.bank import draw_bank
from probablend.emulate.compose import draw_batch
from probablend.models import build_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("emulation.json"))
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    report = {
        "command": f"python benchmarks/emulation.py -o {arguments.output}",
        "version": __version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **measure(arguments.steps),
    }
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def measure(n_steps: int) -> dict[str, dict[str, Any]]:
    """Emulation and training of crowded scenes and of such as the sky has."""
    config = read_train_config(Path(str(files("probablend") / "configs" / "field.toml")))
    began = time.perf_counter()
    bank = draw_bank(
        "parametric",
        config.surveys,
        "train",
        n_galaxies=config.bank.n_galaxies,
        n_stars=config.bank.n_stars,
        mag_range=config.scenes.mag_range,
        seed=config.seed,
    )
    bank_seconds = time.perf_counter() - began
    batch = config.optimizer.batch_size
    phases = {}
    model = build_model(config.model).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters())
    for phase, progress in (("crowded", 0.0), ("survey density", 1.0)):
        emulate = learn = 0.0
        for step in range(n_steps + 2):
            began = time.perf_counter()
            scenes = draw_batch(
                bank, config.scenes, n=batch, seed=1, index=step, progress=progress
            )  # fmt: skip
            middle = time.perf_counter()
            generator = torch.Generator().manual_seed(step)
            terms = model.training_loss(scenes, generator=generator, beta=1.0)
            optimizer.zero_grad()
            (terms["loss"] / config.scenes.size**2).backward()
            optimizer.step()
            end = time.perf_counter()
            if step >= 2:  # the first two warm up
                emulate += middle - began
                learn += end - middle
        phases[phase] = {
            "emulator_ms_per_scene": 1e3 * emulate / n_steps / batch,
            "step_ms_per_scene": 1e3 * (emulate + learn) / n_steps / batch,
            "emulated_scenes_per_second": n_steps * batch / emulate,
            "trained_scenes_per_second": n_steps * batch / (emulate + learn),
            "emulator_share": emulate / (emulate + learn),
        }
    return {
        "bank": {
            "stamps": len(bank.mag), "megabytes": bank.n_bytes / 1e6, "seconds": bank_seconds,
        },
        "phases": phases,
    }  # fmt: skip


if __name__ == "__main__":
    main()
