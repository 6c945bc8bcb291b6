"""Matrix completion without a deep network: what deep completion is compared with."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds

Matrix = Float64[np.ndarray, "rows cols"]


def truncated_svd(values: Matrix, rank: int) -> Matrix:
    """The best rank-`rank` approximation of the matrix with its unknown entries set to zero (scipy's svds)."""
    start = np.ones(min(values.shape))  # ARPACK's start vector, so that runs repeat
    left, sigma, right = svds(csr_array(values), k=rank, v0=start)
    return left * sigma @ right


def alternating_least_squares(
    values: Matrix, known: Matrix, rank: int, penalty: float, rng: np.random.Generator
) -> Iterator[Matrix]:
    """A B^T after each sweep of alternating least squares on the known entries (Zhou et al. 2008, ALS-WR).

        min_{A,B} |P_Omega(A B^T - values)|_F^2 + penalty (sum_i n_i |a_i|^2 + sum_j n_j |b_j|^2),

    n_i and n_j counting the known entries of row i and column j. Rows without any stay at zero.

    values: zero where unknown. known: 1.0 or 0.0. penalty: > 0.
    """
    if penalty <= 0:
        raise ValueError(f"penalty = {penalty}: rows with fewer known entries than rank = {rank} need a penalty > 0")
    cols = rng.standard_normal((values.shape[1], rank)) / np.sqrt(rank)
    while True:
        rows = _solved(values, known, cols, penalty)
        cols = _solved(values.T, known.T, rows, penalty)
        yield rows @ cols.T


def _solved(
    values: Matrix, known: Matrix, other: Float64[np.ndarray, "cols r"], penalty: float
) -> Float64[np.ndarray, "rows r"]:
    """The ridge regressions of all rows at once: (sum_j b_j b_j^T + penalty n_i I) a_i = sum_j values_ij b_j."""
    rank = other.shape[1]
    grams = (known @ (other[:, :, None] * other[:, None, :]).reshape(len(other), -1)).reshape(-1, rank, rank)
    counts = np.maximum(known.sum(axis=1), 1)
    return np.linalg.solve(grams + penalty * counts[:, None, None] * np.eye(rank), (values @ other)[:, :, None])[
        :, :, 0
    ]
