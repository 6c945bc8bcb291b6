"""One process, or several under torchrun: who I am, whose share is what, and one view of the model for a checkpoint.

torchrun --standalone --nproc-per-node 2 -m lm_experiments finetune ...
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Processes:
    """This process among `size`."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0

    def wrapped(self, model: nn.Module, parallel: Parallel) -> nn.Module:
        """Replicated (ddp), or with every block's weights divided among the processes (fsdp); the model if alone."""
        model = model.to(self.device)
        if parallel == "fsdp":
            if not dist.is_initialized():
                raise ValueError("parallel = 'fsdp' divides the model among processes: start them with torchrun")
            mesh = init_device_mesh(self.device.type, (self.size,))
            for block in _blocks(model):
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
            return model
        if self.size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def together(self, model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Replicas sum their gradients once, with the last part of a batch."""
        return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()

    def total(self, value: torch.Tensor) -> float:
        """The sum over all processes."""
        value = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(value)
        return float(value)

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process: all of them stop, or none."""
        return flag if self.size == 1 else self.total(torch.tensor(float(flag), device=self.device)) > 0


@contextmanager
def processes() -> Iterator[Processes]:
    """This process as torchrun started it: on its GPU with NCCL, else on the CPU with gloo; alone without torchrun."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where NCCL communicates
        _deterministic()
    begun = "RANK" in os.environ and not dist.is_initialized()
    if begun:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        # as counted by those who answered, not as some launcher's variables say
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        yield Processes(rank, size, device)
        if begun:
            dist.barrier()  # who leaves first must not cut off one that still communicates
    finally:
        if begun:
            dist.destroy_process_group()


def _deterministic() -> None:
    """Sums on the GPU in the same order every time; warns where torch cannot. To be called before the first of them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that FSDP has divided; others as they are. Every process calls it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Overwrite a tensor, which FSDP may have divided, with a whole one."""
    value = value.to(tensor.device)
    if isinstance(tensor, DTensor):
        value = distribute_tensor(value, tensor.device_mesh, tensor.placements)
    tensor.copy_(value)


def training_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """All that trains and the optimizer's state, on the CPU; every process calls it, and the first one has it whole."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return {
        "model": get_model_state_dict(model, options=options),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }


def restore(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put back what `training_state` gave."""
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_model_state_dict(model, state["model"], options=options)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=StateDictOptions(full_state_dict=True))


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer's blocks: the entries of its longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))
