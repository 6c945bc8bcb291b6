"""Outside the theorem the invariant block leaks: on raw data by as much as these are not white, under Adam at once.

After the appendix of Yaras et al. 2023 (arXiv 2306.01154): d_x = 30 inputs, d_y = 3 outputs, N = 300 samples, L = 3,
entries of X and Y from N(0, 1), eps = 1, step 1 on the mean over the d_y N = 900 numbers of Y, that is eta = 1 / 900 on
ours. --full runs their 10,000 steps; gradient descent has ended after 500. Their notebook holds no settings of other
optimizers: momentum 0.9 at the same step and Adam at 1e-3 are ours.

Whitened data, X' = sqrt(N) (X X^T)^(-1/2) X, make the regression a factorization of Y X'^T / N with the step N eta.
Leak: the part of W_l(t) that is neither in the active block S_l, S_{l-1} nor a multiple of W_l(0) on the idle one, over
|W_l(t) - W_l(0)|, in the worst layer. The paper shows that most singular values of W_1 stay near 1, and so they do; but
they hide the leak, which they feel in second order only. Momentum, which overshoots on raw data, leaks there like Adam.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from sims.dynamics import Weights, adam, gradient_descent, momentum, moving, product
from sims.losses import Factorization, Loss, Regression
from sims.measure import relative_error, singular_values
from sims.run import observe
from sims.start import orthogonal
from sims.sweep import Sweep, in_process
from theory.subspaces import Bases, invariant_subspaces

Rule = Literal["gradient descent", "momentum", "Adam"]
RULES: dict[Rule, str] = {"gradient descent": style.BLUE, "momentum": style.ORANGE, "Adam": style.RED}
LEAK, ERROR = range(2)
"""Columns of `values`: the leak, and |E - E*|_F / |E*|_F with the least-squares solution E*. Then sigma(W_1)."""


@dataclass(frozen=True)
class Training:
    """A network, its data, and the rule that trains it."""

    inputs: int = 30
    """d_x, and the width of the hidden layers."""
    outputs: int = 3
    """d_y."""
    samples: int = 300
    """N."""
    whitened: bool = False
    """X X^T = N I, or as it was drawn."""
    rule: Rule = "gradient descent"
    """What takes the steps."""
    depth: int = 3
    """L."""
    scale: float = 1.0
    """eps."""
    step: float = 1.0
    """Step on the mean loss, of gradient descent and momentum; eta = step / (d_y N)."""
    beta: float = 0.9
    """Of momentum."""
    adam_lr: float = 1e-3
    """Step of Adam."""
    steps: int = 500
    """So many steps."""
    every: int = 5
    """Measure after so many; divides `steps`."""
    seed: int = 0
    """Seeds data and start."""

    def __post_init__(self) -> None:
        if not 1 <= self.outputs < self.inputs / 2 or self.samples <= self.inputs:
            raise ValueError(
                f"outputs = {self.outputs}, inputs = {self.inputs}, samples = {self.samples}: take 2 outputs < "
                "inputs < samples, or nothing is idle, or X X^T is singular"
            )
        if not 0 < self.step < np.inf or not 0 < self.adam_lr < np.inf or self.depth < 2:
            raise ValueError(f"step = {self.step}, adam_lr = {self.adam_lr}, depth = {self.depth}: take > 0, > 0, >= 2")


def train(training: Training) -> dict[str, np.ndarray]:
    """Train it: `steps`, and `values` with the columns LEAK, ERROR, sigma_1, ..., sigma_d of W_1."""
    rng = np.random.default_rng(training.seed)
    outputs = rng.standard_normal((training.outputs, training.samples))
    inputs = rng.standard_normal((training.inputs, training.samples))
    dims = (training.inputs,) * training.depth + (training.outputs,)
    start = orthogonal(dims, (training.scale,) * training.depth, rng)
    if training.whitened:
        left, _, right = np.linalg.svd(inputs, full_matrices=False)
        inputs = np.sqrt(training.samples) * left @ right
    signal = outputs @ inputs.T
    solution = np.linalg.solve(inputs @ inputs.T, signal.T).T
    loss: Loss = Factorization(signal / training.samples) if training.whitened else Regression(inputs, outputs)
    spaces = invariant_subspaces(start, signal)

    def measure(state: Any) -> tuple[float, ...]:
        weights = state if isinstance(state[0], np.ndarray) else state.weights
        error = relative_error(product(weights), solution)
        return (leak(start, weights, spaces), error, *singular_values(weights[0]))

    step, state = _rule(training, loss, start)
    run = observe(step, state, training.steps, training.every, measure, training.rule)
    return {"steps": run.steps.astype(float), "values": run.values}


def _rule(training: Training, loss: Loss, start: Weights) -> tuple[Any, Any]:
    """The step, and the state that it starts from."""
    lr = training.step / training.outputs / (1 if training.whitened else training.samples)
    if training.rule == "Adam":
        return adam(loss, training.adam_lr), moving(start, 2)
    if training.rule == "momentum":
        return momentum(loss, lr, training.beta), moving(start, 1)
    return gradient_descent(loss, lr), start


def leak(start: Weights, weights: Weights, spaces: Bases) -> float:
    """max_l |W_l - S_l S_l^T W_l S_{l-1} S_{l-1}^T - c_l T_l T_l^T W_l(0) T_{l-1} T_{l-1}^T| / |W_l - W_l(0)|.

    S, T: the active directions and those that are orthogonal to them; c_l: what makes it least. 0 at the start.
    """
    shares = [0.0]
    for first, weight, (before, after) in zip(start, weights, pairwise(spaces), strict=True):
        image, moved = first - after @ (after.T @ first), float(np.linalg.norm(weight - first))
        idle = image - image @ before @ before.T
        square = float((idle**2).sum())
        rest = weight - after @ (after.T @ weight @ before) @ before.T
        if square > 1e-20 * (first**2).sum():  # else no idle direction leaves this layer
            rest = rest - idle * ((rest * idle).sum() / square)
        shares.append(float(np.linalg.norm(rest)) / moved if moved else 0.0)
    return max(shares)


@dataclass(frozen=True)
class Spec:
    """What is trained by each rule, and the numbers of samples that gradient descent meets."""

    training: Training = Training()
    """What all runs have in common."""
    samples: tuple[int, ...] = (300, 1200, 4800)
    """(d): N."""

    def quick(self) -> "Spec":
        """The same with 12 inputs and 2 outputs."""
        training = replace(self.training, inputs=12, outputs=2, samples=120, step=0.5, steps=600)
        return Spec(training, (120, 480, 1920))

    def full(self) -> "Spec":
        """The paper's 10,000 steps, and more samples; about two CPU minutes."""
        return Spec(replace(self.training, steps=10_000, every=100), (300, 1200, 4800, 19_200))


@dataclass(frozen=True, eq=False)
class Data:
    """Runs by rule on whitened and on raw data, measured at `steps`; and gradient descent on more samples."""

    spec: Spec
    steps: Float64[np.ndarray, " times"]
    whitened: dict[Rule, Float64[np.ndarray, "times values"]]
    raw: dict[Rule, Float64[np.ndarray, "times values"]]
    leaks: Float64[np.ndarray, " samples"]
    """At the end, for each of the numbers of samples."""


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Train each rule on both, and gradient descent on more samples."""
    grid = [replace(spec.training, whitened=whitened, rule=rule) for whitened in (True, False) for rule in RULES]
    grid += [replace(spec.training, samples=samples) for samples in spec.samples]
    found = sweep(train, grid)
    values = [result["values"] for result in found]
    count = len(RULES)
    whitened, raw = (dict(zip(RULES, part, strict=True)) for part in (values[:count], values[count : 2 * count]))
    return Data(spec, found[0]["steps"], whitened, raw, np.array([v[-1, LEAK] for v in values[2 * count :]]))


def check(data: Data) -> list[Claim]:
    """Whitened: nothing but rounding for gradient descent and momentum. Adam and raw data: what was found.

    Rounding, 1e-16 of |W_l|, over a movement of 1e-2 |W_l| or more after the first steps: 1e-12. X X^T / N - I has the
    size sqrt(d / N), and so has the leak that it causes: order -1/2 in N, found with room for the seed.
    """
    rank = data.spec.training.outputs
    order = np.polyfit(np.log(data.spec.samples), np.log(data.leaks), 1)[0]
    spectrum = data.raw["gradient descent"][-1, 2:]
    whitened = {rule: values[:, LEAK] for rule, values in data.whitened.items()}
    raw = {rule: values[-1, LEAK] for rule, values in data.raw.items()}
    errors = [values[-1, ERROR] for values in (*data.whitened.values(), *data.raw.values())]
    return [
        Claim("final |E - least-squares solution| / |solution|, worst run", np.max(errors), at_most=0.05),
        Claim("whitened, gradient descent: leak, max", whitened["gradient descent"].max(), at_most=1e-12),
        Claim("whitened, momentum: leak, max", whitened["momentum"].max(), at_most=1e-12),
        Claim("whitened, Adam: leak, least", whitened["Adam"][1:].min(), at_least=0.05),
        Claim("raw, gradient descent: final leak", raw["gradient descent"], at_least=0.03, at_most=0.5),
        Claim("raw, momentum: final leak", raw["momentum"], at_least=0.03, at_most=0.95),
        Claim("raw, Adam: final leak", raw["Adam"], at_least=0.05),
        Claim("raw, gradient descent: order of the leak in N", order, at_least=-0.9, at_most=-0.3),
        Claim("raw, gradient descent: largest singular value of W_1", spectrum[0], at_least=1, at_most=1.3),
        Claim(
            "raw, gradient descent: the middle singular values of W_1, distance from eps, max",
            np.abs(spectrum[rank:-rank] - data.spec.training.scale).max(),
            at_most=0.06,
        ),
    ]


def draw(data: Data) -> Figure:
    """Leaks by rule, singular values, and the leak against the number of samples."""
    figure, axes = style.panels(2, 2, height=2.2)
    for axis, runs in zip(axes, (data.whitened, data.raw), strict=False):
        for rule, colour in RULES.items():
            axis.plot(data.steps[1:], runs[rule][1:, LEAK], color=colour, label=rule)
        axis.set(xlabel="step $t$", ylabel="leak, worst layer")
    axes[0].set(yscale="log", ylim=(1e-16, 3))
    axes[1].set_ylim(0, 1)
    axes[0].legend(loc="center right")
    rank = data.spec.training.outputs
    for name, columns, colour in (
        (f"{rank} largest", slice(2, 2 + rank), style.BLUE),
        ("others", slice(2 + rank, -rank), style.BLACK),
        (f"{rank} smallest", slice(-rank, None), style.GREEN),
    ):
        lines = axes[2].plot(data.steps, data.raw["gradient descent"][:, columns], color=colour, lw=0.8)
        lines[0].set_label(name)
    axes[2].set(xscale="symlog", xlabel="step $t$", ylabel=r"$\sigma_i(W_1)$")
    axes[2].legend(loc="lower left")
    axes[3].loglog(data.spec.samples, data.leaks, "o-", color=style.BLUE, label="measured")
    slope = data.leaks[0] * (np.array(data.spec.samples) / data.spec.samples[0]) ** -0.5
    axes[3].loglog(data.spec.samples, slope, "--", color=style.BLACK, lw=0.8, label=r"$\propto N^{-1/2}$")
    axes[3].set(xlabel="samples $N$", ylabel="final leak")
    axes[3].set_xticks(data.spec.samples, [str(samples) for samples in data.spec.samples])
    axes[3].minorticks_off()
    axes[3].set_yticks([leak for leak in (0.01, 0.02, 0.05, 0.1, 0.2) if leak > data.leaks.min() / 2])
    axes[3].yaxis.set_major_formatter("{x:g}")
    axes[3].legend()
    style.title(axes, "whitened data", "raw data", "raw, gradient descent", "raw, gradient descent, more samples")
    return figure
