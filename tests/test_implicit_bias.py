"""What gradient flow selects: closed forms against flows, linear programs, quadrature and autograd.

Tolerance: flows at rtol 1e-11 or less gather about 1e-10; DOP853 stops with 1e-9 of y to go, below which an explicit
method at its limit of stability never gets, and X with a condition up to 5 makes 2e-8 of the largest coefficient of it.
Identities hold to 1e-9.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp
from scipy.optimize import brentq, linprog

from sims import diagonal
from sims.dynamics import rollout
from sims.start import haar
from theory import implicit_bias as bias

FLOW, IDENTITY = 2e-8, 1e-9
SLOWEST = {2: 0.01, 3: 0.1, 4: 0.3}  # alpha from which an explicit method follows the flow in a second


@dataclass(frozen=True)
class Task:
    """X with entries N(0, 1/n), y from a sparse truth and noise, so that the l1 solution has n entries."""

    n: int
    d: int
    seed: int = 0
    noise: float = 0.3

    @cached_property
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        inputs = rng.standard_normal((self.n, self.d)) / np.sqrt(self.n)
        truth = np.zeros(self.d)
        truth[: min(3, self.d)] = 1 / np.sqrt(3)
        return inputs, inputs @ truth + self.noise * rng.standard_normal(self.n) / np.sqrt(self.n)

    @cached_property
    def sparse(self) -> np.ndarray:
        """The l1 solution, solved for again on the support that the linear program finds."""
        inputs, targets = self.data
        both = linprog(np.ones(2 * self.d), A_eq=np.hstack([inputs, -inputs]), b_eq=targets).x
        support = both[: self.d] + both[self.d :] > 1e-9
        found = np.zeros(self.d)
        found[support] = np.linalg.lstsq(inputs[:, support], targets, rcond=None)[0]
        return found


tasks = st.builds(
    lambda n, more, seed: Task(n, n + more, seed), st.integers(1, 4), st.integers(0, 5), st.integers(0, 999)
).filter(lambda task: np.linalg.cond(task.data[0]) < 5)
depths = st.one_of(st.sampled_from([2, 3, 4, 6]), st.floats(2, 6))


def scales(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(np.log(low), np.log(high)).map(lambda power: float(np.exp(power)))


def explicit_flow(inputs, targets, scale, depth):
    """w_+- at the end, by DOP853 in u = ln(w / alpha): no small difference of large weights when lazy."""
    signs = np.repeat([1.0, -1.0], inputs.shape[1])

    def beta(u):
        plus, minus = np.split(depth * u, 2)
        return scale**depth * 2 * np.exp((plus + minus) / 2) * np.sinh((plus - minus) / 2)

    def velocity(_, u):
        pull = inputs.T @ (targets - inputs @ beta(u))
        return depth * scale ** (depth - 2) * signs * np.exp((depth - 2) * u) * np.tile(pull, 2)

    def left(_, u):
        return np.linalg.norm(inputs @ beta(u) - targets) - 1e-9 * np.linalg.norm(targets)

    left.terminal = True
    tolerances = {
        "rtol": 1e-11,
        "atol": 1e-13 * min(1, scale**-depth),
        "first_step": 1e-3 * min(1, scale ** (2 - 2 * depth)),
    }
    found = solve_ivp(velocity, (0, 1e40), 0 * signs, "DOP853", events=left, **tolerances)
    assert found.status == 1
    return scale * np.exp(found.y[:, -1].reshape(2, -1)), beta(found.y[:, -1])


def assert_same(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@settings(max_examples=30)
@given(tasks, st.sampled_from([2, 3, 4]), st.floats(0, 1))
@example(Task(3, 8), 2, 0.0)
@example(Task(3, 8), 3, 0.0)
@example(Task(3, 8), 4, 0.0)
@example(Task(3, 8), 4, 1.0)
def test_the_flow_keeps_its_invariant_and_ends_at_the_limit(task, depth, place):
    scale = SLOWEST[depth] ** (1 - place) * 10**place
    weights, found = explicit_flow(*task.data, scale, depth)
    assert_same(found, bias.diagonal_limit(*task.data, scale, depth), FLOW)
    start = bias.conserved(np.full((2, task.d), scale), depth)
    np.testing.assert_allclose(bias.conserved(weights, depth), start, rtol=FLOW)
    kernel = depth**2 * np.sum(weights ** (2 * depth - 2), axis=0)
    np.testing.assert_allclose(bias.tangent_weights(found, scale, depth), kernel, rtol=FLOW)


@pytest.mark.parametrize(("depth", "scale"), [(2, 1e-8), (2, 1e-3), (2, 2.0), (3, 0.01), (4, 0.03), (6, 0.15)])
def test_the_simulated_flow_ends_at_the_limit_where_it_is_stiff(depth, scale):
    task = Task(10, 30)
    weights = diagonal.flow(*task.data, diagonal.start(scale, task.d), depth)
    found = bias.diagonal_limit(*task.data, scale, depth)
    assert_same(diagonal.coefficients(weights, depth), found, FLOW)
    kernel = task.data[0] * bias.tangent_weights(found, scale, depth) @ task.data[0].T
    assert_same(diagonal.kernel(weights, task.data[0], depth), kernel, 10 * FLOW)


@given(tasks, depths, scales(0.01, 100))
@example(Task(10, 30), 2, 1e-12)
@example(Task(10, 30), 3, 1e-4)
@example(Task(10, 30), 4, 1e4)
@example(Task(10, 30), 2 + 1e-9, 0.1)
def test_the_limit_meets_the_equations_and_its_multipliers_span_rows(task, depth, scale):
    """The KKT condition, x in the row space of X; |x| < p, so that x itself is off by its rounding only."""
    inputs, targets = task.data
    scale = max(scale, 1e-3 ** (1 / max(depth - 2, 1e-9)))  # below, rounding of x shows
    found = bias.diagonal_limit(inputs, targets, scale, depth)
    assert_same(inputs @ found, targets, IDENTITY)
    pull = bias.inverse_link(found / scale**depth, depth)
    assert_same(inputs.T @ np.linalg.lstsq(inputs.T, pull, rcond=None)[0], pull, IDENTITY)


@given(tasks.filter(lambda task: task.n < task.d), depths, scales(0.1, 10), st.integers(0, 99))
def test_no_other_solution_has_a_smaller_potential(task, depth, scale, seed):
    inputs, targets = task.data
    found = bias.diagonal_limit(inputs, targets, scale, depth)
    away = np.random.default_rng(seed + 1000).standard_normal(task.d)
    away -= np.linalg.pinv(inputs) @ (inputs @ away)
    least = bias.potential(found, scale, depth)
    rises = [bias.potential(found + shift * away, scale, depth) - least for shift in (-1e-2, 1e-2)]
    assert min(rises) > 0


def naive(pull, depth):
    power = depth / (depth - 2)
    return (1 - pull / power) ** -power - (1 + pull / power) ** -power


@given(st.floats(2.2, 8), st.floats(-0.9, 0.9))
def test_link_is_its_definition_and_its_inverse_a_root_of_it(depth, share):
    pull = np.array([share * depth / (depth - 2)])
    found = bias.link(pull, depth)
    assert found[0] == pytest.approx(naive(pull[0], depth), rel=1e-9, abs=1e-13)
    slope = (naive(pull[0] + 1e-5, depth) - naive(pull[0] - 1e-5, depth)) / 2e-5
    assert bias.link_slope(pull, depth)[0] == pytest.approx(slope, rel=1e-5)  # central differences
    assert bias.inverse_link(found, depth)[0] == pytest.approx(pull[0], rel=1e-9)
    edge = (1 - 1e-12) * depth / (depth - 2)
    root = brentq(lambda x: naive(x, depth) - found[0], -edge, edge, xtol=1e-14)
    assert bias.inverse_link(found, depth)[0] == pytest.approx(root, rel=1e-8, abs=1e-12)


def test_depth_two_is_the_limit_of_deeper_ones():
    pull = np.linspace(-5, 5, 11)
    np.testing.assert_allclose(bias.link(pull, 2), 2 * np.sinh(pull))
    np.testing.assert_allclose(bias.link_slope(pull, 2), 2 * np.cosh(pull))
    np.testing.assert_allclose(bias.inverse_link(2 * np.sinh(pull), 2), pull, atol=1e-15)
    for function in (bias.link, bias.link_slope, bias.inverse_link):
        np.testing.assert_allclose(function(pull, 2 + 1e-8), function(pull, 2), rtol=1e-6)
    tiny = np.array([1e-12, 1e-9])
    for depth in (2, 3, 4, 6):
        np.testing.assert_allclose(bias.link(tiny, depth), 2 * tiny, rtol=1e-14)
        np.testing.assert_allclose(bias.inverse_link(2 * tiny, depth), tiny, rtol=1e-14)


@given(depths, scales(0.3, 3), st.floats(0.01, 10))
def test_the_potential_is_the_integral_of_the_inverse_link(depth, scale, size):
    expected, _ = quad(lambda b: bias.inverse_link(np.array([b / scale**depth]), depth)[0], 0, size, epsabs=1e-11)
    assert bias.potential(np.array([-size]), scale, depth) == pytest.approx(expected, rel=1e-8)
    if depth == 2:
        z = size / scale**2
        classical = scale**2 * (2 - np.sqrt(4 + z**2) + z * np.arcsinh(z / 2))
        assert bias.potential(np.array([size]), scale) == pytest.approx(classical, rel=1e-9)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_lazy_limit_is_the_least_norm_and_departs_as_foreseen(depth):
    """What is left after the first order is of the second, alpha^-4D: both by a factor of alpha."""
    task, left = Task(5, 12), []
    least = bias.least_norm(*task.data)
    np.testing.assert_allclose(least, np.linalg.pinv(task.data[0]) @ task.data[1], atol=1e-13)
    for scale in (2 ** (1 / depth), 4 ** (1 / depth)):
        moved = bias.diagonal_limit(*task.data, scale, depth) - least
        foreseen = bias.lazy_departure(*task.data, scale, depth)
        left.append(np.linalg.norm(moved - foreseen) / np.linalg.norm(foreseen))
        ratio = bias.tangent_weights(least + moved, scale, depth) / (2 * depth**2 * scale ** (2 * depth - 2))
        kappa = (depth - 1) * (3 * depth - 4) / (3 * depth**2)
        share = 3 * kappa / (4 * scale ** (2 * depth)) * least**2
        np.testing.assert_allclose(ratio - 1, share, atol=0.1 * share.max() * scale ** (-2 * depth) * 4)
    assert left[1] < 0.01
    assert left[0] / left[1] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(("depth", "scale"), [(3, 1e-3), (4, 0.01), (6, 0.1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_rich_limit_is_the_least_l1_norm_and_departs_as_foreseen(depth, scale, seed):
    """What is left is of the next order, alpha^{D-2} more, and rounding of 1 - |x| / p, itself alpha^{D-2}."""
    task, left = Task(6, 15, seed, noise=1.0), []
    for alpha in (scale, scale / 2):
        foreseen = bias.rich_excess(task.data[0], task.sparse, alpha, depth)
        excess = np.abs(bias.diagonal_limit(*task.data, alpha, depth)).sum() - np.abs(task.sparse).sum()
        left.append(excess / foreseen - 1)
    assert abs(left[0]) < 0.2
    assert abs(left[1]) < 1.2 * abs(left[0]) / 2 ** (depth - 2) + 1e-15 / alpha ** (depth - 2) / foreseen


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_depth_two_goes_to_the_least_l1_norm_as_a_power_too(seed):
    """What is left is smaller by the ratio of inactive coefficients to active ones. Its powers may need tiny starts."""
    task = Task(6, 15, seed, noise=1.0)
    tiny = [(scale, bias.rich_excess(task.data[0], task.sparse, scale, 2)) for scale in 0.1 ** np.arange(1, 140)]
    scale, foreseen = next(pair for pair in tiny if pair[1] < 1e-7)
    excess = np.abs(bias.diagonal_limit(*task.data, float(scale), 2)).sum() - np.abs(task.sparse).sum()
    assert excess == pytest.approx(foreseen, rel=3e-3)


@settings(max_examples=30)
@given(tasks, depths, scales(1e-3, 3))
def test_excess_l1_norm_is_within_the_bound(task, depth, scale):
    scale = max(scale, 1e-3 ** (1 / max(depth - 2, 1e-9)))
    found = bias.diagonal_limit(*task.data, scale, depth)
    excess = np.abs(found).sum() - np.abs(task.sparse).sum()
    assert excess <= bias.l1_bound(found, scale, depth) + 1e-9
    assert bias.l1_bound(0 * found, scale, depth) == 0


@pytest.mark.parametrize(("depth", "scale", "share"), [(2, 1e-60, 0.7), (3, 1e-4, 0.1), (4, 1e-2, 0.15)])
def test_the_bound_has_the_right_power_of_alpha_over_all_problems(depth, scale, share):
    """beta_1 + (1 - gap) beta_2 = 1 with the worst gap; for D = 2 the excess is W(1/e) = 0.2785 over ln(1/alpha^2)."""
    unit = -1 / np.log(scale**2) if depth == 2 else scale ** (depth - 2)
    limits = [
        bias.diagonal_limit(np.array([[1.0, 1 - gap]]), np.ones(1), scale, depth)
        for gap in unit * np.geomspace(0.1, 10, 60)
    ]
    worst = max(limits, key=np.sum)
    assert np.sum(worst) - 1 >= share * bias.l1_bound(worst, scale, depth)
    if depth == 2:
        assert (np.sum(worst) - 1) / unit == pytest.approx(0.2785, rel=0.01)


def test_transition_of_the_reference_problem():
    """n = 10, d = 30, 3-sparse: from the l2 solution, off by 1e-5 at alpha = 10, to l1; a power for D > 2."""
    task = Task(10, 30, noise=0.0)
    least, sparse = bias.least_norm(*task.data), task.sparse

    def excess(scale, depth):
        return np.abs(bias.diagonal_limit(*task.data, scale, depth)).sum() / np.abs(sparse).sum() - 1

    assert np.linalg.norm(bias.diagonal_limit(*task.data, 10.0, 2) - least) < 1e-4 * np.linalg.norm(least)
    two, three = ([excess(scale, depth) for scale in (1.0, 0.3, 0.1, 0.03)] for depth in (2, 3))
    assert two[0] > two[1] > two[2] > two[3] > three[3] > 0
    assert all(a > b for a, b in zip(two[1:], three[1:], strict=True))


@st.composite
def commuting(draw):
    """Measurements with common eigenvectors, some of them degenerate, and a positive definite X."""
    size, count, seed = draw(st.integers(2, 6)), draw(st.integers(1, 3)), draw(st.integers(0, 999))
    rng = np.random.default_rng(seed)
    frame, spectra = haar(size, size, rng), rng.standard_normal((min(count, size - 1), size))
    spectra[:, 0] = spectra[:, 1] if len(spectra) < size - 1 else spectra[:, 0]
    measurements = np.stack([frame * spectrum @ frame.T for spectrum in spectra])
    return measurements, spectra @ rng.exponential(size=size), frame, spectra


@settings(max_examples=25)
@given(commuting(), st.sampled_from([0.1, 1.0]))
def test_commuting_flow_ends_at_the_limit(case, scale):
    measurements, targets, _, _ = case
    size = measurements.shape[1]

    def missed(flat):
        factor = flat.reshape(size, size)
        return np.tensordot(measurements, factor @ factor.T, 2) - targets

    def velocity(_, flat):
        return -2 * (np.tensordot(missed(flat), measurements, 1) @ flat.reshape(size, size)).ravel()

    def left(_, flat):
        return np.linalg.norm(missed(flat)) - 1e-9 * np.linalg.norm(targets)

    left.terminal = True
    start = scale * np.eye(size).ravel()
    run = solve_ivp(velocity, (0, 1e40), start, "DOP853", events=left, rtol=1e-11, atol=1e-13)
    factor = run.y[:, -1].reshape(size, size)
    assert run.status == 1
    assert_same(bias.commuting_limit(measurements, targets, scale), factor @ factor.T, 10 * FLOW)


@given(commuting(), scales(0.1, 10))
def test_commuting_limit_has_its_logarithm_in_the_span(case, scale):
    measurements, targets, frame, spectra = case
    found = bias.commuting_limit(measurements, targets, scale)
    assert_same(np.tensordot(measurements, found, 2), targets, IDENTITY)
    values = np.diag(frame.T @ found @ frame)
    rounded = 1e-14 * values.max() / np.abs(values).min()  # of the least of them
    assume(rounded < 1e-3)
    logs = np.log(values / scale**2)
    fitted = spectra.T @ np.linalg.lstsq(spectra.T, logs, rcond=None)[0]
    np.testing.assert_allclose(fitted, logs, atol=IDENTITY + rounded)


def test_small_starts_have_the_least_trace():
    """Off by a power of alpha, as the l1 norm for D = 2."""
    rng = np.random.default_rng(3)
    frame, spectra = haar(6, 6, rng), rng.standard_normal((2, 6))
    targets = spectra @ rng.exponential(size=6)
    measurements = np.stack([frame * spectrum @ frame.T for spectrum in spectra])
    least = linprog(np.ones(6), A_eq=spectra, b_eq=targets).fun
    scales = (1.0, 0.1, 0.01, 1e-3, 1e-4)
    excess = [np.trace(bias.commuting_limit(measurements, targets, scale)) / least - 1 for scale in scales]
    assert all(0 < later < sooner for sooner, later in pairwise(excess))
    assert excess[-1] < 0.01


@given(st.integers(2, 5), st.integers(0, 99))
def test_simulated_steps_and_kernels_are_those_of_autograd(depth, seed):
    rng, task = np.random.default_rng(seed), Task(3, 5, seed)
    weights, (inputs, targets) = rng.uniform(0.2, 1.5, (2, 5)), task.data
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)

    def outputs(w):
        return x @ (w[0] ** depth - w[1] ** depth)

    w = torch.from_numpy(weights)
    slopes = torch.autograd.functional.jacobian(outputs, w).reshape(3, -1)
    np.testing.assert_allclose(diagonal.kernel(weights, inputs, depth), slopes @ slopes.T, rtol=1e-12)
    gradient = torch.func.grad(lambda w: (outputs(w) - y).square().sum() / 2)(w)
    step = diagonal.gradient_descent(inputs, targets, depth, 0.1)
    np.testing.assert_allclose(step(weights), weights - 0.1 * gradient.numpy(), rtol=1e-12)


@pytest.mark.parametrize("depth", [2, 3])
def test_descent_ends_off_the_limit_by_its_step(depth):
    task, off = Task(3, 6), []
    limit = bias.diagonal_limit(*task.data, 0.5, depth)
    for lr in (4e-3, 2e-3):
        step = diagonal.gradient_descent(*task.data, depth, lr)
        *_, end = rollout(step, diagonal.start(0.5, task.d), 16000)
        off.append(np.abs(diagonal.coefficients(end, depth) - limit).max())
    assert off[0] < 0.05
    assert off[0] / off[1] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(("scale", "depth"), [(1.01, 1), (0.99, 1), (1, 1.01)])
def test_one_percent_in_scale_or_depth_is_seen(scale, depth):
    task = Task(10, 30)
    found = bias.diagonal_limit(*task.data, 0.1 * scale, 3 * depth)
    assert np.abs(found - bias.diagonal_limit(*task.data, 0.1, 3)).max() > 1e-4


SQUARE, ONES, TWO = np.eye(2), np.ones(2), np.stack([np.diag([1.0, 2.0]), np.array([[0.0, 1.0], [1.0, 0.0]])])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bias.diagonal_limit(np.ones((2, 3)), ONES, 1.0, 2), "2 equations of rank below that: leave out"),
        (lambda: bias.diagonal_limit(np.full((1, 3), np.nan), ONES[:1], 1.0, 2), "rank below"),
        (lambda: bias.diagonal_limit(SQUARE, ONES, 0.0, 2), "scale = 0.0, depth = 2: take a finite alpha > 0"),
        (lambda: bias.diagonal_limit(*Task(10, 30).data, 1e-3, 8), "too close to p for its rounding; take a larger"),
        (lambda: bias.link(ONES, 1.9), "depth = 1.9: take a finite alpha > 0, and a finite D >= 2"),
        (lambda: bias.inverse_link(ONES, 1.9), "depth = 1.9"),
        (lambda: bias.potential(ONES, np.inf), "scale = inf"),
        (lambda: bias.least_norm(np.ones((3, 2)), np.ones(3)), "3 equations of rank below"),
        (lambda: bias.rich_excess(SQUARE, np.array([1.0, 0.0]), 0.1, 2), "sparse has 1 entries for 2 equations"),
        (lambda: bias.rich_excess(np.array([[1.0, 2.0]]), np.array([1.0, 0.0]), 0.1, 2), "certificate 2, not below 1"),
        (lambda: bias.commuting_limit(TWO, ONES, 1.0), "they do not commute, or are not symmetric"),
        (lambda: bias.commuting_limit(TWO[:1], -ONES[:1], 1.0), "no positive definite X has them; measure one"),
        (lambda: diagonal.start(0.0, 3), "w = 0 never moves"),
        (
            lambda: diagonal.flow(np.ones((2, 1)), np.array([1.0, 2.0]), np.ones((2, 1)), 2),
            "2 equations, until = 1e-10: take independent",
        ),
    ],
)
def test_what_is_out_of_range_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
