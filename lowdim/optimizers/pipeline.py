"""The one optimizer behind all: project -> inner optimizer -> residual rule -> apply.

    R = project(G)         onto bases that are found anew every `update_proj_gap` steps, from this gradient
    N = inner(R)           Adam, Adafactor or momentum, whose moments are as small as R
    W <- (1 - lr weight_decay) W - rate rule(N, R, G)

Groups with the key `rank` are projected; in the others the inner optimizer sees the whole gradient.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .bases import begun, due, held, refresh, row_by_row, steps
from .checks import check, check_gradient, check_parameters, check_unscaled, named, some
from .inner import Inner
from .layout import asked, check_continuous, laid, replaced
from .plan import Plan
from .projection import Bases, project
from .replicas import average
from .residual import Residual, Seen, shrink_
from .resume import as_saved, fitting
from .rounding import Written, dice
from .sharded import Rows, local, whole
from .states import State


class LowRank(Optimizer):
    """What GaLoreAdamW and the others have in common: they choose the inner optimizer and the residual rule."""

    inner: Inner
    rule: Residual
    window = 0
    """Micro-batches of a step whose updates are made in backward hooks (`layerwise`); 0 if `step` makes them."""
    apart: Collection[Tensor] = ()
    """Parameters whose gradients and cores nobody else averages over processes; `met` once that is done for a step."""
    met = False
    made: set[Tensor]  # which layer-wise updates have moved since the last `step` or `zero_grad`

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self.plans: dict[Tensor, Plan] = {}
        self.rows: dict[Tensor, Rows] = {}
        """Of weights that are divided among processes (FSDP2), and of them alone."""
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's. Raises ValueError, naming the parameter, for a rank, gap, scale or side that does not fit it."""
        super().add_param_group(param_group)
        group, number = self.param_groups[-1], len(self.param_groups) - 1
        try:
            check(group)
            check_parameters(named(group, number), projected="rank" in group)
            self._replan(number)
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, after closure(), if there is one, with gradients enabled.

        Raises ValueError, before anything is changed, if there is no gradient at all, or one that is sparse, or not
        finite where it is due to be decomposed.
        """
        check_unscaled(self)
        with torch.enable_grad():
            loss = None if closure is None else closure()
        self._notice()
        if self.window:  # all is done already
            return loss
        self.meet()
        given = [(p, group) for group in self.param_groups for p in group["params"] if self.given(p)]
        for parameter, _ in some(given, self.param_groups):
            self.check(parameter)
        for parameter, group in given:
            self.update(parameter, group)
        self.met = False
        return loss

    def meet(self) -> None:
        """Average over processes what nobody else does, once a step."""
        for parameter in () if self.met else self.apart:
            average(parameter.grad)
            average(self.state[parameter].get("core"))
        self.met = True

    def given(self, parameter: Tensor) -> bool:
        """Whether there is something to update it with."""
        return parameter.grad is not None or "core" in self.state.get(parameter, {})

    def due(self, parameter: Tensor) -> bool:
        """Whether the parameter's next update finds its subspace anew, which takes the whole gradient."""
        plan, state = self.plans.get(parameter), self.state[parameter]
        return plan is not None and due(state, plan, steps(state))

    def check(self, parameter: Tensor) -> None:
        """Raise ValueError for a gradient that is sparse, or not finite where it is due to be decomposed."""
        check_gradient(parameter, self.param_groups, due=self.due(parameter))

    def update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """One parameter's step from its gradient, which is left as it is, or from the accumulated core."""
        state, plan, rows = self.state[parameter], self.plans.get(parameter), self.rows.get(parameter)
        step, mine = steps(state), parameter if rows is None else local(parameter)
        state = state if rows is None else rows.opened(state)
        with Written(mine, dice(mine, plan.name if plan else None, step, group)) as weight:
            if plan is None:
                gradient: Any = parameter.grad if rows is None else local(parameter.grad)
                self._plain(state, weight, gradient, step, group)
            else:
                self._projected(state, weight, parameter, step, group, plan)
        if rows is not None:
            self.state[parameter] = rows.closed(state, self._divides(plan))

    def _divides(self, plan: Plan | None) -> Collection[str]:
        """Names of states that are divided as the weight is: those of R = G P, not those of R = P^T G."""
        return () if plan is not None and 0 in plan.modes else self.inner.moments

    @torch.no_grad()
    def absorb(self, parameter: Tensor, group: dict[str, Any], *, find: bool) -> None:
        """Add the core of the gradient to what is accumulated, and free the gradient; find: first, a new subspace."""
        state, plan, gradient = self.state[parameter], self.plans[parameter], parameter.grad
        assert gradient is not None
        parameter.grad = None
        seen = plan.seen(gradient)
        if find and seen.any():
            self._find(state, seen, steps(state), group, plan)
        if begun(state):
            self.accumulate(parameter, project(seen, self.bases(parameter, seen.dtype)))

    def accumulate(self, parameter: Tensor, core: Tensor) -> None:
        """Add a core to what the next update takes in place of the gradient's."""
        state = self.state[parameter]
        core = core.to(torch.promote_types(core.dtype, torch.float32))
        state["core"] = state["core"].add_(core) if "core" in state else core

    def bases(self, parameter: Tensor, dtype: torch.dtype) -> Bases:
        """The bases of a parameter's gradient, by mode."""
        return held(self.state[parameter], self.plans[parameter], dtype, parameter.device)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler calls `step` itself, and shows itself there, to be refused."""
        return bool(self.window or self.apart)

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scale gradients and cores (parts of gradients) to a common norm of max_norm at most; returns that before.

        Raises ValueError if updates are layer-wise: nothing is left to be clipped."""
        if self.window:
            raise ValueError("layer-wise updates are made before there is a norm over all gradients: do not clip")
        self.meet()
        ours = [p for group in self.param_groups for p in group["params"]]
        given = [p.grad for p in ours if p.grad is not None]
        given += [self.state[p]["core"] for p in ours if "core" in self.state.get(p, {})]
        norm = torch.nn.utils.get_total_norm(given)
        for value in given:
            value.mul_((max_norm / (norm + 1e-6)).clamp(max=1))
        return whole(norm)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's; accumulated cores go, too."""
        super().zero_grad(set_to_none)
        self.met, self.made = False, set()
        for state in self.state.values():
            state.pop("core", None)
            state.pop("parts", None)

    def _plain(self, state: State, weight: Tensor, gradient: Tensor, step: int, group: dict[str, Any]) -> None:
        direction = self.inner(state, gradient.to(weight.dtype), step, group, weight)
        shrink, kept = direction.decayed(group)
        shrink_(weight, shrink)
        weight.sub_(direction.core, alpha=direction.rate * kept)
        state["step"] = torch.tensor(float(step + 1))  # as torch keeps it

    def _find(self, state: State, seen: Tensor, step: int, group: dict[str, Any], plan: Plan) -> None:
        for name in () if begun(state) else state.keys() - {"parts"}:  # what was there to be loaded into
            del state[name]
        refresh(state, seen, plan, step, group, self.inner)

    def _projected(
        self, state: State, weight: Tensor, parameter: Tensor, step: int, group: dict[str, Any], plan: Plan
    ) -> None:
        """Nothing happens if there is no subspace yet and the gradient, being zero, gives none.

        Unless lr is 0: then torch.distributed.checkpoint asks for a state to load into, which is there with step 0.
        """
        gradient, rows, blank = parameter.grad, self.rows.get(parameter), False
        work, seen, core = plan.seen(weight), plan.seen(weight), state.pop("core", None)
        if gradient is not None:
            seen = plan.seen(gradient if rows is None else local(gradient))
            if core is None and due(state, plan, step):
                everything = seen if rows is None else plan.seen(whole(gradient))
                blank = not begun(state) and group["lr"] == 0 and not everything.any()
                if blank or everything.any():
                    self._find(state, torch.ones_like(everything) if blank else everything, step, group, plan)
        if not begun(state):
            return
        work = work.clone() if blank else work
        bases = held(state, plan, work.dtype, work.device)
        bases = bases if rows is None else rows.of_bases(bases)
        # beside a core, a gradient is that of other uses of the weight
        core = project(seen, bases) if core is None else core if gradient is None else core + project(seen, bases)
        core = core if rows is None or 0 not in bases else rows.total(core)
        direction = self.inner(state, core.to(work.dtype), step - int(state.get("begun", 0)), group, work)
        self.rule(
            Seen(work, seen, core.to(work.dtype), direction, bases, plan, state, *direction.decayed(group), rows),
            group,
        )
        state["step"] = torch.tensor(float(step + (not blank)))

    def state_dict(self) -> dict[str, Any]:
        """As torch's, and each tensor row by row."""
        found = super().state_dict()
        return {**found, "state": {index: row_by_row(state) for index, state in found["state"].items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but every tensor keeps its own dtype: 8-bit codes and float32 moments of bfloat16 weights.

        Raises ValueError, before anything is loaded or a hook called, for a state of another optimizer, rank, side,
        precision or shape. Not told apart are APOLLO, APOLLO-Mini and GaLore with the same kind of projector.
        """
        self._notice()
        pairs = fitting(state_dict, self.param_groups, self.plans)
        super().load_state_dict(state_dict)
        for state, parameter in pairs:
            rows, divided = self.rows.get(parameter), self._divides(self.plans.get(parameter))
            self.state[parameter].update(as_saved(state, parameter.device, rows, divided))
        self._replan()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also after copy.deepcopy and pickle."""
        super().__setstate__(state)
        self._replan()

    def _notice(self) -> None:
        """Plans follow gaps and scales that are changed in groups, and parameters that are replaced there."""
        if self.asked == asked(self.param_groups) and not replaced(self.param_groups, self.plans, self.rows):
            return
        check_continuous(self.plans, laid(self.param_groups, 0, self.inner, self.rule)[0], self.state)
        self._replan()

    def _replan(self, first: int = 0) -> None:
        """Plans of the groups from that one on; of all of them, in place of all that there were."""
        plans, rows = laid(self.param_groups, first, self.inner, self.rule)
        self.plans, self.rows = (self.plans | plans, self.rows | rows) if first else (plans, rows)
        self.asked = asked(self.param_groups)
