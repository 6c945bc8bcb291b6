"""Optimizer states in 8 bits: torch alone, any device, plain tensors."""

from .blocks import Codec, Quantized
from .companding import Power
from .dynamic import Dynamic
from .interchange import from_bitsandbytes, to_bitsandbytes
from .moments import CODECS, Moments, adam8bit_

__all__ = [
    "CODECS",
    "Codec",
    "Dynamic",
    "Moments",
    "Power",
    "Quantized",
    "adam8bit_",
    "from_bitsandbytes",
    "to_bitsandbytes",
]
