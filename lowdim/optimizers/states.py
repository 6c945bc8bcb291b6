"""An optimizer's moments as plain tensors, in the precision that was asked for; arithmetic is in float32 at least.

In float32 a moment is changed in place; in bfloat16 it is decoded, used, and encoded again.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

State = dict[str, Any]
Precision = Literal["fp32", "bf16"]


def begun(state: State, name: str, like: Tensor, group: Mapping[str, Any]) -> Tensor:
    """The moment of that name; zeros of the shape of `like` at first."""
    return read(state, name, group).to(like.dtype) if name in state else torch.zeros_like(like)


def read(state: State, name: str, group: Mapping[str, Any]) -> Tensor:
    """The moment of that name, to compute with."""
    kept: Tensor = state[name]
    return kept.float() if kept.dtype is torch.bfloat16 else kept


def write(state: State, name: str, values: Tensor, group: Mapping[str, Any]) -> None:
    """Keep it. Nothing is copied if `values` are what is kept."""
    state[name] = values.to(torch.bfloat16) if group["state"] == "bf16" else values
