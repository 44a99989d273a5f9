"""Images of any size: block by block from the file to the products, and on after a kill.

The image is cut into blocks on a fixed grid. A block is read with a margin as wide as what its
answer depends on, segmented on its own, and written in place: its pixels into the maps, its
sources – those whose pixel lies in it – into a file of its own. Random numbers belong to pixels of
the image, so that neither the number of workers nor the order of their work changes a byte. What
is done is what lies in the folder: a run that died goes on where it stopped. At the end sources get
the numbers that they would have had in one piece.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.io import fits
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from probablend._version import __version__
from probablend.catalog import COLUMNS, build_table, provenance_header, write_catalog
from probablend.checkpoint import (
    file_hash,
    find_model,
    knows_sources,
    load_model,
    load_tensors,
    save_tensors,
)
from probablend.device import resolve_device
from probablend.images import (
    ImageData,
    ImageFile,
    NothingToSegmentError,
    masked_pixels,
    prepare_image,
    rms_of_weight,
)
from probablend.infer.footprints import Ellipses
from probablend.infer.planes import make_fits, padded, plane_offsets, read_box, write_box
from probablend.infer.psf import estimate_psf_fwhm
from probablend.infer.segment import (
    PRODUCTS,
    Segmentation,
    assumed_psf_fwhm,
    check_format,
    check_numbers,
    check_output,
    model_name,
    segment_prepared,
)
from probablend.infer.sources import N_DRAWS, draws_table
from probablend.infer.tiles import Tile, Window, cover
from probablend.models.field import FieldNetwork
from probablend.models.source import PARAMETERS
from probablend.sextractor import check_columns, named_columns

__all__ = ["StreamSettings", "process_block", "stream", "too_large"]

log = logging.getLogger(__name__)

BLOCK = 3072  # pixels, side of a block
_MARGIN = 128  # pixels around it in which sources are seen as they are
_IN_MEMORY = 4608**2  # pixels: larger images are streamed
_SAMPLE = 1024  # pixels, side of the windows that decide for the whole image
_QUICKLOOK = 1024
_STRIP = 512  # rows
_WORK = ".probablend-run"
_PLANES = {"P_GALAXY": ">f4", "P_BLEND": ">f4", "LABELS": ">i4", "MASK": "u1"}
_FILES = ("image", "rms", "weight", "mask")


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """All that the result depends on; see :func:`~probablend.segment` for what is not said here.

    Parameters
    ----------
    image : str
        File, ``FILE[EXT]`` names an extension.
    ext : str, optional
        Extension of ``image``.
    rms : str or float, optional
        A file, or a number.
    weight : str, optional
        File of inverse variances; zero means missing. Instead of ``rms``.
    mask : str, optional
        File, non-zero = do not use.
    flag_bits : int
        Bits of ``mask`` that count; −1 = any.
    keep_posterior : int
        Joint draws of every source to keep.
    keep_samples : bool
        Whether to keep the class maps.
    block : int
        Side of a block, pixels. It changes memory, and the regions in which background and
        noise are estimated when they are not given.
    """

    image: str
    ext: str | None = None
    rms: str | float | None = None
    weight: str | None = None
    mask: str | None = None
    flag_bits: int = -1
    background: str = "auto"
    n_samples: int = 16
    seed: int = 0
    model: str = "field"
    device: str = "auto"
    psf_fwhm: float | None = None
    zeropoint: float | None = None
    min_p_source: float = 0.5
    keep_posterior: int = 0
    keep_samples: bool = False
    block: int = BLOCK

    def __post_init__(self) -> None:
        if self.block < 64:
            raise ValueError(f"block must be at least 64 pixels; got {self.block}")
        check_numbers(self.n_samples, self.min_p_source, self.psf_fwhm, self.zeropoint)
        if not 0 <= self.keep_posterior <= N_DRAWS:
            raise ValueError(f"at most {N_DRAWS} draws can be kept; got {self.keep_posterior}")
        if self.rms is not None and self.weight is not None:
            raise ValueError("rms and weight both say how strong the noise is: give one")

    def open(self, name: str = "image") -> ImageFile:
        """One of the files."""
        return ImageFile(getattr(self, name), ext=self.ext if name == "image" else None)

    def absolute(self) -> "StreamSettings":
        """The same with files that do not depend on where one stands."""
        names = [name for name in _FILES if isinstance(getattr(self, name), str)]
        if self.model.endswith(".safetensors"):
            names.append("model")
        paths: dict[str, Any] = {k: str(Path(getattr(self, k)).resolve()) for k in names}
        return replace(self, **paths)


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
        See :meth:`~probablend.infer.segment.Segmentation.write`.
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
    check_format(catalog_format)
    check_columns(columns)
    check_output(output, overwrite=overwrite or resume)
    work = output / _WORK
    plan = _begin(settings, work, resume=resume, overwrite=overwrite)
    blocks = _blocks(plan)
    n_y, n_x = plan["shape"]
    todo = [k for k in range(len(blocks)) if not _block_file(work, k).exists()]
    if (work / "finished.json").exists():
        todo = []
    done = sum(_area(blocks[k].core) for k in set(range(len(blocks))) - set(todo))
    if progress:
        progress(done, n_y * n_x)
    for k in _process(work, todo, dask):
        done += _area(blocks[k].core)
        if progress:
            progress(done, n_y * n_x)
    if not (work / "finished.json").exists():
        summary = {
            "version": __version__,
            "image": plan["meta"]["input"],
            "megapixels": n_y * n_x / 1e6,
            "blocks": len(blocks),
            "blocks_this_time": len(todo),
            "model": plan["meta"]["model"],
            "weights_hash": plan["meta"]["weights_hash"],
            "settings": plan["settings"],
            **_finish(work, plan, catalog_format, columns, regions),
        }
        summary["seconds_this_time"] = round(time.monotonic() - began, 3)
        _write(work / "ready" / "summary.json", json.dumps(summary, indent=2) + "\n")
        _write(work / "finished.json", json.dumps(summary))
    # From here on all is done, and what is left to move is moved.
    summary = json.loads((work / "finished.json").read_text())
    for name in PRODUCTS:  # what an earlier run left would not belong to these maps
        if name not in summary["files"]:
            (output / name).unlink(missing_ok=True)
    for name in summary["files"]:
        if (work / "ready" / name).exists():
            os.replace(work / "ready" / name, output / name)
    _discard(work)
    return summary


def _write(path: Path, text: str) -> None:
    """Write a text; the name appears only when the file is whole."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def _discard(work: Path) -> None:
    """Remove a run; it is none any more from the first moment on."""
    if work.exists():
        gone = work.with_name(f"{work.name}-gone")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(work, gone)
        shutil.rmtree(gone)


def _begin(
    settings: StreamSettings, work: Path, *, resume: bool, overwrite: bool
) -> dict[str, Any]:
    """The plan of a run: what there is, and what was decided for the whole image."""
    if not knows_sources(settings.model):
        raise ValueError(
            f"model {settings.model} knows pixels only: it cannot go block by block; use 'field'"
        )
    settings = settings.absolute()
    wanted = asdict(settings) | _fingerprint(settings) | {"version": __version__}
    if resume:
        if not (work / "plan.json").exists():
            raise FileNotFoundError(f"{work.parent} holds no unfinished run: start one")
        plan: dict[str, Any] = json.loads((work / "plan.json").read_text())
        earlier = plan["settings"]
        if odd := [k for k in wanted if wanted[k] != earlier.get(k)]:
            raise ValueError(
                f"the run in {work.parent} was begun with another {', '.join(odd)}: "
                "resume it as it was begun, or overwrite it"
            )
        return plan
    if (work / "plan.json").exists() and not overwrite:
        raise FileExistsError(f"{work.parent} holds an unfinished run: resume or overwrite it")
    image = settings.open()
    n_y, n_x = image.shape
    if n_y * n_x >= 2**31:
        raise ValueError(f"an image has at most 2^31 pixels; {image.name} has {n_y} × {n_x}")
    for name in _FILES[1:]:
        given = isinstance(getattr(settings, name), str)
        if given and (shape := settings.open(name).shape) != image.shape:
            raise ValueError(f"{name} must have the image's shape {image.shape}; got {shape}")
    if isinstance(settings.rms, str):
        rms, n_negative = settings.open("rms"), 0
        for first in range(0, n_y, _STRIP):  # better said now than in hours
            part = rms.read(slice(first, min(first + _STRIP, n_y)), slice(0, n_x))
            n_negative += int((part < 0).sum())
        if n_negative:
            raise ValueError(f"rms must be positive; the map has {n_negative} negative pixels")
    network, meta = load_model(settings.model)
    assert isinstance(network, FieldNetwork)
    resolve_device(settings.device)
    fwhm, background = _decide(settings, image, meta)
    plan = {
        "settings": wanted,
        "shape": [n_y, n_x],
        "halo": -(-(network.halo + _MARGIN) // network.config.stride) * network.config.stride,
        "stride": network.config.stride,
        "psf_fwhm": fwhm,
        "background": background,
        "zeropoint": image.zeropoint if settings.zeropoint is None else settings.zeropoint,
        "meta": {
            "version": __version__,
            "psf_fwhm": fwhm,
            "seed": settings.seed,
            "n_samples": settings.n_samples,
            "input": image.name,
            **model_name(settings.model, meta),
        },
    }
    _discard(work)
    (work / "ready").mkdir(parents=True)
    wcs_header = fits.Header() if image.wcs is None else image.wcs.to_header(relax=True)
    header = provenance_header(plan["meta"])
    header["PBNMASK"] = (0, "masked pixels (NaN in the maps)")
    header["DATE"] = (datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"), "UTC")
    make_fits(work / "ready" / "maps.fits", header, wcs_header, _PLANES, (n_y, n_x))
    if settings.keep_samples:
        size = (settings.n_samples, n_y, n_x)
        make_fits(work / "ready" / "samples.fits", header, wcs_header, {"SAMPLES": "u1"}, size)
    with (work / "labels.raw").open("wb") as handle:
        handle.truncate(4 * n_y * n_x)
    _write(work / "plan.json", json.dumps(plan, indent=1))
    return plan


def _fingerprint(settings: StreamSettings) -> dict[str, Any]:
    """What tells whether files have changed since a run began."""
    marks: dict[str, Any] = {"weights_hash": file_hash(find_model(settings.model))}
    for name in _FILES:
        if isinstance(getattr(settings, name), str):
            state = settings.open(name).path.stat()
            marks[f"{name}_state"] = [state.st_size, state.st_mtime_ns]
    return marks


def _decide(settings: StreamSettings, image: ImageFile, meta: dict[str, Any]) -> tuple[float, str]:
    """Width of the PSF, and whether there is a background, for the whole image."""
    fwhm, background, seen = settings.psf_fwhm, settings.background, False
    for box in _samples(image.shape):
        try:
            prepared = prepare_image(
                image.read(*box), background=background, **_noise_and_mask(settings, box)
            )
        except NothingToSegmentError:
            continue
        seen = True
        if background == "auto" and prepared.background:
            background = "subtract"
        if fwhm is None:
            fwhm = estimate_psf_fwhm(prepared.signal, prepared.mask)
    if not seen and len(list(_samples(image.shape))) == 1:
        raise NothingToSegmentError("image has no usable pixel: all are NaN, masked or constant")
    if fwhm is None:
        fwhm = assumed_psf_fwhm(meta)
    return fwhm, "none" if background == "auto" else background


def _samples(shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """The middle of an image, and of its quarters if it has any."""
    places = [(0.5, 0.5)]
    if min(shape) > 2 * _SAMPLE:
        places += [(v, h) for v in (0.25, 0.75) for h in (0.25, 0.75)]
    for place in places:
        first = [max(0, int(p * n) - _SAMPLE // 2) for p, n in zip(place, shape, strict=True)]
        yield (
            slice(first[0], min(first[0] + _SAMPLE, shape[0])),
            slice(first[1], min(first[1] + _SAMPLE, shape[1])),
        )


def _noise_and_mask(settings: StreamSettings, box: tuple[slice, slice]) -> dict[str, Any]:
    """Noise and mask of a part of the image, as :func:`prepare_image` takes them."""
    rms: float | np.ndarray | None = None
    if isinstance(settings.rms, str):
        rms = settings.open("rms").read(*box)
    elif settings.rms is not None:
        rms = settings.rms
    elif settings.weight is not None:
        rms = rms_of_weight(settings.open("weight").read(*box))
    mask = None
    if settings.mask is not None:
        mask = masked_pixels(settings.open("mask").read(*box, exact=True), settings.flag_bits)
    return {"rms": rms, "mask": mask}


def _blocks(plan: dict[str, Any]) -> list[Tile]:
    n_y, n_x = plan["shape"]
    side, halo, stride = plan["settings"]["block"], plan["halo"], plan["stride"]
    return list(cover((n_y, n_x), core=side, halo=halo, stride=stride))


def _area(box: tuple[slice, slice]) -> int:
    return (box[0].stop - box[0].start) * (box[1].stop - box[1].start)


def _block_file(work: Path, number: int) -> Path:
    return work / f"block-{number:06d}.safetensors"


def _process(work: Path, todo: list[int], dask: str | None) -> Iterator[int]:
    """Process blocks here or on a cluster; their numbers as they are done."""
    if dask is None:
        for number in todo:
            yield process_block(str(work), number)
        return
    try:
        from dask.distributed import Client, LocalCluster, as_completed
    except ImportError as error:
        raise ValueError("more machines need dask: pip install 'probablend[dask]'") from error
    cluster: AbstractContextManager[Any] = nullcontext(dask)
    if dask.startswith("local:"):
        n = dask.removeprefix("local:")
        if not n.isdigit() or int(n) < 1:
            raise ValueError(f"local:N needs a number of processes; got {dask}")
        cluster = LocalCluster(
            n_workers=int(n), threads_per_worker=1, processes=True, dashboard_address=None
        )
    with cluster as where, Client(where) as client:
        futures = client.map(
            process_block, [str(work.resolve())] * len(todo), todo, pure=False, retries=3
        )
        for future in as_completed(futures):
            yield future.result()


@lru_cache(maxsize=1)
def _network(model: str, device: str, weights_hash: str) -> tuple[FieldNetwork, dict[str, Any]]:
    network, meta = load_model(model)
    assert isinstance(network, FieldNetwork)
    return network.to(resolve_device(device)), meta


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
    work = Path(folder)
    plan = json.loads((work / "plan.json").read_text())
    known = set(StreamSettings.__dataclass_fields__)
    settings = StreamSettings(**{k: v for k, v in plan["settings"].items() if k in known})
    network, meta = _network(settings.model, settings.device, plan["settings"]["weights_hash"])
    tile, shape = _blocks(plan)[number], tuple(plan["shape"])
    core, outer, inner = tile.core, tile.outer, tile.inner
    image = settings.open()
    pixels = image.read(*outer)
    try:
        prepared = prepare_image(
            pixels, background=plan["background"], **_noise_and_mask(settings, outer)
        )
    except NothingToSegmentError:
        _write_empty(work, core, shape)
        tensors = {"n_masked": torch.tensor([_area(core)])}
        save_tensors(_block_file(work, number), tensors, {})
        return number
    borders = (outer[0].start == 0, outer[0].stop == shape[0],
               outer[1].start == 0, outer[1].stop == shape[1])  # fmt: skip
    window = Window(tile.origin_yx, borders)
    wcs = None if image.wcs is None else image.wcs[outer]
    data = ImageData(
        data=pixels, wcs=wcs, name=image.name, zeropoint=plan["zeropoint"],
        saturation=image.saturation,
    )  # fmt: skip
    result = segment_prepared(
        network, meta, prepared, data, n_samples=settings.n_samples, seed=settings.seed,
        device=resolve_device(settings.device), wcs=wcs, psf_fwhm=plan["psf_fwhm"],
        zeropoint=plan["zeropoint"], min_p_source=settings.min_p_source, window=window,
    )  # fmt: skip
    tensors = _sources(result, window, core, shape, settings.keep_posterior)
    _write_planes(work, settings, core, shape, result, inner, tensors["flat"].numpy())
    if all(c.start <= n // 2 < c.stop for c, n in zip(core, shape, strict=True)):
        _quicklook(work, result, plan, inner)
    tensors["n_masked"] = torch.tensor([int(result.mask[inner].sum())])
    save_tensors(_block_file(work, number), tensors, {})
    return number


def _sources(
    result: Segmentation,
    window: Window,
    core: tuple[slice, slice],
    shape: tuple[int, int],
    keep_posterior: int,
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
        near &= pixel[:, axis] >= side.start - _MARGIN
        near &= pixel[:, axis] < side.stop + _MARGIN
    catalog = result.catalog
    tensors = {
        "flat": torch.from_numpy(flat.astype(np.int64)),
        "own": torch.from_numpy(own),
        "near": torch.from_numpy(near),
        "group": torch.from_numpy(np.asarray(catalog["parent"]).astype(np.int64)),
    }
    for name in catalog.colnames:
        values = np.asarray(getattr(catalog[name], "value", catalog[name]))[own]
        if name in ("y", "x"):
            values = values + window.origin_yx["yx".index(name)]
        tensors[f"catalog.{name}"] = torch.from_numpy(np.ascontiguousarray(values))
    ellipses = measured.ellipses
    for name in ("y", "x", "radius", "e1", "e2"):
        values = getattr(ellipses, name)[own]
        if name in ("y", "x"):
            values = values + window.origin_yx["yx".index(name)]
        tensors[f"ellipse.{name}"] = torch.from_numpy(np.ascontiguousarray(values, dtype=float))
    if keep_posterior:
        draws = measured.draws[:keep_posterior][:, own]
        origin = measured.origin[own] + np.array(window.origin_yx)
        tensors["draws"] = torch.from_numpy(np.ascontiguousarray(draws))
        tensors["origin"] = torch.from_numpy(np.ascontiguousarray(origin))
    return tensors


def _write_planes(
    work: Path,
    settings: StreamSettings,
    core: tuple[slice, slice],
    shape: tuple[int, int],
    result: Segmentation,
    inner: tuple[slice, slice],
    flat: np.ndarray,
) -> None:
    maps = work / "ready" / "maps.fits"
    at = plane_offsets(maps)
    planes = {"P_GALAXY": result.p_galaxy, "P_BLEND": result.p_blend, "MASK": result.mask}
    for name, plane in planes.items():
        write_box(maps, at[name], shape[1], core, plane[inner].astype(_PLANES[name]))
    # Until all sources are known, the pixel that owns a source is its number.
    numbers = np.concatenate([[0], flat + 1])[result.labels[inner]]
    write_box(work / "labels.raw", 0, shape[1], core, numbers.astype("<i4"))
    if settings.keep_samples:
        cube = work / "ready" / "samples.fits"
        first = plane_offsets(cube)["SAMPLES"]
        for k, sample in enumerate(result.samples):
            start = first + k * shape[0] * shape[1]
            write_box(cube, start, shape[1], core, sample[inner])


def _write_empty(work: Path, core: tuple[slice, slice], shape: tuple[int, int]) -> None:
    """A block without a usable pixel: missing, not zero."""
    maps = work / "ready" / "maps.fits"
    at = plane_offsets(maps)
    size = tuple(side.stop - side.start for side in core)
    for name, value in (("P_GALAXY", np.nan), ("P_BLEND", np.nan), ("MASK", 1)):
        write_box(maps, at[name], shape[1], core, np.full(size, value, _PLANES[name]))


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


def _finish(
    work: Path, plan: dict[str, Any], catalog_format: str, names: str, regions: bool
) -> dict[str, Any]:
    """Number the sources as in one piece, and write what goes over all blocks."""
    ready = work / "ready"
    for name in PRODUCTS:  # an earlier attempt may have ended here
        if name not in ("maps.fits", "samples.fits", "quicklook.png"):
            (ready / name).unlink(missing_ok=True)
    blocks = _blocks(plan)
    parts: list[dict[str, np.ndarray]] = []
    n_masked = 0
    for number in range(len(blocks)):
        part = _load(work, number)
        n_masked += int(part["n_masked"][0])
        if "flat" in part:
            parts.append(part)
    flat = _joined(parts, "own_flat", np.int64)
    order = np.argsort(flat)
    flat = flat[order]
    n_x = plan["shape"][1]

    maps = ready / "maps.fits"
    at = plane_offsets(maps)["LABELS"]
    for core in (block.core for block in blocks):
        numbers = read_box(work / "labels.raw", n_x, core)
        place = np.searchsorted(flat, numbers - 1).clip(max=max(len(flat) - 1, 0))
        known = (numbers > 0) & (flat[place] == numbers - 1) if len(flat) else numbers < 0
        labels = np.where(known, place + 1, 0)
        write_box(maps, at, n_x, core, labels.astype(">i4"))
    header = fits.getheader(maps)
    header["PBNMASK"] = n_masked
    with maps.open("r+b") as handle:
        handle.write(padded(header))

    columns = {
        name: _joined(parts, f"catalog.{name}", kind)[order]
        for name, (kind, _, _) in COLUMNS.items()
        if not parts or f"catalog.{name}" in parts[0]
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
    products = {"maps.fits": "maps", f"catalog.{catalog_format}": "catalogue",
                "quicklook.png": "quicklook", "samples.fits": "samples",
                "posterior.fits": "posterior", "sources.reg": "regions"}  # fmt: skip
    files = [name for name in products if (ready / name).exists()]
    return {
        "objects": len(flat),
        "blended": int((columns["p_blend"] > 0.5).sum()),
        "products": [products[name] for name in files],
        "files": [*files, "summary.json"],
    }


def _load(work: Path, number: int, *, draws: bool = False) -> dict[str, np.ndarray]:
    """What a block found; its joint draws only if they are asked for."""
    tensors, _ = load_tensors(_block_file(work, number))
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
        for number in range(len(_blocks(plan))):
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
