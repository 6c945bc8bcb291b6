"""Saved states that go on: refused before anything is changed if they are of another plan, and kept as they were."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .bases import laid_out
from .checks import named
from .plan import Plan
from .sharded import Rows
from .states import State

PLANNED = ("rank", "proj_type", "state", "codec", "projector")
OWN = ("betas", "momentum", "decay_rate", "variant", "residual_scale")
"""What some of the optimizers have, and the others have not."""


def fitting(
    state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], plans: Mapping[Tensor, Plan]
) -> list[tuple[State, Tensor]]:
    """What is saved of each parameter of ours. Raises ValueError if it is of another rank, side, precision or shape."""
    check_same_plan(groups, state_dict["param_groups"])
    saved = [state_dict["state"].get(index, {}) for group in state_dict["param_groups"] for index in group["params"]]
    ours = [pair for number, group in enumerate(groups) for pair in named(group, number)]
    for state, (name, parameter) in zip(saved, ours, strict=False):  # torch raises if one is longer
        check_same_shapes(parameter, name, plans.get(parameter), state)
    return [(state, parameter) for state, (_, parameter) in zip(saved, ours, strict=False)]


def as_saved(state: State, device: torch.device, rows: Rows | None, divided: Collection[str]) -> State:
    """In the dtype in which it was saved, where its parameter is; counters stay on the CPU."""
    found = {}
    for name, value in state.items():
        kept = laid_out(name, value.to(device if value.ndim or name == "limiter" else "cpu", copy=True))
        found[name] = kept if rows is None or name not in divided else rows.placed(kept)
    return found


def check_same_shapes(parameter: Tensor, name: str, plan: Plan | None, saved: Mapping[str, Any]) -> None:
    """Raise ValueError if the saved bases or moments are those of a parameter of another shape."""
    remedy = "give the parameters in the order, and of the shapes, of the run that is to go on"
    found = {name: tuple(saved[name].shape) for name in ("P0", "P1") if name in saved}
    fits = {f"P{mode}": (plan.shape[mode], rank) for mode, rank in plan.ranks.items()} if plan else {}
    if plan and found and found != fits:
        raise ValueError(f"the saved state of {name} has bases {found}, and here they are {fits}: {remedy}")
    core = tuple(plan.ranks.get(mode, size) for mode, size in enumerate(plan.shape)) if plan else tuple(parameter.shape)
    shapes = dict.fromkeys(("exp_avg", "exp_avg_sq", "momentum_buffer", "core"), core)
    shapes |= {"exp_avg_sq_row": core[:-1], "exp_avg_sq_col": core[:-2] + core[-1:]}
    for moment, fit in shapes.items():
        has = tuple(saved[moment].shape) if moment in saved else fit
        if has != fit:
            raise ValueError(f"the saved state of {name} has {moment} of shape {has}, and here it is {fit}: {remedy}")


def check_same_plan(ours: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if the saved states are another optimizer's, or of another rank, side or precision than ours."""
    for number, (group, other) in enumerate(zip(ours, saved, strict=False)):
        place = f"group {number}" + "".join(f" ({name}, ...)" for name, _ in named(group, number)[:1])
        for key in OWN:
            if (key in group) != (key in other):
                has, here = ("no ", "one") if key in group else ("", "none")
                raise ValueError(
                    f"the saved state has {has}{key} in {place}, this optimizer {here}: it is another optimizer's; go "
                    "on with that, or begin anew"
                )
        for key in PLANNED:
            default = {"proj_type": "std"}.get(key)
            one, two = (found.get(key, default) for found in (group, other))
            if one != two:
                raise ValueError(
                    f"the saved state has {key} = {two!r} in {place}, this optimizer {one!r}: make it with the options "
                    "of the run that is to go on, or begin anew"
                )
