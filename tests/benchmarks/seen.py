"""Sensing and completion: what a step costs where the target is not seen whole."""

import numpy as np
import torch
from rich.table import Table

from lowdim import spectral
from sims.dynamics import discrepant, gradient_descent
from sims.losses import SPARSE_BELOW, Completion, Sensing, SparseCompletion
from sims.start import observed, problem_start, problem_target, sensing_operators, to_numpy
from tests.benchmarks import jax_step, steps
from tests.benchmarks.tables import digits, table
from tests.benchmarks.timing import Call, medians, peak_bytes

BLOCKED, ELEMENTWISE, JAX, INSIDE = "sensing step", "NumPy, elementwise", "JAX, elementwise", "sensing step, gamma = 0"
DENSE, SPARSE = "dense blocks", "entry by entry"
DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2)


class Elementwise(Sensing):
    """The same loss the way the notebooks compute it: products and sums over an m x d x d array."""

    def gradient(self, product: np.ndarray) -> np.ndarray:
        """sum_i (<A_i, E> - y_i) A_i."""
        misfit = (self.operators * product).sum(axis=(1, 2)) - self.outcomes
        return (misfit[:, None, None] * self.operators).sum(axis=0)


def sensing_calls(width: int, measurements: int) -> dict[str, Call]:
    """A step of the full network, three ways, and one of the cores between frozen outer factors."""
    problem, rng = steps.problem(width), np.random.default_rng(0)
    start, operators = problem_start(problem), sensing_operators(measurements, (width, width), rng)
    outcomes = operators.reshape(measurements, -1) @ problem_target(problem).ravel()
    loss = Sensing(operators, outcomes)
    left, right = (basis[:, : 2 * problem.rank] for basis in np.linalg.svd(loss.gradient(0 * start[0]))[::2])
    cores = tuple(0.1 * np.eye(2 * problem.rank) for _ in start)
    found: dict[str, Call] = {
        BLOCKED: steps.Training(gradient_descent(loss, problem.lr), start),
        ELEMENTWISE: steps.Training(gradient_descent(Elementwise(operators, outcomes), problem.lr), start),
        INSIDE: steps.Training(gradient_descent(loss.inside(left, np.ascontiguousarray(right)), problem.lr), cores),
    }
    if jax_step.available():
        found[JAX] = jax_step.sensing(start, operators, outcomes, problem.lr)
    return found


def completion_calls(width: int, density: float) -> dict[str, Call]:
    """A step of a network of width 10 on the observed entries, both ways."""
    problem, rng = steps.problem(width), np.random.default_rng(0)
    target, known = problem_target(problem), observed((width, width), density, rng)
    where = np.nonzero(known)
    factors = to_numpy(*spectral(torch.from_numpy(known * target), 2 * problem.rank, problem.depth, 0.1).factors)
    rates = discrepant(problem.lr, 1.0, len(factors))
    losses = {
        DENSE: Completion(target, known.astype(float)),
        SPARSE: SparseCompletion(*where, target[where], target.shape),
    }
    return {name: steps.Training(gradient_descent(loss, rates), factors) for name, loss in losses.items()}


def report(
    rounds: int, width: int = 200, measurements: int = 500, widths: tuple[int, ...] = (500, 1000, 2000)
) -> tuple[list[Table], list[str]]:
    """Tables, and what was aimed at."""
    times = medians(sensing_calls(width, measurements), rounds)
    senses = table(f"sensing, m = {measurements}, d = {width}", "call", "time [ms]", "peer", "peer's / own")
    for name in times:
        senses.add_row(name, digits(times[name] * 1e3), ELEMENTWISE, digits(times[ELEMENTWISE] / times[name]))
    completes = table("completion, hidden width 10", "d", "observed", "dense [ms]", "sparse [ms]", "dense / sparse")
    faster = {}
    for size in widths:
        for density in DENSITIES:
            found = medians(completion_calls(size, density), rounds)
            faster[size, density] = found[DENSE] / found[SPARSE]
            shown = (digits(found[DENSE] * 1e3), digits(found[SPARSE] * 1e3), digits(faster[size, density]))
            completes.add_row(str(size), f"{density:.0%}", *shown)
    crossing = {size: max([d for d in DENSITIES if faster[size, d] > 1], default=0.0) for size in widths}
    lines = [
        f"sensing step, times faster than {peer}: target >= 20: reached {digits(times[peer] / times[BLOCKED])}"
        for peer in (ELEMENTWISE, JAX)
        if peer in times
    ]
    lines += [
        f"sparse completion is faster up to a density of {crossing[size]:.0%} at d = {size}; the code switches at "
        f"{SPARSE_BELOW:.0%}"
        for size in widths
    ]
    return [senses, completes], lines


def sensing_peak(width: int = 200, measurements: int = 4000) -> str:
    """The memory of the papers' sensing problem: drawing it, and one step."""
    problem = steps.problem(width)

    def draw_and_step() -> object:
        operators = sensing_operators(measurements, (width, width), np.random.default_rng(0))
        loss = Sensing(operators, np.zeros(measurements))
        return gradient_descent(loss, problem.lr)(problem_start(problem))

    peak = peak_bytes(draw_and_step, warm=False) / 2**30
    return f"sensing, m = {measurements}, d = {width}, peak [GiB]: target < 3: reached {digits(peak)}"
