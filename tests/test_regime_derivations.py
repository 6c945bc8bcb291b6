"""sympy derives what lazy and rich training do; and each claim, false by 1 % on its own, is noticed."""

import pytest
import sympy as sp

from tests.one_claim_false import unnoticed
from theory import regime_derivations as derivations


def test_a_step_of_the_linearised_model_from_the_loss():
    assert derivations.linearised_step() == sp.zeros(2, 1)


def test_modes_of_the_linearised_model_and_how_far_its_parameters_move():
    assert derivations.linearised_modes() == [0] * 7


@pytest.mark.parametrize(("width", "inputs"), [(1, 1), (2, 2), (3, 1), (3, 2)])
def test_the_kernel_of_two_linear_layers_drifts_with_the_squared_output(width, inputs):
    assert derivations.two_layer_drift(width, inputs) == 0


def test_a_lazy_network_leaves_its_linearisation_at_second_order():
    assert derivations.lazy_scaling() == [0] * 4


@pytest.mark.parametrize("parameters", [1, 2, 5])
def test_the_first_step_of_sign_descent_follows_the_sign_kernel(parameters):
    assert derivations.sign_step(parameters) == [0] * 2


def test_diagonal_networks_of_symbolic_depth_keep_a_sum_of_powers():
    assert derivations.diagonal_conservation() == [0] * 2


def test_diagonal_networks_of_symbolic_depth_have_a_link():
    assert derivations.diagonal_links() == [0] * 6


def test_the_potential_of_a_diagonal_network_has_the_link_for_its_slope():
    assert derivations.diagonal_potential() == [0] * 4


def test_commuting_measurements_move_the_logarithm_in_their_span():
    assert derivations.commuting_flow() == [0] * 5


@pytest.mark.parametrize(
    "function",
    [
        "linearised_step",
        "linearised_modes",
        "two_layer_drift",
        "lazy_scaling",
        "sign_step",
        "diagonal_conservation",
        "diagonal_links",
        "diagonal_potential",
        "commuting_flow",
    ],
)
def test_a_one_percent_error_in_any_claim_is_caught(monkeypatch, function):
    assert unnoticed(monkeypatch, derivations, function) == []
