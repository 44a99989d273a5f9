"""Images of any size: block by block from the file to the products, and on after a kill.

The image is cut into blocks on a fixed grid. A block is read with a margin as wide as what its
answer depends on, segmented on its own, and written in place: its pixels into the maps, its
sources – those whose pixel lies in it – into a file of its own. Random numbers belong to pixels of
the image, so that neither the number of workers nor the order of their work changes a byte. What
is done is what lies in the folder: a run that died goes on where it stopped. At the end sources get
the numbers that they would have had in one piece.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from probablend._version import __version__
from probablend.catalog import COLUMNS, build_table, provenance_header, write_catalog
from probablend.checkpoint import load_tensors
from probablend.hats import NO_SKY
from probablend.images import ImageFile
from probablend.infer.block import process_block
from probablend.infer.cluster import each
from probablend.infer.footprints import Ellipses
from probablend.infer.outputs import (
    PRODUCTS,
    SUMMARY,
    check_format,
    check_output,
    move,
    products_in,
    remove,
)
from probablend.infer.plan import (
    BLOCK,
    StreamSettings,
    area,
    begin,
    block_file,
    blocks_of,
    discard,
    write_text,
)
from probablend.infer.planes import RawPlane, open_planes, padded
from probablend.infer.sources import draws_table
from probablend.models.source import PARAMETERS
from probablend.sextractor import named_columns

__all__ = ["WORK", "StreamSettings", "stream", "too_large"]

WORK = ".probablend-run"
_IN_MEMORY = BLOCK**2  # pixels: what is larger than a block is streamed


def too_large(path: Path, ext: str | None) -> bool:
    """Whether an image is better streamed."""
    shape = ImageFile(path, ext=ext).shape
    return shape[0] * shape[1] > _IN_MEMORY


def stream(
    settings: StreamSettings,
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
    """Segment an image of any size from file to products.

    Parameters
    ----------
    settings : StreamSettings
        What to do.
    output : Path or str
        Gets the products of ``probablend segment``, and ``summary.json``.
    resume : bool
        Whether to go on with a run that ended early.
    overwrite : bool
        Whether earlier products may be replaced, or an unfinished run started anew.
    catalog_format, columns, regions
        See :meth:`~probablend.infer.segmentation.Segmentation.write`.
    dask : str, optional
        Address of a Dask scheduler, or ``local:N`` for N processes here. Every worker reads
        the image and writes the products itself: all must see the same files.
    progress : callable, optional
        Called with the pixels done and the pixels in all.

    Returns
    -------
    dict
        What ``summary.json`` holds.

    Raises
    ------
    FileNotFoundError
        If there is nothing to resume.
    FileExistsError
        If products or an unfinished run are there.
    ValueError
        If the image or a setting cannot be used, or a run was begun with others.
    """
    began = time.monotonic()
    output = Path(output)
    check_format(catalog_format, columns)
    check_output(output, overwrite=overwrite or resume)
    work = output / WORK
    products = {"catalog_format": catalog_format, "columns": columns, "regions": regions}
    if catalog_format == "hats" and settings.open().wcs is None:
        raise ValueError(NO_SKY)
    plan = begin(settings, work, products, resume=resume, overwrite=overwrite)
    blocks = blocks_of(plan)
    todo = [k for k in plan["todo"] if not block_file(work, k).exists()]
    if (work / "finished.json").exists():
        todo = []
    total = sum(area(blocks[k].core) for k in plan["todo"])
    done = total - sum(area(blocks[k].core) for k in todo)
    if progress:
        progress(done, total)
    for k in each(process_block, [(str(work.resolve()), k) for k in todo], dask):
        done += area(blocks[k].core)
        if progress:
            progress(done, total)
    if not (work / "finished.json").exists():
        summary = {
            "version": __version__,
            "image": plan["meta"]["input"],
            "megapixels": total / 1e6,
            "blocks": len(plan["todo"]),
            "blocks_this_time": len(todo),
            "model": plan["meta"]["model"],
            "weights_hash": plan["meta"]["weights_hash"],
            "settings": plan["settings"],
            **_finish(work, plan, catalog_format, columns, regions),
        }
        summary["seconds_this_time"] = round(time.monotonic() - began, 3)
        write_text(work / "ready" / SUMMARY, json.dumps(summary, indent=2) + "\n")
        write_text(work / "finished.json", json.dumps(summary))
    # From here on all is done, and what is left to move is moved.
    summary = json.loads((work / "finished.json").read_text())
    for name in PRODUCTS:  # what an earlier run left would not belong to these maps
        if name not in summary["files"]:
            remove(output / name)
    for name in summary["files"]:
        if (work / "ready" / name).exists():
            move(work / "ready" / name, output / name)
    discard(work)
    return summary


def _finish(
    work: Path, plan: dict[str, Any], catalog_format: str, names: str, regions: bool
) -> dict[str, Any]:
    """Number the sources as in one piece, and write what goes over all blocks."""
    ready = work / "ready"
    for name in PRODUCTS:  # an earlier attempt may have ended here
        if not name.startswith(("maps.", "samples.", "quicklook.")):
            remove(ready / name)
    parts: list[dict[str, np.ndarray]] = []
    n_masked = 0
    for number in plan["todo"]:
        part = _load(work, number)
        n_masked += int(part["n_masked"][0])
        if "flat" in part:
            parts.append(part)
    flat = _joined(parts, "own_flat", np.int64)
    order = np.argsort(flat)
    flat = flat[order]
    if plan["settings"]["cutouts"] is None:
        _finish_maps(work, plan, flat, n_masked)
    columns = {
        name: _joined(parts, f"catalog.{name}", kind)[order]
        for name, (kind, _, _) in COLUMNS.items()
        if name != "cutout" or plan["settings"]["cutouts"] is not None
    }
    columns["id"] = np.arange(1, len(flat) + 1)
    columns["parent"], columns["n_siblings"] = _groups(parts, flat)
    header = provenance_header(plan["meta"])
    catalog = named_columns(build_table(columns), names)
    write_catalog(catalog, ready / f"catalog.{catalog_format}", header)
    if regions:
        shapes = {
            name: _joined(parts, f"ellipse.{name}", float)[order]
            for name in ("y", "x", "radius", "e1", "e2")
        }
        (ready / "sources.reg").write_text(Ellipses(**shapes).to_regions())
    if n := plan["settings"]["keep_posterior"]:
        _write_posterior(work, plan, flat, n)
    return {
        "objects": len(flat),
        "blended": int((columns["p_blend"] > 0.5).sum()),
        **products_in(ready),
    }


def _finish_maps(work: Path, plan: dict[str, Any], flat: np.ndarray, n_masked: int) -> None:
    """Labels from the pixels that own the sources, and what the header says of the whole."""
    maps = open_planes(work / "ready" / f"maps.{plan['settings']['maps_format']}")
    owners = RawPlane(work / "labels.raw", plan["shape"][1])
    for core in (block.core for block in blocks_of(plan)):
        numbers = owners.read(core)
        place = np.searchsorted(flat, numbers - 1).clip(max=max(len(flat) - 1, 0))
        known = (numbers > 0) & (flat[place] == numbers - 1) if len(flat) else numbers < 0
        labels = np.where(known, place + 1, 0)
        maps.write("LABELS", core, labels)
    maps.set_card("PBNMASK", n_masked)


def _load(work: Path, number: int, *, draws: bool = False) -> dict[str, np.ndarray]:
    """What a block found; its joint draws only if they are asked for."""
    tensors, _ = load_tensors(block_file(work, number))
    part = {key: value.numpy() for key, value in tensors.items()}
    if not draws:
        part = {key: v.copy() for key, v in part.items() if key not in ("draws", "origin")}
    if "flat" in part:
        part["own_flat"] = part["flat"][part["own"]]
    return part


def _joined(parts: list[dict[str, np.ndarray]], key: str, kind: type) -> np.ndarray:
    values = [part[key] for part in parts]
    return np.concatenate(values) if values else np.zeros(0, dtype=kind)


def _groups(parts: list[dict[str, np.ndarray]], flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest number of each group whose footprints touch, across blocks; and other members."""
    n = len(flat)
    first: list[np.ndarray] = [np.zeros(0, np.int64)]
    second: list[np.ndarray] = [np.zeros(0, np.int64)]
    for part in parts:
        place = np.searchsorted(flat, part["flat"]).clip(max=max(n - 1, 0))
        here = part["near"] & (flat[place] == part["flat"]) if n else part["near"]
        place, group = place[here], part["group"][here]
        order = np.argsort(group, kind="stable")
        place, group = place[order], group[order]
        same = np.flatnonzero(group[1:] == group[:-1])
        first.append(place[same])
        second.append(place[same + 1])
    rows, columns = np.concatenate(first), np.concatenate(second)
    links = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(n, n))
    n_groups, which = connected_components(links, directed=False)
    lowest = np.full(n_groups, n, dtype=np.int64)
    np.minimum.at(lowest, which, np.arange(n))
    return lowest[which] + 1, np.bincount(which, minlength=n_groups)[which] - 1


def _write_posterior(work: Path, plan: dict[str, Any], flat: np.ndarray, n: int) -> None:
    """Joint draws of all sources, block by block into their rows of the table."""
    path = work / "ready" / "posterior.fits"
    empty = draws_table(np.zeros((n, 1, len(PARAMETERS)), np.float32), np.zeros((1, 2)), np.ones(1))
    write_catalog(empty, path, provenance_header(plan["meta"]), "POSTERIOR")
    primary, header = (fits.getheader(path, k) for k in (0, 1))
    row = header["NAXIS1"]
    header["NAXIS2"] = len(flat)
    with path.open("wb") as handle:
        handle.write(padded(primary) + padded(header))
        start = handle.tell()
        handle.truncate(start + -(-row * len(flat) // 2880) * 2880)
        for number in plan["todo"]:
            part = _load(work, number, draws=True)
            if "flat" not in part or not len(part["own_flat"]):
                continue
            ids = np.searchsorted(flat, part["own_flat"]) + 1
            table = np.asarray(
                fits.BinTableHDU(draws_table(part["draws"], part["origin"], ids)).data
            )
            values = table.astype(table.dtype.newbyteorder(">")).tobytes()
            for k, place in enumerate(ids - 1):
                handle.seek(start + int(place) * row)
                handle.write(values[k * row : (k + 1) * row])
