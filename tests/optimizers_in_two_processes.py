"""torchrun ... optimizers_in_two_processes.py WORK: DDP, hooks and FSDP2 with each optimizer; leaves WORK/RANK.pt.

Each function is also what one process does with the whole batch, in the tests.
"""

import copy
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from lowdim.optimizers import (
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

STEPS, RANK, GAP = 7, 3, 3
KINDS = {
    "adamw": GaLoreAdamW,
    "sgd": lambda groups, **more: GaLoreSGD(groups, lr=0.1, momentum=0.9, **more),
    "fira": FiraAdamW,
    "fira paper": lambda groups, **more: FiraAdamW(groups, variant="paper", **more),
    "apollo": Apollo,
    "mini": ApolloMini,
    "frugal": Frugal,
    "adafactor": lambda groups, **more: GaLoreAdafactor(groups, beta1=0.9, lr=None, **more),
}
REPLICAS: dict[str, dict[str, Any]] = {
    **{f"ddp {kind}": {"kind": kind, "ddp": True} for kind in KINDS},
    "ddp accumulated": {"kind": "adamw", "ddp": True, "parts": 2},
    "backward": {"kind": "adamw", "ddp": True, "backward": True},
    "backward sgd": {"kind": "sgd", "ddp": True, "backward": True},
    "backward accumulated": {"kind": "adamw", "ddp": True, "backward": True, "parts": 2},
    "backward clipped": {"kind": "adamw", "ddp": True, "backward": True, "clip": 0.05},
    "backward closure": {"kind": "adamw", "ddp": True, "backward": True, "closure": True},
    "layers": {"kind": "adamw", "layers": True},
    "layers fira": {"kind": "fira", "layers": True},
    "layers accumulated": {"kind": "adamw", "layers": True, "parts": 2},
    "layers fira accumulated": {"kind": "fira", "layers": True, "parts": 2},
    "layers backward": {"kind": "adamw", "layers": True, "backward": True},
    "layers backward accumulated": {"kind": "adamw", "layers": True, "backward": True, "parts": 2},
}
SIDES = ("std", "reverse_std", "left", "right", "full")
SHARDED: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind in KINDS if kind != "adafactor"},
    **{f"adamw {side}": {"kind": "adamw", "side": side} for side in SIDES[1:]},
    **{f"fira {side}": {"kind": "fira", "side": side} for side in ("left", "right")},
    **{f"mini {side}": {"kind": "mini", "side": side} for side in ("left", "right")},
    "frugal left": {"kind": "frugal", "side": "left"},
    "tucker": {"kind": "adamw", "side": "tucker"},
    "clipped": {"kind": "adamw", "clip": 0.05},
    "few bits": {"kind": "adamw", "options": {"state": "bf16", "projector": "int8"}},
    "reset": {"kind": "adamw", "options": {"moments": "reset"}},
    "exact": {"kind": "adamw", "options": {"refresh": "exact"}},
    "two meshes": {"kind": "fira", "mesh": (1, 2)},
    "replicated mesh": {"kind": "fira", "mesh": (2, 1)},
    "half": {"kind": "adamw", "dtype": torch.bfloat16, "options": {"stochastic_rounding": True}},
}
WHOLE = StateDictOptions(full_state_dict=True)


class Net(nn.Module):
    """Tall, wide, square and unevenly dividing weights, a kernel, and a bias of which one process has nothing."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tall, self.wide, self.square = nn.Linear(10, 17), nn.Linear(17, 7), nn.Linear(7, 7, bias=False)
        self.norm, self.kernel, self.last = nn.LayerNorm(7), nn.Conv1d(7, 5, 3, padding=1), nn.Linear(5, 1)
        self.double()

    def forward(self, x):
        x = self.square(torch.tanh(self.wide(torch.tanh(self.tall(x)))))
        return self.last(torch.tanh(self.kernel(self.norm(x).mT).mT))


def groups(model: nn.Module, side: str = "std") -> list[dict[str, Any]]:
    kernel = (lambda name, module: name == "kernel") if side == "tucker" else ["tall", "wide", "square", "kernel"]
    return parameter_groups(model, rank=RANK, update_proj_gap=GAP, scale=0.5, proj_type=side, target=kernel)


def batch(step: int, here: int, size: int, parts: int = 1) -> list[torch.Tensor]:
    """This process's share in parts; all of them if alone, of which each part has a part."""
    data = torch.randn(8, 4, 10, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    shares = [share.chunk(parts) for share in data.chunk(2)]
    return list(shares[here]) if size > 1 else [torch.cat(pieces) for pieces in zip(*shares, strict=True)]


def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    return (model(x.to(dtype)) - x.to(dtype).sum(-1, keepdim=True).sin()).square().mean()


def train(
    model: nn.Module, optimizer: Any, first: int, last: int, *, here: int = 0, size: int = 1,
    parts: int = 1, clip: float = 0.0, closure: bool = False,
) -> None:  # fmt: skip
    for step in range(first, last):

        def gradients(step: int = step) -> torch.Tensor:
            optimizer.zero_grad()
            for number, piece in enumerate(batch(step, here, size, parts), 1):
                alone = number < parts and isinstance(model, DistributedDataParallel)
                with model.no_sync() if alone else nullcontext():
                    (loss(model, piece) / parts).backward()
            return torch.zeros(())

        if closure:
            optimizer.step(gradients)
            continue
        gradients()
        if clip:
            optimizer.clip_grad_norm_(clip)
        optimizer.step()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("module."): (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in model.named_parameters()
    }


# ---- replicas


def replicas(
    here: int, size: int, kind: str, ddp: bool = False, backward: bool = False, layers: bool = False, parts: int = 1,
    **more: Any,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Processes begin with weights of their own: the first one's count."""
    model: nn.Module = Net(seed=here)
    optimizer = KINDS[kind](groups(model))
    if backward:
        galore_backward(model, optimizer)
    if layers:
        layerwise(optimizer, accumulate=parts)
    if ddp and size > 1:
        model = DistributedDataParallel(model)
    train(model, optimizer, 0, STEPS, here=here, size=size, parts=parts, **more)
    return weights(model)


def exchanged(here: int, size: int) -> dict[str, list[int]]:
    """Numbers that DDP's buckets, and all our own sums, have in each step."""
    counts: dict[str, list[int]] = {"buckets": [0] * STEPS, "ours": [0] * STEPS}
    model = Net()
    optimizer = GaLoreAdamW(groups(model), stagger=False)
    galore_backward(model, optimizer)
    wrapped = DistributedDataParallel(model)
    honest = dist.all_reduce

    def counted(value: torch.Tensor, *args: Any, **named: Any) -> Any:
        counts["ours"][step] += value.numel()
        return honest(value, *args, **named)

    def hook(_, bucket):
        counts["buckets"][step] += bucket.buffer().numel()
        work = honest(bucket.buffer().div_(size), async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    wrapped.register_comm_hook(None, hook)
    dist.all_reduce = counted  # type: ignore[assignment]
    for step in range(STEPS):
        train(wrapped, optimizer, step, step + 1, here=here, size=size)
    dist.all_reduce = honest
    return counts


def wrapped_layers(here: int, size: int) -> str:
    model = Net()
    optimizer = GaLoreAdamW(groups(model))
    layerwise(optimizer)
    return refusal(lambda: train(DistributedDataParallel(model), optimizer, 0, 1, here=here, size=size))


def refusal(call: Any) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing was refused"


# ---- rows divided among processes


def sharded(mesh: tuple[int, int] | None = None, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    model = Net(seed).to(dtype)
    names = ("replicate", "shard")
    where = init_device_mesh("cpu", mesh, mesh_dim_names=names) if mesh else init_device_mesh("cpu", (2,))
    for part in (model.tall, model.wide):
        fully_shard(part, mesh=where)
    return fully_shard(model, mesh=where)


def divided(
    here: int, size: int, kind: str, side: str = "std", mesh: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float64, options: dict[str, Any] | None = None, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """Trained; trained on from the middle, by one full state_dict; and that state_dict."""
    rest = {"here": here, "size": size, **more}

    def made(seed: int) -> tuple[nn.Module, Any]:
        model = Net(seed).to(dtype) if size == 1 else sharded(mesh, dtype, seed)
        return model, KINDS[kind](groups(model, side), **(options or {}))

    model, optimizer = made(0)
    train(model, optimizer, 0, 4, **rest)
    state, kept = get_optimizer_state_dict(model, optimizer, options=WHOLE), get_model_state_dict(model, options=WHOLE)
    state, kept = copy.deepcopy((state, dict(kept)))  # what is not divided is none
    local = sum(held(value) for state in optimizer.state.values() for value in state.values())
    train(model, optimizer, 4, STEPS, **rest)
    other, again = made(1)
    set_model_state_dict(other, kept, options=WHOLE)
    set_optimizer_state_dict(other, again, state, options=WHOLE)
    train(other, again, 4, STEPS, **rest)
    return {"weights": weights(model), "resumed": weights(other), "state": state, "local": local}


def held(value: torch.Tensor) -> int:
    return (value.to_local() if isinstance(value, DTensor) else value).numel()


def from_folder(here: int, size: int, folder: Path, kind: str) -> dict[str, dict[str, torch.Tensor]]:
    """Each process saves and loads its own part with torch.distributed.checkpoint."""
    model = sharded()
    optimizer = KINDS[kind](groups(model), moments="reset")
    train(model, optimizer, 0, 4, here=here, size=size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
        dcp.save(tree, checkpoint_id=folder)
        train(model, optimizer, 4, STEPS, here=here, size=size)
        other = sharded(seed=1)
        again = KINDS[kind](groups(other), moments="reset")
        tree = {"model": get_model_state_dict(other), "optimizer": get_optimizer_state_dict(other, again)}
        dcp.load(tree, checkpoint_id=folder)
    set_model_state_dict(other, tree["model"])
    set_optimizer_state_dict(other, again, tree["optimizer"])
    train(other, again, 4, STEPS, here=here, size=size)
    return {"weights": weights(model), "resumed": weights(other)}


def swapped(here: int, size: int) -> dict[str, torch.Tensor]:
    """As accelerate does it: the optimizer is there first, and its groups then get other parameters."""
    model = Net()
    optimizer = FiraAdamW(groups(model))
    for part in (model.tall, model.wide, model):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
    for group in optimizer.param_groups:
        group["params"] = [model.get_parameter(name) for name in group["param_names"]]
    train(model, optimizer, 0, STEPS, here=here, size=size)
    assert all(isinstance(p, DTensor) for p in optimizer.state)
    return weights(model)


def from_the_first(here: int, size: int) -> dict[str, dict[str, torch.Tensor]]:
    """The first process alone has read the state."""
    model, other = sharded(), sharded(seed=1)
    optimizer, again = FiraAdamW(groups(model)), FiraAdamW(groups(other))
    train(model, optimizer, 0, 4, here=here, size=size)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    tree = get_model_state_dict(model, options=options), get_optimizer_state_dict(model, optimizer, options=options)
    kept, state = copy.deepcopy(tree)
    assert bool(state) == bool(kept) == (here == 0)
    train(model, optimizer, 4, STEPS, here=here, size=size)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(other, kept, options=options)
    set_optimizer_state_dict(other, again, state, options=options)
    train(other, again, 4, STEPS, here=here, size=size)
    return {"weights": weights(model), "resumed": weights(other)}


def refusals(here: int, size: int) -> dict[str, str]:
    model = sharded()
    optimizer = GaLoreAdamW(groups(model))
    found = {
        "adafactor": refusal(lambda: GaLoreAdafactor(groups(model))),
        "bytes": refusal(lambda: GaLoreAdamW(groups(model), state="8bit")),
        "layerwise": refusal(lambda: layerwise(optimizer)),
        "backward": refusal(lambda: galore_backward(model, optimizer)),
    }
    mesh = init_device_mesh("cpu", (2,))
    columns = fully_shard(nn.Linear(10, 8, bias=False), mesh=mesh, shard_placement_fn=lambda p: Shard(1))
    found["columns"] = refusal(lambda: GaLoreAdamW(parameter_groups(columns, rank=RANK)))
    loss(model, *batch(0, here, size)).backward()
    if here == 1:
        model.wide.weight.grad.to_local()[0, 0] = float("nan")
    before = weights(model)
    found["not finite"] = refusal(optimizer.step)
    same = all(torch.equal(one, two) for one, two in zip(before.values(), weights(model).values(), strict=True))
    return {**found, "changed": str(not same)}


def summed(here: int, size: int) -> dict[str, list[int]]:
    """Numbers in each sum over processes, in a step between refreshes."""
    found: dict[str, list[int]] = {}
    honest = dist.all_reduce

    def counted(value: torch.Tensor, *args: Any, **named: Any) -> Any:
        found[name].append(value.numel())
        return honest(value, *args, **named)

    for name, kind, side in (
        ("right", "adamw", "right"), ("left", "adamw", "left"), ("fira right", "fira", "right"),
        ("fira left", "fira", "left"), ("apollo right", "apollo", "right"),
    ):  # fmt: skip
        model = sharded()
        optimizer = KINDS[kind](groups(model, side), stagger=False)
        train(model, optimizer, 0, 1, here=here, size=size)
        optimizer.zero_grad()
        loss(model, *batch(1, here, size)).backward()
        found[name], dist.all_reduce = [], counted  # type: ignore[assignment]
        optimizer.step()
        dist.all_reduce = honest
    return found


def main(work: Path) -> None:
    dist.init_process_group("gloo")
    here, size = dist.get_rank(), dist.get_world_size()
    found: dict[str, Any] = {"processes": (here, size)}
    for name, run in REPLICAS.items():
        found[name] = replicas(here, size, **run)
    found["exchanged"], found["wrapped layers"] = exchanged(here, size), wrapped_layers(here, size)
    for name, run in SHARDED.items():
        found[f"fsdp {name}"] = divided(here, size, **run)
    for kind in ("adamw", "fira", "apollo", "sgd"):
        found[f"folder {kind}"] = from_folder(here, size, work / kind, kind)
    found["swapped"], found["folder first"] = swapped(here, size), from_the_first(here, size)
    found["refusals"], found["summed"] = refusals(here, size), summed(here, size)
    torch.save(found, work / f"{here}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
