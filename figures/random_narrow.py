"""From a small start the compressed network arrives first, at one time for all widths; random narrow ones escape late.

After Yaras et al. 2024 (arXiv 2406.04112): matrix completion with cores of 2 r-hat (gamma = 0.01) against orthogonal
layers that are 2 r-hat wide. --full is their d = 1000, r = 5, 20 % observed, eps = 1e-3, r-hat of 5 to 20 and step 5e3
on the mean over all d^2 entries, that is eta = 5e3 / d^2 = 5e-3 on ours, until that mean is below 1e-10.

Random narrow layers see the target through semi-orthogonal matrices that keep a share of about 2 r-hat / d of it, so
that they escape the later the narrower they are; the compressed network has the signal's directions at any width. The
order is one of escape times and depends on eps: from a larger start the rest of the way counts, which gamma = 0.01
slows down. At d = 100 the random network then arrives first; at d = 1000, where the first gradient misses less of the
target, it only comes nearer.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.networks import LOSS, SQUARE, Arrays, Network, train
from sims.sweep import Sweep, in_process

Counts = Float64[np.ndarray, "seeds ranks"]
PAPER = ((5, 8, 11, 14, 17, 20), (62000, 56800, 54000, 49500, 48000, 45200), 19500)
"""Their r-hat and steps (read off the plot to a block of 100): random, and compressed at every r-hat."""

FORMS: tuple[tuple[Literal["narrow", "compressed"], int], ...] = (("narrow", 2), ("compressed", 1))


@dataclass(frozen=True)
class Spec:
    """A completion problem and the widths of the networks."""

    network: Network = Network(outer=0.01, lr=2.5e-2, scale=1e-3, steps=100_000, every=50, tolerance=1e-6)
    """The problem; form, hidden width and seed vary. The tolerance is on the loss."""
    larger: float = 2e-2
    """A second eps."""
    ranks: tuple[int, ...] = (5, 8, 11, 14)
    """r-hat: the compressed network has cores of 2 r-hat, the random one hidden layers of 2 r-hat."""
    seeds: int = 3
    """Draws of target, observations and start."""

    def __post_init__(self) -> None:
        if len(self.ranks) < 2 or min(self.ranks) < self.network.rank or self.seeds < 1 or not self.network.tolerance:
            raise ValueError(
                f"ranks = {self.ranks}, seeds = {self.seeds}, tolerance = {self.network.tolerance}: take two or more "
                f"ranks from {self.network.rank} on, one seed or more and a tolerance to reach"
            )

    def quick(self) -> "Spec":
        """Three widths at d = 60; a target of rank 2."""
        network = replace(self.network, width=60, rank=2, density=0.4, lr=3e-2, scale=2e-3)
        return Spec(network, ranks=(2, 5, 8), seeds=2)

    def full(self) -> "Spec":
        """The paper's size, but one draw of five; about half a CPU hour."""
        network = replace(self.network, width=1000, density=0.2, scale=1e-3, lr=5e-3, steps=100_000, every=100)
        network = replace(network, tolerance=1e-10 * 1000**2 / 2)
        return Spec(network, ranks=PAPER[0], seeds=1)


@dataclass(frozen=True, eq=False)
class Data:
    """Steps until the loss is below the tolerance, for each seed and r-hat; infinite if it never is."""

    spec: Spec
    random: Counts
    compressed: Counts
    halves: Float64[np.ndarray, "two seeds ranks"]
    """Steps until |E - Phi|_F^2 is below half of |Phi|_F^2: random, compressed."""
    seconds: Float64[np.ndarray, "two ranks"]
    """CPU time for as many steps, mean over seeds: random, compressed."""
    larger: Float64[np.ndarray, "two seeds ranks"]
    """Steps as above from the larger start: random, compressed."""
    curves: dict[str, Float64[np.ndarray, "times two"]]
    """Step and |E - Phi|_F of the first seed at the least and the largest r-hat."""
    error: float
    """The largest final |E - Phi|_F^2 / d^2 of all runs."""


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Train both networks at every width for every seed."""
    seeds = range(spec.network.seed, spec.network.seed + spec.seeds)
    grid = [
        replace(spec.network, form=form, hidden=times * rank, scale=scale, seed=seed)
        for scale in (spec.network.scale, spec.larger)
        for form, times in FORMS
        for seed in seeds
        for rank in spec.ranks
    ]
    results = np.array(sweep(train, grid), dtype=object).reshape(2, 2, spec.seeds, len(spec.ranks))
    counts, larger = np.vectorize(lambda result: _reached(spec, result), otypes=[float])(results)
    results = results[0]
    curves = {
        rf"{name}, $\hat r={spec.ranks[column]}$": _curve(results[row, 0, column])
        for row, name in enumerate(("random", "compressed"))
        for column in (0, -1)
    }
    seconds = np.vectorize(lambda result: result["seconds"][-1], otypes=[float])(results).mean(axis=1)
    error = max(result["values"][-1, SQUARE] for result in results.flat) / spec.network.width**2
    halves = np.vectorize(_half, otypes=[float])(results)
    return Data(spec, counts[0], counts[1], halves, seconds, larger, curves, float(error))


def _reached(spec: Spec, result: Arrays) -> float:
    """The first measured step with the loss below the tolerance; infinite if there is none."""
    return float(result["steps"][-1]) if result["values"][-1, LOSS] < spec.network.tolerance else np.inf


def _half(result: Arrays) -> float:
    squares = result["values"][:, SQUARE]
    return float(result["steps"][np.argmax(squares < squares[0] / 2)])


def _curve(result: Arrays) -> np.ndarray:
    return np.stack([result["steps"], np.sqrt(result["values"][:, SQUARE])], axis=1)


def check(data: Data) -> list[Claim]:
    """The compressed network arrives first at every width, at about the same step; random ones sooner if wider."""
    random, compressed = data.random.mean(axis=0), data.compressed.mean(axis=0)
    steps, flat = np.array(PAPER[1]), PAPER[2]
    halves, small, large = np.divide(*data.halves), data.random / data.compressed, np.divide(*data.larger)
    overtaken = 0.9 if data.spec.network.width <= 100 else 3  # at d = 1000 by measurement 2
    return [
        Claim("steps, random / compressed, least over widths and draws", small.min(), at_least=1.05, at_most=20),
        Claim(
            f"steps, random / compressed at the least r-hat (paper: {steps[0] / flat:.2f})",
            random[0] / compressed[0],
            at_least=1.3,
            at_most=20,
        ),
        Claim(
            "steps of compressed, largest / least over r-hat", np.ptp(compressed) / compressed.min() + 1, at_most=1.3
        ),
        Claim(
            f"steps of random, least / largest r-hat (paper: {steps[0] / steps[-1]:.2f})",
            random[0] / random[-1],
            at_least=1.15,
            at_most=10,
        ),
        Claim(
            "largest rise of random from one r-hat to the next / its least",
            np.diff(random).max() / random.min(),
            at_most=0.1,
        ),
        Claim("steps to half error, random / compressed, least", halves.min(), at_least=1.1, at_most=20),
        Claim("steps from the larger start, random / compressed, mean", large.mean(), at_most=overtaken),
        Claim("the same over that from the smaller start", large.mean() / small.mean(), at_most=0.9),
        Claim("largest final mean square error over all entries", data.error, at_most=1e-6),
    ]


def draw(data: Data) -> Figure:
    """Steps and time against r-hat, error against steps."""
    figure, axes = style.panels(1, 3, height=2.5)
    ranks = data.spec.ranks
    for name, counts, colour in (("random", data.random, style.RED), ("compressed", data.compressed, style.ORANGE)):
        axes[0].plot(ranks, counts.T, ".", color=colour)
        axes[0].plot(ranks, counts.mean(axis=0), color=colour, label=name)
    axes[0].set(xlabel=r"$\hat r$", ylabel="steps", ylim=(0, None))
    for seconds, colour in zip(data.seconds, (style.RED, style.ORANGE), strict=True):
        axes[1].plot(ranks, seconds, "o-", color=colour)
    axes[1].set(xlabel=r"$\hat r$", ylabel="CPU time [s]", ylim=(0, None))
    styles = ((style.RED, "-"), (style.RED, "--"), (style.ORANGE, "-"), (style.ORANGE, "--"))
    for (name, curve), (colour, line) in zip(data.curves.items(), styles, strict=True):
        axes[2].semilogy(*curve.T, line, color=colour, label=name)
    axes[2].set(xlabel="step $t$", ylabel=r"$\|E-\Phi\|_F$")
    axes[0].legend()
    figure.legend(*axes[2].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    style.title(axes, "steps to the tolerance", "time to the tolerance", "error, first draw")
    return figure
