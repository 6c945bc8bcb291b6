"""Closed forms of gradient flow against flows that are integrated from the loss, by code that knows no mode.

Tolerance: DOP853 at rtol 1e-11 keeps 1e-8 over the few e-foldings between here and a_0 (measured at 1e-11 to 1e-9);
identities without a flow hold to rounding, 1e-12 on numbers of order 1. A 1 % error in a formula shows at 1e-4.
"""

from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from sims.dynamics import gradient_descent, gradients
from sims.losses import Completion, Factorization
from sims.start import haar, observed
from theory import modes
from theory.invariants import balance_drift
from theory.modes import (
    balance,
    balanced_rate,
    end_to_end_flow,
    half_time,
    kernel_growth,
    logistic,
    logistic_lag,
    scalar_kernel,
    singular_value_rates,
    two_layer_flow,
    two_layer_gram,
    unbalanced_mode,
)
from theory.problem import Problem

ATOL = 1e-8
ROUNDING = 1e-12
SEEDS = st.integers(0, 2**16)
SIGNALS = st.floats(0.2, 5)
IMBALANCES = st.one_of(st.floats(0.05, 30), st.floats(-30, -0.05))


def chained(weights):
    return reduce(lambda below, weight: weight @ below, weights)


def descents(weights, gradient):
    """-dl/dW_l for dl/dP = gradient."""
    eyes = [np.eye(weights[0].shape[1]), np.eye(weights[-1].shape[0])]
    above = [chained([*weights[layer + 1 :], eyes[1]]) for layer in range(len(weights))]
    below = [chained([eyes[0], *weights[:layer]]) for layer in range(len(weights))]
    return tuple(-(a.T @ gradient @ b.T) for a, b in zip(above, below, strict=True))


def flowed(weights, gradient, times, rtol=1e-11):
    """The weights at each time along the flow of a loss with this gradient in the product; a restart at each time."""
    shapes = [weight.shape for weight in weights]
    cuts = np.cumsum([rows * cols for rows, cols in shapes])[:-1]

    def unpacked(flat):
        return tuple(part.reshape(shape) for part, shape in zip(np.split(flat, cuts), shapes, strict=True))

    def rate(_, flat):
        layers = unpacked(flat)
        return np.concatenate([part.ravel() for part in descents(layers, gradient(chained(layers)))])

    state, kept = np.concatenate([weight.ravel() for weight in weights]), []
    for before, after in pairwise([0.0, *times]):
        if after > before:  # the end of a run, not its interpolation
            state = solve_ivp(rate, (before, after), state, method="DOP853", rtol=rtol, atol=1e-14).y[:, -1]
        kept.append(unpacked(state))
    return kept


def scalars(product, imbalance):
    """w_1 and w_2 as layers of one by one."""
    larger = np.sqrt((np.hypot(imbalance, 2 * product) + abs(imbalance)) / 2)
    pair = (product / larger, larger) if imbalance >= 0 else (larger, product / larger)
    return tuple(np.array([[weight]]) for weight in pair)


def scalar_flow(signal, product, imbalance, times):
    run = flowed(scalars(product, imbalance), lambda end: end - signal, times)
    return np.array([[float(w[0, 0]) for w in pair] for pair in run]).T


@given(SIGNALS, st.floats(1e-4, 2))
def test_a_balanced_mode_is_logistic(signal, share):
    times = np.linspace(0, 4 / signal, 5)
    w1, w2 = scalar_flow(signal, share * signal, 0.0, times)
    np.testing.assert_allclose(logistic(signal, share * signal, times), w1 * w2, rtol=ATOL)


@given(SIGNALS, st.floats(1e-9, 0.5))
def test_half_time_is_when_half_is_learned(signal, share):
    time = half_time(signal, share * signal)
    np.testing.assert_allclose(logistic(signal, share * signal, np.array([time])), signal / 2, rtol=ROUNDING)


@given(SIGNALS, st.floats(-1.5, 1.5), IMBALANCES)
@example(3.0, 0.0, 100.0)
@example(0.5, -1.5, 0.05)
def test_an_unbalanced_mode_in_closed_form(signal, share, imbalance):
    start = share * signal
    times = np.linspace(0, 12 / np.hypot(imbalance, 2 * signal), 6)
    w1, w2 = scalar_flow(signal, start, imbalance, times)
    found = unbalanced_mode(signal, start, imbalance, times)
    np.testing.assert_allclose(found, w1 * w2, atol=ATOL)
    np.testing.assert_allclose(w2**2 - w1**2, imbalance, atol=ATOL)
    np.testing.assert_allclose(scalar_kernel(found, imbalance), w1**2 + w2**2, rtol=ATOL)


@given(st.floats(0, 5), st.floats(1e-12, 10), st.floats(0, 1e-7))
def test_without_imbalance_it_is_the_logistic(signal, start, imbalance):
    times = np.array([0.0, 0.1, 1.0, 5.0, 1e3])
    expected = logistic(signal, start, times)
    np.testing.assert_allclose(unbalanced_mode(signal, start, 0.0, times), expected, rtol=ROUNDING)
    assume(start > 1e3 * imbalance)  # first order in (lambda / a_0)^2 before, and none after
    np.testing.assert_allclose(unbalanced_mode(signal, start, imbalance, times), expected, rtol=1e-5)


@given(st.floats(0, 5), st.floats(-5, 5))
def test_with_much_imbalance_it_is_exponential(signal, start):
    """The kernel is |lambda| up to 2 (a / lambda)^2, 5e-7 here."""
    times = np.linspace(0, 5e-4, 6)
    lazy = signal - (signal - start) * np.exp(-1e4 * times)
    np.testing.assert_allclose(unbalanced_mode(signal, start, -1e4, times), lazy, atol=1e-5)


@pytest.mark.parametrize(("imbalance", "growth"), [(0.0, 300.0), (1.0, 6.1), (10.0, 1.17), (100.0, 1.002)])
def test_imbalance_alone_makes_the_kernel_stand_still(imbalance, growth):
    """s = 3, a_0 = 0.01: digits of specification, and the kernel that a flow ends with, over its first."""
    found = kernel_growth(3.0, 0.01, imbalance)
    assert found == pytest.approx(growth, rel=5e-3)
    w1, w2 = scalar_flow(3.0, 0.01, imbalance, np.array([0.0, 30 / np.hypot(imbalance, 6)]))
    kernel = w1**2 + w2**2
    assert found == pytest.approx(kernel[1] / kernel[0], rel=ATOL)


def test_nothing_overflows_and_small_things_keep_their_digits():
    times = np.array([0.0, 1e-3, 1.0, 1e3, 1e9])
    np.testing.assert_allclose(logistic(3.0, 1e-300, times)[[0, -1]], [1e-300, 3], rtol=ROUNDING)
    assert logistic(0.0, 0.5, times).tolist() == pytest.approx((1 / (2 + 2 * times)).tolist(), rel=ROUNDING)
    for start, imbalance in ((1e-200, 50.0), (1e-9, 1e-9), (-4.0, 1e-6), (0.0, 1e-100), (5.0, 0.0)):
        found = unbalanced_mode(3.0, start, imbalance, times)
        np.testing.assert_allclose(found[[0, -1]], [start, 3.0], rtol=ROUNDING)
        assert (np.diff(found) * np.sign(3 - start) >= -1e-15).all()
    tiny = unbalanced_mode(0.0, 1e-200, 50.0, np.array([0.1]))
    np.testing.assert_allclose(tiny, 1e-200 * np.exp(-5.0), rtol=ROUNDING)


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(0, 2), st.integers(0, 2), SEEDS)
def test_modes_of_an_aligned_start_do_not_see_each_other(rank, wider, taller, seed):
    """Rectangular layers; descent stays aligned, too, and leaves the logistic by eta times its lag."""
    rng = np.random.default_rng(seed)
    u, v, r = haar(rank + taller, rank, rng), haar(rank + wider, rank, rng), haar(rank + 1, rank, rng)
    signals, starts = rng.uniform(0.5, 4, rank), rng.uniform(1e-3, 0.3, rank)
    weights, target = (r * np.sqrt(starts) @ v.T, u * np.sqrt(starts) @ r.T), u * signals @ v.T
    expected = np.array([logistic(s, a, np.array([0.4]))[0] for s, a in zip(signals, starts, strict=True)])
    (after,) = flowed(weights, lambda end: end - target, [0.4])
    np.testing.assert_allclose(chained(after), u * expected @ v.T, atol=ATOL)
    step = gradient_descent(Factorization(target), 2e-3)
    for _ in range(200):
        weights = step(weights)
    found = u.T @ chained(weights) @ v
    np.testing.assert_allclose(found, np.diag(np.diag(found)), atol=ROUNDING)
    lags = [2e-3 * logistic_lag(s, a, np.array([0.4]))[0] for s, a in zip(signals, starts, strict=True)]
    np.testing.assert_allclose(np.diag(found) - expected, lags, atol=2e-4)  # second order in eta s <= 8e-3


@given(SIGNALS, st.floats(1e-4, 0.9), st.floats(0.2, 6))
def test_descent_leaves_the_logistic_by_its_lag_to_second_order(signal, share, time):
    """Halving eta divides what is left by 4, unless it is lost in rounding or passes zero; here, it is bounded."""
    time, remainders = time / signal, []
    for steps in (400, 800):
        lr, mode = time / steps, share * signal
        for _ in range(steps):
            mode *= (1 + lr * (signal - mode)) ** 2
        times = np.array([time])
        lag = logistic_lag(signal, share * signal, times)[0]
        remainders.append(
            (mode - logistic(signal, share * signal, times)[0] - lr * lag) / (signal * (lr * signal) ** 2)
        )
        assert abs(lag) < 10 * signal**2
    assert np.abs(remainders).max() < 10  # of order 1, while the lag itself would be 1 / (eta s) = 70 to 4000 of them
    assert remainders[0] == pytest.approx(remainders[1], abs=0.1)


@st.composite
def two_layers(draw, largest=4):
    """W_1, W_2 with W_2^T W_2 - W_1 W_1^T = lambda I, of any shapes that have one, and a target of any rank."""
    inputs, outputs, hidden = (draw(st.integers(1, largest)) for _ in range(3))
    imbalance = draw(st.one_of(st.just(0.0), IMBALANCES))
    if imbalance:
        hidden = min(hidden, outputs if imbalance > 0 else inputs)
    rng = np.random.default_rng(draw(SEEDS))
    least, most = np.zeros(hidden), min(hidden, inputs, outputs)
    least[:most] = draw(st.sampled_from([0.03, 0.5])) * rng.uniform(
        0.5, 1.5, most
    )  # singular values of the smaller one
    ones, twos = (np.sqrt(least**2 + max(sign * imbalance, 0)) for sign in (-1, 1))
    turn = haar(hidden, hidden, rng)
    first = turn @ _diagonal(ones, hidden, inputs) @ haar(inputs, inputs, rng)
    second = haar(outputs, outputs, rng) @ _diagonal(twos, outputs, hidden) @ turn.T
    rank = draw(st.integers(0, min(inputs, outputs)))
    target = haar(outputs, rank, rng) * rng.uniform(0.2, 3, rank) @ haar(inputs, rank, rng).T
    return first, second, target, imbalance


def _diagonal(values, rows, cols):
    matrix = np.zeros((rows, cols))
    np.fill_diagonal(matrix, values)
    return matrix


@given(two_layers())
def test_two_layers_from_any_lambda_balanced_start(case):
    target, imbalance = case[2:]
    times = np.array([0.0, 0.3, 0.3, 1.0, 2.5]) / max(1.0, abs(imbalance) / 4)
    products, grams = two_layer_flow(*case[:3], times), two_layer_gram(*case[:3], times)
    inputs = target.shape[1]
    for product, gram, (w1, w2) in zip(products, grams, flowed(case[:2], lambda end: end - target, times), strict=True):
        np.testing.assert_allclose(product, w2 @ w1, atol=ATOL)
        np.testing.assert_allclose(gram[:inputs, :inputs], w1.T @ w1, atol=ATOL)
        np.testing.assert_allclose(gram[inputs:, inputs:], w2 @ w2.T, atol=ATOL)


@given(SIGNALS, st.floats(0.01, 1), st.one_of(st.just(0.0), IMBALANCES), st.floats(0, 500))
def test_two_layers_of_one_by_one_are_the_mode(signal, start, imbalance, time):
    times = np.array([time])
    (found,) = two_layer_flow(*scalars(start, imbalance), np.array([[signal]]), times)
    np.testing.assert_allclose(found[0], unbalanced_mode(signal, start, imbalance, times), atol=1e-11)


def test_modes_of_very_different_speed_survive_long_times(monkeypatch):
    """In one piece the formula loses a slow mode in the rounding of a fast one before it is learned, or overflows."""
    rng = np.random.default_rng(0)
    left, right, turn = haar(3, 2, rng), haar(3, 2, rng), haar(2, 2, rng)
    start = (1e-2 * turn @ right.T, 1e-2 * left @ turn.T)
    target, times = left * [3.0, 0.3] @ right.T, np.array([13.0, 40.0, 1e3])
    expected = [logistic(signal, 1e-4, times) for signal in (3.0, 0.3)]
    found = two_layer_flow(*start, target, times)
    np.testing.assert_allclose(np.diagonal(left.T @ found @ right, axis1=1, axis2=2).T, expected, atol=1e-11)
    np.testing.assert_allclose(found[-1], target, atol=ROUNDING)
    turned = haar(3, 3, rng)  # the same, but not aligned
    start = (start[0] @ turned, start[1])
    pieces = two_layer_flow(*start, target, times[:1])[0]
    (after,) = flowed(start, lambda end: end - target, times[:1], rtol=1e-13)
    np.testing.assert_allclose(pieces, chained(after), atol=ATOL)
    monkeypatch.setattr(modes, "EFOLDS", 1e3)
    assert np.abs(two_layer_flow(*start, target, times[:1])[0] - pieces).max() > 1e-3


@st.composite
def layers(draw, balanced):
    """Layers of any shapes; balanced ones have singular vectors in common, and all those of the product nonzero."""
    depth, rng = draw(st.integers(2, 5)), np.random.default_rng(draw(SEEDS))
    dims = draw(st.lists(st.integers(1, 5), min_size=depth + 1, max_size=depth + 1))
    if not balanced:
        return tuple(rng.standard_normal((rows, cols)) / 2 for cols, rows in pairwise(dims)), rng
    rank = draw(st.integers(1, min(dims)))
    frames = [haar(dim, rank, rng) for dim in dims]
    sigma = 0.2 + np.cumsum(rng.uniform(0.2, 1, rank))[::-1]  # at a distance from each other
    return tuple(after * sigma @ before.T for before, after in pairwise(frames)), rng


def any_loss(weights, rng):
    shape = (len(weights[-1]), weights[0].shape[1])
    return Completion(rng.standard_normal(shape), 1.0 * observed(shape, 0.7, rng))


@given(layers(balanced=False), st.floats(1e-3, 0.5))
def test_a_step_moves_the_balance_by_its_drift_and_the_flow_keeps_it(case, lr):
    """Any shapes, start and loss of the product; the drift is exact for a step of any size."""
    weights, rng = case
    loss = any_loss(weights, rng)
    problem = Problem(lr=lr * 1e-3, scales=0.1)  # the drift takes eta from it; beyond 1e-3 this one would warn
    stepped = gradient_descent(loss, problem.lr)(weights)
    found = balance(stepped)
    for drifted, foreseen in zip(found, balance_drift(problem, weights, gradients(loss, weights)), strict=True):
        np.testing.assert_allclose(drifted, foreseen, atol=1e-14)
    (after,) = flowed(weights, loss.gradient, [0.5])
    for kept, first in zip(balance(after), balance(weights), strict=True):
        np.testing.assert_allclose(kept, first, atol=1e-9)


@given(layers(balanced=True))
def test_balanced_layers_move_the_product_by_the_end_to_end_flow(case):
    """The product rule on all layers, for products of any rank; singular values move by u^T P' v."""
    weights, rng = case
    product, depth = chained(weights), len(weights)
    gradient = any_loss(weights, rng).gradient(product)
    moved = descents(weights, gradient)
    rate = sum(chained([*weights[:layer], moved[layer], *weights[layer + 1 :]]) for layer in range(depth))
    scale = 1 + np.linalg.norm(product) ** 2 * np.linalg.norm(gradient)
    np.testing.assert_allclose(end_to_end_flow(product, gradient, depth), rate, atol=ROUNDING * scale)
    left, _, right = np.linalg.svd(product, full_matrices=False)
    foreseen = singular_value_rates(product, gradient, depth)
    count = len(foreseen)
    assert count == np.linalg.matrix_rank(product)
    np.testing.assert_allclose(foreseen, np.diag(left[:, :count].T @ rate @ right[:count].T), atol=ROUNDING * scale)
    step = 1e-6 / scale
    ahead, behind = (np.linalg.svd(product + sign * step * rate, compute_uv=False)[:count] for sign in (1, -1))
    np.testing.assert_allclose((ahead - behind) / (2 * step), foreseen, atol=1e-7 * scale)


@given(SIGNALS, st.floats(0.02, 1.5), st.integers(2, 6))
def test_a_balanced_mode_of_any_depth(signal, share, depth):
    """The flow of N scalar layers against the reduced equation; and the same as a singular value's."""
    start, end = share * signal, [2 / (depth * signal ** (2 - 2 / depth))]
    weights = (np.array([[start ** (1 / depth)]]),) * depth
    ((*after,),) = flowed(weights, lambda product: product - signal, end)
    reduced = solve_ivp(
        lambda _, a: balanced_rate(a, signal, depth), (0, end[0]), [start], method="DOP853", rtol=1e-11, atol=1e-14
    )
    np.testing.assert_allclose(reduced.y[0, -1], chained(after)[0, 0], rtol=ATOL)
    single = np.array([start])
    rates = singular_value_rates(single[:, None], single[:, None] - signal, depth)
    np.testing.assert_allclose(rates, balanced_rate(single, signal, depth), rtol=ROUNDING)
    flat = balanced_rate(single, signal, 2)
    np.testing.assert_allclose(flat, scalar_kernel(single, 0.0) * (signal - single), rtol=ROUNDING)


def test_rounding_in_a_zero_mode_is_not_raised_to_a_fractional_power():
    """(1e-16)^(1/3) is 5e-6, which is where an eigendecomposition of P P^T ends."""
    rng = np.random.default_rng(0)
    frames = [haar(6, 2, rng) for _ in range(4)]
    weights = tuple(after * [1.2, 0.7] @ before.T for before, after in pairwise(frames))
    gradient = rng.standard_normal((6, 6))
    moved = descents(weights, gradient)
    rate = sum(chained([*weights[:layer], moved[layer], *weights[layer + 1 :]]) for layer in range(3))
    np.testing.assert_allclose(end_to_end_flow(chained(weights), gradient, 3), rate, atol=ROUNDING)
    assert not end_to_end_flow(np.zeros((3, 2)), np.ones((3, 2)), 3).any()


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_one_percent_in_any_argument_is_seen(factor):
    times = np.array([0.5, 1.0])
    w1, w2 = scalar_flow(3.0, 0.05, 2.0, times)
    for signal, start, imbalance in ((3 * factor, 0.05, 2.0), (3.0, 0.05 * factor, 2.0), (3.0, 0.05, 2.0 * factor)):
        assert np.abs(unbalanced_mode(signal, start, imbalance, times) - w1 * w2).max() > 1e-4


TIMES = np.array([0.0, 1.0])
ONE = np.ones((1, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: logistic(-1.0, 0.1, TIMES), "signal = -1.0, start = 0.1"),
        (lambda: logistic(1.0, 0.0, TIMES), "a mode never passes zero; take start > 0, or an imbalance"),
        (lambda: logistic(1.0, 0.1, -TIMES), "take finite times, ascending, >= 0"),
        (lambda: unbalanced_mode(1.0, -0.1, 0.0, TIMES), "never passes zero"),
        (lambda: unbalanced_mode(1.0, 0.1, np.inf, TIMES), "imbalance = inf: take finite ones"),
        (lambda: half_time(1.0, 0.6), "half is passed on the way up only; take 0 < a_0 <= s / 2"),
        (lambda: kernel_growth(1.0, 0.0, 0.0), "w = 0 has no kernel to grow"),
        (lambda: two_layer_flow(np.eye(2), np.diag([1.0, 2.0]), np.eye(2), TIMES), "is for lambda-balanced starts"),
        (lambda: two_layer_flow(ONE, ONE, ONE, TIMES[::-1]), "take finite times, ascending, >= 0"),
        (lambda: two_layer_flow(ONE, ONE, ONE, np.array([np.nan])), "take finite times"),
    ],
)
def test_what_the_solutions_do_not_cover_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
