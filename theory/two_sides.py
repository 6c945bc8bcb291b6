"""What the derivations of `kernel_derivations`, `mode_derivations` and `regime_derivations` are written with."""

from collections.abc import Sequence
from typing import TypeVar

import sympy as sp

Formula = TypeVar("Formula")
"""sp.Expr, or a matrix."""


def claim(formula: Formula) -> Formula:
    """The claimed side of a comparison, as it stands; the other side is derived. A test makes it false here."""
    return formula


def zero(difference: sp.Expr) -> sp.Expr:
    """A scalar difference simplified, so that 0 is 0; matrices of symbols want expand alone."""
    return sp.simplify(sp.expand(difference))


def drift(quantity: sp.Expr, loss: sp.Expr, weights: Sequence[sp.Symbol]) -> sp.Expr:
    """d quantity/dt along gradient flow, w' = -d loss/dw."""
    return -sum(sp.diff(quantity, weight) * sp.diff(loss, weight).doit() for weight in weights)
