"""Score against a known truth, prove the model on an image."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from probablend.cli.shared import (
    Background,
    ErrorFactor,
    Extension,
    FlagBits,
    From,
    MagRange,
    Mask,
    Methods,
    Model,
    OutputDir,
    Overwrite,
    PixelScale,
    Psf,
    Quiet,
    Rms,
    Samples,
    Seed,
    SourceName,
    SurveyName,
    Variance,
    Weight,
    Zeropoint,
    err,
    evaluate_app,
    method_bars,
    method_names,
    open_galaxies,
    out,
    read_inputs,
    speak,
)


def _show(table: str) -> None:
    """Print Markdown as it is: its rows are not broken."""
    out.print(table, markup=False, highlight=False, soft_wrap=True)


@evaluate_app.callback(invoke_without_command=True)
def _evaluate(context: typer.Context, from_: From = None, quiet: Quiet = False) -> None:
    if quiet:
        speak(quiet=True)
    if from_ is None:
        return
    if context.invoked_subcommand is not None:
        raise ValueError(f"--from goes after {context.invoked_subcommand}, or without it")

    from probablend.evaluate import field, pairs
    from probablend.evaluate.record import kind_of

    module = {"fields": field, "pairs": pairs}[kind_of(from_)]
    _show(module.results_table(module.read_results(from_)))


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
    from probablend.evaluate.methods import is_known, open_method, read_method

    command = "probablend " + shlex.join(sys.argv[1:])
    names = method_names(methods) or ["field", "sep"]
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
            if is_known(catalog.stem):
                raise ValueError(f"{catalog} goes by the name of a method: rename it")
            opened[catalog.stem] = read_method(catalog, maps)
        results = evaluate_scene(
            read_scene(scene), opened, output, n_samples=samples, seed=seed, command=command
        )
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
        galaxies = open_galaxies(source, survey, "test", seed, mag_range)
        with method_bars() as show:
            results = evaluate_fields(
                galaxies, config, names, output, command=command, progress=show
            )
    _show(results_table(results))


@evaluate_app.command("pairs")
def evaluate_pairs_command(
    output: OutputDir = Path("evaluation-pairs"),
    methods: Methods = None,
    survey: SurveyName = "candels-f160w",
    source: Annotated[
        str | None,
        typer.Option(
            help="parametric, structured, irregular, candels or cosmos; else candels if its "
            "galaxies are here and fit the survey, or parametric."
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
        galaxies = open_galaxies(source, survey, "test", seed, mag_range)
        with method_bars() as show:
            results = evaluate_pairs(
                galaxies,
                config,
                method_names(methods) or default_methods(),
                output,
                command="probablend " + shlex.join(sys.argv[1:]),
                progress=show,
            )
    _show(results_table(results))


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
    n: Annotated[int, typer.Option("-n", "--n", help="Galaxies to inject.", min=1)] = 1000,
    companions: Annotated[float, typer.Option(help="Share put beside real sources.")] = 0.5,
    seed: Seed = 0,
    model: Model = "field",
    psf: Psf = None,
    psf_fwhm: Annotated[
        float | None, typer.Option(help="FWHM of the PSF, pixels; else of --psf or stars.")
    ] = None,
    pixel_scale: PixelScale = None,
    zeropoint: Zeropoint = None,
    gain: Annotated[float | None, typer.Option(help="Electrons per count.")] = None,
    error_factor: ErrorFactor = 1.0,
    overwrite: Overwrite = False,
) -> None:
    """Prove the model on your own image: inject galaxies into it, and turn it negative.

    Example: probablend evaluate inject image.fits -o injection
    """
    from probablend.evaluate.inject import InjectionConfig, inject
    from probablend.evaluate.verdict import injection_table

    if (output / "inject.json").exists() and not overwrite:
        raise FileExistsError(f"{output} holds a test already: --overwrite replaces it")
    data, noise, bad = read_inputs(image, ext, rms, mask, weight, variance, flag_bits)
    config = InjectionConfig(n=n, companions=companions, seed=seed)
    with method_bars() as show:
        report = inject(
            data,
            output,
            config,
            rms=noise,
            mask=bad,
            background=background,
            model=model,
            psf=psf,
            psf_fwhm=psf_fwhm,
            pixel_scale=pixel_scale,
            zeropoint=zeropoint,
            gain=gain,
            error_factor=error_factor,
            command="probablend " + shlex.join(sys.argv[1:]),
            progress=lambda done, total: show("injected", done, total),
        )
    _show(injection_table(report))


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
    _show(mcmc_table(report))
