"""What the commands have in common: consoles, options, progress, reading of inputs."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = [
    "Background",
    "Columns",
    "Device",
    "ErrorFactor",
    "Extension",
    "FlagBits",
    "From",
    "MagRange",
    "Mask",
    "Methods",
    "Model",
    "OutputDir",
    "Overwrite",
    "PixelScale",
    "Psf",
    "PsfFwhm",
    "Quiet",
    "Rms",
    "Samples",
    "Saturation",
    "Seed",
    "SourceName",
    "SurveyName",
    "Variance",
    "Weight",
    "Zeropoint",
    "app",
    "data_app",
    "emulate_app",
    "err",
    "evaluate_app",
    "method_bars",
    "method_names",
    "number_or_file",
    "number_or_map",
    "open_galaxies",
    "out",
    "progress",
    "read_inputs",
    "speak",
]

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


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


Background = Annotated[
    Any,
    typer.Option(
        parser=_number_or_word, metavar="auto|subtract|none|LEVEL", help="What to subtract."
    ),
]
Psf = Annotated[
    str | None,
    typer.Option(help="The PSF: FILE or FILE[EXT], an image of it on these pixels, or of PSFEx."),
]
PsfFwhm = Annotated[
    str | None,
    typer.Option(help="FWHM of the PSF, pixels: a number or FILE; else of --psf or stars."),
]
ErrorFactor = Annotated[
    float, typer.Option(help="Make posteriors wider (or narrower) by this: see evaluate inject.")
]
PixelScale = Annotated[float | None, typer.Option(help="Arcseconds per pixel; else from the WCS.")]
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
        help="Commas between: models, weight files, sep, sep-faint, sep-coldhot, "
        "sextractor, sextractor-coldhot, photutils, scarlet; with pairs also field@truth, at the "
        "true positions."
    ),
]
From = Annotated[
    Path | None, typer.Option("--from", help="Score and plot this folder again; run nothing.")
]
SourceName = Annotated[
    str, typer.Option(help="parametric, structured, irregular, candels or cosmos.")
]


def speak(*, quiet: bool) -> None:
    """Say what happens, or nothing but errors."""
    logging.getLogger("probablend").setLevel(logging.ERROR if quiet else logging.INFO)
    out.quiet = quiet


def read_inputs(
    image: Path,
    ext: str | None,
    rms: str | None,
    mask: str | None,
    weight: str | None = None,
    variance: str | None = None,
    flag_bits: int = -1,
) -> tuple[Any, Any, np.ndarray | None]:
    """Image, noise and mask, as a user names them."""
    from probablend.images import ImageFile, read_image
    from probablend.infer.plan import one_noise
    from probablend.prepare import masked_pixels, rms_of_variance, rms_of_weight

    one_noise(rms, weight, variance)
    data = read_image(image, ext=ext)
    noise = number_or_map(rms)
    if weight is not None:
        noise = rms_of_weight(read_image(weight).data)
    if variance is not None:
        noise = rms_of_variance(read_image(variance).data)
    bad = None
    if mask is not None:
        bad = masked_pixels(ImageFile(mask).read_all(exact=True), flag_bits)
    return data, noise, bad


@contextmanager
def progress(unit: str) -> Iterator[Callable[[int, int], None]]:
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
    ) as bar:
        task = bar.add_task("segment", total=0.0)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done / scale, total=total / scale)

        yield show


def number_or_file(text: str | None) -> float | str | None:
    """A number, or the name of a file."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def number_or_map(text: str | None) -> float | np.ndarray | None:
    """A number, or the map in a file."""
    from probablend import images

    return None if text is None else images.number_or_map(text)


class _RateColumn(ProgressColumn):
    """What is done per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.2f} {self.unit}/s")


def open_galaxies(
    source: str, survey: str, split: str, seed: int, mag_range: tuple[float, float]
) -> Any:
    """The galaxies that a user names."""
    from probablend.emulate.sources import open_source
    from probablend.survey import get_survey

    return open_source(
        source,
        get_survey(survey),
        split,  # type: ignore[arg-type]
        mag_range=mag_range,
        seed=seed,
    )


def method_names(methods: str | None) -> list[str]:
    """What stands between the commas."""
    return [m.strip() for m in (methods or "").split(",") if m.strip()]


@contextmanager
def method_bars() -> Iterator[Callable[[str, int, int], None]]:
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
