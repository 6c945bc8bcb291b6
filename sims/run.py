"""Run a step many times and look at it now and then."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import track

from sims.dynamics import rollout

State = TypeVar("State")
Measured = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Run:
    """What a run showed: `values[i]` is what was measured after `steps[i]` steps and `seconds[i]` of CPU time."""

    steps: Int[np.ndarray, " times"]
    values: Float[np.ndarray, "times measured"]
    seconds: Float[np.ndarray, " times"]
    state: Any = None
    """The last one: weights, or a Moving."""


class Diverged(FloatingPointError):
    """A run met a number that is not finite; `run` has what it showed until then."""

    def __init__(self, message: str, run: Any) -> None:
        super().__init__(message)
        self.run = run

    def __reduce__(self) -> tuple[Any, ...]:
        """Whole across processes."""
        return type(self), (str(self), self.run)


def observe(
    step: Callable[[State], State],
    state: State,
    steps: int,
    every: int,
    measure: Callable[[State], Measured],
    label: str = "training",
    until: Callable[[Measured], bool] = lambda _: False,
) -> Run:
    """Run at most `steps` steps and measure at the start and after each `every`-th; measuring is no CPU time.

    Ends early when `until` says so of what was measured. Shows a progress bar on a terminal. Raises ValueError unless
    `every` divides `steps`, and Diverged, with the run so far, at the first measurement that is not finite.
    """
    if every < 1 or steps < every or steps % every:
        raise ValueError(f"steps = {steps}, every = {every}: take steps >= every >= 1, and every a divisor of steps")
    counts: list[int] = []
    values: list[Measured] = []
    seconds: list[float] = []
    spent, console = 0.0, Console(stderr=True)
    blocks = range(0, steps + 1, every)
    for block in track(blocks, label, console=console, transient=True, disable=not console.is_terminal):
        begun = time.process_time()
        with np.errstate(all="ignore"):  # a diverging run is reported below
            state = deque(rollout(step, state, every if block else 0), maxlen=1).pop()
            spent += time.process_time() - begun
            try:
                measured = measure(state)
            except np.linalg.LinAlgError:  # what LAPACK says of matrices that are not finite
                measured = (math.nan,)
        if not all(map(math.isfinite, measured)):
            message = f"{label} diverged: measured {measured} at step {block}; take a smaller step size"
            raise Diverged(message, Run(np.array(counts), np.array(values), np.array(seconds), state))
        counts.append(block)
        values.append(measured)
        seconds.append(spent)
        if until(measured):
            break
    return Run(np.array(counts), np.array(values, dtype=float), np.array(seconds), state)
