"""Settings: frozen dataclasses, read from TOML, unknown keys refused."""

import re
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from probablend.emulate.scenes import SceneConfig

__all__ = [
    "BankConfig",
    "OptimizerConfig",
    "TrainConfig",
    "at_least_one",
    "find_config",
    "from_mapping",
    "read_train_config",
]

T = TypeVar("T")
_KINDS = {str: "text", int: "whole numbers", float: "numbers"}
_SEEDS = 2**40  # they are multiplied by a million
_LOOKING = ("encoder", "decoder", "head", "heat")  # parts of a field model that see pixels


@dataclass(frozen=True, kw_only=True)
class BankConfig:
    """Galaxies drawn before training starts.

    Parameters
    ----------
    source : str
        Where the galaxies come from: ``parametric``, ``structured``, ``irregular``, ``candels``,
        ``cosmos``, several with ``+`` between them, or ``all`` that are here; see
        :func:`~probablend.emulate.sources.split_sources`.
    n_galaxies, n_stars : int
        How many to draw for each survey, and of each source; of real sets at most as many.
    refresh_every : int
        Steps after which a new bank of other galaxies is drawn; 0 = never.
    n_random_surveys : int
        Surveys that might be, drawn anew for every bank beside those with a name; see
        :func:`~probablend.survey.draw_survey`.
    psf_images : tuple of str
        FITS files with images of real PSFs, for surveys that might be.
    psf_image_fraction : float
        Share of these that have one.
    """

    source: str = "parametric"
    n_galaxies: int = 4000
    n_stars: int = 200
    refresh_every: int = 0
    n_random_surveys: int = 0
    psf_images: tuple[str, ...] = ()
    psf_image_fraction: float = 1 / 3

    def __post_init__(self) -> None:
        if not 0 <= self.psf_image_fraction <= 1:
            raise ValueError(
                f"psf_image_fraction must lie between 0 and 1; got {self.psf_image_fraction}"
            )
        if self.n_galaxies < 4:  # a quarter of them are held out
            raise ValueError(f"n_galaxies must be at least 4; got {self.n_galaxies}")
        not_negative(self, "n_stars", "refresh_every", "n_random_surveys")

    def number_at(self, step: int) -> int:
        """Which bank a step uses."""
        return step // self.refresh_every if self.refresh_every > 0 else 0


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the weights are found.

    Parameters
    ----------
    n_steps : int
        Optimiser steps in all.
    batch_size : int
        Scenes per batch.
    n_batches : int
        Batches per step, shared by all processes of a training; the gradient is their mean.
    learning_rate : float
        At its peak: it rises over the first ``warmup`` of the steps and falls to zero as a
        half cosine.
    warmup : float
        Share of the steps.
    kl_warmup : float
        Share of the steps over which the weight of the KL term rises from 0 to ``beta``.
    beta : float
        Its final weight; 1 is the evidence lower bound.
    gradient_clip : float
        Largest norm of the gradient of the loss per pixel.
    weight_decay : float
        Share of every weight that a step at a learning rate of one would take away.
    average : float
        Share of the past in the running mean of the weights, which is what is scored and kept:
        0.99 remembers about a hundred steps; 0 keeps the weights as they are.
    patience : int
        Validations without a lower loss or a better calibration after which the training
        stops; 0 = never.
    """

    n_steps: int = 10_000
    batch_size: int = 16
    n_batches: int = 1
    learning_rate: float = 2e-3
    warmup: float = 0.02
    kl_warmup: float = 0.2
    beta: float = 1.0
    gradient_clip: float = 1.0
    weight_decay: float = 0.0
    average: float = 0.0
    patience: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "n_steps", "batch_size", "n_batches")
        not_negative(self, "weight_decay", "beta", "patience")
        for key in ("warmup", "kl_warmup"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key} must lie between 0 and 1; got {getattr(self, key)}")
        if not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip must be positive; got {self.gradient_clip}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average must be at least 0 and below 1; got {self.average}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive; got {self.learning_rate}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training.

    Parameters
    ----------
    name : str
        Of the weights.
    surveys : tuple of str
        Names or TOML files, see :func:`~probablend.survey.get_survey`; each scene is of one.
    seed : int
        Seeds galaxies, scenes, weights and latents.
    start_from : str
        Weights to start from, shipped ones or a ``.safetensors`` file, or the ``.toml`` of a
        training that comes before this one (a file, or the name of a shipped one); random if
        empty.
    fresh : tuple of str
        Parts of the network that do not start from there but at random.
    frozen : tuple of str
        Parts of the network that stay as they are.
    lessons : int
        Batches of scenes that are looked at before anything is learnt. What is said of sources is
        then learnt from what was seen of them alone, again and again, which takes a fraction of
        the time; all of the network that looks must be frozen. 0 = every step has new scenes.
    model : mapping
        ``kind`` and settings of the network, see :func:`~probablend.models.build_model`. A file
        that names weights in ``start_from`` may leave it out: see :func:`read_train_config`.
    bank, scenes, optimizer
        See the classes.
    n_validation : int
        Held-out scenes.
    validate_every, checkpoint_every : int
        Steps between validations and between checkpoints.
    """

    name: str
    surveys: tuple[str, ...] = ("euclid-vis",)
    seed: int = 0
    start_from: str = ""
    fresh: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    lessons: int = 0
    model: Mapping[str, Any] = field(default_factory=lambda: {"kind": "punet"})
    bank: BankConfig = field(default_factory=BankConfig)
    scenes: SceneConfig = field(default_factory=SceneConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    n_validation: int = 128
    validate_every: int = 500
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        at_least_one(self, "n_validation", "validate_every", "checkpoint_every")
        if not 0 <= self.seed < _SEEDS:
            raise ValueError(f"seed must lie between 0 and {_SEEDS - 1}; got {self.seed}")
        if not self.surveys:
            raise ValueError("surveys must name one at least")
        if self.fresh and not self.start_from:
            raise ValueError("fresh: all of the network is, without start_from")
        taken = self.name in ("best", "last")  # by what is not finished
        if taken or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(
                "name must be letters, digits, dots and dashes, and neither 'best' nor 'last'; "
                f"got {self.name!r}"
            )
        if self.model.get("patch_size", self.scenes.size) != self.scenes.size:
            raise ValueError(
                f"patch_size of the model ({self.model['patch_size']}) must be the size of the "
                f"scenes ({self.scenes.size}): leave it out"
            )

        if self.lessons < 0:
            raise ValueError(f"lessons must be 0 or more; got {self.lessons}")
        if self.lessons and (self.model.get("kind") != "field" or set(_LOOKING) - {*self.frozen}):
            raise ValueError(
                "lessons: only a field model whose "
                + ", ".join(_LOOKING)
                + " are frozen can learn "
                "from what it has seen"
            )
        if self.scenes.damaged_fraction and self.model.get("kind") != "field":
            raise ValueError("damaged_fraction: only the field model can leave pixels out")

    @property
    def model_settings(self) -> dict[str, Any]:
        """Settings of the network, the patch size among them."""
        return {**self.model, "patch_size": self.scenes.size}


def at_least_one(settings: Any, *keys: str) -> None:
    """Refuse settings below 1."""
    for key in keys:
        if getattr(settings, key) < 1:
            raise ValueError(f"{key} must be at least 1; got {getattr(settings, key)}")


def not_negative(settings: Any, *keys: str) -> None:
    """Refuse settings below 0."""
    for key in keys:
        if not getattr(settings, key) >= 0:
            raise ValueError(f"{key} must be 0 or more; got {getattr(settings, key)}")


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Build a settings dataclass from plain values, as read from TOML or JSON.

    Parameters
    ----------
    cls : type
        A dataclass; nested ones are built from nested mappings.
    values : mapping
        Its fields.
    where : str
        What the values describe, for the error message.

    Raises
    ------
    ValueError
        If a key is unknown or missing or a value has the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a table of settings; got {values!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{where} has unknown settings {unknown}; known: {sorted(known)}")
    needed = {
        f.name
        for f in fields(cls)  # type: ignore[arg-type]
        if f.default is MISSING and f.default_factory is MISSING
    }
    if missing := sorted(needed - set(values)):
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    built = {key: _convert(value, hints[key], f"{where}: {key}") for key, value in values.items()}
    try:
        return cls(**built)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def _convert(value: Any, hint: Any, where: str) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        return from_mapping(hint, value, where=where)
    origin = typing.get_origin(hint)
    if origin is tuple:
        inner = typing.get_args(hint)
        variable = len(inner) == 2 and inner[1] is Ellipsis
        if not isinstance(value, list | tuple) or not (variable or len(value) == len(inner)):
            what = _KINDS.get(inner[0], inner[0].__name__)
            number = "" if variable else f"{len(inner)} of "
            raise ValueError(f"{where} must be a list: {number}{what}; got {value!r}")
        kinds = [inner[0]] * len(value) if variable else inner
        return tuple(_convert(v, k, where) for v, k in zip(value, kinds, strict=True))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a table of settings; got {value!r}")
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is not None:
        return value
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ValueError(f"{where} must be {hint.__name__}; got {value!r}")
    return value


def find_config(name: str | Path) -> Path:
    """Where a training's settings are: in a file, or under this name in the package."""
    path = Path(name)
    shipped = Path(__file__).parent / "configs" / path.name
    own = path.is_file() or not shipped.is_file() or path.name != str(name)
    return path if own else shipped


def _network_of(weights: str) -> dict[str, Any]:
    """The network of a weight file as a training's ``model``."""
    from probablend.checkpoint import load_model  # it builds networks, whose settings are read here

    settings = load_model(weights)[1]["model"]
    return {key: value for key, value in settings.items() if key != "patch_size"}


def read_train_config(path: Path) -> TrainConfig:
    """Read a training's settings from TOML.

    What starts from weights and has no ``model`` is the network of those weights.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or no such weights to start from.
    ValueError
        If it is not TOML or its settings are not those of :class:`TrainConfig`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"training configuration {path} does not exist")
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    earlier = values.get("start_from", "")
    is_weights = isinstance(earlier, str) and earlier and not earlier.endswith(".toml")
    if is_weights and "model" not in values:
        values["model"] = _network_of(earlier)
    return from_mapping(TrainConfig, values, where=str(path))
