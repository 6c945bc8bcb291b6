"""Targets that are only approximately of low rank: when their tail is learned, and what ignoring it costs until then.

Symbols: Phi = Phi_r + tail, Phi_r its leading r singular components sigma_1 >= ... >= sigma_r; W_l(0) = eps_l Q_l
square orthogonal; eta step, lam weight decay. The reduced network is the exact one for Phi_r (`invariants`): with the
bases V_1, V_{L+1} of Phi_r and k = 2r,

    E_r(t) = V_{L+1} diag(A_L ... A_1, prod_l rho_l I_{d-k}) V_1^T,     E_r = E if the tail is 0.

Everything here is ours; that small starts learn the components one after another is in Kwon et al. 2023
(arXiv 2311.05061), and for two layers in Saxe et al. 2014 (arXiv 1312.6120).
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float64

from theory.invariants import invariant_bases
from theory.subspaces import Layers, Matrix, chain, reduced_run

Scales = float | tuple[float, ...]
"""One eps for all layers, or one for each."""

WINDOW = 1.1
"""The certificate at t takes the worst from t / 1.1 to 1.1 t: a large tail also shifts when something is learned."""


def escape_time(sigma: Float64[np.ndarray, "*any"] | float, eps: Scales, lr: float, depth: int) -> np.ndarray:
    """Steps until a component of size sigma leaves the scale of the start: the blow-up time of db/dt = sigma b^(L-1).

    T = 1 / ((L - 2) eta sigma eps^(L-2)) for L >= 3, T = ln(sqrt(sigma) / eps) / (eta sigma) for L = 2; infinite for
    sigma = 0. For L = 2 and sigma < e eps^2, which the start has almost or more, T is the time 1 / (2 eta sigma) in
    which b^2 relaxes to sigma. T falls with sigma. Of unequal eps_l the largest counts: that is the earliest escape.
    """
    scale = max(_scales(eps, depth))
    _positive("lr", lr)
    sigma = np.asarray(sigma, dtype=float)
    if not (np.isfinite(sigma) & (sigma >= 0)).all():
        raise ValueError(f"sigma = {sigma}: singular values are finite and >= 0")
    with np.errstate(divide="ignore"):
        efolds = 1 / (depth - 2) / scale ** (depth - 2) if depth > 2 else np.fmax(np.log(np.sqrt(sigma) / scale), 0.5)
        return np.asarray(efolds / (lr * sigma))


def linear_response(tail_norm: float, eps: Scales, lr: float, depth: int, steps: int) -> Float64[np.ndarray, " times"]:
    """|E - E_r|_F at t = 0, ..., steps to first order, before the tail escapes: eta t sum_l prod_{k!=l} eps_k^2 |tail|.

    L eta t eps^(2(L-1)) |tail|_F for equal eps. Each layer sees the tail through the others, twice: in its gradient,
    and on the way to E. Asymptotically exact before anything escapes (0.98 to 1.14 times it at a tenth of the first
    escape); later the other directions have moved, and it is an order of magnitude, 0.1 to 1.7 times it until a tenth
    of the tail's escape.
    """
    scales = np.array(_scales(eps, depth))
    others = sum(np.prod(np.delete(scales, layer) ** 2) for layer in range(depth))
    return lr * np.arange(steps + 1) * others * tail_norm


def choose_rank(target: Matrix, horizon: int, *, eps: Scales, lr: float, depth: int, safety: float = 2.0) -> int:
    """The smallest r for which component r + 1 escapes later than `safety` * `horizon` steps.

    At half its escape time a component has grown to 2 eps for L = 3 and to the root of sqrt(sigma) eps for L = 2. What
    the choice costs is `certificate`'s to say.
    Raises ValueError if the target is not finite and square or is 0, for a horizon below 1 step or safety below 1, and
    if no r < d/2 will do, with the horizon and the eps that would.
    """
    _check_target(target)
    if len(target) < 3:
        raise ValueError(f"a target of {len(target)} x {len(target)}: nothing can be idle below width 3")
    if horizon < 1 or not 1 <= safety < math.inf:
        raise ValueError(f"horizon = {horizon}, safety = {safety}: take at least one step and a finite safety >= 1")
    sigma, largest = np.linalg.svd(target, compute_uv=False), (len(target) - 1) // 2
    times = escape_time(sigma[1 : largest + 1], eps, lr, depth)  # of component r + 1 for r = 1, 2, ...
    if times[-1] > safety * horizon:
        return 1 + int(np.argmax(times > safety * horizon))
    next_one, wanted = sigma[largest], lr * sigma[largest] * safety * horizon
    smaller = math.sqrt(next_one) * math.exp(-wanted) if depth == 2 else ((depth - 2) * wanted) ** (-1 / (depth - 2))
    raise ValueError(
        f"no rank below half the width {len(target)} lasts for horizon = {horizon}: component {largest + 1} of size "
        f"{next_one:.3g} escapes after {times[-1]:.3g} steps; take horizon < {times[-1] / safety:.3g} "
        f"or eps < {smaller:.3g}"
    )


def truncated_run(start: Layers, target: Matrix, rank: int, lr: float, decay: float = 0.0) -> Iterator[Matrix]:
    """E_r(0), E_r(1), ...: the end-to-end matrix of the network that sees only the leading `rank` components of Phi.

    Costs a run of k x k factors, k = 2 rank, and one d x k x d product for each that is taken.
    """
    bases, blocks = _coordinates(start, target, rank)
    inner, outer = bases[0][:, : 2 * rank], bases[-1][:, : 2 * rank]
    whole = bases[-1] @ bases[0].T
    for core, idle in _reduced(_eps(start), blocks[0], lr, decay):
        yield outer @ (core - idle * np.eye(2 * rank)) @ inner.T + idle * whole


def certificate(
    start: Layers, target: Matrix, rank: int, lr: float, steps: int, decay: float = 0.0, *, margin: float = 3.0
) -> Float64[np.ndarray, " times"]:
    """A bound on |E(t) - E_r(t)|_F for t = 0, ..., steps, at the cost of a run of at most 4 rank x 4 rank factors.

    Let T be the tail in the coordinates of V_{L+1} and V_1, with blocks T11 (k x k) to T22, and Z an orthonormal basis
    of row(T12) + col(T21), 2 rank directions at most. The bound is `margin` times the maximum from t / 1.1 to 1.1 t of

        |E_Z - E_r|_F + (prod_l b_l - prod_l rho_l) |T|_F / |T|_2,    plus rounding.

    E_Z is the network enlarged to the k + |Z| directions, which sees all of Phi there, and the b_l are a scalar network
    with target |T|_2, the fastest that any component of the tail can be.

    Derived: to first order in T the sum is at least |E - E_r|_F, because responses to T11, T12, T21 and T22 add up, the
    first three are those of E_Z, and T22 meets idle scalars rho_l I, so that it answers with T22 times one number.
    Tested, not proved: beyond first order, up to tails as large as Phi_r and past their escape, the window and the
    margin cover the rest (without the margin the truth is below 1.7 times the sum on the random problems of the tests).

    Raises ValueError as `invariant_bases`, and FloatingPointError if the networks diverge.
    """
    eps, (_, (small, tail)) = _eps(start), _coordinates(start, target, rank)
    k, last, seen = 2 * rank, math.ceil(WINDOW * steps), _enlarged(small, tail)
    spectral, frobenius = np.linalg.norm(tail, 2), np.linalg.norm(tail)
    enlarged = reduced_run(tuple(scale * np.eye(len(seen)) for scale in eps), seen, lr, decay)
    fastest = reduced_run(tuple(np.full((1, 1), scale) for scale in eps), np.full((1, 1), spectral), lr, decay)
    sums = []
    with np.errstate(over="ignore", invalid="ignore"):  # a diverging run is reported below
        for _, layers, scalars, (core, idle) in zip(
            range(last + 1), enlarged, fastest, _reduced(eps, small, lr, decay), strict=False
        ):
            difference = chain(layers, len(seen)) - idle * np.eye(len(seen))
            difference[:k, :k] -= core - idle * np.eye(k)
            answer = abs(float(chain(scalars, 1)[0, 0]) - idle) * frobenius / (spectral or 1.0)
            sums.append(np.linalg.norm(difference) + answer)
    if not np.isfinite(sums).all():
        raise FloatingPointError(f"the networks diverge at lr = {lr}; take a smaller one")
    rounding = 1e-12 * max(np.linalg.norm(target, 2), math.prod(eps))
    windows = [sums[int(time / WINDOW) : math.ceil(time * WINDOW) + 1] for time in range(steps + 1)]
    return margin * np.array([max(window) for window in windows]) + rounding


def _coordinates(start: Layers, target: Matrix, rank: int) -> tuple[Layers, tuple[Any, Any]]:
    """The bases of Phi_r, its k x k active block, and the tail, all in their coordinates."""
    _check_target(target)
    left, sigma, right = np.linalg.svd(target)
    leading = left[:, :rank] * sigma[:rank] @ right[:rank]
    bases = invariant_bases(start, leading, rank)
    whole = bases[-1].T @ leading @ bases[0]
    rest = left[:, rank:] * sigma[rank:] @ right[rank:]
    return bases, (whole[: 2 * rank, : 2 * rank], bases[-1].T @ rest @ bases[0])


def _enlarged(small: Any, tail: Matrix) -> Any:
    """The target in the k active directions and in Z, those that T12 and T21 couple them to."""
    k = len(small)
    coupled, sizes, _ = np.linalg.svd(np.hstack([tail[:k, k:].T, tail[k:, :k]]), full_matrices=False)
    touched = coupled[:, sizes > 1e-12 * max(sizes[0], np.abs(small).max())]
    frame = np.zeros((len(tail), k + touched.shape[1]))
    frame[:k, :k], frame[k:, k:] = np.eye(k), touched
    seen = frame.T @ tail @ frame
    seen[:k, :k] += small
    return seen


def _reduced(eps: tuple[float, ...], small: Matrix, lr: float, decay: float) -> Iterator[tuple[Matrix, float]]:
    """A_L ... A_1 and prod_l rho_l for t = 0, 1, ...; rho is the scalar network whose target is 0."""
    active = reduced_run(tuple(scale * np.eye(len(small)) for scale in eps), small, lr, decay)
    idle = reduced_run(tuple(np.full((1, 1), scale) for scale in eps), np.zeros((1, 1)), lr, decay)
    for cores, scales in zip(active, idle, strict=False):  # neither has an end
        yield chain(cores, len(small)), float(chain(scales, 1)[0, 0])


def _eps(start: Layers) -> tuple[float, ...]:
    return tuple(float(np.linalg.norm(weight) / np.sqrt(len(weight))) for weight in start)


def _scales(eps: Scales, depth: int) -> tuple[float, ...]:
    scales = eps if isinstance(eps, tuple) else (eps,) * depth
    if depth < 2 or len(scales) != depth:
        raise ValueError(f"depth = {depth} with eps = {eps}: take depth >= 2, and one eps or one for each layer")
    for scale in scales:
        _positive("eps", scale)
    return scales


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} = {value}: take a finite {name} > 0")


def _check_target(target: Matrix) -> None:
    if target.shape[0] != target.shape[1]:
        raise ValueError(
            f"target of shape {target.shape}: escape times and idle scalars need square layers; give d x d"
        )
    if not np.isfinite(target).all():
        raise ValueError("the target has entries that are not finite; give a finite matrix")
    if not target.any():
        raise ValueError("the target is 0: there is nothing to learn and no rank to choose; give one that is not 0")
