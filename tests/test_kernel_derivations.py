"""sympy derives kernels and projections; and each claim, false by 1 % on its own, is noticed."""

import pytest
import sympy as sp

from tests.one_claim_false import unnoticed
from theory import kernel_derivations as derivations
from theory import ntk

WIDTHS = [(1,), (3,), (2, 2), (2, 3), (3, 1), (1, 2, 2), (1, 1, 1, 1)]


def test_arc_cosine_kernels_are_gaussian_integrals():
    assert derivations.arc_cosine() == [0] * 2


def test_arc_cosine_kernels_are_one_the_slope_of_the_other():
    assert derivations.arc_cosine_slopes() == [0] * 4


def test_the_arc_cosine_kernel_bends_at_one_with_a_power_of_three_halves():
    assert derivations.arc_cosine_expansion() == 0


def test_erf_kernels_are_gaussian_integrals():
    assert derivations.erf_moments() == [0] * 3


def test_a_gaussian_factor_maps_both_moments_of_a_gram_matrix():
    assert derivations.gram_moments() == [0] * 2


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_second_moment_of_the_linear_kernel_for_symbolic_widths(depth):
    assert derivations.linear_second_moment(depth) == 0


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_mean_and_second_moment_of_the_linear_kernel_by_wicks_theorem_in_all_weights(widths):
    assert derivations.linear_second_moment_of(widths) == [0] * 2
    computed = ntk.linear_second_moment(widths)
    assert computed == pytest.approx(float(derivations._closed(list(map(sp.Integer, widths)))), rel=1e-15)


@pytest.mark.parametrize(("depth", "slope"), [(1, 4), (2, 20), (3, 56)])
def test_variance_of_the_linear_kernel_to_first_order(depth, slope):
    assert derivations.linear_variance(depth) == [0] * (depth + 2)
    assert 2 * depth * (depth + 1) * (2 * depth + 1) == 3 * slope


@pytest.mark.parametrize(("size", "rank"), [(2, 1), (2, 2), (3, 1)])
def test_mean_and_variance_of_a_projected_kernel(size, rank):
    assert derivations.projection_moments(size, rank) == [0] * 2


def test_each_step_of_the_johnson_lindenstrauss_bound():
    assert derivations.johnson_lindenstrauss() == [0] * 9


@pytest.mark.parametrize(("depth", "missed"), [(1, 0), (2, 0), (3, 1)])
def test_a_power_for_the_layers_between_is_caught_from_three_on(monkeypatch, depth, missed):
    """(1 + 2/n^2)^(q-p-1) is E|M|_F^4 for one matrix between the layers of a pair; two have 1 + 6/n^2 + 2/n^3."""
    outside, between = 1 + sp.Rational(2, 2), 1 + sp.Rational(2, 4)
    pairs = [(p, q) for q in range(depth + 1) for p in range(q)]
    power = (depth + 1) * outside**depth
    power += 2 * sum(outside ** (depth - (q - p)) * between ** (q - p - 1) for p, q in pairs)
    monkeypatch.setattr(derivations, "_closed", lambda n: power)
    assert derivations.linear_second_moment_of((2,) * depth) == [0, missed]


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("arc_cosine", ()),
        ("arc_cosine_slopes", ()),
        ("arc_cosine_expansion", ()),
        ("erf_moments", ()),
        ("gram_moments", ()),
        ("linear_second_moment", (3,)),
        ("linear_second_moment_of", ((2, 3),)),
        ("linear_variance", (3,)),
        ("projection_moments", (2, 2)),
        ("johnson_lindenstrauss", ()),
    ],
)
def test_a_one_percent_error_in_any_claim_is_caught(monkeypatch, function, arguments):
    assert unnoticed(monkeypatch, derivations, function, arguments) == []
