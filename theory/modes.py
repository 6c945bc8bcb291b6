"""Gradient flow of deep linear networks in closed form: single modes, two layers from any balanced start, any depth.

Symbols: W_1, ..., W_N of any shapes, P = W_N ... W_1, loss 1/2 |P - S|_F^2 unless said otherwise, G its gradient in P;
s a singular value of S, a the same mode of P; t = eta times steps; D_j = W_{j+1}^T W_{j+1} - W_j W_j^T the balance.
Whitened data X with labels Y are the target S = Y X^T. Descent with a step eta differs from the flow by O(eta)
(`logistic_lag` has the coefficient); `spectral.modes` has the modes of descent itself, step by step.

The flow keeps every D_j, for any loss of the product (Arora et al. 2018, arXiv 1802.06509; Du et al. 2018,
arXiv 1806.00900); one step of descent moves it by exactly eta^2 (g_{j+1}^T g_{j+1} - g_j g_j^T): see
`invariants.balance_drift`.
Everything here follows from that: D = 0 is called balanced, D = lambda I lambda-balanced.
"""

import math
from itertools import pairwise

import numpy as np
from jaxtyping import Float64

Times = Float64[np.ndarray, " times"]
Series = Float64[np.ndarray, "*any"]
Matrix = Float64[np.ndarray, "rows cols"]
Weights = tuple[Float64[np.ndarray, "_ _"], ...]

ROUNDING = 1e-13
"""Singular values below this share of the largest are zero: a fractional power would make 1e-5 of rounding's 1e-16."""
EFOLDS = 4.0
"""`two_layer_gram` goes on from where it is after so many: no matrix that it inverts has a condition beyond exp(EFOLDS)
times that of the weights."""


def logistic(signal: float, start: float, time: Times) -> Times:
    """a(t) of a balanced mode of two layers, from a' = 2 a (s - a), a(0) = a_0 (Saxe et al. 2014, arXiv 1312.6120).

        a(t) = s e^(2st) / (e^(2st) - 1 + s / a_0) = a_0 / (e^(-2st) + 2 a_0 g),   g = (1 - e^(-2st)) / 2s, t for s = 0.

    signal: s >= 0. start: a_0 > 0; zero stays. The modes of a start on the target's singular vectors, W_1 = R diag(b)
    V^T and W_2 = U diag(b) R^T with a_0 = b^2, follow this one by one.
    """
    _check(signal, start, 0.0, time)
    decay, gathered = _decay(2 * signal, time)
    return start / (decay + 2 * start * gathered)


def half_time(signal: float, start: float) -> float:
    """When `logistic` passes s / 2: ln(s / a_0 - 1) / 2s. Raises ValueError if it starts beyond."""
    if not 0 < start <= signal / 2 < math.inf:
        raise ValueError(
            f"start = {start}, signal = {signal}: half is passed on the way up only; take 0 < a_0 <= s / 2"
        )
    return math.log(signal / start - 1) / (2 * signal)


def logistic_lag(signal: float, start: float, time: Times) -> Times:
    """The part of first order in eta of descent minus `logistic`, over eta, at the same t = eta times steps. Ours.

    A step is a <- a (1 + eta (s - a))^2, that is the flow of a' = 2 a (s - a) + eta a (s - a) (3a - s) to second order.
    Along the logistic a displacement e = a' tau has tau' = (3a - s) / 2 eta, so that

        e / eta = -a (s - a) / 2 [ln(a / a_0) + 2 ln((s - a) / (s - a_0))] = -a (s - a) / 2 [3 ln(a / a_0) - 4 s t].
    """
    mode = logistic(signal, start, time)
    return -mode * (signal - mode) / 2 * (3 * np.log(mode / start) - 4 * signal * time)


def scalar_kernel(product: Series, imbalance: float) -> Series:
    """The tangent kernel w_1^2 + w_2^2 = sqrt(lambda^2 + 4 a^2) of w_2 w_1 = a with w_2^2 - w_1^2 = lambda."""
    return np.hypot(imbalance, 2 * product)


def kernel_growth(signal: float, start: float, imbalance: float) -> float:
    """The kernel when a = s over the kernel at a_0: s / a_0 when balanced (rich), 1 for large |lambda| (lazy)."""
    if not math.isfinite(signal) or start == imbalance == 0:
        raise ValueError(f"signal = {signal}, start = {start}, imbalance = {imbalance}: w = 0 has no kernel to grow")
    first, last = scalar_kernel(np.array([start, signal]), imbalance)
    return float(last / first)


def unbalanced_mode(signal: float, start: float, imbalance: float, time: Times) -> Times:
    """a(t) of two scalar layers with w_2^2 - w_1^2 = lambda: a' = sqrt(lambda^2 + 4 a^2) (s - a), a(0) = a_0.

    From `logistic` at lambda = 0 to s - (s - a_0) e^(-|lambda| t) for large |lambda|. The equation is in Saxe et al.
    2014 (arXiv 1312.6120); Dominé et al. 2024 (arXiv 2409.14623) treat lambda-balanced layers of any size. With
    m = |lambda| and a = m/2 sinh theta, theta' = 2s - m sinh theta, and
    y = m e^theta = 2a + sqrt(m^2 + 4a^2) solves the Riccati equation 2 y' = m^2 + 4 s y - y^2. With R^2 = m^2 + 4 s^2,
    E = e^(-Rt), g = (1 - E) / R and p, q = 1 +- 2s/R (pq = m^2 / R^2),

        y = (y_0 (p + q E) + m^2 g) / (q + p E + y_0 g),        4 a = (y - m) (y + m) / y,

    with y - m multiplied out for a_0 >= 0, so that nothing cancels: relative accuracy at any t, s and lambda.

    signal: s >= 0. start: a_0, of either sign unless lambda = 0. imbalance: lambda; its sign is no matter.
    """
    _check(signal, start, imbalance, time)
    m, rate = abs(imbalance), math.hypot(imbalance, 2 * signal)
    decay, gathered = _decay(rate, time)
    c, d = (2 * signal / rate, m / rate) if rate else (0.0, 1.0)
    p, q, risen = 1 + c, d**2 / (1 + c), 1 - decay
    kernel = math.hypot(m, 2 * start)
    first = 2 * start + kernel if start >= 0 else m**2 / (kernel - 2 * start)
    beyond = 2 * start * (1 + 2 * start / (kernel + m))  # y_0 - m for start >= 0
    below = q + p * decay + first * gathered
    y = (first * (p + q * decay) + m * d * risen) / below
    rest = beyond * (c + c**2 / (1 + d) + (q + d) * decay) + 2 * m * c * risen
    excess = rest / below if start >= 0 else y - m
    return excess * (y + m) / (4 * y)


def two_layer_gram(
    first: Float64[np.ndarray, "hidden inputs"],
    second: Float64[np.ndarray, "outputs hidden"],
    target: Float64[np.ndarray, "outputs inputs"],
    time: Times,
) -> Float64[np.ndarray, "times both both"]:
    """Q Q^T at each t for Q = [W_1^T; W_2], from any lambda-balanced start: W_1^T W_1, W_2 W_1 and W_2 W_2^T.

    With F = [[-lambda/2 I, S^T], [S, lambda/2 I]] the flow is Q' = F Q - Q Q^T Q / 2, a Riccati equation in Q Q^T:

        Q Q^T(t) = e^(Ft) Q_0 [I + Q_0^T (int_0^t e^(2Fs) ds) Q_0]^-1 Q_0^T e^(Ft)

    (Fukumizu 1998, Effect of batch learning in multilayer neural networks, and Braun et al. 2022, NeurIPS, for
    lambda = 0; Dominé et al. 2024, arXiv 2409.14623, for any). In eigenvectors of F, of eigenvalue f, the integral is
    (e^(2ft) - 1) / 2f, t for f = 0: S may be rectangular or singular. Between eigenvalues the formula's matrices are
    graded by e^(2 (f_1 - f_2) t), which no scaling removes; so long times are cut into pieces, exactly.

    first, second: W_1(0), W_2(0). target: S. time: ascending, >= 0.
    Raises ValueError unless W_2^T W_2 - W_1 W_1^T = lambda I.
    """
    imbalance, (outputs, inputs) = _imbalance(first, second), target.shape
    _check_times(time)
    sides = np.repeat([-imbalance / 2, imbalance / 2], [inputs, outputs])
    flow = np.diag(sides)
    flow[inputs:, :inputs], flow[:inputs, inputs:] = target, target.T
    values, vectors = np.linalg.eigh(flow)
    state = vectors.T @ np.vstack([first.T, second])  # Q in the eigenvectors, up to a rotation of the hidden layer
    grams = []
    for before, after in pairwise([0.0, *time]):
        pieces = max(1, math.ceil((after - before) * 2 * np.abs(values).max(initial=0.0) / EFOLDS))
        for _ in range(pieces):
            state = _riccati(values, state, (after - before) / pieces)
        grams.append(vectors @ (state @ state.T) @ vectors.T)
    return np.array(grams)


def two_layer_flow(
    first: Float64[np.ndarray, "hidden inputs"],
    second: Float64[np.ndarray, "outputs hidden"],
    target: Float64[np.ndarray, "outputs inputs"],
    time: Times,
) -> Float64[np.ndarray, "times outputs inputs"]:
    """W_2 W_1(t), the lower left block of `two_layer_gram`."""
    inputs = target.shape[1]
    return two_layer_gram(first, second, target, time)[:, inputs:, :inputs]


def _riccati(
    values: Float64[np.ndarray, " both"], state: Float64[np.ndarray, "both hidden"], time: float
) -> Float64[np.ndarray, "both hidden"]:
    """Q(t), up to a rotation: e^(ft) Q_0 L^-T with L L^T = I + Q_0^T diag((e^(2ft) - 1) / 2f) Q_0."""
    flat = values == 0
    gathered = np.where(flat, time, np.expm1(2 * values * time) / np.where(flat, 1.0, 2 * values))
    lower = np.linalg.cholesky(np.eye(state.shape[1]) + (state.T * gathered) @ state)
    return np.linalg.solve(lower, (np.exp(values * time)[:, None] * state).T).T


def balance(weights: Weights) -> Weights:
    """D_j = W_{j+1}^T W_{j+1} - W_j W_j^T for j = 1, ..., N-1, which the flow keeps; W_1 first."""
    return tuple(above.T @ above - below @ below.T for below, above in pairwise(weights))


def balanced_rate(product: Series, signal: float, depth: int) -> Series:
    """a' = N (a^2)^(1 - 1/N) (s - a) of a balanced mode of N layers (Arora et al. 2019, arXiv 1905.13655)."""
    return depth * (product**2) ** (1 - 1 / depth) * (signal - product)


def end_to_end_flow(product: Matrix, gradient: Matrix, depth: int) -> Matrix:
    """P' of N balanced layers, from P and G alone, whatever the loss (Arora et al. 2018, arXiv 1802.06509, theorem 1).

        P' = -sum_(j=1)^N (P P^T)^((j-1)/N) G (P^T P)^((N-j)/N),

    on the singular vectors of P, where a product of low rank loses nothing to rounding; a power 0 is the identity.
    """
    left, sigma, right = _singular(product)
    flow = np.zeros_like(product)
    for above in range(depth):
        moved, below = gradient, depth - 1 - above
        if above:
            moved = (left * sigma ** (2 * above / depth)) @ (left.T @ moved)
        if below:
            moved = (moved @ right.T * sigma ** (2 * below / depth)) @ right
        flow -= moved
    return flow


def singular_value_rates(product: Matrix, gradient: Matrix, depth: int) -> Series:
    """sigma_r' = -N (sigma_r^2)^(1 - 1/N) u_r^T G v_r of N balanced layers, largest sigma_r first; none for zeros.

    Arora et al. 2019 (arXiv 1905.13655), theorem 3, for singular values that differ.
    """
    left, sigma, right = _singular(product)
    pulls = np.sum(left * (gradient @ right.T), axis=0)
    return -depth * (sigma**2) ** (1 - 1 / depth) * pulls


def _singular(
    product: Matrix,
) -> tuple[Float64[np.ndarray, "rows kept"], Float64[np.ndarray, " kept"], Float64[np.ndarray, "kept cols"]]:
    """The thin SVD without the zero modes."""
    left, sigma, right = np.linalg.svd(product, full_matrices=False)
    kept = sigma > ROUNDING * sigma.max(initial=0.0)
    return left[:, kept], sigma[kept], right[kept]


def _decay(rate: float, time: Times) -> tuple[Times, Times]:
    """e^(-rate t), and its integral from 0 to t."""
    return np.exp(-rate * time), -np.expm1(-rate * time) / rate if rate else time


def _imbalance(first: Float64[np.ndarray, "_ _"], second: Float64[np.ndarray, "_ _"]) -> float:
    """Lambda, or ValueError."""
    (difference,) = balance((first, second))
    found = float(np.trace(difference)) / len(difference)
    defect = float(np.abs(difference - found * np.eye(len(difference))).max())
    if not defect <= 1e-10 * (np.linalg.norm(first) ** 2 + np.linalg.norm(second) ** 2):
        raise ValueError(
            f"W_2^T W_2 - W_1 W_1^T differs from {found:.3g} I by {defect:.1e}: this solution is for lambda-balanced "
            "starts; take W_1 = R diag(b) V^T and W_2 = U diag(sqrt(b^2 + lambda)) R^T"
        )
    return found


def _check(signal: float, start: float, imbalance: float, time: Times) -> None:
    _check_times(np.sort(time))
    if not 0 <= signal < math.inf or not all(map(math.isfinite, (start, imbalance))):
        raise ValueError(
            f"signal = {signal}, start = {start}, imbalance = {imbalance}: take finite ones, and signal >= 0"
        )
    if start <= 0 and abs(imbalance) < 1e-150:  # whose square is zero
        raise ValueError(
            f"start = {start}: without imbalance a mode never passes zero; take start > 0, or an imbalance"
        )


def _check_times(time: Times) -> None:
    if not np.isfinite(time).all() or not (np.diff(time, prepend=0.0) >= 0).all():
        raise ValueError(f"time = {time}: take finite times, ascending, >= 0")
