"""Products, and the image that they are of, as layers to look at."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from probablend.emulate.classes import class_entropy
from probablend.images import ImageFile
from probablend.products import Products
from probablend.view.tiles import Layer, Pyramid, Read, image_layer

__all__ = ["View", "open_view"]

log = logging.getLogger(__name__)

_ROWS = 16  # of the entropy made at once: in the processor's cache it takes half the time


@dataclass(frozen=True, kw_only=True)
class View:
    """What is looked at.

    Parameters
    ----------
    products : Products
        What ``probablend segment`` wrote.
    image : Path or None
        The image, if it was found.
    pyramids : dict of str to Pyramid
        Every layer by its name; samples are ``sample-0``, ``sample-1`` …
    """

    products: Products
    image: Path | None
    pyramids: dict[str, Pyramid]


def open_view(folder: Path | str, image: Path | str | None = None) -> View:
    """Open what ``probablend segment`` wrote.

    Parameters
    ----------
    folder : Path or str
        Of the products.
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
    products = Products(folder)
    layers = [*_probability_layers(products), *_sample_layers(products)]
    shown, found = _find_image(image, products)
    if shown is not None:
        layers.insert(0, shown)
    pyramids = {layer.name: Pyramid(layer) for layer in layers}
    return View(products=products, image=found, pyramids=pyramids)


def _probability_layers(products: Products) -> list[Layer]:
    p_galaxy, p_blend = (_window(products.plane(name)) for name in ("P_GALAXY", "P_BLEND"))

    def read_entropy(rows: slice, columns: slice) -> np.ndarray:
        both = [np.asarray(p(rows, columns), np.float32) for p in (p_galaxy, p_blend)]
        strips = (slice(k, k + _ROWS) for k in range(0, len(both[0]), _ROWS))
        return np.concatenate([class_entropy(*(p[strip] for p in both)) for strip in strips])

    galaxy = Layer(name="p_galaxy", title="P_GALAXY", read=p_galaxy, shape_yx=products.shape_yx)
    blend = replace(galaxy, name="p_blend", title="P_BLEND", read=p_blend)
    entropy = replace(
        galaxy, name="entropy", title="entropy", read=read_entropy, high=float(np.log(3)),
        ends=("0", "ln 3"), palette="cividis",
    )  # fmt: skip
    return [galaxy, blend, entropy]


def _sample_layers(products: Products) -> list[Layer]:
    cube = products.samples
    return [
        Layer(
            name=f"sample-{k}", title=f"sample {k + 1}", read=_window(cube, k),
            shape_yx=products.shape_yx, high=2.0, ends=("sky", "blend"), palette="classes",
        )
        for k in range(0 if cube is None else cube.shape[0])
    ]  # fmt: skip


def _window(array: Any, *first: int) -> Read:
    return lambda rows, columns: array[(*first, rows, columns)]


def _find_image(given: Path | str | None, products: Products) -> tuple[Layer | None, Path | None]:
    """The image as a layer, and its file."""
    folder, shape_yx = products.folder, products.shape_yx
    if given is not None:
        file = ImageFile(Path(given))
        if file.shape != shape_yx:
            raise ValueError(
                f"image {given} has shape {file.shape} and the maps have {shape_yx}: "
                "name the image that was segmented, FILE[EXT] for an extension"
            )
        return _image(file), file.path
    named = str(products.header.get("PBINPUT", ""))
    for name in dict.fromkeys([named, Path(named).name] if named else []):
        for place in (Path(), folder, folder.parent):
            if not (place / name).exists():
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
