"""Emulate blends, get real galaxies for it."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from probablend.cli.shared import (
    MagRange,
    OutputDir,
    Overwrite,
    Seed,
    SourceName,
    SurveyName,
    data_app,
    emulate_app,
    open_galaxies,
    out,
)


@emulate_app.command("pairs")
def emulate_pairs(
    output: OutputDir = Path("pairs"),
    survey: SurveyName = "candels-f160w",
    source: SourceName = "parametric",
    n: Annotated[int, typer.Option("-n", "--n", help="How many.", min=1)] = 10,
    size: Annotated[int, typer.Option(help="Side of a stamp, pixels.", min=16)] = 128,
    mag_range: MagRange = (18.0, 23.0),
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Emulate blends of two galaxies (protocol of arXiv:1905.01324).

    Example: probablend emulate pairs -n 100 --seed 1 -o pairs
    """
    from probablend.emulate.blend import draw_pair
    from probablend.emulate.products import check_new, write_scene

    names = [f"pair_{k:04d}" for k in range(n)]
    check_new(output, names, overwrite=overwrite)
    galaxies = open_galaxies(source, survey, split, seed, mag_range)
    for k, name in enumerate(names):
        generator = np.random.default_rng([seed, k, 1])
        scene = draw_pair(galaxies, generator=generator, mag_range=mag_range, size=size)
        write_scene(scene, output, name, seed=seed, overwrite=overwrite)
    out.print(f"{n} pairs with their truth are in {output}")


@emulate_app.command("field")
def emulate_field(
    output: OutputDir = Path("field"),
    survey: SurveyName = "euclid-vis",
    source: SourceName = "parametric",
    n: Annotated[int, typer.Option("-n", "--n", help="How many.", min=1)] = 1,
    size: Annotated[int, typer.Option(help="Side, pixels.", min=16)] = 1024,
    density: Annotated[float, typer.Option(help="Galaxies per arcmin².", min=0)] = 200.0,
    mag_range: MagRange = (18.5, 26.0),
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Emulate fields at survey density.

    Example: probablend emulate field --survey lsst-i --density 150 --seed 1 -o field
    """
    from probablend.emulate.blend import FieldConfig, draw_field
    from probablend.emulate.products import check_new, write_scene

    names = [f"field_{k:04d}" for k in range(n)]
    check_new(output, names, overwrite=overwrite)
    galaxies = open_galaxies(source, survey, split, seed, mag_range)
    config = FieldConfig(size=size, density=density, mag_range=mag_range)
    for k, name in enumerate(names):
        scene = draw_field(galaxies, config, generator=np.random.default_rng([seed, k, 1]))
        write_scene(scene, output, name, seed=seed, overwrite=overwrite)
    out.print(f"{n} field{'s' * (n > 1)} with exact truth: {output}")


@data_app.command("list")
def data_list() -> None:
    """List the sets, their size and whether they are here.

    Example: probablend data list
    """
    from probablend.data import DATASETS, dataset_folder

    table = Table()
    for column in ("name", "size", "here", "what"):
        table.add_column(column)
    for name, dataset in DATASETS.items():
        folder = dataset_folder(name)
        table.add_row(name, f"{dataset.megabytes} MB", str(folder or "no"), dataset.what)
    out.print(table)


@data_app.command("get")
def data_get(name: Annotated[str, typer.Argument(help="Name of a set.")]) -> None:
    """Download a set into the cache; goes on where an earlier attempt stopped.

    Example: probablend data get candels
    """
    from probablend.data import download

    out.print(f"{name} is in {download(name)}")
