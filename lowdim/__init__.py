"""lowdim: find the small subspace in which a deep low-rank model trains, and train only there."""

from typing import TYPE_CHECKING, Any

from .narrow import Narrow, compress, spectral
from .optimizers import (
    Apollo,
    ApolloMini,
    FiraAdamW,
    Frugal,
    GaLoreAdafactor,
    GaLoreAdamW,
    GaLoreSGD,
    galore_backward,
    layerwise,
    parameter_groups,
)
from .refresh import refresh
from .subspace import leading_subspace, principal_angles

if TYPE_CHECKING:
    from .adapters import DeepLoraConfig as DeepLoraConfig
    from .adapters import deep_lora_parameter_groups as deep_lora_parameter_groups
    from .adapters import initialize_deep_lora_weights as initialize_deep_lora_weights

__all__ = [
    "Apollo",
    "ApolloMini",
    "FiraAdamW",
    "Frugal",
    "GaLoreAdafactor",
    "GaLoreAdamW",
    "GaLoreSGD",
    "Narrow",
    "compress",
    "galore_backward",
    "layerwise",
    "leading_subspace",
    "parameter_groups",
    "principal_angles",
    "refresh",
    "spectral",
]

ADAPTERS = ("DeepLoraConfig", "deep_lora_parameter_groups", "initialize_deep_lora_weights")
"""Not in __all__, because they need PEFT, and everything in it needs torch alone."""


def __getattr__(name: str) -> Any:
    """The adapters, imported with PEFT when one of them is first used."""
    if name not in ADAPTERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import adapters

    return getattr(adapters, name)
