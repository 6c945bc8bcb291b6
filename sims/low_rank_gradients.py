"""Descent on gradients that are affine in the weight, whole or projected; it knows no eigenvalue and no bound.

Symbols: G(W) = A - mean_i B_i W C_i is minus the gradient of mean_i <W, B_i W C_i> / 2 - <A, W>, W m x n, B_i and C_i
positive semidefinite (the parametric gradient of Zhao et al. 2024, GaLore, arXiv 2403.03507, eq. 6); P, Q orthonormal.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float64

from lowdim.subspace import leading_subspace
from sims.start import haar, to_numpy, to_torch

Matrix = Float64[np.ndarray, "_ _"]
Stack = Float64[np.ndarray, "samples _ _"]
Slope = Callable[[Matrix], Matrix]
"""W to G(W), any."""
Refresh = Literal["svd", "random", "never"]
Side = Literal["left", "right", "both"]


@dataclass(frozen=True, eq=False)
class Family:
    """G(W) = A - mean_i B_i W C_i, as a function."""

    constant: Matrix
    """A, m x n."""
    lefts: Stack
    """B_i, m x m."""
    rights: Stack
    """C_i, n x n."""

    def __call__(self, weight: Matrix) -> Matrix:
        """G(W), sample by sample."""
        pulls = (left @ weight @ right for left, right in zip(self.lefts, self.rights, strict=True))
        return self.constant - sum(pulls) / len(self.lefts)


def spread_out(size: int, condition: float, rng: np.random.Generator) -> Matrix:
    """A symmetric matrix with Haar eigenvectors and eigenvalues spaced geometrically from 1 down to 1 / condition."""
    if not 1 <= condition < np.inf or size < 1:
        raise ValueError(f"size = {size}, condition = {condition}: take size >= 1 and a finite condition >= 1")
    basis = haar(size, size, rng)
    return basis * condition ** -np.linspace(0, 1, size) @ basis.T


def generic(shape: tuple[int, int], samples: int, condition: float, rng: np.random.Generator) -> Family:
    """B_i and C_i of this condition number with eigenvectors of their own, A with entries N(0, 1)."""
    lefts, rights = (np.array([spread_out(size, condition, rng) for _ in range(samples)]) for size in shape)
    return Family(rng.standard_normal(shape), lefts, rights)


def batch(features: Matrix, lefts: Stack, targets: Matrix) -> Family:
    """G(W) = mean_i (a_i - B_i W f_i) f_i^T, gradients of samples. features: f_i, targets: a_i, a column for each i."""
    return Family(targets @ features.T / features.shape[1], lefts, np.einsum("ai,bi->iab", features, features))


def entangled() -> Family:
    """2 x 2, four samples, whose slowest direction is diag(1, 2) alone, of rank two: no product of subspaces.

    With X = [[0, 1], [1, 0]], Z = diag(1, -1), C_i and B_i are I + X, I - X, I + Z, 7/4 I - Z and, for B_i, these with
    the first two and the last two swapped. A = I, so that G = I at W = 0. Theory has its spectrum from sympy.
    """
    swap, sign, one = np.array([[0.0, 1.0], [1.0, 0.0]]), np.diag([1.0, -1.0]), np.eye(2)
    rights = np.array([one + swap, one - swap, one + sign, 1.75 * one - sign])
    return Family(one, rights[[1, 0, 3, 2]], rights)


def descent(slope: Slope, lr: float) -> Callable[[Matrix], Matrix]:
    """W <- W + eta G(W), a step for `sims.dynamics.rollout`. lr: eta."""

    def step(weight: Matrix) -> Matrix:
        return weight + lr * slope(weight)

    return step


class Inside(NamedTuple):
    """A weight and the subspaces in which it moves; the identity for a side that is not projected."""

    weight: Matrix
    left: Matrix
    """P, m x r."""
    right: Matrix
    """Q, n x s."""
    taken: int
    """Steps taken so far."""


def inside(weight: Matrix) -> Inside:
    """The state before the first step, which finds the first subspaces."""
    rows, cols = weight.shape
    return Inside(weight, np.eye(rows), np.eye(cols), 0)


def projected(
    slope: Slope,
    lr: float,
    rank: int,
    gap: int,
    *,
    refresh: Refresh = "svd",
    side: Side = "left",
    rng: np.random.Generator | None = None,
) -> Callable[[Inside], Inside]:
    """W <- W + eta P P^T G(W) Q Q^T, with new P and Q before steps 0, T, 2T, ...: GaLore with SGD inside.

    refresh: "svd", leading singular vectors of G; "random", Haar from `rng`; "never", those of the first G for ever.
    rank: r of each projected side. gap: T. Raises ValueError for a gap below 1, another refresh or
    side, "random" without rng, or a step for whose rank or gradient `leading_subspace` raises it.
    """
    if refresh not in get_args(Refresh) or side not in get_args(Side):
        raise ValueError(f"refresh = {refresh!r}, side = {side!r}: take one of {get_args(Refresh)}, {get_args(Side)}")
    if gap < 1 or (refresh == "random") != (rng is not None):
        raise ValueError(f"gap = {gap}, refresh = {refresh!r}, rng = {rng}: take gap >= 1, an rng for 'random' alone")

    def frame(gradient: Matrix) -> Matrix:
        return leading(gradient, rank) if rng is None else haar(len(gradient), rank, rng)

    def step(state: Inside) -> Inside:
        weight, left, right, taken = state
        gradient = slope(weight)
        if taken == 0 or (taken % gap == 0 and refresh != "never"):
            left = frame(gradient) if side != "right" else left
            right = frame(gradient.T) if side != "left" else right
        return Inside(weight + lr * left @ (left.T @ gradient @ right) @ right.T, left, right, taken + 1)

    return step


def leading(gradient: Matrix, rank: int) -> Matrix:
    """The leading left singular vectors, by the routine that compresses networks."""
    (found,) = to_numpy(leading_subspace(to_torch(gradient)[0], rank))
    return found
