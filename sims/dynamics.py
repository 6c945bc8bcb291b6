"""The one rollout: a step maps weights to weights, and one loop runs any step.

Weights are W_1, ..., W_L with E = W_L ... W_1. Steps use operators that NumPy and torch share, like `@` and `.mT`, so
the same step runs on NumPy float64 (the default) and on torch, on any device.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import track

from sims.losses import Loss

Matrix = Float[Any, "_ _"]
Weights = tuple[Matrix, ...]
Step = Callable[[Weights], Weights]


def product(weights: Weights) -> Matrix:
    """E = W_L ... W_1, multiplied from W_1 upwards."""
    return reduce(lambda below, weight: weight @ below, weights)


def gradients(loss: Loss, weights: Weights) -> Weights:
    """dl/dW_l = (W_L ... W_{l+1})^T G (W_{l-1} ... W_1)^T for l = 1, ..., L, with G = dl/dE.

    One sweep up and one down: 3 (L - 1) matrix products.
    """
    below = list(accumulate(weights, lambda product, weight: weight @ product))  # W_1, W_2 W_1, ..., E
    above = loss.gradient(below.pop())
    found = []
    for weight in reversed(weights[1:]):
        found.append(above @ below.pop().mT)
        above = weight.mT @ above  # (W_L ... W_l)^T G
    return (above, *reversed(found))  # what is left above W_1 is dl/dW_1


def gradient_descent(loss: Loss, lr: float | tuple[float, ...], decay: float = 0.0) -> Step:
    """W_l <- (1 - eta_l lam) W_l - eta_l dl/dW_l, all layers at once.

    lr: eta on the unnormalised loss, one for all layers or one for each, W_1 first. decay: lam.
    """

    def step(weights: Weights) -> Weights:
        rates = lr if isinstance(lr, tuple) else (lr,) * len(weights)
        moved = []
        for weight, gradient, rate in zip(weights, gradients(loss, weights), rates, strict=True):
            gradient *= -rate  # gradients are fresh arrays: no third one is needed
            gradient += weight * (1 - rate * decay) if decay else weight
            moved.append(gradient)
        return tuple(moved)

    return step


def discrepant(lr: float, gamma: float, depth: int) -> tuple[float, ...]:
    """Rates of the L + 2 factors of a compressed network: gamma eta for the outer ones, eta for the L cores."""
    return (gamma * lr, *(lr,) * depth, gamma * lr)


def rollout(step: Step, weights: Weights, steps: int) -> Iterator[Weights]:
    """W(0), W(1), ..., W(steps)."""
    yield weights
    for _ in range(steps):
        weights = step(weights)
        yield weights


@dataclass(frozen=True, eq=False)
class Run:
    """What a run showed: `values[i]` is what was measured after `steps[i]` steps and `seconds[i]` of CPU time."""

    steps: Int[np.ndarray, " times"]
    values: Float[np.ndarray, "times measured"]
    seconds: Float[np.ndarray, " times"]
    weights: Weights


def observe(
    step: Step,
    weights: Weights,
    steps: int,
    every: int,
    measure: Callable[[Weights], tuple[float, ...]],
    label: str = "training",
) -> Run:
    """Run `steps` steps and measure at the start and after each `every`-th; measuring is not counted as CPU time.

    Shows a progress bar on a terminal. Raises ValueError unless `every` divides `steps`, and FloatingPointError at the
    first measurement that is not finite.
    """
    if every < 1 or steps < every or steps % every:
        raise ValueError(f"steps = {steps}, every = {every}: take steps >= every >= 1, and every a divisor of steps")
    counts, values, seconds = [], [], []
    spent, console = 0.0, Console(stderr=True)
    blocks = range(0, steps + 1, every)
    for block in track(blocks, label, console=console, transient=True, disable=not console.is_terminal):
        begun = time.process_time()
        with np.errstate(all="ignore"):  # a diverging run is reported below
            weights = deque(rollout(step, weights, every if block else 0), maxlen=1).pop()
        spent += time.process_time() - begun
        counts.append(block)
        values.append(measure(weights))
        seconds.append(spent)
        if not all(map(math.isfinite, values[-1])):
            raise FloatingPointError(
                f"{label} diverged: measured {values[-1]} at step {block}; take a smaller step size"
            )
    return Run(np.array(counts), np.array(values, dtype=float), np.array(seconds), weights)
