"""Segment images, measure at positions."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from probablend.cli.shared import (
    Background,
    Columns,
    Device,
    ErrorFactor,
    Extension,
    FlagBits,
    Mask,
    Model,
    OutputDir,
    Overwrite,
    PixelScale,
    Psf,
    PsfFwhm,
    Rms,
    Samples,
    Saturation,
    Seed,
    Variance,
    Weight,
    Zeropoint,
    app,
    number_or_file,
    number_or_map,
    out,
    progress,
    read_inputs,
)


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
    psf: Psf = None,
    psf_fwhm: PsfFwhm = None,
    pixel_scale: PixelScale = None,
    zeropoint: Zeropoint = None,
    saturation: Saturation = None,
    min_p_source: Annotated[
        float, typer.Option(help="Leave out detections less probable than this.")
    ] = 0.5,
    error_factor: ErrorFactor = 1.0,
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

    An image of more than 5.3 Mpx is processed block by block, in memory that does not grow with it;
    a run that was killed goes on with --resume. Of several images each gets a folder of its own,
    and in --rms, --weight, --variance, --mask, --psf and --psf-fwhm {} stands for the image without
    its ending.

    Example: probablend segment image.fits --rms 0.01 -o out

    Example: probablend segment tiles/*.fits --weight '{}.weight.fits' --dask local:4 -o out
    """
    from probablend.checkpoint import knows_sources, pixels_only
    from probablend.hats import NO_SKY
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

    many = len(images) > 1
    images = _without_companions(images, of, (rms, weight, variance, mask, psf, psf_fwhm))
    settings = [
        StreamSettings(
            image=str(image),
            ext=ext,
            rms=number_or_file(of(rms, image)),
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
            psf=of(psf, image),
            psf_fwhm=number_or_file(of(psf_fwhm, image)),
            pixel_scale=pixel_scale,
            zeropoint=zeropoint,
            saturation=saturation,
            min_p_source=min_p_source,
            error_factor=error_factor,
            keep_posterior=keep_posterior,
            keep_samples=keep_samples,
            maps_format=maps_format,
            cutouts=None if cutouts is None else str(cutouts),
            cutout_size=cutout_size,
        )
        for image in images
    ]
    products: dict[str, Any] = {
        "catalog_format": catalog_format, "columns": columns, "regions": regions,
    }  # fmt: skip
    parts = cutouts is not None or resume or dask is not None or maps_format != "fits"
    began = time.monotonic()
    with progress("images" if many else "Mpx") as show:
        if many or parts or (knows_sources(model) and too_large(images[0], ext)):
            how: dict[str, Any] = {
                "resume": resume,
                "overwrite": overwrite,
                "dask": dask,
                "progress": show,
                **products,
            }
            if many:
                _tell_many(stream_many(settings, output, **how), output)
            else:
                _tell(stream(settings[0], output, **how), output)
            return
        image = images[0]
        one = settings[0].absolute()
        about: dict[str, Any] = {"image": one.open().name, "settings": fingerprint(one) | products}
        data, noise, bad = read_inputs(
            image,
            ext,
            of(rms, image),
            of(mask, image),
            of(weight, image),
            of(variance, image),
            flag_bits,
        )
        if catalog_format == "hats" and data.wcs is None:
            raise ValueError(NO_SKY)
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
            psf=of(psf, image),
            psf_fwhm=number_or_map(of(psf_fwhm, image)),
            pixel_scale=pixel_scale,
            zeropoint=zeropoint,
            saturation=saturation,
            min_p_source=min_p_source,
            error_factor=error_factor,
            progress=show,
        )
    about["seconds_this_time"] = round(time.monotonic() - began, 3)
    result.write(
        output,
        keep_samples=keep_samples,
        keep_posterior=keep_posterior,
        overwrite=overwrite,
        about=about,
        **products,
    )
    _tell(json.loads((output / SUMMARY).read_text()), output)


def _without_companions(
    images: list[Path],
    of: Callable[[str | None, Path], str | None],
    patterns: Sequence[str | None],
) -> list[Path]:
    """Images that are not the noise, mask or PSF of another one."""
    named = [text for text in patterns if text is not None and "{}" in text]
    places = [image.resolve() for image in images]
    theirs = {
        companion
        for text in named
        for image, place in zip(images, places, strict=True)
        if (companion := Path(str(of(text, image))).resolve()) != place
    }
    kept = [image for image, place in zip(images, places, strict=True) if place not in theirs]
    if not kept:
        raise ValueError(f"each of the {len(images)} images is noise, mask or PSF of another one")
    if len(kept) < len(images):
        out.print(f"{len(images) - len(kept)} files are noise, mask or PSF of other images")
    return kept


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
    psf: Psf = None,
    psf_fwhm: PsfFwhm = None,
    pixel_scale: PixelScale = None,
    zeropoint: Zeropoint = None,
    saturation: Saturation = None,
    error_factor: ErrorFactor = 1.0,
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
    from probablend.infer.outputs import check_folder, check_format
    from probablend.sextractor import named_columns

    check_format(output.suffix.removeprefix("."), columns)
    if output.is_dir():
        raise FileExistsError(f"{output} is a folder; a file is wanted")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists already: --overwrite replaces it")
    check_folder(output.parent)
    table = read_positions(positions)
    data, noise, bad = read_inputs(image, ext, rms, mask, weight, variance, flag_bits)
    result = measure(
        data, table, rms=noise, mask=bad, background=background, n_samples=samples, seed=seed,
        model=model, device=device, psf=psf, psf_fwhm=number_or_map(psf_fwhm),
        pixel_scale=pixel_scale, zeropoint=zeropoint, saturation=saturation,
        error_factor=error_factor,
    )  # fmt: skip
    write_table(named_columns(result, columns), output)
    n_measured = int(np.isfinite(result["flux"]).sum())
    out.print(f"measured {n_measured} of {len(result)} positions; the catalogue is {output}")
