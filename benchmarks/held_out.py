"""Which of two weight files says better what sources are, scene by scene, on scenes of no training.

python benchmarks/held_out.py BEFORE.safetensors field -o benchmarks/held_out

Galaxies, surveys that might be and scenes are drawn as the training of `field` draws them, of the
validation split and with seeds of their own. A difference is one of the same scenes.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from probablend import __version__
from probablend.checkpoint import file_hash, find_model, load_model
from probablend.config import find_config, read_train_config
from probablend.emulate.bank import draw_bank
from probablend.emulate.compose import draw_batch
from probablend.evaluate.record import write_json
from probablend.models.field import FieldNetwork
from probablend.models.field_loss import learn, study

TERMS = ("loss", "existence", "existence_given", "flow_peaks", "flow", "photometry")
N_BANKS, N_BATCHES, BATCH = 3, 16, 8  # of scenes
SEED = 7400
WITH_FITS = 0  # a seed whose first number lets fits be looked at


@torch.inference_mode()
def losses(networks: list[FieldNetwork]) -> torch.Tensor:
    """Terms of the loss of sources, nats per scene, (network, batch, term)."""
    config = read_train_config(find_config("field.toml"))
    rows: list[list[list[float]]] = [[] for _ in networks]
    for bank in range(N_BANKS):
        seed = SEED + bank
        stamps = draw_bank(
            config.bank.source, config.surveys, "validation", n_galaxies=12, n_stars=4,
            mag_range=config.scenes.mag_range, seed=seed,
            n_random_surveys=config.bank.n_random_surveys,
        )  # fmt: skip
        for index in range(N_BATCHES):
            scenes = draw_batch(stamps, config.scenes, n=BATCH, seed=seed, index=index)
            for network, own in zip(networks, rows, strict=True):
                parts = study(network, scenes, generator=torch.Generator().manual_seed(index))
                total = dict.fromkeys(TERMS, 0.0)
                for part in parts:
                    looking = torch.Generator().manual_seed(WITH_FITS)
                    for key, value in learn(network, part, generator=looking).items():
                        if key in total:
                            total[key] += float(value) / BATCH
                own.append([total[key] for key in TERMS])
            print(bank, index, torch.tensor(rows).mean(dim=1)[:, 0].tolist(), flush=True)
    return torch.tensor(rows)


def table(report: dict[str, Any]) -> str:
    """The terms as Markdown."""
    first, second = (f"`{one['model']}` {one['weights']}" for one in report["networks"])
    lines = [
        f"`{report['command']}`",
        "",
        f"Of {report['scenes']} scenes, nats per scene; the loss is a weighted sum of the others, and of stars.",
        "",
        f"| | {first} | {second} | difference |",
        "|---|---|---|---|",
    ]
    for term in TERMS:
        one = report["terms"][term]
        lines.append(
            f"| {term.replace('_', ' ')} | {one['means'][0]:.2f} | {one['means'][1]:.2f} "
            f"| {one['difference']:+.2f} ± {one['error']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs=2, help="names of shipped weights, or .safetensors files")
    parser.add_argument("-o", "--output", type=Path, required=True, help="without a suffix")
    arguments = parser.parse_args()
    networks = []
    for name in arguments.models:
        network, _ = load_model(name)
        assert isinstance(network, FieldNetwork)
        networks.append(network.eval())
    rows = losses(networks)
    apart = rows[1] - rows[0]
    report = {
        "command": "python benchmarks/held_out.py " + " ".join(sys.argv[1:]),
        "version": __version__,
        "networks": [
            {"model": Path(name).stem, "weights": file_hash(find_model(name))}
            for name in arguments.models
        ],
        "scenes": N_BANKS * N_BATCHES * BATCH,
        "terms": {
            term: {
                "means": rows[:, :, k].mean(dim=1).tolist(),
                "difference": float(apart[:, k].mean()),
                "error": float(apart[:, k].std() / len(apart) ** 0.5),
            }
            for k, term in enumerate(TERMS)
        },
    }
    write_json(arguments.output.with_suffix(".json"), report)
    arguments.output.with_suffix(".md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
