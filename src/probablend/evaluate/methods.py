"""Makers of catalogues behind one interface: a scene in, a catalogue (and maps) out.

Scores read what comes out and do not know who made it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from astropy.io import fits
from astropy.table import Table

from probablend.checkpoint import (
    available_models,
    file_hash,
    find_model,
    knows_sources,
    load_model,
    pixels_only,
)
from probablend.emulate.blend import Scene
from probablend.emulate.products import scene_wcs
from probablend.emulate.psf import psf_image, survey_psf
from probablend.evaluate.classical import (
    COLD,
    FAINT,
    HOT,
    find_sextractor,
    run_photutils,
    run_scarlet,
    run_sep,
    run_sextractor,
)
from probablend.evaluate.detection import DETECTION_THRESHOLDS, in_image, positions
from probablend.infer.measure import pixel_positions, plain_values, read_positions
from probablend.infer.segment import segment
from probablend.models.pairs import PairNetwork

__all__ = [
    "FORCED",
    "Method",
    "Prediction",
    "classical_methods",
    "default_methods",
    "is_known",
    "method_file",
    "model_of",
    "open_method",
    "read_method",
    "refuse_pair_networks",
    "weights_hash",
]

FORCED = "@truth"  # after the name of a model: measured at the true positions
# Ours: the default, and what was trained on such blends alone.
FIELD_MODELS = ("field", "field-pairs")
# The published networks, trained on blends of two galaxies.
PAIR_NETWORKS = ("pairs-unet", "blend2flux", "blend2flux-log", "blend2mask2flux", "pairs-punet")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What any method says of a scene.

    Parameters
    ----------
    catalog : Table
        ``x, y``, and ``flux`` and ``p_blend`` where they are said.
    labels : ndarray of int, shape (y, x)
        0 = sky, 1…N the rows of the catalogue.
    p_galaxy, p_blend : ndarray, shape (y, x), optional
        Probability of at least one, at least two galaxies.
    samples : ndarray of uint8, shape (sample, y, x), optional
        Class maps drawn from the posterior.
    draws : ndarray, shape (draw, row, parameter), optional
        Posterior of every row.
    candidates : callable, optional
        Gives a table ``x, y, p_source`` with less probable ones among them, for completeness
        against purity.
    masks : ndarray of bool, shape (3, y, x), optional
        Of a pair: overlap, central galaxy, companion.
    given : ndarray of int, shape (row,), optional
        The true source of every row, if the positions were given: then nothing was detected.
    """

    catalog: Table
    labels: np.ndarray
    p_galaxy: np.ndarray | None = None
    p_blend: np.ndarray | None = None
    samples: np.ndarray | None = None
    draws: np.ndarray | None = None
    candidates: Callable[[], Table] | None = None
    masks: np.ndarray | None = None
    given: np.ndarray | None = None


Method = Callable[[Scene, int], Prediction]  # scene, seed

_CLASSICAL: dict[str, Callable[[Scene], tuple[Table, np.ndarray]]] = {
    "sep": lambda scene: run_sep(scene.image, scene.rms),
    "sep-faint": lambda scene: run_sep(scene.image, scene.rms, FAINT),
    "sep-coldhot": lambda scene: run_sep(scene.image, scene.rms, COLD, HOT),
    "sextractor": lambda scene: run_sextractor(scene.image, scene.rms),
    "sextractor-coldhot": lambda scene: run_sextractor(scene.image, scene.rms, COLD, HOT),
    "photutils": lambda scene: run_photutils(scene.image, scene.rms),
    "scarlet": lambda scene: run_scarlet(scene.image, scene.rms, psf_image(scene.survey, 41)),
}


def classical_methods() -> list[str]:
    """Those that run by themselves: scarlet, which takes seconds for a pair, must be asked for."""
    program = find_sextractor() is not None
    own = [name for name in _CLASSICAL if name != "scarlet"]
    return [name for name in own if program or not name.startswith("sextractor")]


def default_methods() -> list[str]:
    """For blends of two galaxies: all models, and all classical methods that can run here."""
    there = available_models()
    ours = [name + how for name in FIELD_MODELS if name in there for how in ("", FORCED)]
    networks = [name for name in PAIR_NETWORKS if name in there]
    return [*ours, *networks, *classical_methods()]


def model_of(name: str) -> str | None:
    """The model behind a method that segments; None for any other."""
    forced = name.endswith(FORCED)
    return None if name in _CLASSICAL or forced or _looks_at_pairs(name) else name


def _looks_at_pairs(model: str) -> bool:
    return isinstance(load_model(model.removesuffix(FORCED))[0], PairNetwork)


def is_known(name: str) -> bool:
    """Whether a method can be opened by this name."""
    model = name.removesuffix(FORCED)
    return name in _CLASSICAL or model in available_models() or Path(model).is_file()


def refuse_pair_networks(names: Iterable[str]) -> None:
    """Refuse networks that look at stamps of two galaxies only.

    Raises
    ------
    ValueError
        If one of the methods is one.
    """
    for name in names:
        if name not in _CLASSICAL and is_known(name) and _looks_at_pairs(name):
            raise ValueError(f"{name} looks at stamps of two galaxies only: evaluate it with pairs")


def method_file(name: str) -> str:
    """Stem of the files in which a method's results are kept."""
    return Path(name).name.removesuffix(".safetensors").replace(FORCED, "-at-truth")


def weights_hash(name: str) -> str | None:
    """Hash of the weights behind a method; None if it has none."""
    return None if name in _CLASSICAL else file_hash(find_model(name.removesuffix(FORCED)))


def open_method(name: str, *, n_samples: int = 16) -> Method:
    """A method by name.

    Parameters
    ----------
    name : str
        A classical one (``sep``, ``sep-faint``, ``sep-coldhot``, ``sextractor``,
        ``sextractor-coldhot``, ``photutils``, ``scarlet``), shipped weights or a weight file;
        ``field@truth`` measures at the true positions.
    n_samples : int
        Posterior samples of class maps.

    Raises
    ------
    ValueError
        If nothing is known by that name.
    FileNotFoundError
        If the SExtractor program or scarlet2 is asked for and not installed.
    """
    if name in _CLASSICAL:
        if name == "scarlet" and find_spec("scarlet2") is None:
            raise FileNotFoundError(
                "scarlet needs scarlet2: pip install 'probablend[scarlet]', or leave it out"
            )
        if name.startswith("sextractor") and find_sextractor() is None:
            raise FileNotFoundError(
                f"{name} needs the SExtractor program on the PATH (Debian: source-extractor)"
            )
        return _classical(name)
    model = name.removesuffix(FORCED)
    if not is_known(name):
        known = [*_CLASSICAL, *available_models()]
        raise ValueError(f"unknown method {name!r}: one of {', '.join(known)}, or a weight file")
    if name.endswith(FORCED) and not knows_sources(model):
        raise pixels_only(model)
    network, _ = load_model(model)
    if isinstance(network, PairNetwork):
        return _pair_network(network.eval())
    return _network(model, forced=name.endswith(FORCED), n_samples=n_samples)


def _classical(name: str) -> Method:
    def run(scene: Scene, seed: int) -> Prediction:
        catalog, labels = _CLASSICAL[name](scene)
        return Prediction(catalog=catalog, labels=labels, p_galaxy=(labels > 0).astype(float))

    return run


def _network(model: str, *, forced: bool, n_samples: int) -> Method:
    def run(scene: Scene, seed: int) -> Prediction:
        look = partial(
            segment, scene.image, rms=scene.rms, seed=seed, model=model, background="none",
            psf=survey_psf(scene.survey), zeropoint=scene.survey.zeropoint,
        )  # fmt: skip
        at = given = None
        if forced:
            given = np.flatnonzero(in_image(scene.catalog, scene.image.shape))
            at = positions(scene.catalog)[given]
        result = look(n_samples=n_samples, positions=at)
        own = result.sources

        def candidates() -> Table:
            return look(n_samples=1, min_p_source=DETECTION_THRESHOLDS[0]).catalog

        return Prediction(
            catalog=result.catalog,
            labels=result.labels,
            p_galaxy=result.p_galaxy,
            p_blend=result.p_blend,
            samples=result.samples,
            draws=None if own is None else own.draws,
            candidates=candidates if own is not None and not forced else None,
            given=given,
        )

    return run


def read_method(catalog: Path, maps: Path | None = None) -> Method:
    """Somebody's own results of a scene, as a method.

    Parameters
    ----------
    catalog : Path
        With positions; ``flux`` (image units) and ``p_blend`` are used if they are there.
    maps : Path, optional
        FITS file with ``P_GALAXY``, and ``P_BLEND`` and ``LABELS`` if it has them.

    Raises
    ------
    FileNotFoundError
        If a file is not there.
    ValueError
        If it cannot be understood, or the maps have another shape than the scene.
    """
    table = read_positions(catalog)
    names = {name.lower(): name for name in table.colnames}
    layers: dict[str, np.ndarray] = {}
    if maps is not None:
        if not maps.is_file():
            raise FileNotFoundError(f"maps {maps} do not exist")
        with fits.open(maps) as hdus:
            for name in ("P_GALAXY", "P_BLEND", "LABELS"):
                if name in hdus:
                    layers[name] = np.asarray(hdus[name].data)

    def run(scene: Scene, seed: int) -> Prediction:
        shape = scene.image.shape
        for name, layer in layers.items():
            if layer.shape != shape:
                raise ValueError(
                    f"{name} of {maps} must have the shape {shape} of the scene; got {layer.shape}"
                )
        labels = layers.get("LABELS", np.zeros(shape, np.int32))
        if labels.max(initial=0) > len(table):
            raise ValueError(
                f"LABELS of {maps} go up to {labels.max()}, the catalogue has {len(table)} rows"
            )
        at = pixel_positions(table, scene_wcs(scene))
        known = np.isfinite(at).all(axis=1)
        number = np.append(0, np.where(known, np.cumsum(known), 0))
        said = Table({"y": at[known, 0], "x": at[known, 1]})
        for key in ("flux", "p_blend"):
            if key in names:
                said[key] = plain_values(table[names[key]])[known]
        return Prediction(
            catalog=said,
            labels=number[labels],
            p_galaxy=layers.get("P_GALAXY"),
            p_blend=layers.get("P_BLEND"),
        )

    return run


def _pair_network(network: PairNetwork) -> Method:
    """A network that is told that there are two galaxies, one in the middle."""

    @torch.inference_mode()
    def run(scene: Scene, seed: int) -> Prediction:
        said = network(torch.from_numpy(scene.image / np.float32(scene.rms))[None, None])
        masks, p_overlap = None, 1.0
        labels = np.zeros(scene.image.shape, np.int32)
        p_galaxy = given = None
        at = positions(scene.catalog)
        if said.mask_logits is not None:
            probability = said.mask_logits[0].sigmoid().numpy()
            masks, p_overlap = probability > 0.5, float(probability[0].max())
            p_galaxy = probability[1:].max(axis=0)
            seen = probability[1:][masks[1:].any(axis=(1, 2))]
            labels = np.where(p_galaxy > 0.5, 1 + seen.argmax(axis=0) if len(seen) else 0, 0)
        if said.log_flux is None:
            assert masks is not None
            at = _centroids(masks[1:])
        else:
            given = np.arange(len(at))
        catalog = Table({"x": at[:, 1], "y": at[:, 0], "p_blend": np.full(len(at), p_overlap)})
        if said.log_flux is not None:
            catalog["flux"] = said.log_flux[0].double().exp().numpy() * scene.rms
        return Prediction(
            catalog=catalog,
            labels=labels,
            p_galaxy=p_galaxy,
            masks=masks,
            given=given,
        )

    return run


def _centroids(masks: np.ndarray) -> np.ndarray:
    """Centres of the masks that are not empty, (n, 2), y first."""
    at = [np.argwhere(mask).mean(axis=0) for mask in masks if mask.any()]
    return np.array(at).reshape(-1, 2)
