"""What happens to the part of the gradient that the subspace does not have, S = G - P P^T G.

W a weight, R its core, N the direction in the subspace, alpha the scale, rate the learning rate:

    galore       W <- W - rate alpha P N
    fira         W <- W - rate alpha (P N + S diag k)
    fira, code   W <- W - rate (alpha P N + (G - alpha P R) diag k)
    apollo       W <- W - rate alpha^1/2 G diag k
    frugal       W <- W - rate (alpha P N + s sign S)

with k_j = |N_j| / |R_j| for each column j of the long side, or one k for the matrix (APOLLO-Mini), and the norm of the
term with k held to 1.01 times its last one (Fira's limiter). None of them forms a matrix of W's size but Frugal.

Zhao et al. 2024 (GaLore, arXiv 2403.03507), Algorithm 2; Chen et al. 2024 (Fira, arXiv 2410.01623), Algorithm 1, and
their code, which leaks (1 - alpha) P R into S; Zhu et al. 2024 (APOLLO, arXiv 2412.05270), Algorithm 1; Zmushko et al.
2024 (Frugal, arXiv 2411.07837).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .inner import Direction
from .plan import Plan
from .projection import Bases, back
from .sharded import Rows
from .states import State

GROWTH = 1.01  # gamma, the most by which the residual's norm may grow in a step
TINY = 1e-8  # beside norms that may be zero
ROUNDING = 32  # units of it, at most 16 seen: the share of |G_j| below which |S_j| is nothing else


@dataclass(frozen=True)
class Seen:
    """One parameter's step: what a rule may use."""

    weight: Tensor
    """In the plan's shape, changed in place."""
    gradient: Tensor
    core: Tensor
    direction: Direction
    bases: Bases
    plan: Plan
    state: State
    shrink: float = 1.0
    """What decay leaves of the weight, 1 - lr weight_decay."""
    kept: float = 1.0
    """What decay leaves of the update: as much if it comes after it, else all."""
    rows: Rows | None = None
    """Which ones weight and gradient are, if processes have divided them; the core is too, if columns are projected."""

    @property
    def rate(self) -> float:
        """Of the update, what decay leaves of it included."""
        return self.direction.rate * self.kept

    def norm(
        self, values: Tensor, mode: int | None = None, *, divided: bool, dtype: torch.dtype | None = None
    ) -> Tensor:
        """|values| along a mode, or of them all. divided: they have the weight's rows, of which these may be a part."""
        norm = torch.linalg.vector_norm(values, dim=mode, keepdim=mode is not None, dtype=dtype)
        if self.rows is None or mode == 1 or not divided:
            return norm
        return self.rows.total(norm.square_()).sqrt_()

    def ratio(self, mode: int | None) -> Tensor:
        """k = |N| / |R| along the mode that is projected, or of everything."""
        one, other = (self.norm(t, mode, divided=0 not in self.bases) for t in (self.direction.core, self.core))
        return one / (other + TINY)


class Residual(Protocol):
    """A rule; `needs_gradient` is false if it makes do with the core.

    by_column: it has a factor k_j for each column. orthonormal: it counts on P^T P = 1, also of random bases.
    """

    needs_gradient: bool
    by_column: bool
    orthonormal: bool

    def __call__(self, seen: Seen, group: Mapping[str, Any]) -> None:
        """Change the weight."""
        ...


class Dropped:
    """GaLore's: what the subspace does not have is gone."""

    needs_gradient, by_column, orthonormal = False, False, True

    def __call__(self, seen: Seen, group: Mapping[str, Any]) -> None:
        """W <- W - rate alpha P N."""
        descend(seen, seen.direction.core, seen.rate * seen.plan.scale)


class Scaled:
    """Fira's: it follows with the step that Adam takes in the subspace for as large a gradient."""

    needs_gradient, by_column, orthonormal = True, True, True

    def __call__(self, seen: Seen, group: Mapping[str, Any]) -> None:
        """With |S_j|^2 = |G_j|^2 - |R_j|^2, which are orthogonal, S itself is never formed."""
        mode, alpha = seen.plan.modes[0], seen.plan.scale
        leak, outside, correction = 1.0, alpha, seen.direction.correction
        if group["variant"] == "code":  # which also compares norms without the bias correction
            leak, outside, correction = alpha, 1.0, 1.0
        factors = seen.ratio(mode)
        inside = torch.linalg.vector_norm(seen.core, dim=mode, keepdim=True).square_()
        whole = seen.norm(seen.gradient, mode, divided=True, dtype=inside.dtype).square_()
        norms = (whole - (2 * leak - leak**2) * inside).clamp_(min=0).sqrt_() * factors
        factors *= _limited(seen.state, correction * seen.norm(norms, divided=mode == 1))
        descend(seen, seen.direction.core.sub_(factors * seen.core), seen.rate * alpha)
        _subtract(seen, factors, seen.rate * outside)


@dataclass
class Rescaled:
    """APOLLO's: the gradient itself, with the step that Adam takes in the subspace for as large a column."""

    by_column: bool
    """Or one k for the matrix, which does not mind how many sides are projected."""
    needs_gradient, orthonormal = True, False

    def __call__(self, seen: Seen, group: Mapping[str, Any]) -> None:
        """W <- W - rate alpha^1/2 G diag k."""
        mode = seen.plan.modes[0] if self.by_column else None
        factors = seen.ratio(mode)
        norms = seen.norm(seen.gradient, mode, divided=True, dtype=factors.dtype) * factors
        factors *= _limited(seen.state, seen.norm(norms, divided=mode == 1))
        shrink_(seen.weight, seen.shrink)
        _subtract(seen, factors, seen.rate * seen.plan.scale**0.5)


class Signed:
    """Frugal's: sign descent outside the subspace, which needs no state."""

    needs_gradient, by_column, orthonormal = True, False, True

    def __call__(self, seen: Seen, group: Mapping[str, Any]) -> None:
        """W <- W - rate (alpha P N + s sign S).

        Columns of S that are rounding alone, as at full rank or of gradients of lower rank, have no sign.
        """
        mode = seen.plan.modes[0] if len(seen.plan.modes) == 1 else None
        gradient = seen.gradient.to(seen.weight.dtype)
        rest = gradient - back(seen.core, seen.bases)
        least = max(ROUNDING * torch.finfo(rest.dtype).eps, torch.finfo(seen.gradient.dtype).eps)
        left, whole = (seen.norm(values, mode, divided=True) for values in (rest, gradient))
        signs = rest.sign_().mul_(left > least * whole)
        descend(seen, seen.direction.core, seen.rate * seen.plan.scale)
        seen.weight.sub_(signs, alpha=seen.direction.lr * seen.kept * group["residual_scale"])


def shrink_(weight: Tensor, share: float) -> None:
    """W <- share W, without a pass over it if nothing decays."""
    if share != 1:
        weight.mul_(share)


def descend(seen: Seen, core: Tensor, rate: float) -> None:
    """W <- shrink W - rate back(core), for one mode of a matrix in one pass."""
    bases, weight = seen.bases, seen.weight
    if len(bases) == 1 and weight.ndim == 2:
        ((mode, basis),) = bases.items()
        weight.addmm_(*((basis, core) if mode == 0 else (core, basis.mT)), beta=seen.shrink, alpha=-rate)
    else:
        shrink_(weight, seen.shrink)
        weight.sub_(back(core, bases), alpha=rate)


def _subtract(seen: Seen, factors: Tensor, rate: float) -> None:
    """W <- W - rate G diag k."""
    seen.weight.addcmul_(seen.gradient.to(seen.weight.dtype), factors, value=-rate)


def _limited(state: State, norm: Tensor) -> Tensor:
    """The factor that keeps the term's norm below GROWTH times its last one, which is kept as it then is.

    A term of zero says nothing, and changes nothing: otherwise one batch without a gradient would silence the residual
    for two thousand steps.
    """
    before = state.get("limiter", torch.full_like(norm, torch.inf))
    factor = torch.where(norm > 0, (GROWTH * (before + TINY) / norm).clamp(max=1), 1.0)
    state["limiter"] = torch.where(norm > 0, norm * factor, before)
    return factor
