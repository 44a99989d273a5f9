"""Image → posterior samples of pixel classes → probabilities, objects and a catalogue."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.io import fits
from astropy.table import QTable
from astropy.wcs import WCS
from matplotlib.figure import Figure
from photutils.segmentation import SegmentationImage

from probablend._version import __version__
from probablend.catalog import make_catalog
from probablend.checkpoint import file_hash, find_model, load_model
from probablend.device import resolve_device
from probablend.emulate.classes import N_CLASSES, PixelClass, class_entropy
from probablend.images import ImageData, prepare_image, read_image
from probablend.infer.objects import find_objects
from probablend.infer.tiles import Tile, cover
from probablend.models.distribution import SegmentationNetwork

__all__ = [
    "DEFAULT_MODEL",
    "PRODUCTS",
    "Segmentation",
    "check_output",
    "segment",
]

log = logging.getLogger(__name__)

DEFAULT_MODEL = "euclid-vis"
PRODUCTS = ("maps.fits", "catalog.fits", "quicklook.png", "samples.fits")
# Class maps drawn for each latent: the first is a sample that the user sees, all count for
# `p_blend`, whose scatter is that of 64 draws when 16 samples are asked for.
DRAWS_PER_SAMPLE = 4
_TILE = 768  # side of a tile's core, pixels: about 1 GB at work with the shipped network


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """What is where in an image, and how sure that is.

    Parameters
    ----------
    p_galaxy, p_blend : ndarray, shape (y, x), float32
        Posterior probability that at least one, at least two galaxies cover the pixel; NaN
        where the image is masked.
    samples : ndarray of uint8, shape (sample, y, x)
        Class maps drawn from the posterior: 0 sky, 1 one galaxy, 2 blend; 0 where masked.
    labels : ndarray of int32, shape (y, x)
        0 = background, 1…N = objects.
    catalog : QTable
        One row per object, see :mod:`probablend.catalog`.
    mask : ndarray of bool, shape (y, x)
        True = not used.
    signal : ndarray, shape (y, x), float32
        The image in units of its noise, background subtracted.
    wcs : WCS or None
        Celestial coordinates.
    meta : dict
        Where it all comes from: version, model, seed, number of samples, noise, background.
    """

    p_galaxy: np.ndarray
    p_blend: np.ndarray
    samples: np.ndarray
    labels: np.ndarray
    catalog: QTable
    mask: np.ndarray
    signal: np.ndarray
    wcs: WCS | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def entropy(self) -> np.ndarray:
        """Entropy of the pixel's class, nats: 0 is certain, ln 3 knows nothing."""
        return class_entropy(self.p_galaxy, self.p_blend)

    def segmentation_image(self) -> SegmentationImage:
        """The labels as photutils takes them."""
        return SegmentationImage(self.labels)

    def plot(self) -> Figure:
        """The quicklook: image, probabilities, four samples, entropy."""
        from probablend.plot import quicklook

        return quicklook(self)

    def write(
        self, directory: Path | str, *, keep_samples: bool = False, overwrite: bool = False
    ) -> Path:
        """Write the products; each appears under its name only when all are whole.

        Parameters
        ----------
        directory : Path or str
            Gets ``maps.fits``, ``catalog.fits``, ``quicklook.png`` and, if asked for,
            ``samples.fits``.
        keep_samples : bool
            Whether to write the samples.
        overwrite : bool
            Whether products that are there already may be replaced.

        Raises
        ------
        FileExistsError
            If a product is there already.
        OSError
            If the folder cannot be written.
        """
        directory = Path(directory)
        check_output(directory, overwrite=overwrite)
        directory.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".probablend-", dir=directory))
        try:
            self._maps().writeto(work / "maps.fits")
            table = fits.BinTableHDU(self.catalog, name="CATALOG")
            fits.HDUList([fits.PrimaryHDU(header=self._provenance()), table]).writeto(
                work / "catalog.fits"
            )
            figure = self.plot()
            figure.savefig(work / "quicklook.png", dpi=100)
            if keep_samples:
                primary = fits.PrimaryHDU(header=self._provenance())
                cube = fits.ImageHDU(self.samples, self._wcs_header(), name="SAMPLES")
                fits.HDUList([primary, cube]).writeto(work / "samples.fits")
            elif overwrite:  # samples of an earlier run would not belong to these maps
                (directory / "samples.fits").unlink(missing_ok=True)
            for product in sorted(work.iterdir()):
                os.replace(product, directory / product.name)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return directory

    def _maps(self) -> fits.HDUList:
        header = self._wcs_header()
        hdus = [fits.PrimaryHDU(header=self._provenance())]
        planes = {
            "P_GALAXY": self.p_galaxy,
            "P_BLEND": self.p_blend,
            "LABELS": self.labels,
            "MASK": self.mask.astype(np.uint8),
        }
        hdus += [fits.ImageHDU(data, header, name=name) for name, data in planes.items()]
        return fits.HDUList(hdus)

    def _wcs_header(self) -> fits.Header:
        return fits.Header() if self.wcs is None else self.wcs.to_header(relax=True)

    def _provenance(self) -> fits.Header:
        cards = {
            "ORIGIN": ("probablend", "software"),
            "PBVERS": (self.meta.get("version"), "version of probablend"),
            "PBMODEL": (self.meta.get("model"), "weights"),
            "PBHASH": (self.meta.get("weights_hash"), "SHA-256 of the weight file, 16 digits"),
            "PBSEED": (self.meta.get("seed"), "seed of the samples"),
            "PBNSAMP": (self.meta.get("n_samples"), "posterior samples"),
            "PBRMS": (self.meta.get("rms"), "median noise per pixel, image units"),
            "PBBACK": (self.meta.get("background"), "median background taken out"),
            "PBNMASK": (int(self.mask.sum()), "masked pixels (NaN in the maps)"),
            "DATE": (datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"), "UTC"),
        }
        header = fits.Header([(key, *card) for key, card in cards.items()])
        # FITS knows ASCII only, and a card holds 68 characters.
        header["PBINPUT"] = str(self.meta.get("input")).encode("ascii", "replace").decode()[-60:]
        return header


def check_output(directory: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot be used, before any work is done.

    Parameters
    ----------
    directory : Path
        Where products are meant to go.
    overwrite : bool
        Whether those that are there may be replaced.

    Raises
    ------
    FileExistsError
        If products are there and may not be replaced, or a file is in the way.
    PermissionError
        If the folder cannot be written.
    """
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file; a folder is wanted")
    there = [name for name in PRODUCTS if (directory / name).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"{directory} holds {', '.join(there)} already: choose another folder or overwrite"
        )
    parent = directory
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise FileExistsError(f"{parent} is a file; {directory} cannot be made in it")
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"{parent} is not writable")


def segment(
    image: np.ndarray | str | Path | ImageData,
    *,
    rms: float | np.ndarray | None = None,
    mask: np.ndarray | None = None,
    n_samples: int = 16,
    seed: int = 0,
    model: str | Path = DEFAULT_MODEL,
    device: str = "auto",
    background: str = "auto",
    wcs: WCS | None = None,
    tile_size: int = _TILE,
    progress: Callable[[int, int], None] | None = None,
) -> Segmentation:
    """Segment an image: where galaxies are, where they overlap, how sure that is.

    Parameters
    ----------
    image : ndarray of shape (y, x), path, or ImageData
        Any unit.
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
    background : {"auto", "subtract", "none"}
        Whether to take out a background; see :func:`~probablend.images.prepare_image`.
    wcs : WCS, optional
        Celestial coordinates; read from the file if there is one.
    tile_size : int
        Side of the tiles in which a large image is processed, pixels. It changes memory, not
        the result.
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
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1; got {n_samples}")
    if tile_size < 1:
        raise ValueError(f"tile_size must be at least 1 pixel; got {tile_size}")
    if isinstance(image, str | Path):
        image = read_image(image)
    name = "array"
    if isinstance(image, ImageData):
        wcs, name, image = wcs or image.wcs, image.name, image.data
    where = resolve_device(device)
    network, meta = load_model(model)
    if network.config.n_bands != 1 or network.config.n_classes != N_CLASSES:
        raise ValueError(
            f"model {model} takes {network.config.n_bands} bands and knows "
            f"{network.config.n_classes} classes; one band and {N_CLASSES} classes are wanted"
        )
    prepared = prepare_image(image, rms=rms, mask=mask, background=background)
    if prepared.mask.any():
        n_masked = int(prepared.mask.sum())
        log.warning("%d of %d pixels are masked: NaN in the maps", n_masked, prepared.mask.size)
    p_galaxy, p_blend, samples, draws = _classify(
        network.to(where), prepared.signal, n_samples, seed, tile_size, where, progress
    )
    p_galaxy[prepared.mask] = np.nan
    p_blend[prepared.mask] = np.nan
    samples[:, prepared.mask] = 0
    if prepared.mask.any():
        draws = [(y[keep], x[keep]) for y, x in draws for keep in [~prepared.mask[y, x]]]
    smoothing = max(1.0, float(meta.get("psf_fwhm_pixels", 2.0)) / 2.355)
    labels = find_objects(p_galaxy, prepared.signal, smoothing=smoothing)
    return Segmentation(
        p_galaxy=p_galaxy,
        p_blend=p_blend,
        samples=samples,
        labels=labels,
        catalog=make_catalog(labels, prepared.signal, draws, prepared.mask, wcs=wcs),
        mask=prepared.mask,
        signal=prepared.signal,
        wcs=wcs,
        meta={
            "version": __version__,
            "model": meta.get("name", str(model)),
            "weights_hash": file_hash(find_model(model)),
            "seed": seed,
            "n_samples": n_samples,
            "rms": float(np.median(np.asarray(prepared.rms)[~prepared.mask]))
            if isinstance(prepared.rms, np.ndarray)
            else prepared.rms,
            "background": prepared.background,
            "input": name,
        },
    )


@torch.inference_mode()
def _classify(
    network: SegmentationNetwork,
    signal: np.ndarray,
    n_samples: int,
    seed: int,
    tile_size: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """P_GALAXY, P_BLEND, samples and blended pixels of all draws, tile by tile."""
    p_galaxy = np.empty(signal.shape, dtype=np.float32)
    p_blend = np.empty(signal.shape, dtype=np.float32)
    samples = np.empty((n_samples, *signal.shape), dtype=np.uint8)
    blends: list[list[np.ndarray]] = [[] for _ in range(n_samples * DRAWS_PER_SAMPLE)]
    # Whether the latent slides over the image is a decision about the image, not the tile.
    sliding = max(signal.shape) > network.config.patch_size
    if not sliding:  # one latent for the whole image: one tile
        tile_size = max(signal.shape)
    done = 0
    for tile in cover(
        signal.shape, core=tile_size, halo=network.halo, stride=network.config.stride
    ):
        mean = _tile(network, signal, tile, samples, blends, seed, device, sliding)
        p_galaxy[tile.core] = 1 - mean[0]
        p_blend[tile.core] = mean[2]
        done += mean[0].size
        if progress:
            progress(done, signal.size)
    # (y, x) of each draw: one array of pairs per tile → two arrays.
    draws = [tuple(np.concatenate(parts, axis=1)) for parts in blends]
    return np.clip(p_galaxy, 0, 1), np.clip(p_blend, 0, 1), samples, draws


def _tile(
    network: SegmentationNetwork,
    signal: np.ndarray,
    tile: Tile,
    samples: np.ndarray,
    blends: list[list[np.ndarray]],
    seed: int,
    device: torch.device,
    sliding: bool,
) -> np.ndarray:
    """Mean class probabilities of a tile's core; samples and blends go to their place."""
    image = torch.from_numpy(signal[tile.outer].copy())[None, None]
    image = image.to(device=device, memory_format=torch.channels_last)
    distribution = network(image, sliding=sliding).at(tile.origin_yx)
    core = replace(distribution, origin_yx=(tile.core[0].start, tile.core[1].start))
    n_samples = len(samples)
    total = torch.zeros((), device=device)
    for k, (probabilities, classes) in enumerate(distribution.draws(n_samples, seed=seed)):
        total = total + probabilities[0][(slice(None), *tile.inner)]
        drawn = classes[0][tile.inner].cpu().numpy()
        samples[(k, *tile.core)] = drawn
        p_blend = probabilities[0][(PixelClass.BLEND, *tile.inner)].cpu().numpy()
        maps = [np.nonzero(drawn == PixelClass.BLEND)]
        maps += core.more_blends(p_blend, k, DRAWS_PER_SAMPLE - 1, seed=seed)
        for j, (y, x) in enumerate(maps):
            found = np.stack([y + tile.core[0].start, x + tile.core[1].start])
            blends[k * DRAWS_PER_SAMPLE + j].append(found)
    return (total / n_samples).cpu().numpy()
