"""Weights, settings and origin of a network in one safetensors file.

The header of the file carries a JSON object: the settings from which the network is built,
the version of the code, the seed, the metrics. Nothing in a file is executed.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from probablend.models import build_model
from probablend.models.network import Network

__all__ = [
    "available_models",
    "file_hash",
    "find_model",
    "knows_sources",
    "load_model",
    "load_tensors",
    "pixels_only",
    "save_tensors",
    "save_weights",
]

_KEY = "probablend"
_SUMS = "SHA256SUMS"  # beside the shipped weights, as sha256sum writes it
_MAX_BYTES = 4 << 30  # of a weight or checkpoint file
_MAX_SETTING = 4096  # of any integer that describes a network
_SPARE = 1 << 20  # numbers that building a network may take beyond its weights


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header; the name appears only when the file is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    data = save(plain, metadata={_KEY: json.dumps(meta)})
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a file of ours.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weight file {path} does not exist")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path} is larger than {_MAX_BYTES >> 30} GiB: not a weight file of ours")
    try:
        with safe_open(path, framework="pt") as handle:
            meta = (handle.metadata() or {}).get(_KEY)
            if meta is None:
                raise ValueError(f"{path} holds no probablend settings: not a weight file of ours")
            settings = json.loads(meta)
            if not isinstance(settings, dict):
                raise ValueError(f"{path} holds no probablend settings: not a weight file of ours")
            return {key: handle.get_tensor(key) for key in handle.keys()}, settings  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, RecursionError, OSError) as error:
        raise ValueError(f"{path} is not a readable weight file: {error}") from error


def save_weights(path: Path, model: nn.Module, meta: Mapping[str, Any], *, half: bool) -> None:
    """Write a network for others to use.

    Parameters
    ----------
    path : Path
        Ends in ``.safetensors``; the metadata is repeated beside it in ``.json``.
    model : nn.Module
        The network.
    meta : mapping
        ``model``: its settings, with ``kind``; and whatever says where it comes from.
    half : bool
        Whether to keep weights in half precision; buffers, such as normalisation
        statistics, stay single.
    """
    weights = {name for name, _ in model.named_parameters()}
    tensors = {
        key: value.half() if half and key in weights else value
        for key, value in model.state_dict().items()
    }
    save_tensors(path, tensors, meta)
    beside = path.with_suffix(".json")
    part = beside.with_name(beside.name + ".part")
    part.write_text(json.dumps(meta, indent=2) + "\n")
    os.replace(part, beside)


def load_model(name_or_path: str | Path) -> tuple[Network, dict[str, Any]]:
    """Trained network, ready to use, and its metadata.

    Parameters
    ----------
    name_or_path : str or Path
        One of :func:`available_models`, or a ``.safetensors`` file.

    Raises
    ------
    FileNotFoundError
        If it is neither.
    ValueError
        If the file does not hold the network that its settings describe.
    """
    path = find_model(name_or_path)
    tensors, meta = load_tensors(path)
    _check_meta(path, meta)
    try:
        with _Budget(sum(value.numel() for value in tensors.values()) + _SPARE):
            model = build_model(meta["model"])
    except (RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} describes a network that cannot be built: {error}") from error
    own = model.state_dict()
    if not any(key.startswith("familiar.") for key in tensors):  # from before it was learnt
        own = {key: value for key, value in own.items() if not key.startswith("familiar.")}
    wanted = {key: value.shape for key, value in own.items()}
    found = {key: value.shape for key, value in tensors.items()}
    if wanted != found:
        odd = sorted(set(wanted.items()) ^ set(found.items()), key=str)[:3]
        raise ValueError(f"{path} does not hold the weights of its own settings, first: {odd}")
    if not all(math.isfinite(float(t.float().sum())) for t in tensors.values()):
        raise ValueError(f"{path} holds weights that are not finite")
    model.load_state_dict(tensors)
    return model.float().eval(), meta


class _Budget(TorchDispatchMode):
    """Refuses, before any is allocated, more weights than a file can fill."""

    def __init__(self, n_values: int) -> None:
        super().__init__()
        self.left = n_values

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.empty.memory_format:
            self.left -= math.prod(args[0])
            if self.left < 0:
                raise RuntimeError("it is larger than the file")
        return func(*args, **(kwargs or {}))


def _check_meta(path: Path, meta: Mapping[str, Any]) -> None:
    """Refuse settings that no training writes."""
    if not isinstance(meta.get("model"), dict):
        raise ValueError(f"{path} does not say which network it holds")
    sizes = [n for value in meta["model"].values() for n in _integers(value)]
    if max(sizes, default=0) > _MAX_SETTING:
        raise ValueError(f"{path} describes a network with a size of {max(sizes)}: not one of ours")
    ranges = meta.get("trained_range", {})
    lists = list(ranges.values()) if isinstance(ranges, dict) else [None]
    for pair in [*lists, np.ravel(meta.get("psf_fwhm_pixels", 2.0)).tolist()]:
        if not isinstance(pair, list) or not all(isinstance(n, int | float) for n in pair):
            raise ValueError(f"{path} does not say what its network was trained on")


def _integers(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [n for n in values if isinstance(n, int)]


def knows_sources(name_or_path: str | Path) -> bool:
    """Whether a model has posteriors of sources, not of pixels only."""
    _, meta = load_tensors(find_model(name_or_path))
    model = meta.get("model")
    return isinstance(model, dict) and model.get("kind") == "field"


def pixels_only(model: str | Path) -> ValueError:
    """What to raise when sources are asked of a model that knows none."""
    return ValueError(
        f"model {model} knows pixels only: no posterior of sources, no regions, no forced "
        "positions; use the model 'field'"
    )


def available_models() -> list[str]:
    """Names of the weights that come with the package."""
    folder = files("probablend") / "weights"
    if not folder.is_dir():
        return []
    names = [entry.name for entry in folder.iterdir()]
    return sorted(n.removesuffix(".safetensors") for n in names if n.endswith(".safetensors"))


def find_model(name_or_path: str | Path) -> Path:
    """File of a shipped model, which is checked, or of a path.

    Raises
    ------
    FileNotFoundError
        If it is neither.
    ValueError
        If a shipped file is not what was shipped.
    """
    text = str(name_or_path)
    if text.endswith(".safetensors"):
        if not Path(text).is_file():
            raise FileNotFoundError(f"weight file {text} does not exist")
        return Path(text)
    if text not in available_models():
        raise FileNotFoundError(
            f"unknown model {text!r}; known: {', '.join(available_models()) or 'none'}; "
            "or give a .safetensors file"
        )
    path = Path(str(files("probablend") / "weights" / f"{text}.safetensors"))
    state = path.stat()
    _check_shipped(path, state.st_size, state.st_mtime_ns)
    return path


@lru_cache(maxsize=64)
def _check_shipped(path: Path, size: int, changed: int) -> None:
    """Refuse shipped weights whose sum is another; once per process and state of the file."""
    sums = path.with_name(_SUMS)
    lines = sums.read_text().splitlines() if sums.is_file() else []
    known = {name.lstrip(" *"): sha for sha, _, name in (line.partition(" ") for line in lines)}
    wanted, came = known.get(path.name, "nothing"), _sha256(path)
    if came != wanted:
        raise ValueError(
            f"{path} is not what was shipped: SHA-256 {wanted[:16]} was wanted, {came[:16]} came; "
            "install probablend again"
        )


def file_hash(path: Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file."""
    return _sha256(path)[:16]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
