"""Losses of the end-to-end matrix E = W_L ... W_1, each 1/2 |A(E) - y|^2 for a linear A, with gradient A*(A(E) - y).

Written with operators that NumPy and torch share, so the arrays decide where they run.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Shaped

Matrix = Float[Any, "rows cols"]


@runtime_checkable
class Loss(Protocol):
    """A differentiable function of the end-to-end matrix."""

    def value(self, product: Matrix) -> float:
        """l(E)."""
        ...

    def gradient(self, product: Matrix) -> Matrix:
        """dl/dE, of the shape of E."""
        ...


@dataclass(frozen=True, eq=False)
class Factorization:
    """l(E) = 1/2 |E - Phi|_F^2."""

    target: Matrix

    def value(self, product: Matrix) -> float:
        """l(E)."""
        return float(((product - self.target) ** 2).sum()) / 2

    def gradient(self, product: Matrix) -> Matrix:
        """E - Phi."""
        return product - self.target


@dataclass(frozen=True, eq=False)
class Completion:
    """l(E) = 1/2 |P_Omega(E - Phi)|_F^2, P_Omega keeping the observed entries.

    target: Phi; its unobserved entries are never used. observed: Omega as 0 and 1, of the shape and type of Phi.
    """

    target: Matrix
    observed: Matrix

    def value(self, product: Matrix) -> float:
        """l(E)."""
        return float((self.gradient(product) ** 2).sum()) / 2

    def gradient(self, product: Matrix) -> Matrix:
        """P_Omega(E - Phi)."""
        return self.observed * (product - self.target)


@dataclass(frozen=True, eq=False)
class Sensing:
    """l(E) = 1/2 sum_i (<A_i, E> - y_i)^2.

    operators: A_1, ..., A_m. outcomes: y_1, ..., y_m.
    """

    operators: Float[Any, "measurements rows cols"]
    outcomes: Shaped[Any, " measurements"]

    def value(self, product: Matrix) -> float:
        """l(E)."""
        return float((self._misfit(product) ** 2).sum()) / 2

    def gradient(self, product: Matrix) -> Matrix:
        """sum_i (<A_i, E> - y_i) A_i, as one product of a vector with an m x d^2 matrix."""
        return (self._misfit(product) @ self._rows()).reshape(product.shape)

    def _misfit(self, product: Matrix) -> Shaped[Any, " measurements"]:
        return self._rows() @ product.reshape(-1) - self.outcomes

    def _rows(self) -> Matrix:
        return self.operators.reshape(len(self.operators), -1)
