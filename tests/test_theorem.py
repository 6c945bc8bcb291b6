"""The invariant-subspace theorem, clause by clause, on random problems, simulated by code that does not know it.

Tolerance: rounding, 1e-12 on numbers of order 1 after 30 steps in float64. It is measured at 1e-15 to 1e-14, and a 1 %
error in any formula shows at 1e-3 (the last tests of this file).
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lowdim import compress
from sims.dynamics import gradient_descent, gradients, momentum, moving, product, rollout
from sims.losses import Factorization
from sims.measure import idle_scale, singular_values
from sims.start import haar, problem_start, problem_target, to_torch
from tests.strategies import problems
from theory.invariants import (
    balance_drift,
    gap,
    idle_loss,
    invariant_bases,
    predicted_weights,
    reduced_dynamics,
    reduced_target,
    rho,
)
from theory.problem import Problem

STEPS = 30
ATOL = 1e-12
LARGE = Problem(width=12, spectrum=(3.0, 2.0), depth=3, scales=(1.0, 0.9, 0.8), lr=0.05, decay=0.2, momentum=0.3)


def simulate(problem: Problem, steps: int = STEPS) -> list[tuple[np.ndarray, ...]]:
    step = momentum(Factorization(problem_target(problem)), problem.lr, problem.momentum, problem.decay)
    return [state.weights for state in rollout(step, moving(problem_start(problem), 1), steps)]


def simulate_on_torch(problem: Problem, steps: int = STEPS) -> list[tuple[np.ndarray, ...]]:
    (target,) = to_torch(problem_target(problem))
    step = momentum(Factorization(target), problem.lr, problem.momentum, problem.decay)
    run = rollout(step, moving(to_torch(*problem_start(problem)), 1), steps)
    return [tuple(weight.numpy() for weight in state.weights) for state in run]


BACKENDS: list[Callable[[Problem], list[tuple[np.ndarray, ...]]]] = [simulate, simulate_on_torch]


def blocks(problem: Problem, weights: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    """V_{l+1}^T W_l V_l."""
    bases = invariant_bases(problem_start(problem), problem_target(problem), problem.rank)
    return [after.T @ weight @ before for weight, (before, after) in zip(weights, pairwise(bases), strict=True)]


@given(problems())
def test_bases_are_orthogonal_and_chained_by_the_start(p):
    start = problem_start(p)
    bases = invariant_bases(start, problem_target(p), p.rank)
    for basis in bases:
        np.testing.assert_allclose(basis.T @ basis, np.eye(p.width), atol=ATOL)
    for eps, weight, (before, after) in zip(p.eps, start, pairwise(bases), strict=True):
        np.testing.assert_allclose(weight @ before, eps * after, atol=ATOL)


@given(problems())
def test_idle_directions_miss_the_target_from_both_sides(p):
    start, target = problem_start(p), problem_target(p)
    bases = invariant_bases(start, target, p.rank)
    np.testing.assert_allclose(target @ bases[0][:, 2 * p.rank :], 0, atol=ATOL)
    np.testing.assert_allclose(target.T @ bases[-1][:, 2 * p.rank :], 0, atol=ATOL)


@pytest.mark.parametrize("backend", BACKENDS)
@given(p=problems())
@example(p=LARGE)
@example(p=replace(LARGE, width=5, scales=0.01, decay=0.0))
def test_every_layer_stays_block_diagonal_with_a_scalar_idle_block(backend, p):
    k = 2 * p.rank
    for step, weights in enumerate(backend(p)):
        for layer, block in enumerate(blocks(p, weights)):
            np.testing.assert_allclose(block[:k, k:], 0, atol=ATOL)
            np.testing.assert_allclose(block[k:, :k], 0, atol=ATOL)
            np.testing.assert_allclose(block[k:, k:], rho(p, step)[-1, layer] * np.eye(p.idle), atol=ATOL)


@given(problems())
def test_idle_scale_is_a_singular_value_of_multiplicity_d_minus_2r(p):
    for weight, scale in zip(simulate(p)[-1], rho(p, STEPS)[-1], strict=True):
        assert np.sum(np.abs(singular_values(weight) - abs(scale)) <= ATOL) >= p.idle


def test_idle_block_follows_the_scalar_recursion_as_measured_without_knowing_it():
    for step, weights in enumerate(simulate(LARGE)):
        idle = [idle_scale(weight, LARGE.idle) for weight in weights]
        np.testing.assert_allclose(idle, rho(LARGE, step)[-1], atol=ATOL)


@given(problems())
def test_active_blocks_follow_their_own_gradient_descent(p):
    target, k = problem_target(p), 2 * p.rank
    bases = invariant_bases(problem_start(p), target, p.rank)
    cores = islice(reduced_dynamics(p, reduced_target(bases, target, p.rank)), STEPS + 1)
    for weights, core in zip(simulate(p), cores, strict=True):
        for block, active in zip(blocks(p, weights), core, strict=True):
            np.testing.assert_allclose(block[:k, :k], active, atol=ATOL)


@given(problems())
def test_weights_are_predicted_without_running_the_network(p):
    target = problem_target(p)
    *_, predicted = predicted_weights(p, invariant_bases(problem_start(p), target, p.rank), target, STEPS)
    for weight, prediction in zip(simulate(p)[-1], predicted, strict=True):
        np.testing.assert_allclose(weight, prediction, atol=ATOL)


@given(problems())
def test_updates_have_rank_at_most_2r_beyond_the_scaled_start(p):
    scales = rho(p, STEPS)[-1] / np.array(p.eps)
    for first, last, scale in zip(problem_start(p), simulate(p)[-1], scales, strict=True):
        assert singular_values(last - scale * first)[2 * p.rank] <= ATOL


@given(problems(), st.integers(0, 3))
def test_compressed_network_leaves_out_exactly_the_idle_tail(p, excess):
    rank = min(p.rank + excess, (p.width - 1) // 2)
    target = problem_target(p)
    narrow = compress(to_torch(*problem_start(p)), torch.from_numpy(target), rank)
    left, right = narrow.left.numpy(), narrow.right.numpy()
    step = momentum(Factorization(left.T @ target @ right), p.lr, p.momentum, p.decay)
    run = rollout(step, moving(tuple(core.numpy() for core in narrow.cores), 1), STEPS)
    cores = [state.weights for state in run]
    tails = [np.linalg.norm(product(w) - left @ product(c) @ right.T) for w, c in zip(simulate(p), cores, strict=True)]
    np.testing.assert_allclose(tails, gap(p, STEPS, rank), atol=ATOL)


@given(problems())
def test_what_is_left_out_is_at_most_the_papers_bound(p):
    """Simulated idle parts against (d - 2r) prod eps_l^2; every idle factor is a contraction if eta < 1 / curvature."""
    p = replace(p, lr=min(p.lr, 0.5 * p.stable_lr), momentum=0.0)
    bases = invariant_bases(problem_start(p), problem_target(p), p.rank)
    idle_in, idle_out = bases[0][:, 2 * p.rank :], bases[-1][:, 2 * p.rank :]
    tails = [np.linalg.norm(idle_out.T @ product(weights) @ idle_in) for weights in simulate(p)]
    assert max(tails) <= np.sqrt(p.idle) * np.prod(p.eps) * (1 + 1e-12)
    assert (np.diff(gap(p, STEPS)) <= 0).all()


@given(problems())
def test_full_loss_is_the_reduced_loss_plus_the_idle_loss(p):
    target = problem_target(p)
    small = reduced_target(invariant_bases(problem_start(p), target, p.rank), target, p.rank)
    cores = islice(reduced_dynamics(p, small), STEPS + 1)
    full = [Factorization(target).value(product(weights)) for weights in simulate(p)]
    reduced = [Factorization(small).value(product(core)) for core in cores]
    np.testing.assert_allclose(full, np.array(reduced) + idle_loss(p, STEPS), rtol=1e-11, atol=ATOL)


@given(problems())
def test_balance_drifts_only_in_second_order(p):
    p = replace(p, momentum=0.0)  # the balance of momentum has more terms
    run = simulate(p)
    loss = Factorization(problem_target(p))
    for before, after in pairwise(run):
        measured = [above.T @ above - below @ below.T for below, above in pairwise(after)]
        for drift, predicted in zip(measured, balance_drift(p, before, gradients(loss, before)), strict=True):
            np.testing.assert_allclose(drift, predicted, atol=ATOL)


@given(problems(max_width=10), st.integers(0, 100))
def test_dynamics_are_equivariant_under_changes_of_basis(p, seed):
    rng = np.random.default_rng(seed)
    turns = [haar(p.width, p.width, rng) for _ in range(p.depth + 1)]
    turned = tuple(
        after @ weight @ before.T for weight, (before, after) in zip(problem_start(p), pairwise(turns), strict=True)
    )
    loss = Factorization(turns[-1] @ problem_target(p) @ turns[0].T)
    *_, (last, _, _) = rollout(momentum(loss, p.lr, p.momentum, p.decay), moving(turned, 1), STEPS)
    for weight, found, (before, after) in zip(simulate(p)[-1], last, pairwise(turns), strict=True):
        np.testing.assert_allclose(after @ weight @ before.T, found, atol=ATOL)


def test_a_gaussian_start_has_no_idle_block_so_the_orthogonal_start_is_needed():
    rng = np.random.default_rng(0)
    start = tuple(rng.standard_normal((12, 12)) / np.sqrt(12) for _ in range(3))
    *_, last = rollout(gradient_descent(Factorization(problem_target(LARGE)), LARGE.lr), start, STEPS)
    gaps = [np.diff(singular_values(weight)) for weight in last]
    assert all(np.sum(np.abs(gap) < 1e-6) == 0 for gap in gaps)  # not even two singular values are equal
    with pytest.raises(ValueError, match=r"layer 1 .* the theorem needs one; draw it with sims\.start\.orthogonal"):
        invariant_bases(start, problem_target(LARGE), LARGE.rank)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1.01 * LARGE.lr},
        {"decay": 1.01 * LARGE.decay},
        {"momentum": 1.01 * LARGE.momentum},
        {"scales": (1.01, 0.9, 0.8)},
    ],
)
def test_a_one_percent_error_in_rho_is_caught(change):
    idle = [idle_scale(weight, LARGE.idle) for weight in simulate(LARGE)[-1]]
    np.testing.assert_allclose(idle, rho(LARGE, STEPS)[-1], atol=ATOL)
    wrong = rho(replace(LARGE, **change), STEPS)[-1]
    assert np.abs(idle - wrong).max() > 1e6 * ATOL


@pytest.mark.parametrize(
    "change", [{"lr": LARGE.lr * 1.01}, {"decay": LARGE.decay * 1.01}, {"momentum": LARGE.momentum * 1.01}]
)
def test_a_one_percent_error_in_the_reduced_dynamics_is_caught(change):
    target = problem_target(LARGE)
    bases = invariant_bases(problem_start(LARGE), target, LARGE.rank)
    *_, wrong = predicted_weights(replace(LARGE, **change), bases, target, STEPS)
    assert max(np.abs(w - p).max() for w, p in zip(simulate(LARGE)[-1], wrong, strict=True)) > 1e6 * ATOL
    *_, wrong = predicted_weights(LARGE, bases, 1.01 * target, STEPS)
    assert max(np.abs(w - p).max() for w, p in zip(simulate(LARGE)[-1], wrong, strict=True)) > 1e6 * ATOL


def test_a_one_percent_error_in_the_drift_is_caught():
    run, loss = simulate(LARGE, 1), Factorization(problem_target(LARGE))
    wrong = balance_drift(replace(LARGE, lr=1.01 * LARGE.lr), run[0], gradients(loss, run[0]))  # no momentum yet
    measured = [above.T @ above - below @ below.T for below, above in pairwise(run[1])]
    assert max(np.abs(m - w).max() for m, w in zip(measured, wrong, strict=True)) > 1e6 * ATOL
