"""Makers of catalogues behind one interface: a scene in, a catalogue (and maps) out.

Scores read what comes out and do not know who made it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table

from probablend.checkpoint import available_models, knows_sources, load_model, pixels_only
from probablend.emulate.blend import Scene
from probablend.evaluate.classical import (
    COLD,
    HOT,
    find_sextractor,
    run_photutils,
    run_sep,
    run_sextractor,
)
from probablend.evaluate.detection import positions
from probablend.infer.segment import segment
from probablend.models.pairs import PairNetwork

__all__ = ["FORCED", "Method", "Prediction", "classical_methods", "default_methods", "open_method"]

FORCED = "@truth"  # after the name of a model: measured at the true positions


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What any method says of a scene.

    Parameters
    ----------
    catalog : Table
        ``x, y, p_blend``, and ``flux`` where it is measured.
    labels : ndarray of int, shape (y, x)
        0 = sky, 1…N the rows of the catalogue.
    p_galaxy : ndarray, shape (y, x)
        Probability of at least one galaxy; NaN from a method that looks at fluxes only.
    p_blend : ndarray, shape (y, x), optional
        Probability of at least two.
    samples : ndarray of uint8, shape (sample, y, x), optional
        Class maps drawn from the posterior.
    draws : ndarray, shape (draw, row, parameter), optional
        Posterior of every row.
    candidates : Table, optional
        ``x, y, p_source``, less probable ones among them: for completeness against purity.
    masks : ndarray of bool, shape (3, y, x), optional
        Of a pair: overlap, central galaxy, companion.
    forced : bool
        Whether the positions were given: then nothing was detected.
    """

    catalog: Table
    labels: np.ndarray
    p_galaxy: np.ndarray
    p_blend: np.ndarray | None = None
    samples: np.ndarray | None = None
    draws: np.ndarray | None = None
    candidates: Table | None = None
    masks: np.ndarray | None = None
    forced: bool = False


Method = Callable[[Scene, int], Prediction]  # scene, seed

_CLASSICAL = {
    "sep": lambda image, rms: run_sep(image, rms),
    "sep-coldhot": lambda image, rms: run_sep(image, rms, COLD, HOT),
    "sextractor": lambda image, rms: run_sextractor(image, rms),
    "sextractor-coldhot": lambda image, rms: run_sextractor(image, rms, COLD, HOT),
    "photutils": run_photutils,
}


def classical_methods() -> list[str]:
    """Those that can run here."""
    program = find_sextractor() is not None
    return [name for name in _CLASSICAL if program or not name.startswith("sextractor")]


def default_methods(models: Sequence[str] = ("field", "field" + FORCED)) -> list[str]:
    """Models, and all classical methods that can run here."""
    return [*models, *classical_methods()]


def open_method(name: str, *, n_samples: int = 16) -> Method:
    """A method by name.

    Parameters
    ----------
    name : str
        A classical one (``sep``, ``sep-coldhot``, ``sextractor``, ``sextractor-coldhot``,
        ``photutils``), shipped weights or a weight file; ``field@truth`` measures at the true
        positions.
    n_samples : int
        Posterior samples of class maps.

    Raises
    ------
    ValueError
        If nothing is known by that name.
    FileNotFoundError
        If the SExtractor program is not installed.
    """
    if name in _CLASSICAL:
        if name.startswith("sextractor") and find_sextractor() is None:
            raise FileNotFoundError(
                f"{name} needs the SExtractor program on the PATH (Debian: source-extractor)"
            )
        return _classical(name)
    model = name.removesuffix(FORCED)
    if model not in available_models() and not Path(model).is_file():
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
        catalog, labels = _CLASSICAL[name](scene.image, scene.rms)
        return Prediction(catalog=catalog, labels=labels, p_galaxy=(labels > 0).astype(float))

    return run


def _network(model: str, *, forced: bool, n_samples: int) -> Method:
    def run(scene: Scene, seed: int) -> Prediction:
        result = segment(
            scene.image, rms=scene.rms, n_samples=n_samples, seed=seed, model=model,
            background="none", psf_fwhm=scene.survey.psf_fwhm_pixels,
            zeropoint=scene.survey.zeropoint,
            positions=positions(scene.catalog) if forced else None,
        )  # fmt: skip
        return Prediction(
            catalog=result.catalog,
            labels=result.labels,
            p_galaxy=result.p_galaxy,
            p_blend=result.p_blend,
            samples=result.samples,
            draws=None if result.sources is None else result.sources.draws,
            forced=forced,
        )

    return run


def _pair_network(network: PairNetwork) -> Method:
    """A network that is told that there are two galaxies, one in the middle."""

    @torch.inference_mode()
    def run(scene: Scene, seed: int) -> Prediction:
        said = network(torch.from_numpy(scene.image / np.float32(scene.rms))[None, None])
        masks, p_overlap = None, 1.0
        labels = np.zeros(scene.image.shape, np.int32)
        p_galaxy = np.full(scene.image.shape, np.nan)
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
        catalog = Table({"x": at[:, 1], "y": at[:, 0], "p_blend": np.full(len(at), p_overlap)})
        if said.log_flux is not None:
            catalog["flux"] = said.log_flux[0].double().exp().numpy() * scene.rms
        return Prediction(
            catalog=catalog,
            labels=labels,
            p_galaxy=p_galaxy,
            masks=masks,
            forced=said.log_flux is not None,
        )

    return run


def _centroids(masks: np.ndarray) -> np.ndarray:
    """Centres of the masks that are not empty, (n, 2), y first."""
    at = [np.argwhere(mask).mean(axis=0) for mask in masks if mask.any()]
    return np.array(at).reshape(-1, 2)
