"""Real galaxies: the 2 001 isolated CANDELS F160W galaxies of arXiv:1905.01324.

The stamps are images, with the PSF of HST, at 0.06″ per pixel, for a survey with the same pixels.
Neighbours are masked and noise is taken out. What is kept of a stamp is what then lies in the
galaxy's own segment, dilated.
"""

from pathlib import Path

import numpy as np
from astropy.stats import mad_std
from astropy.table import Table
from scipy import ndimage

from probablend.emulate.denoise import denoised, wavelets
from probablend.emulate.stamps import (
    Galaxies,
    Split,
    Stamp,
    UnsuitableError,
    split_indices,
    turn_stamp,
)
from probablend.survey import Survey

__all__ = ["CandelsGalaxies", "clean_stamp", "has_their_pixels"]

PIXEL_SCALE = 0.06
ZEROPOINT = 25.96
_DILATION = 4  # pixels: segments end where the noise hides the wings


def has_their_pixels(survey: Survey) -> bool:
    """Whether the stamps can be used for a survey."""
    return abs(survey.scale - PIXEL_SCALE) <= 1e-3


def clean_stamp(
    image: np.ndarray, segments: np.ndarray, *, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Replace the neighbours of the central galaxy by background noise.

    Level and spread of the noise are those of the pixels that belong to nothing, from their
    median and their median absolute deviation: masked pixels have no part in them.

    Parameters
    ----------
    image : ndarray, shape (y, x)
        Stamp with the galaxy in the centre.
    segments : ndarray of int, shape (y, x)
        0 = background, one number per object.
    generator : numpy.random.Generator
        Draws the noise.

    Returns
    -------
    image : ndarray, shape (y, x), float32
        Background subtracted, neighbours gone.
    own : ndarray of bool, shape (y, x)
        Pixels of the central galaxy, its segment dilated.
    noise : ndarray
        Standard deviation of the noise in each of :func:`~probablend.emulate.denoise.wavelets`.

    Raises
    ------
    ValueError
        If no segment covers the centre, or nothing but objects is left.
    """
    n_y, n_x = image.shape
    centre = segments[n_y // 2 - 1 : n_y // 2 + 2, n_x // 2 - 1 : n_x // 2 + 2]
    ids = centre[centre > 0]
    if not len(ids):
        raise ValueError("segments must cover the centre of the stamp; found background there")
    label = np.bincount(ids).argmax()
    disc = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), _DILATION)
    others = ndimage.binary_dilation((segments > 0) & (segments != label), disc)
    others &= segments != label
    own = ndimage.binary_dilation(segments == label, disc) & ~others
    if not np.isfinite(image).all():
        raise ValueError("the stamp must hold finite numbers")
    sky = ~others & ~own
    if sky.sum() < 50:
        raise ValueError(f"the stamp must show some background; found {sky.sum()} pixels of it")
    clean = (image - np.median(image[sky])).astype(np.float32)
    rms = np.float32(mad_std(clean[sky]))
    clean[others] = rms * generator.standard_normal(int(others.sum()), dtype=np.float32)
    return clean, own, mad_std(wavelets(np.where(own, 0, clean))[:, sky], axis=1)


class CandelsGalaxies(Galaxies):
    """One split of the CANDELS set.

    Parameters
    ----------
    survey : Survey
        Must have CANDELS' pixels (``candels-f160w``).
    folder : Path
        Holds ``candels_img.npy``, ``candels_seg.npy`` and ``candels_cat.csv``.
    split : {"train", "validation", "test"}
        Galaxies are split before anything is blended.

    Raises
    ------
    ValueError
        If the pixel scales differ, or the files do not fit together.
    """

    def __init__(self, survey: Survey, folder: Path, split: Split = "train") -> None:
        if not has_their_pixels(survey):
            raise UnsuitableError(
                f"candels stamps have {PIXEL_SCALE}″ pixels; the survey {survey.name} has "
                f"{survey.scale:g}″: use the survey candels-f160w"
            )
        self.survey = survey
        # Plain arrays only: a file that holds Python objects is refused.
        images = np.load(folder / "candels_img.npy", mmap_mode="r", allow_pickle=False)
        segments = np.load(folder / "candels_seg.npy", mmap_mode="r", allow_pickle=False)
        catalog = Table.read(folder / "candels_cat.csv", format="ascii.csv")
        missing = {"ID", "mag", "radius"} - set(catalog.colnames)
        if missing:
            raise ValueError(f"candels_cat.csv lacks the columns {sorted(missing)}")
        if not len(images) == len(segments) == len(catalog):
            raise ValueError(
                f"the files must hold as many galaxies each; found {len(images)} images, "
                f"{len(segments)} segmentations, {len(catalog)} catalogue rows"
            )
        self._stamps: list[Stamp] = []
        rows = []
        for index in split_indices(len(catalog), split):
            generator = np.random.default_rng([2604740, int(index)])
            try:
                clean, own, noise = clean_stamp(
                    np.asarray(images[index]), np.asarray(segments[index]), generator=generator
                )
            except ValueError:
                continue  # a stamp without its galaxy is of no use
            galaxy = np.where(own, denoised(clean, noise), 0)
            flux = float(galaxy.sum())
            if flux <= 0:
                continue
            to_survey = float(survey.flux(ZEROPOINT))  # counts of the survey per stamp count
            y, x = ndimage.center_of_mass(galaxy)
            self._stamps.append(
                Stamp(
                    image=galaxy * to_survey,
                    flux=flux * to_survey,
                    y=float(y),
                    x=float(x),
                    hlr=float(catalog["radius"][index]),
                    g1=float("nan"),
                    g2=float("nan"),
                    galaxy=int(catalog["ID"][index]),
                )
            )
            rows.append((int(catalog["ID"][index]), float(catalog["mag"][index]), False))
        self.table = Table(
            rows=rows or None, names=("galaxy", "mag", "is_star"), dtype=(int, float, bool)
        )
        self.prepare()

    def draw(self, index: int, mag: float, *, generator: np.random.Generator) -> Stamp:
        """See :meth:`Galaxies.draw`: a flip or quarter turn, scaled by the magnitude wanted.

        The flux is that of the pixels drawn, not that of the catalogue.
        """
        scale = 10 ** (-0.4 * (mag - float(self.table["mag"][index])))
        return turn_stamp(self._stamps[index], scale, generator=generator)
