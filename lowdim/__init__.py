"""lowdim: find the small subspace in which a deep low-rank model trains, and train only there."""

from typing import TYPE_CHECKING, Any

from .narrow import Narrow, compress, spectral
from .refresh import refresh
from .subspace import leading_subspace, principal_angles

if TYPE_CHECKING:
    from .adapters import DeepLoraConfig, deep_lora_parameter_groups, initialize_deep_lora_weights

__all__ = [
    "DeepLoraConfig",
    "Narrow",
    "compress",
    "deep_lora_parameter_groups",
    "initialize_deep_lora_weights",
    "leading_subspace",
    "principal_angles",
    "refresh",
    "spectral",
]


def __getattr__(name: str) -> Any:
    """The adapters, imported with PEFT when one of them is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.util import find_spec

    if find_spec("peft") is None:
        raise ImportError(f"lowdim.{name} is a PEFT tuner and PEFT is not installed: pip install 'lowdim[peft]'")
    from . import adapters

    return getattr(adapters, name)
