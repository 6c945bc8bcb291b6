"""How one parameter's gradient is projected: read from its group once, and refused there if it cannot be."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal, get_args

from torch import Tensor

Side = Literal["std", "reverse_std", "left", "right", "full", "tucker"]
"""galore-torch's proj_type, and tucker."""


@dataclass(frozen=True)
class Plan:
    """What is the same at every step. `ranks` has what remains of each mode that is projected."""

    name: str
    shape: tuple[int, ...]
    """Of the gradient as it is projected: of kernels (out, in, ...) that are not Tucker's, (out, in * ...)."""
    side: Side = "std"
    """std projects the shorter side of a matrix, the right one if it is square; reverse_std the longer one."""
    rank: int = 128
    gap: int = 200
    """Steps from one refresh of the subspace to the next."""
    scale: float = 0.25
    """alpha, times the update that comes back."""
    offset: int = 0
    """Steps by which its refreshes come earlier, so that not all parameters' fall on one step; 0 <= offset < gap."""
    orthonormal: bool = True
    """Of random bases; else their entries are independent, as APOLLO's, and |P^T x| is |x| in the mean."""

    def __post_init__(self) -> None:
        if self.side not in get_args(Side):
            raise ValueError(f"proj_type = {self.side!r} of {self.name}: take one of {', '.join(get_args(Side))}")
        if 0 in self.shape:
            raise ValueError(f"{self.name} of shape {self.shape} is empty: leave it out of the groups that have a rank")
        if len(self.shape) < 2:
            raise ValueError(
                f"{self.name} of shape {self.shape} has one side only: leave it out of the groups that have a rank"
            )
        if not isinstance(self.rank, Integral) or not 1 <= self.rank <= self.widest:
            raise ValueError(
                f"rank = {self.rank!r} of {self.name}, whose gradient is {' x '.join(map(str, self.shape))}: take "
                f"1 <= rank <= {self.widest}, or leave it out of the groups that have a rank"
            )
        if not isinstance(self.gap, Integral) or self.gap < 1 or not 0 <= self.offset < self.gap:
            raise ValueError(f"update_proj_gap = {self.gap!r} of {self.name}: take 1 or more whole steps")
        scale = self.scale
        number = isinstance(scale, Real) or (isinstance(scale, Tensor) and not scale.ndim and scale.is_floating_point())
        if not number or not 0 < self.scale < math.inf:
            raise ValueError(f"scale = {self.scale!r} of {self.name}: take a finite number > 0")

    @cached_property
    def modes(self) -> tuple[int, ...]:
        """Those that are projected."""
        if self.side in ("full", "tucker"):
            return (0, 1)
        rows, columns = self.shape
        shorter = 1 if rows >= columns else 0
        return ({"std": shorter, "reverse_std": 1 - shorter, "left": 0, "right": 1}[self.side],)

    @property
    def widest(self) -> int:
        """The largest rank that fits; of two modes `ranks` cuts the smaller one's."""
        return max(map(self._most, self.modes))

    def _most(self, mode: int) -> int:
        """A mode of d has min(d, product of the others) independent directions: a 3 x 3 kernel of one channel 9."""
        return min(self.shape[mode], math.prod(size for other, size in enumerate(self.shape) if other != mode))

    @property
    def ranks(self) -> dict[int, int]:
        """By mode."""
        return {mode: min(self.rank, self._most(mode)) for mode in self.modes}

    def due(self, step: int) -> bool:
        """Whether the subspace is found anew before the update that follows `step` others."""
        return step == 0 or (step + self.offset) % self.gap == 0

    def seen(self, tensor: Tensor) -> Tensor:
        """The parameter, its gradient, or some of their rows, in the shape that is projected: a view if contiguous."""
        return tensor if tensor.ndim == len(self.shape) else tensor.reshape(len(tensor), *self.shape[1:])


def planned(name: str, parameter: Tensor, group: Mapping[str, Any], offset: int = 0, *, orthonormal: bool) -> Plan:
    """The plan of a parameter of a group with the keys rank, update_proj_gap, scale (or alpha) and proj_type.

    Raises ValueError for what does not fit the parameter's shape.
    """
    side, gap, scale = group["proj_type"], group["update_proj_gap"], group.get("alpha", group["scale"])
    shape = tuple(parameter.shape)
    if len(shape) > 2 and side != "tucker":
        shape = (shape[0], math.prod(shape[1:]))
    return Plan(name, shape, side, group["rank"], gap, scale, offset, orthonormal)


def plans_of(
    group: Mapping[str, Any], named: Sequence[tuple[str, Tensor]], *, orthonormal: bool, by_column: bool
) -> dict[Tensor, Plan]:
    """A group's plans. Refreshes are spread evenly over the gap, if staggered: no step stalls but the first.

    by_column: whether its rule has a factor for each column, which are those of one projected side only.
    """
    if "rank" not in group or not named:
        return {}
    gap: Any = group["update_proj_gap"]
    if not isinstance(gap, Integral):
        raise ValueError(f"update_proj_gap = {gap!r} of {named[0][0]}: take 1 or more whole steps")
    offsets = [index * int(gap) // len(named) if group["stagger"] else 0 for index in range(len(named))]
    plans = {
        p: planned(name, p, group, offset, orthonormal=orthonormal)
        for (name, p), offset in zip(named, offsets, strict=True)
    }
    if not orthonormal and group["refresh"] == "random" and group["moments"] == "rotate":
        raise ValueError(
            "moments = 'rotate' of APOLLO's random bases, which are not orthonormal: take 'keep' or 'reset'"
        )
    for plan in plans.values():
        if by_column and len(plan.modes) > 1:
            raise ValueError(
                f"proj_type = {plan.side!r} of {plan.name}: Fira and APOLLO scale columns, which have one projected "
                "side: take std, reverse_std, left or right"
            )
    return plans
