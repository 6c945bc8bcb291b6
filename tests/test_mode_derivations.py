"""sympy derives the modes and conservation laws; and each claim, false by 1 % on its own, is noticed."""

import pytest
import sympy as sp

from tests.one_claim_false import unnoticed
from theory import mode_derivations as derivations


def test_the_logistic_mode_from_the_loss():
    assert derivations.logistic() == [0] * 4


def test_imbalance_is_kept_and_with_the_product_makes_the_kernel():
    assert derivations.imbalance() == [0] * 2


def test_the_lag_of_descent_behind_the_logistic_mode():
    assert derivations.logistic_lag() == [0] * 3


def test_the_unbalanced_mode_is_solved_by_a_hyperbolic_sine():
    assert derivations.unbalanced_mode() == [0] * 5


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_scalar_layers_keep_their_differences_and_balanced_ones_a_rate_of_their_own(depth):
    assert derivations.scalar_depth(depth) == [0] * depth


def test_balanced_layers_of_any_shapes_obey_a_riccati_equation():
    assert all(block.is_ZeroMatrix for block in derivations.riccati_form())


def test_the_gram_solution_solves_the_riccati_equation_of_any_matrices():
    assert derivations.riccati_solution() == [0] * 3


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_end_to_end_rate_of_balanced_layers(depth):
    assert derivations.end_to_end(depth) == sp.zeros(2, 2)


def test_singular_values_move_with_the_diagonal():
    assert derivations.singular_value_rate() == 0


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("logistic", ()),
        ("imbalance", ()),
        ("logistic_lag", ()),
        ("unbalanced_mode", ()),
        ("scalar_depth", (3,)),
        ("riccati_form", ()),
        ("riccati_solution", ()),
        ("end_to_end", (3,)),
        ("singular_value_rate", ()),
    ],
)
def test_a_one_percent_error_in_any_claim_is_caught(monkeypatch, function, arguments):
    assert unnoticed(monkeypatch, derivations, function, arguments) == []
