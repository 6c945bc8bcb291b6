"""Which parameters are projected: groups for the optimizers, from a model."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

Target = str | Iterable[str] | Callable[[str, nn.Module], bool]


def parameter_groups(
    model: nn.Module,
    *,
    rank: int,
    target: Target = "all-linear",
    update_proj_gap: int = 200,
    scale: float | None = None,
    proj_type: str = "std",
    weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Groups with names: the weights that are projected, other matrices, and vectors, which never decay.

    rank: r of the projected ones. Layers whose shorter side is r or less are left to the other groups: there is nothing
        to save.
    target: "all-linear" takes every nn.Linear but the model's output layer; another string is a regular expression that
        the module's name must contain, a list its possible endings, both of linear layers and convolutions (as
        transformers' optim_target_modules); or a function of name and module. Embeddings are taken by a function only.
    update_proj_gap, scale, proj_type: galore-torch's keys; scale is the optimizer's own default if left out.
    weight_decay: of the matrices; the optimizer's if left out.

    Raises ValueError if nothing is projected.
    """
    chosen = {id(weight) for weight in _targets(model, target) if min(len(weight), weight[0].numel()) > rank}
    if not chosen:
        raise ValueError(f"no weight of target = {target!r} has both sides longer than rank = {rank}: give others")
    projected: list[tuple[str, Tensor]] = []
    matrices, vectors = projected.copy(), projected.copy()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            among = projected if id(parameter) in chosen else matrices if parameter.ndim > 1 else vectors
            among.append((name, parameter))
    keys = {"rank": rank, "update_proj_gap": update_proj_gap, "proj_type": proj_type}
    keys |= {} if scale is None else {"scale": scale}
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    groups = [
        {"params": projected, **keys, **decay},
        {"params": matrices, **decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _targets(model: nn.Module, target: Target) -> Iterator[Tensor]:
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    for name, module in model.named_modules():
        layer = isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
        if target == "all-linear":
            wanted = isinstance(module, nn.Linear) and module is not head
        elif isinstance(target, str):
            wanted = layer and re.search(target, name) is not None
        elif callable(target):
            wanted = target(name, module)
        else:
            wanted = layer and name.endswith(tuple(target))
        weight = getattr(module, "weight", None)
        if wanted and isinstance(weight, Tensor) and weight.requires_grad:
            yield weight
