"""What a random projection keeps of gradients: the tangent kernel of LoRA at its start.

Symbols: G, G' the gradients of an output at W (d_out x d_in) on two examples, delta x^T summed over tokens; k the rank;
A k x d_in, entries independent of mean 0 and variance 1/k; M = G^T G'; K the kernel, K~ the projected one.

LoRA trains W_0 + B A. At B = 0 only B has a gradient, G A^T, so that its tangent kernel is

    K~(x, x') = <G A^T, G' A^T> = sum_p a_p^T M^T a_p,    a_p the rows of A

(Malladi et al. 2023, arXiv 2210.05643): a random projection of W's own kernel <G, G'> = tr M. LoRA's scale alpha / k
multiplies it by (alpha / k)^2; an A of variance s^2 in place of 1/k, by k s^2 (PEFT draws it uniform on +-d_in^-1/2, so
that s^2 = 1 / (3 d_in), or, if asked, normal with s = 1/k). Once B has moved A has a gradient, too, and nothing here
holds. Layers have their own A: means and variances add, and the bounds below hold for the sum.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

Gradients = Float64[np.ndarray, "n outputs inputs"]
Others = Float64[np.ndarray, "m outputs inputs"]
Kernel = Float64[np.ndarray, "n m"]


def projected_mean(left: Gradients, right: Others) -> Kernel:
    """E <G A^T, G' A^T> = tr M = <G, G'>, at every rank and for entries of any distribution.

    left, right: the gradients at one layer, for n and for m examples.
    """
    return np.tensordot(left, right, ((1, 2), (1, 2)))


def projection_variance(left: Gradients, right: Others, rank: int, *, excess: float = 0.0) -> Kernel:
    """Var <G A^T, G' A^T> = (|M|_F^2 + tr M^2 + kappa sum_j M_jj^2) / k, exactly.

    Each row of A adds a quadratic form with the symmetric part S of M, of variance (2 |S|_F^2 + kappa sum_j S_jj^2) /
    k^2, and 2 |S|_F^2 = |M|_F^2 + tr M^2. At most 2 |G|^2 |G'|^2 / k for kappa <= 0; (|x|^2 |x'|^2 + (x.x')^2)
    (delta.delta')^2 / k for one token.

    rank: k. excess: kappa, the excess kurtosis of A's entries: 0 Gaussian, -1.2 uniform, -2 signs. Costs n m products
    of gradients and holds m matrices of the smaller of d_out and d_in. Raises ValueError for k < 1 or kappa < -2.
    """
    if rank < 1 or not -2 <= excess < math.inf:
        raise ValueError(f"rank = {rank}, excess = {excess}: take rank >= 1 and a finite excess kurtosis >= -2")
    found = np.array([_squares(gradient, right) for gradient in left])
    if excess:
        diagonal = np.einsum("noi,moi->nmi", left, right)
        found += excess * np.einsum("nmi,nmi->nm", diagonal, diagonal)
    return found / rank


def _squares(gradient: Float64[np.ndarray, "outputs inputs"], right: Others) -> Float64[np.ndarray, " m"]:
    """|M|_F^2 + tr M^2 of one gradient and each of the others, without d_in x d_in matrices if d_out is smaller."""
    if gradient.shape[0] < gradient.shape[1]:
        small = right @ gradient.T  # N = G' G^T: tr M^2 = tr N^2, and |M|_F^2 = <G G^T, G' G'^T>
        norms = np.tensordot(right @ right.mT, gradient @ gradient.T, 2)
    else:
        small = gradient.T @ right
        norms = np.sum(small**2, axis=(1, 2))
    return norms + np.sum(small * small.mT, axis=(1, 2))


def ridge_shift_variance(
    test: Sequence[Float64[np.ndarray, "_ _ _"]],
    train: Sequence[Float64[np.ndarray, "_ _ _"]],
    targets: Float64[np.ndarray, " n"],
    ridge: float,
    rank: int,
) -> Float64[np.ndarray, " m"]:
    """Variance of f~_* - f_*, f_* = K_* (K + lam I)^-1 y, when K~ takes the place of K: to first order in K~ - K. Ours.

    With alpha = (K + lam I)^-1 y and beta_* = (K + lam I)^-1 k_* the shift is K~ - K at the pair of gradients

        G_* - sum_i beta_*i G_i,    sum_i alpha_i G_i,

    hence of mean 0 and of variance `projection_variance`, for Gaussian A, summed over layers: it falls as 1/k.

    test, train: for each layer the gradients of m and of n examples. targets: y. ridge: lam > 0, in units of K.
    """
    if not 0 < ridge < math.inf or len(test) != len(train):
        raise ValueError(f"ridge = {ridge}, {len(test)}, {len(train)} layers: take a ridge > 0 and the same layers")
    kernel = sum(projected_mean(layer, layer) for layer in train) + ridge * np.eye(len(targets))
    cross = sum(projected_mean(layer, new) for new, layer in zip(test, train, strict=True))
    alpha, beta = np.linalg.solve(kernel, targets), np.linalg.solve(kernel, cross)
    pairs = [
        (new - np.tensordot(beta, layer, (0, 0)), np.tensordot(alpha, layer, 1)[None])
        for new, layer in zip(test, train, strict=True)
    ]
    return np.sum([projection_variance(rest, found, rank)[:, 0] for rest, found in pairs], axis=0)


def pair_failure(tolerance: float, rank: int) -> float:
    """P(|K~ - K| > eps |G| |G'|) <= 2 exp(-k (eps - ln(1 + eps)) / 2) for Gaussian A, any pair, any eps > 0. Ours.

    With the eigenvalues mu_j of M's symmetric part K~ - K = sum_j mu_j (Y_j - 1), the Y_j independent, chi^2_k / k. Let
    psi(s) = ln E exp(s (Y - 1)): convex, psi(0) = 0, and psi(-s) <= psi(s) for s >= 0. In units of |G| |G'| the w_j =
    |mu_j| sum to at most 1, since the nuclear norm of the symmetric part is at most that of M, and this at most
    |G| |G'| (Hoelder). So ln E exp(+-s (K~ - K)) <= sum_j psi(w_j s) <= sum_j w_j psi(s) <= psi(s): no pair has heavier
    tails than |a|^2 of one Gaussian vector, whose Chernoff bound is the above. For several layers the mu_j are those
    of all, sum |mu_j| <= sum_l |G_l| |G'_l| <= |G| |G'|, and since k psi_1(s / k) falls as k grows k is the least of
    their ranks; a layer trained in full adds to |G| only.

    tolerance: eps. Raises ValueError for eps <= 0 or k < 1.
    """
    if rank < 1 or not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance = {tolerance}, rank = {rank}: take a finite tolerance > 0 and rank >= 1")
    return min(1.0, 2 * math.exp(-rank / 2 * _rate(tolerance)))


def kernel_failure(examples: int, tolerance: float, rank: int) -> float:
    """P(some pair of N examples has |K~ - K| > eps |G| |G'|) <= N (N + 1) exp(-k (eps - ln(1 + eps)) / 2). Ours.

    A union bound of `pair_failure` over the N (N + 1) / 2 pairs, each example with itself included.
    """
    return min(1.0, _pairs(examples) * pair_failure(tolerance, rank))


def kernel_rank(examples: int, tolerance: float, failure: float) -> int:
    """The least k at which `kernel_failure` is at most `failure`: Theta(log N / eps^2)."""
    _check_failure(failure)
    _check_tolerance(tolerance, math.inf)
    return max(1, math.ceil(2 * math.log(2 * _pairs(examples) / failure) / _rate(tolerance)))


def jl_failure(examples: int, tolerance: float, rank: int) -> float:
    """4 N^2 exp(-(eps^2 - eps^3) k / 4), the same probability in Malladi et al. 2023, arXiv 2210.05643.

    There for vectors and with eps times the largest squared norm. Proved for matrices and several layers by
    `kernel_failure`, which is smaller: N (N + 1) <= 4 N^2, and eps - ln(1 + eps) >= (eps^2 - eps^3) / 2, since the
    derivatives' difference is eps (3 eps / 2 - eps / (1 + eps)) >= 0. The textbook way, polarisation of the N^2 norms
    |G + G'|, |G - G'|, |G|, gives 2 N^2 with the same eps |G| |G'|. Raises ValueError for eps >= 1, where it is void.
    """
    _check_tolerance(tolerance, 1.0)
    if rank < 1:
        raise ValueError(f"rank = {rank}: take rank >= 1")
    _pairs(examples)
    return min(1.0, 4 * examples**2 * math.exp(-(tolerance**2 - tolerance**3) * rank / 4))


def jl_rank(examples: int, tolerance: float, failure: float) -> int:
    """The least k at which `jl_failure` is at most `failure`; `kernel_rank` is smaller. Arguments as there."""
    _check_failure(failure)
    _check_tolerance(tolerance, 1.0)
    _pairs(examples)
    needed = 4 * math.log(4 * examples**2 / failure) / (tolerance**2 - tolerance**3)
    return max(1, math.ceil(needed))


def _rate(tolerance: float) -> float:
    return tolerance - math.log1p(tolerance)


def _pairs(examples: int) -> int:
    if examples < 1:
        raise ValueError(f"examples = {examples}: take one or more")
    return examples * (examples + 1) // 2


def _check_failure(failure: float) -> None:
    if not 0 < failure < 1:
        raise ValueError(f"failure = {failure}: a probability; take 0 < failure < 1")


def _check_tolerance(tolerance: float, most: float) -> None:
    if not 0 < tolerance < most:
        raise ValueError(f"tolerance = {tolerance}: take 0 < tolerance < {most}")
