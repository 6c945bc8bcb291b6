"""Why gradients become low-rank: descent on gradients that are affine in the weight, and what that does not promise.

Symbols: W and G m x n (rows, cols); A, B_i (`lefts`, m x m), C_i (`rights`, n x n) constant, B_i and C_i symmetric
positive semidefinite; eta the step, t steps taken, vec stacks columns; lam_1 < lam_2 the smallest distinct eigenvalues
of S, V_1 the eigenspace of lam_1, G^par the part of G_0 in it; sr the stable rank.

    G(W) = A - mean_i B_i W C_i,   W_{t+1} = W_t + eta G_t:   vec G_t = (I - eta S)^t vec G_0,   S = mean_i C_i kron B_i

(Zhao et al. 2024, GaLore, arXiv 2403.03507, Sec. 3). What moves slowest stays longest: G_t turns into V_1, so that
sr(G_t) tends to sr(G^par). Three things there need more than is said:

  - Lemma 3.3 needs V_1 to be a product of subspaces, as for one B and C that are not both singular, in Cor. 3.4 and in
    Cor. 3.5. Otherwise |G_t^par|_2 can exceed |G_t|_2, and the lemma be false at every t: `stable_rank_bound`.
  - its rate needs eta <= 2 / (lam_2 + lam_max), beyond which the fastest directions ring on: `lemma_bound`.
  - it needs G^par != 0. In Cor. 3.4's own form it is 0: `kept`. We take lam_1 to be the smallest eigenvalue that G_0
    has a part in, which the proof allows; but then sr <= n - N' is lost: for orthonormal f_i and B_i = I all of S that
    matters is one eigenvalue, G_t = (1 - eta / N)^t G_0, and sr(G_t) = sr(G_0), which may be N' > n / 2, for ever.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

Matrix = Float64[np.ndarray, "rows cols"]
Lefts = Float64[np.ndarray, "samples rows rows"]
Rights = Float64[np.ndarray, "samples cols cols"]
Curvature = Float64[np.ndarray, "rows*cols rows*cols"]
Steps = Int[np.ndarray, " times"]

ROUNDING = 1e-12
"""Shares of the largest eigenvalue, or of |G_0|, up to which they are 0; eigenvalues as close as that are one."""


def stable_rank(matrix: Matrix) -> float:
    """sr(G) = |G|_F^2 / |G|_2^2, between 1 and the rank. Raises ValueError for a matrix that is zero or not finite."""
    values = np.linalg.svd(matrix, compute_uv=False) if np.isfinite(matrix).all() else np.zeros(1)
    if not values[0] > 0:
        raise ValueError("stable rank of a matrix that is zero or not finite: look at the last gradient that is not")
    return float(np.sum((values / values[0]) ** 2))


def curvature(lefts: Lefts, rights: Rights) -> Curvature:
    """S = mean_i C_i kron B_i, the Hessian: vec(mean_i B_i X C_i) = S vec X.

    Raises ValueError unless all B_i and C_i are symmetric and positive semidefinite (to 1e-12 of the largest).
    """
    for name, found in (("B_i", lefts), ("C_i", rights)):
        size = np.abs(found).max()
        lowest = np.linalg.eigvalsh(found).min()
        if np.abs(found - found.mT).max() > ROUNDING * size or lowest < -ROUNDING * size * len(found[0]):
            raise ValueError(f"{name}: least eigenvalue {lowest:.3g}; give symmetric positive semidefinite matrices")
    size = lefts.shape[1] * rights.shape[1]
    return np.einsum("iac,ibd->abcd", rights, lefts).reshape(size, size) / len(lefts)


def course(start: Matrix, lefts: Lefts, rights: Rights, lr: float, steps: Steps) -> Float64[np.ndarray, "times _ _"]:
    """G_t = sum_j (1 - eta lam_j)^t v_j <v_j, G_0> after so many steps of descent; exact, for every eta.

    start: G_0 = A - mean_i B_i W_0 C_i. lr: eta. steps: t >= 0. Raises ValueError for negative steps.
    """
    if np.any(steps < 0):
        raise ValueError(f"steps = {steps}: take steps >= 0")
    rates, vectors = np.linalg.eigh(curvature(lefts, rights))
    shrunk = (1 - lr * rates) ** steps[:, None] * (vectors.T @ start.T.ravel())
    return (shrunk @ vectors.T).reshape(len(steps), *start.shape[::-1]).mT


def kept(start: Matrix, lefts: Lefts, rights: Rights) -> Matrix:
    """The part of G_0 in the null space of S: G_t has exactly this part at every t, whatever eta.

    It is that of A, whatever W_0. If also A = mean_i a_i f_i^T, C_i = f_i f_i^T, as gradients of samples are, it is 0:
    then the rows of all G_t lie in the span of the f_i. Zhao et al. 2024, arXiv 2403.03507, Cor. 3.4.
    """
    rates, vectors = np.linalg.eigh(curvature(lefts, rights))
    return _part(start, vectors[:, rates <= ROUNDING * rates[-1]])


class Slowest(NamedTuple):
    """What stays longest."""

    part: Matrix
    """G^par, the part of G_0 in the eigenspace V_1 of the smallest eigenvalue that G_0 has a part in."""
    rate: float
    """lam_1, that eigenvalue."""
    others: Float64[np.ndarray, " larger"]
    """lam_2, ..., lam_max: all larger eigenvalues of S, ascending, with multiplicity."""
    basis: Float64[np.ndarray, "rows*cols dimension"]
    """Of V_1, orthonormal."""


def slowest(start: Matrix, lefts: Lefts, rights: Rights) -> Slowest:
    """G^par, lam_1 and the larger eigenvalues. Without a part in V_1 of S itself, the next eigenspace is taken.

    sr(G_t) tends to sr(G^par) if eta < 2 / (lam_1 + lam_max). If V_1 has one dimension that is sr of its vector,
    whatever the start, and 1 if and only if that is y kron z (Zhao et al. 2024, arXiv 2403.03507, Cor. 3.5).
    Raises ValueError for a gradient of zero.
    """
    rates, vectors = np.linalg.eigh(curvature(lefts, rights))
    has = np.abs(vectors.T @ start.T.ravel()) > ROUNDING * np.linalg.norm(start)
    if not has.any():
        raise ValueError("start = 0: no direction of a gradient of zero is slowest; start elsewhere")
    first = rates[has.argmax()]
    same = np.abs(rates - first) <= ROUNDING * rates[-1]
    larger = (rates > first) & ~same
    return Slowest(_part(start, vectors[:, same]), max(float(first), 0.0), rates[larger], vectors[:, same])


def lemma_bound(start: Matrix, lefts: Lefts, rights: Rights, lr: float, steps: Steps) -> Float64[np.ndarray, " times"]:
    """sr(G_t) <= sr(G^par) + q^{2t} |G_0 - G^par|_F^2 / |G^par|_2^2, if V_1 is a product of subspaces: Lemma 3.3.

    q = max_{lam >= lam_2} |1 - eta lam| / (1 - eta lam_1), the (1 - eta lam_2) / (1 - eta lam_1) of Zhao et al. 2024,
    arXiv 2403.03507, for eta <= 2 / (lam_2 + lam_max), and larger beyond, where theirs is too small.

    V_1 = Y kron X, all of it: its projection is then G -> P_X G P_Y, which no singular value survives larger. Hence
    |G_t|_2 >= |G_t^par|_2, and |G_t|_F^2 is the sum of both parts. `is_product` says whether V_1 is one.
    Raises ValueError for eta >= 1 / lam_1.
    """
    slow, left, shrinking = _parts(start, lefts, rights, lr)
    return stable_rank(slow.part) + (shrinking**steps * left / np.linalg.norm(slow.part, 2)) ** 2


def stable_rank_bound(
    start: Matrix, lefts: Lefts, rights: Rights, lr: float, steps: Steps
) -> Float64[np.ndarray, " times"]:
    """The same for every V_1: sr <= (|G^par|_F^2 + q^{2t} b^2) / (|G^par|_2 - q^t b)^2, b = |G_0 - G^par|_F. Ours.

    By the triangle inequality, |G_t|_2 >= |G_t^par|_2 - |G_t - G_t^par|_F. It nears sr(G^par) as q^t, not q^{2t}, and
    so does sr(G_t) itself: to first order sr moves by -2 sr <u u'^T, G_t - G_t^par> / |G_t^par|_2 with u, u' the first
    singular vectors of G^par, which vanishes if V_1 is a product. At most min(m, n). Raises as `lemma_bound`.
    """
    slow, left, shrinking = _parts(start, lefts, rights, lr)
    rest = shrinking**steps * left
    spectral = np.maximum(np.linalg.norm(slow.part, 2) - rest, 0)
    total, most = np.linalg.norm(slow.part) ** 2 + rest**2, float(min(start.shape))
    return np.minimum(np.divide(total, spectral**2, out=np.full_like(total, most), where=spectral > 0), most)


def is_product(basis: Float64[np.ndarray, "_ dimension"], rows: int) -> bool:
    """Whether a subspace of R^n kron R^m is Y kron X: it is if the ranges of its matrices have dim X dim Y = its own.

    basis: of vec(m x n matrices), orthonormal, as in `Slowest`. rows: m.
    """
    matrices = basis.T.reshape(basis.shape[1], -1, rows).mT
    spans = (np.linalg.matrix_rank(np.hstack([*side]), tol=1e-8) for side in (matrices, matrices.mT))
    return bool(np.prod([*spans]) == basis.shape[1])


def sample_ranks(features: Float64[np.ndarray, "cols samples"]) -> tuple[int, int]:
    """N' = rank{f_i} and n - N', of C_i = f_i f_i^T with all B_i positive definite: Cor. 3.4, taken apart.

    If A = mean_i a_i f_i^T, rank(G_t) <= N', and G_t -> 0. If A has a part beside the f_i, V_1 = R^m kron span(f)^perp
    is a product and keeps it, and sr(G_t) -> sr(A (I - F F^+)) <= n - N'. No case has both, so that
    min(N', n - N') <= n / 2 of Zhao et al. 2024, arXiv 2403.03507, follows in neither.
    """
    rank = int(np.linalg.matrix_rank(features))
    return rank, len(features) - rank


def _part(matrix: Matrix, basis: Float64[np.ndarray, "_ _"]) -> Matrix:
    return (basis @ (basis.T @ matrix.T.ravel())).reshape(matrix.shape[::-1]).T


def _parts(start: Matrix, lefts: Lefts, rights: Rights, lr: float) -> tuple[Slowest, float, float]:
    """The slowest part, the norm of the rest, and q."""
    slow = slowest(start, lefts, rights)
    if not lr > 0 or not lr * slow.rate < 1:
        raise ValueError(f"lr = {lr}: the slowest part overshoots; take 0 < lr < 1 / {slow.rate:.3g}")
    fastest = np.abs(1 - lr * slow.others).max(initial=0)
    return slow, float(np.linalg.norm(start - slow.part)), float(fastest / (1 - lr * slow.rate))
