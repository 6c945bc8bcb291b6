"""The one optimizer behind all: project -> inner optimizer -> residual rule -> apply.

    R = project(G)         onto bases that are found anew every `update_proj_gap` steps, from this gradient
    N = inner(R)           Adam, Adafactor or momentum, whose moments are as small as R
    W <- (1 - lr weight_decay) W - rate rule(N, R, G)

Groups with the key `rank` are projected; in the others the inner optimizer sees the whole gradient.
"""

from collections.abc import Callable, Iterable
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch.optim import Optimizer

from .bases import due, held, refresh
from .checks import check, check_gradient, check_same_plan, named
from .inner import Direction, Inner
from .plan import Plan, planned
from .projection import project
from .residual import Residual, Seen
from .rounding import Written
from .states import State


class LowRank(Optimizer):
    """What GaLoreAdamW and the others have in common: they choose the inner optimizer and the residual rule."""

    inner: Inner
    rule: Residual

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self.plans: dict[Tensor, Plan] = {}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's. Raises ValueError, naming the parameter, for a rank, gap, scale or side that does not fit it."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check(group)
            self.plans.update(self._planned(group, len(self.param_groups) - 1))
        except ValueError:
            self.param_groups.pop()
            raise

    def _planned(self, group: dict[str, Any], number: int) -> dict[Tensor, Plan]:
        """Refreshes are spread evenly over the gap, if staggered: no step stalls but the first."""
        if "rank" not in group:
            return {}
        gap, pairs = group["update_proj_gap"], named(group, number)
        offsets = [index * gap // len(pairs) if group["stagger"] else 0 for index in range(len(pairs))]
        return {p: planned(name, p, group, offset) for (name, p), offset in zip(pairs, offsets, strict=True)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient, after closure(), if there is one, with gradients enabled.

        Raises ValueError, before anything is changed, for a gradient that is sparse, or not finite where it is due to
        be decomposed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        given = [(p, p.grad, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter, gradient, _ in given:
            plan = self.plans.get(parameter)
            check_gradient(plan, gradient, due=bool(plan) and self._due(parameter))
        for parameter, gradient, group in given:
            self.update(parameter, gradient, group)
        return loss

    def update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """One parameter's step. The gradient is left as it is."""
        state, plan = self.state[parameter], self.plans.get(parameter)
        step = steps(state)
        with Written(parameter, _dice(parameter, plan, step, group)) as weight:
            if plan is None:
                self._plain(state, weight, gradient, step, group)
            elif not self._projected(state, weight, gradient, step, group, plan):
                return
        state["step"] = torch.tensor(float(step + 1))  # as torch keeps it

    def _due(self, parameter: Tensor) -> bool:
        state = self.state[parameter]
        return due(state, self.plans[parameter], steps(state))

    def _plain(self, state: State, weight: Tensor, gradient: Tensor, step: int, group: dict[str, Any]) -> None:
        direction = self.inner(state, gradient.to(weight.dtype), step, group, weight)
        shrink, kept = _decayed(group, direction)
        weight.mul_(shrink).sub_(direction.core, alpha=direction.rate * kept)

    def _projected(
        self, state: State, weight: Tensor, gradient: Tensor, step: int, group: dict[str, Any], plan: Plan
    ) -> bool:
        """False if there is no subspace yet and the gradient, being zero, gives none: nothing happens then."""
        seen, work = plan.seen(gradient), plan.seen(weight)
        if due(state, plan, step) and seen.any():
            refresh(state, seen, plan, step, group, self.inner)
        bases = held(state, plan, work.dtype, work.device)
        if not bases:
            return False
        core = project(seen, bases).to(work.dtype)
        direction = self.inner(state, core, step - int(state.get("begun", 0)), group, work)
        self.rule(Seen(work, seen, core, direction, bases, plan, state, *_decayed(group, direction)), group)
        return True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but every tensor keeps its own dtype: 8-bit codes and float32 moments of bfloat16 weights.

        Raises ValueError, before anything is loaded, for a state of another rank, side or precision.
        """
        check_same_plan(self.param_groups, state_dict["param_groups"])
        super().load_state_dict(state_dict)
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        ours = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(saved, ours, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                device = parameter.device if value.ndim else value.device
                self.state[parameter][name] = value.to(device, copy=True)
        self._replan()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also after copy.deepcopy and pickle."""
        super().__setstate__(state)
        self._replan()

    def _replan(self) -> None:
        plans = (self._planned(group, number) for number, group in enumerate(self.param_groups))
        self.plans = {parameter: plan for found in plans for parameter, plan in found.items()}


def steps(state: State) -> int:
    """Updates made so far."""
    return int(state.get("step", 0))


def _decayed(group: dict[str, Any], direction: Direction) -> tuple[float, float]:
    """What decay leaves of the weight, and of the update: all of it in torch, which decays first."""
    shrink = 1 - direction.decay(group)
    return shrink, shrink if group["convention"] == "authors" else 1.0


def _dice(parameter: Tensor, plan: Plan | None, step: int, group: dict[str, Any]) -> torch.Generator | None:
    """What rounds at random, if wanted: the same in every process, and after a resume."""
    if not group["stochastic_rounding"]:
        return None
    seed = crc32(f"{plan.name if plan else tuple(parameter.shape)} {step}".encode())
    return torch.Generator(parameter.device).manual_seed(seed)
