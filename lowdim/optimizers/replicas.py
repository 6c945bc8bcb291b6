"""Processes that hold replicas of the same weights: they begin with the same ones, and average what they compute.

DistributedDataParallel does this for gradients. It does not see cores, nor gradients that backward hooks use up.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def several() -> bool:
    """Whether there are other processes, in torch.distributed's default group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def average(value: Tensor | None) -> None:
    """Its mean over the processes, in place; all of them call it, in the same order."""
    if value is not None and several():
        dense = value.contiguous()  # itself, or what NCCL takes of it
        dist.all_reduce(dense.div_(dist.get_world_size()))
        value.copy_(dense)


@torch.no_grad()
def same(parameters: Iterable[Tensor]) -> None:
    """Every process takes the first one's, as DistributedDataParallel begins."""
    for parameter in parameters if several() else ():
        dense = parameter.detach().contiguous()
        dist.broadcast(dense, 0)
        parameter.copy_(dense)
