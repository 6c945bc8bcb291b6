"""Neural tangent kernels in closed form: deep linear networks of any width, and three activations of infinite width.

Symbols: x in R^n0 an input, L hidden layers of widths n_1, ..., n_L, one output, phi the activation. With h_0 = x and
phi left out of the first layer,

    h_l = sigma_w W_l phi(h_{l-1}) / sqrt(n_{l-1}) + sigma_b b_l,   l = 1, ..., L + 1,   f = h_{L+1},

and all entries of W_l and b_l drawn from N(0, 1) and trained: the NTK parametrisation (Jacot et al. 2018,
arXiv 1806.07572). Theta(x, x') = <df(x)/dtheta, df(x')/dtheta> is the tangent kernel, K(x, x') = E f(x) f(x') the one
of the network as a Gaussian process (NNGP). What the kernel then predicts of training is in `lazy`.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

Widths = tuple[int, ...]
Array = Float64[np.ndarray, "..."]
Cosines = Float64[np.ndarray, "*any"]
Moments = Callable[[Array, Array, Array], tuple[Array, Array]]

PARALLEL = 5e-15
"""Cosines closer to 1 or -1 are taken as that: the rounding of x.x' would make angles of up to 1e-7 of the angle 0.
It stays below this for inputs of up to a million features."""


def linear_kernel(
    inputs: Float64[np.ndarray, "n features"], others: Float64[np.ndarray, "m features"], hidden: int
) -> Float64[np.ndarray, "n m"]:
    """E Theta(x, x') = (L + 1) x.x' / n0 of a linear network, phi(h) = h with sigma_w = 1 and sigma_b = 0.

    Exact for any hidden widths, equal or not: the layers above and below W_p are independent, and each of the L + 1
    factors W_p adds x.x' / n0. inputs, others: one x a row. hidden: L >= 0.
    """
    _check_hidden(hidden, 0)
    return (hidden + 1) * (inputs @ others.T) / inputs.shape[1]


def linear_second_moment(widths: Widths) -> float:
    """E Theta(x, x)^2 over (|x|^2 / n0)^2 of a linear network, sigma_w = 1, sigma_b = 0, of any widths. Exact, ours.

        prod_l (1 + 2/n_l) [(L + 1)(L + 3) / 3 + 4/3 sum_{1 <= i <= j <= L} prod_{l = i}^j (n_l - 1) / (n_l + 2)].

    Theta = sum_p |A_p|^2 |B_p|^2 with A_p = W_{p-1} ... W_1 x and B_p = W_{L+1} ... W_{p+1}. In E |A_p B_p A_q B_q|^2,
    p < q, layers outside of p, ..., q - 1 add 1 + 2/n_l each, those inside E |M|_F^4 of the product M of the factors
    between. A further Gaussian factor of m rows takes (E (tr M M^T)^2, E tr (M M^T)^2), over the square of its mean
    size, to [[1, 2/m], [1/m, 1 + 1/m]] times itself. This matrix has for all m the same eigenvectors (1, 1) and
    (2, -1), with 1 + 2/m and 1 - 1/m, so that the inside is 1/3 prod (1 + 2/n_l) + 2/3 prod (1 - 1/n_l).

    widths: n_1, ..., n_L, (n,) * L for equal ones. Raises ValueError for widths below 1.
    """
    return float(_second_moment(widths))


def linear_variance(widths: Widths) -> float:
    """Var Theta(x, x) over (|x|^2 / n0)^2 of a linear network, without the cancellation of the two terms.

    4/n for L = 1, 4 (5n + 4) / n^2 for two equal layers. To first order in 1/n_l it is

        sum_l (2 (L + 1)^2 - 4 l (L + 1 - l)) / n_l,       2 L (L + 1)(2L + 1) / (3n) for equal widths:

    a narrow layer disturbs the kernel least in the middle; in deep networks half as much as at either end.
    """
    return float(_second_moment(widths) - (len(widths) + 1) ** 2)


def _second_moment(widths: Widths) -> Fraction:
    if any(width < 1 for width in widths):
        raise ValueError(f"widths = {widths}: give n_1, ..., n_L, the number of units of each hidden layer, all >= 1")
    depth, outside = len(widths), Fraction(1)
    ending = intervals = Fraction(0)  # sums over i of the products that end with this layer, and over all so far
    for width in widths:
        outside *= Fraction(width + 2, width)
        ending = Fraction(width - 1, width + 2) * (1 + ending)
        intervals += ending
    return outside * ((depth + 1) * (depth + 3) + 4 * intervals) / 3


class Kernels(NamedTuple):
    """Both kernels of a network of infinite width, one row for each input and one column for each of the others."""

    nngp: Float64[np.ndarray, "n m"]
    """K(x, x'), the covariance of f at the start."""
    ntk: Float64[np.ndarray, "n m"]
    """Theta(x, x')."""


def infinite_width(
    inputs: Float64[np.ndarray, "n features"],
    others: Float64[np.ndarray, "m features"],
    hidden: int,
    activation: str = "relu",
    weight: float | None = None,
    bias: float = 0.0,
    last: float = 1.0,
) -> Kernels:
    """K and Theta as all hidden widths go to infinity (Jacot et al. 2018, arXiv 1806.07572, proposition 1, theorem 1).

        K_1 = Theta_1 = sigma_w^2 x.x' / n0 + sigma_b^2,        K_{l+1} = sigma_w^2 E phi(u) phi(u') + sigma_b^2,
        Theta_{l+1} = K_{l+1} + sigma_w^2 E phi'(u) phi'(u') Theta_l,         (u, u') ~ N(0, K_l).

    "relu" has the expectations sqrt(K K') k_1(c) / 2 and k_0(c) / 2, c the cosine of K_l and k_n `arc_cosine` (Arora et
    al. 2019, arXiv 1904.11955); "erf" the arc sine of `_erf` (Williams 1997); "linear" K_l and 1.

    inputs, others: one x a row. hidden: L >= 1. weight: sigma_w, by default 1, and sqrt(2) for relu (He et al. 2015).
    last: sigma_w of the last layer; 1 makes Theta(x, x) = (L + 1) |x|^2 / n0 for relu and linear.
    bias: sigma_b of every layer. Raises ValueError if one is out of range.
    """
    inner = (math.sqrt(2) if activation == "relu" else 1.0) if weight is None else weight
    _check(hidden, activation, inner, bias, last)
    moments, shift = MOMENTS[activation], bias**2
    scale = inner**2 / inputs.shape[1]
    nngp = ntk = scale * (inputs @ others.T) + shift
    rows, columns = (scale * np.sum(x * x, axis=1) + shift for x in (inputs, others))  # K(x, x) and K(x', x')
    for gain in [inner**2] * (hidden - 1) + [last**2]:
        covariance, slopes = moments(nngp, rows[:, None], columns[None, :])
        nngp = gain * covariance + shift
        ntk = nngp + gain * slopes * ntk
        rows, columns = (gain * moments(of, of, of)[0] + shift for of in (rows, columns))
    return Kernels(nngp, ntk)


def arc_cosine(order: int, cosine: Cosines) -> Cosines:
    """k_0(c) = (pi - t) / pi and k_1(c) = (sin t + (pi - t) cos t) / pi, t = arccos c (Cho & Saul 2009).

    For (u, v) ~ N(0, [[1, c], [c, 1]]) they are 2 E 1[u > 0] 1[v > 0] and 2 E relu(u) relu(v); k_1' = k_0.
    Near |c| = 1 an error of 1e-16 in c is one of 1e-8 in k_0. order: 0 or 1. Raises ValueError for |c| > 1.
    """
    if order not in (0, 1):
        raise ValueError(f"order = {order}: the kernels of steps and of relu are known here; take 0 or 1")
    if not np.all(np.abs(cosine) <= 1 + 1e-12):
        raise ValueError(f"cosine up to {np.max(np.abs(cosine))}: divide by both norms; take -1 <= cosine <= 1")
    cosine = np.clip(cosine, -1, 1)
    rest = math.pi - np.arccos(cosine)
    if order == 0:
        return rest / math.pi
    return (np.sqrt((1 - cosine) * (1 + cosine)) + rest * cosine) / math.pi


def _relu(cross: Array, left: Array, right: Array) -> tuple[Array, Array]:
    """E phi(u) phi(v) and E phi'(u) phi'(v), u and v of variances `left` and `right` and covariance `cross`."""
    norms = np.sqrt(left * right)
    cosine = np.divide(cross, norms, out=np.zeros_like(cross), where=norms > 0)  # x = 0 makes all of it vanish
    cosine = np.where(np.abs(cosine) > 1 - PARALLEL, np.sign(cosine), cosine)
    return norms * arc_cosine(1, cosine) / 2, arc_cosine(0, cosine) / 2


def _erf(cross: Array, left: Array, right: Array) -> tuple[Array, Array]:
    """The same; 2 / pi arcsin s and 4 / pi ((1 + 2 left)(1 + 2 right) - 4 cross^2)^(-1/2)."""
    norms = (1 + 2 * left) * (1 + 2 * right)
    sine = 2 * cross / np.sqrt(norms)
    return 2 / math.pi * np.arcsin(sine), 4 / math.pi / np.sqrt(norms * (1 - sine) * (1 + sine))


def _linear(cross: Array, left: Array, right: Array) -> tuple[Array, Array]:
    return cross, np.ones_like(cross)


MOMENTS: dict[str, Moments] = {"relu": _relu, "erf": _erf, "linear": _linear}


def _check_hidden(hidden: int, least: int) -> None:
    if hidden < least:
        raise ValueError(f"hidden = {hidden}: this is L, the number of hidden layers; take hidden >= {least}")


def _check(hidden: int, activation: str, weight: float, bias: float, last: float) -> None:
    _check_hidden(hidden, 1)
    if activation not in MOMENTS:
        raise ValueError(f"activation = {activation}: its expectations are not known here; take {', '.join(MOMENTS)}")
    for name, value in (("weight", weight), ("last", last)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} = {value}: a standard deviation of weights; take a finite {name} > 0")
    if not 0 <= bias < math.inf:
        raise ValueError(f"bias = {bias}: a standard deviation of biases; take a finite bias >= 0")
