"""The narrow network of Kwon et al. 2023 (arXiv 2311.05061) on factorization: one pair of scalars for each mode.

Symbols (README.md): d width, r rank, rh the network's rank >= r, L depth, E_C = W_L ... W_1 of the narrow network,
Phi = U diag(sigma) V^T, eta step, lam weight decay, alpha the rate of the outer factors over that of the inner ones.

From the start W_1 = eps V^T, W_2 = ... = W_{L-1} = eps I, W_L = eps U with rh columns in U and V, sigma_i = 0 for
i > r, gradients are diagonal in these vectors, so that the factors remain so: W_1 = diag(a) V^T, W_L = U diag(a), the
others diag(b). The loss of mode i is 1/2 (a^2 b^(L-2) - sigma)^2. With its residual R = a^2 b^(L-2) - sigma the two
outer factors have the gradient R a b^(L-2), and each of the L - 2 inner ones R a^2 b^(L-3).
"""

import math
from collections.abc import Callable
from math import atanh, log

import numpy as np
from jaxtyping import Float64

from theory.problem import Problem

Modes = Float64[np.ndarray, "times rank 2"]


def modes(problem: Problem, rank: int, steps: int, every: int = 1, outer: float = 1.0) -> Modes:
    """a_i(t) and b_i(t) at t = 0, every, 2 every, ..., exactly; b = 1 for L = 2, which has no inner factor.

    a <- (1 - alpha eta lam) a - alpha eta R a b^(L-2),   b <- (1 - eta lam) b - eta R a^2 b^(L-3),   a(0) = b(0) = eps.

    rank: rh. outer: alpha. Raises ValueError for unequal eps_l, momentum, or a rank or alpha out of range.
    """
    _check(problem, rank, outer)
    inner, lr, shrink = problem.depth - 2, problem.lr, problem.lr * problem.decay
    sigma = _padded(problem, rank)
    a = np.full(rank, problem.eps[0])
    b = a.copy() if inner else np.ones(rank)
    kept = [(a, b)]
    for step in range(1, steps + 1):
        between = b ** (inner - 1) if inner else b
        chain = between * b if inner else b
        pull = a * chain  # R times this is the gradient of an outer factor
        residual = a * pull - sigma
        moved = (1 - outer * shrink) * a - (outer * lr) * residual * pull
        if inner:
            b = (1 - shrink) * b - lr * residual * a**2 * between
        a = moved
        if step % every == 0:
            kept.append((a, b))
    return np.stack([np.stack(pair, axis=-1) for pair in kept])


def product_modes(problem: Problem, found: Modes) -> Float64[np.ndarray, "times rank"]:
    """u_i^T E_C v_i = a_i^2 b_i^(L-2): up to sign and order the singular values of E_C."""
    return found[..., 0] ** 2 * found[..., 1] ** (problem.depth - 2)


def error(problem: Problem, found: Modes) -> Float64[np.ndarray, " times"]:
    """|E_C - Phi|_F, the norm of the residuals: rh >= r, so nothing of Phi lies beyond the modes.

    For alpha >= 1 it is at most the original's |E - Phi|_F at every step (the paper's theorem, here by test). That
    takes rh <= d - r, too: with more empty modes than d - 2r + c_L r the original ends below, see `floors`.
    """
    return np.linalg.norm(product_modes(problem, found) - _padded(problem, found.shape[1]), axis=1)


def _padded(problem: Problem, rank: int) -> Float64[np.ndarray, " rank"]:
    return np.pad(np.array(problem.spectrum), (0, rank - problem.rank))


def empty_mode(depth: int, scale: float, time: Float64[np.ndarray, " times"]) -> Float64[np.ndarray, " times"]:
    """a^L of a mode with sigma = 0 and alpha = 1, by gradient flow: a' = -a^(2L-1), a(0) = eps, at time = eta t.

    a^(2-2L) = eps^(2-2L) + (2L - 2) eta t: unmoved until eta t is about eps^(2-2L) / (2L - 2), and from then on
    sublinear, 1 / (2 eta t) for L = 2 from any start. Descent differs by a relative O(eta eps^(2L-2)).
    """
    power = 2 * depth - 2
    return (scale**-power + power * time) ** (-depth / power)


def escape_factor(outer: float) -> float:
    """Escape time of L = 3 factors whose outer two learn `outer` = alpha times as fast, over that of alpha = 1.

    a^2 - alpha b^2 keeps eps^2 (1 - alpha), so that db/dt = sigma (alpha b^2 + eps^2 (1 - alpha)) blows up after
    arccos(s) / (s sqrt(1 - s^2)) / (eta sigma eps), s = sqrt(alpha) < 1; arccosh(s) / (s sqrt(s^2 - 1)) for s > 1; 1
    for s = 1. In completion sigma is p sigma.
    """
    if not 0 < outer < math.inf:
        raise ValueError(f"outer = {outer}: take a finite rate > 0")
    root = math.sqrt(outer)
    if abs(root - 1) < 1e-9:
        return 1.0
    angle = math.acos(root) if root < 1 else math.acosh(root)
    return angle / (root * math.sqrt(abs(1 - outer)))


def floors(problem: Problem, rank: int) -> tuple[float, float]:
    """|E - Phi|_F of the original and of the compressed network where they rest once the signal is learned, lam = 0.

        original  sqrt(d - 2r + c_L r) eps^L,           compressed  sqrt(rh - r) eps^L.

    The compressed network's empty modes are exact for alpha = 1 up to `empty_mode`, that is as long as
    eta t eps^(2L-2) << 1; so is the idle part d - 2r of the original (theory.invariants.gap has it for every t). c_L is
    asymptotic, see `active_rest`. Later both fall on, as t^(-L/(2L-2)).
    """
    _check(problem, rank, 1.0)
    if problem.decay:
        raise ValueError(f"decay = {problem.decay}: with weight decay nothing rests above zero; take 0")
    small = problem.eps[0] ** problem.depth
    original = problem.idle + active_rest(problem.depth) * problem.rank
    return float(np.sqrt(original)) * small, float(np.sqrt(rank - problem.rank)) * small


def active_rest(depth: int) -> float:
    """c_L = s^(2L): each of the r active pairs, eps I at the start, ends as sigma and as s^L eps^L.

    One pair: A_l(0) = eps I, target sigma e_1 e_2^T. The target is blind to the second row of A_L, so that this row
    stays eps e_2 while A grows: 1 = x^2 sin^2 + y^2 cos^2 with the singular values eps x > eps y of every layer and the
    angle of u_1 to e_1. By flow x' = x^(L-1) cos^2 and y' = -y^(L-1) sin^2 (Arora et al. 2019, arXiv 1905.13655), hence
    dy / (y^(L-1) (1 - y^2)) = -dx / (x^(L-1) (x^2 - 1)). From 1, 1 to x = infinity that is

        artanh s = sum_(j = 1, 3, ..., L-2) s^-j / j  (odd L),
        log s - log(1 - s^2) / 2 = sum_(j = 2, 4, ..., L-2) s^-j / j  (even L);      c_2 = 1/4, c_3 = .335.

    Exact as eta and eps -> 0 for pairs that do not see each other: V^T Q^T U = 0, which is of size d^-1/2.
    """
    powers = range(2 - depth % 2, depth - 1, 2)

    def excess(s: float) -> float:
        grown = atanh(s) if depth % 2 else log(s) - log(1 - s * s) / 2
        return grown - sum(s**-j / j for j in powers)

    return _root(excess) ** (2 * depth)


def _root(increasing: Callable[[float], float]) -> float:
    """Where it vanishes in (0, 1), by bisection."""
    low, high = 0.0, 1.0
    for _ in range(53):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < 0 else (low, middle)
    return low


def _check(problem: Problem, rank: int, outer: float) -> None:
    if len(set(problem.eps)) > 1:
        raise ValueError(f"scales = {problem.scales}: the spectral start has one eps; give one number")
    if problem.momentum:
        raise ValueError(f"momentum = {problem.momentum}: the recursion is that of plain gradient descent; take 0")
    if not problem.rank <= rank <= problem.width:
        raise ValueError(f"rank = {rank}: take the target's rank or more, {problem.rank} <= rank <= {problem.width}")
    if not 0 < outer < np.inf:
        raise ValueError(f"outer = {outer}: outer factors that do not train learn no scale; take a finite alpha > 0")
