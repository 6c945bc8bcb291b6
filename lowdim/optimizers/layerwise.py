"""Updates during the backward pass: a parameter takes its step as soon as its gradient is there, which is freed then.

The peak holds one gradient in place of all. With several micro-batches a step what waits is the core R, as small as a
moment; only Fira, APOLLO and Frugal, and parameters that are not projected, need the whole gradient until the last one.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .bases import begun
from .checks import name_of, named, some
from .pipeline import LowRank
from .replicas import average, same


class Handles:
    """Hooks that can be taken off again: by remove(), or at the end of a with statement."""

    def __init__(self, optimizer: LowRank, hooks: list[RemovableHandle]) -> None:
        self.optimizer, self.hooks = optimizer, hooks

    def remove(self) -> None:
        """The optimizer's `step` makes the updates again."""
        for hook in self.hooks:
            hook.remove()
        for state in self.optimizer.state.values():
            state.pop("parts", None)
        self.optimizer.window = 0

    def __enter__(self) -> "Handles":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def layerwise(optimizer: LowRank, accumulate: int = 1) -> Handles:
    """Make the optimizer's updates in backward hooks from now on; `step()` stays in the loop and does nothing more.

    It is the same optimizer: one state_dict, one lr that any scheduler changes. accumulate: micro-batches a step, whose
    losses are divided by it as usual; a subspace that is due is found from the first one. More of them without `step`
    or `zero_grad` between are refused, and a `step` without any. A norm over all gradients is never there to be
    clipped, and gradients must be final when they arrive: no GradScaler.

    Under torch.distributed every process has a replica, and each gradient, or its core, is averaged as it arrives, once
    a step, so all must use the same layers; leave the model unwrapped. DistributedDataParallel would average what is
    used up by then: `step` says so.

    Raises ValueError for accumulate < 1, if it is layer-wise already, or for weights that FSDP2 has divided.
    """
    if accumulate < 1 or optimizer.window:
        raise ValueError(
            f"accumulate = {accumulate}, layer-wise already: {bool(optimizer.window)}: take 1 or more, once"
        )
    if optimizer.rows:
        raise ValueError("FSDP2 has divided these weights: their gradients are freed as they are reduced; use step()")
    optimizer.window, optimizer.made = accumulate, set()
    same(parameter for group in optimizer.param_groups for parameter in group["params"])
    hooks = [
        parameter.register_post_accumulate_grad_hook(partial(_hooked, optimizer, number))
        for number, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
        if parameter.requires_grad
    ]
    return Handles(optimizer, [*hooks, optimizer.register_step_post_hook(ended)])


def _hooked(optimizer: LowRank, number: int, parameter: Tensor) -> None:
    """Raise ValueError for a weight whose core comes in its own time (`galore_backward`), and a gradient beside it."""
    if parameter in optimizer.apart:
        raise ValueError(
            f"{optimizer.plans[parameter].name} is used outside its linear layer, too (tied weights, a penalty): take "
            "galore_backward or layerwise, not both"
        )
    arrived(optimizer, number, parameter)


@torch.no_grad()
def arrived(optimizer: LowRank, number: int, parameter: Tensor) -> None:
    """A micro-batch's gradient of a parameter of that group is there: in `grad`, or as an accumulated core.

    Raises ValueError if there have been `window` of them since the last `step`: galore-torch would train on.
    """
    state, group = optimizer.state[parameter], optimizer.param_groups[number]
    if parameter in optimizer.made:
        raise ValueError(
            f"{name_of(parameter, optimizer.param_groups)} has had its layer-wise update of this step: call step() "
            f"after {optimizer.window} backward passes, or give layerwise() as many as there are, accumulate=..."
        )
    parts = int(state.get("parts", 0)) + 1
    if parameter.grad is not None and parameter in optimizer.plans and not optimizer.rule.needs_gradient:
        find = optimizer.due(parameter) and (parts == 1 or not begun(state))
        if find:
            average(parameter.grad)
        optimizer.check(parameter)
        optimizer.absorb(parameter, group, find=find)
    state["parts"] = torch.tensor(parts)
    if parts == optimizer.window:
        _finish(optimizer, group, parameter)


def _finish(optimizer: LowRank, group: dict[str, Any], parameter: Tensor) -> None:
    """The update, from all that has arrived; processes average it."""
    optimizer.state[parameter].pop("parts")
    average(parameter.grad)
    average(optimizer.state[parameter].get("core"))
    optimizer.check(parameter)
    if optimizer.given(parameter):
        optimizer.update(parameter, group)
    parameter.grad = None
    optimizer.made.add(parameter)


@torch.no_grad()
def ended(optimizer: LowRank, *_: object) -> None:
    """After `step`: parameters that took no part in some micro-batch (a mixture's experts) have their update, too.

    Raises ValueError for a gradient that no hook has seen, or if there has been none at all.
    """
    if not optimizer.made and not any("parts" in state or "core" in state for state in optimizer.state.values()):
        some(
            [(p, group) for group in optimizer.param_groups for p in group["params"] if p.grad is not None],
            optimizer.param_groups,
        )
    for number, group in enumerate(optimizer.param_groups):
        for name, parameter in named(group, number):
            if "parts" in optimizer.state.get(parameter, {}):
                _finish(optimizer, group, parameter)
            elif parameter.grad is not None:
                raise ValueError(
                    f"{name} has a gradient that came after its layer-wise update: leave the model without "
                    "DistributedDataParallel, and call layerwise() after add_param_group() and requires_grad_()"
                )
    optimizer.made = set()
