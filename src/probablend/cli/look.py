"""Look at what was made: the viewer, pictures, the demo."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from probablend.cli.segment import segment_command
from probablend.cli.shared import (
    Extension,
    Model,
    OutputDir,
    Overwrite,
    Seed,
    app,
    err,
    out,
)


@app.command("view")
def view_command(
    target: Annotated[
        Path, typer.Argument(help="Folder of products, or an image to be segmented first.")
    ],
    image: Annotated[
        str | None, typer.Option(help="The image, FILE or FILE[EXT]; else as the products say.")
    ] = None,
    port: Annotated[int, typer.Option(help="0 = any that is free.", min=0, max=65535)] = 0,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address only.")
    ] = False,
) -> None:
    """Look at products in the browser: maps, samples, catalogue, posteriors.

    Only this machine is served, and only who knows the address. Ctrl-C ends it.

    Example: probablend view out --image image.fits
    """
    try:
        from probablend.view.layers import open_view
        from probablend.view.server import serve
    except ModuleNotFoundError as error:
        raise ValueError(
            "the viewer needs starlette and uvicorn: pip install 'probablend[view]'"
        ) from error

    folder = target
    if not target.exists():
        raise FileNotFoundError(f"{target} does not exist: a folder of products or an image")
    if not target.is_dir() or target.suffix == ".zarr":
        folder = target.with_name(f"{target.name.split('.')[0]}-probablend")
        if (folder / "maps.fits").exists():
            raise FileExistsError(f"{target} is segmented already: probablend view {folder}")
        segment_command([target], output=folder, keep_samples=True, keep_posterior=64, regions=True)
        image = image or str(target)
    view = open_view(folder, image)
    out.print("Open this address; Ctrl-C ends the viewer.")
    serve(view, port=port, open_browser=not no_browser, tell=typer.echo)


@app.command("plot")
def plot_command(
    products: Annotated[Path, typer.Argument(help="Folder that 'probablend segment' wrote.")],
    image: Annotated[Path, typer.Option(help="The image that was segmented.")],
    output: OutputDir = Path("pictures"),
    ext: Extension = None,
    id_: Annotated[
        list[int] | None, typer.Option("--id", help="Draw a card of this source; may be repeated.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw footprints, classes, P_BLEND, samples and cards of galaxies.

    Samples need segment --keep-samples, cards --keep-posterior 128.

    Example: probablend plot out --image image.fits --id 7 -o pictures
    """
    from probablend.figures import draw_products

    drawn = draw_products(products, image, output, ext=ext, ids=id_ or [], overwrite=overwrite)
    out.print(f"{', '.join(path.name for path in drawn)} are in {output}")


@app.command("demo")
def demo_command(
    output: OutputDir = Path("probablend-demo"),
    seed: Seed = 0,
    model: Model = "field",
    overwrite: Overwrite = False,
) -> None:
    """Segment a real Hubble image and an emulated Euclid field with known truth.

    Example: probablend demo -o probablend-demo
    """
    began = time.monotonic()
    from probablend.demo import run_demo

    hubble, euclid, scores = run_demo(
        output,
        model=model,
        seed=seed,
        overwrite=overwrite,
        tell=lambda text: err.print(f"… {text}") if not out.quiet else None,
    )
    table = Table(title="emulated Euclid field, truth known")
    for column in ("", "probablend", "sep"):
        table.add_column(column, justify="left" if not column else "right")
    rows = {
        "completeness, all detectable": "completeness",
        "completeness, blended": "completeness_blended",
        "purity": "purity",
        "IoU of the galaxy class": "iou_galaxy",
        "calibration error of P_GALAXY (active pixels)": "ece_galaxy_active",
        "calibration error of P_BLEND (active pixels)": "ece_blend_active",
    }
    for text, key in rows.items():
        values = [scores[name].get(key) for name in ("probablend", "sep")]
        table.add_row(text, *("–" if v is None else f"{v:.3f}" for v in values))
    out.print(table)
    out.print(
        f"Hubble: {len(hubble.catalog)} objects, emulated field: {len(euclid.catalog)}. "
        f"Look at {output}/hubble/quicklook.png and {output}/euclid/quicklook.png. "
        f"The demo took {time.monotonic() - began:.0f} seconds."
    )
