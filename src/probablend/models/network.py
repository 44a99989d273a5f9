"""What every network can do: be trained on scenes with their truth."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from probablend.emulate.scenes import SceneBatch
    from probablend.models.unet import UNetConfig

__all__ = ["Network"]


class Network(nn.Module, ABC):
    """A network that can be trained by ``probablend train``."""

    config: "UNetConfig"

    @abstractmethod
    def training_loss(
        self, batch: "SceneBatch", *, generator: torch.Generator, beta: float
    ) -> dict[str, Tensor]:
        """Loss and its terms, nats per image, for scenes with their truth."""

    @property
    def frame(self) -> Any:
        """What a network that starts from this one must share; None if it must be the same."""
        return None

    def joined_inputs(self) -> dict[str, list[int]]:
        """Of layers that see several things side by side: how many channels each has."""
        return {}
