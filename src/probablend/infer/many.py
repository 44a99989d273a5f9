"""Many images in one run: a folder of products each, and one catalogue of all.

Every image is a run of its own (:mod:`probablend.infer.stream`); one that cannot be used costs a
sentence, not the run.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import vstack

from probablend.catalog import provenance_header, read_catalog, write_catalog
from probablend.hats import NO_SKY
from probablend.infer.cluster import each
from probablend.infer.outputs import SUMMARY, check_format, check_output, move, remove
from probablend.infer.plan import StreamSettings, check_same, discard, fingerprint, write_text
from probablend.infer.stream import WORK, stream

__all__ = ["stem", "stream_many"]

log = logging.getLogger(__name__)


def stream_many(
    settings: Sequence[StreamSettings],
    output: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    catalog_format: str = "fits",
    columns: str = "probablend",
    regions: bool = False,
    dask: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Segment images one after the other, or side by side on a cluster.

    Parameters
    ----------
    settings : sequence of StreamSettings
        One per image.
    output : Path or str
        Gets a folder per image, named for it, with its products; ``catalog.FORMAT``, the rows
        of all with a column ``image``; and ``summary.json``.
    resume : bool
        Whether to go on with a run that ended early: images that are done are left as they are.
    overwrite, catalog_format, columns, regions, dask
        See :func:`~probablend.infer.stream.stream`; a task of the cluster is an image.
    progress : callable, optional
        Called with the images done and the images in all.

    Returns
    -------
    dict
        What ``summary.json`` holds: numbers of images, objects and blended objects, megapixels,
        and under ``failed`` what was wrong with images that could not be used.

    Raises
    ------
    FileExistsError
        If products are there.
    ValueError
        If two images have the same name, or none can be used.
    """
    output = Path(output)
    check_format(catalog_format, columns)
    names = [Path(stem(one.image)).name for one in settings]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"images must have different names; {', '.join(twice)} comes twice")
    target = output / f"catalog.{catalog_format}"
    check_output(output, overwrite=overwrite or resume)
    for name in names:
        if (output / name / WORK).exists() and not (resume or overwrite):
            raise FileExistsError(
                f"{output} holds an unfinished run: resume (--resume) or overwrite it (--overwrite)"
            )
    if catalog_format == "hats" and not any(_has_sky(one) for one in settings):
        raise ValueError(NO_SKY)
    for name in names:
        _begin(output / name, resume=resume, overwrite=overwrite)
    kind = "fits" if catalog_format == "hats" else catalog_format
    products = {"catalog_format": kind, "columns": columns, "regions": regions}
    tasks = [
        (one.absolute(), str((output / name).resolve()), products, overwrite)
        for one, name in zip(settings, names, strict=True)
    ]
    done: dict[str, dict[str, Any]] = {}
    for summary in each(_one, tasks, dask):
        done[Path(summary["folder"]).name] = summary
        if "error" in summary:
            log.warning("%s: %s", summary["image"], summary["error"])
        if progress:
            progress(len(done), len(tasks))
    good = [name for name in names if "error" not in done[name]]
    if not good:
        raise ValueError(f"none of {len(names)} images could be used: {done[names[0]]['error']}")
    _write_catalog(output, good, kind, target)
    result = {
        "images": len(good),
        "objects": sum(done[name]["objects"] for name in good),
        "blended": sum(done[name]["blended"] for name in good),
        "megapixels": sum(done[name]["megapixels"] for name in good),
        "failed": {done[name]["image"]: done[name]["error"] for name in names if name not in good},
    }
    write_text(output / SUMMARY, json.dumps(result, indent=2) + "\n")
    return result


def _has_sky(settings: StreamSettings) -> bool:
    """Whether an image has coordinates, as far as it can be read."""
    try:
        return settings.open().wcs is not None
    except (OSError, ValueError):
        return False


def stem(image: str) -> str:
    """File of an image without what tells the format: ``a/tile.fits.fz[1]`` → ``a/tile``."""
    name = image.partition("[")[0]
    for ending in (".gz", ".fz", ".fits", ".fit", ".zarr", ".png", ".jpg", ".jpeg"):
        name = name.removesuffix(ending)
    return name


def _begin(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """From here on what is in a folder belongs to this run, whoever dies in it."""
    if overwrite and not resume:
        discard(folder / WORK)
        remove(folder / SUMMARY)
    check_output(folder, overwrite=overwrite or resume)


def _one(
    settings: StreamSettings, folder: str, products: dict[str, Any], overwrite: bool
) -> dict[str, Any]:
    """Summary of one image, or why there is none."""
    target = Path(folder)
    told = {"folder": folder, "image": settings.image}
    try:
        unfinished = (target / WORK / "plan.json").exists()
        if not unfinished and (target / SUMMARY).exists():
            return told | _finished(settings, products, target)
        return told | stream(settings, target, resume=unfinished, overwrite=overwrite, **products)
    except (ValueError, OSError) as error:
        return told | {"error": str(error)}


def _finished(settings: StreamSettings, products: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Summary of an image that was done earlier, in the same way."""
    summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
    check_same(fingerprint(settings) | products, summary.get("settings", {}), folder)
    return summary


def _write_catalog(output: Path, names: list[str], kind: str, target: Path) -> None:
    """One table of the catalogues of all images."""
    tables = []
    for name in names:
        table = read_catalog(output / name / f"catalog.{kind}")
        table.meta.clear()
        table.add_column(np.full(len(table), name), name="image", index=0)
        table["image"].info.description = "folder of the image that the row belongs to"
        tables.append(table)
    part = output / f".part-{target.name}"
    write_catalog(vstack(tables), part, provenance_header({}))
    move(part, target)
