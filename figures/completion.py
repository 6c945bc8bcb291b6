"""Matrix completion: compressed learns when the original does if its outer factors train a little; frozen, it stalls.

After Yaras et al. 2024 (arXiv 2406.04112), deep matrix completion with gamma = 0.01 and gamma = 0; gamma is the rate
of the outer factors over that of the cores. --full is their d = 1000, r = 5, 20 % observed, eps = 1e-3 and step 5e3 on
the mean over all d^2 entries, that is eta = 5e3 / d^2 = 5e-3 on ours. The observed entries are on average `density`
times all of them, so that the step on their loss is `problem.lr / density`.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from lowdim import Narrow, compress
from sims.dynamics import Run, Weights, discrepant, gradient_descent, observe, product
from sims.losses import Completion
from sims.measure import relative_error
from sims.start import observed, problem_start, problem_target, to_numpy, to_torch
from theory.problem import Problem

ORIGINAL = "original"


@dataclass(frozen=True)
class Spec:
    """A target, the share of it that is observed, and the rates of the outer factors."""

    problem: Problem = Problem(width=200, spectrum=(30.0, 27.0, 24.0, 21.0, 18.0), scales=1e-2, lr=3e-3)
    """What is solved."""
    density: float = 0.3
    """Share of the entries that is observed, in (0, 1]."""
    gammas: tuple[float, ...] = (0.1, 0.01, 0.0)
    """Learning rate of the outer factors over that of the cores."""
    steps: int = 4000
    """Steps of gradient descent."""
    every: int = 50
    """Measure after so many steps; divides `steps`."""

    def __post_init__(self) -> None:
        observed((1, 1), self.density, np.random.default_rng())  # refuses a density outside (0, 1]
        if not self.gammas or min(self.gammas) < 0:
            raise ValueError(f"gammas = {self.gammas}: give one or more ratios >= 0")
        if self.problem.decay:
            raise ValueError(f"decay = {self.problem.decay}: outer factors would decay that the original lacks; take 0")
        sigma, core = self.problem.spectrum[0], 2 / self.problem.stable_lr
        limit = 2 / (
            core + 2 * max(self.gammas) * sigma**2
        )  # the outer factors add gamma sigma_1^2 each to the curvature
        if self.problem.lr >= limit:
            raise ValueError(
                f"lr = {self.problem.lr} with gamma = {max(self.gammas)} is unstable; take lr < {limit:.3g}"
            )

    @property
    def lr(self) -> float:
        """eta on the loss of the observed entries."""
        return self.problem.lr / self.density

    def quick(self) -> "Spec":
        """The same at width 100, where the singular values that give the same entries are smaller."""
        problem = replace(self.problem, width=100, lr=5e-3, spectrum=(20.0, 18.0, 16.0, 14.0, 12.0))
        return replace(self, problem=problem, density=0.4)

    def full(self) -> "Spec":
        """The paper's size; about 16 CPU hours."""
        problem = Problem(width=1000, spectrum=(63.0, 62.7, 62.4, 62.1, 61.8), scales=1e-3, lr=1e-3)
        return replace(self, problem=problem, density=0.2, gammas=(0.01, 0.0), steps=170_000, every=1000)


@dataclass(frozen=True, eq=False)
class Data:
    """Runs by name; each measured |E - Phi|_F / |Phi|_F."""

    spec: Spec
    runs: dict[str, Run]
    movement: Float64[np.ndarray, "times 2"]
    """|W_1(t) - W_1(0)|_F of the original, inside the subspaces of the compressed network and outside."""


def data(spec: Spec) -> Data:
    """Run the original and one compressed network for each gamma on the same entries."""
    problem, start, target = spec.problem, problem_start(spec.problem), problem_target(spec.problem)
    rng = np.random.default_rng([problem.seed, 2])
    loss = Completion(target, observed(target.shape, spec.density, rng).astype(float))
    narrow = compress(to_torch(*start), torch.from_numpy(-loss.gradient(product(start))), problem.rank)
    factors = to_numpy(*narrow.factors)

    def error_and_movement(weights: Weights) -> tuple[float, ...]:
        return error(weights), *_inside_and_outside(weights[0] - start[0], start[0], narrow)

    def error(weights: Weights) -> float:
        return relative_error(product(weights), target)

    step = gradient_descent(loss, spec.lr)
    runs = {ORIGINAL: observe(step, start, spec.steps, spec.every, error_and_movement, ORIGINAL)}
    for gamma in spec.gammas:
        step = gradient_descent(loss, discrepant(spec.lr, gamma, problem.depth))
        name = rf"compressed, $\gamma={gamma:g}$"
        runs[name] = observe(step, factors, spec.steps, spec.every, lambda weights: (error(weights),), name)
    return Data(spec, runs, runs[ORIGINAL].values[:, 1:])


def _inside_and_outside(moved: np.ndarray, first: np.ndarray, narrow: Narrow) -> tuple[float, float]:
    """Norms of the parts of a movement of W_1 that map S_0 to S_1 = W_1(0) S_0, and of the rest."""
    right = narrow.right.numpy()
    left = np.linalg.qr(first @ right)[0]
    inside = left @ (left.T @ moved @ right) @ right.T
    return float(np.linalg.norm(inside)), float(np.linalg.norm(moved - inside))


def check(data: Data) -> list[Claim]:
    """gamma > 0: half error when the original has it, a small error in the end. gamma = 0: a plateau far above."""
    inside, outside = data.movement[-1]
    leak = outside / np.hypot(inside, outside)
    original = data.runs[ORIGINAL]
    claims = [
        Claim("original: final relative error", original.values[-1, 0], at_most=1e-4),
        Claim("original: |movement of W_1 outside the subspaces| / |movement|", leak, at_least=0.1, at_most=0.7),
    ]
    for gamma, run in zip(data.spec.gammas, list(data.runs.values())[1:], strict=True):
        last, middle = run.values[-1, 0], run.values[len(run.values) * 3 // 4, 0]
        if gamma:
            claims.append(Claim(f"gamma = {gamma:g}: final relative error", last, at_most=1e-3))
            ratio = _half(run) / max(_half(original), 1)
            claims.append(
                Claim(f"gamma = {gamma:g}: steps to half error / original's", ratio, at_least=0.9, at_most=1.1)
            )
            ratio = _small(run) / max(_small(original), 1)
            claims.append(Claim(f"gamma = {gamma:g}: steps to 1e-3 / original's", ratio, at_least=1, at_most=3))
        else:
            claims.append(Claim("gamma = 0: final relative error", last, at_least=0.05))
            claims.append(
                Claim("gamma = 0: final error / that at three quarters", last / max(middle, 1e-300), at_least=0.99)
            )
    return claims


def _half(run: Run) -> float:
    """The first measured step with |E - Phi|^2 below half of |Phi|^2."""
    return _first_below(run, 0.5**0.5)


def _small(run: Run) -> float:
    """The first measured step with |E - Phi| at most 1e-3 |Phi|."""
    return _first_below(run, 1e-3)


def _first_below(run: Run, error: float) -> float:
    below = run.values[:, 0] <= error
    return float(run.steps[below][0]) if below.any() else np.inf


def draw(data: Data) -> Figure:
    """Error against steps and against time, and the reason for the stall."""
    figure, axes = style.panels(1, 3, height=2.4)
    colours = (style.BLUE, style.GREEN, style.ORANGE, style.RED, style.PURPLE, style.SKY)
    for (name, run), colour in zip(data.runs.items(), colours, strict=False):
        line = "o-" if name == ORIGINAL else "-"
        axes[0].semilogy(run.steps, run.values[:, 0], line, color=colour, label=name, markevery=4)
        axes[1].loglog(run.seconds[1:], run.values[1:, 0], line, color=colour, label=name, markevery=4)
    axes[0].set(xlabel="step $t$", ylabel=r"$\|E-\Phi\|_F\,/\,\|\Phi\|_F$")
    axes[1].set(xlabel="CPU time [s]")
    for column, (name, line) in enumerate((("inside the subspaces", "-"), ("outside", "--"))):
        axes[2].plot(data.runs[ORIGINAL].steps, data.movement[:, column], line, color=style.BLUE, label=name)
    axes[2].set(xlabel="step $t$", ylabel=r"$\|W_1(t) - W_1(0)\|_F$, original")
    axes[2].legend(loc="center right")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(data.runs))
    style.title(axes, "error", "error against CPU time", r"why $\gamma = 0$ stalls")
    return figure
