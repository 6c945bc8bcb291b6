"""The full trajectory of deep matrix factorization is simulated without loss at any width, at a cost that ignores it.

Ours, after the theorem of Yaras et al. 2024 (arXiv 2406.04112): sims/reduced.py draws the 2r x 2r problem of a Haar
start at width d without a d x d matrix, and one idle direction stands for all d - 2r. The singular values of the target
are the same at every width, so that widths differ by the r x r corner of a Haar matrix, which is of order d^(-1/2), and
by the floor of the loss, (d - 2r) prod_l rho_l^2 / 2.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from statistics import median
from time import process_time
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure
from scipy.stats import ks_2samp

from figures import style
from figures.claims import Claim
from sims.dynamics import gradient_descent, product, rollout
from sims.losses import Factorization
from sims.reduced import haar_corner, reduce_start, sample, simulate, stack
from sims.start import haar, problem_start, problem_target
from theory.invariants import idle_loss
from theory.problem import Problem

Curves = Float64[np.ndarray, "times widths"]


@dataclass(frozen=True)
class Spec:
    """A problem at many widths."""

    problem: Problem = Problem(width=60, spectrum=(20.0, 17.5, 15.0, 12.5, 10.0), scales=1e-2, lr=2e-3)
    """What is solved; at its own width also plainly, with d x d layers."""
    widths: tuple[int, ...] = (100, 300, 1000, 10_000, 100_000)
    """Where else."""
    steps: int = 8000
    """Steps of gradient descent."""
    every: int = 40
    """Measure after so many; divides `steps`."""
    draws: int = 4000
    """Corners drawn in both ways, to compare their distributions."""
    timed: tuple[int, ...] = (100, 200, 400, 1000)
    """Widths at which a plain step is timed."""
    repeats: int = 3
    """Interleaved repetitions, of which the median counts."""

    def __post_init__(self) -> None:
        if min(self.widths) <= 2 * self.problem.rank or min(self.draws, self.repeats) < 1 or not self.timed:
            raise ValueError(
                f"widths = {self.widths}, timed = {self.timed}, draws = {self.draws}, repeats = {self.repeats}: take "
                f"widths above {2 * self.problem.rank}, one or more of `timed`, and positive numbers"
            )

    def quick(self) -> "Spec":
        """Fewer draws and repeats; plain steps of small widths alone are timed."""
        return replace(self, draws=1000, timed=(50, 100, 150), repeats=1)

    def full(self) -> "Spec":
        """The paper's rank, eps and step, up to d = 10^7; a plain step at d = 2000 takes seconds."""
        spectrum = (63.2, 62.9, 62.5, 62.4, 62.2, 61.7, 61.5, 61.1, 61.0, 60.8)
        problem = Problem(width=100, spectrum=spectrum, scales=1e-3, lr=1e-3)
        widths = (300, 1000, 10_000, 100_000, 10_000_000)
        return Spec(problem, widths, steps=30_000, every=100, timed=(100, 200, 400, 1000, 2000))


@dataclass(frozen=True, eq=False)
class Data:
    """One simulated run for each width, and what it costs."""

    spec: Spec
    steps: Float64[np.ndarray, " times"]
    losses: Curves
    """1/2 |E - Phi|_F^2 of the full network."""
    idle: Curves
    """Its part outside the subspaces."""
    predicted: Curves
    """(d - 2r) prod rho^2 / 2 by the recursion."""
    sizes: Float64[np.ndarray, " widths"]
    """Numbers that the simulator holds."""
    deviation: float
    """max |E plain - E simulated|_F at the problem's own width."""
    corners: Float64[np.ndarray, "two draws"]
    """Largest singular values of the corner: of a Haar matrix, and drawn without one; sorted."""
    seconds: Float64[np.ndarray, " widths"]
    """CPU time of a simulated step."""
    plain: Float64[np.ndarray, "timed two"]
    """CPU time of a plain step: measured, and by 6 products of d x d matrices, from the largest measured."""


def data(spec: Spec) -> Data:
    """Simulate all widths as one batch; run the smallest plainly; time both."""
    problems = [replace(spec.problem, width=width) for width in spec.widths]
    reduced = [sample(problem) for problem in problems]
    run = simulate(stack(reduced), spec.problem.lr, spec.steps, spec.every, decay=spec.problem.decay)
    active = ((run.products() - run.reduced.target)[..., :-1, :-1] ** 2).sum(axis=(-1, -2)) / 2
    rng = np.random.default_rng(spec.problem.seed)
    rank, width = spec.problem.rank, spec.problem.width
    whole = [_largest(haar(width, rank, rng)[:rank]) for _ in range(spec.draws)]
    small = [_largest(haar_corner(width, rank, rng)) for _ in range(spec.draws)]
    return Data(
        spec,
        run.steps,
        losses=run.losses(),
        idle=run.losses() - active,
        predicted=np.stack([idle_loss(p, spec.steps)[:: spec.every] for p in problems], axis=1),
        sizes=np.array([float(sum(array.size for array in (*r.cores, r.target))) for r in reduced]),
        deviation=_deviation(spec),
        corners=np.sort([whole, small], axis=1),
        seconds=_medians(spec.repeats, [_simulated(p) for p in problems]),
        plain=_scaled(spec),
    )


def _largest(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix, 2))


def _deviation(spec: Spec) -> float:
    """Layers rebuilt from the cores against layers that were trained, on a tenth of the steps around the escape."""
    problem, start, target = spec.problem, problem_start(spec.problem), problem_target(spec.problem)
    reduced, spaces = reduce_start(start, target, problem.rank)
    run = simulate(reduced, problem.lr, spec.steps, spec.every, decay=problem.decay)
    late = int(np.argmax(run.losses() < run.losses()[0] / 2))  # when half is learned
    first, last = max(late - len(run.steps) // 20, 0), min(late + len(run.steps) // 20, len(run.steps) - 1)
    step = gradient_descent(Factorization(target), problem.lr, problem.decay)
    plain = rollout(step, run.weights(first, start, spaces), (last - first) * spec.every)
    pairs = zip(range(first, last + 1), islice(plain, 0, None, spec.every), strict=True)
    return max(float(np.linalg.norm(product(run.weights(t, start, spaces)) - product(w))) for t, w in pairs)


def _simulated(problem: Problem) -> tuple[Callable[[], Any], int]:
    reduced = sample(problem)
    return lambda: simulate(reduced, problem.lr, 500, 500), 500


def _plain(problem: Problem) -> tuple[Callable[[], Any], int]:
    start, count = problem_start(problem), max(1, 500_000 // problem.width**2)
    step = gradient_descent(Factorization(problem_target(problem)), problem.lr)
    return lambda: deque(rollout(step, start, count), maxlen=1), count


def _medians(repeats: int, calls: list[tuple[Callable[[], Any], int]]) -> np.ndarray:
    """CPU seconds for each step of each call, in turns."""
    spent: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for (call, count), seconds in zip(calls, spent, strict=True):
            begun = process_time()
            call()
            seconds.append((process_time() - begun) / count)
    return np.array([median(seconds) for seconds in spent])


def _scaled(spec: Spec) -> Float64[np.ndarray, "timed two"]:
    measured = _medians(spec.repeats, [_plain(replace(spec.problem, width=width)) for width in spec.timed])
    widths = np.array(spec.timed, dtype=float)
    return np.stack([measured, measured[-1] * (widths / widths[-1]) ** 3], axis=1)


def check(data: Data) -> list[Claim]:
    """As large at every width, lossless, with the predicted floor, from starts of the right distribution."""
    first, last = data.losses[0], data.losses[-1]
    halves = data.steps[np.argmax(data.losses <= first / 2, axis=0)]
    floor = np.abs(data.idle / data.predicted - 1)[-1].max()
    others = data.idle[-1] / np.array([width - 2 * data.spec.problem.rank for width in data.spec.widths])
    statistic = ks_2samp(*data.corners).statistic * np.sqrt(data.spec.draws / 2)
    return [
        Claim("numbers held, largest / least over widths", data.sizes.max() / data.sizes.min(), at_least=1, at_most=1),
        Claim("max |E plain - E simulated|_F / sigma_1", data.deviation / data.spec.problem.spectrum[0], at_most=1e-12),
        Claim("largest relative deviation of the floor from (d - 2r) prod rho^2 / 2", floor, at_most=1e-9),
        Claim(
            "floor / (d - 2r), largest / least over widths", others.max() / others.min(), at_least=1, at_most=1.000001
        ),
        Claim(
            "final loss / its floor, largest over widths", (last / data.predicted[-1]).max(), at_least=1, at_most=1.3
        ),
        Claim(
            "steps to half the loss, largest / least over widths", halves.max() / halves.min(), at_least=1, at_most=1.2
        ),
        Claim(
            "corner of a Haar matrix against the drawn one: Kolmogorov-Smirnov sqrt(n / 2) D (1.95 is p = 0.001)",
            statistic,
            at_most=1.95,
        ),
    ]


def draw(data: Data) -> Figure:
    """Loss at every width, cost of a step, and the corners' distributions."""
    figure, axes = style.panels(1, 3, height=2.6)
    colours = (style.BLUE, style.SKY, style.GREEN, style.ORANGE, style.RED, style.PURPLE)
    for width, loss, floor, colour in zip(data.spec.widths, data.losses.T, data.predicted.T, colours, strict=False):
        axes[0].semilogy(data.steps, loss, color=colour, label=f"$d={width:,}$".replace(",", r"\,"))
        axes[0].semilogy(data.steps, floor, ":", color=style.BLACK, lw=0.8)
    axes[0].semilogy([], [], ":", color=style.BLACK, lw=0.8, label="floor, theory")
    axes[0].set(xlabel="step $t$", ylabel=r"loss, $\frac{1}{2}\|E-\Phi\|_F^2$")
    axes[1].loglog(data.spec.timed, data.plain[:, 0], "s", color=style.BLUE, label="plain")
    axes[1].loglog(data.spec.timed, data.plain[:, 1], "--", color=style.BLACK, lw=0.8, label="$d^3$, from the last")
    axes[1].loglog(data.spec.widths, data.seconds, "o-", color=style.ORANGE, label="simulated")
    axes[1].set(xlabel="width $d$", ylabel="CPU time of a step [s]")
    shares = (np.arange(data.spec.draws) + 1) / data.spec.draws
    axes[2].plot(data.corners[0], shares, color=style.BLUE, label="Haar matrix")
    axes[2].plot(data.corners[1], shares, "--", color=style.ORANGE, label="drawn alone")
    axes[2].set(xlabel=f"$|M|_2$ of the corner, $d={data.spec.problem.width}$", ylabel="share of draws below")
    axes[1].legend()
    axes[2].legend()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    style.title(axes, "loss", "cost of a step", "corner of the start")
    return figure
