"""Weights in half precision: steps are made in float32, and the result is rounded to the nearest, or at random.

Kernels with strides of their own (channels_last) are copied, too: they have no view as a matrix."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any
from zlib import crc32

import torch
from torch import Tensor


class Written:
    """with Written(parameter, dice) as weight: a float32 copy to change, written back; or the parameter itself.

    A step smaller than half the distance between neighbours is lost to the nearest; rounded at random, up with the
    probability of the part that is lost, it survives in the mean.
    """

    def __init__(self, parameter: Tensor, dice: torch.Generator | None) -> None:
        self.parameter, self.dice = parameter, dice

    def __enter__(self) -> Tensor:
        self.weight = self.own = self.parameter.detach()
        if self.weight.dtype in (torch.bfloat16, torch.float16):
            self.weight = self.weight.float()
        if self.weight.ndim > 2:
            self.weight = self.weight.contiguous()
        return self.weight

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None and self.weight is not self.own:
            self.own.copy_(self.weight if self.dice is None else at_random(self.weight, self.dice))


def at_random(values: Tensor, generator: torch.Generator) -> Tensor:
    """float32 values rounded to bfloat16's, up or down with probabilities whose mean is the value; as bfloat16.

    bfloat16 is the upper half of a float32: a random lower half is added, and the lower half cut.
    """
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    return (values.view(torch.int32) + noise).bitwise_and_(-(1 << 16)).view(torch.float32).to(torch.bfloat16)


def dice(parameter: Tensor, name: str | None, step: int, group: Mapping[str, Any]) -> torch.Generator | None:
    """What rounds at random, if wanted: the same in every process, and after a resume."""
    if not group["stochastic_rounding"]:
        return None
    seed = crc32(f"{name or tuple(parameter.shape)} {step}".encode())
    return torch.Generator(parameter.device).manual_seed(seed)
