"""From a spec to an optimizer, and what its state weighs."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from lm_experiments.llama import targets
from lm_experiments.optimizer_spec import DENSE, OptimizerSpec
from lm_experiments.processes import Parallel, Processes
from lm_experiments.runs import Pretrain
from lowdim.optimizers import Apollo, ApolloMini, FiraAdamW, Frugal, GaLoreAdamW, galore_backward, parameter_groups
from lowdim.optimizers.pipeline import LowRank

CLASSES = {
    "galore": GaLoreAdamW,
    "fira": FiraAdamW,
    "apollo": Apollo,
    "apollo-mini": ApolloMini,
    "frugal": Frugal,
}
EPS = 1e-8
"""Adam's epsilon, the same for all. The authors' code has 1e-6, and their AdamW this one: gradients of attention are
below 1e-6 while a model finds out how often each byte is there, so the two would differ in more than the method."""


def optimizer(model: nn.Module, spec: OptimizerSpec) -> Optimizer:
    """The spec's, of all of the model that trains; targets in its low-rank part, all else in plain Adam at the same lr.

    Call it after the model is on its device and shared among the processes. Raises ValueError if the optimizer
    refuses the model.
    """
    if spec.optimizer in DENSE:
        return AdamW(_dense(model, spec), lr=spec.lr, eps=EPS, weight_decay=spec.weight_decay, fused=True)
    groups = parameter_groups(model, rank=spec.rank, update_proj_gap=spec.gap, scale=spec.scale)
    random = {"refresh": "random"} if spec.optimizer.startswith("apollo") else {"refresh": spec.refresh}
    how = {**random, "moments": spec.moments, "state": spec.state, "eps": EPS, "weight_decay": spec.weight_decay}
    return CLASSES[spec.optimizer](groups, lr=spec.lr, **how)


def _dense(model: nn.Module, spec: OptimizerSpec) -> list[dict[str, Any]]:
    """All that trains, in one group, or targets in another one with a rate of their own."""
    own = {id(layer.weight) for layer in targets(model).values()} if spec.share != 1 else set()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    one, other = ([p for p in trained if (id(p) in own) == apart] for apart in (False, True))
    return [{"params": one}, *([{"params": other, "lr": spec.lr * spec.share}] if other else [])]


def prepared(body: nn.Module, spec: Pretrain, here: Processes, parallel: Parallel) -> tuple[nn.Module, Optimizer]:
    """The model as the processes share it, and its optimizer.

    Cores are averaged by the optimizer, and DistributedDataParallel must know of them when it wraps the model. Nobody
    wraps a model of layer-wise updates: they average each gradient as it arrives.
    """
    if not spec.low_rank_backward and not spec.layerwise:
        model = here.wrapped(body, parallel)
        return model, optimizer(model, spec)
    made = optimizer(body.to(here.device), spec)
    assert isinstance(made, LowRank)  # the spec sees to that
    if spec.low_rank_backward:
        galore_backward(body, made)
    return body if spec.layerwise else here.wrapped(body, parallel), made


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of all memory that the state keeps alive, shared memory once; of tensors that FSDP divides, all parts."""
    memory: dict[int, int] = {}
    for tensor in _tensors(list(optimizer.state.values())):
        if isinstance(tensor, DTensor):
            memory[id(tensor)] = tensor.numel() * tensor.element_size()
        else:
            storage = tensor.untyped_storage()
            memory[storage.data_ptr()] = storage.nbytes()
    return sum(memory.values())


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(item)
    elif hasattr(tree, "__dict__"):  # an object in a state, a projector say
        yield from _tensors(vars(tree))
