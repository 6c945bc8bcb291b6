"""Diagonal networks beta = w_+^D - w_-^D, entry by entry, on 1/2 |X beta - y|^2: gradient descent and gradient flow.

A state is the array (w_+, w_-) of shape 2 x d, everything positive (Woodworth et al. 2020, arXiv 2002.09277). The flow
is integrated in these weights: it knows no conserved quantity, no multiplier and no minimiser.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64
from scipy.integrate import solve_ivp

State = Float64[np.ndarray, "2 d"]
Inputs = Float64[np.ndarray, "n d"]
Targets = Float64[np.ndarray, " n"]
Coefficients = Float64[np.ndarray, " d"]

SIGNS = np.array([[1.0], [-1.0]])
FOREVER = 1e40
"""A time after which no flow still moves; it ends when the equations are met."""


def start(scale: float, size: int) -> State:
    """w_+ = w_- = alpha 1, where beta = 0. scale: alpha. size: d. Raises ValueError unless alpha > 0 and d >= 1."""
    if not 0 < scale < np.inf or size < 1:
        raise ValueError(f"scale = {scale}, size = {size}: take a finite alpha > 0, and d >= 1; w = 0 never moves")
    return np.full((2, size), float(scale))


def coefficients(weights: State, depth: int) -> Coefficients:
    """beta = w_+^D - w_-^D."""
    return weights[0] ** depth - weights[1] ** depth


def kernel(weights: State, inputs: Inputs, depth: int) -> Float64[np.ndarray, "n n"]:
    """The tangent kernel of X beta, D^2 X diag(w_+^{2D-2} + w_-^{2D-2}) X^T."""
    return inputs * (depth**2 * np.sum(weights ** (2 * depth - 2), axis=0)) @ inputs.T


def gradient_descent(inputs: Inputs, targets: Targets, depth: int, lr: float) -> Callable[[State], State]:
    """w_+- <- w_+- -+ eta D w_+-^{D-1} X^T (X beta - y), a step for sims.dynamics.rollout. lr: eta."""

    def step(weights: State) -> State:
        gradient = inputs.T @ (inputs @ coefficients(weights, depth) - targets)
        return weights - lr * depth * SIGNS * weights ** (depth - 1) * gradient

    return step


def flow(
    inputs: Inputs, targets: Targets, weights: State, depth: int, *, until: float = 1e-10, rtol: float = 1e-12
) -> State:
    """The weights when gradient flow has brought |X beta - y| below `until` |y|, by LSODA.

    LSODA turns implicit, with our Jacobian, where the flow is stiff: near the end of small starts, whose speeds differ
    by alpha^(2-2D). rtol: of each weight, in each step. Raises ValueError if the flow does not get there.
    """
    if np.linalg.matrix_rank(inputs) < len(inputs) or not 1e-12 <= until < 1:
        raise ValueError(f"{len(inputs)} equations, until = {until}: take independent ones, and 1e-12 <= until < 1")
    size, length = weights.shape[1], np.linalg.norm(targets)
    gram, sides = np.tile(inputs.T @ inputs, (2, 2)), np.repeat(SIGNS[:, 0], size)

    def pulls(flat: np.ndarray) -> np.ndarray:  # no shapes: checking them would cost more than the call
        """-dl/dbeta for w_+, its negative for w_-."""
        pull = inputs.T @ (targets - inputs @ coefficients(flat.reshape(2, size), depth))
        return sides * np.tile(pull, 2)

    def velocity(_: float, flat: np.ndarray) -> np.ndarray:
        return depth * flat ** (depth - 1) * pulls(flat)

    def jacobian(_: float, flat: np.ndarray) -> np.ndarray:
        slope = depth * sides * flat ** (depth - 1)
        found = -slope[:, None] * gram * slope
        found[np.diag_indices(2 * size)] += depth * (depth - 1) * flat ** (depth - 2) * pulls(flat)
        return found

    def left(_: float, flat: np.ndarray) -> float:
        missed = inputs @ coefficients(flat.reshape(2, size), depth) - targets
        return float(np.linalg.norm(missed) - until * length)

    left.terminal = True  # type: ignore[attr-defined]
    tolerances = {"rtol": rtol, "atol": 1e-3 * rtol * weights.min()}
    found = solve_ivp(velocity, (0, FOREVER), weights.ravel(), "LSODA", events=left, jac=jacobian, **tolerances)
    if found.status != 1:
        raise ValueError(f"the flow ends before |X beta - y| = {until} |y|: {found.message}; take a larger `until`")
    return found.y[:, -1].reshape(2, size)
