"""An optimizer's moments as plain tensors, in the precision that was asked for; arithmetic is in float32 at least.

In float32 a moment is changed in place; in bfloat16 or 8 bits it is decoded, used, and encoded again. In 8 bits `name`
holds its codes, and `name_scales` the scales of their blocks.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ..quantization.blocks import Quantized
from ..quantization.moments import CODECS, GOLDEN

State = dict[str, Any]
Precision = Literal["fp32", "bf16", "8bit"]
SQUARES = "exp_avg_sq"
SMALLEST = 4096  # elements; smaller moments stay in float32, as in bitsandbytes


def moment(state: State, name: str, like: Tensor, group: Mapping[str, Any]) -> Tensor:
    """The moment of that name; zeros of the shape of `like` at first."""
    return read(state, name, group).to(like.dtype) if name in state else torch.zeros_like(like)


def read(state: State, name: str, group: Mapping[str, Any]) -> Tensor:
    """The moment of that name, to compute with."""
    kept: Tensor = state[name]
    if f"{name}_scales" in state:
        codec, quantized = CODECS[group["codec"]], Quantized(kept, state[f"{name}_scales"])
        if name != SQUARES:
            return codec.first.decode(quantized)
        values = codec.second.decode(quantized)
        return values.square_() if codec.root else values
    return kept.float() if kept.dtype is torch.bfloat16 else kept


def write(state: State, name: str, values: Tensor, group: Mapping[str, Any]) -> None:
    """Keep it. Nothing is copied if `values` are what is kept."""
    if in_bytes(values, group):
        codec = CODECS[group["codec"]]
        rooted = values.sqrt() if codec.root and name == SQUARES else values
        found = (codec.second if name == SQUARES else codec.first).encode(rooted)
        state[name], state[f"{name}_scales"] = found.codes, found.scales
    else:
        state[name] = _in_two_bytes(values, name, state) if group["state"] == "bf16" else values


def _in_two_bytes(values: Tensor, name: str, state: State) -> Tensor:
    """bfloat16; of V rounded up as often as its fraction says, over the steps, as codes are (quantization.moments).

    A step changes V by a thousandth, and neighbours lie a 250th apart: the nearest is always the old one.
    """
    if name != SQUARES:
        return values.to(torch.bfloat16)
    share = int(float(state.get("step", 0)) * GOLDEN % 1 * 2**16)
    bits = values.to(torch.float32, copy=True).view(torch.int32)  # the upper half is the bfloat16 below
    return bits.add_(share).bitwise_and_(-(2**16)).view(torch.float32).to(torch.bfloat16)


def in_bytes(values: Tensor, group: Mapping[str, Any]) -> bool:
    """Whether moments of this size are kept in 8 bits."""
    return group["state"] == "8bit" and values.numel() >= SMALLEST


def in_place(state: State, name: str) -> Quantized:
    """The codes and scales themselves, for a step that changes them."""
    return Quantized(state[name], state[f"{name}_scales"])
