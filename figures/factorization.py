"""The compressed network trains like the original one with far fewer parameters, and theory knows what it leaves out.

After Yaras et al. 2024 (arXiv 2406.04112), deep matrix factorization with frozen outer factors (gamma = 0). --full is
their d = 1000, r = 10, eps = 1e-3 and step 1e3 on the mean loss, that is eta = 1e3 / d^2 = 1e-3 on ours.
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
from sims.dynamics import Run, Weights, gradient_descent, observe, product
from sims.losses import Factorization
from sims.measure import singular_values
from sims.start import problem_start, problem_target, to_numpy, to_torch
from theory.invariants import gap
from theory.problem import Problem

Series = Float64[np.ndarray, "times values"]


@dataclass(frozen=True)
class Spec:
    """A problem, how long to run it and how often to look."""

    problem: Problem = Problem(width=300, spectrum=(20.0, 17.5, 15.0, 12.5, 10.0), scales=0.2, lr=2e-3)
    """What is solved."""
    steps: int = 1200
    """Steps of gradient descent."""
    every: int = 12
    """Measure after so many steps; divides `steps`."""

    def quick(self) -> "Spec":
        """The same at width 60."""
        return replace(self, problem=replace(self.problem, width=60))

    def full(self) -> "Spec":
        """The paper's size; about two CPU hours."""
        spectrum = tuple(float(sigma) for sigma in np.linspace(62.0, 60.0, 10))
        return Spec(Problem(width=1000, spectrum=spectrum, scales=1e-3, lr=1e-3), steps=20400, every=200)


@dataclass(frozen=True, eq=False)
class Data:
    """Both runs, measured at `steps`; E = W_L ... W_1 for the original, E_C for the compressed network."""

    spec: Spec
    steps: Float64[np.ndarray, " times"]
    error: Series
    """|E - Phi|_F and |E_C - Phi|_F."""
    spectrum: Float64[np.ndarray, "times two rank"]
    """The r largest singular values of E and of E_C."""
    inside: Float64[np.ndarray, " times"]
    """|E - E_C|_F inside the subspaces, where theory says 0."""
    difference: Float64[np.ndarray, " times"]
    """|E - E_C|_F, measured."""
    predicted: Float64[np.ndarray, " times"]
    """sqrt((d - 2r) prod rho^2)."""
    seconds: Series
    """CPU time spent until then, original and compressed; the latter with finding the subspaces."""


def data(spec: Spec) -> Data:
    """Run the original and the compressed network on the same problem."""
    problem, target, start = spec.problem, problem_target(spec.problem), problem_start(spec.problem)
    begun = process_time()
    narrow = compress(to_torch(*start), torch.from_numpy(target), problem.rank)
    compressing = process_time() - begun
    left, right, *cores = to_numpy(narrow.left, narrow.right, *narrow.cores)
    small_loss, loss = Factorization(left.T @ target @ right), Factorization(target)

    def inside(weights: Weights) -> tuple[float, ...]:
        end = product(weights)
        return (small_loss.value(end), *end.ravel())

    def whole(weights: Weights) -> tuple[float, ...]:
        end = product(weights)
        core = left.T @ end @ right
        return (loss.value(end), float(np.linalg.norm(end - left @ core @ right.T)), *core.ravel())

    step = gradient_descent(small_loss, problem.lr, problem.decay)
    compressed = observe(step, tuple(cores), spec.steps, spec.every, inside, "compressed")
    step = gradient_descent(loss, problem.lr, problem.decay)
    original = observe(step, start, spec.steps, spec.every, whole, "original")
    return _compared(spec, original, replace(compressed, seconds=compressed.seconds + compressing))


def _compared(spec: Spec, original: Run, compressed: Run) -> Data:
    """|E - E_C|^2 is what lies outside the subspaces plus how far the cores are apart inside."""
    times, size = len(original.steps), 2 * spec.problem.rank
    outside, core = original.values[:, 1], original.values[:, 2:].reshape(times, size, size)
    other = compressed.values[:, 1:].reshape(times, size, size)
    spectra = np.array(
        [[singular_values(matrix)[: size // 2] for matrix in pair] for pair in zip(core, other, strict=True)]
    )
    return Data(
        spec,
        original.steps.astype(float),
        error=np.sqrt(2 * np.stack([original.values[:, 0], compressed.values[:, 0]], axis=1)),
        spectrum=spectra,
        inside=(inside := np.linalg.norm(core - other, axis=(1, 2))),
        difference=np.hypot(outside, inside),
        predicted=gap(spec.problem, spec.steps)[original.steps],
        seconds=np.stack([original.seconds, compressed.seconds], axis=1),
    )


def check(data: Data) -> list[Claim]:
    """The difference is the predicted tail to rounding, and nothing inside the subspaces; the errors differ by it."""
    problem = data.spec.problem
    sum_rule = data.error[:, 0] / np.hypot(data.error[:, 1], data.predicted)
    small = np.sqrt(problem.rank) * np.prod(problem.eps)  # the r active directions that the signal leaves empty
    return [
        Claim("max | |E - E_C| measured - predicted |", np.abs(data.difference - data.predicted).max(), at_most=1e-12),
        Claim("max |E - E_C| inside the subspaces / sigma_1", data.inside.max() / problem.spectrum[0], at_most=1e-12),
        Claim(
            "max | error of the original / sqrt(error compressed^2 + tail^2) - 1 |",
            np.abs(sum_rule - 1).max(),
            at_most=1e-9,
        ),
        Claim("final error of the compressed network / (sqrt(r) prod eps)", data.error[-1, 1] / small, at_most=1.0),
        Claim("parameters trained, original / compressed", (problem.width / (2 * problem.rank)) ** 2, at_least=4),
    ]


def draw(data: Data) -> Figure:
    """Original as points, compressed as lines, theory in black."""
    figure, axes = style.panels(2, 2, height=2.2)
    _draw_spectrum(axes[0], data)
    _draw_difference(axes[2], data)
    for axis, horizontal in ((axes[1], np.stack([data.steps] * 2, axis=1)), (axes[3], data.seconds)):
        axis.semilogy(horizontal[1:, 0], data.error[1:, 0], "o", color=style.BLUE, label="original")
        axis.semilogy(horizontal[1:, 1], data.error[1:, 1], "-", color=style.ORANGE, label="compressed")
        axis.set_ylabel(r"$\|E - \Phi\|_F$")
    axes[1].semilogy(data.steps, data.predicted, "--", color=style.BLACK, lw=0.8, label="floor, theory")
    axes[3].set(xscale="log", xlabel="CPU time [s]")
    for axis in axes[:3]:
        axis.set_xlabel("step $t$")
    for axis in axes:
        axis.legend()
    style.title(axes, "what is learned", "error", "what the compressed network leaves out", "error against CPU time")
    return figure


def _draw_spectrum(axis: Axes, data: Data) -> None:
    axis.plot(data.steps[::2], data.spectrum[::2, 0], "o", color=style.BLUE, alpha=0.6, mew=0)
    axis.plot(data.steps, data.spectrum[:, 1], "-", color=style.ORANGE)
    axis.plot([], [], "o", color=style.BLUE, label="original")
    axis.plot([], [], "-", color=style.ORANGE, label="compressed")
    axis.set_ylabel(r"$\sigma_i(E)$")


def _draw_difference(axis: Axes, data: Data) -> None:
    axis.plot(data.steps[::4], data.difference[::4], "o", color=style.BLUE, label=r"$\|E - E_C\|_F$, measured")
    axis.plot(data.steps, data.predicted, color=style.BLACK, lw=0.8, label=r"theory, $\sqrt{d-2r}\,\prod_l\rho_l$")
    axis.axhline(data.predicted[0], color=style.RED, ls=":", lw=0.8, label=r"bound, $\sqrt{d-2r}\,\prod_l\epsilon_l$")
    axis.set_ylabel(r"$\|E - E_C\|_F$")
