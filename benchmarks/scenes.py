"""Which scenes the intervals of flux hold too much of, beside those that the network learnt from.

python benchmarks/scenes.py -o benchmarks/scenes

Held-out galaxies of each survey in scenes as the training draws them; in the same without anything
but white noise; alone in such; and at the density of the survey's evaluation, near the border of a
scene and far from it. Peaks that are true galaxies count, as learnt: not widened where strange.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from surveys import DENSITIES

from probablend import __version__
from probablend.checkpoint import file_hash, find_model, load_model
from probablend.config import find_config, read_train_config
from probablend.emulate.bank import Bank, draw_bank
from probablend.emulate.compose import draw_batch
from probablend.emulate.scenes import SceneConfig
from probablend.evaluate.record import write_json
from probablend.models.field import FieldNetwork
from probablend.models.field_loss import looked_for, partners
from probablend.models.source import to_physical

SIZES = (128, 384)  # pixels
N_STAMPS = 1000
N_DRAWS = 128
MIN_SNR = 10.0
_PIXELS = 2**20  # that are looked at together
SEED = 6200
CLEAN = {
    "correlated_fraction": 0.0, "depth_fraction": 0.0, "seam_fraction": 0.0,
    "damaged_fraction": 0.0, "sky_fraction": 0.0,
}  # fmt: skip


def kinds(config: SceneConfig, density: float) -> dict[str, SceneConfig]:
    """Scenes by what is said of them."""
    usual = replace(config, crowded_share=0.0)
    clean = replace(usual, **CLEAN)
    natural = replace(
        clean, density_range=(density, density), companion_range=(0.1, 0.1),
        sparse_fraction=0.0, isolated_fraction=0.0, pair_fraction=0.0, centred_fraction=0.0,
    )  # fmt: skip
    return {
        "as in training": usual,
        "clean": clean,
        "clean, one galaxy": replace(clean, isolated_fraction=1.0, pair_fraction=0.0, few=0.0),
    } | {f"clean, a field of {n} pixels": replace(natural, size=n) for n in SIZES}


@torch.inference_mode()
def look(
    network: FieldNetwork, bank: Bank, config: SceneConfig, n: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of about n galaxies that are found: whether the flux is in the interval, and blended."""
    at_once = max(1, _PIXELS // config.size**2)
    inside, blended = [], []
    while sum(map(len, inside)) < n:
        index = len(inside)
        batch = draw_batch(bank, config, n=at_once, seed=SEED, index=index)
        said, kept = network(batch.image, **batch.known), looked_for(batch)
        found = said.candidates(limit=512)
        partner = partners(found, kept)
        own = kept.keep(partner.clamp(min=0))
        good = (partner >= 0) & ~own.is_star & (own.snr > MIN_SNR)
        for place in (found.y, found.x):
            good &= (place > 3) & (place < config.size - 4)
        own = own.keep(good)
        context = said.context(found.scene[good], found.y[good], found.x[good], detected=True)
        likely = network.kinds(context)[:, 0] > 0
        normal = torch.Generator().manual_seed(index)
        base = torch.randn(N_DRAWS, len(own), 10, generator=normal)
        flux = to_physical(network.flow.invert(context, base))[..., 0]
        # Among n draws the truth has n + 1 places.
        below = (flux < own.flux).sum(dim=0) + torch.rand(len(own), generator=normal)
        place = below / (N_DRAWS + 1)
        inside.append(((place - 0.5).abs() < 0.34)[likely])
        blended.append(own.blended[likely])
    return torch.cat(inside).float(), torch.cat(blended)


def run(name: str, network: FieldNetwork, config: SceneConfig, n: int) -> dict[str, Any]:
    """Shares of a survey, by kind of scene."""
    bank = draw_bank(
        "all", [name], "validation", n_galaxies=N_STAMPS, n_stars=60, mag_range=config.mag_range,
        seed=SEED,
    )  # fmt: skip
    said = {}
    for kind, scenes in kinds(config, DENSITIES[name]).items():
        inside, blended = look(network, bank, scenes, n)
        said[kind] = {
            "n": len(inside),
            "coverage68": float(inside.mean()),
            "n_blended": int(blended.sum()),
            "coverage68_blended": float(inside[blended].mean()) if blended.any() else None,
        }
    return said


def table(report: dict[str, Any]) -> str:
    """The shares as Markdown."""
    first = next(iter(report["surveys"].values()))
    lines = [
        f"`{report['command']}`",
        "",
        f"probablend {report['version']}, `{report['model']}` {report['weights']}. Galaxies of S/N "
        f"> {MIN_SNR:g} whose flux is in the 68 % interval, and in brackets how many there are.",
        "",
        f"| | {' | '.join(first)} |",
        "|---" * (1 + len(first)) + "|",
    ]
    for name, said in report["surveys"].items():
        cells = [f"{one['coverage68']:.3f} ({one['n']})" for one in said.values()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="without a suffix")
    parser.add_argument("--model", default="field")
    parser.add_argument("-n", type=int, default=1500, help="galaxies of each kind of scene")
    parser.add_argument("--surveys", nargs="+", default=list(DENSITIES), choices=list(DENSITIES))
    arguments = parser.parse_args()
    network, _ = load_model(arguments.model)
    assert isinstance(network, FieldNetwork)
    network.eval()
    config = read_train_config(find_config("field.toml")).scenes
    report = {
        "command": "python benchmarks/scenes.py " + " ".join(sys.argv[1:]),
        "version": __version__,
        "model": arguments.model,
        "weights": file_hash(find_model(arguments.model)),
        "surveys": {name: run(name, network, config, arguments.n) for name in arguments.surveys},
    }
    write_json(arguments.output.with_suffix(".json"), report)
    arguments.output.with_suffix(".md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
