"""What is done to an image that is too large for one piece, and where.

A plan is made once: the blocks that there are, and what is decided for the whole image. It lies
in the folder of the run, so that any process can take up any block, and a run that died goes on
only with what it was begun with.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.io import fits

from probablend._version import __version__
from probablend.catalog import provenance_header
from probablend.checkpoint import file_hash, find_model, knows_sources, load_model, save_tensors
from probablend.correlation import WHITE
from probablend.device import resolve_device
from probablend.images import ImageFile, split_extension
from probablend.infer.measure import pixel_positions, read_positions
from probablend.infer.planes import RawPlane, make_planes
from probablend.infer.psf import measure_psf
from probablend.infer.segment import (
    assumed_psf_fwhm,
    check_numbers,
    known_wings,
    model_name,
    say_no_zeropoint,
    say_psf,
    sure_psf,
    usable_psf_map,
)
from probablend.infer.sources import N_DRAWS
from probablend.infer.tiles import Tile, cover
from probablend.models.field import FieldNetwork, check_precision
from probablend.models.fit import REACH
from probablend.prepare import (
    NothingToSegmentError,
    masked_pixels,
    prepare_image,
    rms_of_variance,
    rms_of_weight,
)
from probablend.psf import PSF
from probablend.zarrs import check_zarr

__all__ = [
    "BLOCK", "MARGIN", "PLANES", "StreamSettings", "area", "begin", "block_file", "blocks_of",
    "check_same", "discard", "fingerprint", "noise_and_mask", "one_noise", "write_text",
]  # fmt: skip

log = logging.getLogger(__name__)

BLOCK = 2304  # pixels, side of a block
MARGIN = 128  # pixels around it in which sources are seen as they are
PLANES = {"P_GALAXY": ">f4", "P_BLEND": ">f4", "LABELS": ">i4", "MASK": "u1"}
MAPS_FORMATS = ("fits", "zarr")
_CUTOUT_BLOCK = 256  # what is looked at around a position, beside the margin
_SAMPLE = 1024  # pixels, side of the windows that decide for the whole image
_STRIP = 512  # rows
_BESIDE = 3.0  # pixels, of a peak from the place of its source
_FILES = ("image", "rms", "weight", "variance", "mask", "psf_fwhm")  # of one shape
_OTHER_FILES = ("psf", "cutouts")


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
    variance : str, optional
        File of variances; zero means missing. Instead of ``rms`` or ``weight``.
    mask : str, optional
        File, non-zero = do not use.
    flag_bits : int
        Bits of ``mask`` that count; −1 = any.
    psf : str, optional
        A file, see :class:`~probablend.psf.PSF`.
    psf_fwhm : str or float, optional
        A file of the width at every pixel, or a number.
    pixel_scale : float, optional
        Arcseconds per pixel; of the image's coordinates if not given.
    saturation : float, optional
        Level from which pixels are saturated; that of the image's header if not given.
    keep_posterior : int
        Joint draws of every source to keep.
    keep_samples : bool
        Whether to keep the class maps.
    maps_format : {"fits", "zarr"}
        Of the maps and the samples.
    block : int, optional
        Side of a block, pixels; 2304, or 256 around cut-outs, if not given. It changes memory,
        and the regions in which background and noise are estimated when they are not given.
    cutouts : str, optional
        File of a catalogue, see :func:`~probablend.infer.measure.pixel_positions`: only what lies
        around its positions is looked at, and there are no maps.
    cutout_size : int
        Side of the square around each position in which sources are kept, pixels.
    """

    image: str
    ext: str | None = None
    rms: str | float | None = None
    weight: str | None = None
    variance: str | None = None
    mask: str | None = None
    flag_bits: int = -1
    background: str | float = "auto"
    n_samples: int = 16
    seed: int = 0
    model: str = "field"
    device: str = "auto"
    precision: str = "single"
    psf: str | None = None
    psf_fwhm: str | float | None = None
    pixel_scale: float | None = None
    zeropoint: float | None = None
    saturation: float | None = None
    min_p_source: float = 0.5
    error_factor: float = 1.0
    keep_posterior: int = 0
    keep_samples: bool = False
    maps_format: str = "fits"
    block: int | None = None
    cutouts: str | None = None
    cutout_size: int = 128

    def __post_init__(self) -> None:
        if self.block is not None and self.block < 64:
            raise ValueError(f"block must be at least 64 pixels; got {self.block}")
        check_precision(self.precision)
        if self.maps_format not in MAPS_FORMATS:
            raise ValueError(
                f"the format of maps must be one of {', '.join(MAPS_FORMATS)}; "
                f"got {self.maps_format!r}"
            )
        if self.maps_format == "zarr":
            check_zarr()
        if self.cutout_size < 1:
            raise ValueError(f"cutout_size must be at least 1 pixel; got {self.cutout_size}")
        if self.cutouts is not None and self.keep_samples:
            raise ValueError("there are no maps of cut-outs, and no samples of maps: leave one out")
        one_psf = None if isinstance(self.psf_fwhm, str) else self.psf_fwhm
        check_numbers(
            n_samples=self.n_samples, min_p_source=self.min_p_source,
            error_factor=self.error_factor, psf_fwhm=one_psf, pixel_scale=self.pixel_scale,
            zeropoint=self.zeropoint, saturation=self.saturation,
        )  # fmt: skip
        if not 0 <= self.keep_posterior <= N_DRAWS:
            raise ValueError(f"at most {N_DRAWS} draws can be kept; got {self.keep_posterior}")
        one_noise(self.rms, self.weight, self.variance)

    @property
    def side(self) -> int:
        """Side of the blocks, pixels."""
        usual = BLOCK if self.cutouts is None else max(_CUTOUT_BLOCK, self.cutout_size)
        return usual if self.block is None else self.block

    def open(self, name: str = "image") -> ImageFile:
        """One of the files."""
        return ImageFile(getattr(self, name), ext=self.ext if name == "image" else None)

    def absolute(self) -> "StreamSettings":
        """The same with files that do not depend on where one stands."""
        names = [name for name in (*_FILES, *_OTHER_FILES) if isinstance(getattr(self, name), str)]
        if self.model.endswith(".safetensors"):
            names.append("model")
        paths: dict[str, Any] = {k: str(Path(getattr(self, k)).resolve()) for k in names}
        return replace(self, **paths)


def one_noise(*given: Any) -> None:
    """Refuse more than one of noise, inverse variance and variance."""
    if sum(one is not None for one in given) > 1:
        raise ValueError("rms, weight and variance all say how strong the noise is: give one")


def begin(
    settings: StreamSettings,
    work: Path,
    products: dict[str, Any],
    *,
    resume: bool,
    overwrite: bool,
) -> dict[str, Any]:
    """The plan of a run: what there is, what was decided for the whole image, what is written."""
    if not knows_sources(settings.model):
        raise ValueError(
            f"model {settings.model} knows pixels only: it cannot go block by block; use 'field'"
        )
    settings = settings.absolute()
    wanted = fingerprint(settings) | products
    if resume:
        if not (work / "plan.json").exists():
            raise FileNotFoundError(f"{work.parent} holds no unfinished run: start one")
        plan: dict[str, Any] = json.loads((work / "plan.json").read_text())
        check_same(wanted, plan["settings"], work.parent)
        return plan
    if (work / "plan.json").exists() and not overwrite:
        raise FileExistsError(
            f"{work.parent} holds an unfinished run: resume (--resume) "
            "or overwrite it (--overwrite)"
        )
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
    known = None if settings.psf is None else PSF.read(settings.psf)
    if known is not None and isinstance(settings.psf_fwhm, float | int):
        known = replace(known, fwhm=float(settings.psf_fwhm))
    if known is not None:
        say_psf(known, network)
    psf, noise_factors, background = _decide(settings, image, meta, known)
    fwhm, wings = psf.fwhm, known_wings(psf, network)
    scale = image.pixel_scale if settings.pixel_scale is None else settings.pixel_scale
    zeropoint = image.zeropoint if settings.zeropoint is None else settings.zeropoint
    if zeropoint is None:
        say_no_zeropoint()
    plan = {
        "settings": wanted,
        "shape": [n_y, n_x],
        "side": settings.side,
        "halo": _halo(network),
        "stride": network.config.stride,
        "psf_fwhm": fwhm,
        "psf_wings": wings,
        "psf_image": None if psf.image is None else psf.image.tolist(),
        "noise_factors": noise_factors,
        "background": background,
        "pixel_scale": scale,
        "zeropoint": zeropoint,
        "meta": {
            "version": __version__,
            "psf_fwhm": fwhm,
            "psf_from": psf.origin,
            "psf_wings": None if wings is None else wings[0],
            "zeropoint": zeropoint,
            "pixel_scale": scale,
            "error_factor": settings.error_factor,
            "noise_factor": noise_factors[0],
            "roughness_factor": noise_factors[1],
            "seed": settings.seed,
            "n_samples": settings.n_samples,
            "precision": settings.precision,
            "input": image.name,
            **model_name(settings.model, meta),
        },
    }
    discard(work)
    (work / "ready").mkdir(parents=True)
    if settings.cutouts is None:
        plan["todo"] = list(range(len(blocks_of(plan))))
        _empty_maps(work, settings, plan, image)
    else:
        inside = _cutouts(settings, image)
        plan["todo"] = _touched(inside["yx"], settings.cutout_size / 2, plan)
        tensors = {name: torch.from_numpy(values) for name, values in inside.items()}
        save_tensors(work / "cutouts.safetensors", tensors, {})
    write_text(work / "plan.json", json.dumps(plan, indent=1))
    return plan


def _empty_maps(
    work: Path, settings: StreamSettings, plan: dict[str, Any], image: ImageFile
) -> None:
    """Files of zeros, and as many headers, for the blocks to be written into."""
    n_y, n_x = image.shape
    wcs_header = fits.Header() if image.wcs is None else image.wcs.to_header(relax=True)
    header = provenance_header(plan["meta"])
    header["PBNMASK"] = (0, "masked pixels (NaN in the maps)")
    header["DATE"] = (datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"), "UTC")
    blocks = blocks_of(plan)
    side = max(end.stop for end in blocks[0].core) if len(blocks) > 1 else None
    products: dict[str, tuple[dict[str, str], tuple[int, ...]]] = {"maps": (PLANES, (n_y, n_x))}
    if settings.keep_samples:
        products["samples"] = ({"SAMPLES": "u1"}, (settings.n_samples, n_y, n_x))
    for name, (planes, shape) in products.items():
        path = work / "ready" / f"{name}.{settings.maps_format}"
        make_planes(path, header, wcs_header, planes, shape, side)
    RawPlane(work / "labels.raw", n_x).make(n_y)


def _cutouts(settings: StreamSettings, image: ImageFile) -> dict[str, np.ndarray]:
    """Positions that lie in the image, and their rows in the table."""
    assert settings.cutouts is not None
    at = pixel_positions(read_positions(settings.cutouts), image.wcs)
    with np.errstate(invalid="ignore"):
        row = np.flatnonzero(((at > -0.5) & (at < np.array(image.shape) - 0.5)).all(axis=1))
    if not len(row):
        log.warning("%s: none of the %d positions lies in the image", image.name, len(at))
    return {"yx": np.ascontiguousarray(at[row]), "row": row}


def _touched(at: np.ndarray, reach: float, plan: dict[str, Any]) -> list[int]:
    """Blocks that have a pixel within reach of a position."""
    blocks = blocks_of(plan)
    n_x = sum(block.core[0].start == 0 for block in blocks)
    side = max(blocks[0].core[1].stop, blocks[0].core[0].stop)
    last = np.array([len(blocks) // n_x - 1, n_x - 1])
    # A pixel reaches half a pixel from its middle, and a peak may lie beside its source.
    reach += _BESIDE
    low = np.clip((at - reach + 0.5) // side, 0, last).astype(int)
    high = np.clip((at + reach + 0.5) // side, 0, last).astype(int)
    return sorted(
        {
            y * n_x + x
            for first, final in zip(low, high, strict=True)
            for y in range(first[0], final[0] + 1)
            for x in range(first[1], final[1] + 1)
        }
    )


def fingerprint(settings: StreamSettings) -> dict[str, Any]:
    """What a run must have been begun with to be gone on with: settings, files and version."""
    marks = asdict(settings) | {"version": __version__}
    marks["weights_hash"] = file_hash(find_model(settings.model))
    for name in (*_FILES, *_OTHER_FILES):
        given = getattr(settings, name)
        if isinstance(given, str):
            path = split_extension(given)[0] if name in _OTHER_FILES else settings.open(name).path
            if not path.exists():
                raise FileNotFoundError(f"{name} {given} does not exist")
            files = path.rglob("*") if path.is_dir() else [path]
            states = [file.stat() for file in files]
            marks[f"{name}_state"] = [
                sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)
            ]  # fmt: skip
    return marks


def check_same(wanted: dict[str, Any], earlier: dict[str, Any], folder: Path) -> None:
    """Refuse to go on with what was begun in another way: fingerprints must agree."""
    if odd := [k for k in wanted if k not in earlier or wanted[k] != earlier[k]]:
        raise ValueError(
            f"the run in {folder} was begun with another {', '.join(odd)}: "
            "resume it as it was begun, or overwrite it"
        )


def _halo(network: FieldNetwork) -> int:
    """Pixels around a block that its answer depends on."""
    stride = network.config.stride
    reach = network.halo + MARGIN + (REACH if network.config.fits else 0)
    return -(-reach // stride) * stride


def _decide(
    settings: StreamSettings, image: ImageFile, meta: dict[str, Any], known: PSF | None
) -> tuple[PSF, tuple[float, float], str | float]:
    """PSF, correlation of the noise and kind of background, or its level, of the whole image."""
    if known is None and isinstance(settings.psf_fwhm, float | int):
        known = PSF(fwhm=float(settings.psf_fwhm))
    psf = known
    widths: list[float] = []
    background = settings.background
    factors: list[tuple[float, float]] = []
    levels: list[float] = []
    for box in _samples(image.shape):
        try:
            prepared = prepare_image(
                image.read(*box), background=background, compare_noise=not factors,
                **noise_and_mask(settings, box),
            )  # fmt: skip
        except NothingToSegmentError:
            continue
        factors.append(prepared.noise_factors)
        levels.append(prepared.background)
        if background == "auto" and prepared.background and not prepared.flat:
            background = "subtract"
        if isinstance(settings.psf_fwhm, str):
            typical = usable_psf_map(settings.open("psf_fwhm").read(*box), prepared.mask)
            widths.append(float(np.median(typical)))
        elif known is None and (psf is None or psf.image is None):
            found = measure_psf(prepared.signal, prepared.mask, prepared.rms)
            psf = max(psf, found, key=_rank)  # of two that say as much, the first
    if not factors and len(list(_samples(image.shape))) == 1:
        raise NothingToSegmentError("image has no usable pixel: all are NaN, masked or constant")
    if widths:
        psf = PSF(fwhm=widths[0], wings=None if psf is None else psf.wings)
    if psf is None and isinstance(settings.psf_fwhm, str):
        psf = PSF(fwhm=assumed_psf_fwhm(meta), origin="given")
    elif psf is None or psf.origin == "assumed":
        psf = sure_psf(psf, meta)
    near, far = np.median(factors, axis=0).tolist() if factors else WHITE
    level = float(np.median(levels)) if levels else 0.0
    return psf, (near, far), level if background == "auto" else background


def _rank(psf: PSF | None) -> tuple[int, float]:
    """The more that is known the better; of what is no star's the narrowest."""
    if psf is None:
        return -1, 0.0
    if psf.origin == "assumed":
        return 0, -psf.fwhm
    return 1 + (psf.wings is not None) + (psf.image is not None), 0.0


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


def noise_and_mask(settings: StreamSettings, box: tuple[slice, slice]) -> dict[str, Any]:
    """Noise and mask of a part of the image, as :func:`prepare_image` takes them."""
    rms: float | np.ndarray | None = None
    if isinstance(settings.rms, str):
        rms = settings.open("rms").read(*box)
    elif settings.rms is not None:
        rms = settings.rms
    elif settings.weight is not None:
        rms = rms_of_weight(settings.open("weight").read(*box))
    elif settings.variance is not None:
        rms = rms_of_variance(settings.open("variance").read(*box))
    mask = None
    if settings.mask is not None:
        mask = masked_pixels(settings.open("mask").read(*box, exact=True), settings.flag_bits)
    return {"rms": rms, "mask": mask}


def blocks_of(plan: dict[str, Any]) -> list[Tile]:
    """All blocks, row by row."""
    n_y, n_x = plan["shape"]
    side, halo, stride = plan["side"], plan["halo"], plan["stride"]
    return list(cover((n_y, n_x), core=side, halo=halo, stride=stride))


def area(box: tuple[slice, slice]) -> int:
    """Pixels in a box."""
    return (box[0].stop - box[0].start) * (box[1].stop - box[1].start)


def block_file(work: Path, number: int) -> Path:
    """Where what a block holds is kept; it is there when the block is done."""
    return work / f"block-{number:06d}.safetensors"


def write_text(path: Path, text: str) -> None:
    """Write a text; the name appears only when the file is whole."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def discard(work: Path) -> None:
    """Remove a run; it is none any more from the first moment on."""
    if work.exists():
        gone = work.with_name(f"{work.name}-gone")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(work, gone)
        shutil.rmtree(gone)
