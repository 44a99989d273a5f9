"""Networks, by the name that a configuration gives them."""

from collections.abc import Mapping
from typing import Any

from probablend.config import from_mapping
from probablend.models.field import FieldNetwork, FieldNetworkConfig
from probablend.models.hprob_unet import HierarchicalProbUNet, HierarchicalProbUNetConfig
from probablend.models.network import Network
from probablend.models.pairs import PairNetwork, PairNetworkConfig
from probablend.models.prob_unet import ProbabilisticUNet, ProbabilisticUNetConfig
from probablend.models.ssn import StochasticSegmentationNetwork, StochasticUNetConfig
from probablend.models.unet import UNet, UNetConfig

__all__ = [
    "MODELS",
    "FieldNetwork",
    "HierarchicalProbUNet",
    "Network",
    "PairNetwork",
    "ProbabilisticUNet",
    "StochasticSegmentationNetwork",
    "UNet",
    "build_model",
]

MODELS: dict[str, tuple[type, type[Network]]] = {
    "field": (FieldNetworkConfig, FieldNetwork),
    "unet": (UNetConfig, UNet),
    "punet": (ProbabilisticUNetConfig, ProbabilisticUNet),
    "hpunet": (HierarchicalProbUNetConfig, HierarchicalProbUNet),
    "pairs": (PairNetworkConfig, PairNetwork),
    "ssn": (StochasticUNetConfig, StochasticSegmentationNetwork),
}


def build_model(settings: Mapping[str, Any]) -> Network:
    """Network from its settings, untrained.

    Parameters
    ----------
    settings : mapping
        ``kind``, one of ``MODELS``, and the settings that kind takes.

    Raises
    ------
    ValueError
        If the kind is unknown or a setting is not one of its own.
    """
    values = dict(settings)
    kind = values.pop("kind", None)
    if kind not in MODELS:
        raise ValueError(f"model kind must be one of {sorted(MODELS)}; got {kind!r}")
    config_class, model_class = MODELS[kind]
    return model_class(from_mapping(config_class, values, where=f"model {kind}"))
