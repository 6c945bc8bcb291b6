"""The subspace of one parameter's gradient: when it is found anew, how, and how it is kept.

Kept are `P0`, `P1`, the bases of the modes, in float32, bfloat16 or 8 bits (with `P0_scales`, the largest entry of each
column), or no basis but the seed `drawn` from which random ones are drawn again at every step.
"""

from collections.abc import Mapping
from typing import Any, Literal
from zlib import crc32

import torch
from torch import Tensor

from ..subspace import leading_subspace
from .inner import Inner
from .plan import Plan
from .projection import Bases, rotated, rotation
from .states import State, read, write

Refresh = Literal["exact", "randomized", "warm", "random"]
Moments = Literal["keep", "rotate", "reset"]
Projector = Literal["fp32", "bf16", "int8", "seed"]
ALIKE, TIMES = 0.4, 5  # Q-GaLore: |cos| between leading directions that counts as unchanged, and how often in a row


def held(state: State, plan: Plan, dtype: torch.dtype, device: torch.device) -> Bases:
    """The bases as they are kept, by mode; none before the first refresh."""
    if "drawn" in state:
        return {mode: _random(plan, mode, int(state["drawn"]), dtype, device) for mode in plan.modes}
    return {mode: _decoded(state, f"P{mode}", dtype) for mode in plan.modes if f"P{mode}" in state}


def refresh(state: State, gradient: Tensor, plan: Plan, step: int, group: Mapping[str, Any], inner: Inner) -> None:
    """Find the bases anew, turn the moments into them, and say when it is due next.

    gradient: in the plan's shape, not zero. Raises ValueError for one that is not finite.
    """
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    before = held(state, plan, wide.dtype, wide.device)
    if group["projector"] == "seed":
        state["drawn"] = torch.tensor(_seed(plan, step))
        after = held(state, plan, wide.dtype, wide.device)
    else:
        after = {mode: _basis(wide, plan, mode, step, before, group) for mode in plan.modes}
        for mode, basis in after.items():
            _encode(state, f"P{mode}", basis, group["projector"])
    if group["moments"] == "reset":
        state["begun"] = torch.tensor(float(step))
    if before:
        _turn(state, before, after, group, inner)
    if group["lazy"]:
        _postpone(state, before, after, plan)


def begun(state: State) -> bool:
    """Whether there is a subspace; one with step 0 is there to be loaded into, and none."""
    return not state.keys().isdisjoint(("P0", "P1", "drawn")) and ("step" not in state or steps(state) > 0)


def steps(state: State) -> int:
    """Updates made so far."""
    return int(state.get("step", 0))


def due(state: State, plan: Plan, step: int) -> bool:
    """Whether the subspace is found anew before the update that follows `step` others."""
    if "gap" in state and begun(state):
        return bool((step + plan.offset) % int(state["gap"]) == 0)
    return not begun(state) or plan.due(step)


def _basis(wide: Tensor, plan: Plan, mode: int, step: int, before: Bases, group: Mapping[str, Any]) -> Tensor:
    method, rank = group["refresh"], plan.ranks[mode]
    if method == "random":
        return _random(plan, mode, _seed(plan, step), wide.dtype, wide.device)
    matrix, side = (wide, ("left", "right")[mode]) if wide.ndim == 2 else (wide.movedim(mode, 0).flatten(1), "left")
    if method == "warm" and mode in before:
        return leading_subspace(matrix, rank, side=side, method="warm", start=before[mode], passes=1)  # type: ignore[arg-type]
    method = "randomized" if method == "warm" else method
    return leading_subspace(matrix, rank, side=side, method=method, passes=1)  # type: ignore[arg-type]


def _turn(state: State, before: Bases, after: Bases, group: Mapping[str, Any], inner: Inner) -> None:
    """The moments in the new bases: as they are, rotated, or begun again."""
    turn = rotation(before, after) if group["moments"] == "rotate" else {}
    for name, squared in inner.moments.items() if group["moments"] != "keep" else ():
        if name in state:
            moment = read(state, name, group)
            moment = rotated(moment, turn, squared=squared) if turn else torch.zeros_like(moment)
            write(state, name, moment, group)
    if turn:
        inner.turned(state, turn)


def _postpone(state: State, before: Bases, after: Bases, plan: Plan) -> None:
    """Double the gap when the leading direction has stayed TIMES times (Q-GaLore, arXiv 2407.08296)."""
    mode = plan.modes[0]
    stayed = bool(before) and bool(torch.dot(before[mode][:, 0], after[mode][:, 0]).abs() >= ALIKE)
    count = int(state.get("stayed", 0)) + 1 if stayed else 0
    gap = int(state.get("gap", plan.gap))
    if count == TIMES:
        gap, count = 2 * gap, 0
    state["gap"], state["stayed"] = torch.tensor(gap), torch.tensor(count)


def _seed(plan: Plan, step: int) -> int:
    """It goes into the state: a run that goes on with other names of its parameters has the same bases."""
    return crc32(f"{plan.name} {plan.modes[0]} {step}".encode())


def _random(plan: Plan, mode: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Orthonormal, or entries of variance 1 / r; the same in every process, and whether it is kept or drawn again."""
    shape = (plan.shape[mode], plan.ranks[mode])
    generator = torch.Generator(device).manual_seed(seed + plan.modes.index(mode))
    drawn = torch.randn(shape, generator=generator, dtype=dtype, device=device) / shape[1] ** 0.5
    return torch.linalg.qr(drawn).Q if plan.orthonormal else drawn


def _encode(state: State, name: str, basis: Tensor, projector: Projector) -> None:
    if projector == "int8":
        scales = basis.abs().amax(0)
        state[f"{name}_scales"] = scales
        state[name] = (basis / scales * 127).round_().to(torch.int8)
    else:
        state[name] = laid_out(name, basis.to(torch.bfloat16) if projector == "bf16" else basis)


def laid_out(name: str, value: Tensor) -> Tensor:
    """A state as it is kept: bases column by column, with which products of few columns are up to a third faster."""
    return value.mT.contiguous().mT if name in ("P0", "P1") and value.is_floating_point() else value


def row_by_row(state: State) -> State:
    """A state to be saved: torch's broadcasts of it send memory as it lies, and safetensors refuses other layouts."""
    return {name: value.contiguous() if name in ("P0", "P1") else value for name, value in state.items()}


def _decoded(state: State, name: str, dtype: torch.dtype) -> Tensor:
    kept: Tensor = state[name].to(dtype)
    scales = state.get(f"{name}_scales")
    return kept if scales is None else kept * (scales.to(dtype) / 127)
