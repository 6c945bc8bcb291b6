"""Completion: with three layers width costs no accuracy and saves steps; with two, only the narrowest network recovers.

After Yaras et al. 2024 (arXiv 2406.04112), completion of d = 100, r = 10 with 30 % observed, eps = 1e-3, hidden widths
10, 20, ..., 100, five trials, at most 600 blocks of 100 steps. They halve the sum of squares and divide it by all d^2
entries, observed or not: step 3e2 is eta = 3e2 / d^2 = 3e-2 on ours, tolerance 1e-10 is 1e-10 d^2, and the recovery
error is |E - Phi|_F^2 / 2d^2 (so do their numbers come out; without the 1/2 L = 2 would end at twice theirs). For L = 2
their code silently takes step 1e2, that is eta = 1e-2; we do so, too, and run the widest network at L = 3's step
besides: the step is not what makes L = 2 fail.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.networks import SQUARE, Arrays, Network, train
from sims.sweep import Sweep, in_process

PAPER = {1: 415, 2: 230, 4: 158, 10: 109}
"""Published blocks of 100 steps for L = 3, by hidden width / rank; d = 10 r."""
PAPER_ERROR = 1.13e-3
"""Published recovery error of the widest network for L = 2."""
SLOWER = 3
"""Step for L = 3 over that for L = 2."""


@dataclass(frozen=True)
class Spec:
    """The problem, the hidden widths and the trials."""

    network: Network = Network(rank=10, scale=1e-3, lr=3e-2, steps=60_000, every=100, tolerance=1e-6)
    """Problem and training for L = 3; `depth` and `hidden` are set for each network, and `lr` for L = 2."""
    ratios: tuple[int, ...] = (1, 2, 4, 10)
    """Hidden widths over the rank, ascending; the last is the width of the target."""
    seeds: tuple[int, ...] = (0, 1)
    """Draws of target, observed entries and start."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError(f"seeds = {self.seeds}: give one or more")
        if list(self.ratios) != sorted(set(self.ratios)) or len(self.ratios) < 2 or self.ratios[0] < 1:
            raise ValueError(f"ratios = {self.ratios}: give two or more positive ones in ascending order")
        if self.ratios[-1] * self.network.rank != self.network.width or self.network.kind != "completion":
            raise ValueError(
                f"kind = {self.network.kind}, ratios = {self.ratios}: take completion, and width / rank = "
                f"{self.network.width / self.network.rank:g} as the last ratio"
            )

    def quick(self) -> "Spec":
        """Two fifths of the width, with equal eta p sigma (sigma grows as sqrt(d)), a coarser end, two widths."""
        lr = 3e-2 * 0.4**-0.5 * 0.3 / 0.4
        network = replace(self.network, width=40, rank=4, density=0.4, lr=lr, steps=39_900, tolerance=1.6e-6)
        return replace(self, network=network, ratios=(1, 10), seeds=(0,))

    def full(self) -> "Spec":
        """The paper's widths and trials; about five CPU minutes."""
        return replace(self, ratios=tuple(range(1, 11)), seeds=(0, 1, 2, 3, 4))


@dataclass(frozen=True, eq=False)
class Data:
    """By hidden width and trial."""

    spec: Spec
    blocks: dict[int, Float[np.ndarray, "widths trials"]]
    """Blocks until the tolerance is met, by depth; one that never did has the most that were allowed."""
    errors: dict[int, Float[np.ndarray, "widths trials"]]
    """|E - Phi|_F^2 / 2d^2 in the end, by depth."""
    same_step: Float[np.ndarray, " trials"]
    """The same for L = 2 and the widest network, at L = 3's step and as long in eta t."""

    @property
    def widths(self) -> tuple[int, ...]:
        """The hidden widths."""
        return tuple(ratio * self.spec.network.rank for ratio in self.spec.ratios)


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Train both depths at every width, and L = 2 at L = 3's step for the last one."""
    deep, rank = spec.network, spec.network.rank
    shallow = replace(deep, depth=2, lr=deep.lr / SLOWER)
    faster = replace(shallow, lr=deep.lr, steps=deep.steps // SLOWER, hidden=deep.width)
    cells = [replace(network, hidden=rank * ratio) for network in (deep, shallow) for ratio in spec.ratios]
    results = sweep(train, [replace(cell, seed=seed) for cell in (*cells, faster) for seed in spec.seeds])
    rows = np.reshape([_summary(deep, result) for result in results], (-1, len(spec.seeds), 2))
    count = len(spec.ratios)
    deeper, flatter = rows[:count], rows[count : 2 * count]
    blocks, errors = ({3: deeper[..., index], 2: flatter[..., index]} for index in (0, 1))
    return Data(spec, blocks, errors, rows[-1, :, 1])


def _summary(network: Network, result: Arrays) -> tuple[float, float]:
    """Blocks and recovery error."""
    return len(result["steps"]) - 1, float(result["values"][-1, SQUARE]) / (2 * network.width**2)


def check(data: Data) -> list[Claim]:
    """L = 3: errors near the tolerance at every width, fewer steps with width; L = 2: errors that rise with width.

    L = 3: medians over trials, since now and then a draw hides a component so well that no width finds its last digits
    in time (one of five in the full figure: 3e-6). L = 2: means; those of neighbouring widths need not be in order, by
    some 10 % of the largest. Draws differ by 30 % in blocks and by a factor of 2 in error. Smaller problems recover
    a little even with two layers, hence the lower bound of the error of L = 2.
    """
    spec, limit = data.spec, data.spec.network.tolerance / data.spec.network.width**2
    blocks, errors = np.median(data.blocks[3], axis=1), data.errors[2].mean(axis=1)
    paper = [blocks[index] / PAPER[ratio] for index, ratio in enumerate(spec.ratios) if ratio in PAPER]
    deep = np.median(data.errors[3], axis=1)
    rise = float(np.diff(errors).min() / errors.max())
    steps = float(np.max(data.same_step / data.errors[2][-1]))
    least = 2e-4 if spec.network.width >= 100 else 2e-6
    return [
        Claim("L = 3: recovery error, largest of all", float(data.errors[3].max()), at_most=1e-5),
        Claim("L = 3: recovery error / tolerance, median, largest of a width", float(deep.max()) / limit, at_most=500),
        Claim("L = 2, narrowest: recovery error / tolerance, mean", float(errors[0]) / limit, at_most=1000),
        Claim("L = 2, widest: recovery error, mean", float(errors[-1]), at_least=least, at_most=2 * PAPER_ERROR),
        Claim("L = 2: recovery error, widest / narrowest", float(errors[-1] / errors[0]), at_least=50),
        Claim("L = 2: smallest rise of the error from width to width / largest error", rise, at_least=-0.2),
        Claim("recovery error of the widest, L = 2 / L = 3", float(errors[-1] / deep[-1]), at_least=50),
        Claim("L = 3: blocks, narrowest / widest", float(blocks[0] / blocks[-1]), at_least=1.5, at_most=6),
        Claim("L = 3: blocks / the paper's, smallest of a width", float(min(paper)), at_least=0.35, at_most=1.5),
        Claim("L = 3: blocks / the paper's, largest of a width", float(max(paper)), at_least=0.35, at_most=1.5),
        Claim("L = 2, widest: error at L = 3's step / at its own", steps, at_least=0.7, at_most=1.6),
    ]


def draw(data: Data) -> Figure:
    """Final error and blocks against hidden width, every trial as a point, medians as lines, the paper as crosses."""
    figure, axes = style.panels(1, 2, height=2.5)
    widths, rank = data.widths, data.spec.network.rank
    for depth, colour in ((3, style.BLUE), (2, style.ORANGE)):
        for axis, values in zip(axes, (data.errors[depth], data.blocks[depth]), strict=True):
            axis.plot(widths, np.median(values, axis=1), "-", color=colour, label=f"$L = {depth}$")
            axis.plot(widths, values, "o", color=colour, alpha=0.5, mew=0)
    axes[0].plot(widths[-1], PAPER_ERROR, "x", color=style.BLACK, ms=5, label="paper")
    axes[0].plot(widths[-1:] * len(data.same_step), data.same_step, "+", color=style.RED, ms=7, mew=1)
    axes[0].plot([], [], "+", color=style.RED, ms=7, label="$L = 2$ at the step of $L = 3$")
    axes[1].plot([rank * ratio for ratio in PAPER], list(PAPER.values()), "x", color=style.BLACK, ms=5)
    axes[0].set(yscale="log", xlabel="hidden width", ylabel=r"$\|E - \Phi\|_F^2\,/\,2d^2$ in the end")
    axes[1].set(xlabel="hidden width", ylabel="blocks of steps to the tolerance", ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    style.title(axes, "recovery error", "duration")
    return figure
