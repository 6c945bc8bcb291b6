"""Every weight matrix learns only in a subspace of 2r dimensions; on the rest it is one scalar that theory predicts.

After Yaras et al. 2024 (arXiv 2406.04112), the evolution of the singular values and vectors of W_1: d = 30, r = 3,
L = 3, eps = 1, step 1 on the mean loss, that is eta = 1/d^2 on ours. Their target was a truncated Gaussian; the
spectrum 10, 9, 8 is ours and near it.
"""

from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures import style
from figures.claims import Claim
from sims.dynamics import Weights, gradient_descent, rollout
from sims.losses import Factorization
from sims.measure import idle_scale, largest_angle, singular_blocks, singular_values
from sims.start import problem_start, problem_target
from theory.invariants import invariant_bases, predicted_weights, reduced_dynamics, reduced_target, rho
from theory.problem import Problem

Series = Float64[np.ndarray, "times values"]


@dataclass(frozen=True)
class Spec:
    """Two problems: the paper's, and one in which every layer starts at its own scale and decays."""

    paper: Problem = Problem(width=30, spectrum=(10.0, 9.0, 8.0), depth=3, scales=1.0, lr=1 / 900)
    """The paper's problem: equal scales, no decay."""
    unequal: Problem = Problem(
        width=30, spectrum=(10.0, 9.0, 8.0), depth=3, scales=(1.0, 0.7, 0.4), lr=1 / 900, decay=5.0
    )
    """Each layer at its own scale, with weight decay."""
    steps: int = 50
    """Steps of gradient descent."""

    def __post_init__(self) -> None:
        if self.steps < 8:
            raise ValueError(f"steps = {self.steps}: too few for the active subspaces to turn visibly; take steps >= 8")

    def quick(self) -> "Spec":
        """The same, fewer steps."""
        return replace(self, steps=20)

    def full(self) -> "Spec":
        """The default is the paper's size."""
        return self


@dataclass(frozen=True, eq=False)
class Data:
    """What was simulated, and what theory says of it; rows are t = 0, ..., steps."""

    spec: Spec
    simulated: Series
    """Singular values of W_1."""
    predicted: Series
    """The same from the 2r x 2r dynamics and rho."""
    angles: Series
    """Largest principal angle in radians of the top r, idle and bottom r right singular subspaces to those at t = 1."""
    predicted_angles: Series
    """The same from the right singular vectors of the 2r x 2r block, 0 for the idle ones."""
    idle_simulated: Series
    """Idle scale of each layer of the second problem."""
    idle_predicted: Series
    """rho_l of the second problem."""
    deviation: Series
    """max |W_l simulated - W_l predicted|, worst layer, for each problem."""


def data(spec: Spec) -> Data:
    """Simulate both problems and predict them."""
    paper, unequal = (_simulate(problem, spec.steps) for problem in (spec.paper, spec.unequal))
    cores, rank = _first_cores(spec.paper, spec.steps), spec.paper.rank
    return Data(
        spec,
        simulated=np.array([singular_values(weights[0]) for weights in paper]),
        predicted=_predicted_singular_values(spec.paper, cores),
        angles=_angles([weights[0] for weights in paper[1:]], rank),
        predicted_angles=_angles(cores[1:], rank),  # a block of 2r has no middle: theory's idle angle is 0
        idle_simulated=np.array([[idle_scale(weight, spec.unequal.idle) for weight in w] for w in unequal]),
        idle_predicted=np.abs(rho(spec.unequal, spec.steps)),
        deviation=np.stack([_deviation(spec.paper, paper), _deviation(spec.unequal, unequal)], axis=1),
    )


def _simulate(problem: Problem, steps: int) -> list[Weights]:
    step = gradient_descent(Factorization(problem_target(problem)), problem.lr, problem.decay)
    run = list(rollout(step, problem_start(problem), steps))
    for time, weights in enumerate(run):
        if not all(np.isfinite(weight).all() for weight in weights):
            raise FloatingPointError(f"diverged at step {time}; take a smaller step size")
    return run


def _first_cores(problem: Problem, steps: int) -> list[np.ndarray]:
    """A_1(t) for t = 0, ..., steps."""
    target = problem_target(problem)
    small = reduced_target(invariant_bases(problem_start(problem), target, problem.rank), target, problem.rank)
    return [cores[0] for cores in islice(reduced_dynamics(problem, small), steps + 1)]


def _predicted_singular_values(problem: Problem, cores: list[np.ndarray]) -> Series:
    active = [singular_values(core) for core in cores]
    idle = np.repeat(np.abs(rho(problem, len(cores) - 1)[:, :1]), problem.idle, axis=1)
    return -np.sort(-np.hstack([active, idle]), axis=1)


def _angles(weights: list[np.ndarray], rank: int) -> Series:
    """Largest angles of the top, middle and bottom singular subspaces to those of the first matrix; 0 if empty."""
    blocks = [singular_blocks(weight, rank) for weight in weights]
    pairs = [list(zip(now, blocks[0], strict=True)) for now in blocks]
    return np.array([[largest_angle(a, b) if a.size else 0.0 for a, b in pair] for pair in pairs])


def _deviation(problem: Problem, run: list[Weights]) -> Float64[np.ndarray, " times"]:
    target = problem_target(problem)
    bases = invariant_bases(run[0], target, problem.rank)
    predicted = predicted_weights(problem, bases, target, len(run) - 1)
    return np.array(
        [max(np.abs(w - p).max() for w, p in zip(*pair, strict=True)) for pair in zip(run, predicted, strict=True)]
    )


def check(data: Data) -> list[Claim]:
    """Theory and simulation agree to 1e-12 (rounding grows to about 1e-14), and the idle subspace stands still."""
    r = data.spec.paper.rank
    return [
        Claim("max |W_l simulated - predicted|, all layers and steps", float(data.deviation.max()), at_most=1e-12),
        Claim(
            "max deviation of the singular values of W_1", np.abs(data.simulated - data.predicted).max(), at_most=1e-12
        ),
        Claim("max |idle scale - rho|", np.abs(data.idle_simulated - data.idle_predicted).max(), at_most=1e-12),
        Claim("largest angle of the idle subspace to t = 1, rad", float(data.angles[:, 1].max()), at_most=1e-9),
        Claim("max deviation of the angles, rad", np.abs(data.angles - data.predicted_angles).max(), at_most=1e-9),
        Claim("final angle of the top r subspace to t = 1, rad", float(data.angles[-1, 0]), at_least=0.05),
        Claim(
            "singular values above the idle ones at the end", _moved(data.simulated[-1], r, 1), at_least=r, at_most=r
        ),
        Claim(
            "singular values below the idle ones at the end", _moved(data.simulated[-1], r, -1), at_least=r, at_most=r
        ),
    ]


def _moved(values: Float64[np.ndarray, " d"], rank: int, sign: int) -> int:
    """How many singular values have left the median, upwards or downwards, by more than 1 %."""
    return int(np.sum(sign * (values - np.median(values)) > 0.01 * np.median(values)))


def draw(data: Data) -> Figure:
    """Simulation as points, theory as lines on top."""
    figure, axes = style.panels(2, 2, height=2.2)
    _draw_spectrum(axes[0], data)
    _draw_angles(axes[1], data)
    _draw_idle_scales(axes[2], data)
    _draw_deviation(axes[3], data)
    style.title(
        axes,
        "singular values of $W_1$",
        "right singular subspaces of $W_1$",
        r"idle scale, unequal $\epsilon_l$, weight decay",
        "simulation minus theory",
    )
    for axis, columns in zip(axes, (1, 1, 2, 1), strict=True):
        axis.set_xlabel("step $t$")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(ncols=columns)
    return figure


def _draw_spectrum(axis: Axes, data: Data) -> None:
    steps = np.arange(len(data.simulated))
    for part, colour, name in _groups(data):
        axis.plot(steps[::2], data.simulated[::2, part], "o", color=colour, alpha=0.6, mew=0)
        axis.plot(steps, data.predicted[:, part], "-", color=style.BLACK, lw=0.8)
        axis.plot([], [], "o", color=colour, label=f"{name}, simulated")
    axis.plot([], [], "-", color=style.BLACK, lw=0.8, label="theory")
    axis.set_ylabel(r"$\sigma_i(W_1(t))$")


def _draw_angles(axis: Axes, data: Data) -> None:
    steps = np.arange(1, len(data.simulated))
    for index, ((_, colour, name), ring) in enumerate(zip(_groups(data), (False, False, True), strict=True)):
        face, size = ("none", 6) if ring else (colour, 3)  # top and bottom turn alike: rings around dots
        label = f"{name}, simulated"
        axis.plot(steps[::4], data.angles[::4, index], "o", color=colour, mfc=face, ms=size, label=label)
        axis.plot(steps, data.predicted_angles[:, index], "-", color=style.BLACK, lw=0.8)
    axis.plot([], [], "-", color=style.BLACK, lw=0.8, label="theory")
    axis.set_ylabel("largest angle to $t=1$ [rad]")


def _draw_idle_scales(axis: Axes, data: Data) -> None:
    steps = np.arange(len(data.idle_simulated))
    for layer, colour in enumerate((style.ORANGE, style.PURPLE, style.SKY)):
        axis.plot(steps[::2], data.idle_simulated[::2, layer], "o", color=colour, label=f"$W_{layer + 1}$, simulated")
        axis.plot(steps, data.idle_predicted[:, layer], "-", color=style.BLACK, lw=0.8)
    axis.plot([], [], "-", color=style.BLACK, lw=0.8, label=r"theory, $\rho_l(t)$")
    axis.set(ylabel="idle scale", ylim=(0, 1.45))


def _draw_deviation(axis: Axes, data: Data) -> None:
    names = (r"equal $\epsilon$", r"unequal $\epsilon_l$, decay")
    for curve, name, colour in zip(data.deviation.T, names, (style.BLUE, style.RED), strict=True):
        axis.semilogy(curve, color=colour, label=name)
    axis.axhline(1e-12, color=style.BLACK, ls=":", lw=0.8, label="claimed bound")
    axis.set(ylabel=r"$\max_{l,i,j}\,|\Delta (W_l)_{ij}|$", ylim=(1e-17, 1e-11))


def _groups(data: Data) -> list[tuple[slice, str, str]]:
    r = data.spec.paper.rank
    return [
        (slice(0, r), style.RED, "top $r$"),
        (slice(r, -r), style.BLUE, "idle, $d-2r$"),
        (slice(-r, None), style.GREEN, "bottom $r$"),
    ]
