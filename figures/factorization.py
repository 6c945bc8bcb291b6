"""The compressed network trains like the original one with far fewer parameters, and theory knows what it leaves out.

After Yaras et al. 2024 (arXiv 2406.04112), deep matrix factorization with frozen outer factors (gamma = 0). --full is
their d = 1000, r = 10, eps = 1e-3, 20,400 steps of 1e3 on the mean loss, that is eta = 1e3 / d^2 = 1e-3 on ours. Their
scripts say 1e-1 by now, with which the run that they show would take 10^8 steps.

The original runs through the lossless simulator (sims/reduced.py) for the whole horizon, and plainly, with all its
d x d layers, for stretches of it that must agree with the simulator: everywhere at default size, and at the start and
while it learns with --full, where all of it would take hours.
"""

from dataclasses import dataclass, replace
from time import process_time

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from lowdim import compress
from sims.dynamics import Weights, gradient_descent, product
from sims.losses import Factorization
from sims.measure import singular_values
from sims.reduced import Reduced, Start, Trajectory, reduce_start, simulate
from sims.run import observe
from sims.start import problem_start, problem_target, to_numpy, to_torch
from theory.invariants import gap
from theory.problem import Problem

Series = Float64[np.ndarray, "times values"]
Matrix = Float64[np.ndarray, "rows cols"]


@dataclass(frozen=True)
class Spec:
    """A problem, how long to run it, how often to look, and where to run it plainly."""

    problem: Problem = Problem(width=300, spectrum=(20.0, 17.5, 15.0, 12.5, 10.0), scales=0.2, lr=2e-3)
    """What is solved."""
    steps: int = 1200
    """Steps of gradient descent."""
    every: int = 12
    """Measure after so many steps; divides `steps`."""
    stretches: tuple[int, ...] = (0,)
    """Steps from which the original runs plainly, from the simulator's weights; multiples of `every`."""
    plain_steps: int = 1200
    """For so many steps each."""
    plain_every: int = 12
    """Measured after so many; divides `plain_steps`."""

    def __post_init__(self) -> None:
        if self.problem.decay or self.problem.momentum:
            raise ValueError("decay or momentum: this figure is of plain gradient descent; take 0 for both")
        if self.every < 1 or self.steps < self.every or self.steps % self.every:
            raise ValueError(
                f"steps = {self.steps}, every = {self.every}: take steps >= every >= 1, and every a divisor of steps"
            )
        last = self.steps - self.plain_steps
        if not self.stretches or any(t % self.every or not 0 <= t <= last for t in self.stretches):
            raise ValueError(
                f"stretches = {self.stretches}: take one or more multiples of every = {self.every} from 0 to {last}, "
                "steps - plain_steps"
            )

    def quick(self) -> "Spec":
        """The same at width 60."""
        return replace(self, problem=replace(self.problem, width=60))

    def full(self) -> "Spec":
        """The paper's size, and 2,000 steps more; half a minute, most of it for 2 x 20 plain steps."""
        spectrum = (63.2, 62.9, 62.5, 62.4, 62.2, 61.7, 61.5, 61.1, 61.0, 60.8)  # of a Gaussian matrix of that size
        problem = Problem(width=1000, spectrum=spectrum, scales=1e-3, lr=1e-3)
        return Spec(problem, steps=22400, every=200, stretches=(0, 19000), plain_steps=20, plain_every=5)


@dataclass(frozen=True, eq=False)
class Data:
    """The original (simulated) and the compressed network at `steps`, and the original's plain stretches."""

    spec: Spec
    steps: Float64[np.ndarray, " times"]
    error: Series
    """|E - Phi|_F of the original and |E_C - Phi|_F of the compressed network."""
    spectrum: Float64[np.ndarray, "times two rank"]
    """The r largest singular values of E and of E_C."""
    inside: Float64[np.ndarray, " times"]
    """|E - E_C|_F inside the subspaces, where theory says 0."""
    components: Float64[np.ndarray, "times two three"]
    """E and E_C in the three principal components of the original's trajectory."""
    predicted: Float64[np.ndarray, " times"]
    """sqrt((d - 2r) prod rho^2)."""
    plain: Series
    """Of the plain stretches: step, |E outside the subspaces|_F, its prediction, |E - E simulated|_F inside."""
    seconds: Series
    """CPU time until then: the original at the plain stretches' cost per step; compressed, with finding the spaces."""


def data(spec: Spec) -> Data:
    """Run the original and the compressed network on the same problem."""
    problem, target, start = spec.problem, problem_target(spec.problem), problem_start(spec.problem)
    reduced, spaces = reduce_start(start, target, problem.rank)
    original = simulate(reduced, problem.lr, spec.steps, spec.every)
    tails = gap(problem, spec.steps)
    stretches = [_plain(spec, original, start, spaces, target, begin) for begin in spec.stretches]
    plain = np.vstack([rows for rows, _ in stretches])
    cost = sum(seconds for _, seconds in stretches) / (len(stretches) * spec.plain_steps)

    begun = process_time()
    narrow = compress(to_torch(*start), torch.from_numpy(target), problem.rank)
    compressing = process_time() - begun
    left, right, *cores = to_numpy(narrow.left, narrow.right, *narrow.cores)
    step = gradient_descent(Factorization(target).inside(left, right), problem.lr)
    run = observe(step, tuple(cores), spec.steps, spec.every, lambda w: tuple(product(w).ravel()), "compressed")
    into, out = right.T @ spaces[0], left.T @ spaces[-1]  # from the compressed network's bases to the simulator's
    other = out.T @ run.values.reshape(-1, *reduced.target[:-1, :-1].shape) @ into
    seconds = np.stack([original.steps * cost, run.seconds + compressing], axis=1)
    return _compared(
        spec, original, other, tails[:: spec.every], np.insert(plain, 2, tails[plain[:, 0].astype(int)], 1), seconds
    )


def _plain(
    spec: Spec, original: Trajectory, start: Start, spaces: Start, target: Matrix, begin: int
) -> tuple[Series, float]:
    """Step, |E outside the subspaces|_F and |E - E simulated|_F inside, of a plain stretch; and its CPU seconds."""
    time = begin // spec.every
    cores = tuple(core[time] for core in original.cores)
    again = Reduced(cores, original.reduced.target, original.reduced.idle)
    simulated = simulate(again, spec.problem.lr, spec.plain_steps, spec.plain_every).products()[:, :-1, :-1]
    before, after = spaces[0], spaces[-1]

    def parts(weights: Weights) -> tuple[float, ...]:
        end = product(weights)
        core = after.T @ end @ before
        return (float(np.linalg.norm(end - after @ core @ before.T)), *core.ravel())

    weights = original.weights(time, start, spaces)
    step = gradient_descent(Factorization(target), spec.problem.lr)
    run = observe(step, weights, spec.plain_steps, spec.plain_every, parts, f"original from step {begin}")
    deviation = np.linalg.norm(run.values[:, 1:].reshape(simulated.shape) - simulated, axis=(1, 2))
    return np.stack([begin + run.steps, run.values[:, 0], deviation], axis=1), float(run.seconds[-1])


def _compared(
    spec: Spec, original: Trajectory, other: np.ndarray, tails: np.ndarray, plain: Series, seconds: Series
) -> Data:
    core, small = original.products()[:, :-1, :-1], original.reduced.target[:-1, :-1]
    ranks = range(spec.problem.rank)
    spectra = [[singular_values(matrix)[ranks] for matrix in pair] for pair in zip(core, other, strict=True)]
    errors = [np.sqrt(2 * original.losses()), np.linalg.norm(other - small, axis=(1, 2))]
    flat = [matrices.reshape(len(core), -1) for matrices in (core, other)]
    corner = np.sqrt(spec.problem.idle) * original.products()[:, -1, -1]  # the idle part is one direction of E, too
    whole, less = np.column_stack([flat[0], corner]), np.column_stack([flat[1], 0 * corner])
    axes = np.linalg.svd(whole - whole.mean(axis=0), full_matrices=False)[2][:3]
    return Data(
        spec,
        original.steps,
        error=np.stack(errors, axis=1),
        spectrum=np.array(spectra),
        inside=np.linalg.norm(core - other, axis=(1, 2)),
        components=np.stack([whole @ axes.T, less @ axes.T], axis=1),
        predicted=tails,
        plain=plain,
        seconds=seconds,
    )


def check(data: Data) -> list[Claim]:
    """Plain and simulated, simulated and compressed agree to rounding; the tail is left out, and sets the floor."""
    problem, sigma = data.spec.problem, data.spec.problem.spectrum[0]
    _, outside, tail, deviation = data.plain.T
    sum_rule = data.error[:, 0] / np.hypot(data.error[:, 1], data.predicted)
    small = np.sqrt(problem.rank) * np.prod(problem.eps)  # the r active directions that the signal leaves empty
    loss, start = data.error[:, 0] ** 2 / (2 * problem.width**2), np.sum(np.square(problem.spectrum)) / 2
    start /= problem.width**2
    half = data.steps[np.argmax(data.error[:, 0] ** 2 <= data.error[0, 0] ** 2 / 2)]
    escape = 1 / (problem.lr * sigma * (problem.depth - 2) * problem.eps[0] ** (problem.depth - 2))
    floor = data.predicted[-1] ** 2 / (2 * problem.width**2)
    apart = np.abs(data.components[:, 0] - data.components[:, 1]).max() / np.ptp(data.components[:, 0])
    return [
        Claim("max | |E - E_C| measured on plain steps - predicted |", np.abs(outside - tail).max(), at_most=1e-12),
        Claim("max |E plain - E simulated| inside the subspaces / sigma_1", deviation.max() / sigma, at_most=1e-12),
        Claim("max |E - E_C| inside the subspaces / sigma_1", data.inside.max() / sigma, at_most=1e-12),
        Claim(
            "max | error of the original / sqrt(error compressed^2 + tail^2) - 1 |",
            np.abs(sum_rule - 1).max(),
            at_most=1e-9,
        ),
        Claim("distance of both trajectories in three principal components / extent", apart, at_most=1e-5),
        Claim("half mean square of the original at the start", loss[0], at_least=0.98 * start, at_most=1.05 * start),
        Claim("steps to half of it / escape time", half / escape, at_least=1.0, at_most=2.0),
        Claim(
            "half mean square of the original at the end",
            loss[-1],
            at_least=0.999 * floor,
            at_most=floor + small**2 / (2 * problem.width**2),
        ),
        Claim("final error of the compressed network / (sqrt(r) prod eps)", data.error[-1, 1] / small, at_most=1.0),
        Claim("parameters trained, original / compressed", (problem.width / (2 * problem.rank)) ** 2, at_least=4),
    ]


def draw(data: Data) -> Figure:
    """Original as points, compressed as lines, theory in black."""
    figure, axes = style.panels(2, 3, height=2.2)
    _draw_spectrum(axes[0], data)
    _draw_difference(axes[3], data)
    for axis, horizontal in ((axes[1], np.stack([data.steps] * 2, axis=1)), (axes[4], data.seconds)):
        axis.semilogy(horizontal[1::2, 0], data.error[1::2, 0], "o", color=style.BLUE, label="original")
        axis.semilogy(horizontal[1:, 1], data.error[1:, 1], "-", color=style.ORANGE, label="compressed")
        axis.set_ylabel(r"$\|E - \Phi\|_F$")
    axes[1].semilogy(data.steps, data.predicted, "--", color=style.BLACK, lw=0.8, label="floor, theory")
    axes[4].set(xscale="log", xlabel="CPU time [s]")
    for component, colour in ((1, style.BLUE), (2, style.GREEN)):
        axes[2].plot(*data.components[:, 0, [0, component]].T, "o", color=colour)
        axes[2].plot(*data.components[:, 1, [0, component]].T, color=style.ORANGE, lw=0.9)
    axes[2].set(xlabel="principal component 1 of $E(t)$", ylabel="components 2 (blue) and 3 (green)")
    axes[5].semilogy(
        data.plain[:, 0], np.maximum(data.plain[:, 3], 1e-17), ".", color=style.PURPLE, label="plain steps"
    )
    axes[5].semilogy(data.steps, np.maximum(data.inside, 1e-17), color=style.ORANGE, label="compressed")
    axes[5].set_ylabel("distance from the simulator")
    for axis in (axes[0], axes[1], axes[3], axes[5]):
        axis.set_xlabel("step $t$")
    for axis in (axes[0], axes[1], axes[4], axes[5]):
        axis.legend()
    axes[3].legend(loc="lower left")
    titles = ("what is learned", "error", "trajectories", "what is left out", "error against CPU time", "agreement")
    style.title(axes, *titles)
    return figure


def _draw_spectrum(axis: Axes, data: Data) -> None:
    axis.plot(data.steps[::2], data.spectrum[::2, 0], "o", color=style.BLUE, alpha=0.6, mew=0)
    axis.plot(data.steps, data.spectrum[:, 1], "-", color=style.ORANGE)
    axis.plot([], [], "o", color=style.BLUE, label="original")
    axis.plot([], [], "-", color=style.ORANGE, label="compressed")
    axis.set_ylabel(r"$\sigma_i(E)$")


def _draw_difference(axis: Axes, data: Data) -> None:
    axis.plot(*data.plain[:: max(1, len(data.plain) // 25), :2].T, "o", color=style.BLUE, label="measured")
    axis.plot(data.steps, data.predicted, color=style.BLACK, lw=0.8, label=r"$\sqrt{d-2r}\,\prod_l\rho_l$")
    axis.axhline(data.predicted[0], color=style.RED, ls=":", lw=0.8, label="the same at $t = 0$")
    axis.set_ylabel(r"$\|E - E_C\|_F$")
