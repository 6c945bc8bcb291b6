"""Descent learns mode by mode on the curves of theory, rich or lazy by imbalance alone, and O(eta) away from them.

Saxe et al. 2014 (arXiv 1312.6120) have the logistic modes of two layers, Dominé et al. 2024 (arXiv 2409.14623) what
lambda-balanced starts make of them, Arora et al. 2019 (arXiv 1905.13655) any depth; sizes and signals are ours. Each
course is run with eta = step / kernel, kernel being the largest rate at the solution, then with half that eta, and so
on: points are simulated with the smallest, lines are theory. Values are over sigma_1 of the target.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp

from figures import style
from figures.claims import Claim
from sims.dynamics import Step, Weights, gradient_descent, gradients, product
from sims.losses import Factorization
from sims.run import observe
from sims.start import haar
from theory import modes
from theory.approximate import escape_time
from theory.invariants import balance_drift
from theory.problem import Problem

Times = Float64[np.ndarray, " times"]
Table = Float64[np.ndarray, "times values"]
COLOURS = (style.BLUE, style.GREEN, style.ORANGE, style.RED, style.SKY)
GROUPS = ("N = 2", "N = 3", "N = 4", "not aligned", "lambda")
DEPTHS = (2, 3, 4)
IMBALANCES = {"lambda = 0": 0.0, "lambda = 1": 1.0, "lambda = 10": 10.0, "lambda = 100": 100.0}
SIGNAL, FIRST = 3.0, 0.01  # s and a_0 of the two scalar layers of imbalance lambda = 0, 1, 10, 100
SAMPLES = 120  # measurements of each run, after its start


@dataclass(frozen=True)
class Spec:
    """Signals, starts and steps; imbalances and depths are those of the claims."""

    signals: tuple[float, ...] = (4.0, 3.0, 2.0, 1.0)
    """Singular values of the target, largest first: n of them, for 2n inputs, n + 1 hidden units, n + 2 outputs."""
    start: float = 0.01
    """a_0 of its modes; where the start is not aligned, half to twice that are the squared singular values of W_1."""
    imbalance: float = 1.0
    """lambda of that start."""
    step: float = 0.02
    """eta times the kernel, for the largest eta."""
    levels: int = 4
    """How many eta are tried."""
    seed: int = 0
    """Draws the singular vectors."""

    def __post_init__(self) -> None:
        modal = len(self.signals) >= 2 and 0 < 2 * self.start < min(self.signals) and self.imbalance > 0
        if not modal or not 0 < self.step <= 0.1 or self.levels < 2:
            bounds = "two signals or more, 0 < start < half of each, imbalance > 0, 0 < step <= 0.1, levels >= 2"
            raise ValueError(f"{self}: take {bounds}")

    def quick(self) -> "Spec":
        """Two modes, two steps."""
        return replace(self, signals=(4.0, 2.0), levels=2)

    def full(self) -> "Spec":
        """Ten modes in wider layers from smaller starts, and a quarter of the smallest step."""
        return replace(self, signals=tuple(map(float, range(10, 0, -1))), start=5e-3, levels=6)


class Trace(NamedTuple):
    """What the runs of one course showed, by step, and theory's values at the same times."""

    times: Times  # eta times steps; over the last kernel's time for lambda
    found: Float64[np.ndarray, "levels times values"]
    expected: Table
    missed: float  # by how much, at most, the balance after a step misses its formula, over max |W_l|^2


@dataclass(frozen=True, eq=False)
class Data:
    """The courses N = 2, ..., not aligned, lambda = 0, ..., and what else theory says."""

    spec: Spec
    traces: dict[str, Trace]
    lags: Table  # (descent - logistic) / (sigma_1 step) of the modes for N = 2, to first order
    half_times: Times  # of the same
    growths: dict[str, float]  # last kernel over first of two scalar layers, by name
    lazy: dict[str, Times]  # a / s of two scalar layers if their first kernel stood still

    @property
    def steps(self) -> Times:
        """eta times the kernel."""
        return self.spec.step * 0.5 ** np.arange(self.spec.levels)

    def errors(self, group: str) -> Times:
        """max |simulation - theory| at each step, worst course of the group."""
        traces = [trace for name, trace in self.traces.items() if name.startswith(group)]
        return np.max([np.abs(trace.found - trace.expected).max(axis=(1, 2)) for trace in traces], axis=0)

    @property
    def predicted(self) -> Times:
        """The same for N = 2, from the lags."""
        return self.steps * np.abs(self.lags).max()


def data(spec: Spec) -> Data:
    """Run each course with every step."""
    traces = {f"N = {depth}": _aligned(spec, depth) for depth in DEPTHS}
    traces |= {"not aligned": _not_aligned(spec)} | {name: _scalars(spec, one) for name, one in IMBALANCES.items()}
    lags = [modes.logistic_lag(s, spec.start, traces["N = 2"].times) for s in spec.signals]
    halves = [modes.half_time(s, spec.start) for s in spec.signals]
    growths = {name: modes.kernel_growth(SIGNAL, FIRST, one) for name, one in IMBALANCES.items()}
    lazy = {name: 1 - (1 - FIRST / SIGNAL) * np.exp(-traces[name].times / growths[name]) for name in IMBALANCES}
    return Data(spec, traces, np.stack(lags, axis=1) / (2 * spec.signals[0] ** 2), np.array(halves), growths, lazy)


def _run(spec: Spec, start: Weights, left: Table, spectrum: Times, right: Table, rates: tuple[float, float]) -> Trace:
    """u_i^T P v_j and sum_l |W_l|^2; U, V may have more columns than sigma values. rates: the kernel, 1 / last t."""
    rank, (kernel, slowest), found, missed = len(spectrum), rates, [], []
    loss, every = Factorization(left[:, :rank] * spectrum @ right[:, :rank].T), kernel / slowest / spec.step / SAMPLES
    for level in range(spec.levels):
        lr, block = spec.step / kernel / 2**level, round(every) * 2**level
        step, problem = gradient_descent(loss, lr), Problem(spectrum=(1.0,), lr=lr)

        def measure(weights: Weights, step: Step = step, problem: Problem = problem) -> tuple[float, ...]:
            sizes = [float(np.sum(weight**2)) for weight in weights]
            foreseen = balance_drift(problem, weights, gradients(loss, weights))
            differences = zip(modes.balance(step(weights)), foreseen, strict=True)
            missed.append(max(float(np.abs(one - other).max()) for one, other in differences) / max(sizes))
            return (*(left.T @ product(weights) @ right / spectrum[0]).ravel(), sum(sizes))

        found.append(observe(step, start, block * SAMPLES, block, measure).values)
    times = spec.step / kernel * round(every) * np.arange(SAMPLES + 1)
    return Trace(times, np.array(found), np.empty((0, 0)), max(missed))


def _aligned(spec: Spec, depth: int) -> Trace:
    """W_l = a_0^(1/N) R_l R_(l-1)^T with R_0 = V, R_N = U: balanced, on the singular vectors of the target."""
    rng, count, signals = np.random.default_rng(spec.seed), len(spec.signals), np.array(spec.signals)
    frames = [haar(size, count, rng) for size in (2 * count, *(count + 1,) * (depth - 1), count + 2)]
    start = tuple(spec.start ** (1 / depth) * up @ down.T for down, up in pairwise(frames))
    kernel, slowest = (depth * signal ** (2 - 2 / depth) for signal in (signals[0], signals[-1]))
    last = float(escape_time(signals[-1], spec.start ** (1 / depth), 1.0, depth)) + 6 / slowest
    trace = _run(spec, start, frames[-1], signals, frames[0], (kernel, 1 / last))
    curves = [_mode(signal, spec.start, depth, trace.times) for signal in spec.signals]
    return trace._replace(found=trace.found[..., :-1][..., :: count + 1], expected=np.stack(curves, 1) / signals[0])


def _mode(signal: float, start: float, depth: int, times: Times) -> Times:
    if depth == 2:
        return modes.logistic(signal, start, times)
    rate, ends = modes.balanced_rate, times[[0, -1]]
    return solve_ivp(lambda _, a: rate(a, signal, depth), ends, [start], "DOP853", times, rtol=1e-10, atol=1e-12).y[0]


def _not_aligned(spec: Spec) -> Trace:
    """W_1 = R diag(b) Y^T, W_2 = X diag(b^2 + lambda)^(1/2) R^T, with X and Y other than U and V."""
    rng, count, signals = np.random.default_rng(spec.seed), len(spec.signals), np.array(spec.signals)
    left, right, turn = (haar(size, size, rng) for size in (count + 2, 2 * count, count + 1))
    squares = spec.start * rng.uniform(0.5, 2, count + 1)
    first = turn * np.sqrt(squares) @ haar(2 * count, count + 1, rng).T
    second = haar(count + 2, count + 1, rng) * np.sqrt(squares + spec.imbalance) @ turn.T
    kernel, slowest = (float(np.hypot(spec.imbalance, 2 * signal)) for signal in (signals[0], signals[-1]))
    trace = _run(spec, (first, second), left, signals, right, (kernel, slowest / 6))
    target = left[:, :count] * signals @ right[:, :count].T
    expected = left.T @ modes.two_layer_flow(first, second, target, trace.times) @ right / signals[0]
    return trace._replace(found=trace.found[..., :-1], expected=expected.reshape(SAMPLES + 1, -1))


def _scalars(spec: Spec, imbalance: float) -> Trace:
    """w_2^2 - w_1^2 = lambda: a / s, and the kernel w_1^2 + w_2^2 over its last, sqrt(lambda^2 + 4 s^2)."""
    one, last = np.ones((1, 1)), float(np.hypot(imbalance, 2 * SIGNAL))
    larger = np.sqrt((np.hypot(imbalance, 2 * FIRST) + imbalance) / 2)
    trace = _run(spec, (FIRST / larger * one, larger * one), one, np.array([SIGNAL]), one, (last, last / 16))
    mode = modes.unbalanced_mode(SIGNAL, FIRST, imbalance, trace.times)
    expected = np.stack([mode / SIGNAL, modes.scalar_kernel(mode, imbalance) / last], axis=1)
    return trace._replace(times=trace.times * last, found=trace.found / [1, last], expected=expected)


def check(data: Data) -> list[Claim]:
    """Simulation on theory up to O(eta), with the coefficient where there is one.

    A balanced mode grows at a rate that is lower by step / 4: after ln(s / a_0) e-folds it is off by step / 16 times
    that, or 0.5 steps for s / a_0 = 2000, by less with imbalance. First orders halve with eta, the next ones add a
    share of step to the ratio. Half times are where the logits, straight lines, vanish. Kernels miss what e^-10 leaves
    to learn, and the drift of lambda. The identity of the balance holds to rounding.
    """
    least, trace, lags, claims = float(data.steps[-1]), data.traces["N = 2"], data.steps[-1] * data.lags, []
    for group in GROUPS:
        errors = data.errors(group)
        claims.append(Claim(f"{group}: max |simulation - theory| / step", errors[-1] / least, at_most=0.5))
        claims.append(Claim(f"{group}: the same, step / half of it", errors[-2] / errors[-1], 2.05, 1.95))
    beyond = np.abs(trace.found[-1] - trace.expected - lags).max() / np.abs(lags).max()
    shares = np.clip(trace.found[-1] * data.spec.signals[0] / data.spec.signals, 1e-9, 1 - 1e-9)
    halves = np.array([np.interp(0, logits, trace.times) for logits in np.log(shares / (1 - shares)).T])
    for name, growth in data.growths.items():
        kernel, low, high = data.traces[name].found[-1][:, 1], growth / 1.001, growth * 1.001
        claims.append(Claim(f"{name}: kernel, last / first", kernel[-1] / kernel[0], high, low))
    rich, lazy = (np.abs(data.traces[name].found[-1][:, 0] - data.lazy[name]).max() for name in list(IMBALANCES)[::3])
    missed = max(trace.missed for trace in data.traces.values())
    return [
        *claims,
        Claim("N = 2: max |simulation - theory - lag| / max |lag|", beyond, at_most=least),
        Claim("N = 2: max |half time / formula - 1|", np.abs(halves / data.half_times - 1).max(), at_most=least),
        Claim("lambda = 0: max |a / s - that of the first kernel|", rich, at_least=0.9),
        Claim("lambda = 100: max |a / s - that of the first kernel|", lazy, at_most=0.01),
        Claim("max |balance after a step - formula| / |W|^2", missed, at_most=1e-14),
    ]


def draw(data: Data) -> Figure:
    """Trajectories above, imbalance and errors below; dotted: half times in (a), lazy predictions in (d)."""
    (figure, axes), count = style.panels(2, 3, height=2.2), len(data.spec.signals)
    for index, colour in zip(range(count), COLOURS[:4], strict=False):
        _on_theory(axes[0], data, "N = 2", index, colour, f"(a, b): $i = j = {index + 1}$")
        axes[0].axvline(data.half_times[index], color=colour, ls=":", lw=1)
        _on_theory(axes[1], data, "not aligned", index + 1, style.SKY, "(b): $i = 1 < j$")
        _on_theory(axes[1], data, "not aligned", index * (2 * count + 1), colour, "")
    for depth, colour in zip(DEPTHS, COLOURS, strict=False):
        _on_theory(axes[2], data, f"N = {depth}", 0, colour, f"$N = {depth}$")
        _on_theory(axes[2], data, f"N = {depth}", -1, colour, "")
    for (name, growth), colour in zip(data.growths.items(), COLOURS, strict=False):
        _on_theory(axes[3], data, name, 0, colour, rf"$\{name}$")
        _on_theory(axes[4], data, name, 1, colour, rf"$\times {growth:.4g}$")
        axes[3].plot(data.traces[name].times, data.lazy[name], ":", color=colour, lw=1)
    for group, colour in zip(GROUPS, COLOURS, strict=True):
        axes[5].plot(data.steps, data.errors(group), "o", color=colour, label="" if "N" in group else group)
    axes[5].plot(data.steps, data.predicted, "-", color=style.BLACK, lw=0.8)
    labels = ("$u_i^\\top P v_i$", "$u_i^\\top P v_j$", "$u_i^\\top P v_i$", "$a / s$", "kernel / last", "deviation")
    for axis, label in zip(axes, labels, strict=True):
        where = r"$t = \eta\,\times$ steps" if axis in axes[:3] else r"$t\,\times$ last kernel"
        axis.set(xlabel=where, ylabel=label, yscale="log" if axis in axes[4:] else "linear")
    axes[5].set(xlabel=r"$\eta\,\times$ last kernel", xscale="log")
    axes[5].xaxis.set_minor_formatter("")
    axes[5].yaxis.set_minor_formatter("")
    for axis in axes[2:]:
        axis.legend(handlelength=0.5, loc="upper left" if axis is axes[5] else (0.66, 0.3))
    handles = [*axes[0].get_legend_handles_labels()[0], axes[1].get_legend_handles_labels()[0][0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, handlelength=0.5)
    style.title(axes, "aligned", "not aligned", "depth", "imbalance", "kernel", r"halving $\eta$")
    return figure


def _on_theory(axis: Axes, data: Data, name: str, column: int, colour: str, label: str) -> None:
    """Points, simulated, and a line on them."""
    trace = data.traces[name]
    axis.plot(trace.times[::2], trace.found[-1][::2, column], "o", color=colour, ms=2.5, mew=0, label=label)
    axis.plot(trace.times, trace.expected[:, column], "-", color=style.BLACK, lw=0.8)
