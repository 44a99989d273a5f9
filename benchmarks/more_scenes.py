"""What more scenes would buy a training that learns from what was seen once.

Learns again from a part of what a finished training has seen, as many times from each scene, and
compares the losses on held-out scenes.

python benchmarks/more_scenes.py runs/field --config field.toml -o more-scenes
"""

import argparse
import csv
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.figure import Figure

from probablend import __version__
from probablend.config import TrainConfig, find_config, read_train_config
from probablend.evaluate.record import write_json
from probablend.train import train

SHARES = (1 / 8, 1 / 4, 1 / 2)
SHOWN = ("existence", "flow_peaks", "flow", "flux_nmad", "flux_coverage68", "coverage_error")


def best(folder: Path) -> dict[str, float]:
    """The validation with the lowest loss."""
    with (folder / "log.csv").open() as handle:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(handle)]
    return min(rows, key=lambda row: row["loss"])


def learnt(config: TrainConfig, folder: Path, share: float) -> dict[str, Any]:
    """A training from a part of what one has seen."""
    banks = max(1, round(share * config.lessons / config.bank.refresh_every))
    n_steps = max(2, round(config.optimizer.n_steps * share))
    part = replace(
        config,
        lessons=banks * config.bank.refresh_every,
        # The mean of the weights forgets as much of where it starts.
        optimizer=replace(
            config.optimizer, n_steps=n_steps, average=config.optimizer.average ** (1 / share)
        ),
        validate_every=n_steps - 1,  # the last step, of a rate of nothing, is left out
    )
    with TemporaryDirectory(dir=folder) as own:
        for path in folder.glob("*.safetensors"):
            if path.name.startswith(("lessons-", "bank-", "start")):
                (Path(own) / path.name).symlink_to(path.resolve())
        for number in range(banks, config.lessons // config.bank.refresh_every):
            (Path(own) / f"lessons-{number}.safetensors").unlink(missing_ok=True)
        before = config.start_from.removesuffix(".toml")
        if (folder / before).is_dir():
            (Path(own) / before).symlink_to((folder / before).resolve())
        train(part, Path(own), device="cpu", stop_after=n_steps - 1)
        return {"scenes": part.lessons * part.optimizer.batch_size, **best(Path(own))}


def table(report: dict[str, Any]) -> str:
    lines = [
        f"`{report['command']}`",
        "",
        "| scenes | steps | held-out loss, nats per scene | existence | flow at peaks | flow "
        "| NMAD of blended fluxes, mag | in the 68 % interval | distance from 68 % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["trainings"]:
        cells = [f"{row[key]:.3f}" for key in SHOWN]
        lines.append(
            f"| {row['scenes']:,.0f} | {row['step']:.0f} | {row['loss']:.2f} "
            f"| {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the training")
    parser.add_argument("--config", required=True, help="its TOML file")
    parser.add_argument("-o", "--output", type=Path, required=True, help="without a suffix")
    arguments = parser.parse_args()
    config = read_train_config(find_config(arguments.config))
    rows = [learnt(config, arguments.folder, share) for share in SHARES]
    n = config.lessons * config.optimizer.batch_size
    rows.append({"scenes": n, **best(arguments.folder)})
    report = {
        "command": "python benchmarks/more_scenes.py " + " ".join(sys.argv[1:]),
        "version": __version__,
        "trainings": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output.with_suffix(".json"), report)
    arguments.output.with_suffix(".md").write_text(table(report))
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    ax = figure.subplots()
    ax.plot([row["scenes"] for row in rows], [row["loss"] for row in rows], "o-")
    ax.set(xscale="log", xlabel="scenes", ylabel="held-out loss, nats per scene")
    figure.savefig(arguments.output.with_suffix(".png"), dpi=100)
    print(table(report))


if __name__ == "__main__":
    main()
