"""Which parameters are projected: groups for the optimizers, from a model."""

import re
from collections.abc import Callable, Iterable, Iterator
from math import prod
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
    target: "all-linear" takes every nn.Linear, and transformers' Conv1D, but the model's output layer and weights that
        an embedding shares. Another string is a regular expression that the module's name must contain, a list has
        strings of which it must contain one (as transformers' optim_target_modules), both of linear layers and
        convolutions; or a function of name and module. Embeddings are taken by a function only, and experts
        in one (experts, out, in) tensor by nothing here: a group with it projects the matrix (experts, out * in).
    update_proj_gap, scale, proj_type: galore-torch's keys; scale is the optimizer's own default if left out.
    weight_decay: of the matrices; the optimizer's if left out.

    Raises ValueError if nothing is projected.
    """
    chosen = {id(weight) for weight in _targets(model, target) if _shorter_side(weight) > rank}
    projected: list[tuple[str, Tensor]] = []
    matrices, vectors = projected.copy(), projected.copy()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            among = projected if id(parameter) in chosen else matrices if parameter.ndim > 1 else vectors
            among.append((name, parameter))
    if not projected:
        raise ValueError(f"no weight of target = {target!r} has both sides longer than rank = {rank}: give others")
    keys = {"rank": rank, "update_proj_gap": update_proj_gap, "proj_type": proj_type}
    keys |= {} if scale is None else {"scale": scale}
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    found = ((projected, keys | decay), (matrices, decay), (vectors, {"weight_decay": 0.0}))
    return [{"params": params, **more} for params, more in found if params]


def _shorter_side(weight: Tensor) -> int:
    """Of a kernel (out, in, ...) as a matrix (out, in * ...); 0 of a vector."""
    return min(len(weight), prod(weight.shape[1:])) if weight.ndim > 1 else 0


def _targets(model: nn.Module, target: Target) -> Iterator[Tensor]:
    outermost: Any = next((module for module in model.modules() if hasattr(module, "get_output_embeddings")), None)
    left = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    left |= {id(getattr(outermost and outermost.get_output_embeddings(), "weight", None))}
    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's, of (in, out) weights
        layer = linear or isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        weight = getattr(module, "weight", None)
        if target == "all-linear":
            wanted = linear and id(weight) not in left
        elif isinstance(target, str):
            wanted = layer and re.search(target, name) is not None
        elif callable(target):
            wanted = target(name, module)
        else:
            wanted = layer and any(part in name for part in target)
        if wanted and isinstance(weight, Tensor) and weight.requires_grad:
            yield weight
