"""Weights in half precision: steps are made in float32, and the result is rounded to the nearest, or at random."""

from types import TracebackType

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
        self.weight = self.parameter.detach()
        if self.weight.dtype in (torch.bfloat16, torch.float16):
            self.weight = self.weight.float()
        return self.weight

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None and self.weight.dtype is not self.parameter.dtype:
            self.parameter.detach().copy_(self.weight if self.dice is None else at_random(self.weight, self.dice))


def at_random(values: Tensor, generator: torch.Generator) -> Tensor:
    """float32 values rounded to bfloat16's, up or down with probabilities whose mean is the value; as bfloat16.

    bfloat16 is the upper half of a float32: a random lower half is added, and the lower half cut.
    """
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    return (values.view(torch.int32) + noise).bitwise_and_(-(1 << 16)).view(torch.float32).to(torch.bfloat16)
