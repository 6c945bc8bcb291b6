"""Classifiers on whitened data: gradients, the factorization behind them, and what theory says about their features.

Tolerance: rounding, 1e-12 on numbers of order 1, where the text of a test says nothing else.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sims.classifier import (
    Labelled,
    backpropagation,
    descent,
    features,
    linear_loss,
    loss_value,
    separation,
    separations,
    whitened,
)
from sims.dynamics import gradient_descent, gradients, product, rollout
from sims.losses import Factorization, Regression
from sims.reduced import reduce_start, simulate
from sims.start import orthogonal, problem_start, to_torch
from theory import collapse
from theory.invariants import invariant_bases, predicted_weights
from theory.problem import Problem
from theory.subspaces import predicted_run

ATOL = 1e-12


def drawn(classes=3, samples=5, width=15, depth=3, eps=0.6, rows=3, seed=0) -> tuple[Labelled, tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(seed)
    data = whitened(classes, samples, width, rng)
    return data, orthogonal((width,) * depth + (rows,), (eps,) * depth, rng)


def padded(data: Labelled) -> np.ndarray:
    """Y X^T with zeros below, d x d: the target of a network with square layers."""
    target = np.zeros((len(data.inputs), len(data.inputs)))
    target[: len(data.signal)] = data.signal
    return target


@given(st.integers(0, 100), st.sampled_from([torch.relu, None]))
def test_gradients_are_those_of_torch_autograd(seed, activation: Callable | None):
    data, weights = drawn(seed=seed, depth=2 + seed % 4, width=11)
    tensors = [tensor.requires_grad_() for tensor in to_torch(*weights)]
    inputs, outputs = to_torch(data.inputs, data.outputs)
    for tensor in tensors[:-1]:
        inputs = activation(tensor @ inputs) if activation else tensor @ inputs
    loss = ((tensors[-1] @ inputs - outputs) ** 2).sum() / 2
    expected = torch.autograd.grad(loss, tensors)
    ours = backpropagation(weights, data) if activation else gradients(linear_loss(data), weights)
    np.testing.assert_allclose(loss_value(weights, data, "relu" if activation else "linear"), loss.item(), rtol=ATOL)
    for gradient, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(gradient, other.numpy(), atol=ATOL)


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_a_step_is_gradient_descent_with_decay(activation):
    data, weights = drawn()
    loss = gradients(linear_loss(data), weights) if activation == "linear" else backpropagation(weights, data)
    for before, after, gradient in zip(weights, descent(data, 0.1, activation, 0.3)(weights), loss, strict=True):
        np.testing.assert_allclose(after, (1 - 0.1 * 0.3) * before - 0.1 * gradient, atol=ATOL)


@given(st.integers(0, 100), st.integers(4, 15))
def test_whitened_classification_is_a_factorization_up_to_a_constant(seed, width):
    """And without a constant if there are as many dimensions as samples."""
    data, weights = drawn(width=width, seed=seed)
    np.testing.assert_allclose(data.inputs @ data.inputs.T, np.eye(width), atol=ATOL)
    assert isinstance(linear_loss(data), Factorization)
    regression, end = Regression(data.inputs, data.outputs), product(weights)
    np.testing.assert_allclose(linear_loss(data).gradient(end), regression.gradient(end), atol=ATOL)
    constant = (np.sum(data.outputs**2) - np.sum(data.signal**2)) / 2
    np.testing.assert_allclose(linear_loss(data).value(end) + constant, regression.value(end), atol=ATOL)
    assert constant == pytest.approx(0, abs=ATOL) if width == 15 else constant > 0.1
    assert loss_value(weights, data, "linear") == pytest.approx(regression.value(end), abs=ATOL)


def test_other_data_are_a_regression_and_no_factorization():
    data, weights = drawn()
    stretched = replace(data, inputs=data.inputs * np.linspace(1, 2, 15)[:, None])
    loss = linear_loss(stretched)
    assert isinstance(loss, Regression)
    wrong = Factorization(stretched.signal).gradient(product(weights))
    assert np.abs(loss.gradient(product(weights)) - wrong).max() > 0.1


@settings(max_examples=20)
@given(st.integers(0, 100))
def test_square_layers_follow_the_theorem_and_the_reduced_simulator(seed):
    """The problem is that of theory.problem with Phi = Y X^T, of K singular values sqrt(n)."""
    problem = Problem(width=18, spectrum=(6**0.5,) * 3, depth=4, scales=0.8, lr=0.02, decay=0.1, seed=seed)
    data = whitened(3, 6, 18, np.random.default_rng(seed))
    target, start = padded(data), problem_start(problem)
    np.testing.assert_allclose(np.linalg.svd(data.signal, compute_uv=False), problem.spectrum, atol=ATOL)
    *_, last = rollout(gradient_descent(Factorization(target), problem.lr, problem.decay), start, 40)
    *_, predicted = predicted_weights(problem, invariant_bases(start, target, 3), target, 40)
    reduced, spaces = reduce_start(start, target, 3)
    rebuilt = simulate(reduced, problem.lr, 40, 40, decay=problem.decay).weights(1, start, spaces)
    for weight, by_theory, by_cores in zip(last, predicted, rebuilt, strict=True):
        np.testing.assert_allclose(weight, by_theory, atol=ATOL)
        np.testing.assert_allclose(weight, by_cores, atol=ATOL)


def test_a_last_layer_of_one_row_a_class_follows_the_invariant_family():
    data, start = drawn(depth=4)
    *_, last = rollout(descent(data, 0.05, "linear", 0.1), start, 40)
    predicted = next(islice(predicted_run(start, data.signal, 0.05, 0.1), 40, None))
    for weight, other in zip(last, predicted, strict=True):
        np.testing.assert_allclose(weight, other, atol=ATOL)


def test_separation_is_that_of_its_scatter_matrices():
    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 1, 2, 0, 2, 2])
    layer = rng.standard_normal((4, 7))
    means = [layer[:, labels == k].mean(axis=1) for k in range(3)]
    within = np.mean([np.linalg.norm(layer[:, i] - means[k]) ** 2 for i, k in enumerate(labels)])
    between = np.mean([np.linalg.norm(mean - layer.mean(axis=1)) ** 2 for mean in means])
    assert separation(layer, labels) == pytest.approx(within / between, rel=ATOL)
    assert separation(np.eye(3)[:, labels], labels) == 0


@settings(max_examples=20)
@given(
    st.integers(0, 100),
    st.integers(2, 4),
    st.integers(3, 6),
    st.integers(2, 6),
    st.floats(0.3, 0.9),
    st.floats(0, 0.3),
    st.booleans(),
)
@example(0, 3, 6, 4, 0.8, 0.2, True)
def test_separation_is_predicted_exactly_at_every_step(seed, classes, samples, depth, eps, decay, square):
    """Tolerance: relative rounding, of numbers that differ by up to (1 / eps)^(2 L) = 2e6."""
    width = classes * samples
    data, start = drawn(classes, samples, width, depth, eps, width if square else classes, seed)
    lr = 0.1 / (depth * samples ** (1 - 1 / depth))  # a twentieth of the stability limit
    target = padded(data)[: len(start[-1])]
    run = rollout(gradient_descent(Factorization(target), lr, decay), start, 30)
    for weights, predicted in zip(run, collapse.separation(start, data.inputs, data.labels, lr, decay), strict=False):
        np.testing.assert_allclose(separations(weights, data, "linear"), predicted, rtol=1e-9)


def test_prediction_holds_with_fewer_dimensions_than_samples_too():
    data, start = drawn(3, 8, 15, 4, 0.7, 3)
    run = rollout(descent(data, 0.03, "linear"), start, 100)
    for weights, predicted in zip(run, collapse.separation(start, data.inputs, data.labels, 0.03), strict=False):
        np.testing.assert_allclose(separations(weights, data, "linear"), predicted, rtol=1e-9)


@settings(max_examples=12)
@given(st.integers(0, 100), st.integers(2, 4), st.integers(3, 8), st.integers(2, 5), st.floats(0.35, 0.7))
@example(0, 5, 10, 4, 0.5)
def test_separation_follows_the_law_within_the_proven_factor(seed, classes, samples, depth, eps):
    """Bounds of the gradient flow at its limit, allowed 1 % for steps of a fiftieth of the stability limit.

    The step moves W_{l+1}^T W_{l+1} - W_l W_l^T by at most eta^2 sum_t |gradient|^2 = O(eta l(0)), here below 0.4 % of
    S, of which D_l feels up to the l-th power.
    """
    data, start = drawn(classes, samples, classes * samples, depth, eps, classes, seed)
    step = descent(data, 0.04 / (depth * samples ** (1 - 1 / depth)), "linear")
    weights = start
    for _ in range(60):
        *_, weights = rollout(step, weights, 500)
        if loss_value(weights, data, "linear") < 1e-12:
            break
    assert loss_value(weights, data, "linear") < 1e-12
    ratio = separations(weights, data, "linear") / collapse.separation_law(classes, samples, depth, eps)
    assert ratio[0] == pytest.approx(1, abs=1e-12)
    assert (ratio <= 1.01).all()
    assert (ratio >= 0.99 * collapse.separation_factor(classes, samples, depth, eps)).all()


def test_the_law_would_notice_a_wrong_rate():
    """The bounds are tight enough: half a layer's factor more or less is outside of them."""
    law, factor = collapse.separation_law(5, 10, 8, 0.5), collapse.separation_factor(5, 10, 8, 0.5)
    assert factor.min() > (law[1] / law[0]) ** 0.5
    assert law[0] == pytest.approx(11.25)
    assert law[-1] == pytest.approx(9.16e-5, rel=1e-3)


@pytest.mark.parametrize(
    "change", [{"lr": 0.0505}, {"decay": 0.101}, {"start": 1.01}], ids=lambda change: next(iter(change))
)
def test_a_one_percent_error_in_the_prediction_is_caught(change):
    data, start = drawn(depth=4)
    *_, last = rollout(descent(data, 0.05, "linear", 0.1), start, 40)
    wrong = tuple(change.get("start", 1) * weight for weight in start)
    arguments = (wrong, data.inputs, data.labels, change.get("lr", 0.05), change.get("decay", 0.1))
    predicted = next(islice(collapse.separation(*arguments), 40, None))
    assert np.abs(separations(last, data, "linear") / predicted - 1).max() > 1e-4


def test_relu_features_are_those_after_the_activation():
    data, weights = drawn(depth=4)
    layers = features(weights, data.inputs, "relu")
    assert len(layers) == 4
    assert all((layer >= 0).all() for layer in layers[1:])
    np.testing.assert_allclose(layers[2], np.maximum(weights[1] @ layers[1], 0), atol=ATOL)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: whitened(3, 5, 16, np.random.default_rng(0)), "needs 1 <= width <= 15"),
        (lambda: Labelled(np.eye(3), np.array([0, 1])), "2 labels for 3 samples"),
        (lambda: Labelled(np.eye(3), np.array([0, 2, 2])), "renumber the classes"),
        (lambda: collapse.separation_law(5, 2, 8, 0.5), "samples >= 3"),
        (lambda: collapse.separation_factor(5, 10, 8, 1.2), "0 < eps\\^2 < samples"),
        (lambda: next(collapse.separation((np.eye(4),) * 2, 2 * np.eye(4), np.array([0, 0, 1, 1]), 0.1)), "whitened"),
        (lambda: next(collapse.separation((np.eye(4),) * 2, np.eye(4), np.array([0, 1, 1, 1]), 0.1)), "as many"),
        (
            lambda: next(collapse.separation((np.eye(4)[:3], np.eye(3)), np.eye(4), np.arange(4) % 2, 0.1)),
            "must be 4 x",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
