"""Kernels in closed form, against Wick's theorem, autograd on random networks, quadrature and reference values."""

from collections import defaultdict
from fractions import Fraction
from itertools import pairwise
from math import factorial, pi, prod

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.polynomial.legendre import leggauss
from scipy.special import erf
from scipy.stats import multivariate_normal

from theory.ntk import arc_cosine, infinite_width, linear_kernel, linear_second_moment, linear_variance

ROOT2 = np.sqrt(2)


def sampled(x, widths, draws, seed, activation=lambda h: h, weight=1.0, bias=0.0, last=None):
    """Theta(x_i, x_j) of `draws` random networks, shape (draws, n, n), by autograd."""
    generator = torch.Generator().manual_seed(seed)
    sizes, gains = (x.shape[1], *widths, 1), [weight] * len(widths) + [weight if last is None else last]

    def normal(*shape):
        return torch.randn(draws, *shape, dtype=torch.float64, generator=generator).requires_grad_()

    layers = [(normal(above, below), normal(above)) for below, above in pairwise(sizes)]
    gradients = []
    for row in torch.from_numpy(x):
        hidden = row.expand(draws, -1)
        for index, ((matrix, shift), gain) in enumerate(zip(layers, gains, strict=True)):
            below = activation(hidden) if index else hidden
            hidden = gain * torch.einsum("dij,dj->di", matrix, below) / below.shape[1] ** 0.5 + bias * shift
        found = torch.autograd.grad(hidden.sum(), [p for layer in layers for p in layer])
        gradients.append(torch.cat([g.reshape(draws, -1) for g in found], 1))
    stacked = torch.stack(gradients, 1)
    return (stacked @ stacked.mT).numpy()


def z_scores(samples, expected):
    return (samples.mean(0) - expected) / (samples.std(0) / np.sqrt(len(samples)))


# Deep linear networks of finite width

Polynomial = dict[tuple[int, ...], int]


def times(left: Polynomial, right: Polynomial) -> Polynomial:
    found: Polynomial = defaultdict(int)
    for a, c in left.items():
        for b, d in right.items():
            found[tuple(i + j for i, j in zip(a, b, strict=True))] += c * d
    return found


def plus(terms) -> Polynomial:
    found: Polynomial = defaultdict(int)
    for term in terms:
        for a, c in term.items():
            found[a] += c
    return found


def normal_mean(polynomial: Polynomial) -> int:
    """E of a polynomial in independent N(0, 1): E w^(2k) = (2k)! / (2^k k!)."""
    halves = [(c, [k // 2 for k in a]) for a, c in polynomial.items() if all(k % 2 == 0 for k in a)]
    return sum(c * prod(factorial(2 * k) // (2**k * factorial(k)) for k in half) for c, half in halves)


def kernel_polynomial(widths) -> Polynomial:
    """n_1 ... n_L Theta(1, 1) for n0 = 1, as a polynomial in all weights."""
    sizes = (1, *widths, 1)
    count, used = sum(a * b for a, b in pairwise(sizes)), 0
    units: list[Polynomial] = [{(0,) * count: 1}]
    for below, above in pairwise(sizes):
        weight = [
            [tuple(int(k == used + i * below + j) for k in range(count)) for j in range(below)] for i in range(above)
        ]
        units = [plus(times({weight[i][j]: 1}, units[j]) for j in range(below)) for i in range(above)]
        used += below * above
    slopes = [{(*a[:k], 0, *a[k + 1 :]): c for a, c in units[0].items() if a[k]} for k in range(count)]
    return plus(times(slope, slope) for slope in slopes)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4).filter(lambda w: prod(w) <= 12))
@example([2, 2, 2])
@example([1, 3, 2])
@example([2, 1, 2, 2])
def test_moments_of_the_linear_kernel_are_those_of_wicks_theorem(widths):
    """In integers, so that the closed form is met to the last digit: 147/2 for three layers of two units."""
    theta, scale = kernel_polynomial(widths), prod(widths)
    assert Fraction(normal_mean(theta), scale) == len(widths) + 1
    exact = Fraction(normal_mean(times(theta, theta)), scale**2)
    assert linear_second_moment(tuple(widths)) == float(exact)
    assert linear_variance(tuple(widths)) == float(exact - (len(widths) + 1) ** 2)


def test_second_moment_of_three_layers_of_two_units():
    assert linear_second_moment((2, 2, 2)) == 73.5


@pytest.mark.parametrize("widths", [(7,), (5, 9), (12, 6, 8), (4, 14, 4, 9), (8,) * 5])
def test_mean_and_second_moment_of_random_linear_networks(widths):
    x = np.random.default_rng(0).standard_normal((3, 4))
    found = sampled(x, widths, 20000, seed=len(widths))
    assert np.abs(z_scores(found, linear_kernel(x, x, len(widths)))).max() < 4
    sizes = np.sum(x**2, axis=1) / 4
    squares = (np.diagonal(found, axis1=1, axis2=2) / sizes) ** 2
    assert np.abs(z_scores(squares, linear_second_moment(widths))).max() < 4
    variances = (np.diagonal(found, axis1=1, axis2=2) / sizes - len(widths) - 1) ** 2
    assert np.abs(z_scores(variances, linear_variance(widths))).max() < 4


@given(st.integers(1, 1000))
def test_variance_of_one_and_of_two_equal_layers(n):
    np.testing.assert_allclose(linear_variance((n,)), 4 / n, rtol=1e-15)
    np.testing.assert_allclose(linear_variance((n, n)), 4 * (5 * n + 4) / n**2, rtol=1e-15)


@given(st.lists(st.integers(10**6, 10**7), min_size=1, max_size=8))
def test_variance_to_first_order_in_the_widths(widths):
    """The next order is about L^2 over the width, 1e-4 here at most."""
    hidden = len(widths)
    weights = [2 * (hidden + 1) ** 2 - 4 * layer * (hidden + 1 - layer) for layer in range(1, hidden + 1)]
    expected = sum(weight / n for weight, n in zip(weights, widths, strict=True))
    np.testing.assert_allclose(linear_variance(tuple(widths)), expected, rtol=1e-4)
    assert sum(weights) == pytest.approx(2 * hidden * (hidden + 1) * (2 * hidden + 1) / 3)


def test_a_narrow_layer_disturbs_least_in_the_middle():
    at = [linear_variance((1000,) * i + (20,) + (1000,) * (4 - i)) for i in range(5)]
    assert at[2] < at[1] < at[0]
    np.testing.assert_allclose(at, at[::-1], rtol=1e-15)


# Infinite width

INPUTS = np.array([[1.0, 0, 0], [0, 1, 0], [0.6, 0.8, 0], [1, 2, -1]])
ENTRIES = ([0, 0, 0, 0, 1, 1, 2, 3], [0, 1, 2, 3, 2, 3, 3, 3])
NEURAL_TANGENTS = {  # computed with another library, neural-tangents 0.6.5; its digits
    (1, "relu"): """.666666666667 .106103295395 .366815742195 .659827672073
                    .487751169397 1.222168351339 1.368402704180 4""",
    (2, "relu"): """1 .228569545428 .514805433559 .976539724022
                    .678050483608 1.701153514858 1.928263303758 6""",
    (3, "relu"): """1.333333333333 .353462702268 .650762228395 1.282983253734
                    .846732181655 2.125620388895 2.429626797651 8""",
    (2, "relu", 1.5, 0.05, 1.5): """2.865273437500 .663047649017 1.481235529880 2.795968226333
                               1.947112712407 4.859415584000 5.505085147337 17.103554687500""",
    (1, "erf", 1.5, 0.05, 1.5): """2.002209539254 .008218149262 1.086942517801 .891375289046
                              1.507273323214 1.999689980449 2.294305373290 4.565005066836""",
}


@pytest.mark.parametrize("network", NEURAL_TANGENTS, ids=str)
def test_kernels_are_those_of_neural_tangents(network):
    """To the 12 decimals that were kept."""
    expected = np.array(NEURAL_TANGENTS[network].split(), dtype=float)
    np.testing.assert_allclose(infinite_width(INPUTS, INPUTS, *network).ntk[ENTRIES], expected, rtol=0, atol=6e-13)


@pytest.mark.parametrize("hidden", [1, 2, 3, 4])
def test_linear_kernels_are_those_of_neural_tangents(hidden):
    found = infinite_width(INPUTS, INPUTS, hidden, "linear")
    np.testing.assert_allclose(3 * found.nngp[ENTRIES], [1, 0, 0.6, 1, 0.8, 2, 2.2, 6], rtol=1e-14)
    np.testing.assert_allclose(found.ntk, linear_kernel(INPUTS, INPUTS, hidden), rtol=1e-14)
    np.testing.assert_allclose(found.ntk, (hidden + 1) * found.nngp, rtol=1e-14)


@pytest.mark.parametrize(
    ("hidden", "apart", "near"),
    [
        (1, 0.106103295395, 0.741339725318),
        (2, 0.164577030067, 0.748214743812),
        (3, 0.201608573371, 0.754165764117),
    ],
)
def test_covariances_are_those_of_neural_tangents(hidden, apart, near):
    found = infinite_width(INPUTS, INPUTS, hidden).nngp
    np.testing.assert_allclose([found[0, 1], found[2, 3]], [apart, near], rtol=0, atol=6e-13)


PHI = {
    "relu": (lambda h: np.maximum(h, 0), lambda h: (h > 0) * 1.0),
    "erf": (erf, lambda h: 2 / np.sqrt(pi) * np.exp(-(h**2))),
    "linear": (lambda h: h, np.ones_like),
}
RADII, RADIAL = leggauss(80)
ANGLES, ANGULAR = leggauss(60)


def gaussian_mean(function, covariance):
    """E g(u) g(v) in polar coordinates; between the angles where u or v changes its sign all is smooth."""
    size = np.sqrt(np.diag(covariance))
    turn = np.arccos(np.clip(covariance[0, 1] / size.prod(), -1, 1))
    corners = np.sort(np.mod([pi / 2, 3 * pi / 2, pi / 2 + turn, 3 * pi / 2 + turn], 2 * pi))
    radii, total = 6 * (RADII + 1), 0.0  # of 12: exp(-72) lies beyond
    for low, high in zip(corners, np.append(corners[1:], corners[0] + 2 * pi), strict=True):
        angles = low + (high - low) * (ANGLES + 1) / 2
        u, v = (np.outer(radii, s * np.cos(angles - at)) for s, at in zip(size, (0, turn), strict=True))
        inner = (function(u) * function(v)) @ ANGULAR * (high - low) / 2
        total += 6 * RADIAL @ (radii * np.exp(-(radii**2) / 2) * inner) / (2 * pi)
    return total


def by_quadrature(x, other, hidden, activation, weight, bias, last):
    """K(x, x') and Theta(x, x'), layer by layer from their definition."""
    function, slope = PHI[activation]
    pair = np.stack([x, other])
    covariance = weight**2 * pair @ pair.T / len(x) + bias**2
    tangent = covariance[0, 1]
    for gain in [weight] * (hidden - 1) + [last]:
        slopes = gaussian_mean(slope, covariance)
        own = [gaussian_mean(function, np.full((2, 2), covariance[i, i])) for i in (0, 1)]
        both = gaussian_mean(function, covariance)
        covariance = gain**2 * np.array([[own[0], both], [both, own[1]]]) + bias**2
        tangent = covariance[0, 1] + gain**2 * slopes * tangent
    return covariance[0, 1], tangent


@settings(max_examples=40)
@given(
    st.sampled_from(sorted(PHI)),
    st.integers(1, 3),
    st.integers(1, 5),
    st.tuples(st.floats(0.3, 1.6), st.floats(0, 1), st.floats(0.3, 1.6)),
    st.integers(0, 2**16),
)
def test_kernels_are_the_recursion_of_gaussian_expectations(activation, hidden, features, scales, seed):
    """The quadrature is good to 1e-10. Inputs of one feature are parallel, where cosines give angles to 1e-7 only."""
    weight, bias, last = scales
    x, other = np.random.default_rng(seed).standard_normal((2, 2, features))
    found = infinite_width(x, other, hidden, activation, weight, bias, last)
    for i, j in np.ndindex(2, 2):
        expected = by_quadrature(x[i], other[j], hidden, activation, weight, bias, last)
        atol = 1e-7 if activation == "relu" and features == 1 else 1e-9
        np.testing.assert_allclose((found.nngp[i, j], found.ntk[i, j]), expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("activation", "function"), [("relu", torch.relu), ("erf", torch.erf)])
def test_one_hidden_layer_of_any_width_has_the_infinite_kernel_as_its_mean(activation, function):
    """Units of one hidden layer are independent, so that the mean over networks is exact at three of them."""
    found = sampled(INPUTS, (3,), 20000, 5, function, weight=1.3, bias=0.4, last=0.8)
    expected = infinite_width(INPUTS, INPUTS, 1, activation, weight=1.3, bias=0.4, last=0.8).ntk
    assert np.abs(z_scores(found, expected)[ENTRIES]).max() < 4


def test_deep_networks_come_near_as_they_grow():
    """Three hidden layers: the deviation of the mean is O(1/n)."""
    expected = infinite_width(INPUTS, INPUTS, 3).ntk
    found = sampled(INPUTS, (80,) * 3, 400, 1, torch.relu, weight=ROOT2, last=1.0).mean(0)
    assert np.abs(found - expected).max() < 0.1 * expected.max()


@given(st.integers(1, 900), st.integers(1, 30), st.integers(0, 2**16))
def test_relu_kernel_of_an_input_with_itself_with_its_multiples_and_its_opposite(features, hidden, seed):
    """Parallel inputs have angle 0 exactly, whatever rounding makes of x.x', and opposite ones pi in one layer."""
    x = np.random.default_rng(seed).standard_normal((3, features))
    sizes = np.sum(x**2, axis=1) / features
    for factor in (1.0, 3.7):
        found = infinite_width(x, factor * x, hidden)
        np.testing.assert_allclose(np.diag(found.nngp), factor * sizes, rtol=1e-13)
        np.testing.assert_allclose(np.diag(found.ntk), factor * (hidden + 1) * sizes, rtol=1e-13)
    opposite = infinite_width(x, -x, 1)
    np.testing.assert_allclose(np.diag(opposite.ntk), 0, atol=1e-14 * sizes.max())


def test_kernel_is_symmetric_positive_and_transposes():
    x, other = np.random.default_rng(1).standard_normal((2, 8, 30))
    for activation in PHI:
        for kernel in infinite_width(x, x, 3, activation, bias=0.3):
            np.testing.assert_allclose(kernel, kernel.T, rtol=1e-12)
            assert np.linalg.eigvalsh(kernel)[0] > 0
        for there, back in zip(
            infinite_width(x, other, 2, activation), infinite_width(other, x, 2, activation), strict=True
        ):
            np.testing.assert_allclose(there, back.T, rtol=1e-12)


def test_an_input_of_zeros_has_no_kernel_without_biases():
    found = infinite_width(np.zeros((1, 3)), INPUTS, 2)
    assert not found.nngp.any()
    assert not found.ntk.any()
    assert np.isfinite(infinite_width(np.zeros((1, 3)), INPUTS, 2, bias=0.1).ntk).all()


def test_defaults_are_he_scaling():
    for activation, weight in (("relu", ROOT2), ("erf", 1.0), ("linear", 1.0)):
        default = infinite_width(INPUTS, INPUTS, 2, activation)
        given_all = infinite_width(INPUTS, INPUTS, 2, activation, weight=weight, last=1.0)
        np.testing.assert_array_equal(default.ntk, given_all.ntk)
    same = infinite_width(INPUTS, INPUTS, 2, weight=1.5, last=1.5)
    assert np.abs(infinite_width(INPUTS, INPUTS, 2, weight=1.5).ntk - same.ntk).max() > 0.1


@given(st.floats(-0.999, 0.999))
def test_arc_cosine_kernels_are_orthant_probabilities_and_their_integral(c):
    covariance = np.array([[1, c], [c, 1]])
    cosine = np.array([c - 1e-5, c, c + 1e-5])
    steps, ramps = arc_cosine(0, cosine), arc_cosine(1, cosine)
    assert steps[1] == pytest.approx(2 * multivariate_normal([0, 0], covariance).cdf([0, 0]), abs=1e-9)
    assert ramps[1] == pytest.approx(2 * gaussian_mean(PHI["relu"][0], covariance), abs=1e-12)
    assert (ramps[2] - ramps[0]) / 2e-5 == pytest.approx(steps[1], abs=1e-6)


def test_arc_cosine_at_the_ends():
    ends = np.array([-1.0, 0, 1, 1 + 1e-15])
    assert arc_cosine(0, ends).tolist() == [0, 0.5, 1, 1]
    np.testing.assert_allclose(arc_cosine(1, ends), [0, 1 / pi, 1, 1], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_kernel(INPUTS, INPUTS, -1), "hidden = -1"),
        (lambda: linear_second_moment((3, 0)), r"widths = \(3, 0\)"),
        (lambda: linear_variance((0,)), "all >= 1"),
        (lambda: infinite_width(INPUTS, INPUTS, 0), "hidden = 0"),
        (lambda: infinite_width(INPUTS, INPUTS, 1, "tanh"), "activation = tanh.*take relu, erf, linear"),
        (lambda: infinite_width(INPUTS, INPUTS, 1, weight=0.0), "weight = 0.0"),
        (lambda: infinite_width(INPUTS, INPUTS, 1, last=np.inf), "last = inf"),
        (lambda: infinite_width(INPUTS, INPUTS, 1, bias=-0.1), "bias = -0.1"),
        (lambda: arc_cosine(2, np.zeros(1)), "order = 2"),
        (lambda: arc_cosine(1, np.array([1.1])), "take -1 <= cosine <= 1"),
        (lambda: arc_cosine(0, np.array([np.nan])), "divide by both norms"),
    ],
)
def test_what_is_out_of_range_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
