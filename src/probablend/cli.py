"""The command line: one sub-command per stage, each a few lines over the library."""

import errno
import inspect
import json
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from probablend._version import __version__

app = typer.Typer(
    help="Probabilistic segmentation of blended galaxies.\n\n"
    "Example: probablend segment image.fits -o out",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
emulate_app = typer.Typer(
    help="Emulate blends with exact truth.\n\nExample: probablend emulate field -o field",
    no_args_is_help=True,
)
data_app = typer.Typer(
    help="Sets of real galaxies.\n\nExample: probablend data get candels", no_args_is_help=True
)
evaluate_app = typer.Typer(
    help="Score against a known truth.\n\nExample: probablend evaluate field -n 4 -o evaluation\n\n"
    "Score and plot a folder of fields or of pairs again: probablend evaluate --from evaluation",
    no_args_is_help=True,
)
app.add_typer(emulate_app, name="emulate")
app.add_typer(data_app, name="data")
app.add_typer(evaluate_app, name="evaluate")

out = Console()
err = Console(stderr=True)
_LAST_SEED = 2**62

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
OutputDir = Annotated[Path, typer.Option("-o", "--output", help="Folder for the products.")]


def _seed(seed: int) -> int:
    if seed > _LAST_SEED:  # as a maximum of the option it would fill the help with digits
        raise typer.BadParameter(f"{seed} is larger than {_LAST_SEED}, the last one")
    return seed


Seed = Annotated[int, typer.Option(help="Same seed, same result.", min=0, callback=_seed)]
MagRange = Annotated[tuple[float, float], typer.Option(help="Brightest and faintest magnitude.")]
Samples = Annotated[int, typer.Option("--samples", help="Posterior samples.")]
Model = Annotated[str, typer.Option(help="Name of shipped weights or a .safetensors file.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Extension = Annotated[str | None, typer.Option(help="FITS extension, number or name.")]
Rms = Annotated[str | None, typer.Option(help="Noise per pixel: a number, FILE or FILE[EXT].")]
Weight = Annotated[
    str | None, typer.Option(help="Inverse variance, FILE or FILE[EXT]; zero = missing.")
]
Variance = Annotated[str | None, typer.Option(help="Variance, FILE or FILE[EXT]; zero = missing.")]
FlagBits = Annotated[int, typer.Option(help="Bits of --mask that count; -1 = any.")]
Mask = Annotated[str | None, typer.Option(help="FILE or FILE[EXT], non-zero = do not use.")]
Background = Annotated[str, typer.Option(help="auto, subtract or none.")]
PsfFwhm = Annotated[
    str | None,
    typer.Option(help="FWHM of the PSF, pixels: a number or FILE; else from the image's stars."),
]
Zeropoint = Annotated[
    float | None, typer.Option(help="AB magnitude of one count; else from the header.")
]
Saturation = Annotated[
    float | None,
    typer.Option(help="Level from which pixels are saturated; else SATURATE of the header."),
]
Columns = Annotated[str, typer.Option(help="Names in the catalogue: probablend or sextractor.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier products.")]
SurveyName = Annotated[str, typer.Option(help="Name or TOML file; see 'probablend surveys'.")]
Methods = Annotated[
    str | None,
    typer.Option(
        help="Commas between: models, weight files, sep, sep-coldhot, sextractor, "
        "sextractor-coldhot, photutils; with pairs also field@truth, at the true positions."
    ),
]
From = Annotated[
    Path | None, typer.Option("--from", help="Score and plot this folder again; run nothing.")
]
SourceName = Annotated[str, typer.Option(help="parametric, structured, candels or cosmos.")]


def _version(show: bool) -> None:
    if show:
        out.print(f"probablend {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Version.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    handler = RichHandler(console=err, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    _speak(quiet=quiet)


def _speak(*, quiet: bool) -> None:
    logging.getLogger("probablend").setLevel(logging.ERROR if quiet else logging.INFO)
    out.quiet = quiet


def _with_quiet(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that takes ``--quiet`` too: it goes before the command's name and after it."""

    @wraps(command)
    def quietly(*, quiet: bool, **options: Any) -> Any:
        if quiet:
            _speak(quiet=True)
        return command(**options)

    known = inspect.signature(command)
    option = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False)
    parameters = [*known.parameters.values(), option.replace(annotation=Quiet)]
    quietly.__signature__ = known.replace(parameters=parameters)  # type: ignore[attr-defined]
    quietly.__annotations__ = command.__annotations__ | {"quiet": Quiet}
    return quietly


def _read_inputs(
    image: Path,
    ext: str | None,
    rms: str | None,
    mask: str | None,
    weight: str | None = None,
    variance: str | None = None,
    flag_bits: int = -1,
) -> tuple[Any, Any, np.ndarray | None]:
    """Image, noise and mask, as a user names them."""
    from probablend.images import (
        ImageFile,
        masked_pixels,
        read_image,
        rms_of_variance,
        rms_of_weight,
    )
    from probablend.infer.plan import one_noise

    one_noise(rms, weight, variance)
    data = read_image(image, ext=ext)
    noise = _number_or_map(rms)
    if weight is not None:
        noise = rms_of_weight(read_image(weight).data)
    if variance is not None:
        noise = rms_of_variance(read_image(variance).data)
    bad = None
    if mask is not None:
        bad = masked_pixels(ImageFile(mask).read_all(exact=True), flag_bits)
    return data, noise, bad


@app.command("segment")
def segment_command(
    images: Annotated[list[Path], typer.Argument(help="FITS (or PNG, JPEG) images.")],
    output: OutputDir = Path("probablend-out"),
    ext: Extension = None,
    rms: Rms = None,
    mask: Mask = None,
    background: Background = "auto",
    samples: Samples = 16,
    seed: Seed = 0,
    model: Model = "field",
    device: Device = "auto",
    precision: Annotated[
        str, typer.Option(help="single, or bfloat16: faster, a little less exact.")
    ] = "single",
    psf_fwhm: PsfFwhm = None,
    zeropoint: Zeropoint = None,
    saturation: Saturation = None,
    min_p_source: Annotated[
        float, typer.Option(help="Leave out detections less probable than this.")
    ] = 0.5,
    catalog_format: Annotated[
        str, typer.Option(help="fits, ecsv, parquet, or hats: Parquet by place on the sky.")
    ] = "fits",
    columns: Columns = "probablend",
    maps_format: Annotated[str, typer.Option(help="fits, or zarr: compressed.")] = "fits",
    regions: Annotated[
        bool, typer.Option("--regions", help="Write sources.reg, footprints for ds9.")
    ] = False,
    keep_posterior: Annotated[
        int, typer.Option(help="Joint posterior draws per source to write.", min=0)
    ] = 0,
    keep_samples: Annotated[
        bool, typer.Option("--keep-samples", help="Write samples.fits too.")
    ] = False,
    weight: Weight = None,
    variance: Variance = None,
    flag_bits: FlagBits = -1,
    cutouts: Annotated[
        Path | None,
        typer.Option(help="Catalogue of positions: look only around them; no maps."),
    ] = None,
    cutout_size: Annotated[
        int, typer.Option(help="Side of the square around each position, pixels.", min=1)
    ] = 128,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was killed.")
    ] = False,
    dask: Annotated[
        str | None, typer.Option(help="Dask scheduler, or local:N for N processes here.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Segment images: probability maps, a catalogue with posteriors and a quicklook.

    An image of more than 6.6 Mpx is processed block by block, in memory that does not grow with it;
    a run that was killed goes on with --resume. Of several images each gets a folder of its own,
    and in --rms, --weight, --variance, --mask and --psf-fwhm {} stands for the image without its
    ending.

    Example: probablend segment image.fits --rms 0.01 -o out

    Example: probablend segment tiles/*.fits --weight '{}.weight.fits' --dask local:4 -o out
    """
    from probablend.checkpoint import knows_sources, pixels_only
    from probablend.infer.many import stem, stream_many
    from probablend.infer.outputs import SUMMARY, check_format, check_output
    from probablend.infer.plan import StreamSettings, fingerprint
    from probablend.infer.segment import segment
    from probablend.infer.sources import N_DRAWS
    from probablend.infer.stream import stream, too_large

    check_output(output, overwrite=overwrite or resume)
    check_format(catalog_format, columns)
    if (regions or keep_posterior) and not knows_sources(model):
        raise pixels_only(model)
    if keep_posterior > N_DRAWS:
        raise ValueError(f"at most {N_DRAWS} draws can be kept; got {keep_posterior}")

    def of(text: str | None, image: Path) -> str | None:
        return None if text is None else text.replace("{}", stem(str(image)))

    settings = [
        StreamSettings(
            image=str(image),
            ext=ext,
            rms=_number_or_file(of(rms, image)),
            weight=of(weight, image),
            variance=of(variance, image),
            mask=of(mask, image),
            flag_bits=flag_bits,
            background=background,
            n_samples=samples,
            seed=seed,
            model=model,
            device=device,
            precision=precision,
            psf_fwhm=_number_or_file(of(psf_fwhm, image)),
            zeropoint=zeropoint,
            saturation=saturation,
            min_p_source=min_p_source,
            keep_posterior=keep_posterior,
            keep_samples=keep_samples,
            maps_format=maps_format,
            cutouts=None if cutouts is None else str(cutouts),
            cutout_size=cutout_size,
        )
        for image in images
    ]
    parts = cutouts is not None or resume or dask is not None or maps_format != "fits"
    began = time.monotonic()
    with _progress("images" if len(images) > 1 else "Mpx") as show:
        if len(images) > 1 or parts or (knows_sources(model) and too_large(images[0], ext)):
            how: dict[str, Any] = {
                "resume": resume,
                "overwrite": overwrite,
                "catalog_format": catalog_format,
                "columns": columns,
                "regions": regions,
                "dask": dask,
                "progress": show,
            }
            if len(images) > 1:
                _tell_many(stream_many(settings, output, **how), output)
            else:
                _tell(stream(settings[0], output, **how), output)
            return
        image = images[0]
        one = settings[0].absolute()
        about: dict[str, Any] = {"image": one.open().name, "settings": fingerprint(one)}
        data, noise, bad = _read_inputs(
            image,
            ext,
            of(rms, image),
            of(mask, image),
            of(weight, image),
            of(variance, image),
            flag_bits,
        )
        result = segment(
            data,
            rms=noise,
            mask=bad,
            n_samples=samples,
            seed=seed,
            model=model,
            device=device,
            precision=precision,
            background=background,
            psf_fwhm=_number_or_map(of(psf_fwhm, image)),
            zeropoint=zeropoint,
            saturation=saturation,
            min_p_source=min_p_source,
            progress=show,
        )
    about["seconds_this_time"] = round(time.monotonic() - began, 3)
    result.write(
        output,
        keep_samples=keep_samples,
        keep_posterior=keep_posterior,
        regions=regions,
        catalog_format=catalog_format,
        columns=columns,
        overwrite=overwrite,
        about=about,
    )
    _tell(json.loads((output / SUMMARY).read_text()), output)


@contextmanager
def _progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar, and what moves it."""
    scale = 1e6 if unit == "Mpx" else 1.0
    digits = ".1f" if unit == "Mpx" else ".0f"
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(f"{{task.completed:{digits}}} of {{task.total:{digits}}} {unit}"),
        _RateColumn(unit),
        TimeRemainingColumn(),
        console=err,
        disable=out.quiet or not err.is_terminal,
        transient=True,
    ) as progress:
        task = progress.add_task("segment", total=0.0)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done / scale, total=total / scale)

        yield show


def _tell_many(summary: dict[str, Any], output: Path) -> None:
    out.print(
        f"{summary['images']} images, {summary['objects']} objects, {summary['blended']} of them "
        f"with p_blend > 0.5; a folder for each image and the catalogue of all are in {output}"
    )
    if failed := summary["failed"]:
        first, why = next(iter(failed.items()))
        raise ValueError(
            f"{len(failed)} images could not be used, see {output / 'summary.json'}: the first is "
            f"{first}: {why}"
        )


def _tell(summary: dict[str, Any], output: Path) -> None:
    *most, last = summary["products"]
    written = f"{', '.join(most)} and {last} are" if most else f"{last} is"
    out.print(
        f"{summary['objects']} objects, {summary['blended']} of them with p_blend > 0.5; "
        f"{written} in {output}"
    )


def _number_or_file(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _number_or_map(text: str | None) -> float | np.ndarray | None:
    from probablend.images import number_or_map

    return None if text is None else number_or_map(text)


class _RateColumn(ProgressColumn):
    """What is done per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.2f} {self.unit}/s")


@app.command("measure")
def measure_command(
    image: Annotated[Path, typer.Argument(help="FITS image.")],
    positions: Annotated[
        Path, typer.Option(help="Catalogue with x, y (first pixel at 0) or ra, dec (degrees).")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Catalogue: .fits, .ecsv or .parquet.")
    ] = Path("measured.fits"),
    ext: Extension = None,
    rms: Rms = None,
    mask: Mask = None,
    weight: Weight = None,
    variance: Variance = None,
    flag_bits: FlagBits = -1,
    background: Background = "auto",
    samples: Samples = 16,
    seed: Seed = 0,
    model: Model = "field",
    device: Device = "auto",
    psf_fwhm: PsfFwhm = None,
    zeropoint: Zeropoint = None,
    saturation: Saturation = None,
    columns: Columns = "probablend",
    overwrite: Overwrite = False,
) -> None:
    """Measure sources at given positions: one row per position, in the same order.

    A flux is that of a source, given that there is one, and positive: where p_source is small it is
    that of the faintest ones, not zero within its error.

    Example: probablend measure image.fits --positions mine.csv -o measured.fits
    """
    from probablend.catalog import write_table
    from probablend.infer.measure import measure, read_positions
    from probablend.infer.outputs import check_format, check_output
    from probablend.sextractor import named_columns

    check_format(output.suffix.removeprefix("."), columns)
    if output.is_dir():
        raise FileExistsError(f"{output} is a folder; a file is wanted")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists already: --overwrite replaces it")
    check_output(output.parent, overwrite=True)
    table = read_positions(positions)
    data, noise, bad = _read_inputs(image, ext, rms, mask, weight, variance, flag_bits)
    result = measure(
        data, table, rms=noise, mask=bad, background=background, n_samples=samples, seed=seed,
        model=model, device=device, psf_fwhm=_number_or_map(psf_fwhm), zeropoint=zeropoint,
        saturation=saturation,
    )  # fmt: skip
    write_table(named_columns(result, columns), output)
    n_measured = int(np.isfinite(result["flux"]).sum())
    out.print(f"measured {n_measured} of {len(result)} positions; the catalogue is {output}")


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


@app.command("train")
def train_command(
    config: Annotated[Path, typer.Argument(help="TOML file, or the name of a shipped one.")],
    output: OutputDir = Path("runs"),
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    devices: Annotated[int, typer.Option(help="Processes on each machine.", min=1)] = 1,
    num_nodes: Annotated[int, typer.Option(help="Machines.", min=1)] = 1,
    workers: Annotated[
        int, typer.Option(help="Processes that draw the next galaxies meanwhile.", min=0)
    ] = 0,
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
    """List the surveys that are known by name.

    Example: probablend surveys
    """
    from probablend.survey import available_surveys, get_survey

    table = Table()
    for column in ("name", "″/pixel", "PSF FWHM ″", "PSF", "zero point", "gain", "sky rms"):
        words = column in ("name", "PSF")
        table.add_column(column, justify="left" if words else "right", no_wrap=words)
    for name in available_surveys():
        s = get_survey(name)
        table.add_row(
            s.name, f"{s.scale:.4g}", f"{s.psf_fwhm.to_value('arcsec'):.3g}", s.psf_profile,
            f"{s.zeropoint:.2f}", f"{s.gain:g}", f"{s.sky_rms:.4g}",
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

    galaxies = _open_source(source, survey, split, seed, mag_range)
    for k in range(n):
        generator = np.random.default_rng([seed, k, 1])
        scene = draw_pair(galaxies, generator=generator, mag_range=mag_range, size=size)
        _write(scene, output, f"pair_{k:04d}", seed, overwrite)
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

    galaxies = _open_source(source, survey, split, seed, mag_range)
    config = FieldConfig(size=size, density=density, mag_range=mag_range)
    for k in range(n):
        scene = draw_field(galaxies, config, generator=np.random.default_rng([seed, k, 1]))
        _write(scene, output, f"field_{k:04d}", seed, overwrite)
    out.print(f"{n} field{'s' * (n > 1)} with exact truth: {output}")


def _open_source(
    source: str, survey: str, split: str, seed: int, mag_range: tuple[float, float]
) -> Any:
    from probablend.emulate.sources import open_source
    from probablend.survey import get_survey

    return open_source(
        source,
        get_survey(survey),
        split,  # type: ignore[arg-type]
        mag_range=mag_range,
        seed=seed,
    )


def _write(scene: Any, output: Path, name: str, seed: int, overwrite: bool) -> None:
    from probablend.emulate.products import write_scene

    write_scene(scene, output, name, seed=seed, overwrite=overwrite)


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


@evaluate_app.callback(invoke_without_command=True)
def _evaluate(context: typer.Context, from_: From = None, quiet: Quiet = False) -> None:
    if quiet:
        _speak(quiet=True)
    if from_ is None:
        return
    if context.invoked_subcommand is not None:
        raise ValueError(f"--from goes after {context.invoked_subcommand}, or without it")

    from probablend.evaluate import field, pairs
    from probablend.evaluate.record import kind_of

    module = {"fields": field, "pairs": pairs}[kind_of(from_)]
    out.print(module.results_table(module.read_results(from_)), markup=False, highlight=False)


@evaluate_app.command("field")
def evaluate_field_command(
    output: OutputDir = Path("evaluation"),
    methods: Methods = None,
    survey: SurveyName = "euclid-vis",
    source: SourceName = "parametric",
    n: Annotated[int, typer.Option("-n", "--n", help="How many fields.", min=1)] = 4,
    size: Annotated[int, typer.Option(help="Side, pixels.", min=64)] = 1024,
    density: Annotated[float, typer.Option(help="Galaxies per arcmin².", min=0)] = 200.0,
    mag_range: MagRange = (18.5, 26.0),
    samples: Samples = 16,
    stamps: Annotated[int, typer.Option(help="Empty and isolated stamps.", min=1)] = 100,
    seed: Seed = 1000,
    from_: From = None,
    scene: Annotated[
        Path | None, typer.Option(help="Emulated NAME.fits, its truth beside it; draws no field.")
    ] = None,
    catalog: Annotated[
        Path | None, typer.Option(help="Your own catalogue of --scene, to be scored.")
    ] = None,
    maps: Annotated[
        Path | None, typer.Option(help="Your own P_GALAXY, P_BLEND, LABELS of --scene.")
    ] = None,
) -> None:
    """Score methods on emulated fields of held-out galaxies.

    What a method scores is kept: run again, the command goes on with the next method.

    Example: probablend evaluate field -n 4 --seed 1000 -o evaluation

    Your own results: probablend evaluate field --scene field/field_0000.fits --catalog my.fits
    """
    from probablend.emulate.blend import FieldConfig
    from probablend.emulate.products import read_scene
    from probablend.evaluate.field import (
        FieldsConfig,
        evaluate_fields,
        evaluate_scene,
        read_results,
        results_table,
    )
    from probablend.evaluate.methods import open_method, read_method

    command = "probablend " + shlex.join(sys.argv[1:])
    names = _names(methods) or ["field", "sep"]
    if (catalog or maps) and scene is None:
        raise ValueError("--catalog and --maps are of an emulated scene: name it with --scene")
    if maps and catalog is None:
        raise ValueError("--maps go with a --catalog of the same scene")
    if from_ is not None:
        results = read_results(from_)
    elif scene is not None:
        if catalog is not None and not methods:
            names = []
        opened = {m: open_method(m, n_samples=samples) for m in names}
        if catalog is not None:
            if catalog.stem in opened:
                raise ValueError(f"{catalog} goes by the name of a method: rename it")
            opened[catalog.stem] = read_method(catalog, maps)
        results = evaluate_scene(read_scene(scene), opened, output, seed=seed, command=command)
    else:
        config = FieldsConfig(
            survey=survey,
            source=source,
            n=n,
            field=FieldConfig(size=size, density=density, mag_range=mag_range),
            n_samples=samples,
            n_stamps=stamps,
            seed=seed,
        )
        galaxies = _open_source(source, survey, "test", seed, mag_range)
        with _method_bars() as show:
            results = evaluate_fields(
                galaxies, config, names, output, command=command, progress=show
            )
    out.print(results_table(results), markup=False, highlight=False)


def _names(methods: str | None) -> list[str]:
    return [m.strip() for m in (methods or "").split(",") if m.strip()]


@contextmanager
def _method_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for every method that is told of."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=out.quiet or not err.is_terminal,
    ) as progress:
        tasks: dict[str, Any] = {}

        def show(method: str, done: int, total: int) -> None:
            if method not in tasks:
                tasks[method] = progress.add_task(method, total=total)
            progress.update(tasks[method], completed=done)

        yield show


@evaluate_app.command("pairs")
def evaluate_pairs_command(
    output: OutputDir = Path("evaluation-pairs"),
    methods: Methods = None,
    survey: SurveyName = "candels-f160w",
    source: Annotated[
        str | None,
        typer.Option(
            help="parametric, structured, candels or cosmos; else candels if its galaxies are here "
            "and fit the survey, or parametric."
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--n", help="How many pairs.", min=1)] = 1000,
    mag_range: MagRange = (18.0, 23.0),
    samples: Samples = 4,
    seed: Seed = 3000,
    from_: From = None,
) -> None:
    """Score methods on blends of two galaxies (protocol of arXiv:1905.01324).

    What a method says is kept: run again, the command goes on with the next method.

    Example: probablend evaluate pairs -n 1000 --methods field,sep -o evaluation-pairs
    """
    from probablend.emulate.sources import default_source
    from probablend.evaluate.methods import default_methods
    from probablend.evaluate.pairs import PairsConfig, evaluate_pairs, read_results, results_table
    from probablend.survey import get_survey

    if from_ is not None:
        results = read_results(from_)
    else:
        source = source or default_source(get_survey(survey))
        config = PairsConfig(
            survey=survey, source=source, n=n, mag_range=mag_range, n_samples=samples, seed=seed
        )
        galaxies = _open_source(source, survey, "test", seed, mag_range)
        with _method_bars() as show:
            results = evaluate_pairs(
                galaxies,
                config,
                _names(methods) or default_methods(),
                output,
                command="probablend " + shlex.join(sys.argv[1:]),
                progress=show,
            )
    out.print(results_table(results), markup=False, highlight=False)


@evaluate_app.command("inject")
def evaluate_inject_command(
    image: Annotated[Path, typer.Argument(help="Your FITS image.")],
    output: OutputDir = Path("injection"),
    ext: Extension = None,
    rms: Rms = None,
    mask: Mask = None,
    weight: Weight = None,
    variance: Variance = None,
    flag_bits: FlagBits = -1,
    background: Background = "auto",
    n: Annotated[int, typer.Option("-n", "--n", help="Galaxies to inject.", min=1)] = 400,
    companions: Annotated[float, typer.Option(help="Share put beside real sources.")] = 0.5,
    seed: Seed = 0,
    model: Model = "field",
    psf_fwhm: Annotated[
        float | None, typer.Option(help="FWHM of the PSF, pixels; else from the image's stars.")
    ] = None,
    pixel_scale: Annotated[
        float | None, typer.Option(help="Arcseconds per pixel; else from the WCS.")
    ] = None,
    zeropoint: Zeropoint = None,
    gain: Annotated[float | None, typer.Option(help="Electrons per count.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Prove the model on your own image: inject galaxies into it, and turn it negative.

    Example: probablend evaluate inject image.fits -o injection
    """
    from probablend.evaluate.inject import InjectionConfig, inject, injection_table

    if (output / "inject.json").exists() and not overwrite:
        raise FileExistsError(f"{output} holds a test already: --overwrite replaces it")
    data, noise, bad = _read_inputs(image, ext, rms, mask, weight, variance, flag_bits)
    config = InjectionConfig(n=n, companions=companions, seed=seed)
    with _method_bars() as show:
        report = inject(
            data,
            output,
            config,
            rms=noise,
            mask=bad,
            background=background,
            model=model,
            psf_fwhm=psf_fwhm,
            pixel_scale=pixel_scale,
            zeropoint=zeropoint,
            gain=gain,
            command="probablend " + shlex.join(sys.argv[1:]),
            progress=lambda done, total: show("injected", done, total),
        )
    out.print(injection_table(report), markup=False, highlight=False)


@evaluate_app.command("mcmc")
def evaluate_mcmc_command(
    output: OutputDir = Path("evaluation-mcmc"),
    survey: SurveyName = "euclid-vis",
    n: Annotated[int, typer.Option("-n", "--n", help="How many blends.", min=1)] = 20,
    steps: Annotated[int, typer.Option(help="Steps of the reference's walkers.", min=12)] = 6000,
    seed: Seed = 4000,
    model: Model = "field",
) -> None:
    """Put posteriors of two Sérsic galaxies beside those of a long MCMC run.

    Blends that are done are kept: run again, the command goes on with the next one.

    Example: probablend evaluate mcmc -n 20 -o evaluation-mcmc
    """
    from probablend.evaluate.mcmc import compare_posteriors, mcmc_table
    from probablend.survey import get_survey

    report = compare_posteriors(
        get_survey(survey),
        output,
        n_blends=n,
        n_steps=steps,
        seed=seed,
        model=model,
        command="probablend " + shlex.join(sys.argv[1:]),
        progress=None if out.quiet else lambda done, total: err.print(f"… {done} of {total}"),
    )
    out.print(mcmc_table(report), markup=False, highlight=False)


for _group in (app, emulate_app, data_app, evaluate_app):
    for _one in _group.registered_commands:
        assert _one.callback is not None
        _one.callback = _with_quiet(_one.callback)


def main() -> None:
    """Run the command line; a mistake of the user's ends in one sentence."""
    try:
        app()
    except ValueError as error:
        _fail(str(error))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _fail("the disc is full: make room and run the command again" if full else str(error))
    except MemoryError:
        _fail("not enough memory")
    except Exception as error:  # what no check foresaw must still end in one sentence
        logging.getLogger("probablend").debug("traceback", exc_info=error)
        _fail(f"unexpected {type(error).__name__}: {error}")


def _fail(text: str) -> None:
    line = " ".join(text.split())
    print(f"probablend: error: {line}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
