"""The reduced-order simulator loses nothing: against plain simulation and theory, and without a d x d matrix."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sims.dynamics import gradient_descent, momentum, moving, product, rollout
from sims.losses import Factorization
from sims.measure import singular_values
from sims.reduced import Reduced, Trajectory, haar_corner, reduce_start, sample, simulate, stack
from sims.run import Diverged
from sims.start import gaussian, haar, orthogonal, problem_start, problem_target, uniform
from tests.strategies import problems
from theory.invariants import idle_loss, rho
from theory.problem import Problem

STEPS = 30
ATOL = 1e-12
LARGE = Problem(width=14, spectrum=(3.0, 2.0), scales=(1.0, 0.9, 0.8), lr=0.05, decay=0.2, momentum=0.3)


def plain(problem: Problem) -> list[tuple[np.ndarray, ...]]:
    step = momentum(Factorization(problem_target(problem)), problem.lr, problem.momentum, problem.decay)
    return [state.weights for state in rollout(step, moving(problem_start(problem), 1), STEPS)]


def reduced_run(reduced: Reduced, problem: Problem, every: int = 1) -> Trajectory:
    return simulate(reduced, problem.lr, STEPS, every, decay=problem.decay, momentum=problem.momentum)


@given(problems())
def test_every_weight_matrix_is_rebuilt_from_the_small_cores(p):
    start, target = problem_start(p), problem_target(p)
    reduced, spaces = reduce_start(start, target, p.rank)
    run = reduced_run(reduced, p)
    for time, weights in enumerate(plain(p)):
        for found, weight in zip(run.weights(time, start, spaces), weights, strict=True):
            np.testing.assert_allclose(found, weight, atol=ATOL)


@given(problems())
def test_losses_and_singular_values_are_those_of_the_full_network(p):
    target = problem_target(p)
    run = reduced_run(reduce_start(problem_start(p), target, p.rank)[0], p)
    for loss, values, weights in zip(run.losses(), run.singular_values(), plain(p), strict=True):
        end = product(weights)
        np.testing.assert_allclose(loss, Factorization(target).value(end), rtol=1e-11, atol=ATOL)
        full = singular_values(end)
        distances = np.abs(full[:, None] - values)  # the idle value of E stands once in `values`, d - 2r times in full
        assert distances.min(axis=1).max() <= 10 * ATOL
        assert distances.min(axis=0).max() <= 10 * ATOL


@given(problems())
def test_the_idle_direction_follows_the_recursion_that_theory_has(p):
    """The simulator carries it as a row and a column of the cores; theory has a scalar recursion."""
    run = reduced_run(reduce_start(problem_start(p), problem_target(p), p.rank)[0], p)
    np.testing.assert_allclose(run.scales, rho(p, STEPS), atol=ATOL)
    idle = run.losses() - ((run.products() - run.reduced.target)[..., :-1, :-1] ** 2).sum(axis=(-1, -2)) / 2
    np.testing.assert_allclose(idle, idle_loss(p, STEPS), rtol=1e-9, atol=ATOL)
    for core in run.cores:
        assert not core[:, -1, :-1].any()  # the border stays empty to the last bit
        assert not core[:, :-1, -1].any()


@given(problems(), st.integers(0, 100))
def test_a_sampled_problem_is_what_reducing_its_full_start_gives_up_to_rotation(p, seed):
    """Build a d x d start whose V^T Q^T U is the sampled corner; both reduced runs have the same losses and spectra."""
    rank, rng = p.rank, np.random.default_rng(seed)
    corner = haar_corner(p.width, rank, np.random.default_rng([p.seed, 2]))
    gram = np.block([[np.eye(rank), corner], [corner.T, np.eye(rank)]])
    frames = haar(p.width, 2 * rank, rng) @ np.linalg.cholesky(gram).T  # [V, Q^T U]
    turns = [haar(p.width, p.width, rng) for _ in range(p.depth)]
    left = frames[:, rank:]
    for turn in turns:
        left = turn @ left
    target = left * np.array(p.spectrum) @ frames[:, :rank].T
    start = tuple(eps * turn for eps, turn in zip(p.eps, turns, strict=True))
    full, sampled = reduced_run(reduce_start(start, target, rank)[0], p), reduced_run(sample(p), p)
    np.testing.assert_allclose(sampled.losses(), full.losses(), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(sampled.singular_values(), full.singular_values(), atol=1e-9)


def test_corners_are_distributed_like_those_of_haar_matrices():
    """An entry squared is Beta(1/2, (d-1)/2), the squared norm of a column Beta(r/2, (d-r)/2); against haar, too."""
    rng = np.random.default_rng(0)
    corners = np.array([haar_corner(9, 3, rng) for _ in range(3000)])
    assert stats.kstest(corners[:, 1, 2] ** 2, stats.beta(0.5, 4).cdf).pvalue > 0.01
    assert stats.kstest((corners[:, :, 0] ** 2).sum(axis=1), stats.beta(1.5, 3).cdf).pvalue > 0.01
    spectra = np.linalg.svd(corners, compute_uv=False)
    direct = np.linalg.svd(np.array([haar(9, 9, rng)[:3, :3] for _ in range(3000)]), compute_uv=False)
    for index in range(3):
        assert stats.ks_2samp(spectra[:, index], direct[:, index]).pvalue > 0.01
    assert abs(corners[:, 0, 0].mean()) < 4 / 9 / np.sqrt(3000) * 3


def test_a_batch_is_its_members_over_seeds_scales_and_steps():
    seeds = [replace(LARGE, seed=seed, scales=0.5 + 0.1 * seed) for seed in range(4)]
    rates = np.array([0.01, 0.02, 0.03, 0.04])
    together = simulate(stack([sample(p) for p in seeds]), rates, STEPS, decay=0.1, momentum=0.4)
    for index, (problem, rate) in enumerate(zip(seeds, rates, strict=True)):
        alone = simulate(sample(problem), rate, STEPS, decay=0.1, momentum=0.4)
        np.testing.assert_allclose(together.losses()[:, index], alone.losses(), rtol=1e-12)
        np.testing.assert_allclose(together.scales[:, index], alone.scales, atol=1e-14)
        np.testing.assert_allclose(together.singular_values()[:, index], alone.singular_values(), atol=1e-13)


def test_widths_may_differ_in_a_batch_since_only_the_idle_count_knows_them():
    wide = [replace(LARGE, width=width) for width in (20, 100_000)]
    losses = simulate(stack([sample(p) for p in wide]), LARGE.lr, STEPS).losses()
    for column, problem in zip(losses.T, wide, strict=True):
        np.testing.assert_allclose(column, simulate(sample(problem), LARGE.lr, STEPS).losses(), rtol=1e-12)


def test_nothing_of_size_d_is_allocated():
    tracemalloc.start()
    simulate(sample(replace(LARGE, width=10**9)), LARGE.lr, STEPS).losses()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6  # bytes


@pytest.mark.parametrize("dims", [(30, 30, 30, 12), (12, 30, 30, 30), (30, 16, 16, 30), (30, 24, 30)])
def test_rectangular_layers_have_the_losses_of_the_full_network(dims):
    rng = np.random.default_rng(0)
    target = haar(dims[-1], 2, rng) * [2.0, 1.0] @ haar(dims[0], 2, rng).T
    start = orthogonal(dims, tuple(0.4 + 0.1 * layer for layer in range(len(dims) - 1)), rng)
    run = simulate(reduce_start(start, target, 2)[0], 0.1, STEPS, decay=0.1)
    full = rollout(gradient_descent(Factorization(target), 0.1, 0.1), start, STEPS)
    np.testing.assert_allclose(run.losses(), [Factorization(target).value(product(w)) for w in full], rtol=1e-11)


def test_every_so_many_steps_are_kept():
    run = reduced_run(sample(LARGE), LARGE, every=10)
    assert run.steps.tolist() == [0, 10, 20, 30]
    np.testing.assert_array_equal(run.cores[0], reduced_run(sample(LARGE), LARGE).cores[0][::10])


@pytest.mark.parametrize("change", [{"lr": 1.01}, {"decay": 1.01}, {"momentum": 1.01}])
def test_a_one_percent_error_is_caught(change):
    p = replace(LARGE, **{name: factor * getattr(LARGE, name) for name, factor in change.items()})
    start, target = problem_start(LARGE), problem_target(LARGE)
    reduced, spaces = reduce_start(start, target, LARGE.rank)
    found = reduced_run(reduced, p).weights(STEPS, start, spaces)
    assert max(np.abs(a - b).max() for a, b in zip(found, plain(LARGE)[-1], strict=True)) > 1e6 * ATOL


def test_a_diverging_run_keeps_what_was_finite():
    with (
        pytest.warns(UserWarning, match=r"lr = .* is not stable from 0\.\d+ on; take half of that"),
        pytest.raises(Diverged, match=r"diverged before step \d+; take a smaller step size") as stopped,
    ):
        simulate(sample(LARGE), 50 * LARGE.stable_lr, 1000)
    run = stopped.value.run
    assert 1 <= len(run.steps) < 1000
    assert all(np.isfinite(core).all() for core in run.cores)


@pytest.mark.parametrize("change", [{"lr": -0.01}, {"lr": np.nan}, {"decay": -1.0}, {"momentum": 1.0}])
def test_rules_out_of_range_are_refused(change):
    values = {"lr": 0.01, "decay": 0.0, "momentum": 0.0, **change}
    with pytest.raises(ValueError, match=r"take a finite lr > 0, decay >= 0 and 0 <= momentum < 1"):
        simulate(sample(LARGE), values.pop("lr"), 10, **values)


@pytest.mark.parametrize(("steps", "every"), [(10, 0), (10, 4), (0, 1)])
def test_steps_that_would_not_be_kept_are_refused(steps, every):
    with pytest.raises(ValueError, match=rf"steps = {steps}, every = {every}: take steps >= every >= 1"):
        simulate(sample(LARGE), 0.1, steps, every)


def test_what_cannot_be_reduced_or_rebuilt_is_refused():
    start, target = problem_start(LARGE), problem_target(LARGE)
    with pytest.raises(ValueError, match="rank = 1: the target has a higher rank"):
        reduce_start(start, target, 1)
    for kind in (gaussian, uniform):
        loose = kind((14,) * 4, (1.0, 0.9, 0.8), np.random.default_rng(0))
        with pytest.raises(ValueError, match=r"layer 1 is not a multiple of a \(semi-\)orthogonal matrix"):
            reduce_start(loose, target, 2)
    with pytest.raises(ValueError, match="only one run of square layers is rebuilt"):
        simulate(stack([sample(LARGE)] * 2), 0.01, 1).weights(0, start, start)
    narrow = orthogonal((4, 30, 30, 4), (0.1,) * 3, np.random.default_rng(0))
    reduced, _ = reduce_start(narrow, np.eye(4), 4)
    with pytest.raises(ValueError, match="no direction is idle in this problem"):
        _ = simulate(reduced, 0.01, 1).scales
