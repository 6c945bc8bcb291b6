"""Why gradients become low-rank: descent on gradients that are affine in the weight, and what that does not promise.

Symbols: W and G m x n (rows, cols); A, B_i (`lefts`, m x m), C_i (`rights`, n x n) constant, B_i and C_i symmetric
positive semidefinite; eta the step, t steps taken, vec stacks columns; lam_1 < lam_2 the smallest distinct eigenvalues
of S, V_1 the eigenspace of lam_1, G^par the part of G_0 in it; sr the stable rank.

    G(W) = A - mean_i B_i W C_i,   W_{t+1} = W_t + eta G_t:   vec G_t = (I - eta S)^t vec G_0,   S = mean_i C_i kron B_i

(Zhao et al. 2024, GaLore, arXiv 2403.03507, Sec. 3). What moves slowest stays longest: G_t turns into V_1, so that
sr(G_t) tends to sr(G^par). Three things there need more than is said:

  - Lemma 3.3 needs V_1 to hold the leading singular direction of G^par, as products of subspaces do: of one B and C not
    both singular, in Cor. 3.4, in Cor. 3.5. Otherwise it can be false at every t. `stable_rank_bound` is the lemma with
    the sine of the angle between them, and attained.
  - its rate needs eta <= 2 / (lam_2 + lam_max), beyond which the fastest directions ring on: `lemma_bound`.
  - it needs G^par != 0, but in Cor. 3.4's own form, if constant, it is 0: `kept`. We take lam_1 to be the smallest
    eigenvalue that G_0 has a part in, which the proof allows; but then sr <= n - N' is lost: for orthonormal f_i and
    B_i = I all of S that matters is one eigenvalue, G_t = (1 - eta / N)^t G_0, and sr(G_t) = sr(G_0) for ever, which
    may be N' > n / 2.
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
    moved: Float64[np.ndarray, " some"]
    """Those of them that G_0 has a part in."""
    slant: float
    """|(1 - Pi) u kron u'|: Pi projects onto V_1, (u', u) are the leading singular vectors of G^par. 0 for products."""


def slowest(start: Matrix, lefts: Lefts, rights: Rights) -> Slowest:
    """G^par, lam_1 and the larger eigenvalues. Without a part in V_1 of S itself, the next eigenspace is taken.

    sr(G_t) tends to sr(G^par) if eta < 2 / (lam_1 + lam_max). If V_1 has one dimension that is sr of its vector,
    whatever the start, and 1 if and only if that is y kron z (Zhao et al. 2024, arXiv 2403.03507, Cor. 3.5).
    If V_1 = Y kron X, Pi G = P_X G P_Y has its singular vectors in X and Y: slant = 0.
    Raises ValueError for a gradient of zero.
    """
    rates, vectors = np.linalg.eigh(curvature(lefts, rights))
    has = np.abs(vectors.T @ start.T.ravel()) > ROUNDING * np.linalg.norm(start)
    if not has.any():
        raise ValueError("start = 0: no direction of a gradient of zero is slowest; start elsewhere")
    first = rates[has.argmax()]
    same = np.abs(rates - first) <= ROUNDING * rates[-1]
    larger = (rates > first) & ~same
    part = _part(start, vectors[:, same])
    left, _, right = np.linalg.svd(part)
    leading = np.outer(left[:, 0], right[0])
    slant = float(np.linalg.norm(leading - _part(leading, vectors[:, same])))
    return Slowest(part, max(float(first), 0.0), rates[larger], rates[larger & has], slant)


def lemma_bound(start: Matrix, lefts: Lefts, rights: Rights, lr: float, steps: Steps) -> Float64[np.ndarray, " times"]:
    """sr(G_t) <= sr(G^par) + q^{2t} |G_0 - G^par|_F^2 / |G^par|_2^2, if slant = 0: Lemma 3.3, made exact.

    q = max_{lam >= lam_2} |1 - eta lam| / (1 - eta lam_1), the (1 - eta lam_2) / (1 - eta lam_1) of Zhao et al. 2024,
    arXiv 2403.03507, for eta <= 2 / (lam_2 + lam_max), and larger beyond, where theirs is too small.

    Raises ValueError for eta >= 1 / lam_1.
    """
    slow = slowest(start, lefts, rights)
    rest = _shrinking(slow, slow.others, lr) ** steps * np.linalg.norm(start - slow.part)
    return stable_rank(slow.part) + (rest / np.linalg.norm(slow.part, 2)) ** 2


def stable_rank_bound(
    start: Matrix, lefts: Lefts, rights: Rights, lr: float, steps: Steps
) -> Float64[np.ndarray, " times"]:
    """sr(G_t) <= (|G^par|_F^2 + (q^t b)^2) / (|G^par|_2 - s q^t b)^2, b = |G_0 - G^par|_F, s the slant; ours.

    In units of (1 - eta lam_1)^t, G_t is G^par and a rest N orthogonal to V_1 of norm q^t b at most, so that |G_t|_2 >=
    <u' u^T, G_t> = |G^par|_2 + <(1 - Pi) u' u^T, N>. For s = 0 it is Lemma 3.3; otherwise both sides near sr(G^par) as
    q^t, not q^{2t}, and `gradient_derivations.entangled` attains it. q is over `moved` alone. At most min(m, n).
    Raises ValueError for eta >= 1 / lam_1.
    """
    slow = slowest(start, lefts, rights)
    rest = _shrinking(slow, slow.moved, lr) ** steps * np.linalg.norm(start - slow.part)
    spectral = np.maximum(np.linalg.norm(slow.part, 2) - slow.slant * rest, 0)
    total, most = np.linalg.norm(slow.part) ** 2 + rest**2, float(min(start.shape))
    return np.minimum(np.divide(total, spectral**2, out=np.full_like(total, most), where=spectral > 0), most)


def sample_ranks(features: Float64[np.ndarray, "cols samples"]) -> tuple[int, int]:
    """N' = rank{f_i} and n - N', of C_i = f_i f_i^T with all B_i positive definite: Cor. 3.4, taken apart.

    If A = mean_i a_i f_i^T, rank(G_t) <= N', and G_t -> 0. If A has a part beside the f_i, V_1 = span(f)^perp kron R^m
    is a product and keeps it, and sr(G_t) -> sr(A (I - F F^+)) <= n - N'. No case has both, so that
    min(N', n - N') <= n / 2 of Zhao et al. 2024, arXiv 2403.03507, follows in neither.
    """
    rank = int(np.linalg.matrix_rank(features))
    return rank, len(features) - rank


def _part(matrix: Matrix, basis: Float64[np.ndarray, "_ _"]) -> Matrix:
    return (basis @ (basis.T @ matrix.T.ravel())).reshape(matrix.shape[::-1]).T


def _shrinking(slow: Slowest, rates: Float64[np.ndarray, " _"], lr: float) -> float:
    """q."""
    if not lr > 0 or not lr * slow.rate < 1:
        raise ValueError(f"lr = {lr}: the slowest part overshoots; take 0 < lr < 1 / {slow.rate:.3g}")
    return float(np.abs(1 - lr * rates).max(initial=0) / (1 - lr * slow.rate))
