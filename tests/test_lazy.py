"""Lazy predictions, against descent and flow in the parameters themselves, which see no kernel."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from sims.kernel import empirical_ntk
from theory.lazy import (
    descent_movement,
    descent_prediction,
    descent_residual,
    flow_prediction,
    flow_residual,
    movement,
    parameter_norm,
    two_layer_drift,
)
from theory.ntk import infinite_width, linear_kernel

TIGHT = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-13}


@st.composite
def linear_models(draw, smallest=1):
    """J of n examples and J_* of 3 test points in p parameters, and r_0; for p < n the kernel is singular."""
    examples, parameters = draw(st.integers(1, 7)), draw(st.integers(smallest, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    jacobian = rng.standard_normal((examples + 3, parameters)) * draw(st.sampled_from([0.1, 1.0, 3.0]))
    return jacobian[:examples], jacobian[examples:], rng.standard_normal(examples)


def top(jacobian):
    return np.linalg.norm(jacobian, 2) ** 2


@given(linear_models(), st.floats(0.01, 2.2), st.integers(1, 40))
def test_descent_on_the_parameters_follows_the_closed_form(model, share, steps):
    """Up to eta = 2.2 / lam_max, where it diverges. Tolerance: rounding, of about one unit for each step."""
    jacobian, tests, residual = model
    kernel, lr = jacobian @ jacobian.T, share / top(jacobian)
    theta = np.zeros((steps + 1, jacobian.shape[1]))
    for step in range(steps):
        theta[step + 1] = theta[step] - lr * jacobian.T @ (jacobian @ theta[step] + residual)
    counts = np.arange(steps + 1)
    size = max(1.0, np.abs(theta).max() * math.sqrt(top(jacobian)), np.abs(residual).max())
    atol = 1e-12 * size * (1 + np.abs(tests).max() / math.sqrt(top(jacobian)))
    found = descent_residual(kernel, residual, lr, counts)
    np.testing.assert_allclose(found, residual + theta @ jacobian.T, rtol=0, atol=atol)
    predicted = descent_prediction(kernel, tests @ jacobian.T, residual, lr, counts)
    np.testing.assert_allclose(predicted, theta @ tests.T, rtol=0, atol=atol)
    moved = descent_movement(kernel, residual, lr, counts)
    np.testing.assert_allclose(moved, np.linalg.norm(theta, axis=1), rtol=0, atol=atol / math.sqrt(top(jacobian)))


@given(linear_models(), st.floats(0.1, 30))
def test_flow_of_the_parameters_follows_the_closed_form(model, span):
    """The integrator keeps 1e-11 a step; 1e-9 in all, relative to the largest output."""
    jacobian, tests, residual = model
    kernel, times = jacobian @ jacobian.T, np.linspace(0, span / top(jacobian), 7)
    flow = solve_ivp(
        lambda _, theta: -jacobian.T @ (jacobian @ theta + residual),
        (0, times[-1]),
        np.zeros(jacobian.shape[1]),
        t_eval=times,
        **TIGHT,
    )
    theta = flow.y.T
    scale = 1 + np.abs(theta).max() * np.abs(tests).max()
    np.testing.assert_allclose(flow_residual(kernel, residual, times), residual + theta @ jacobian.T, atol=1e-9)
    predicted = flow_prediction(kernel, tests @ jacobian.T, residual, times)
    np.testing.assert_allclose(predicted, theta @ tests.T, rtol=0, atol=1e-9 * scale)
    norms = np.linalg.norm(theta, axis=1)
    np.testing.assert_allclose(movement(kernel, residual, times), norms, rtol=0, atol=1e-9 * (1 + norms.max()))


@given(linear_models())
def test_flow_is_the_matrix_exponential(model):
    jacobian, _, residual = model
    kernel = jacobian @ jacobian.T
    found = flow_residual(kernel, residual, np.array([0.0, 0.7]))
    np.testing.assert_allclose(found, [residual, expm(-0.7 * kernel) @ residual], rtol=0, atol=1e-12)


@given(linear_models(), st.floats(0.3, 3))
def test_descent_lags_behind_the_flow_in_first_order(model, span):
    """By -eta t Theta^2 r_t / 2: halving eta halves the difference, and what remains is a quarter."""
    jacobian, _, residual = model
    kernel, time = jacobian @ jacobian.T, np.array([span / top(jacobian)])
    end = flow_residual(kernel, residual, time)[0]
    lag = -(time[0] ** 2) / 2000 * kernel @ kernel @ end / 2
    atol = 2e-3 * np.linalg.norm(lag) + 1e-13
    apart = [descent_residual(kernel, residual, time[0] / steps, np.array([steps]))[0] - end for steps in (2000, 4000)]
    np.testing.assert_allclose(2 * apart[1], apart[0], rtol=0, atol=atol)
    np.testing.assert_allclose(apart[0], lag, rtol=0, atol=atol)


@given(linear_models())
def test_at_the_end_the_flow_interpolates_as_far_as_it_can(model):
    """The minimum-norm solution, by the pseudo-inverse of J, which squares nothing."""
    jacobian, tests, residual = model
    values = np.linalg.svd(jacobian, compute_uv=False)
    inverse = np.linalg.pinv(jacobian, rcond=1e-9)
    assume(values[-1] > 0.02 * values[0])  # the condition of Theta, 2500 at most, is in the tolerance
    kernel, times = jacobian @ jacobian.T, np.array([60 / values[-1] ** 2])
    theta, size = -inverse @ residual, 1 / values[-1]
    found = flow_prediction(kernel, tests @ jacobian.T, residual, times)[0]
    np.testing.assert_allclose(found, tests @ theta, rtol=0, atol=1e-9 * (1 + size * np.abs(tests).max()))
    assert movement(kernel, residual, times)[0] == pytest.approx(np.linalg.norm(theta), rel=1e-9)
    left = flow_residual(kernel, residual, times)[0]
    np.testing.assert_allclose(left, residual - jacobian @ inverse @ residual, rtol=0, atol=1e-9)


def test_modes_without_a_rate_gather_time():
    """Theta = 0 while Theta_* is not, as for a cross kernel with noise: f_* = -t Theta_* r, and no 0 / 0."""
    nothing, cross, residual = np.zeros((2, 2)), np.ones((1, 2)), np.array([1.0, 2.0])
    times, steps = np.array([0.0, 3.0]), np.array([0, 6])
    np.testing.assert_array_equal(flow_prediction(nothing, cross, residual, times)[:, 0], [0, -9])
    np.testing.assert_array_equal(descent_prediction(nothing, cross, residual, 0.5, steps)[:, 0], [0, -9])
    np.testing.assert_array_equal(movement(nothing, residual, times), 0)
    np.testing.assert_array_equal(descent_movement(nothing, residual, 0.5, steps), 0)
    slow = np.diag([1e-13, 1.0])  # 1 - exp(-1e-13 t) would have three digits
    np.testing.assert_allclose(flow_prediction(slow, cross, np.array([1.0, 0]), times)[1], -3, rtol=1e-12)
    np.testing.assert_allclose(descent_prediction(slow, cross, np.array([1.0, 0]), 0.5, steps)[1], -3, rtol=1e-12)


@pytest.mark.parametrize("rounding", [1e-17, -1e-17])
def test_eigenvalues_made_by_rounding_are_zero(rounding):
    """Over times of 1e20 they would let the residual fade, or grow to e^1000, and move the parameters by 1e11."""
    kernel, residual = np.diag([1.0, rounding]), np.array([1.0, 1.0])
    np.testing.assert_array_equal(flow_residual(kernel, residual, np.array([1e20])), [[0, 1]])
    assert movement(kernel, residual, np.array([1e20]))[0] == 1


@given(st.integers(0, 2**16), st.integers(4, 30), st.sampled_from([torch.float32, torch.float64]))
def test_long_training_of_a_float32_network_moves_only_what_can_move(seed, width, dtype):
    """Linear in three features: three modes train, what is left of r_0 stays, by least squares on the features.

    1e-3: the least of the three is 0.02 of the largest or more, and 1e-7 of the largest is what float32 keeps.
    """
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(3, width, bias=False), torch.nn.Linear(width, 1, bias=False)]
    x, network = torch.randn(12, 3, dtype=dtype), torch.nn.Sequential(*layers).to(dtype).eval()
    kernel, residual = empirical_ntk(network, x)[:, 0, :, 0].numpy(), np.random.default_rng(seed).standard_normal(12)
    values = np.linalg.eigvalsh(kernel)
    assume(values[-3] > 0.02 * values[-1])
    features = x.double().numpy()
    stays = residual - features @ np.linalg.lstsq(features, residual)[0]
    least = math.sqrt((residual - stays) @ np.linalg.pinv(kernel, rcond=1e-4, hermitian=True) @ (residual - stays))
    times = np.array([1e20]) / values[-1]
    for given_as in (kernel.astype(np.float32), kernel) if dtype == torch.float32 else (kernel,):
        np.testing.assert_allclose(flow_residual(given_as, residual, times)[0], stays, rtol=0, atol=1e-3)
        assert movement(given_as, residual, times)[0] == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize(
    ("kernel", "left"),
    [
        (np.diag([1.0, 1e-7]), [0, 0]),
        (np.diag([1.0, 1e-7]).astype(np.float32), [0, 1]),
        (np.diag([1.0, 1e-5]).astype(np.float32), [0, 0]),
        (np.diag([1.0, 1e-7, -1e-7]), [0, 1, 1]),  # a kernel that shows that it was rounded
        (np.diag([1.0, 1e-5, -1e-7]), [0, 0, 1]),
    ],
)
def test_modes_below_the_precision_of_the_kernel_do_not_train(kernel, left):
    found = flow_residual(kernel, np.ones(len(kernel)), np.array([1e20]))
    np.testing.assert_array_equal(found, [left])


def test_mean_predictions_are_those_of_neural_tangents():
    """Its flow averages the loss over the four examples: t / 4 here. To the 8 decimals that were kept."""
    inputs = np.array([[1.0, 0, 0], [0, 1, 0], [0.6, 0.8, 0], [1, 2, -1]])
    tests, labels = np.array([[0.3, -0.2, 0.9], [1, 1, 1]]), np.array([1.0, -1, 0.5, 2])
    kernel, cross = infinite_width(inputs, inputs, 2).ntk, infinite_width(tests, inputs, 2).ntk
    found = flow_prediction(kernel, cross, -labels, np.array([1, 10, 1e6]) / 4)
    expected = [[0.10808750, 0.46698812], [0.12278431, 0.25615760], [0.05956953, 0.09818889]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=6e-9)


# Kernel drift

SLOPES = {  # the derivative in f of a loss with label y
    "squares": lambda f, y: f - y,
    "logistic": lambda f, y: -y / (1 + np.exp(y * f)),
    "fourth power": lambda f, y: (f - y) ** 3,
    "cosine": lambda f, y: np.sin(f - y),
}


def flowed(outer, inner, inputs, slopes, span):
    """a and W of f(x) = a.W x / sqrt(n n0) after gradient flow of the summed loss; `slopes` maps f to dloss/df."""
    shape, root = inner.shape, math.sqrt(inner.size)

    def velocity(_, theta):
        a, w = theta[: shape[0]], theta[shape[0] :].reshape(shape)
        pull = inputs.T @ slopes(inputs @ w.T @ a / root) / root
        return -np.concatenate([w @ pull, np.outer(a, pull).ravel()])

    end = solve_ivp(velocity, (0, span), np.concatenate([outer, inner.ravel()]), **TIGHT).y[:, -1]
    return end[: shape[0]], end[shape[0] :].reshape(shape)


def output_and_kernel(outer, inner, x):
    hidden, root = inner @ x, math.sqrt(inner.size)
    kernel = (hidden @ hidden + outer @ outer * (x @ x)) / root**2
    return np.array([outer @ hidden / root]), np.array([kernel])


@given(st.integers(1, 9), st.integers(1, 4), st.sampled_from(sorted(SLOPES)), st.floats(0.1, 2), st.integers(0, 2**16))
def test_the_kernel_of_one_hidden_linear_layer_drifts_as_far_as_the_output(width, features, loss, span, seed):
    """Along the flow of any loss; 1e-9 is what the integrator keeps."""
    rng = np.random.default_rng(seed)
    outer, inner = rng.standard_normal(width), rng.standard_normal((width, features))
    x, label = 2 * rng.standard_normal(features), rng.choice([-1.5, 1.5])
    before = output_and_kernel(outer, inner, x)
    after = output_and_kernel(*flowed(outer, inner, x[None], lambda f: SLOPES[loss](f, label), span), x)
    found = two_layer_drift(width, x @ x / features, before[1], before[0], after[0])
    np.testing.assert_allclose(found, after[1], rtol=1e-9)


@given(st.integers(1, 9), st.integers(2, 5), st.integers(0, 2**16))
def test_scalar_inputs_drift_together(width, examples, seed):
    rng = np.random.default_rng(seed)
    outer, inner = rng.standard_normal(width), rng.standard_normal((width, 1))
    x, labels = rng.standard_normal((2, examples))
    before = output_and_kernel(outer, inner, np.ones(1))
    after = output_and_kernel(*flowed(outer, inner, x[:, None], lambda f: f - labels, 2.0), np.ones(1))
    found = two_layer_drift(width, 1.0, before[1], before[0], after[0])
    np.testing.assert_allclose(found, after[1], rtol=1e-9)


@pytest.mark.parametrize("width", [10**3, 10**5])
def test_the_relative_drift_falls_as_one_over_the_width(width):
    square, start, end = 0.7, np.array([0.3, -0.2]), np.array([1.0, 2.0])
    kernel = np.full(2, linear_kernel(np.full((1, 1), math.sqrt(square)), np.full((1, 1), math.sqrt(square)), 1)[0, 0])
    drift = two_layer_drift(width, square, kernel, start, end) / kernel - 1
    np.testing.assert_allclose(2 * square * width * drift, end**2 - start**2, rtol=3 / width)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("widths", [(), (3,), (4, 7), (2, 2, 9)])
def test_the_norm_of_the_parameters_is_the_root_of_their_number(widths, bias):
    sizes = (5, *widths, 1)
    layers = [torch.nn.Linear(a, b, bias=bias) for a, b in pairwise(sizes)]
    count = sum(p.numel() for layer in layers for p in layer.parameters())
    assert parameter_norm(5, widths, bias=bias) == pytest.approx(math.sqrt(count), rel=1e-15)
    squares = np.random.default_rng(0).standard_normal((4000, count)) ** 2
    scores = (squares.sum(1).mean() - parameter_norm(5, widths, bias=bias) ** 2) / math.sqrt(2 * count / 4000)
    assert abs(scores) < 4


@pytest.mark.parametrize(("hidden", "exponent"), [(1, -0.5), (2, -1.0), (3, -1.0)])
def test_relative_movement_falls_with_these_powers_of_the_width(hidden, exponent):
    norms = [parameter_norm(10, (n,) * hidden) for n in (10**5, 10**6)]
    assert math.log10(norms[0] / norms[1]) == pytest.approx(exponent, abs=1e-4)


EYE, ONES = np.eye(2), np.ones(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flow_residual(np.array([[1.0, 0.5], [0, 1]]), ONES, ONES), "not symmetric"),
        (lambda: flow_residual(EYE * np.nan, ONES, ONES), "not symmetric"),
        (lambda: movement(np.array([[1.0, 2], [2, 1]]), ONES, ONES), "eigenvalue -1 < 0"),
        (lambda: movement(-EYE, ONES, ONES), "eigenvalue -1 < 0"),
        (lambda: flow_residual(EYE, ONES, -ONES), "take finite times >= 0"),
        (lambda: flow_prediction(EYE, EYE, ONES, np.inf * ONES), "take finite times >= 0"),
        (lambda: descent_residual(EYE, ONES, 0.0, np.arange(2)), "lr = 0.0"),
        (lambda: descent_prediction(EYE, EYE, ONES, 0.1, -np.arange(2)), "steps >= 0"),
        (lambda: two_layer_drift(0, 1.0, ONES, ONES, ONES), "width = 0"),
        (lambda: two_layer_drift(3, 0.0, ONES, ONES, ONES), "square = 0.0"),
        (lambda: two_layer_drift(3, 1.0, ONES, ONES, ONES), "leaves no such network"),
        (lambda: two_layer_drift(3, 1.0, -9 * ONES, ONES, ONES), "and > 0"),
        (lambda: parameter_norm(0, (3,)), "inputs = 0"),
        (lambda: parameter_norm(1, (3, 0)), "every width >= 1"),
    ],
)
def test_what_is_out_of_range_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
