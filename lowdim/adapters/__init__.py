"""PEFT tuners that live outside PEFT. Importing this package makes them known to PEFT in this process.

A process that loads one of their checkpoints without importing lowdim gets a bare `KeyError: 'DEEP_LORA'` from PEFT,
which has no way to find us: write `import lowdim.adapters` first, or call `lowdim.adapters.load`.
"""

from typing import Any

from . import installed as installed  # first, because the others need its answer
from .checkpoints import load
from .deep_lora.calibration import initialize_deep_lora_weights
from .deep_lora.config import DeepLoraConfig
from .deep_lora.export import to_lora
from .deep_lora.model import DeepLoraModel
from .deep_lora.rates import deep_lora_parameter_groups
from .registration import register

__all__ = [
    "DeepLoraConfig",
    "DeepLoraModel",
    "deep_lora_parameter_groups",
    "initialize_deep_lora_weights",
    "load",
    "registry",
    "to_lora",
]

register("deep_lora", DeepLoraConfig, DeepLoraModel)


def registry() -> dict[type, dict[str, Any]]:
    """Each tuner's configuration, and arguments that fit tiny layers and let a few SGD steps move every factor."""
    return {DeepLoraConfig: {"rank": 2, "depth": 2, "scale": 1e-3}}
