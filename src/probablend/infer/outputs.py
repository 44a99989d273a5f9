"""The files that a run leaves behind: what they are called, and how they get there."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from probablend.hats import check_hats
from probablend.sextractor import check_columns

__all__ = [
    "CATALOG_FORMATS", "PRODUCTS", "SUMMARY", "check_folder", "check_format", "check_output",
    "move", "products_in", "remove",
]  # fmt: skip

CATALOG_FORMATS = ("fits", "ecsv", "parquet", "hats")
SUMMARY = "summary.json"
PRODUCTS = (
    "maps.fits",
    "maps.zarr",
    *(f"catalog.{kind}" for kind in CATALOG_FORMATS),
    "quicklook.png",
    "samples.fits",
    "samples.zarr",
    "posterior.fits",
    "sources.reg",
    SUMMARY,
)
_WORDS = {"catalog": "catalogue", "sources": "regions"}  # what is not called as its file is


def products_in(folder: Path) -> dict[str, list[str]]:
    """What a summary, which is yet to come, says of the products in a folder."""
    files = [name for name in PRODUCTS if name != SUMMARY and (folder / name).exists()]
    stems = [name.partition(".")[0] for name in files]
    return {"products": [_WORDS.get(s, s) for s in stems], "files": [*files, SUMMARY]}


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
    check_folder(directory)
    there = [name for name in PRODUCTS if (directory / name).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"{directory} holds {', '.join(there)} already: choose another folder, or overwrite "
            "(--overwrite)"
        )


def check_folder(directory: Path) -> None:
    """Refuse a folder that is a file, or in which nothing can be written; it need not exist."""
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file; a folder is wanted")
    parent = directory
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise FileExistsError(f"{parent} is a file; {directory} cannot be made in it")
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"{parent} is not writable")


def check_format(catalog_format: str, columns: str = "probablend") -> None:
    """Refuse a catalogue that cannot be written, before any work is done."""
    check_columns(columns)
    if catalog_format not in CATALOG_FORMATS:
        raise ValueError(
            f"catalogue format must be one of {', '.join(CATALOG_FORMATS)}; got {catalog_format!r}"
        )
    if catalog_format == "hats" and columns != "probablend":
        raise ValueError(f"a HATS catalogue needs our own columns, not those of {columns}")
    if catalog_format == "hats":
        check_hats()
    if catalog_format == "parquet" and find_spec("pyarrow") is None:
        raise ValueError("a Parquet catalogue needs pyarrow: pip install pyarrow, or use ecsv")


def move(product: Path, target: Path) -> None:
    """Put a finished file or folder under its name, in the place of what is there."""
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(product, target)


def remove(product: Path) -> None:
    """Remove a file or folder, if it is there."""
    if product.is_dir():
        shutil.rmtree(product)
    else:
        product.unlink(missing_ok=True)
