"""Losses of the end-to-end matrix E = W_L ... W_1, each 1/2 |A(E) - y|^2 for a linear A, with gradient A*(A(E) - y).

Written with operators that NumPy and torch share, so the arrays decide where they run; `SparseCompletion` alone is
NumPy's and scipy's.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.sparse import csr_array

Matrix = Float[Any, "rows cols"]
Pair = tuple[Float[Any, "_ _"], Float[Any, "_ _"]]

BLOCK = 2**17
"""Numbers in a block of rows that passes through the cache once: 1 MiB of float64."""
SPARSE_BELOW = 0.05
"""The density below which completing entry by entry beats dense blocks for narrow factors (./run bench has both)."""


@runtime_checkable
class Loss(Protocol):
    """A differentiable function of the end-to-end matrix."""

    def value(self, product: Matrix) -> float:
        """l(E)."""
        ...

    def gradient(self, product: Matrix) -> Matrix:
        """dl/dE, of the shape of E."""
        ...


def pulled(loss: Loss, left: Float[Any, "rows k"], right: Float[Any, "k cols"]) -> Pair:
    """G right^T and left^T G with G = dl/dE at E = left right: what the two factors feel.

    A loss that can do so without ever holding E or G in whole brings a method `pulled(left, right)` of its own.
    """
    own = getattr(loss, "pulled", None)
    if own is not None:
        return own(left, right)
    gradient = loss.gradient(left @ right)
    return gradient @ right.mT, left.mT @ gradient


@dataclass(frozen=True, eq=False)
class Factorization:
    """l(E) = 1/2 |E - Phi|_F^2.

    Whitened classification, 1/2 |E X - Y|_F^2 with X X^T = I, is the factorization of Phi = Y X^T up to a constant.
    """

    target: Matrix

    def value(self, product: Matrix) -> float:
        """l(E)."""
        return float(((product - self.target) ** 2).sum()) / 2

    def gradient(self, product: Matrix) -> Matrix:
        """E - Phi."""
        return product - self.target

    def inside(self, left: Float[Any, "rows k"], right: Float[Any, "cols n"]) -> "Factorization":
        """The loss of the cores between orthonormal outer factors, up to a constant."""
        return Factorization(left.mT @ self.target @ right)


@dataclass(frozen=True, eq=False)
class Regression:
    """l(E) = 1/2 |E X - Y|_F^2.

    inputs: X, one column a sample. outputs: Y.
    """

    inputs: Float[Any, "cols samples"]
    outputs: Float[Any, "rows samples"]

    def value(self, product: Matrix) -> float:
        """l(E)."""
        return float(((product @ self.inputs - self.outputs) ** 2).sum()) / 2

    def gradient(self, product: Matrix) -> Matrix:
        """(E X - Y) X^T."""
        return (product @ self.inputs - self.outputs) @ self.inputs.mT


@dataclass(frozen=True, eq=False)
class Completion:
    """l(E) = 1/2 |P_Omega(E - Phi)|_F^2, P_Omega keeping the observed entries; dense.

    target: Phi; its unobserved entries are never used. observed: Omega as 0 and 1, of the shape and type of Phi.
    """

    target: Matrix
    observed: Matrix

    def value(self, product: Matrix) -> float:
        """l(E)."""
        return float((self.gradient(product) ** 2).sum()) / 2

    def gradient(self, product: Matrix) -> Matrix:
        """P_Omega(E - Phi)."""
        residual = product - self.target
        residual *= self.observed
        return residual

    def pulled(self, left: Float[Any, "rows k"], right: Float[Any, "k cols"]) -> Pair:
        """G right^T and left^T G, a block of rows at a time, so that neither E nor G ever leaves the cache."""
        size = max(1, BLOCK // right.shape[1])
        if size >= len(left):
            gradient = self.gradient(left @ right)
            return gradient @ right.mT, left.mT @ gradient
        mine, other = 0 * left, 0 * right
        for first in range(0, len(left), size):
            rows = slice(first, first + size)
            block = left[rows] @ right
            block -= self.target[rows]
            block *= self.observed[rows]
            mine[rows] = block @ right.mT
            other += left[rows].mT @ block
        return mine, other


@dataclass(frozen=True, eq=False)
class SparseCompletion:
    """The same loss from the observed entries alone: O(|Omega| k) for E = left right with k columns of left.

    rows, cols, values: where each observed entry lies, and what it is. shape: of E.
    """

    rows: Int[np.ndarray, " entries"]
    cols: Int[np.ndarray, " entries"]
    values: Float[np.ndarray, " entries"]
    shape: tuple[int, int]

    def value(self, product: Matrix) -> float:
        """l(E)."""
        return float(((product[self.rows, self.cols] - self.values) ** 2).sum()) / 2

    def gradient(self, product: Matrix) -> Matrix:
        """P_Omega(E - Phi), dense."""
        dense = np.zeros(self.shape)
        dense[self.rows, self.cols] = product[self.rows, self.cols] - self.values
        return dense

    def pulled(self, left: Float[np.ndarray, "rows k"], right: Float[np.ndarray, "k cols"]) -> Pair:
        """G right^T and left^T G with a sparse G; E is formed where it is observed alone."""
        found = np.einsum("ek,ek->e", left[self.rows], np.ascontiguousarray(right.T)[self.cols])
        sparse = csr_array((found - self.values, (self.rows, self.cols)), shape=self.shape)
        return sparse @ right.T, (sparse.T @ left).T


def completion(target: Matrix, observed: Bool[np.ndarray, "rows cols"], width: int) -> Completion | SparseCompletion:
    """The loss of the observed entries for networks whose last hidden layer has `width` units.

    Sparse where less than SPARSE_BELOW of the entries is observed and the network is narrow, dense elsewhere.
    """
    if observed.mean() < SPARSE_BELOW and width < min(target.shape) / 4:
        rows, cols = np.nonzero(observed)
        return SparseCompletion(rows, cols, target[rows, cols], (target.shape[0], target.shape[1]))
    return Completion(target, observed.astype(target.dtype))


@dataclass(frozen=True, eq=False)
class Sensing:
    """l(E) = 1/2 sum_i (<A_i, E> - y_i)^2.

    operators: A_1, ..., A_m. outcomes: y_1, ..., y_m.
    """

    operators: Float[Any, "measurements rows cols"]
    outcomes: Shaped[Any, " measurements"]

    def value(self, product: Matrix) -> float:
        """l(E)."""
        return float(((self._rows() @ product.reshape(-1) - self.outcomes) ** 2).sum()) / 2

    def gradient(self, product: Matrix) -> Matrix:
        """sum_i (<A_i, E> - y_i) A_i: two products of a matrix with a vector, while a block of A is in the cache."""
        rows, flat, total = self._rows(), product.reshape(-1), 0 * product.reshape(-1)
        size = max(1, BLOCK // len(flat))
        for first in range(0, len(rows), size):
            block = rows[first : first + size]
            total += (block @ flat - self.outcomes[first : first + size]) @ block
        return total.reshape(product.shape)

    def inside(self, left: Float[Any, "rows k"], right: Float[Any, "cols n"]) -> "Sensing":
        """The loss of the cores between outer factors: <A_i, left C right^T> = <left^T A_i right, C>."""
        return Sensing(left.mT @ (self.operators @ right), self.outcomes)

    def _rows(self) -> Matrix:
        return self.operators.reshape(len(self.operators), -1)
