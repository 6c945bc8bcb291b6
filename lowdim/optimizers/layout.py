"""Plans and divided rows of all groups' parameters; and whether groups still say what they were made from."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .bases import begun
from .checks import named
from .inner import Inner
from .plan import Plan, plans_of
from .residual import Residual
from .sharded import Rows, is_divided, rows_of
from .states import State

Groups = Sequence[Mapping[str, Any]]
ASKED = ("rank", "update_proj_gap", "scale", "alpha", "proj_type", "stagger")


def laid(groups: Groups, first: int, inner: Inner, rule: Residual) -> tuple[dict[Tensor, Plan], dict[Tensor, Rows]]:
    """Of the groups from that one on. Raises ValueError for what does not fit, naming the parameter."""
    plans: dict[Tensor, Plan] = {}
    rows: dict[Tensor, Rows] = {}
    for number, group in enumerate(groups[first:], first):
        ones = named(group, number)
        plans |= plans_of(group, ones, orthonormal=rule.orthonormal, by_column=rule.by_column)
        rows |= rows_of(ones, inner, group)
    return plans, rows


def asked(groups: Groups) -> list[tuple[Any, ...]]:
    """What groups say about plans, to be compared with what they say later."""
    return [tuple(group.get(key) for key in ASKED) for group in groups]


def replaced(groups: Groups, plans: Mapping[Tensor, Plan], rows: Mapping[Tensor, Rows]) -> bool:
    """Whether groups have other parameters than those: accelerate puts divided ones in their place for FSDP2."""
    firsts = [(group, p) for group in groups for p in group["params"][:1] if p not in plans]
    return any("rank" in group or (is_divided(p) and p not in rows) for group, p in firsts)


def check_continuous(
    before: Mapping[Tensor, Plan], after: Mapping[Tensor, Plan], state: Mapping[Tensor, State]
) -> None:
    """Raise ValueError if moments that are there would be of another rank or side."""
    for parameter, plan in after.items():
        old = before.get(parameter, plan)
        if old.ranks != plan.ranks and begun(state.get(parameter, {})):
            raise ValueError(
                f"rank or proj_type of {plan.name} has been changed in its group, to {plan.rank} and {plan.side!r} "
                f"from {old.rank} and {old.side!r}, of which its moments are: change it back, or make a new optimizer"
            )
