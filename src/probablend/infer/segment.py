"""Image → posterior samples of pixel classes → probabilities, objects and a catalogue."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import torch
from astropy.stats import gaussian_sigma_to_fwhm
from astropy.wcs import WCS

from probablend._version import __version__
from probablend.catalog import catalog_of_labels, set_flux_unit
from probablend.checkpoint import file_hash, find_model, load_model, pixels_only
from probablend.device import resolve_device
from probablend.emulate.classes import N_CLASSES
from probablend.images import ImageData
from probablend.infer.footprints import label_sources
from probablend.infer.objects import find_objects
from probablend.infer.psf import measure_psf
from probablend.infer.scan import Found, scan_image
from probablend.infer.segmentation import Segmentation
from probablend.infer.sources import measure_sources
from probablend.infer.tiles import WHOLE, Window
from probablend.inputs import ImageLike, as_image
from probablend.models.distribution import SegmentationNetwork
from probablend.models.field import FieldNetwork, check_precision
from probablend.models.network import Network
from probablend.prepare import PreparedImage, prepare_image, usable_at
from probablend.psf import PSF, as_psf

__all__ = [
    "DEFAULT_MODEL",
    "assumed_psf_fwhm",
    "segment",
    "usable_psf_map",
]

log = logging.getLogger(__name__)

DEFAULT_MODEL = "field"
_LIKELY = 0.5  # p_source of a neighbour of positions that are asked about
_TILE = 1040  # side of a tile's core, pixels


def segment(
    image: ImageLike,
    *,
    rms: float | np.ndarray | None = None,
    mask: np.ndarray | None = None,
    n_samples: int = 16,
    seed: int = 0,
    model: str | Path = DEFAULT_MODEL,
    device: str = "auto",
    background: str | float = "auto",
    wcs: WCS | None = None,
    psf: PSF | np.ndarray | str | Path | None = None,
    psf_fwhm: float | np.ndarray | None = None,
    pixel_scale: float | None = None,
    zeropoint: float | None = None,
    saturation: float | None = None,
    min_p_source: float = 0.5,
    error_factor: float = 1.0,
    positions: np.ndarray | None = None,
    tile_size: int = _TILE,
    precision: str = "single",
    progress: Callable[[int, int], None] | None = None,
) -> Segmentation:
    """Segment an image: where galaxies are, where they overlap, how sure that is.

    Parameters
    ----------
    image : path, ndarray, Tensor, ImageHDU, NDData (CCDData), Cutout2D or ImageData
        Of shape (y, x), in any unit. Mask, noise, coordinates, zero point and unit that it carries
        are used; what is given below wins. See :func:`~probablend.inputs.as_image`.
    rms : float or ndarray, optional
        Noise per pixel, same unit; estimated if not given.
    mask : ndarray of bool, optional
        True = do not use. NaN pixels are masked anyway.
    n_samples : int
        Posterior samples.
    seed : int
        The same seed gives the same samples.
    model : str or Path
        Name of shipped weights, or a ``.safetensors`` file.
    device : {"auto", "cpu", "cuda", "mps"}
        Where to compute.
    background : {"auto", "subtract", "none"} or float
        What to take out; see :func:`~probablend.prepare.prepare_image`.
    wcs : WCS or Header, optional
        Celestial coordinates; read from the file if there is one.
    psf : PSF, ndarray of shape (y, x) or path, optional
        The PSF, best known: an image of it on the pixels of this one, a file with such an image,
        or what PSFEx writes; see :class:`~probablend.psf.PSF`.
    psf_fwhm : float or ndarray, optional
        FWHM of the PSF, pixels, of the image or of every pixel; it wins over that of ``psf``.
        Without either, the PSF is measured on the image's stars, and as much of its wings as
        they tell. With a FWHM alone it stays unknown how much light lies in the wings, and
        posteriors are wider accordingly.
    pixel_scale : float, optional
        Arcseconds per pixel, for sizes in arcseconds; of the coordinates if not given.
    zeropoint : float, optional
        AB magnitude of one unit of flux; read from the file if it says so.
    saturation : float, optional
        Level from which pixels are saturated, same unit; read from the file if it says so.
    min_p_source : float
        Detections less probable than this are left out.
    error_factor : float
        By what posteriors of sources are made wider than learnt, or narrower: in standard normal
        numbers, so that they stay densities, of all parameters alike.
        :func:`~probablend.evaluate.inject.inject` finds which one an image wants.
    positions : ndarray, shape (source, 2), optional
        (y, x) of sources to measure instead of the network's own detections, pixels inside
        the image; see :func:`~probablend.infer.measure.measure`.
    tile_size : int
        Side of the tiles in which a large image is processed, pixels. It changes memory, not
        the result.
    precision : {"single", "bfloat16"}
        Of the convolutions; see :meth:`~probablend.models.field.FieldNetwork.use_precision`.
    progress : callable, optional
        Called with the pixels done and the pixels in all.

    Returns
    -------
    Segmentation

    Raises
    ------
    FileNotFoundError
        If the image or the model does not exist.
    ValueError
        If an argument cannot be used; the message says which and why.
    """
    one_psf: Any = None if isinstance(psf_fwhm, np.ndarray) and psf_fwhm.ndim else psf_fwhm
    check_numbers(
        n_samples=n_samples, min_p_source=min_p_source, error_factor=error_factor,
        psf_fwhm=one_psf, pixel_scale=pixel_scale, zeropoint=zeropoint, saturation=saturation,
    )  # fmt: skip
    check_kinds(seed=seed)
    if tile_size < 1:
        raise ValueError(f"tile_size must be at least 1 pixel; got {tile_size}")
    data = as_image(image, rms=rms, mask=mask, wcs=wcs, zeropoint=zeropoint, saturation=saturation)
    known = None if psf is None else as_psf(psf)
    if known is not None:
        psf_fwhm = known.fwhm if psf_fwhm is None else psf_fwhm
        if one_psf is not None:
            known = replace(known, fwhm=float(one_psf))
    where = resolve_device(device)
    network, meta = ready_network(model, device, precision)
    if known is not None:
        say_psf(known, network)
        known = replace(known, origin="given")  # here, even if another image's stars say it
    if not isinstance(network, SegmentationNetwork):
        raise ValueError(f"model {model} looks at stamps of two galaxies only; use 'field'")
    if network.config.n_bands != 1 or network.config.n_classes != N_CLASSES:
        raise ValueError(
            f"model {model} takes {network.config.n_bands} bands and knows "
            f"{network.config.n_classes} classes; one band and {N_CLASSES} classes are wanted"
        )
    if positions is not None and not isinstance(network, FieldNetwork):
        raise pixels_only(model)
    if positions is not None:
        positions = np.asarray(positions, dtype=float)
        n_y, n_x = np.shape(data.data)[-2:] if np.ndim(data.data) >= 2 else (0, 0)
        if positions.ndim != 2 or positions.shape[1] != 2:
            raise ValueError(f"positions must have shape (n, 2); got {positions.shape}")
        if not ((positions > -0.5) & (positions < (n_y - 0.5, n_x - 0.5))).all():
            raise ValueError("positions must lie in the image; measure() takes any")
    prepared = prepare_image(data.data, rms=data.rms, mask=data.mask, background=background)
    if prepared.mask.any():
        n_masked = int(prepared.mask.sum())
        log.warning("%d of %d pixels are masked: NaN in the maps", n_masked, prepared.mask.size)
    if psf_fwhm is None and isinstance(network, FieldNetwork):
        known = psf_of_stars(prepared, meta)
        psf_fwhm = known.fwhm
    if psf_fwhm is None:
        known = PSF(fwhm=float(np.median(_trained_fwhms(meta))), origin="assumed")
        psf_fwhm = known.fwhm
    if isinstance(psf_fwhm, np.ndarray):
        psf_fwhm = usable_psf_map(psf_fwhm, prepared.mask)
    result = segment_prepared(
        network, meta, prepared, data, n_samples=n_samples, seed=seed, device=where,
        wcs=data.wcs, psf_fwhm=psf_fwhm, psf_wings=known_wings(known, network),
        psf_image=None if known is None or isinstance(psf_fwhm, np.ndarray) else known.image,
        noise_factors=prepared.noise_factors,
        pixel_scale=data.pixel_scale if pixel_scale is None else pixel_scale,
        zeropoint=data.zeropoint, min_p_source=min_p_source, error_factor=error_factor,
        positions=positions,
        tile_size=tile_size, progress=progress,
    )  # fmt: skip
    if data.zeropoint is None:
        say_no_zeropoint()
    if data.unit is not None:
        set_flux_unit(result.catalog, data.unit)
    result.meta.update(model_name(model, meta))
    fwhm = result.meta["psf_fwhm"]
    taken = PSF(fwhm=fwhm) if known is None else replace(known, fwhm=fwhm)
    result.meta["psf_from"] = taken.origin
    return replace(result, psf=taken)


def ready_network(model: str | Path, device: str, precision: str) -> tuple[Network, dict[str, Any]]:
    """Network on a device, and its metadata: those that were asked for last are kept.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`~probablend.checkpoint.load_model`; or if there is no such device or precision.
    """
    check_precision(precision)
    path = find_model(model)
    network, meta = _ready(path, file_hash(path), str(resolve_device(device)), precision)
    if precision != "single" and not isinstance(network, FieldNetwork):
        raise ValueError(f"precision {precision} is for field models; {model} is of another kind")
    return network, meta


@lru_cache(maxsize=2)
def _ready(
    path: Path, weights_hash: str, device: str, precision: str
) -> tuple[Network, dict[str, Any]]:
    network, meta = load_model(path)
    if isinstance(network, FieldNetwork):
        network.use_precision(precision)
    return network.to(device).requires_grad_(False), meta


def psf_of_stars(prepared: PreparedImage, meta: Mapping[str, Any]) -> PSF:
    """The PSF of an image's own stars; what weights assume if there are none."""
    return sure_psf(measure_psf(prepared.signal, prepared.mask, prepared.rms), meta)


def sure_psf(measured: PSF | None, meta: Mapping[str, Any]) -> PSF:
    """What was measured, if on stars; else what weights assume, and no more than what was seen."""
    if measured is not None and measured.origin != "assumed":
        return measured
    most = np.inf if measured is None else measured.fwhm
    return PSF(fwhm=assumed_psf_fwhm(meta, most), origin="assumed")


def typical_noise(prepared: PreparedImage) -> float:
    """Median of the noise per pixel, unit of the image."""
    return float(np.median(np.broadcast_to(prepared.rms, prepared.mask.shape)[~prepared.mask]))


def known_wings(psf: PSF | None, network: SegmentationNetwork) -> tuple[float, ...] | None:
    """What a network is told of the wings of a PSF; None if nothing is, or can be."""
    knows = getattr(network.config, "knows_psf", False)
    return psf.wings if psf is not None and knows else None


def say_psf(psf: PSF, network: Any) -> None:
    """Log what PSF is given, and whether the network has a use for all of it."""
    log.info("the PSF that is %s: %s", psf.origin, psf)
    if psf.wings is not None and not getattr(network.config, "knows_psf", False):
        log.warning("this model knows the width of the PSF at most: its wings count for nothing")


_POSITIVE = {
    "error_factor": "", "gain": "", "psf_fwhm": "", "pixel_scale": ", arcsec", "saturation": "",
}  # fmt: skip


def say_no_zeropoint() -> None:
    """Log that fluxes have no magnitude."""
    log.info("no zero point is known, magnitudes are NaN: zeropoint (--zeropoint) says it")


def check_numbers(**numbers: Any) -> None:
    """Refuse settings that make no sense, by their names, before any work is done."""
    check_kinds(**numbers)
    for name, value in numbers.items():
        if value is None:
            continue
        if name == "n_samples" and value < 1:
            raise ValueError(f"n_samples must be at least 1; got {value}")
        if name == "min_p_source" and not 0 <= value <= 1:
            raise ValueError(f"min_p_source must lie between 0 and 1; got {value}")
        if name in _POSITIVE and not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive{_POSITIVE[name]}; got {value}")
        if name == "zeropoint" and not np.isfinite(value):
            raise ValueError(f"zeropoint must be finite; got {value}")


def check_kinds(**numbers: Any) -> None:
    """Refuse what is no number; ``n_samples`` and ``seed`` must be whole ones."""
    for name, value in numbers.items():
        whole = name in ("n_samples", "seed")
        kind = Integral if whole else Real
        if value is None and not whole:
            continue
        if isinstance(value, u.Quantity) or not isinstance(value, kind):
            what = "a whole number" if whole else "a plain number"
            raise TypeError(f"{name} must be {what}; got {value!r}")


def usable_psf_map(widths: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A map of the width of the PSF; what is masked gets a typical one.

    Raises
    ------
    ValueError
        If it has another shape than the image, or no width where the image has pixels.
    """
    if widths.shape != mask.shape:
        raise ValueError(f"psf_fwhm must have the image's shape {mask.shape}; got {widths.shape}")
    with np.errstate(invalid="ignore"):
        good = np.isfinite(widths) & (widths > 0)
    if n_bad := int((~good & ~mask).sum()):
        raise ValueError(f"psf_fwhm must be positive; the map has {n_bad} pixels where it is not")
    typical = np.median(widths[good]) if good.any() else 1.0
    return np.where(good, widths, typical).astype(np.float32)


def model_name(model: str | Path, meta: Mapping[str, Any]) -> dict[str, str]:
    """Name and hash of weights, as results carry them."""
    return {"model": meta.get("name", str(model)), "weights_hash": file_hash(find_model(model))}


def segment_prepared(
    network: SegmentationNetwork,
    meta: Mapping[str, Any],
    prepared: PreparedImage,
    data: ImageData,
    *,
    n_samples: int,
    seed: int,
    device: torch.device,
    wcs: WCS | None,
    psf_fwhm: float | np.ndarray,
    psf_wings: Sequence[float] | None,
    psf_image: np.ndarray | None,
    noise_factors: tuple[float, float],
    pixel_scale: float | None,
    zeropoint: float | None,
    min_p_source: float,
    error_factor: float,
    positions: np.ndarray | None = None,
    tile_size: int = _TILE,
    window: Window = WHOLE,
    progress: Callable[[int, int], None] | None = None,
) -> Segmentation:
    """Segment an image in units of its noise; :func:`segment` prepares it.

    Parameters
    ----------
    network, meta
        The model, on ``device``, and what is known of it.
    prepared : PreparedImage
        The image, its noise and mask.
    data : ImageData
        As it was read.
    window : Window
        Which part of a larger image this is. Positions and ``wcs`` are those of the part.
    psf_wings : sequence of 3 float or None
        How much light lies in the wings of its PSF, if that is known.
    psf_image : ndarray, shape (41, 41), or None
        Of its PSF, if that is known.
    noise_factors : tuple of float
        How correlated the noise of the image is.
    n_samples, seed, device, wcs, psf_fwhm, pixel_scale, zeropoint, min_p_source, error_factor
        See :func:`segment`.
    positions, tile_size, progress
        See :func:`segment`.
    """
    scan = scan_image(
        network,
        prepared.signal,
        n_samples=n_samples,
        seed=seed,
        psf_fwhm=psf_fwhm,
        psf_wings=psf_wings,
        psf_image=psf_image,
        noise_factors=noise_factors,
        positions=positions,
        tile_size=tile_size,
        device=device,
        window=window,
        progress=progress,
    )
    scan.p_galaxy[prepared.mask] = np.nan
    scan.p_blend[prepared.mask] = np.nan
    scan.samples[:, prepared.mask] = 0
    draws = scan.draws
    if prepared.mask.any():
        draws = [(y[keep], x[keep]) for y, x in draws for keep in [~prepared.mask[y, x]]]
    measured = None
    if isinstance(network, FieldNetwork) and scan.found is not None:
        found = scan.found
        if positions is None:
            found = found.keep(_detections(found, prepared, min_p_source))
        else:  # in the order in which they were asked for
            found = found.keep(np.argsort(found.row))
        n_asked = len(found)
        if scan.beside is not None:  # footprints overlap those of neighbours, asked about or not
            own = _detections(scan.beside, prepared, _LIKELY)
            found = found.followed_by(scan.beside.keep(own))
        measured = measure_sources(
            network, found, prepared, draws, seed=seed, wcs=wcs, pixel_scale=pixel_scale,
            zeropoint=zeropoint,
            saturation=data.saturation, image=data.data, psf_fwhm=psf_fwhm, meta=meta,
            error_factor=error_factor, window=window,
        ).first(n_asked)  # fmt: skip
        labels = label_sources(measured.ellipses, scan.p_galaxy)
        catalog = measured.catalog
    else:
        smoothing = max(1.0, float(np.median(_trained_fwhms(meta))) / gaussian_sigma_to_fwhm)
        labels = find_objects(scan.p_galaxy, prepared.signal, smoothing=smoothing)
        catalog = catalog_of_labels(labels, prepared.signal, draws, prepared.mask, wcs=wcs)
    return Segmentation(
        p_galaxy=scan.p_galaxy,
        p_blend=scan.p_blend,
        samples=scan.samples,
        labels=labels,
        catalog=catalog,
        mask=prepared.mask,
        signal=prepared.signal,
        wcs=wcs,
        sources=measured,
        meta={
            "version": __version__,
            "seed": seed,
            "n_samples": n_samples,
            "precision": "bfloat16" if getattr(network, "narrow", False) else "single",
            "psf_fwhm": float(np.median(psf_fwhm)),
            "psf_wings": None if psf_wings is None else psf_wings[0],
            "zeropoint": zeropoint,
            "pixel_scale": pixel_scale,
            "error_factor": error_factor,
            "noise_factor": noise_factors[0],
            "roughness_factor": noise_factors[1],
            "rms": typical_noise(prepared),
            "background": prepared.background,
            "input": data.name,
        },
    )


def _trained_fwhms(meta: Mapping[str, Any]) -> np.ndarray:
    """FWHM of the PSFs that a model was trained on, pixels."""
    return np.atleast_1d(np.asarray(meta.get("psf_fwhm_pixels", 2.0), dtype=float))


def assumed_psf_fwhm(meta: Mapping[str, Any], most: float = np.inf) -> float:
    """A typical PSF of those that the model was trained on, where the image tells ``most`` only."""
    assumed = min(float(np.median(_trained_fwhms(meta))), most)
    log.warning(
        "too few stars to measure the PSF: a FWHM of %.2f pixels is assumed; "
        "give psf_fwhm (--psf-fwhm) to say otherwise", assumed,
    )  # fmt: skip
    return assumed


def _detections(found: Found, prepared: PreparedImage, min_p_source: float) -> np.ndarray:
    """Peaks that are probable enough and do not lie where most pixels are masked."""
    return (found.p_source >= min_p_source) & usable_at(found.pixel, prepared.mask)
