"""The lazy regime: what a tangent kernel predicts of training, and how far a network of finite width leaves it.

Symbols: f_i the outputs on n examples (several outputs of one are examples of their own), J = df/dtheta at the start,
Theta = J J^T, J_* and Theta_* = J_* J^T for test points, r = f - y the residuals, eta the step, t = eta times steps.
The loss is the sum 1/2 |f - y|^2; where a paper averages it over n, t there is n t here.

The linearised model f + J (theta - theta_0) trains in closed form (Lee et al. 2019, arXiv 1902.06720).
With Theta = U diag(lam) U^T and c = U^T r_0, each mode shrinks by s and gathers g = (1 - s) / lam, t if lam = 0:

    r_t = U s c,     f_* moves by -Theta_* U g c,     theta_t - theta_0 = -J^T U g c,  of norm (sum lam g^2 c^2)^1/2,

with s = e^(-lam t) by gradient flow and (1 - eta lam)^k after k steps of descent: no inverse, so Theta may be singular.

How lazy is a network? In the NTK parametrisation, at width n and for a loss that has been reduced to a fixed share,

    |theta_t - theta_0|               n^0      the law above with Theta -> its limit
    the same over |theta_0|           n^-1/2   one hidden layer; n^-1 from two on: `parameter_norm` grows as n
    |Theta_t - Theta_0| / |Theta_0|   n^-1     linear, one hidden layer: exactly, `two_layer_drift`; other smooth
                                               ones by experiment and by Feynman diagrams (Dyer &
                                               Gur-Ari 2020, arXiv 1909.11304); kinks are slower,
                                               at most n^-1/2 by theorem (Lee et al. 2019, arXiv 1902.06720)
"""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

Kernel = Float[np.ndarray, "n n"]
Residual = Float64[np.ndarray, " n"]
Cross = Float64[np.ndarray, "tests n"]
Times = Float64[np.ndarray, " times"]
Steps = Int[np.ndarray, " times"]
Series = Float64[np.ndarray, "times n"]
Scalars = Float64[np.ndarray, "*any"]

UNITS = 16
"""Eigenvalues below so many units of rounding, as a share of the largest, are 0: instead of none, kernels have some of
up to two units in float64 and a quarter in float32, of either sign, which over long times move what cannot move."""
SHOWN = 10
"""Or below so many times the lowest that is negative: a kernel's true precision, where its dtype has more digits."""
ROUNDING = 2e-6
"""Of the largest eigenvalue: as far as this a kernel may be from symmetric and positive semidefinite, as kernels of
float32 networks are."""


def flow_residual(kernel: Kernel, residual: Residual, times: Times) -> Series:
    """r_t = exp(-Theta t) r_0, one row for each t.

    kernel: Theta; one of a float32 network as float32, which says that modes below 2e-6 of the largest are rounding.
    residual: r_0 = f_0 - y. times: eta times steps. Raises ValueError for a kernel that is not symmetric and positive
    semidefinite, and for times that are negative or infinite.
    """
    modes = _modes(kernel, residual)
    shrunk, _ = _flow(modes.rates, times)
    return shrunk * modes.weights @ modes.vectors.T


def descent_residual(kernel: Kernel, residual: Residual, lr: float, steps: Steps) -> Series:
    """r_k = (I - eta Theta)^k r_0, one row for each k; exact, also where it diverges, from eta = 2 / lam_max on.

    lr: eta. steps: k >= 0. Raises ValueError as `flow_residual` does. Over the flow at t = eta k it has the error
    -eta t Theta^2 / 2 r_t to first order in eta.
    """
    modes = _modes(kernel, residual)
    shrunk, _ = _descent(modes.rates, lr, steps)
    return shrunk * modes.weights @ modes.vectors.T


def flow_prediction(
    kernel: Kernel, cross: Cross, residual: Residual, times: Times
) -> Float64[np.ndarray, "times tests"]:
    """f_t - f_0 at test points, Theta_* Theta^-1 (I - exp(-Theta t)) (y - f_0), one row for each t.

    cross: Theta_*, a row for each test point. The others, and what is raised: `flow_residual`.
    """
    modes = _modes(kernel, residual)
    _, gathered = _flow(modes.rates, times)
    return -(gathered * modes.weights) @ (cross @ modes.vectors).T


def descent_prediction(
    kernel: Kernel, cross: Cross, residual: Residual, lr: float, steps: Steps
) -> Float64[np.ndarray, "times tests"]:
    """f_k - f_0 at test points, Theta_* Theta^-1 (I - (I - eta Theta)^k) (y - f_0); arguments as above."""
    modes = _modes(kernel, residual)
    _, gathered = _descent(modes.rates, lr, steps)
    return -(gathered * modes.weights) @ (cross @ modes.vectors).T


def movement(kernel: Kernel, residual: Residual, times: Times) -> Times:
    """|theta_t - theta_0| by gradient flow; it rises to (r_0^T Theta^-1 r_0)^1/2. Arguments: `flow_residual`."""
    modes = _modes(kernel, residual)
    _, gathered = _flow(modes.rates, times)
    return np.sqrt((gathered * modes.weights) ** 2 @ modes.rates)


def descent_movement(kernel: Kernel, residual: Residual, lr: float, steps: Steps) -> Times:
    """|theta_k - theta_0| after k steps of descent; arguments: `descent_residual`."""
    modes = _modes(kernel, residual)
    _, gathered = _descent(modes.rates, lr, steps)
    return np.sqrt((gathered * modes.weights) ** 2 @ modes.rates)


def two_layer_drift(width: int, square: float, kernel: Scalars, start: Scalars, end: Scalars) -> Scalars:
    """Theta_t of one example in a linear network with one hidden layer, by gradient flow of any loss. Exact, ours.

        Theta_t^2 = Theta_0^2 + 4 |x|^2 / n0 (f_t^2 - f_0^2) / n.

    f = a.h / sqrt(n) with h = W x / sqrt(n0) and q = |x|^2 / n0 has Theta = (q |a|^2 + |h|^2) / n. The flow keeps
    q |a|^2 - |h|^2, and with f' = -loss' Theta it is Theta' = -4 q loss' f / n: hence Theta Theta' = 4 q f f' / n. It
    also holds for any number of scalar inputs: take x = 1, f(1) and Theta(1, 1), since f(x) = x f(1) and
    Theta(x, x') = x x' Theta(1, 1). At the start E Theta_0 = 2q, so that the relative drift is
    (f_t^2 - f_0^2) / (2 q n) to first order.

    width: n. square: |x|^2 / n0. kernel: Theta_0. start, end: f_0 and f_t.
    Raises ValueError unless Theta_0 >= 2 sqrt(q / n) |f_0|, which a network of this kind cannot avoid.
    """
    if width < 1 or not 0 < square < math.inf:
        raise ValueError(f"width = {width}, square = {square}: take width >= 1 and a finite |x|^2 / n0 > 0")
    scale = 4 * square / width
    kept = kernel**2 - scale * start**2  # by Cauchy and Schwarz at least ((q |a|^2 - |h|^2) / n)^2
    if np.any(kernel <= 0) or np.any(kept < -ROUNDING * kernel**2):
        raise ValueError(
            f"kernel = {kernel}, start = {start}: |a|^2 q + |h|^2 >= 2 sqrt(q) |a.h| leaves no such network; "
            f"take kernel >= 2 sqrt(square / width) |start|, and > 0"
        )
    return np.sqrt(np.maximum(kept, 0) + scale * end**2)


def parameter_norm(inputs: int, widths: tuple[int, ...], *, bias: bool = False) -> float:
    """(E |theta_0|^2)^1/2 in the NTK parametrisation: the root of the number of parameters, all of them N(0, 1).

    sum_{l = 0}^{L} n_l n_{l+1} with n_{L+1} = 1, and n_1 + ... + n_L + 1 more with biases: of order n^1/2 for one
    hidden layer and n from two on. inputs: n_0. widths: n_1, ..., n_L.
    """
    sizes = (inputs, *widths, 1)
    if min(sizes) < 1:
        raise ValueError(f"inputs = {inputs}, widths = {widths}: take inputs >= 1 and every width >= 1")
    count = sum(below * above for below, above in pairwise(sizes))
    return math.sqrt(count + bias * sum(sizes[1:]))


class _Modes(NamedTuple):
    """The eigenvalues lam of Theta, its eigenvectors U, and c = U^T r_0."""

    rates: Residual
    vectors: Kernel
    weights: Residual


def _modes(kernel: Kernel, residual: Residual) -> _Modes:
    if not np.abs(kernel - kernel.T).max(initial=0) <= ROUNDING * np.abs(kernel).max(initial=0):
        raise ValueError("kernel: it is not symmetric, so its modes are not orthogonal; give J J^T, not a sign kernel")
    rates, vectors = np.linalg.eigh(kernel.astype(float))
    largest = np.abs(rates).max(initial=0)
    if not rates.min(initial=0) >= -ROUNDING * largest:
        raise ValueError(f"kernel: its eigenvalue {rates.min():.3g} < 0 makes residuals grow; give J J^T")
    rounding = max(UNITS * float(np.finfo(kernel.dtype).eps) * largest, -SHOWN * rates.min(initial=0))
    return _Modes(np.where(rates > rounding, rates, 0.0), vectors, vectors.T @ residual)


def _flow(rates: Residual, times: Times) -> tuple[Series, Series]:
    """s and g of each time and mode."""
    if not np.all((times >= 0) & (times < math.inf)):
        raise ValueError(f"times = {times}: eta times steps; take finite times >= 0")
    passed = np.outer(times, rates)
    waited = np.broadcast_to(times[:, None], passed.shape)
    return np.exp(-passed), np.divide(-np.expm1(-passed), rates, out=waited.copy(), where=passed > 0)


def _descent(rates: Residual, lr: float, steps: Steps) -> tuple[Series, Series]:
    """s and g of each number of steps and mode; 1 - s without cancellation where eta lam is small."""
    if not 0 < lr < math.inf or np.any(steps < 0):
        raise ValueError(f"lr = {lr}, steps = {steps}: take a finite step > 0, and steps >= 0")
    count, pace = steps[:, None].astype(float), lr * rates
    shrunk = (1 - pace) ** steps[:, None]
    small = -np.expm1(count * np.log1p(-np.minimum(pace, 0.5)))
    grown = np.where(pace < 0.5, small, 1 - shrunk)
    return shrunk, np.divide(grown, rates, out=lr * count * np.ones_like(pace), where=pace * count > 0)
