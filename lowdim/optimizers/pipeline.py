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

from .bases import due, held, prepare, refresh
from .checks import check, check_gradient, check_same_plan, named
from .inner import Direction, Inner
from .plan import Plan, planned
from .projection import Bases, project
from .residual import Residual, Seen
from .rounding import Written
from .states import State


class LowRank(Optimizer):
    """What GaLoreAdamW and the others have in common: they choose the inner optimizer and the residual rule."""

    inner: Inner
    rule: Residual
    window = 0
    """Micro-batches of a step whose updates are made in backward hooks (`layerwise`); 0 if `step` makes them."""

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
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, after closure(), if there is one, with gradients enabled.

        Raises ValueError, before anything is changed, for a gradient that is sparse, or not finite where it is due to
        be decomposed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.window:  # all is done already
            return loss
        given = [(p, group) for group in self.param_groups for p in group["params"] if self.given(p)]
        for parameter, _ in given:
            self.check(parameter)
        for parameter, group in given:
            self.update(parameter, group)
        return loss

    def given(self, parameter: Tensor) -> bool:
        """Whether there is something to update it with."""
        return parameter.grad is not None or "core" in self.state.get(parameter, {})

    def due(self, parameter: Tensor) -> bool:
        """Whether the parameter's next update finds its subspace anew, which takes the whole gradient."""
        plan, state = self.plans.get(parameter), self.state[parameter]
        return plan is not None and due(state, plan, steps(state))

    def check(self, parameter: Tensor) -> None:
        """Raise ValueError for a gradient that is sparse, or not finite where it is due to be decomposed."""
        if parameter.grad is not None:
            check_gradient(self.plans.get(parameter), parameter.grad, due=self.due(parameter))

    def update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """One parameter's step from its gradient, which is left as it is, or from the accumulated core."""
        state, plan = self.state[parameter], self.plans.get(parameter)
        step = steps(state)
        with Written(parameter, _dice(parameter, plan, step, group)) as weight:
            if plan is None:
                self._plain(state, weight, parameter.grad, step, group)  # type: ignore[arg-type]
            elif not self._projected(state, weight, parameter.grad, step, group, plan):
                step = -1
        state["step"] = torch.tensor(float(step + 1))  # as torch keeps it

    @torch.no_grad()
    def absorb(self, parameter: Tensor, group: dict[str, Any], *, first: bool) -> None:
        """Add the core of the gradient to what is accumulated, and free the gradient.

        first: of a window; then the subspace is found anew from it, if that is due, and stays for the whole window.
        """
        state, plan, gradient = self.state[parameter], self.plans[parameter], parameter.grad
        assert gradient is not None
        parameter.grad = None
        seen = plan.seen(gradient)
        if not seen.any():
            return
        if self.due(parameter) and (first or (not steps(state) and "core" not in state)):
            refresh(state, seen, plan, steps(state), group, self.inner)
        self.accumulate(parameter, project(seen, self.bases(parameter, seen.dtype)))

    def accumulate(self, parameter: Tensor, core: Tensor) -> None:
        """Add a core to what the next update takes in place of the gradient's."""
        state = self.state[parameter]
        core = core.to(torch.promote_types(core.dtype, torch.float32))
        state["core"] = state["core"].add_(core) if "core" in state else core

    def bases(self, parameter: Tensor, dtype: torch.dtype) -> Bases:
        """The bases of a parameter's gradient, by mode."""
        return held(self.state[parameter], self.plans[parameter], dtype, parameter.device)

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scale all gradients and accumulated cores so that their common norm is max_norm at most; the norm before.

        A core's norm is that of the gradient's part in the subspace.
        """
        cores = (state["core"] for state in self.state.values() if "core" in state)
        given = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        given += cores
        norm = torch.nn.utils.get_total_norm(given)
        for value in given:
            value.mul_((max_norm / (norm + 1e-6)).clamp(max=1))
        return norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's; accumulated cores go, too."""
        super().zero_grad(set_to_none)
        for state in self.state.values():
            state.pop("core", None)
            state.pop("parts", None)

    def _plain(self, state: State, weight: Tensor, gradient: Tensor, step: int, group: dict[str, Any]) -> None:
        direction = self.inner(state, gradient.to(weight.dtype), step, group, weight)
        shrink, kept = _decayed(group, direction)
        weight.mul_(shrink).sub_(direction.core, alpha=direction.rate * kept)

    def _projected(
        self, state: State, weight: Tensor, gradient: Tensor | None, step: int, group: dict[str, Any], plan: Plan
    ) -> bool:
        """False if there is no subspace yet and the gradient, being zero, gives none: the weight waits for one."""
        work, core = plan.seen(weight), state.pop("core", None)
        seen = work if gradient is None else plan.seen(gradient)  # only rules that need it look at it
        waits = False
        if core is None and due(state, plan, step):
            waits = not seen.any() and not step
            if waits:
                prepare(state, seen, plan, group)
            elif seen.any():
                refresh(state, seen, plan, step, group, self.inner)
        bases = held(state, plan, work.dtype, work.device)
        core = (project(seen, bases) if core is None else core).to(work.dtype)
        direction = self.inner(state, core, step - int(state.get("begun", 0)), group, work)
        left = (1.0, 1.0) if waits else _decayed(group, direction)
        self.rule(Seen(work, seen, core, direction, bases, plan, state, *left), group)
        return not waits

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
