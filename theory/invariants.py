"""The invariant subspaces of deep matrix factorization: what stays idle, how it scales, and what is left to train.

Symbols (README.md has the whole table): d width, r rank, k = 2r active dimensions, m = d - 2r idle ones, L depth,
E = W_L ... W_1, Phi the target of rank r, eta step, lam weight decay, W_l(0) = eps_l Q_l.

Theorem (Yaras et al. 2024, arXiv 2406.04112, here for unequal eps_l). There are orthogonal V_1, ..., V_{L+1}, made from
the start and Phi alone, such that for every step t, with A_l(t) of size 2r x 2r and a scalar rho_l(t),

    W_l(t) = V_{l+1} [ A_l(t)      0       ] V_l^T,        A_l(0) = eps_l I,   rho_l(0) = eps_l.
                     [   0     rho_l(t) I_m ]
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64

from theory.problem import Problem

Matrix = Float64[np.ndarray, "rows cols"]
Start = tuple[Float64[np.ndarray, "_ _"], ...]
Cores = tuple[Float64[np.ndarray, "k k"], ...]


def rho(problem: Problem, steps: int) -> Float64[np.ndarray, "steps_plus_1 depth"]:
    """The idle scale of each layer at t = 0, ..., steps.

    rho_l(t+1) = rho_l(t) (1 - eta lam - eta prod_{k != l} rho_k(t)^2),  rho_l(0) = eps_l, and with momentum
    m_l(t+1) = beta m_l(t) - eta rho_l(t) (lam + prod_{k != l} rho_k(t)^2),  rho_l(t+1) = rho_l(t) + m_l(t+1).
    """
    scale, velocity = np.array(problem.eps), np.zeros(problem.depth)
    history = [scale]
    for _ in range(steps):
        others = np.array([np.prod(np.delete(scale, layer) ** 2) for layer in range(problem.depth)])
        velocity = problem.momentum * velocity - problem.lr * scale * (problem.decay + others)
        scale = scale + velocity
        history.append(scale)
    return np.array(history)


def invariant_bases(start: Start, target: Matrix, rank: int) -> Start:
    """V_1, ..., V_{L+1}: the first 2 rank columns of V_l span the active inputs of layer l, the others the idle ones.

    Active inputs of W_1: row(Phi) + Q^T col(Phi) with Q = Q_L ... Q_1; then V_{l+1} = Q_l V_l.

    start: W_l(0) = eps_l Q_l, W_1 first. target: Phi, of rank at most `rank`.
    Raises ValueError if a layer is not a multiple of an orthogonal matrix, 2 rank >= d, or Phi has a higher rank.
    """
    width = target.shape[0]
    if 2 * rank >= width:
        raise ValueError(f"rank = {rank}: 2 rank must be below the width {width}; take rank <= {(width - 1) // 2}")
    rotations = [_rotation(weight, layer) for layer, weight in enumerate(start, 1)]
    left, sigma, right = np.linalg.svd(target)
    if sigma[rank] > 1e-10 * sigma[0]:
        raise ValueError(
            f"the target has singular values beyond rank = {rank} (next: {sigma[rank]:.3g}); take its rank"
        )
    outputs = left[:, :rank]
    for rotation in reversed(rotations):
        outputs = rotation.T @ outputs  # ends as Q^T col(Phi)
    active = np.hstack([right[:rank].T, outputs])
    bases = [np.linalg.qr(active, mode="complete")[0]]  # the QR of a d x 2r matrix completes it by the idle directions
    for rotation in rotations:
        bases.append(rotation @ bases[-1])
    return tuple(bases)


def _rotation(weight: Matrix, layer: int) -> Matrix:
    """Q_l = W_l(0) / eps_l, or ValueError if W_l(0) is no multiple of an orthogonal matrix."""
    rows, cols = weight.shape
    scale = np.linalg.norm(weight) / np.sqrt(cols)
    defect = np.abs(weight.T @ weight / scale**2 - np.eye(cols)).max() if rows == cols and scale > 0 else np.inf
    if not defect <= 1e-10:  # Haar matrices from a QR are orthogonal to d times machine epsilon, 1e-12 at d = 4000
        raise ValueError(
            f"layer {layer} of shape {rows} x {cols} is not eps_l times a square orthogonal matrix (defect "
            f"{defect:.1e}): the theorem needs one; draw it with sims.start.orthogonal"
        )
    return weight / scale


def reduced_target(bases: Start, target: Matrix, rank: int) -> Float64[np.ndarray, "k k"]:
    """V_{L+1,1}^T Phi V_{1,1}, first 2 rank columns of each: the 2r x 2r target of the active blocks."""
    return bases[-1][:, : 2 * rank].T @ target @ bases[0][:, : 2 * rank]


def reduced_dynamics(problem: Problem, small_target: Float64[np.ndarray, "k k"]) -> Iterator[Cores]:
    """A(0), A(1), ...: the active blocks follow gradient descent on their own 2r x 2r problem.

    M_l <- beta M_l - eta (lam A_l + (A_L ... A_{l+1})^T (A_L ... A_1 - target) (A_{l-1} ... A_1)^T),
    A_l <- A_l + M_l,  A_l(0) = eps_l I,  M_l(0) = 0.
    """
    size = len(small_target)
    cores: Cores = tuple(eps * np.eye(size) for eps in problem.eps)
    velocities: Cores = tuple(np.zeros((size, size)) for _ in cores)
    while True:
        yield cores
        residual = _chain(cores, size) - small_target
        pulls = (
            _chain(cores[layer + 1 :], size).T @ residual @ _chain(cores[:layer], size).T
            for layer in range(problem.depth)
        )
        velocities = tuple(
            problem.momentum * velocity - problem.lr * (problem.decay * core + pull)
            for velocity, core, pull in zip(velocities, cores, pulls, strict=True)
        )
        cores = tuple(core + velocity for core, velocity in zip(cores, velocities, strict=True))


def _chain(factors: Cores, size: int) -> Float64[np.ndarray, "k k"]:
    """F_n ... F_1, the identity if there are none. Written out here: an oracle shares no code with what it judges."""
    product = np.eye(size)
    for factor in factors:
        product = factor @ product
    return product


def predicted_weights(problem: Problem, bases: Start, target: Matrix, steps: int) -> Iterator[Start]:
    """(W_1(t), ..., W_L(t)) for t = 0, ..., steps as the theorem gives them, without ever running the full network."""
    active = 2 * problem.rank
    trajectory = reduced_dynamics(problem, reduced_target(bases, target, problem.rank))
    for scales, cores in zip(rho(problem, steps), trajectory, strict=False):  # the trajectory has no end
        weights = []
        for layer, (core, scale) in enumerate(zip(cores, scales, strict=True)):
            block = scale * np.eye(problem.width)
            block[:active, :active] = core
            weights.append(bases[layer + 1] @ block @ bases[layer].T)
        yield tuple(weights)


def gap(problem: Problem, steps: int, rank: int | None = None) -> Float64[np.ndarray, " steps_plus_1"]:
    """|E - E_C|_F at t = 0, ..., steps: what the network compressed at `rank` >= r leaves out, exactly.

    E - E_C = prod_l rho_l V_{L+1,2} V_{1,2}^T (last columns), so |E - E_C|_F^2 = (d - 2 rank) prod_l rho_l(t)^2.
    The paper's bound (d - 2 rank) prod_l eps_l^2 is its value at t = 0.
    """
    rank = problem.rank if rank is None else rank
    if not problem.rank <= rank < problem.width / 2:
        largest = (problem.width - 1) // 2
        raise ValueError(
            f"rank = {rank}: the gap needs the target's rank or more; take {problem.rank} <= rank <= {largest}"
        )
    return np.sqrt(problem.width - 2 * rank) * np.abs(np.prod(rho(problem, steps), axis=1))


def idle_loss(problem: Problem, steps: int) -> Float64[np.ndarray, " steps_plus_1"]:
    """Full loss minus reduced loss, m/2 prod_l rho_l(t)^2."""
    return gap(problem, steps) ** 2 / 2


def balance_drift(problem: Problem, weights: Start, gradients: Start) -> Start:
    """The balance W_{l+1}^T W_{l+1} - W_l W_l^T one step later, for l = 1, ..., L-1, exact for any step size and decay.

    B_l <- (1 - eta lam)^2 B_l + eta^2 (g_{l+1}^T g_{l+1} - g_l g_l^T): the terms of first order in eta cancel, since
    W_{l+1}^T g_{l+1} = g_l W_l^T. At lam = 0 and eta -> 0 nothing is left: the balance is conserved (Arora et al. 2018,
    arXiv 1802.06509). For plain gradient descent, beta = 0.
    weights, gradients: W_l and g_l = d(1/2 |E - Phi|^2)/dW_l before the step.
    """
    shrink, lr = 1 - problem.lr * problem.decay, problem.lr
    return tuple(
        shrink**2 * (above.T @ above - below @ below.T) + lr**2 * (g_above.T @ g_above - g_below @ g_below.T)
        for below, above, g_below, g_above in zip(weights, weights[1:], gradients, gradients[1:], strict=False)
    )
