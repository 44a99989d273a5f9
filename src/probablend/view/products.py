"""What a folder of products holds, opened to be looked at: planes stay in their files."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import QTable
from astropy.wcs import WCS

from probablend.emulate.classes import class_entropy
from probablend.images import ImageFile
from probablend.infer.footprints import Ellipses
from probablend.view.tiles import Layer, Pyramid, Read, image_layer

__all__ = ["Products", "open_products"]

log = logging.getLogger(__name__)

_FORMATS = ("fits", "ecsv", "parquet")  # a HATS catalogue is for larger things than a page
_CHUNK = 4096  # sources whose draws are read at once


@dataclass(frozen=True, kw_only=True)
class Products:
    """What ``probablend segment`` wrote, and the image.

    Parameters
    ----------
    folder : Path
        Where it lies.
    image : Path or None
        The image, if it was found.
    header : Header
        Provenance.
    wcs : WCS or None
        Celestial coordinates.
    pyramids : dict of str to Pyramid
        Every layer by its name; samples are ``sample-0``, ``sample-1`` …
    catalog : QTable
        One row per source.
    ellipses : Ellipses
        Median footprints; circles of the same area where no draws were kept.
    posterior : ndarray or None
        Joint draws: a record per source, in the order of the catalogue.
    """

    folder: Path
    image: Path | None
    header: fits.Header
    wcs: WCS | None
    pyramids: dict[str, Pyramid]
    catalog: QTable
    ellipses: Ellipses
    posterior: np.ndarray | None

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Shape of every plane."""
        return self.pyramids["p_galaxy"].layer.shape_yx

    @property
    def n_samples(self) -> int:
        """Posterior samples of the class map that were kept."""
        return sum(name.startswith("sample-") for name in self.pyramids)


def open_products(folder: Path | str, image: Path | str | None = None) -> Products:
    """Open what ``probablend segment`` wrote.

    Parameters
    ----------
    folder : Path or str
        Holds ``maps.fits`` and a catalogue; ``samples.fits`` and ``posterior.fits`` if kept.
    image : Path or str, optional
        The image, ``FILE[EXT]`` names an extension. Otherwise the one that the maps name is
        looked for here, in the folder and beside it; without it there is no image to show.

    Raises
    ------
    FileNotFoundError
        If maps, catalogue or the given image are not there.
    ValueError
        If they cannot be read, or do not belong together.
    """
    folder = Path(folder)
    maps = folder / "maps.fits"
    if not maps.is_file():
        raise FileNotFoundError(
            f"{folder} holds no maps.fits: a folder that 'probablend segment' wrote is wanted"
        )
    known = ImageFile(maps, ext="P_GALAXY")
    header = fits.getheader(maps)
    layers = _probability_layers(maps)
    if (folder / "samples.fits").exists():
        layers += _sample_layers(folder / "samples.fits")
    shown, found = _find_image(image, folder, str(header.get("PBINPUT", "")), known.shape)
    if shown is not None:
        layers.insert(0, shown)
    for layer in layers:
        if layer.shape_yx != known.shape:
            raise ValueError(
                f"{layer.title} has shape {layer.shape_yx} and the maps have {known.shape}: "
                "they do not belong together"
            )
    catalog = _read_catalog(folder)
    posterior = _read_posterior(folder / "posterior.fits", len(catalog))
    return Products(
        folder=folder,
        image=found,
        header=header,
        wcs=known.wcs,
        pyramids={layer.name: Pyramid(layer) for layer in layers},
        catalog=catalog,
        ellipses=_ellipses(catalog, posterior),
        posterior=posterior,
    )


def _probability_layers(maps: Path) -> list[Layer]:
    p_galaxy, p_blend = (_plane(maps, name) for name in ("P_GALAXY", "P_BLEND"))

    def read_entropy(rows: slice, columns: slice) -> np.ndarray:
        both = (np.asarray(p[rows, columns], np.float32) for p in (p_galaxy, p_blend))
        return class_entropy(*both)

    shape: Any = p_galaxy.shape
    galaxy = Layer(name="p_galaxy", title="P_GALAXY", read=_window(p_galaxy), shape_yx=shape)
    blend = replace(
        galaxy, name="p_blend", title="P_BLEND", read=_window(p_blend),
        shape_yx=p_blend.shape,
    )  # fmt: skip
    entropy = replace(
        galaxy, name="entropy", title="entropy", read=read_entropy, high=float(np.log(3)),
        ends=("0", "ln 3"), palette="cividis",
    )  # fmt: skip
    return [galaxy, blend, entropy]


def _sample_layers(path: Path) -> list[Layer]:
    cube = _plane(path, "SAMPLES")
    if cube.ndim != 3:
        raise ValueError(f"SAMPLES of {path} must be (sample, y, x); it has shape {cube.shape}")
    shape: Any = cube.shape[1:]
    return [
        Layer(
            name=f"sample-{k}", title=f"sample {k + 1}", read=_window(plane),
            shape_yx=shape, high=2.0, ends=("sky", "blend"), palette="classes",
        )
        for k, plane in enumerate(cube)
    ]  # fmt: skip


def _window(plane: np.ndarray) -> Read:
    return lambda rows, columns: plane[rows, columns]


def _plane(path: Path, name: str) -> np.ndarray:
    """Data of an extension, mapped from its file."""
    try:
        with fits.open(path, memmap=True) as hdus:
            return hdus[name].data
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be read from {path}: {error}") from error


def _find_image(
    given: Path | str | None, folder: Path, named: str, shape_yx: tuple[int, int]
) -> tuple[Layer | None, Path | None]:
    """The image as a layer, and its file."""
    if given is not None:
        file = ImageFile(Path(given))
        if file.shape != shape_yx:
            raise ValueError(
                f"image {given} has shape {file.shape} and the maps have {shape_yx}: "
                "name the image that was segmented, FILE[EXT] for an extension"
            )
        return _image(file), file.path
    for name in dict.fromkeys([named, Path(named).name] if named else []):
        for place in (Path(), folder, folder.parent):
            if not (place / name).is_file():
                continue
            try:
                file = ImageFile(place / name)
            except ValueError as error:
                log.warning("%s", error)
                continue
            if file.shape == shape_yx:
                return _image(file), file.path
    log.warning("image %s was not found: name it with --image", named or "without a name")
    return None, None


def _image(file: ImageFile) -> Layer:
    mapped = file.mapped()
    return image_layer(file.read if mapped is None else _window(mapped), file.shape)


def _read_catalog(folder: Path) -> QTable:
    for kind in _FORMATS:
        path = folder / f"catalog.{kind}"
        if not path.exists():
            continue
        try:
            if kind == "fits":  # NaN is a value here, not a hole
                return QTable.read(path, mask_invalid=False)
            return QTable.read(path, format="ascii.ecsv" if kind == "ecsv" else kind)
        except (OSError, ImportError, ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read as a catalogue: {error}") from error
    raise FileNotFoundError(f"{folder} holds no catalogue, catalog.{{{','.join(_FORMATS)}}}")


def _read_posterior(path: Path, n_sources: int) -> np.ndarray | None:
    if not path.exists():
        return None
    draws = _plane(path, "POSTERIOR")
    if len(draws) != n_sources:
        raise ValueError(
            f"{path} has {len(draws)} sources and the catalogue has {n_sources}: "
            "they do not belong together"
        )
    return draws


def _ellipses(catalog: QTable, posterior: np.ndarray | None) -> Ellipses:
    y, x = (np.asarray(catalog[name].value, dtype=float) for name in ("y", "x"))
    n_pixels = getattr(catalog["n_pixels"], "value", catalog["n_pixels"])
    shape = {
        "radius": np.sqrt(np.asarray(n_pixels, dtype=float) / np.pi),
        "e1": np.zeros(len(x)),
        "e2": np.zeros(len(x)),
    }
    if posterior is not None:
        for first in range(0, len(x), _CHUNK):
            some = posterior[first : first + _CHUNK]
            for name, values in shape.items():
                values[first : first + _CHUNK] = np.median(some[name], axis=1)
    return Ellipses(y=y, x=x, **shape)
