"""What is being solved. The one module that theory and sims share."""

import math
import warnings
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Problem:
    """Deep matrix factorization by gradient descent from an orthogonal start.

        min_W 1/2 |W_L ... W_1 - Phi|_F^2 + lam/2 sum_l |W_l|_F^2,     W_l(0) = eps_l Q_l,  Q_l orthogonal,
        M_l <- beta M_l - eta (grad_l + lam W_l),  W_l <- W_l + M_l,   M_l(0) = 0,  for all l at once.

    The loss is the unnormalised one; papers that average over the d^2 entries quote eta d^2 as their step.

    Raises ValueError for values that the theorem does not cover, and warns of a step from `stable_lr` on.
    """

    width: int = 30
    """d: every W_l and Phi are d x d."""
    spectrum: tuple[float, ...] = (10.0, 9.0, 8.0)
    """sigma_1 >= ... >= sigma_r > 0: the singular values of Phi; their number is its rank r, and 2 r < d."""
    depth: int = 3
    """L, the number of factors."""
    scales: float | tuple[float, ...] = 1.0
    """eps_l: one scale for all layers, or a tuple with one for each, W_1 first."""
    lr: float = 1 / 900
    """eta, the step of gradient descent on the unnormalised loss."""
    decay: float = 0.0
    """lam, the weight decay."""
    momentum: float = 0.0
    """beta of heavy-ball momentum (Polyak 1964); 0 is plain gradient descent."""
    seed: int = 0
    """Seeds the singular vectors of Phi and the Q_l."""

    def __post_init__(self) -> None:
        self._check_shape()
        self._check_start()
        self._check_step()

    @property
    def rank(self) -> int:
        """r, the rank of Phi."""
        return len(self.spectrum)

    @property
    def idle(self) -> int:
        """d - 2r, the dimension of the idle block of every layer."""
        return self.width - 2 * self.rank

    @property
    def eps(self) -> tuple[float, ...]:
        """eps_1, ..., eps_L."""
        return self.scales if isinstance(self.scales, tuple) else (self.scales,) * self.depth

    @property
    def stable_lr(self) -> float:
        """2 (1 - beta) over the largest curvature that the descent has to survive, at the solution or at the start.

        The balanced solution has L sigma_1^(2 - 2/L) at lam = 0 and repels beyond it; weight decay lowers that to
        L s^(2 - 2/L) - (L - 2) lam with s < sigma_1, next to 2 lam across layers, so for lam > 0 the limit is on the
        safe side; so is 1 - beta, since momentum, stable up to 1 + beta near the solution, overshoots on its way there.
        On the idle block, 1/2 prod rho^2, the start has about (2L - 1) max_l prod_{k != l} eps_k^2 + lam.
        """
        solution = max(self.depth * self.spectrum[0] ** (2 - 2 / self.depth), 2 * self.decay)
        others = max(math.prod(self.eps) ** 2 / scale**2 for scale in self.eps)
        return 2 * (1 - self.momentum) / max(solution, (2 * self.depth - 1) * others + self.decay)

    def _check_shape(self) -> None:
        if self.depth < 2:
            raise ValueError(f"depth = {self.depth}: one factor is linear regression; take depth >= 2")
        if not self.spectrum or not _positive(*self.spectrum) or any(a < b for a, b in pairwise(self.spectrum)):
            raise ValueError(f"spectrum = {self.spectrum}: give the positive, finite singular values, largest first")
        if self.idle <= 0:
            raise ValueError(
                f"rank = {self.rank} with width = {self.width}: the active block of 2 rank = {2 * self.rank} fills "
                f"the layer and nothing is idle; take rank <= {(self.width - 1) // 2} or width > {2 * self.rank}"
            )

    def _check_start(self) -> None:
        if not isinstance(self.scales, (int, float, tuple)) or len(self.eps) != self.depth:
            raise ValueError(
                f"scales = {self.scales} for depth = {self.depth}: give one, or a tuple with one for each layer"
            )
        if not _positive(*self.eps):
            raise ValueError(f"scales = {self.scales}: a layer of scale 0 never moves; take finite scales > 0")

    def _check_step(self) -> None:
        if not 0 <= self.decay < math.inf:
            raise ValueError(
                f"decay = {self.decay}: negative weight decay makes the weights grow; take a finite decay >= 0"
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum = {self.momentum}: from 1 on velocities never fade; take 0 <= momentum < 1")
        if not _positive(self.lr):
            raise ValueError(f"lr = {self.lr}: only a finite step > 0 descends; take 0 < lr < {self.stable_lr:.3g}")
        if self.lr >= self.stable_lr:
            warnings.warn(
                f"lr = {self.lr}: from {self.stable_lr:.3g} on, 2 over the curvature at the solution or at the start, "
                f"descent is not stable; take lr = {self.stable_lr / 2:.3g}, or smaller scales if they are > 1",
                stacklevel=4,  # whoever made the Problem
            )


def _positive(*values: float) -> bool:
    """All positive and finite; NaN is neither."""
    return all(0 < value < math.inf for value in values)
