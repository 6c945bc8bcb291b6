"""Which of many solutions gradient flow selects: diagonal networks of any depth, and commuting matrix factorization.

Diagonal network: beta = w_+^D - w_-^D, entry by entry, w_+-(0) = alpha 1, loss 1/2 |X beta - y|^2 with fewer equations
than coefficients. With the residual y - X beta the flow w_+-' = +-D w_+-^{D-1} X^T (y - X beta) is solved by

    w_+- = alpha (1 -+ x/p)^{-1/(D-2)},   x = X^T nu,   nu = D^2 alpha^{D-2} int_0^t (y - X beta) ds,   p = D/(D-2),

(D = 2: p infinite, w_+- = alpha e^{+-x/2}), so that w_+^{2-D} + w_-^{2-D}, or w_+ w_-, never moves, and

    beta = alpha^D h(X^T nu),   h(x) = (1 - x/p)^{-p} - (1 + x/p)^{-p},   2 sinh x for D = 2,   |x| < p.

Woodworth et al. 2020 (arXiv 2002.09277) have this with z = x/p for D > 2; with x instead, h = 2x + O(x^3) for every
depth, and D may be any real number from 2 on. Where X beta = y in the end, x = X^T nu is the KKT condition of

    min Q(beta) subject to X beta = y,   Q = alpha^D sum_i q(beta_i / alpha^D),   q' = h^{-1}:

|beta|_2^2 / (4 alpha^D) for large alpha (lazy); for small alpha (rich) p |beta|_1, or |beta|_1 ln(1/alpha^2) if D = 2.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

Inputs = Float64[np.ndarray, "n d"]
Targets = Float64[np.ndarray, " n"]
Coefficients = Float64[np.ndarray, " d"]
Values = Float64[np.ndarray, "*any"]
Depth = int | float
Link = Callable[[Coefficients], tuple[Coefficients, Coefficients]]

CLOSE = 1e-9
"""Of the largest target: how far X beta may be from y before the multipliers count as lost to rounding."""
ITERATIONS, HALVINGS, LONGEST = 500, 60, 30.0  # of an x: the first steps, of order alpha^-D, would end far outside


def link(pull: Values, depth: Depth) -> Values:
    """h(x), odd and increasing. pull: x, |x| < p; NaN beyond. Raises ValueError for D < 2."""
    even, odd = _exponents(pull, depth)
    return 2 * np.exp(even) * np.sinh(odd)


def link_slope(pull: Values, depth: Depth) -> Values:
    """h'(x) = (1 - x/p)^{-p-1} + (1 + x/p)^{-p-1}, 2 cosh x for D = 2. pull: x."""
    even, odd = (part * (2 - 2 / depth) for part in _exponents(pull, depth))
    return 2 * np.exp(even) * np.cosh(odd)


def inverse_link(ratio: Values, depth: Depth) -> Values:
    """x = h^{-1}(b) = p (1 - (alpha / w_+)^{D-2}) for b > 0, odd; asinh(b/2) for D = 2. ratio: b = beta / alpha^D."""
    if depth <= 2:
        _check(1.0, depth)
        return np.arcsinh(ratio / 2)
    grown, _ = _logarithms(np.abs(ratio), depth)
    return -np.sign(ratio) * np.expm1(-(depth - 2) * grown) * depth / (depth - 2)


def potential(coefficients: Coefficients, scale: float, depth: Depth = 2) -> float:
    """Q(beta) = alpha^D sum q(beta / alpha^D), q(b) = b x - int_0^x h with x = h^{-1}(b).

    D = 2: q = 2 - sqrt(4 + b^2) + b asinh(b/2). scale: alpha. Raises ValueError unless alpha > 0, D >= 2, finite.
    """
    _check(scale, depth)
    ratio = coefficients / scale**depth
    pull = inverse_link(ratio, depth)
    even, odd = (part * 2 / depth for part in _exponents(pull, depth))
    gathered = depth * (np.expm1(even) * np.cosh(odd) + 2 * np.sinh(odd / 2) ** 2)  # nothing cancels for small x
    return float(scale**depth * np.sum(ratio * pull - gathered))


def diagonal_limit(inputs: Inputs, targets: Targets, scale: float, depth: Depth) -> Coefficients:
    """Where the flow ends: argmin Q subject to X beta = y, by damped Newton on its dual, X alpha^D h(X^T nu) = y.

    inputs: X, independent rows, fewer than columns or as many. targets: y. scale: alpha. depth: D >= 2, also between
    integers. Raises ValueError out of range, and where rounding of X^T nu shows in X beta, alpha^(D-2) near 1e-8.
    """
    _check(scale, depth)
    _check_rows(inputs)
    remedy = f"scale = {scale}, depth = {depth}: X^T nu is too close to p for its rounding; take a larger alpha"
    size = scale**depth
    return _dual_newton(inputs, targets, lambda x: (size * link(x, depth), size * link_slope(x, depth)), remedy)


def conserved(weights: Float64[np.ndarray, "2 d"], depth: Depth) -> Coefficients:
    """What the flow of any loss of beta keeps: w_+^{2-D} + w_-^{2-D}, w_+ w_- for D = 2. weights: w_+, w_-, > 0."""
    _check(1.0, depth)
    return np.sum(weights ** (2 - depth), axis=0) if depth > 2 else np.prod(weights, axis=0)


def tangent_weights(coefficients: Coefficients, scale: float, depth: Depth) -> Coefficients:
    """Lambda of the tangent kernel X diag(Lambda) X^T at beta, D^2 (w_+^{2D-2} + w_-^{2D-2}).

    2 D^2 alpha^{2D-2} at the start; in the end about as much if lazy, D^2 |beta|^{2-2/D} if rich.
    """
    _check(scale, depth)
    power, logs = 2 * depth - 2, _logarithms(np.abs(coefficients) / scale**depth, depth)
    return (depth * scale ** (depth - 1)) ** 2 * (np.exp(power * logs[0]) + np.exp(-power * logs[1]))


def least_norm(inputs: Inputs, targets: Targets) -> Coefficients:
    """The solution X^+ y of least l2 norm, the limit for large alpha, and of descent on beta itself from zero."""
    _check_rows(inputs)
    return np.linalg.lstsq(inputs, targets, rcond=None)[0]


def lazy_departure(inputs: Inputs, targets: Targets, scale: float, depth: Depth) -> Coefficients:
    """`diagonal_limit` minus `least_norm` to first order in alpha^{-2D}. Ours.

        beta - beta_2 = kappa alpha^{-2D} / 4 (I - X^+ X) beta_2^3,   kappa = (D - 1)(3D - 4) / (3 D^2),

    since h = 2 (x + kappa x^3 + ...) and x = beta_2 / (2 alpha^D). Lambda grows by the share 3 kappa x^2.
    """
    _check(scale, depth)
    cubes = least_norm(inputs, targets) ** 3
    kappa = (depth - 1) * (3 * depth - 4) / (3 * depth**2)
    return kappa / (4 * scale ** (2 * depth)) * (cubes - least_norm(inputs, inputs @ cubes))


def l1_bound(coefficients: Coefficients, scale: float, depth: Depth) -> float:
    """How far |beta|_1 of a limit may be above the least one, for any X and y. Ours.

        |beta|_1 - min <= sum |beta_i| ln(M / |beta_i|) / asinh(M / 2 alpha^2)  (D = 2, M = max |beta_i|),
        |beta|_1 - min <= alpha^{D-2} sum |beta_i|^{2/D}                        (D > 2).

    nu / max |x| is feasible for the dual of l1, so that the gap is at most sum |beta_i| (1 - |x_i| / max |x|). With
    asinh(a) - asinh(b) <= ln(a/b), and 1 - |x_i| / p <= (alpha^D / |beta_i|)^{1/p}, that is the above.
    """
    _check(scale, depth)
    size = np.abs(coefficients[coefficients != 0])
    if depth > 2 or not len(size):
        return float(scale ** (depth - 2) * np.sum(size ** (2 / depth)))
    return float(size @ np.log(size.max() / size) / np.arcsinh(size.max() / (2 * scale**2)))


def rich_excess(inputs: Inputs, sparse: Coefficients, scale: float, depth: Depth) -> float:
    """|beta|_1 of `diagonal_limit` above the least one, to leading order for alpha -> 0 and a given X and y. Ours.

        D > 2:  alpha^D sum |h(p c_i)| (1 - |c_i|),      D = 2:  sum alpha^{2 (1 - |c_i|)} e^{s_i c'_i} (1 - |c_i|),

    over the i at which the l1 solution b is 0; s the sign of c. There X^T nu stays inside, at c times its size on the
    support: c = X^T X_S^{-T} sign b_S, and for D = 2 at c ln(1/alpha^2) + c', c' = X^T X_S^{-T} (sign b_S ln |b_S|).
    A power of alpha for every D, but only once the alpha^{D-2} of `l1_bound` is small against all 1 - |c_i|.

    sparse: b, unique, with as many entries as equations, as noise makes it. Raises ValueError otherwise.
    """
    _check(scale, depth)
    support = sparse != 0
    if support.sum() != len(inputs):
        raise ValueError(f"sparse has {support.sum()} entries for {len(inputs)} equations: add noise to the targets")
    signs = np.sign(sparse[support])
    ends = np.stack([signs, signs * np.log(np.abs(sparse[support]))], axis=1)
    inside, shift = (inputs[:, ~support].T @ np.linalg.solve(inputs[:, support].T, ends)).T
    size = np.abs(inside)
    if size.max(initial=0.0) >= 1:
        raise ValueError(f"sparse has the dual certificate {size.max():.4g}, not below 1: it is not the l1 solution")
    if depth > 2:
        return float(scale**depth * np.sum(link(size * depth / (depth - 2), depth) * (1 - size)))
    return float(np.sum(scale ** (2 - 2 * size) * np.exp(np.sign(inside) * shift) * (1 - size)))


def commuting_limit(
    measurements: Float64[np.ndarray, "m d d"], targets: Float64[np.ndarray, " m"], scale: float
) -> Float64[np.ndarray, "d d"]:
    """Where X = U U^T ends by the flow of 1/2 sum_i (<A_i, X> - y_i)^2 from U = alpha I, if the A_i commute.

        X = alpha^2 exp(sum_i nu_i A_i),   nu_i = 4 int_0^t (y_i - <A_i, X>) ds,

    of least trace for alpha -> 0 (Gunasekar et al. 2017, arXiv 1705.09280). Only commuting A_i are a theorem: for
    others they conjectured the least trace, and Li, Luo & Lyu 2021 (arXiv 2012.09839) have counter-examples.

    measurements: A_i, symmetric, independent. targets: y. scale: alpha. Raises ValueError unless the A_i commute, and
    some positive definite X has these targets.
    """
    _check(scale, 2)
    shares = np.cos(np.arange(1.0, len(measurements) + 1))  # a combination whose eigenvectors are those of all A_i
    frame = np.linalg.eigh(np.tensordot(shares, measurements, 1))[1]
    rotated = frame.T @ measurements @ frame
    spectra = np.diagonal(rotated, axis1=1, axis2=2).copy()
    defect = np.abs(rotated - spectra[:, None, :] * np.eye(len(frame))).max()
    if not defect <= 1e-8 * np.abs(spectra).max():
        raise ValueError(f"measurements: they do not commute, or are not symmetric, by {defect:.1e}; no theorem covers")
    _check_rows(spectra)
    remedy = f"targets = {targets}: no positive definite X has them; measure one"
    found = _dual_newton(spectra, targets, lambda x: (scale**2 * np.exp(x),) * 2, remedy)
    return frame * found @ frame.T


def _dual_newton(rows: Inputs, targets: Targets, whole: Link, remedy: str) -> Coefficients:
    """f(rows^T nu) with rows f = targets, f increasing; `whole` has f and f', not finite out of the domain.

    A step is cut until the dual, convex, still falls at its end, or the equations are met better.
    """
    nu, size = np.zeros(len(rows)), np.abs(targets).max(initial=0.0)
    found, slope = whole(rows.T @ nu)
    miss = rows @ found - targets
    for _ in range(ITERATIONS * miss.any()):
        _, root = np.linalg.qr(np.sqrt(slope)[:, None] * rows.T)
        if not np.abs(np.diagonal(root)).min() > 0:
            break  # nu runs to infinity: no solution
        step = -np.linalg.solve(root, np.linalg.solve(root.T, miss))
        longest = LONGEST / max(LONGEST, np.abs(rows.T @ step).max())
        for length in longest * 0.5 ** np.arange(HALVINGS):
            with np.errstate(all="ignore"):  # beyond the domain, or overflow: the step is cut
                trial, trial_slope = whole(rows.T @ (nu + length * step))
                left = rows @ trial - targets
                better = np.linalg.norm(left) <= (1 - length / 4) * np.linalg.norm(miss)
                falls = np.isfinite(trial_slope).all() and step @ left <= 0
            if better or falls:
                break
        if not better and (not falls or np.abs(miss).max(initial=0.0) <= CLOSE * size):
            break  # at rounding
        nu, found, slope, miss = nu + length * step, trial, trial_slope, left
    if not np.abs(miss).max(initial=0.0) <= CLOSE * size:
        raise ValueError(f"{remedy} (the equations are missed by {np.abs(miss).max():.1e})")
    return found


def _logarithms(size: Values, depth: Depth) -> tuple[Values, Values]:
    """u, v >= 0 of w_+ = alpha e^u, w_- = alpha e^-v: e^{Du} - e^{-Dv} = size, e^{-(D-2)u} + e^{(D-2)v} = 2."""
    n, u = depth - 2, np.log1p(size) / depth  # where w_- = alpha would be: from there Newton descends
    if depth <= 2:
        return (np.arcsinh(size / 2) / 2,) * 2
    for _ in range(100):
        v = np.log1p(-np.expm1(-n * u)) / n
        excess = np.expm1(depth * u) - np.expm1(-depth * v) - size
        slope = depth * (np.exp(depth * u) + np.exp(-(2 * depth - 2) * v - n * u))
        before, u = u, np.maximum(u - excess / slope, 0)
        if np.all(np.abs(u - before) <= 1e-15 * u):
            break
    return u, v


def _exponents(pull: Values, depth: Depth) -> tuple[Values, Values]:
    """a, b with (1 -+ x/p)^{-p} = e^{a +- b}, 0 and x if D = 2. In 2 e^a sinh b, their difference, nothing cancels."""
    if depth <= 2:
        _check(1.0, depth)
        return np.zeros_like(pull), pull
    power = depth / (depth - 2)
    less, more = np.log1p(-pull / power), np.log1p(pull / power)
    return -power / 2 * (less + more), power / 2 * (more - less)


def _check(scale: float, depth: Depth) -> None:
    if not 0 < scale < np.inf or not 2 <= depth < np.inf:
        raise ValueError(f"scale = {scale}, depth = {depth}: take a finite alpha > 0, and a finite D >= 2")


def _check_rows(rows: Inputs) -> None:
    if not np.isfinite(rows).all() or np.linalg.matrix_rank(rows) < len(rows):
        raise ValueError(f"{len(rows)} equations of rank below that: leave out those that follow from others")
