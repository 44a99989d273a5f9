"""Blends of two real galaxies of HST that no training has seen, as Euclid would see them.

PROBABLEND_TEST_DATA=… python benchmarks/real_pairs.py -n 300 -o docs/results/real-pairs
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table

from probablend.emulate.cosmos import CosmosGalaxies
from probablend.evaluate.pairs import PairsConfig, evaluate_pairs
from probablend.survey import get_survey

FAINTEST = 24.1  # mag: fainter stamps are mostly noise
MIN_SIDE = 42  # pixels
NEAREST = 4  # galaxies from which one is chosen at a magnitude
MAG_RANGE = (21.0, 24.0)
METHODS = ("field", "field@truth", "sep", "sextractor")


class RealGalaxies(CosmosGalaxies):
    """Their radii are known well enough to place companions; their shapes are not."""

    def shape(self, index: int) -> tuple[float, float, float]:
        hlr, _, _ = super().shape(index)
        return hlr, np.nan, np.nan

    def choose(self, mag: float, *, generator: np.random.Generator, is_star: bool = False) -> int:
        """One of the nearest few: made much brighter, a stamp's own noise is as bright."""
        distance = np.abs(np.asarray(self.table["mag"], dtype=float) - mag)
        return int(generator.choice(np.argsort(distance, kind="stable")[:NEAREST]))


def write_catalog(data: Path, folder: Path) -> Path:
    """Real galaxies with their PSFs as GalSim's RealGalaxyCatalog wants them."""
    images, psfs, rows = fits.HDUList(), fits.HDUList(), []
    with fits.open(data / "stamps.fits") as hdus:
        # A few have no PSF of their own: that of another is as good.
        usual = next(hdu.data for hdu in hdus if hdu.name.startswith("PSF_"))
        for row in Table.read(data / "catalog.ecsv"):
            name = row["ident"]
            image = np.asarray(hdus[f"GAL_{name}"].data, dtype=np.float32)
            if row["mag_auto"] > FAINTEST or min(image.shape) < MIN_SIDE:
                continue
            psf = hdus[f"PSF_{name}"].data if f"PSF_{name}" in hdus else usual
            kind = fits.ImageHDU if rows else fits.PrimaryHDU
            # As GalSim takes them: their sums agree with MAG_AUTO to some 4 %. A sky from the
            # few pixels of their borders would shift them by up to two fifths.
            images.append(kind(image))
            psfs.append(kind(np.asarray(psf, dtype=np.float32)))
            rows.append(row)
    images.writeto(folder / "images.fits")
    psfs.writeto(folder / "psfs.fits")
    shutil.copy(data / "noise_correlation_acs_I.fits", folder / "noise.fits")
    n = len(rows)
    table = Table(
        {
            "IDENT": np.arange(n),
            "RA": np.zeros(n),
            "DEC": np.zeros(n),
            "MAG": np.array([row["mag_auto"] for row in rows], dtype=float),
            "BAND": ["F814W"] * n,
            "WEIGHT": np.ones(n),
            "GAL_FILENAME": ["images.fits"] * n,
            "PSF_FILENAME": ["psfs.fits"] * n,
            "NOISE_FILENAME": ["noise.fits"] * n,
            "GAL_HDU": np.arange(n),
            "PSF_HDU": np.arange(n),
            "PIXEL_SCALE": np.full(n, 0.03),
            "NOISE_MEAN": np.zeros(n),
            "NOISE_VARIANCE": np.array([row["edge_rms"] ** 2 for row in rows], dtype=float),
            "STAMP_FLUX": np.array([hdu.data.sum() for hdu in images], dtype=float),
        }
    )
    table.write(folder / "real_galaxy_catalog.fits")
    shape = np.zeros((n, 8))
    shape[:, 1], shape[:, 3] = [row["flux_radius_pix"] for row in rows], 1.0
    Table({"IDENT": np.arange(n), "sersicfit": shape}).write(
        folder / "real_galaxy_catalog_fits.fits"
    )
    return folder / "real_galaxy_catalog.fits"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("-n", type=int, default=300)
    parser.add_argument("--survey", default="euclid-vis")
    parser.add_argument("--seed", type=int, default=7000)
    args = parser.parse_args()
    config = PairsConfig(
        survey=args.survey, source="cosmos", n=args.n, mag_range=MAG_RANGE, n_samples=4,
        seed=args.seed,
    )  # fmt: skip
    data = Path(os.environ["PROBABLEND_TEST_DATA"]) / "hst_cosmos_f814w"
    with tempfile.TemporaryDirectory() as folder:
        # Four fifths of a set of which no part was trained on.
        catalog = write_catalog(data, Path(folder))
        galaxies = RealGalaxies(get_survey(args.survey), catalog, "train")
        print(len(galaxies.table), "galaxies")
        results = evaluate_pairs(
            galaxies, config, METHODS, args.output,
            command="python benchmarks/real_pairs.py " + " ".join(sys.argv[1:]),
            progress=lambda name, done, total: done % 50 or print(name, done, total, flush=True),
        )  # fmt: skip
    print({name: m["flux_all"] for name, m in results["methods"].items()})


if __name__ == "__main__":
    main()
