"""What is where in an image: maps, samples, objects and a catalogue, and their files."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.nddata import NDData
from astropy.table import QTable
from astropy.wcs import WCS
from matplotlib.figure import Figure
from photutils.segmentation import SegmentationImage

from probablend.catalog import provenance_header, write_catalog
from probablend.checkpoint import pixels_only
from probablend.emulate.classes import class_entropy
from probablend.infer.outputs import (
    PRODUCTS,
    SUMMARY,
    check_format,
    check_output,
    move,
    products_in,
    remove,
)
from probablend.infer.sources import Measured
from probablend.psf import PSF
from probablend.sextractor import named_columns

__all__ = ["Segmentation"]


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
    sources : Measured or None
        Posterior of every row of the catalogue; None if the model knows pixels only.
    psf : PSF or None
        The PSF that was given, measured or assumed; of a map of widths the median.
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
    sources: Measured | None = None
    psf: PSF | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def entropy(self) -> np.ndarray:
        """Entropy of the pixel's class, nats: 0 is certain, ln 3 knows nothing."""
        return class_entropy(self.p_galaxy, self.p_blend)

    def segmentation_image(self) -> SegmentationImage:
        """The labels as photutils takes them."""
        return SegmentationImage(self.labels)

    def to_nddata(self, plane: str = "p_blend") -> NDData:
        """One of the maps as astropy takes it, with mask, coordinates and provenance.

        Parameters
        ----------
        plane : {"p_galaxy", "p_blend", "entropy", "labels", "signal"}
            Which map.
        """
        planes = ("p_galaxy", "p_blend", "entropy", "labels", "signal")
        if plane not in planes:
            raise ValueError(f"plane must be one of {', '.join(planes)}; got {plane!r}")
        return NDData(getattr(self, plane), mask=self.mask, wcs=self.wcs, meta=dict(self.meta))

    def plot(self) -> Figure:
        """The quicklook: image, probabilities, four samples, entropy."""
        from probablend.plot import quicklook

        return quicklook(self)

    def write(
        self,
        directory: Path | str,
        *,
        keep_samples: bool = False,
        keep_posterior: int = 0,
        regions: bool = False,
        catalog_format: str = "fits",
        columns: str = "probablend",
        overwrite: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the products; each appears under its name only when all are whole.

        Parameters
        ----------
        directory : Path or str
            Gets ``maps.fits``, ``catalog.fits``, ``quicklook.png``, ``summary.json`` and what is
            asked for.
        keep_samples : bool
            Whether to write the class maps, ``samples.fits``.
        keep_posterior : int
            How many joint draws of every source to write, ``posterior.fits``.
        regions : bool
            Whether to write the footprints for ds9, ``sources.reg``.
        catalog_format : {"fits", "ecsv", "parquet", "hats"}
            Of the catalogue.
        columns : {"probablend", "sextractor"}
            Names of its columns; see :mod:`probablend.sextractor`.
        overwrite : bool
            Whether products that are there already may be replaced.
        about : mapping, optional
            What else ``summary.json`` says.

        Raises
        ------
        FileExistsError
            If a product is there already.
        ValueError
            If the format or the columns are unknown, or sources are asked of a model that
            knows pixels only.
        OSError
            If the folder cannot be written.
        """
        directory = Path(directory)
        check_format(catalog_format, columns)
        check_output(directory, overwrite=overwrite)
        if self.sources is None and (keep_posterior or regions):
            raise pixels_only(str(self.meta.get("model")))
        directory.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".probablend-", dir=directory))
        try:
            self._maps().writeto(work / "maps.fits")
            catalog = named_columns(self.catalog, columns)
            write_catalog(catalog, work / f"catalog.{catalog_format}", self._provenance())
            figure = self.plot()
            figure.savefig(work / "quicklook.png", dpi=100)
            if keep_samples:
                primary = fits.PrimaryHDU(header=self._provenance())
                cube = fits.ImageHDU(self.samples, self._wcs_header(), name="SAMPLES")
                fits.HDUList([primary, cube]).writeto(work / "samples.fits")
            if self.sources is not None and keep_posterior:
                table = self.sources.posterior_table(keep_posterior)
                write_catalog(table, work / "posterior.fits", self._provenance(), "POSTERIOR")
            if self.sources is not None and regions:
                (work / "sources.reg").write_text(self.sources.ellipses.to_regions())
            summary = self._summary() | dict(about or {}) | products_in(work)
            (work / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
            if overwrite:  # what an earlier run left would not belong to these maps
                for name in PRODUCTS:
                    if not (work / name).exists():
                        remove(directory / name)
            for product in sorted(work.iterdir()):
                move(product, directory / product.name)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return directory

    def _summary(self) -> dict[str, Any]:
        return {
            "version": self.meta.get("version"),
            "image": self.meta.get("input"),
            "megapixels": self.mask.size / 1e6,
            "model": self.meta.get("model"),
            "weights_hash": self.meta.get("weights_hash"),
            "objects": len(self.catalog),
            "blended": int((self.catalog["p_blend"] > 0.5).sum()),
        }

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
        header = provenance_header(self.meta)
        header["PBNMASK"] = (int(self.mask.sum()), "masked pixels (NaN in the maps)")
        header["DATE"] = (datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"), "UTC")
        return header
