"""sympy derives what low-rank gradients follow from; and each claim, false by 1 % on its own, is noticed."""

import numpy as np
import pytest
import sympy as sp

from sims.low_rank_gradients import entangled
from tests.one_claim_false import unnoticed
from theory import gradient_derivations as derivations
from theory.low_rank_gradients import curvature


def _all_zero(found) -> bool:
    return all(entry == 0 or getattr(entry, "is_zero_matrix", False) for entry in found)


@pytest.mark.parametrize(("rows", "cols", "samples"), [(1, 1, 1), (2, 3, 1), (2, 2, 2), (1, 2, 3)])
def test_a_step_of_descent_multiplies_the_gradient_by_one_minus_eta_s(rows, cols, samples):
    assert _all_zero(derivations.descent_step(rows, cols, samples))


def test_a_projected_step_is_a_step_of_the_projected_gradient_on_its_own():
    assert derivations.subspace_step() == [0] * 2


def test_what_a_mode_gathers_and_what_the_loss_loses():
    assert derivations.gathered() == [0] * 4


def test_what_stays_outside_of_a_subspace_is_an_oblique_projection():
    assert derivations.what_stays() == [0] * 3


def test_theorem_3_8_needs_the_factor_two_of_its_proof():
    assert _all_zero(derivations.changes())


def test_lemma_3_3_is_false_for_four_samples():
    assert _all_zero(derivations.entangled())


def test_the_four_samples_are_those_of_the_simulation():
    family = entangled()
    rates = np.linalg.eigvalsh(curvature(family.lefts, family.rights))
    np.testing.assert_allclose(rates, [1 / 4, 11 / 8, 3 / 2, 19 / 8], rtol=1e-14)


def test_the_lower_bound_on_the_stable_rank_holds_for_all_x():
    """1 + ((3 + 2 x) / (6 - x))^2 - 5/4 - 5 x / 12 has no root in (0, 1], and is positive there."""
    x = sp.Symbol("x", real=True)
    numerator = sp.numer(sp.together(((3 + 2 * x) / (6 - x)) ** 2 - sp.Rational(1, 4) - 5 * x / 12))
    assert sp.Poly(numerator, x).count_roots(sp.Rational(1, 10**9), 1) == 0
    assert numerator.subs(x, sp.Rational(1, 2)) > 0


@pytest.mark.parametrize(
    "function", ["descent_step", "subspace_step", "gathered", "what_stays", "changes", "entangled"]
)
def test_a_one_percent_error_in_any_claim_is_caught(monkeypatch, function):
    assert unnoticed(monkeypatch, derivations, function) == []
