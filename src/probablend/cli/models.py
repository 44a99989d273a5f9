"""Train networks, list surveys and weights."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from probablend.cli.shared import Device, OutputDir, app, out


@app.command("train")
def train_command(
    config: Annotated[Path, typer.Argument(help="TOML file, or the name of a shipped one.")],
    output: OutputDir = Path("runs"),
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    devices: Annotated[int, typer.Option(help="Processes on each machine.", min=1)] = 1,
    num_nodes: Annotated[int, typer.Option(help="Machines.", min=1)] = 1,
    workers: Annotated[int, typer.Option(help="Processes that draw what comes next.", min=0)] = 0,
) -> None:
    """Train a network; the best weights are written as safetensors.

    Example: probablend train euclid-vis.toml -o runs/euclid-vis
    """
    from probablend.config import find_config, read_train_config
    from probablend.train import train

    settings = read_train_config(find_config(config))
    best = train(
        settings, output, device=device, resume=resume, devices=devices, num_nodes=num_nodes,
        workers=workers,
    )  # fmt: skip
    out.print(f"best weights: {best}")


@app.command("surveys")
def surveys_command() -> None:
    """List the surveys that are known by name, with their depth for a point source.

    Their noise is that of the sky: space telescopes, whose detectors add to it, are shallower.

    Example: probablend surveys
    """
    from probablend.survey import available_surveys, get_survey

    table = Table()
    columns = ("name", "″/px", "PSF FWHM ″", "PSF", "zero point", "gain", "sky rms", "5 σ depth")
    for column in columns:
        words = column in ("name", "PSF")
        table.add_column(column, justify="left" if words else "right", no_wrap=words)
    for name in available_surveys():
        s = get_survey(name)
        table.add_row(
            s.name, f"{s.scale:.4g}", f"{s.psf_fwhm.to_value('arcsec'):.3g}", s.psf_profile,
            f"{s.zeropoint:.2f}", f"{s.gain:g}", f"{s.sky_rms:.3g}",
            f"{s.depth:.1f}",
        )  # fmt: skip
    out.print(table)


@app.command("models")
def models_command() -> None:
    """List the weights that come with the package, and what each is for.

    Example: probablend models
    """
    from probablend.checkpoint import available_models, find_model, load_tensors

    uses = {"field": "segment, measure", "pairs": "evaluate pairs: stamps of two galaxies"}
    table = Table("name", "for")
    for name in available_models():
        _, meta = load_tensors(find_model(name))
        table.add_row(name, uses.get(meta["model"]["kind"], "segment: maps only"))
    out.print(table)
