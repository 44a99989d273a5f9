"""A bank of noiseless stamps as plain tensors: all that composing training scenes needs.

Galaxies of one or more surveys are drawn once, in half precision, and packed end to end.
A bank is a safetensors file of some tens of megabytes; it can be composed on any device
without GalSim (:mod:`probablend.emulate.compose`).
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probablend.checkpoint import load_tensors, save_tensors
from probablend.emulate.psf import psf_image, psf_images_in, survey_psf
from probablend.emulate.sources import open_source, split_sources
from probablend.emulate.stamps import Galaxies, Split, UnsuitableError
from probablend.psf import SIDE
from probablend.survey import Survey, draw_survey, get_survey

__all__ = ["Bank", "draw_bank", "load_bank", "save_bank"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Stamps of galaxies and stars, sorted by survey, kind and magnitude.

    Parameters
    ----------
    pixels : Tensor of float16, shape (pixel,)
        All stamps, row by row, each divided by its brightest pixel.
    start, side : Tensor of int64, shape (stamp,)
        First pixel of each (square) stamp, and its side.
    peak : Tensor, shape (stamp,)
        Brightest pixel for unit flux.
    y, x : Tensor, shape (stamp,)
        Centre in the stamp, pixels.
    mag, hlr, g1, g2 : Tensor, shape (stamp,)
        Truth; the half-light radius in pixels, 0 for stars.
    group : Tensor of int64, shape (stamp,)
        2 · survey + (1 for stars).
    surveys : tuple of str
        Names, in order.
    scale : Tensor, shape (survey,)
        Arcseconds per pixel.
    psf_fwhm : Tensor, shape (survey,)
        Pixels.
    psf_wings : Tensor, shape (survey, 3)
        See :func:`~probablend.psf.light_in_wings`.
    psf : Tensor, shape (survey, 41, 41)
        Images of the PSFs, see :class:`~probablend.psf.PSF`.
    mag_of_sigma : Tensor, shape (survey,)
        AB magnitude of a flux of one unit of sky noise.
    electrons_of_sigma : Tensor, shape (survey,)
        Electrons in one unit of sky noise: gives the shot noise of sources.
    """

    pixels: Tensor
    start: Tensor
    side: Tensor
    peak: Tensor
    y: Tensor
    x: Tensor
    mag: Tensor
    hlr: Tensor
    g1: Tensor
    g2: Tensor
    group: Tensor
    surveys: tuple[str, ...]
    scale: Tensor
    psf_fwhm: Tensor
    psf_wings: Tensor
    psf: Tensor
    mag_of_sigma: Tensor
    electrons_of_sigma: Tensor

    def to(self, device: torch.device | str) -> "Bank":
        """The same on a device."""
        return Bank(surveys=self.surveys, **{k: t.to(device) for k, t in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the names."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "surveys"}

    @property
    def n_bytes(self) -> int:
        """Memory of all tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    @property
    def has_stars(self) -> bool:
        """Whether there are point sources."""
        return bool((self.group % 2 == 1).any())


def draw_bank(
    source: str,
    surveys: Sequence[str | Survey],
    split: Split,
    *,
    n_galaxies: int,
    n_stars: int,
    mag_range: tuple[float, float],
    seed: int,
    n_random_surveys: int = 0,
    psf_images: Sequence[str] = (),
    psf_image_fraction: float = 1 / 3,
) -> Bank:
    """Draw a bank.

    Parameters
    ----------
    source : str
        Where galaxies come from, see :func:`~probablend.emulate.sources.split_sources`. Of a
        mixture, a set of real galaxies is left out for surveys that it does not suit.
    surveys : sequence of str or Survey
        What the stamps are drawn for.
    split : {"train", "validation", "test"}
        No galaxy is in two splits.
    n_galaxies, n_stars : int
        Of each survey and source.
    mag_range : tuple of float
        Magnitudes that will be asked for.
    seed : int
        Seeds the population and the offsets.
    n_random_surveys : int
        Surveys that might be, beside the others.
    psf_images : sequence of str
        FITS files with images of real PSFs, for surveys that might be.
    psf_image_fraction : float
        Share of these that have one.
    """
    generator = np.random.default_rng([seed, 11])
    psf_files = [name for path in psf_images for name in psf_images_in(path)]
    described = [s if isinstance(s, Survey) else get_survey(s) for s in surveys]
    described += [
        draw_survey(
            np.random.default_rng([seed, 12, k]),
            psf_files=psf_files,
            image_fraction=psf_image_fraction,
        )
        for k in range(n_random_surveys)
    ]
    images, rows = [], []
    for index, galaxies, row_numbers in _populations(
        source, described, split, n_galaxies, n_stars, mag_range, seed
    ):
        for row in row_numbers:
            mag = float(galaxies.table["mag"][row])
            stamp = galaxies.draw(row, mag, generator=generator)
            side = max(stamp.image.shape)
            image = np.zeros((side, side), dtype=np.float32)
            image[: stamp.image.shape[0], : stamp.image.shape[1]] = stamp.image
            peak = float(image.max())
            if peak <= 0:
                continue
            images.append((image / peak).astype(np.float16).ravel())
            rows.append(
                (2 * index + int(stamp.is_star), mag, side, peak / stamp.flux, stamp.y, stamp.x,
                 stamp.hlr, stamp.g1, stamp.g2)
            )  # fmt: skip
    table = np.array(rows)
    order = np.lexsort((table[:, 1], table[:, 0]))
    table = table[order]
    sizes = np.array([images[k].size for k in order])
    names = ("group", "mag", "side", "peak", "y", "x", "hlr", "g1", "g2")
    column = {
        name: torch.from_numpy(table[:, k].astype(np.float32)) for k, name in enumerate(names)
    }
    return Bank(
        pixels=torch.from_numpy(np.concatenate([images[k] for k in order])),
        start=torch.from_numpy(np.cumsum(sizes) - sizes),
        surveys=tuple(s.name for s in described),
        scale=torch.tensor([s.scale for s in described]),
        psf_fwhm=torch.tensor([s.psf_fwhm_pixels for s in described]),
        psf_wings=torch.from_numpy(np.array([survey_psf(s).wings for s in described], np.float32)),
        psf=torch.from_numpy(np.stack([psf_image(s, SIDE) for s in described])),
        mag_of_sigma=torch.tensor([float(s.mag(s.sky_rms)) for s in described]),
        electrons_of_sigma=torch.tensor([s.sky_rms * s.gain for s in described]),
        **(column | {"group": column["group"].long(), "side": column["side"].long()}),
    )


def _populations(
    source: str,
    surveys: Sequence[Survey],
    split: Split,
    n_galaxies: int,
    n_stars: int,
    mag_range: tuple[float, float],
    seed: int,
) -> Iterator[tuple[int, Galaxies, list[int]]]:
    """Number of the survey, galaxies of a source, and which of their rows to draw."""
    names = split_sources(source)
    for index, survey in enumerate(surveys):
        opened = starred = False
        for k, name in enumerate(names):
            try:
                galaxies = open_source(
                    name, survey, split, n_galaxies=n_galaxies, n_stars=0 if starred else n_stars,
                    mag_range=mag_range, seed=seed + 7919 * index + 15485863 * k,
                )  # fmt: skip
            except UnsuitableError as error:
                if k == len(names) - 1 and not opened:
                    raise
                log.info("%s: %s", survey.name, error)
                continue
            is_star = np.asarray(galaxies.table["is_star"], bool)
            opened, starred = True, starred or bool(is_star.any())
            rows = np.flatnonzero(~is_star)
            if len(rows) > n_galaxies:  # other ones of a large real set in every bank
                chooser = np.random.default_rng([seed, 13, index, k])
                rows = np.sort(chooser.choice(rows, n_galaxies, replace=False))
            yield index, galaxies, [*rows.tolist(), *np.flatnonzero(is_star).tolist()]


def save_bank(path: Path, bank: Bank, *, origin: Mapping[str, Any] | None = None) -> None:
    """Write a bank as a safetensors file, with what it was drawn for."""
    meta = {"surveys": list(bank.surveys), "origin": dict(origin or {})}
    save_tensors(path, bank.tensors(), meta)


def load_bank(path: Path, *, origin: Mapping[str, Any] | None = None) -> Bank:
    """Read what :func:`save_bank` wrote.

    Parameters
    ----------
    path : Path
        The file.
    origin : mapping, optional
        What it must have been drawn for.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds something else.
    """
    tensors, meta = load_tensors(path)
    wanted = {f.name for f in fields(Bank)} - {"surveys"}
    if set(tensors) != wanted or "surveys" not in meta:
        raise ValueError(f"{path} holds no bank of stamps")
    if origin is not None and meta.get("origin") != json.loads(json.dumps(dict(origin))):
        raise ValueError(f"{path} was drawn for another configuration: remove it, or start anew")
    return Bank(surveys=tuple(meta["surveys"]), **tensors)
