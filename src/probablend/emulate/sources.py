"""Sources of isolated galaxies by name."""

from pathlib import Path

from probablend.data import DATASETS, dataset_folder, require
from probablend.emulate.candels import CandelsGalaxies, has_their_pixels
from probablend.emulate.cosmos import CosmosGalaxies
from probablend.emulate.parametric import ParametricGalaxies
from probablend.emulate.stamps import Galaxies, Split
from probablend.emulate.structured import IrregularGalaxies, StructuredGalaxies
from probablend.survey import Survey

__all__ = ["SOURCES", "default_source", "open_source", "split_sources"]

SOURCES = ("parametric", "structured", "irregular", "candels", "cosmos")
_DRAWN = {
    "parametric": ParametricGalaxies,
    "structured": StructuredGalaxies,
    "irregular": IrregularGalaxies,
}


def default_source(survey: Survey) -> str:
    """``candels`` where these real galaxies are here and fit the survey, else ``parametric``."""
    real = dataset_folder("candels") is not None and has_their_pixels(survey)
    return "candels" if real else "parametric"


def split_sources(name: str) -> list[str]:
    """Sources that a mixture names, ``"structured+cosmos"``.

    Parameters
    ----------
    name : str
        Of a source, or of several with ``+`` between them; ``"all"`` is ``structured`` and every
        real set that has been downloaded.
    """
    real = [key for key in ("candels", "cosmos") if dataset_folder(key) is not None]
    parts = [["structured", *real] if part == "all" else [part] for part in name.split("+")]
    return [one for part in parts for one in part]


def open_source(
    name: str,
    survey: Survey,
    split: Split,
    *,
    n_galaxies: int = 4000,
    n_stars: int = 200,
    mag_range: tuple[float, float] = (18.5, 26.0),
    seed: int = 0,
) -> Galaxies:
    """One split of a source.

    Parameters
    ----------
    name : {"parametric", "structured", "irregular", "candels", "cosmos"}
        ``candels`` and ``cosmos`` need their data: ``probablend data get NAME``.
        ``cosmos:FILE`` is any other catalogue that GalSim's ``RealGalaxyCatalog`` reads.
    survey : Survey
        What the stamps are drawn for.
    split : {"train", "validation", "test"}
        No galaxy is in two splits.
    n_galaxies, n_stars : int
        Size of a parametric population; real sets have their own.
    mag_range : tuple of float
        Magnitudes that will be asked for; a parametric population reaches a little further.
    seed : int
        Seeds a parametric population.

    Raises
    ------
    ValueError
        If the name is unknown or the survey does not suit the set.
    FileNotFoundError
        If the data of a real set are missing.
    """
    match name:
        case "parametric" | "structured" | "irregular":
            return _DRAWN[name](
                survey,
                split,
                n_galaxies=n_galaxies,
                n_stars=n_stars,
                mag_range=(mag_range[0] - 0.25, mag_range[1] + 0.25),
                seed=seed,
            )
        case "candels":
            return CandelsGalaxies(survey, require("candels"), split)
        case "cosmos":
            catalog = require("cosmos") / DATASETS["cosmos"].files[0]
            return CosmosGalaxies(survey, catalog, split, n_stars=n_stars)
        case _ if name.startswith("cosmos:"):
            return CosmosGalaxies(survey, Path(name.partition(":")[2]), split, n_stars=n_stars)
        case _:
            raise ValueError(f"source must be one of {', '.join(SOURCES)}; got {name!r}")
