"""What a random projection keeps of gradients: moments, tails, ranks; against quadrature and Monte Carlo."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import chi2
from torch import nn
from torch.nn.utils import parametrize

from sims.kernel import empirical_ntk
from sims.tangent import Tangent
from sims.transformer import Transformer, rank_one_kernels, two_chains
from theory.gradients import (
    jl_failure,
    jl_rank,
    kernel_failure,
    kernel_rank,
    pair_failure,
    projected_mean,
    projection_variance,
    ridge_shift_variance,
)

seeds = st.integers(0, 2**20)
tolerances = st.floats(0.02, 0.98)
failures = st.floats(1e-6, 0.9)
counts = st.integers(1, 10**4)
NODES = {  # of variance 1, exact for polynomials of degree 5, with the excess kurtosis of the distribution
    "gaussian": (np.sqrt(3) * np.array([-1, 0, 1]), np.array([1, 4, 1]) / 6, 0.0),
    "uniform": (np.sqrt(9 / 5) * np.array([-1, 0, 1]), np.array([5, 8, 5]) / 18, -1.2),
    "signs": (np.array([-1.0, 0, 1]), np.array([1, 0, 1]) / 2, -2.0),
}


def gradients(rng, n, outputs, inputs, tokens=3):
    """As layers have them, delta x^T summed over tokens; all examples share half of both."""
    deltas, features = (rng.standard_normal((n + 1, tokens, size)) for size in (outputs, inputs))
    return np.einsum("nto,nti->noi", deltas[0] + deltas[1:], features[0] + features[1:]) / 2


def projected(left, right, a):
    """<G A^T, G' A^T> of every pair."""
    return np.einsum("nok,mok->nm", left @ a.T, right @ a.T)


def nodes_of(entries, rank, inputs):
    """All values of A on the grid, and their probabilities."""
    values, weights, excess = NODES[entries]
    grid = np.array(list(product(range(3), repeat=rank * inputs)))
    return values[grid].reshape(-1, rank, inputs) / np.sqrt(rank), weights[grid].prod(axis=1), excess


@settings(max_examples=40)
@given(seeds, st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.sampled_from(sorted(NODES)))
def test_mean_and_variance_are_exact_for_any_rank_and_entries(seed, outputs, inputs, rank, entries):
    """The square of <G A^T, G' A^T> has degree 4 in each entry of A: the sum over the nodes is its expectation."""
    rng = np.random.default_rng(seed)
    left, right = gradients(rng, 2, outputs, inputs), gradients(rng, 3, outputs, inputs)
    drawn, weights, excess = nodes_of(entries, rank, inputs)
    values = np.array([projected(left, right, a) for a in drawn])
    mean, square = np.tensordot(weights, values, 1), np.tensordot(weights, values**2, 1)
    scale = square.max()
    np.testing.assert_allclose(projected_mean(left, right), mean, atol=1e-13 * np.sqrt(scale))
    found = projection_variance(left, right, rank, excess=excess)
    np.testing.assert_allclose(found, square - mean**2, atol=1e-12 * scale)


@pytest.mark.parametrize("rank", [1, 4, 16, 64])
def test_variance_over_many_draws_and_two_layers(rank):
    """20000 draws; the standard error of a variance comes from the fourth moment, and is 1 to 2 % of it."""
    rng, draws, found, expected = np.random.default_rng(rank), 20_000, 0.0, 0.0
    for outputs, inputs in ((8, 12), (6, 5)):
        left, right = gradients(rng, 1, outputs, inputs), gradients(rng, 1, outputs, inputs)
        rows = rng.standard_normal((draws * rank, inputs)) / np.sqrt(rank)
        found = found + np.sum((rows @ left[0].T) * (rows @ right[0].T), axis=1).reshape(draws, rank).sum(axis=1)
        expected += np.array([projected_mean(left, right)[0, 0], projection_variance(left, right, rank)[0, 0]])
    off = found - expected[0]
    assert abs(off.mean()) < 4 * off.std() / np.sqrt(draws)
    error = np.std(off**2) / np.sqrt(draws)
    assert abs(np.mean(off**2) - expected[1]) < 3 * error
    assert abs(np.mean(off**2) / expected[1] - 1) < 0.05


@given(seeds, st.integers(1, 9), st.integers(1, 9), st.integers(1, 50))
def test_variance_is_at_most_that_of_one_vector_and_known_for_one_token(seed, outputs, inputs, rank):
    rng = np.random.default_rng(seed)
    left, right = gradients(rng, 3, outputs, inputs), gradients(rng, 2, outputs, inputs)
    most = 2 * np.outer(*(np.sum(g**2, axis=(1, 2)) for g in (left, right))) / rank
    assert (projection_variance(left, right, rank) <= most * (1 + 1e-12)).all()
    delta, x = rng.standard_normal((2, outputs)), rng.standard_normal((2, inputs))
    one, other = delta[:, :, None] * x[:, None, :]
    expected = (delta[0] @ delta[1]) ** 2 * ((x[0] @ x[0]) * (x[1] @ x[1]) + (x[0] @ x[1]) ** 2) / rank
    np.testing.assert_allclose(projection_variance(one[None], other[None], rank)[0, 0], expected, rtol=1e-11)


class LowRank(nn.Module):
    """W_0 + scale B A."""

    def __init__(self, a, scale, outputs):
        super().__init__()
        self.a, self.b, self.scale = nn.Parameter(a), nn.Parameter(a.new_zeros(outputs, len(a))), scale

    def forward(self, weight):
        return weight + self.scale * self.b @ self.a


@settings(max_examples=10)
@given(seeds, st.integers(1, 9), st.floats(0.1, 20))
def test_tangent_kernel_of_lora_at_its_start_is_the_projection_times_its_scale_squared(seed, rank, alpha):
    """A trains, too: at B = 0 its gradient is zero."""
    generator = torch.Generator().manual_seed(seed)
    sizes, double = ((4, 5), (3, 4), (1, 3)), torch.float64
    layers = [nn.Linear(inputs, outputs, dtype=double) for outputs, inputs in sizes]
    network = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2], nn.AvgPool2d((6, 1))).eval()
    for layer in layers:
        layer.bias.requires_grad_(False)
    tokens = torch.randn(4, 6, 5, generator=generator, dtype=double)
    plain = [g[:, 0].numpy() for g in Tangent(network).gradients(tokens).values()]
    drawn = [torch.randn(rank, inputs, generator=generator, dtype=double) / rank**0.5 for _, inputs in sizes]
    for layer, a, (outputs, _) in zip(layers, drawn, sizes, strict=True):
        layer.weight.requires_grad_(False)
        parametrize.register_parametrization(layer, "weight", LowRank(a, alpha / rank, outputs))
    found = empirical_ntk(network.eval(), tokens)[:, 0, :, 0].numpy()
    expected = (alpha / rank) ** 2 * sum(projected(g, g, a.numpy()) for g, a in zip(plain, drawn, strict=True))
    np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max())


@settings(max_examples=10)
@given(seeds, st.integers(1, 5))
def test_lora_of_a_transformer_is_the_network_with_its_weights_merged(seed, rank):
    """At B = 0 the network itself, later W_0 + (alpha / k) B A; and the mean of rank-one kernels is its kernel."""
    generator = torch.Generator().manual_seed(seed)
    network, (tokens, classes) = Transformer(8, 1, 5, 6, generator), two_chains(4, 5, 6, generator)
    assert classes.tolist() == [-1, 1, -1, 1]
    drawn = [torch.randn(rank, w.shape[1], generator=generator, dtype=torch.float64) for w in network.weights]
    lora = network.adapted(drawn, 3.0)
    torch.testing.assert_close(lora(tokens), network(tokens), rtol=0, atol=0)
    plain = [g[:, 0].numpy() for g in Tangent(network).gradients(tokens).values()]
    rows = [a.numpy() for a in drawn]
    expected = sum(projected(g, g, a) for g, a in zip(plain, rows, strict=True)) / rank
    np.testing.assert_allclose(rank_one_kernels(plain, rows).mean(axis=0), expected, rtol=1e-10)
    with torch.no_grad():
        for index, (weight, a) in enumerate(zip(network.weights, drawn, strict=True)):
            b = torch.randn(len(weight), rank, generator=generator, dtype=torch.float64)
            lora.lora[2 * index].copy_(b)
            weight += 3.0 / rank * b @ a
    torch.testing.assert_close(lora(tokens), network(tokens), rtol=1e-12, atol=1e-12)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="width = 6, heads = 4: take all sizes >= 1, and a multiple"):
        Transformer(6, 1, 5, 6, torch.Generator())


def predicted(kernel, cross, targets, ridge):
    return cross @ np.linalg.solve(kernel + ridge * np.eye(len(targets)), targets)


@settings(max_examples=10)
@given(seeds, st.floats(0.05, 2.0))
def test_shift_of_ridge_regression_to_first_order(seed, ridge):
    """The derivative along K~ - K is quadratic in A; its variance over all nodes is exact, to the step squared."""
    rng, step, n = np.random.default_rng(seed), 1e-5, 4
    layers = [gradients(rng, n + 2, outputs, inputs) for outputs, inputs in ((3, 2), (1, 2))]
    train, test = [layer[:n] for layer in layers], [layer[n:] for layer in layers]
    targets = rng.standard_normal(n)
    kernel = sum(projected_mean(layer, layer) for layer in layers)
    scaled = ridge * np.trace(kernel) / n
    drawn, weights, _ = nodes_of("gaussian", 1, 2)
    changes = [[projected(layer, layer, a) - projected_mean(layer, layer) for a in drawn] for layer in layers]
    shifts, chances = [], []
    for (one, p), (other, q) in product(*(list(zip(change, weights, strict=True)) for change in changes)):
        sides = [kernel + sign * step * (one + other) for sign in (1, -1)]
        ends = [predicted(side[:n, :n], side[n:, :n], targets, scaled) for side in sides]
        shifts.append((ends[0] - ends[1]) / (2 * step))
        chances.append(p * q)
    expected = np.tensordot(chances, np.square(shifts), 1)
    found = ridge_shift_variance(test, train, targets, scaled, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * expected.max())


def log_moment(s):
    """ln E exp(s z^2), z ~ N(0, 1), by quadrature."""
    return np.log(quad(lambda z: np.exp(s * z**2 - z**2 / 2) / np.sqrt(2 * np.pi), -np.inf, np.inf)[0])


@settings(max_examples=10)
@given(st.floats(0.3, 3), st.integers(40, 200))
def test_tail_of_one_pair_is_chernoffs_for_a_gaussian_vector(tolerance, rank):
    best = minimize_scalar(
        lambda s: log_moment(s) - s * (1 + tolerance), bounds=(0, 0.49), method="bounded", options={"xatol": 1e-9}
    )
    assert np.log(pair_failure(tolerance, rank) / 2) == pytest.approx(rank * best.fun, rel=1e-6)


@given(st.floats(0.01, 5), st.integers(1, 2000))
def test_tail_of_one_vector_is_below_the_bound(tolerance, rank):
    exact = chi2.sf(rank * (1 + tolerance), rank) + chi2.cdf(rank * (1 - tolerance), rank)
    assert exact <= pair_failure(tolerance, rank)


def test_the_exponent_cannot_be_improved():
    """At k = 4e4 the logarithms, 353, differ by that of what a Gaussian tail has in front, eps sqrt(pi k) or so."""
    found = chi2.logsf(1.2 * 4e4, 4e4) / np.log(pair_failure(0.2, 40_000) / 2)
    assert 1 < found < 1.015


@given(seeds, st.integers(1, 8), st.floats(-0.49, 0.49))
def test_no_pair_has_a_larger_moment_generating_function_than_a_vector(seed, rank, share):
    """Eigenvalues of the symmetric part of M, of three layers with ranks k, k + 1, k + 2 of their own."""
    rng = np.random.default_rng(seed)
    layers = [gradients(rng, 2, int(o), int(i), int(t)) for o, i, t in rng.integers(1, 6, (3, 3))]
    norm = np.sqrt(np.prod([sum(np.sum(layer[one] ** 2) for layer in layers) for one in (0, 1)]))
    s, total = share * rank, 0.0  # s is in units of 1 / (|G| |G'|), and at most k / 2
    for more, (g, other) in enumerate(layers):
        mu = np.linalg.eigvalsh(g.T @ other + other.T @ g) / 2 / norm
        k = rank + more
        total += np.sum(-k / 2 * np.log1p(-2 * s * mu / k) - s * mu)
    assert total <= -rank / 2 * np.log1p(-2 * abs(share)) - abs(s) + 1e-12


@settings(max_examples=30)
@given(counts, tolerances, failures)
def test_ranks_are_the_least_that_do(examples, tolerance, failure):
    for probability, least in ((kernel_failure, kernel_rank), (jl_failure, jl_rank)):
        rank = least(examples, tolerance, failure)
        assert probability(examples, tolerance, rank) <= failure * (1 + 1e-9)
        assert rank == 1 or probability(examples, tolerance, rank - 1) > failure * (1 - 1e-9)


@given(counts, tolerances, st.integers(1, 10**5), failures)
def test_the_papers_bound_is_implied_by_ours(examples, tolerance, rank, failure):
    assert kernel_failure(examples, tolerance, rank) <= jl_failure(examples, tolerance, rank)
    assert kernel_rank(examples, tolerance, failure) <= jl_rank(examples, tolerance, failure)


def test_ranks_for_64_examples():
    assert [jl_rank(64, tolerance, 0.1) for tolerance in (0.2, 0.3, 0.5)] == [1501, 763, 385]
    assert [kernel_rank(64, tolerance, 0.1) for tolerance in (0.2, 0.3, 0.5)] == [1204, 566, 226]
    assert kernel_rank(64, 0.01, 0.1) == pytest.approx(4 * np.log(64 * 65 / 0.1) / 0.01**2, rel=0.01)


@pytest.mark.parametrize("tolerance", [0.2, 0.3, 0.5])
def test_worst_of_64_vectors_is_within_the_tolerance(tolerance):
    """20 draws, of which a failure of 0.1 would leave 2 out."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 512))
    x /= np.linalg.norm(x, axis=1)[:, None]
    rank = kernel_rank(64, tolerance, 0.1)
    images = [x @ rng.standard_normal((512, rank)) / np.sqrt(rank) for _ in range(20)]
    worst = [np.abs(y @ y.T - x @ x.T).max() for y in images]
    assert 0.3 * tolerance < max(worst) <= tolerance


def test_gradients_of_two_layers_fail_less_often_than_the_bound():
    rng, rank, tolerance, draws, n = np.random.default_rng(1), 24, 0.8, 1000, 2
    layers = [gradients(rng, n, 5, 8, 1), 0.2 * gradients(rng, n, 6, 5, 2)]
    kernel = sum(projected_mean(layer, layer) for layer in layers)
    unit = np.sqrt(np.outer(kernel.diagonal(), kernel.diagonal()))
    failed = 0
    for _ in range(draws):
        drawn = [rng.standard_normal((rank, layer.shape[2])) / np.sqrt(rank) for layer in layers]
        found = sum(projected(layer, layer, a) for layer, a in zip(layers, drawn, strict=True))
        failed += np.any(np.abs(found - kernel) > tolerance * unit)
    assert 0 < failed / draws <= kernel_failure(n, tolerance, rank) < 1


ONE = np.ones((1, 2, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: projection_variance(ONE, ONE, 0), "rank = 0"),
        (lambda: projection_variance(ONE, ONE, 1, excess=-2.1), "excess = -2.1: take rank >= 1 and a finite excess"),
        (lambda: ridge_shift_variance([ONE], [ONE], np.ones(1), 0.0, 1), "ridge = 0.0"),
        (lambda: ridge_shift_variance([ONE, ONE], [ONE], np.ones(1), 1.0, 1), "2, 1 layers"),
        (lambda: pair_failure(0.0, 1), "tolerance = 0.0"),
        (lambda: pair_failure(0.1, 0), "rank = 0"),
        (lambda: kernel_failure(0, 0.1, 1), "examples = 0"),
        (lambda: kernel_rank(2, 0.1, 1.0), "failure = 1.0: a probability"),
        (lambda: kernel_rank(2, -0.1, 0.5), "tolerance = -0.1"),
        (lambda: jl_failure(2, 1.0, 1), "tolerance = 1.0: take 0 < tolerance < 1"),
        (lambda: jl_failure(2, 0.5, 0), "rank = 0"),
        (lambda: jl_rank(0, 0.5, 0.1), "examples = 0"),
    ],
)
def test_what_has_no_meaning_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
