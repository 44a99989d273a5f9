"""Share of a training step that the emulator costs.

python benchmarks/emulation.py -o benchmarks/emulation.json
"""

import argparse
import json
import platform
import time
from importlib.resources import files
from pathlib import Path

import torch

from probablend import __version__
from probablend.config import read_train_config
from probablend.emulate.dataset import SceneDataset
from probablend.emulate.sources import open_bank
from probablend.models import build_model
from probablend.survey import get_survey


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("emulation.json"))
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    path = Path(str(files("probablend") / "configs" / "euclid-vis.toml"))
    config = read_train_config(path)
    began = time.perf_counter()
    bank = open_bank(
        "parametric",
        get_survey(config.survey),
        "train",
        n_galaxies=config.bank.n_galaxies,
        n_stars=config.bank.n_stars,
        seed=config.seed,
    )
    bank_seconds = time.perf_counter() - began
    batch = config.optimizer.batch_size
    results = {}
    model = build_model(config.model).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters())
    for phase, curriculum in (("crowded", True), ("survey density", False)):
        scenes = SceneDataset(bank, config.scenes, seed=1, n_scenes=10**6, curriculum=curriculum)
        emulate = learn = 0.0
        for step in range(arguments.steps + 2):
            began = time.perf_counter()
            items = [scenes[step * batch + k] for k in range(batch)]
            image = torch.stack([i for i, _ in items]).to(memory_format=torch.channels_last)
            classes = torch.stack([c for _, c in items])
            middle = time.perf_counter()
            generator = torch.Generator().manual_seed(step)
            terms = model.training_loss(image, classes, generator=generator, beta=1.0)
            optimizer.zero_grad()
            (terms["loss"] / config.scenes.size**2).backward()
            optimizer.step()
            end = time.perf_counter()
            if step >= 2:  # the first two warm up
                emulate += middle - began
                learn += end - middle
        results[phase] = {
            "emulator_ms_per_scene": 1e3 * emulate / arguments.steps / batch,
            "step_ms_per_scene": 1e3 * (emulate + learn) / arguments.steps / batch,
            "emulator_share": emulate / (emulate + learn),
        }
    report = {
        "command": f"python benchmarks/emulation.py -o {arguments.output}",
        "version": __version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "bank": {"galaxies": len(bank.table), "megabytes": bank.n_bytes / 1e6,
                 "seconds": bank_seconds},
        "phases": results,
    }  # fmt: skip
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
