"""The simulator against independent oracles: autograd, explicit sums, scipy; and NumPy against torch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sims import measure
from sims.baselines import alternating_least_squares, truncated_svd
from sims.dynamics import adam, discrepant, gradient_descent, gradients, momentum, moving, product, rollout
from sims.losses import Completion, Factorization, Loss, Regression, Sensing, SparseCompletion, completion, pulled
from sims.run import observe
from sims.start import (
    STARTS,
    flat,
    gaussian,
    geometric,
    haar,
    noisy,
    observed,
    orthogonal,
    problem_start,
    problem_target,
    sensing_operators,
    spread,
    to_numpy,
    to_torch,
    truncated_gaussian,
    uniform,
)
from theory.problem import Problem

dims = st.lists(st.integers(1, 7), min_size=3, max_size=6).map(tuple)
seeds = st.integers(0, 2**16)
KINDS = ["factorization", "completion", "sensing", "regression"]
kinds = st.sampled_from(KINDS)


def weights_and_loss(dims: tuple[int, ...], kind: str, rng: np.random.Generator) -> tuple[tuple[np.ndarray, ...], Loss]:
    weights = tuple(rng.standard_normal((rows, cols)) for rows, cols in zip(dims[1:], dims[:-1], strict=True))
    shape = (dims[-1], dims[0])
    target = rng.standard_normal(shape)
    operators = sensing_operators(9, shape, rng)
    losses = {
        "factorization": Factorization(target),
        "completion": Completion(target, observed(shape, 0.6, rng).astype(float)),
        "sensing": Sensing(operators, np.einsum("mij,ij->m", operators, target)),
        "regression": Regression(rng.standard_normal((dims[0], 5)), rng.standard_normal((dims[-1], 5))),
    }
    return weights, losses[kind]


def on_torch(loss: Loss) -> Loss:
    return type(loss)(*to_torch(*vars(loss).values()))


@given(dims, kinds, seeds)
def test_closed_form_gradients_are_those_of_autograd(dims, kind, seed):
    weights, loss = weights_and_loss(dims, kind, np.random.default_rng(seed))
    leaves = tuple(weight.requires_grad_() for weight in to_torch(*weights))
    end = product(leaves)
    if kind == "factorization":
        value = 0.5 * (end - torch.from_numpy(loss.target)).square().sum()
    elif kind == "completion":
        known = torch.from_numpy(loss.observed).bool()
        value = 0.5 * (end - torch.from_numpy(loss.target))[known].square().sum()
    elif kind == "regression":
        value = 0.5 * (end @ torch.from_numpy(loss.inputs) - torch.from_numpy(loss.outputs)).square().sum()
    else:
        outcomes = torch.stack([(operator * end).sum() for operator in torch.from_numpy(loss.operators)])
        value = 0.5 * (outcomes - torch.from_numpy(loss.outcomes)).square().sum()
    value.backward()
    np.testing.assert_allclose(loss.value(product(weights)), value.item(), rtol=1e-10, atol=1e-12)
    for found, leaf in zip(gradients(loss, weights), leaves, strict=True):
        np.testing.assert_allclose(found, leaf.grad.numpy(), rtol=1e-9, atol=1e-9)


@given(dims, kinds, seeds, st.floats(1e-4, 1e-2), st.floats(0, 1))
def test_numpy_and_torch_take_the_same_steps(dims, kind, seed, lr, decay):
    weights, loss = weights_and_loss(dims, kind, np.random.default_rng(seed))
    weights = tuple(weight / np.linalg.norm(weight) for weight in weights)
    *_, here = rollout(gradient_descent(loss, lr, decay), weights, 10)
    *_, there = rollout(gradient_descent(on_torch(loss), lr, decay), to_torch(*weights), 10)
    for ours, theirs in zip(here, there, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-11, atol=1e-13)


@given(dims, kinds, seeds, st.floats(0, 0.1), st.floats(0, 1))
def test_a_step_is_gradient_descent_with_decay_layer_by_layer_and_leaves_its_input_alone(dims, kind, seed, lr, decay):
    weights, loss = weights_and_loss(dims, kind, np.random.default_rng(seed))
    before = tuple(weight.copy() for weight in weights)
    rates = tuple(lr * (layer + 1) for layer in range(len(weights)))
    stepped = gradient_descent(loss, rates, decay)(weights)
    for old, kept, new, gradient, rate in zip(before, weights, stepped, gradients(loss, before), rates, strict=True):
        np.testing.assert_array_equal(old, kept)
        np.testing.assert_allclose(new, (1 - rate * decay) * old - rate * gradient, rtol=1e-9, atol=1e-9)


@given(dims, kinds, seeds, st.floats(1e-3, 0.1), st.floats(0.1, 0.9), st.floats(0, 1))
def test_momentum_and_adam_are_torchs(dims, kind, seed, lr, beta, decay):
    """torch.optim.SGD with momentum differs by where the step multiplies, which a constant step does not show."""
    weights, loss = weights_and_loss(dims, kind, np.random.default_rng(seed))
    weights = tuple(weight / np.linalg.norm(weight) for weight in weights)
    for step, state, optimizer in (
        (momentum(loss, lr, beta, decay), moving(weights, 1), torch.optim.SGD),
        (adam(loss, lr, (beta, 0.99), 1e-6, decay), moving(weights, 2), torch.optim.AdamW),
    ):
        leaves = [weight.requires_grad_() for weight in to_torch(*weights)]
        options = {"momentum": beta} if optimizer is torch.optim.SGD else {"betas": (beta, 0.99), "eps": 1e-6}
        theirs = optimizer(leaves, lr=lr, weight_decay=decay, **options)
        *_, ours = rollout(step, state, 4)
        for _ in range(4):
            for leaf, gradient in zip(leaves, gradients(on_torch(loss), tuple(leaves)), strict=True):
                leaf.grad = gradient.detach()
            theirs.step()
        assert ours.taken == 4
        for found, leaf in zip(ours.weights, leaves, strict=True):
            np.testing.assert_allclose(found, leaf.detach().numpy(), rtol=1e-7, atol=1e-9)


@given(dims, st.sampled_from(KINDS), seeds, st.integers(1, 5))
def test_what_two_factors_feel_is_the_gradient_times_the_other(dims, kind, seed, inner):
    rng = np.random.default_rng(seed)
    _, loss = weights_and_loss(dims, kind, rng)
    left, right = rng.standard_normal((dims[-1], inner)), rng.standard_normal((inner, dims[0]))
    gradient = loss.gradient(left @ right)
    for found, expected in zip(pulled(loss, left, right), (gradient @ right.T, left.T @ gradient), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(700, 900), (3, 200_000)])
def test_blocks_of_rows_cover_matrices_larger_than_the_cache(shape):
    rng = np.random.default_rng(0)
    target, known = rng.standard_normal(shape), (rng.random(shape) < 0.3).astype(float)
    left, right = rng.standard_normal((shape[0], 2)), rng.standard_normal((2, shape[1]))
    gradient = known * (left @ right - target)
    mine, other = pulled(Completion(target, known), left, right)
    np.testing.assert_allclose(mine, gradient @ right.T, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(other, left.T @ gradient, rtol=1e-9, atol=1e-9)


@given(seeds, st.integers(2, 30), st.integers(2, 30), st.floats(0.02, 1))
def test_sparse_completion_is_completion(seed, rows, cols, density):
    rng = np.random.default_rng(seed)
    target, known = rng.standard_normal((rows, cols)), observed((rows, cols), density, rng)
    where = np.nonzero(known)
    sparse, dense = SparseCompletion(*where, target[where], (rows, cols)), Completion(target, known.astype(float))
    left, right = rng.standard_normal((rows, 2)), rng.standard_normal((2, cols))
    np.testing.assert_allclose(sparse.value(left @ right), dense.value(left @ right), rtol=1e-12)
    np.testing.assert_allclose(sparse.gradient(left @ right), dense.gradient(left @ right), atol=1e-13)
    for found, expected in zip(pulled(sparse, left, right), pulled(dense, left, right), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("density", "width", "kind"),
    [(0.03, 10, SparseCompletion), (0.03, 200, Completion), (0.2, 10, Completion), (1.0, 10, Completion)],
)
def test_density_and_width_choose_how_completion_is_computed(density, width, kind):
    known = observed((200, 200), density, np.random.default_rng(0))
    assert type(completion(np.ones((200, 200)), known, width)) is kind


@given(st.integers(2, 6), seeds)
def test_losses_seen_from_inside_have_the_gradients_of_the_cores(inner, seed):
    rng = np.random.default_rng(seed)
    left, right, core = haar(9, inner, rng), haar(8, inner, rng), rng.standard_normal((inner, inner))
    operators, target = sensing_operators(11, (9, 8), rng), rng.standard_normal((9, 8))
    for loss in (Factorization(target), Sensing(operators, np.einsum("mij,ij->m", operators, target))):
        expected = left.T @ loss.gradient(left @ core @ right.T) @ right
        np.testing.assert_allclose(loss.inside(left, right).gradient(core), expected, atol=1e-12)


@pytest.mark.parametrize(
    "rule",
    [
        lambda loss: gradient_descent(loss, 0.1, -1.0),
        lambda loss: momentum(loss, 0.1, 1.0),
        lambda loss: adam(loss, 0.1, (0.9, 1.0)),
    ],
)
def test_rules_out_of_range_are_refused(rule):
    with pytest.raises(ValueError, match=r"take a finite decay >= 0, and 0 <= beta < 1"):
        rule(Factorization(np.eye(2)))


def test_rollout_yields_the_start_and_then_each_step():
    doubled = [w[0].item() for w in rollout(lambda w: (2 * w[0],), (np.ones((1, 1)),), 3)]
    assert doubled == [1, 2, 4, 8]


def test_observe_measures_every_so_many_steps_and_ends_where_rollout_ends():
    run = observe(lambda w: (w[0] + 1,), (np.zeros((1, 1)),), 8, 4, lambda w: (w[0].item(), -w[0].item()))
    assert run.steps.tolist() == [0, 4, 8]
    assert run.values.tolist() == [[0, 0], [4, -4], [8, -8]]
    assert (np.diff(run.seconds) >= 0).all()
    assert run.state[0].item() == 8


@pytest.mark.parametrize(("steps", "every"), [(10, 0), (10, 4), (0, 1), (-1, 1), (3, 6)])
def test_steps_that_would_not_be_measured_are_refused(steps, every):
    with pytest.raises(ValueError, match=rf"steps = {steps}, every = {every}: take steps >= every >= 1"):
        observe(lambda w: w, (np.zeros((1, 1)),), steps, every, lambda w: (0.0,))


def test_discrepant_rates():
    assert discrepant(0.5, 0.01, 5) == (0.005, 0.5, 0.5, 0.5, 0.005)


def test_arrays_go_to_torch_as_copies_and_come_back_contiguous():
    array = np.arange(4.0).reshape(2, 2)
    (tensor,) = to_torch(array)
    tensor *= 2
    assert array.tolist() == [[0, 1], [2, 3]]
    (back,) = to_numpy(tensor.mT)
    assert back.tolist() == [[0, 4], [2, 6]]
    assert back.flags.c_contiguous


@given(st.integers(1, 12), st.integers(1, 12), seeds)
def test_haar_matrices_are_orthonormal_along_their_short_side(rows, cols, seed):
    matrix = haar(rows, cols, np.random.default_rng(seed))
    gram = matrix.T @ matrix if rows >= cols else matrix @ matrix.T
    np.testing.assert_allclose(gram, np.eye(min(rows, cols)), atol=1e-14 * max(rows, cols))


def test_haar_matrices_are_uniform():
    """A column is uniform on the sphere: its first entry squared is Beta(1/2, (n-1)/2). QR without signs fails this."""
    rng = np.random.default_rng(0)
    entries = np.array([haar(5, 5, rng)[0, 0] for _ in range(2000)])
    assert stats.kstest(entries**2, stats.beta(0.5, 2).cdf).pvalue > 0.01
    assert abs(np.mean(entries > 0) - 0.5) < 0.05  # three standard deviations; without the sign fix it is 0 or 1


@given(dims, seeds)
def test_orthogonal_starts_have_their_shapes_and_scales(dims, seed):
    scales = tuple(0.5 + layer for layer in range(len(dims) - 1))
    for weight, eps, rows, cols in zip(
        orthogonal(dims, scales, np.random.default_rng(seed)), scales, dims[1:], dims[:-1], strict=True
    ):
        assert weight.shape == (rows, cols)
        np.testing.assert_allclose(measure.singular_values(weight), eps, rtol=1e-12)


@pytest.mark.parametrize("start", [gaussian, uniform])
def test_other_starts_have_the_norms_of_orthogonal_ones_and_their_distribution(start):
    dims, scales, rng = (200, 100, 300), (0.5, 2.0), np.random.default_rng(0)
    for weight, other in zip(start(dims, scales, rng), orthogonal(dims, scales, rng), strict=True):
        assert weight.shape == other.shape
        np.testing.assert_allclose(np.linalg.norm(weight), np.linalg.norm(other), rtol=1e-12)
        normal = start is gaussian
        scaled = weight.ravel() / (weight.std() if normal else np.abs(weight).max())
        assert stats.kstest(scaled, "norm" if normal else stats.uniform(-1, 2).cdf).pvalue > 0.01


@pytest.mark.parametrize("start", STARTS.values())
def test_starts_without_units_or_with_too_few_scales_are_refused(start):
    with pytest.raises(ValueError, match=r"scales = \(1.0,\) for 2 layers: give one positive, finite scale for each"):
        start((3, 3, 3), (1.0,), np.random.default_rng())
    with pytest.raises(ValueError, match=r"dims = \(3, 0, 3\): every layer needs at least one unit"):
        start((3, 0, 3), (1.0, 1.0), np.random.default_rng())


def test_spectra_are_flat_spread_and_geometric():
    assert flat(3, 2.0) == (2.0, 2.0, 2.0)
    assert spread(3, 4.0, 2.0) == (4.0, 3.0, 2.0)
    assert geometric(3, 4.0, 0.5) == (4.0, 2.0, 1.0)


def test_targets_of_the_papers_are_truncated_gaussian_and_noise_has_its_level():
    rng = np.random.default_rng(0)
    target = truncated_gaussian(100, 5, rng)
    values = measure.singular_values(target)
    assert values[5] < 1e-12
    assert 17 < values[4] < values[0] < 20  # just below 2 sqrt(100)
    noise = noisy(target, 0.1, rng) - target
    np.testing.assert_allclose(np.linalg.norm(noise, 2), 0.1 * values[0], rtol=1e-12)
    assert np.linalg.matrix_rank(noise) == 100
    with pytest.raises(ValueError, match=r"level = -1\.0: give the noise's spectral norm over the target's"):
        noisy(target, -1.0, rng)


def test_targets_have_the_spectrum_that_was_asked_for_and_repeat():
    problem = Problem(width=9, spectrum=(3.0, 2.0, 2.0), lr=0.01)
    target = problem_target(problem)
    np.testing.assert_allclose(measure.singular_values(target), [3, 2, 2, 0, 0, 0, 0, 0, 0], atol=1e-14)
    np.testing.assert_array_equal(target, problem_target(problem))
    np.testing.assert_array_equal(problem_start(problem)[0], problem_start(problem)[0])


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_impossible_densities_are_refused(density):
    with pytest.raises(ValueError, match=r"the share of observed entries must lie in \(0, 1\]"):
        observed((2, 2), density, np.random.default_rng())


def test_other_impossible_starts_are_refused():
    with pytest.raises(ValueError, match="measurements = 0"):
        sensing_operators(0, (2, 2), np.random.default_rng())
    for scales in ((1.0,), (1.0, 0.0), (1.0, float("nan"))):
        with pytest.raises(ValueError, match="one positive, finite scale for each layer"):
            orthogonal((2, 2, 2), scales, np.random.default_rng())


def test_sensing_operators_are_an_isometry_on_average():
    rng = np.random.default_rng(0)
    target, operators = rng.standard_normal((6, 6)), sensing_operators(20_000, (6, 6), rng)
    back = np.einsum("mij,m->ij", operators, np.einsum("mij,ij->m", operators, target))
    assert measure.relative_error(back, target) < 0.1  # sqrt(36 / 20,000) = 0.04


@given(st.integers(2, 6), st.floats(1e-6, np.pi / 2), st.floats(0, 1), seeds)
def test_largest_angle_of_planes_turned_by_known_angles(size, angle, share, seed):
    rng = np.random.default_rng(seed)
    frame = haar(2 * size, 2 * size, rng)
    angles = angle * np.concatenate([[1.0], np.full(size - 1, share)])
    turned = np.cos(angles) * frame[:, :size] + np.sin(angles) * frame[:, size:]
    assert measure.largest_angle(frame[:, :size], turned @ haar(size, size, rng)) == pytest.approx(
        angle, abs=1e-7
    )  # scipy takes
    # some angles near a right one from their sines


def test_effective_rank_and_idle_scale_on_known_spectra():
    assert measure.effective_rank(np.diag([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert measure.effective_rank(np.diag([1.0, 1e-9])) == pytest.approx(1, abs=1e-6)
    assert measure.idle_scale(np.diag([5.0, 3.1, 3.0, 2.9, 0.5]), 3) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="idle = 6 of 5 singular values"):
        measure.idle_scale(np.eye(5), 6)
    top, middle, bottom = measure.singular_blocks(np.diag([4.0, 3.0, 2.0, 1.0]), 1)
    np.testing.assert_allclose(np.abs(np.hstack([top, middle, bottom])), np.eye(4), atol=1e-15)


@given(seeds)
def test_truncated_svd_is_the_best_approximation(seed):
    matrix = np.random.default_rng(seed).standard_normal((9, 6))
    u, s, v = np.linalg.svd(matrix)
    np.testing.assert_allclose(truncated_svd(matrix, 3), u[:, :3] * s[:3] @ v[:3], atol=1e-10)


@given(seeds, st.floats(0.01, 1))
def test_alternating_least_squares_solves_each_ridge_regression(seed, penalty):
    """Against scikit-free oracle: row by row normal equations; and its objective never grows."""
    rng = np.random.default_rng(seed)
    values, known = rng.standard_normal((7, 5)), (rng.random((7, 5)) < 0.7).astype(float)
    values = values * known
    sweeps = alternating_least_squares(values, known, 2, penalty, np.random.default_rng(seed))
    cols = np.random.default_rng(seed).standard_normal((5, 2)) / np.sqrt(2)
    for _ in range(3):
        rows = _ridge(values, known, cols, penalty)
        cols = _ridge(values.T, known.T, rows, penalty)
        np.testing.assert_allclose(next(sweeps), rows @ cols.T, atol=1e-8)


def _ridge(values: np.ndarray, known: np.ndarray, other: np.ndarray, penalty: float) -> np.ndarray:
    solved = np.zeros((len(values), other.shape[1]))
    for row, (entries, mask) in enumerate(zip(values, known > 0, strict=True)):
        if mask.any():
            design = np.vstack([other[mask], np.sqrt(penalty * mask.sum()) * np.eye(other.shape[1])])
            solved[row] = np.linalg.lstsq(design, np.append(entries[mask], np.zeros(other.shape[1])), rcond=None)[0]
    return solved


def test_als_refuses_a_penalty_of_zero():
    with pytest.raises(ValueError, match="need a penalty > 0"):
        next(alternating_least_squares(np.eye(2), np.eye(2), 1, 0.0, np.random.default_rng()))
