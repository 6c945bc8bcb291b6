"""Kwon's network on factorization: the scalar recursion, its floors and the theorem, against the simulations.

Tolerance: rounding, 1e-12 on numbers of order 1 after 40 steps in float64; a 1 % error in a rate shows at 1e-4.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lowdim import spectral
from sims.dynamics import discrepant, gradient_descent, product, rollout
from sims.losses import Factorization
from sims.measure import singular_values
from sims.reduced import Reduced, sample, simulate
from sims.start import problem_target, to_numpy
from theory.invariants import gap
from theory.problem import Problem
from theory.spectral import active_rest, empty_mode, error, floors, modes, product_modes

STEPS = 40
ATOL = 1e-12
PROBLEM = Problem(width=12, spectrum=(3.0, 2.0), depth=3, scales=0.5, lr=0.02)


@st.composite
def compressed(draw, smallest=0.1):
    """A problem, rh <= d - r and alpha >= 1; the step is stable for both networks."""
    width, depth = draw(st.integers(3, 14)), draw(st.integers(2, 5))
    rank = draw(st.integers(1, (width - 1) // 2))
    spectrum = tuple(sorted(draw(st.lists(st.floats(0.5, 5), min_size=rank, max_size=rank)), reverse=True))
    problem = Problem(width, spectrum, depth, draw(st.floats(smallest, 1.0)), 1e-9, seed=draw(st.integers(0, 2**16)))
    alpha = draw(st.floats(1, 4))
    problem = replace(problem, lr=draw(st.floats(0.02, 0.5)) * problem.stable_lr / alpha)
    return problem, draw(st.integers(rank, min(2 * rank, width - rank))), alpha


def trained(problem: Problem, rank: int, alpha: float, steps: int) -> list[tuple[np.ndarray, ...]]:
    """The narrow network, simulated by code that knows neither modes nor Phi's singular values."""
    target = problem_target(problem)
    start = to_numpy(*spectral(torch.from_numpy(target), rank, problem.depth, problem.eps[0]).factors)
    rates = discrepant(problem.lr, alpha, problem.depth)
    return list(rollout(gradient_descent(Factorization(target), rates, problem.decay), start, steps))


@given(compressed(), st.sampled_from([0.0, 0.3]), st.booleans())
@example((PROBLEM, 4, 1.0), 0.3, False)
@example((replace(PROBLEM, depth=2), 4, 2.0), 0.3, False)
@example((replace(PROBLEM, depth=4), 2, 2.0), 0.0, True)
def test_every_factor_stays_diagonal_and_follows_the_recursion(case, decay, is_slow):
    problem, rank, alpha = case
    problem, alpha = replace(problem, decay=decay), 1 / alpha if is_slow else alpha
    found = modes(problem, rank, STEPS, outer=alpha)
    run = trained(problem, rank, alpha, STEPS)
    first, last = run[0][0] / problem.eps[0], run[0][-1] / problem.eps[0]
    for weights, (a, b) in zip(run, np.moveaxis(found, -1, 1), strict=True):
        np.testing.assert_allclose(weights[0], a[:, None] * first, atol=ATOL)
        np.testing.assert_allclose(weights[-1], last * a, atol=ATOL)
        for inner in weights[1:-1]:
            np.testing.assert_allclose(inner, np.diag(b), atol=ATOL)


@given(compressed())
def test_products_and_errors_of_the_modes_are_those_of_the_network(case):
    problem, rank, alpha = case
    found, run = modes(problem, rank, STEPS, every=8, outer=alpha), trained(problem, rank, alpha, STEPS)[::8]
    target = problem_target(problem)
    for weights, foreseen in zip(run, product_modes(problem, found), strict=True):
        values = singular_values(product(weights))[:rank]
        np.testing.assert_allclose(values, np.sort(np.abs(foreseen))[::-1], atol=ATOL)
    errors = [np.linalg.norm(product(weights) - target) for weights in run]
    np.testing.assert_allclose(errors, error(problem, found), atol=ATOL)


def original_error(problem: Problem, steps: int) -> np.ndarray:
    return np.sqrt(2 * simulate(sample(problem), problem.lr, steps).losses())


@settings(max_examples=60)
@given(compressed(smallest=0.01))
def test_compressed_error_is_at_most_the_originals_at_every_step(case):
    """For alpha >= 1, and rh <= d - r: the original then has as many idle directions as the other has empty modes."""
    problem, rank, alpha = case
    ours = error(problem, modes(problem, rank, 400, outer=alpha))
    assert (ours <= original_error(problem, 400) * (1 + 1e-12)).all()


LONG = Problem(width=30, spectrum=(5.0, 4.0), depth=3, scales=0.1, lr=0.01)


def test_with_slow_outer_factors_the_original_can_be_better():
    ours, theirs = error(LONG, modes(LONG, 4, 800, outer=0.3)), original_error(LONG, 800)
    assert (ours > 1.1 * theirs).mean() > 0.05
    assert (error(LONG, modes(LONG, 4, 800)) <= theirs).all()


def test_with_more_empty_modes_than_idle_directions_the_original_ends_below():
    problem = Problem(width=11, spectrum=(5.0, 4.5, 4.0, 3.5, 3.0), depth=2, scales=0.03, lr=0.02)
    expected = floors(problem, 9)
    assert expected[0] < expected[1]
    found, theirs = error(problem, modes(problem, 9, 800)), original_error(problem, 800)
    assert found[-1] > 1.05 * theirs[-1]


@pytest.mark.parametrize(("depth", "scale", "steps"), [(2, 1e-3, 1500), (3, 0.03, 5000), (4, 0.1, 10000)])
def test_both_networks_come_to_rest_at_their_floors(depth, scale, steps):
    problem = Problem(width=2000, spectrum=(5.0, 4.0, 3.0), depth=depth, scales=scale, lr=5e-3)
    original, small = floors(problem, 6)
    theirs = simulate(sample(problem), problem.lr, steps, steps).losses()[-1]
    ours = error(problem, modes(problem, 6, steps, every=steps))[-1]
    faded = empty_mode(depth, scale, problem.lr * steps * np.ones(1))[0] / scale**depth
    np.testing.assert_allclose(ours, small * faded, rtol=1e-5)
    np.testing.assert_allclose(np.sqrt(2 * theirs), original * faded, rtol=1e-4)
    idle = gap(problem, steps)[-1]
    assert idle <= np.sqrt(2 * theirs) <= idle * np.sqrt((problem.width - 3) / problem.idle)


@pytest.mark.parametrize(("depth", "scale", "steps"), [(2, 1e-3, 3000), (3, 0.01, 20000), (4, 0.1, 15000)])
def test_what_an_active_pair_leaves(depth, scale, steps):
    """A pair that sees no other, in its 2 x 2 cores; eps and eta leave a deviation of 1e-3 at most."""
    target = np.array([[0.0, 5.0], [0.0, 0.0]])
    pair = Reduced((scale * np.eye(2),) * depth, target, 0)
    rest = simulate(pair, 2e-3, steps, steps).singular_values()[-1, 1]
    np.testing.assert_allclose((rest / scale**depth) ** 2, active_rest(depth), rtol=1e-3)


def test_the_rest_in_closed_form():
    assert active_rest(2) == pytest.approx(1 / 4, abs=1e-12)
    s = active_rest(3) ** (1 / 6)
    assert s * np.arctanh(s) == pytest.approx(1, abs=1e-12)
    assert all(active_rest(depth) < active_rest(depth + 1) < 1 for depth in range(2, 12))


@pytest.mark.parametrize(("depth", "scale"), [(2, 1.0), (3, 0.8), (5, 0.9)])
def test_an_empty_mode_falls_like_the_flow(depth, scale):
    problem = Problem(width=9, spectrum=(1.0,), depth=depth, scales=scale, lr=1e-4)
    found = product_modes(problem, modes(problem, 2, 40000, every=4000))[:, 1]
    np.testing.assert_allclose(found, empty_mode(depth, scale, problem.lr * 4000 * np.arange(11)), rtol=2e-3)
    assert empty_mode(2, 1.0, np.array([5e5])) * 1e6 == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("problem", "rank", "outer", "message"),
    [
        (replace(PROBLEM, scales=(0.1, 0.2, 0.1)), 4, 1.0, "the spectral start has one eps"),
        (replace(PROBLEM, momentum=0.5), 4, 1.0, "momentum = 0.5"),
        (PROBLEM, 1, 1.0, "take the target's rank or more, 2 <= rank <= 12"),
        (PROBLEM, 13, 1.0, "take the target's rank or more, 2 <= rank <= 12"),
        (PROBLEM, 4, 0.0, "take a finite alpha > 0"),
    ],
)
def test_what_the_recursion_does_not_cover_is_refused(problem, rank, outer, message):
    with pytest.raises(ValueError, match=message):
        modes(problem, rank, 2, outer=outer)


def test_no_floors_under_weight_decay():
    with pytest.raises(ValueError, match="nothing rests above zero"):
        floors(replace(PROBLEM, decay=0.1), 4)


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_one_percent_in_alpha_or_eta_is_seen(factor):
    found = modes(PROBLEM, 4, STEPS, outer=2.0)
    for other in (
        modes(PROBLEM, 4, STEPS, outer=2 * factor),
        modes(replace(PROBLEM, lr=0.02 * factor), 4, STEPS, outer=2.0),
    ):
        assert np.abs(other - found).max() > 1e-4
