"""The one rollout: a step maps a state to the next one, and one loop runs any step.

Weights are W_1, ..., W_L with E = W_L ... W_1. The state of plain gradient descent is the weights; that of momentum and
Adam is a `Moving`, weights with what the rule remembers. Steps use operators that NumPy and torch share, like `@` and
`.mT`, so the same step runs on NumPy float64 (the default) and on torch, on any device.
"""

import math
from collections.abc import Callable, Iterator
from functools import reduce
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

from jaxtyping import Float

from sims.losses import Loss, pulled

Matrix = Float[Any, "_ _"]
Weights = tuple[Matrix, ...]
Step = Callable[[Weights], Weights]
Rates = float | tuple[float, ...]
State = TypeVar("State")


class Moving(NamedTuple):
    """Weights, and what the rule that moves them remembers."""

    weights: Weights
    memory: tuple[Weights, ...]
    """The velocities of momentum; Adam's first and second moments."""
    taken: int
    """Steps taken so far."""


def moving(weights: Weights, memories: int) -> Moving:
    """The state before the first step, with so many memories of zeros: 1 for momentum, 2 for Adam."""
    return Moving(weights, tuple(tuple(0 * weight for weight in weights) for _ in range(memories)), 0)


def product(weights: Weights) -> Matrix:
    """E = W_L ... W_1, multiplied from W_1 upwards."""
    return reduce(lambda below, weight: weight @ below, weights)


def gradients(loss: Loss, weights: Weights) -> Weights:
    """dl/dW_l = (W_L ... W_{l+1})^T G (W_{l-1} ... W_1)^T for l = 1, ..., L, with G = dl/dE.

    One sweep up and one down: 3 (L - 1) matrix products.
    """
    below = list(accumulate(weights[:-1], lambda product, weight: weight @ product))  # W_1, W_2 W_1, ...
    found, above = pulled(loss, weights[-1], below.pop())  # dl/dW_L and W_L^T G
    others = []
    for weight in reversed(weights[1:-1]):
        others.append(above @ below.pop().mT)
        above = weight.mT @ above  # (W_L ... W_l)^T G
    return (above, *reversed(others), found)  # what is left above W_1 is dl/dW_1


def gradient_descent(loss: Loss, lr: Rates, decay: float = 0.0) -> Step:
    """W_l <- (1 - eta_l lam) W_l - eta_l dl/dW_l, all layers at once.

    lr: eta on the unnormalised loss, one for all layers or one for each, W_1 first. decay: lam >= 0.
    """
    _check(decay)

    def step(weights: Weights) -> Weights:
        moved = []
        for weight, gradient, rate in zip(weights, gradients(loss, weights), _each(lr, weights), strict=True):
            gradient *= -rate  # gradients are fresh arrays: no third one is needed
            gradient += weight * (1 - rate * decay) if decay else weight
            moved.append(gradient)
        return tuple(moved)

    return step


def momentum(loss: Loss, lr: Rates, beta: float, decay: float = 0.0) -> Callable[[Moving], Moving]:
    """M_l <- beta M_l - eta_l (dl/dW_l + lam W_l),  W_l <- W_l + M_l (heavy ball, Polyak 1964), all layers at once."""
    _check(decay, beta)

    def step(state: Moving) -> Moving:
        weights, (velocities,), taken = state
        found = zip(weights, velocities, gradients(loss, weights), _each(lr, weights), strict=True)
        velocities = tuple(beta * v - rate * (g + decay * w) for w, v, g, rate in found)
        return Moving(tuple(w + v for w, v in zip(weights, velocities, strict=True)), (velocities,), taken + 1)

    return step


def adam(
    loss: Loss, lr: Rates, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, decay: float = 0.0
) -> Callable[[Moving], Moving]:
    """AdamW (Kingma & Ba 2015, arXiv 1412.6980; decoupled decay lam), entry by entry, all layers at once.

    m <- b_1 m + (1 - b_1) g,  v <- b_2 v + (1 - b_2) g^2,
    w <- (1 - eta lam) w - eta (m / (1 - b_1^t)) / (sqrt(v / (1 - b_2^t)) + eps).
    """
    _check(decay, *betas)

    def step(state: Moving) -> Moving:
        weights, (first, second), taken = state
        taken, found = taken + 1, gradients(loss, weights)
        first = tuple(betas[0] * m + (1 - betas[0]) * g for m, g in zip(first, found, strict=True))
        second = tuple(betas[1] * v + (1 - betas[1]) * g**2 for v, g in zip(second, found, strict=True))
        unbias = (1 - betas[0] ** taken, (1 - betas[1] ** taken) ** 0.5)
        moved = tuple(
            (1 - rate * decay) * w - (rate / unbias[0]) * m / (v**0.5 / unbias[1] + eps)
            for w, m, v, rate in zip(weights, first, second, _each(lr, weights), strict=True)
        )
        return Moving(moved, (first, second), taken)

    return step


def _check(decay: float, *betas: float) -> None:
    if not 0 <= decay < math.inf or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"decay = {decay}, betas = {betas}: take a finite decay >= 0, and 0 <= beta < 1")


def _each(lr: Rates, weights: Weights) -> tuple[float, ...]:
    return lr if isinstance(lr, tuple) else (lr,) * len(weights)


def discrepant(lr: float, ratio: float, factors: int) -> tuple[float, ...]:
    """Rates of the factors of a compressed network: ratio times eta for the two outer ones, eta for those between.

    The ratio is gamma of Yaras et al. 2024 (arXiv 2406.04112; L + 2 factors, 0 or 0.01), and alpha of Kwon et al. 2023
    (arXiv 2311.05061; L factors, 1 or more).
    """
    return (ratio * lr, *(lr,) * (factors - 2), ratio * lr)


def rollout(step: Callable[[State], State], state: State, steps: int) -> Iterator[State]:
    """The state at t = 0, 1, ..., steps."""
    yield state
    for _ in range(steps):
        state = step(state)
        yield state
