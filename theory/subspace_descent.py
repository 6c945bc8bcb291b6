"""Descent on projected gradients: exact rates inside the subspace, what stays outside, and what refreshing promises.

Symbols: those of `low_rank_gradients`; P (`left`, m x r) and Q (`right`, n x s) with orthonormal columns, the identity
for a side that is not projected; R = P^T G Q; B^_i = P^T B_i P, C^_i = Q^T C_i Q, S^ = mean_i C^_i kron B^_i;
kappa = mean_i lam_min(B^_i) lam_min(C^_i) <= lam_min(S^); mu, L the least and largest eigenvalue of S; T the gap.

    W_{t+1} = W_t + eta P R_t Q^T:    vec R_t = (I - eta S^)^t vec R_0          (constant A, B_i, C_i; exact)

is GaLore with SGD inside and fixed P, Q (Zhao et al. 2024, arXiv 2403.03507). Its Theorem 3.8 says that R_t -> 0, not
that G_t does: that is `stays`, an oblique projection of G_0, which may be longer than G_0. What does fall is the
loss, to its least value in the subspace. Only refreshing takes it further; `refresh_contraction` is a rate for that.
"""

import math

import numpy as np
from jaxtyping import Float64

from theory.low_rank_gradients import ROUNDING, Lefts, Matrix, Rights, Steps, curvature

Left = Float64[np.ndarray, "rows r"]
Right = Float64[np.ndarray, "cols s"]
Inside = Float64[np.ndarray, "samples _ _"]


def kappa(lefts: Lefts, rights: Rights, left: Left, right: Right) -> float:
    """mean_i lam_min(P^T B_i P) lam_min(Q^T C_i Q), at most lam_min(S^), and equal to it for one sample.

    0 as soon as all B^_i or C^_i are singular, as f_i f_i^T is for s > 1: then the theorem promises nothing, while S^
    of several samples may well have lam_min > 0. Zhao et al. 2024, arXiv 2403.03507, Theorem 3.8.
    """
    lowest = [np.linalg.eigvalsh(side)[:, 0] for side in _inside(lefts, rights, left, right)]
    return float(np.mean(lowest[0] * lowest[1]))


def variation(constants: float, lefts: tuple[float, float], rights: tuple[float, float], radius: float) -> float:
    """L_A + (L_B c + L_C b) D, how fast A(W) - mean_i B_i(W) W C_i(W) can change other than through W itself.

    constants: L_A, Lipschitz in the Frobenius norm. lefts: (L_B, b), Lipschitz in the spectral norm, |B_i|_2 <= b.
    rights: (L_C, c). radius: D >= |W|_F. From C' kron B' - C kron B = C' kron (B' - B) + (C' - C) kron B.

    Zhao et al. 2024, arXiv 2403.03507, let L_B D and L_C D bound |B_i| and |C_i|, too: b = L_B D, c = L_C D give
    L_A + 2 L_B L_C D^2, where their proof ends (eq. 70). The statement of their Theorem 3.8 lacks the 2, and is false
    without it: a scalar B = C = L (2 D - W) with W just below D. Raises ValueError for a negative argument.
    """
    if min(constants, *lefts, *rights, radius) < 0:
        raise ValueError(f"constants {constants, lefts, rights, radius}: Lipschitz constants and norms are >= 0")
    return constants + (lefts[0] * rights[1] + rights[0] * lefts[1]) * radius


def contraction(least: float, largest: float, lr: float, changes: float = 0.0) -> float:
    """|R_t|_F <= [max(1 - eta kappa, eta lam_max(S^) - 1) + eta v] |R_{t-1}|_F, v = `variation`: Theorem 3.8.

    For eta <= 2 / (kappa + lam_max(S^)) this is the 1 - eta (kappa - v) of Zhao et al. 2024, arXiv 2403.03507, who do
    not say that eta must be small; beyond, theirs is false. With v = 0 it is attained if least = lam_min(S^).

    least: kappa or, sharper, lam_min(S^). largest: lam_max(S^), or any bound on it, as |B_i| |C_i|. lr: eta > 0.
    Raises ValueError unless 0 <= least <= largest and lr > 0.
    """
    if not 0 <= least <= largest * (1 + ROUNDING) or not 0 < lr < math.inf:
        raise ValueError(f"least = {least}, largest = {largest}, lr = {lr}: take 0 <= least <= largest and lr > 0")
    return max(1 - lr * least, lr * largest - 1) + lr * changes


def subspace_course(
    start: Matrix, lefts: Lefts, rights: Rights, left: Left, right: Right, lr: float, steps: Steps
) -> Float64[np.ndarray, "times _ _"]:
    """The full G_t under fixed P and Q: G_0 - mean_i B_i P X_t Q^T C_i, vec X_t = S^^-1 (I - (I - eta S^)^t) vec R_0.

    P^T G_t Q is the (I - eta S^)^t vec R_0 of the module's first equation. Exact for every eta, and for a singular S^,
    whose null directions do not change G. steps: t >= 0. Raises ValueError for negative steps.
    """
    if np.any(steps < 0):
        raise ValueError(f"steps = {steps}: take steps >= 0")
    return start - _pulled(start, lefts, rights, left, right, lr, steps[:, None].astype(float))


def stays(start: Matrix, lefts: Lefts, rights: Rights, left: Left, right: Right) -> Matrix:
    """lim G_t under fixed P and Q, (I - S U S^^+ U^T) vec G_0 with U = Q kron P, for 0 < eta < 2 / lam_max(S^); ours.

    P^T G Q of it is 0 (or the part of R_0 in the null space of S^). The projection is oblique: what stays is at least
    what the range of S U lacks of G_0, and can be longer than G_0. For one sample it is
    G_0 - B P (P^T B P)^-1 R_0 (Q^T C Q)^-1 Q^T C.
    """
    return start - _pulled(start, lefts, rights, left, right, 1.0, np.array([[math.inf]]))[0]


def excess(gradient: Matrix, lefts: Lefts, rights: Rights) -> float:
    """loss(W) - min loss = <G, S^+ G> / 2 for the loss mean_i <W, B_i W C_i> / 2 - <A, W>, whose -gradient is G.

    Give P^T G Q, P^T B_i P and Q^T C_i Q for the excess over the least loss in the subspace. Raises ValueError if G has
    a part in the null space of S: that loss has no minimum.
    """
    rates, vectors = np.linalg.eigh(curvature(lefts, rights))
    weights, moves = vectors.T @ gradient.T.ravel(), rates > ROUNDING * rates[-1]
    if np.linalg.norm(weights[~moves]) > 1e-9 * np.linalg.norm(weights):
        raise ValueError("the gradient has a part in the null space of S, along which the loss falls for ever")
    return float(np.sum(weights[moves] ** 2 / rates[moves]) / 2)


def refresh_contraction(least: float, largest: float, lr: float, gap: int, share: float) -> float:
    """excess after T steps in a new subspace <= [1 - (mu/L) (1 - (1 - eta L)^2T) x] excess before; ours.

    x (`share`) is |P^T G Q|_F^2 / |G|_F^2 at the refresh: at least r / min(m, n) for the r leading singular vectors of
    G; r / m on average over random P (and then the excess on average). So refreshing converges for every r >= 1.

    A mode of S^ brings <R, v>^2 (1 - (1 - eta lam)^2T) / 2 lam, whose factor sum_{k < 2T} (1 - eta lam)^k eta / 2 falls
    with lam for eta lam <= 2; lam <= L, and |G|^2 >= 2 mu excess.
    least: mu > 0 of the eigenvalues that G has a part in. Raises ValueError unless mu <= L, eta <= 2 / L, 0 <= x <= 1.
    """
    if not 0 < least <= largest or not 0 < lr * largest <= 2 or gap < 1 or not 0 <= share <= 1 + ROUNDING:
        raise ValueError(
            f"least = {least}, largest = {largest}, lr = {lr}, gap = {gap}, share = {share}: "
            "take 0 < least <= largest, 0 < lr <= 2 / largest, gap >= 1 and a share of at most 1"
        )
    return 1 - least / largest * (1 - (1 - lr * largest) ** (2 * gap)) * share


def _inside(lefts: Lefts, rights: Rights, left: Left, right: Right) -> tuple[Inside, Inside]:
    """B^_i and C^_i, symmetric to the last digit. Raises ValueError unless P and Q have orthonormal columns."""
    sides = []
    for name, found, frame in (("left", lefts, left), ("right", rights, right)):
        if np.abs(frame.T @ frame - np.eye(frame.shape[1])).max() > 1e-9:
            raise ValueError(f"{name}: its columns are not orthonormal; take the Q of its QR")
        seen = frame.T @ found @ frame
        sides.append((seen + seen.mT) / 2)
    return sides[0], sides[1]


def _pulled(
    start: Matrix,
    lefts: Lefts,
    rights: Rights,
    left: Left,
    right: Right,
    lr: float,
    steps: Float64[np.ndarray, "times 1"],
) -> Float64[np.ndarray, "times _ _"]:
    """mean_i B_i P X_t Q^T C_i; for t = infinity with S^^+ for the whole."""
    rates, vectors = np.linalg.eigh(curvature(*_inside(lefts, rights, left, right)))
    inside = left.T @ start @ right
    moves = rates > ROUNDING * rates[-1]
    rates, vectors = rates[moves], vectors[:, moves]
    grown = 1 - (1 - lr * rates) ** steps if np.isfinite(steps).all() else np.ones((1, len(rates)))
    gathered = grown / rates * (vectors.T @ inside.T.ravel()) @ vectors.T
    weights = left @ gathered.reshape(-1, *inside.shape[::-1]).mT @ right.T
    return np.einsum("iab,tbc,icd->tad", lefts, weights, rights, optimize=True) / len(lefts)
