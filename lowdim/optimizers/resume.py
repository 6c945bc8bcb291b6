"""Saved states that go on: refused before anything is changed if they are of another plan, and kept as they were."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .bases import laid_out
from .plan import Plan
from .sharded import Rows
from .states import State


def fitting(
    state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], plans: Mapping[Tensor, Plan]
) -> list[tuple[State, Tensor]]:
    """What is saved of each parameter of ours. Raises ValueError if it is of another rank, side, precision or shape."""
    check_same_plan(groups, state_dict["param_groups"])
    saved = [state_dict["state"].get(index, {}) for group in state_dict["param_groups"] for index in group["params"]]
    ours = [parameter for group in groups for parameter in group["params"]]
    pairs = list(zip(saved, ours, strict=False))  # torch raises if one is longer
    for state, parameter in pairs:
        check_same_bases(plans.get(parameter), state)
    return pairs


def as_saved(state: State, device: torch.device, rows: Rows | None, divided: Collection[str]) -> State:
    """In the dtype in which it was saved, where its parameter is; counters stay on the CPU."""
    found = {}
    for name, value in state.items():
        kept = laid_out(name, value.to(device if value.ndim or name == "limiter" else "cpu", copy=True))
        found[name] = kept if rows is None or name not in divided else rows.placed(kept)
    return found


def check_same_bases(plan: Plan | None, saved: Mapping[str, Any]) -> None:
    """Raise ValueError if the saved bases are those of a parameter of another shape."""
    found = {name: tuple(saved[name].shape) for name in ("P0", "P1") if name in saved}
    fits = {f"P{mode}": (plan.shape[mode], rank) for mode, rank in plan.ranks.items()} if plan else {}
    if plan and found and found != fits:
        raise ValueError(
            f"the saved state of {plan.name} has bases {found}, and here they are {fits}: give the parameters in the "
            "order of the run that is to go on"
        )


def check_same_plan(ours: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if the saved states are of another rank, side or precision than ours."""
    for number, (group, other) in enumerate(zip(ours, saved, strict=False)):
        for key in ("rank", "proj_type", "state", "codec", "projector"):
            default = {"proj_type": "std"}.get(key)
            one, two = (found.get(key, default) for found in (group, other))
            if one != two:
                raise ValueError(
                    f"the saved state has {key} = {two!r} in group {number}, this optimizer {one!r}: make it with the "
                    "options of the run that is to go on, or begin anew"
                )
