"""One block of an image: read with its margin, segmented, written in place.

The margin is as wide as what the block's answer depends on, and random numbers belong to pixels of
the image: whoever works on a block, in whatever order, the bytes are the same.
"""

import ctypes
import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial import KDTree

from probablend.checkpoint import load_tensors, save_tensors
from probablend.device import resolve_device
from probablend.images import ImageData
from probablend.infer.plan import (
    MARGIN,
    StreamSettings,
    area,
    block_file,
    blocks_of,
    noise_and_mask,
)
from probablend.infer.planes import RawPlane, open_planes
from probablend.infer.segment import ready_network, segment_prepared, usable_psf_map
from probablend.infer.segmentation import Segmentation
from probablend.infer.tiles import Tile, Window
from probablend.models.field import FieldNetwork
from probablend.models.fit import REACH
from probablend.prepare import NothingToSegmentError, prepare_image

__all__ = ["process_block"]

_QUICKLOOK = 1024  # pixels, side of the picture
_M_MMAP_THRESHOLD, _KEPT = -3, 8 * 2**20  # of mallopt; bytes, the largest buffers that are kept
_TILE = 784  # pixels, side of a tile's core: smaller than in memory, since several are held at once


def process_block(folder: str, number: int) -> int:
    """Segment one block of the run in a folder, and write what is in it.

    Parameters
    ----------
    folder : str
        Of the unfinished run.
    number : int
        Of the block, row by row.

    Returns
    -------
    int
        The number again.
    """
    _allocator()
    work = Path(folder)
    plan = json.loads((work / "plan.json").read_text())
    known = set(StreamSettings.__dataclass_fields__)
    settings = StreamSettings(**{k: v for k, v in plan["settings"].items() if k in known})
    network, meta = ready_network(settings.model, settings.device, settings.precision)
    assert isinstance(network, FieldNetwork)
    tile, shape = blocks_of(plan)[number], tuple(plan["shape"])
    core, outer, inner = tile.core, tile.outer, tile.inner
    image = settings.open()
    pixels = image.read(*outer)
    try:
        prepared = prepare_image(
            pixels,
            background=plan["background"],
            compare_noise=False,  # said when the run began
            **noise_and_mask(settings, outer),
        )
    except NothingToSegmentError:
        if settings.cutouts is None:
            _write_empty(work, settings, core)
        tensors = {"n_masked": torch.tensor([area(core)])}
        save_tensors(block_file(work, number), tensors, {})
        return number
    psf_fwhm = plan["psf_fwhm"]
    if isinstance(settings.psf_fwhm, str):
        psf_fwhm = usable_psf_map(settings.open("psf_fwhm").read(*outer), prepared.mask)
    psf_image = None if plan["psf_image"] is None else np.array(plan["psf_image"], np.float32)
    borders = (outer[0].start == 0, outer[0].stop == shape[0],
               outer[1].start == 0, outer[1].stop == shape[1])  # fmt: skip
    window = Window(tile.origin_yx, borders, _wanted(tile, shape, network))
    wcs = None if image.wcs is None else image.wcs[outer]
    data = ImageData(
        data=pixels, wcs=wcs, name=image.name, zeropoint=plan["zeropoint"],
        saturation=image.saturation if settings.saturation is None else settings.saturation,
    )  # fmt: skip
    result = segment_prepared(
        network, meta, prepared, data, n_samples=settings.n_samples, seed=settings.seed,
        device=resolve_device(settings.device), wcs=wcs, psf_fwhm=psf_fwhm,
        psf_wings=plan["psf_wings"], psf_image=psf_image,
        noise_factors=tuple(plan["noise_factors"]), pixel_scale=plan["pixel_scale"],
        zeropoint=plan["zeropoint"], min_p_source=settings.min_p_source,
        error_factor=settings.error_factor, window=window, tile_size=_TILE,
    )  # fmt: skip
    tensors = _sources(result, window, core, shape, settings, work)
    if settings.cutouts is None:
        _write_planes(work, settings, core, shape, result, inner, tensors["flat"].numpy())
    if settings.cutouts is None and all(
        c.start <= n // 2 < c.stop for c, n in zip(core, shape, strict=True)
    ):
        _quicklook(work, result, plan, inner)
    tensors["n_masked"] = torch.tensor([int(result.mask[inner].sum())])
    save_tensors(block_file(work, number), tensors, {})
    del result, prepared, data, pixels
    _give_back()
    return number


def _wanted(
    tile: Tile, shape: tuple[int, int], network: FieldNetwork
) -> tuple[slice, slice] | None:
    """Where in a block there are sources that count; the others are neighbours of their fits."""
    if not network.config.fits:
        return None
    rows, columns = (
        slice(REACH if outer.start else 0, outer.stop - outer.start - REACH * (outer.stop < n))
        for outer, n in zip(tile.outer, shape, strict=True)
    )
    return rows, columns


@cache
def _allocator() -> ctypes.CDLL | None:
    """The C library, told to return whatever is large at once; None if it is not glibc.

    Left to itself it learns to keep buffers of up to 32 MB, in every thread: half a gigabyte.
    """
    try:
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT)
        return library if library.malloc_trim else None
    except (AttributeError, OSError):
        return None


def _give_back() -> None:
    """Return what is free to the system."""
    if (library := _allocator()) is not None:
        library.malloc_trim(0)


def _sources(
    result: Segmentation,
    window: Window,
    core: tuple[slice, slice],
    shape: tuple[int, int],
    settings: StreamSettings,
    work: Path,
) -> dict[str, torch.Tensor]:
    """Rows of the sources of a block, and how all those in its margin hang together."""
    measured = result.sources
    assert measured is not None
    pixel = measured.pixel + np.array(window.origin_yx)
    flat = pixel[:, 0] * shape[1] + pixel[:, 1]
    own = np.ones(len(flat), dtype=bool)
    near = np.ones(len(flat), dtype=bool)
    for axis, side in enumerate(core):
        own &= (pixel[:, axis] >= side.start) & (pixel[:, axis] < side.stop)
        near &= pixel[:, axis] >= side.start - MARGIN
        near &= pixel[:, axis] < side.stop + MARGIN
    catalog = result.catalog
    row = None
    if settings.cutouts is not None:
        row = _cutout_rows(result, window, settings, work)
        own &= row >= 0
    tensors = {
        "flat": torch.from_numpy(flat.astype(np.int64)),
        "own": torch.from_numpy(own),
        "near": torch.from_numpy(near),
        "group": torch.from_numpy(np.asarray(catalog["parent"]).astype(np.int64)),
    }
    for name in catalog.colnames:
        values = np.asarray(catalog[name])[own]
        if name in ("y", "x"):
            values = values + window.origin_yx["yx".index(name)]
        tensors[f"catalog.{name}"] = torch.from_numpy(np.ascontiguousarray(values))
    if row is not None:
        tensors["catalog.cutout"] = torch.from_numpy(row[own])
    ellipses = measured.ellipses
    for name in ("y", "x", "radius", "e1", "e2"):
        values = getattr(ellipses, name)[own]
        if name in ("y", "x"):
            values = values + window.origin_yx["yx".index(name)]
        tensors[f"ellipse.{name}"] = torch.from_numpy(np.ascontiguousarray(values, dtype=float))
    if settings.keep_posterior:
        draws = measured.draws[: settings.keep_posterior][:, own]
        origin = measured.origin[own] + np.array(window.origin_yx)
        tensors["draws"] = torch.from_numpy(np.ascontiguousarray(draws))
        tensors["origin"] = torch.from_numpy(np.ascontiguousarray(origin))
    return tensors


def _cutout_rows(
    result: Segmentation, window: Window, settings: StreamSettings, work: Path
) -> np.ndarray:
    """Row of the nearest cut-out that holds each source; −1 where none does."""
    cutouts, _ = load_tensors(work / "cutouts.safetensors")
    at = np.stack([np.asarray(result.catalog[k].value) for k in ("y", "x")], axis=1)
    # A square is a ball where distance is that along the farther axis.
    tree = KDTree(cutouts["yx"].numpy())
    reach, nearest = tree.query(at + window.origin_yx, p=np.inf)
    return np.where(reach <= settings.cutout_size / 2, cutouts["row"].numpy()[nearest], -1)


def _write_planes(
    work: Path,
    settings: StreamSettings,
    core: tuple[slice, slice],
    shape: tuple[int, int],
    result: Segmentation,
    inner: tuple[slice, slice],
    flat: np.ndarray,
) -> None:
    maps = open_planes(work / "ready" / f"maps.{settings.maps_format}")
    planes = {"P_GALAXY": result.p_galaxy, "P_BLEND": result.p_blend, "MASK": result.mask}
    for name, plane in planes.items():
        maps.write(name, core, plane[inner])
    # Until all sources are known, the pixel that owns a source is its number.
    numbers = np.concatenate([[0], flat + 1])[result.labels[inner]]
    RawPlane(work / "labels.raw", shape[1]).write(core, numbers)
    if settings.keep_samples:
        cube = open_planes(work / "ready" / f"samples.{settings.maps_format}")
        for k, sample in enumerate(result.samples):
            cube.write("SAMPLES", core, sample[inner], sample=k)


def _write_empty(work: Path, settings: StreamSettings, core: tuple[slice, slice]) -> None:
    """A block without a usable pixel: missing, not zero."""
    maps = open_planes(work / "ready" / f"maps.{settings.maps_format}")
    size = tuple(side.stop - side.start for side in core)
    for name, value in (("P_GALAXY", np.nan), ("P_BLEND", np.nan), ("MASK", 1)):
        maps.write(name, core, np.full(size, value))


def _quicklook(
    work: Path, result: Segmentation, plan: dict[str, Any], inner: tuple[slice, slice]
) -> None:
    """Picture of the middle of the image."""
    box = []
    for side in inner:
        middle = (side.start + side.stop) // 2
        box.append(slice(max(side.start, middle - _QUICKLOOK // 2),
                         min(side.stop, middle + _QUICKLOOK // 2)))  # fmt: skip
    rows, columns = box
    y, x = (np.asarray(result.catalog[name].value) for name in ("y", "x"))
    inside = (y >= rows.start) & (y < rows.stop) & (x >= columns.start) & (x < columns.stop)
    cut = replace(
        result,
        **{name: getattr(result, name)[rows, columns]
           for name in ("p_galaxy", "p_blend", "labels", "mask", "signal")},
        samples=result.samples[:, rows, columns],
        catalog=result.catalog[inside],
        sources=None,
        meta=plan["meta"] | {"input": f"middle of {plan['meta']['input']}"},
    )  # fmt: skip
    part = work / "quicklook.part.png"
    cut.plot().savefig(part, dpi=100)
    os.replace(part, work / "ready" / "quicklook.png")
