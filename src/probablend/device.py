"""Where to compute."""

import torch

__all__ = ["resolve_device"]


def resolve_device(device: str) -> torch.device:
    """The device of a name; ``auto`` is the fastest there is.

    Raises
    ------
    ValueError
        If the name is unknown or this machine has no such device.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(),
                 "mps": torch.backends.mps.is_available()}  # fmt: skip
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if device not in available:
        raise ValueError(f"device must be auto, {', '.join(available)}; got {device!r}")
    if not available[device]:
        raise ValueError(f"this machine has no {device} device")
    return torch.device(device)
