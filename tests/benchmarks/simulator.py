"""The lossless reduced-order simulator against the full step whose trajectory it gives."""

import time
from dataclasses import replace

import numpy as np
from rich.table import Table

from sims.reduced import sample, simulate, stack
from sims.start import spread
from tests.benchmarks import steps
from tests.benchmarks.tables import digits, table
from tests.benchmarks.timing import Call, Repeated, medians
from theory.problem import Problem

STEPS, BATCH = 1000, 256
TARGETS = {100: 15.0, 1000: 10_000.0, 2000: 100_000.0}
"""d: how many times faster than the full step the reduced one should be."""
WIDTHS = (100, 1000, 10_000, 100_000)


def calls(width: int) -> dict[str, Call]:
    """A reduced step at one width, alone and in a batch of seeds."""
    problem = steps.problem(width)
    one, many = sample(problem), stack([sample(replace(problem, seed=seed)) for seed in range(BATCH)])
    return {
        "reduced step": Repeated(lambda: simulate(one, problem.lr, STEPS, STEPS), STEPS),
        f"reduced step, {BATCH} seeds at once": Repeated(lambda: simulate(many, problem.lr, 20, 20), 20 * BATCH),
    }


def full(width: int, rounds: int) -> float:
    """Seconds of a full step."""
    call = steps.trainings(steps.problem(width), (steps.STEP,))[steps.STEP]
    return medians({steps.STEP: call}, rounds)[steps.STEP]


def published() -> Problem:
    """Yaras et al. 2024 (arXiv 2406.04112): d = 1000, r = 10, eps = 1e-3, step 1e3 on the mean, 20,400 steps."""
    return Problem(width=1000, spectrum=spread(10, 62.0, 60.0), scales=1e-3, lr=1e-3)


def whole_runs() -> dict[str, float]:
    """CPU seconds of two runs, from the draw of the start to the last loss."""
    wide = replace(published(), width=100_000)
    found = {}
    for name, problem, count in (
        ("the paper's d = 1000, 20,400 steps", published(), 20_400),
        ("d = 100,000, 100,000 steps", wide, 100_000),
    ):
        begun = time.process_time()
        simulate(sample(problem), problem.lr, count, 200).losses()
        found[name] = time.process_time() - begun
    return found


def report(rounds: int, widths: tuple[int, ...] = tuple(TARGETS)) -> tuple[list[Table], list[str]]:
    """Tables, and what was aimed at. Reduced steps are timed alone: full ones would empty the caches between them."""
    reduced = {width: medians(calls(width), rounds) for width in sorted({*WIDTHS, *widths})}
    peers = {width: full(width, rounds if width <= 1000 else 3) for width in widths}
    shown = table("lossless simulator", "call", "d", "time [us]", "peer", "peer's [us]", "peer's / own")
    for width, found in reduced.items():
        for name, own in found.items():
            peer = peers.get(width)
            pair = (steps.STEP, digits(peer * 1e6), digits(peer / own)) if peer else ("", "", "")
            shown.add_row(name, str(width), digits(own * 1e6), *pair)
    lines = [
        f"reduced step, times faster than the full step at d = {width}: target >= {digits(TARGETS[width])}: reached "
        f"{digits(peers[width] / reduced[width]['reduced step'])}"
        for width in widths
        if width in TARGETS
    ]
    spent = np.array([found["reduced step"] for found in reduced.values()])
    lines.append(
        f"reduced step, dearest / cheapest over d: target about 1: reached {digits(spent.max() / spent.min())}"
    )
    lines += [f"{name} [CPU s]: target < 2: reached {digits(spent)}" for name, spent in whole_runs().items()]
    return [shown], lines
