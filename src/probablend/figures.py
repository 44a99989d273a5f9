"""The figures of a folder that ``probablend segment`` wrote."""

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probablend.card import draw_card
from probablend.images import ImageFile
from probablend.pictures import animate_samples, plot_blend_overlay, plot_footprints, plot_samples
from probablend.plot import plot_class_probabilities
from probablend.prepare import prepare_image
from probablend.products import Products

__all__ = ["draw_products"]

log = logging.getLogger(__name__)

_SIDE = 800  # pixels of an image that one figure can show
_AROUND = 200  # pixels around the galaxy of a card, from which the noise is estimated
_MOST_SAMPLES = 16


def draw_products(
    directory: Path | str,
    image: Path | str,
    output: Path | str,
    *,
    ext: int | str | None = None,
    ids: Sequence[int] = (),
    overwrite: bool = False,
) -> list[Path]:
    """Draw what is in a folder: footprints, classes, P_BLEND, samples, cards.

    Parameters
    ----------
    directory : Path or str
        Of the products.
    image : Path or str
        The image that they are of.
    output : Path or str
        Folder for the figures. Of a large image they show the middle.
    ext : int or str, optional
        Extension of the image.
    ids : sequence of int
        Galaxies to draw a card of.
    overwrite : bool
        Whether earlier figures may be replaced.

    Returns
    -------
    list of Path
        The figures.

    Raises
    ------
    FileNotFoundError
        If image, maps, or the posterior that cards need are not there.
    FileExistsError
        If a figure is there already.
    ValueError
        If the image is not the one that was segmented, or there is no such galaxy.
    """
    products, file, output = Products(directory), ImageFile(image, ext=ext), Path(output)
    if file.shape != products.shape_yx:
        raise ValueError(
            f"{image} has shape {file.shape}, the maps in {directory} {products.shape_yx}: "
            "give the image that was segmented"
        )
    output.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".probablend-", dir=output))
    try:
        _draw_maps(products, file, work)
        for number in ids:
            _save(_draw_card(products, file, number), work / f"card-{number}.png")
        names = sorted(path.name for path in work.iterdir())
        there = [name for name in names if (output / name).exists()]
        if there and not overwrite:
            raise FileExistsError(
                f"{output} holds {', '.join(there)} already: choose another folder, or overwrite "
                "(--overwrite)"
            )
        for name in names:
            os.replace(work / name, output / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return [output / name for name in names]


def _box(
    middle_yx: tuple[float, float], half: int, shape_yx: tuple[int, int]
) -> tuple[slice, slice]:
    """A square around a place, as much of it as the image has."""
    first = [
        min(max(0, int(m) - half), max(0, n - 2 * half))
        for m, n in zip(middle_yx, shape_yx, strict=True)
    ]
    rows, columns = (slice(f, min(n, f + 2 * half)) for f, n in zip(first, shape_yx, strict=True))
    return rows, columns


def _signal(file: ImageFile, box: tuple[slice, slice]) -> np.ndarray:
    prepared = prepare_image(file.read(*box))
    return np.where(prepared.mask, np.nan, prepared.signal)


def _draw_maps(products: Products, file: ImageFile, work: Path) -> None:
    box = _box((file.shape[0] / 2, file.shape[1] / 2), _SIDE // 2, file.shape)
    if max(file.shape) > _SIDE:
        log.info("the figures show the middle of the image, at most %d pixels wide", _SIDE)
    signal = _signal(file, box)
    p_galaxy, p_blend, labels = (
        np.asarray(products.plane(name)[box]) for name in ("P_GALAXY", "P_BLEND", "LABELS")
    )
    blended = np.asarray(products.catalog["p_blend"])
    figure, ax = _one(signal.shape)
    plot_footprints(signal, labels, blended, ax)
    ax.set_title("footprints: thin blue single, thick orange blended")
    _save(figure, work / "footprints.png")
    figure, ax = _one(signal.shape)
    plot_class_probabilities(p_galaxy, p_blend, ax).set_title("mean class: sky, one, blend")
    _save(figure, work / "classes.png")
    figure, ax = _one(signal.shape)
    plot_blend_overlay(signal, p_blend, ax).set_title("probability of a blend")
    _save(figure, work / "p_blend.png")
    if products.samples is None:
        log.info("no samples are there: segment with --keep-samples to have them drawn")
        return
    samples = np.asarray(products.samples[(slice(_MOST_SAMPLES), *box)])
    figure, ax = _one(signal.shape)
    plot_samples(samples, ax).set_title("posterior samples: sky, one, blend")
    _save(figure, work / "samples.png")
    animate_samples(signal, samples, work / "samples.gif")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _one(shape_yx: tuple[int, ...]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, min(max(8 * shape_yx[0] / shape_yx[1], 2), 14)),
                    layout="constrained")  # fmt: skip
    return figure, figure.subplots()


def _draw_card(products: Products, file: ImageFile, number: int) -> Figure:
    posterior = products.posterior
    if posterior is None:
        raise FileNotFoundError(
            f"{products.folder} holds no posterior.fits, which a card needs: "
            "segment with --keep-posterior 128"
        )
    if not 1 <= number <= len(posterior):
        raise ValueError(f"there is no source {number}: numbers run from 1 to {len(posterior)}")
    y, x = (float(np.median(posterior[name][number - 1])) for name in ("y", "x"))
    box = _box((y, x), _AROUND, file.shape)
    row = products.catalog[number - 1]
    said = [f"{name} {row[name]:.2f}" for name in ("p_source", "p_blend") if name in row.colnames]
    return draw_card(
        _signal(file, box), posterior, number, origin_yx=(box[0].start, box[1].start),
        title="".join(f",  {one}" for one in said),
    )  # fmt: skip
