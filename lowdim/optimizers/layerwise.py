"""Updates during the backward pass: a parameter takes its step as soon as its gradient is there, which is freed then.

The peak holds one gradient in place of all. With several micro-batches a step what waits is the core R, as small as a
moment; only Fira, APOLLO and Frugal, and parameters that are not projected, need the whole gradient until the last one.
"""

from functools import partial

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .pipeline import LowRank


class Handles:
    """Hooks that can be taken off again: by remove(), or at the end of a with statement."""

    def __init__(self, optimizer: LowRank, hooks: list[RemovableHandle]) -> None:
        self.optimizer, self.hooks = optimizer, hooks

    def remove(self) -> None:
        """The optimizer's `step` makes the updates again."""
        for hook in self.hooks:
            hook.remove()
        self.optimizer.window = 0

    def __enter__(self) -> "Handles":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def layerwise(optimizer: LowRank, accumulate: int = 1) -> Handles:
    """Make the optimizer's updates in backward hooks from now on; `step()` stays in the loop and does nothing more.

    It is the same optimizer: one state_dict, one lr that any scheduler changes. accumulate: micro-batches a step, whose
    losses are divided by it as usual; a subspace that is due is found from the first one. A norm over all gradients is
    never there to be clipped, and gradients must be final when they arrive: no DDP, no GradScaler.

    Raises ValueError for accumulate < 1, or if it is layer-wise already.
    """
    if accumulate < 1 or optimizer.window:
        raise ValueError(
            f"accumulate = {accumulate}, layer-wise already: {bool(optimizer.window)}: take 1 or more, once"
        )
    optimizer.window = accumulate
    hooks = [
        parameter.register_post_accumulate_grad_hook(partial(arrived, optimizer, number))
        for number, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    ]
    return Handles(optimizer, hooks)


@torch.no_grad()
def arrived(optimizer: LowRank, number: int, parameter: Tensor) -> None:
    """A micro-batch's gradient of a parameter of that group is there: in `grad`, or as an accumulated core."""
    state, group = optimizer.state[parameter], optimizer.param_groups[number]
    parts = int(state.get("parts", 0)) + 1
    if parameter.grad is not None:
        optimizer.check(parameter)
        if parameter in optimizer.plans and not optimizer.rule.needs_gradient:
            optimizer.absorb(parameter, group, first=parts == 1)
    if parts < optimizer.window:
        state["parts"] = torch.tensor(parts)
        return
    state.pop("parts", None)
    if optimizer.given(parameter):
        optimizer.update(parameter, group)
    parameter.grad = None
