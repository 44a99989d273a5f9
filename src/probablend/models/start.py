"""How a network starts with the weights of an earlier one, and keeps parts of it as they are."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from probablend.models.network import Network

__all__ = ["freeze", "take_over"]


def take_over(model: Network, before: Network, fresh: Sequence[str], *, name: str = "it") -> None:
    """Start from the weights of an earlier network.

    A wider network says what the narrower one said: what a layer is told beyond what it was told
    there counts for nothing yet, and what it says beyond that starts at random.

    Parameters
    ----------
    model, before : Network
        The network that starts, and the earlier one.
    fresh : sequence of str
        Parts that start at random; familiarity always does, since that was another training.
    name : str
        Of the earlier one, for messages.

    Raises
    ------
    ValueError
        If the network has no such part, or is neither alike nor wider (field models can be wider).
    """
    own = model.state_dict()
    parts = {key.split(".")[0] for key in own}
    if unknown := sorted(set(fresh) - parts):
        raise ValueError(f"fresh names {', '.join(unknown)}; the network has {sorted(parts)}")
    fresh = [*fresh, "familiar"]
    earlier, wanted = (
        {key: value for key, value in state.items() if key.split(".")[0] not in fresh}
        for state in (before.state_dict(), own)
    )
    if before.frame is not None and before.frame == model.frame:
        joined = [network.joined_inputs() for network in (before, model)]
        for key in set(earlier) & set(wanted):
            if earlier[key].shape != wanted[key].shape:
                inputs = [parts.get(key) for parts in joined]
                earlier[key] = _widened(earlier[key], wanted[key], *inputs)
    if {k: v.shape for k, v in earlier.items()} != {k: v.shape for k, v in wanted.items()}:
        raise ValueError(
            f"start_from: {name} is another network than the one configured; parts of another "
            "shape must be named as fresh"
        )
    model.load_state_dict(own | earlier)


def freeze(model: Network, names: Sequence[str]) -> list[nn.Module]:
    """Let parts of a network stay as they are.

    Parameters
    ----------
    model : Network
        The network.
    names : sequence of str
        Of its parts.

    Returns
    -------
    list of Module
        These parts; statistics of what they see stay only in evaluation mode.

    Raises
    ------
    ValueError
        If the network has no such part, or no other.
    """
    parts = dict(model.named_children())
    if unknown := sorted(set(names) - set(parts)):
        raise ValueError(f"frozen names {', '.join(unknown)}; the network has {sorted(parts)}")
    for name in names:
        parts[name].requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("frozen names all parts of the network: nothing is left to learn")
    return [parts[name] for name in names]


def _widened(
    old: Tensor, new: Tensor, old_parts: Sequence[int] | None, new_parts: Sequence[int] | None
) -> Tensor:
    """Numbers of a layer in one with more channels, if that is what the new one is.

    Parameters
    ----------
    old, new : Tensor, shape (out, in, ...) or (out,)
        Of the two layers.
    old_parts, new_parts : sequence of int, optional
        How many channels come from where, if they are joined: each part becomes wider at its end.
    """
    larger = old.ndim == new.ndim and all(o <= n for o, n in zip(old.shape, new.shape, strict=True))
    if not larger or old.shape[2:] != new.shape[2:]:
        return old
    wide = new.clone()
    if old.ndim == 1:
        wide[: len(old)] = old
        return wide
    if old.dtype == torch.bool:  # which inputs a unit of the flow may see
        return wide
    old_parts, new_parts = old_parts or old.shape[1:2], new_parts or new.shape[1:2]
    if any(o > n for o, n in zip(old_parts, new_parts, strict=True)):
        return old
    wide[: len(old)] = 0
    at = 0
    for part, place in zip(old_parts, np.cumsum(new_parts) - new_parts, strict=True):
        wide[: len(old), place : place + part] = old[:, at : at + part]
        at += part
    return wide
