"""Two factors with too many columns slow down to 1/t; three that start small and spectral come to rest far below.

After Kwon et al. 2023 (arXiv 2311.05061), their network (L = 3, rank 2r, eps = 1e-2) and the original on factorization
against Burer-Monteiro, E = W_2 W_1 with rh columns, at the true rank rh = r and over-estimated, rh = 2r; r = 5 and 10,
d = 100, 1000 blocks of 10 steps. They print 1/2 the mean square, about 1e-6 for over-estimated Burer-Monteiro, 5e-16
compressed, 4e-15 original. Their step and their start of Burer-Monteiro are not known. We step by 10 on the mean over
the d^2 entries, that is eta = 10 / d^2 = 1e-3 on ours, with which 10 000 steps are the time that the three-factor
networks take elsewhere in the paper, and start W_1 and W_2 from random frames times eps: eps = 1, and the networks'
own eps = 1e-2.

What decides is the start. An empty mode falls like 1 / (1 / eps^2 + 2 eta t), so that from eps = 1 the loss ends at
(rh - r) (2 eta t)^-2 / (2 d^2), 1.25e-6 for r = 10, whatever the start, provided it is balanced and not small: the
paper's stall, to the factor that the print allows. (Gaussian factors are unbalanced and leave this law in the end, see
Xiong, Ding & Du 2023, arXiv 2310.01769.) From eps = 1e-2 the same network rests below (rh - r) eps^4 /
(2 d^2) = 5e-12, and soon. That two factors rest above three is eps^2 against eps^3, not a failure to converge.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import networks, style
from figures.claims import Claim
from figures.networks import SQUARE, Network, train
from sims.losses import Factorization
from sims.reduced import reduce_start, simulate
from sims.sweep import Sweep, in_process
from theory.problem import Problem
from theory.spectral import empty_mode, floors

Series = Float64[np.ndarray, "times values"]
ORIGINAL, COMPRESSED, EXACT, OVER, SMALL = NAMES = (
    "original, $L=3$",
    "compressed, $L=3$",
    r"Burer-Monteiro, $\hat r=r$",
    r"Burer-Monteiro, $\hat r=2r$",
    "the same from the networks' $\\epsilon$",
)

LAW = r"theory, $r\,(\epsilon^{-2}+2\eta t)^{-2}/2d^2$"


@dataclass(frozen=True)
class Spec:
    """The compressed network, and the ranks of the target."""

    network: Network = Network(kind="factorization", form="spectral", lr=1e-3, steps=10_000, every=10)
    """The compressed network; its rank and hidden width are set by `ranks`."""
    ranks: tuple[int, ...] = (5, 10)
    """Ranks r of the target; the networks have 2r, or r."""
    scale: float = 1.0
    """eps of the two factors of Burer-Monteiro; a third one has the network's."""

    def __post_init__(self) -> None:
        if not self.ranks or min(self.ranks) < 1 or 2 * max(self.ranks) >= self.network.width:
            raise ValueError(f"ranks = {self.ranks}: give ranks from 1 on, below half the width {self.network.width}")
        if not 0.5 <= self.scale <= 2:
            raise ValueError(f"scale = {self.scale}: the fall like 1/t needs a start of order 1; take 0.5 to 2")
        if self.network.kind != "factorization" or self.network.form != "spectral":
            raise ValueError(f"network = {self.network.kind}, {self.network.form}: take factorization and spectral")

    def quick(self) -> "Spec":
        """The same at width 60 and ranks 3 and 6, from a larger start."""
        return replace(self, network=replace(self.network, width=60, scale=0.05, lr=2e-3, steps=4000), ranks=(3, 6))

    def full(self) -> "Spec":
        """The default is the paper's size."""
        return self

    def cells(self) -> Iterator[Network]:
        """The networks other than the original, in the order of NAMES, for each rank."""
        for rank in self.ranks:
            spectral = replace(self.network, rank=rank, hidden=2 * rank)
            over = replace(spectral, form="narrow", depth=2, scale=self.scale)
            yield from (spectral, replace(over, hidden=rank), over, replace(over, scale=self.network.scale))


@dataclass(frozen=True, eq=False)
class Data:
    """1/2 mean square errors at `steps`, one row for each rank and a column for each of NAMES."""

    spec: Spec
    steps: Float64[np.ndarray, " times"]
    errors: Float64[np.ndarray, "ranks names times"]
    sublinear: Float64[np.ndarray, "ranks times"]
    """(rh - r) / (2 d^2) times an empty mode of two factors from eps = `scale`, squared."""
    floors: Float64[np.ndarray, "ranks 3"]
    """Theory: where the original, the compressed, and (at most) Burer-Monteiro from the small start are to rest."""


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Run all; the original in the lossless simulator."""
    net = spec.network
    cells = list(spec.cells())
    found = np.array([result["values"][:, SQUARE] for result in sweep(train, cells)])
    compressed = cells[:: len(NAMES) - 1]
    squares = np.stack([_original(cell) for cell in compressed])[:, None]
    squares = np.concatenate([squares, found.reshape(len(spec.ranks), len(NAMES) - 1, -1)], axis=1)
    steps, mean = np.arange(0, net.steps + 1, net.every).astype(float), 1 / (2 * net.width**2)
    excess = np.array(spec.ranks)[:, None] * mean  # rh - r = r empty modes
    return Data(
        spec,
        steps,
        errors=squares * mean,
        sublinear=excess * empty_mode(2, spec.scale, net.lr * steps) ** 2,
        floors=np.array([[*_floors(cell), (cell.rank * cell.scale**4) ** 0.5] for cell in compressed]) ** 2 * mean,
    )


def _original(cell: Network) -> Float64[np.ndarray, " times"]:
    """|E - Phi|_F^2 of the original for the target of a cell."""
    wide, goal = replace(cell, form="original", hidden=cell.width), networks.target(cell)
    reduced, _ = reduce_start(networks.start(wide, Factorization(goal))[0], goal, cell.rank)
    return 2 * simulate(reduced, cell.lr, cell.steps, cell.every).losses()


def _floors(cell: Network) -> tuple[float, float]:
    sigma = np.linalg.svd(networks.target(cell), compute_uv=False)[: cell.rank]
    problem = Problem(cell.width, tuple(float(each) for each in sigma), cell.depth, cell.scale, cell.lr)
    return floors(problem, cell.hidden)


def check(data: Data) -> list[Claim]:
    """The fall like 1/t and its size, the floors of the others, and which of them is first; worst rank of each."""
    last = data.errors[:, :, -1]
    over = data.errors[:, NAMES.index(OVER)]
    middle = len(data.steps) // 2
    slope = np.log(over[:, -1] / over[:, middle]) / np.log(data.steps[-1] / data.steps[middle])
    small = last[:, NAMES.index(SMALL)]
    first = np.argmax(data.errors[:, 1:4] < data.errors[:, 1:4, :1] * 1e-4, axis=2)
    ratio = over[:, -1] / data.sublinear[:, -1]
    return [
        Claim("over-estimated from eps = 1: final 1/2 mean square", over[:, -1].max(), at_least=1e-7, at_most=1e-5),
        Claim("the same / theory, largest", ratio.max(), at_most=1.03),
        Claim("the same / theory, smallest", ratio.min(), at_least=0.95),
        Claim("its exponent of t in the second half, smallest", slope.min(), at_least=-2.2),
        Claim("its exponent of t in the second half, largest", slope.max(), at_most=-1.75),
        Claim(
            "over-estimated from the small start: final / bound, largest", (small / data.floors[:, 2]).max(), at_most=1
        ),
        Claim(
            "original: final 1/2 mean square / theory, largest", (last[:, 0] / data.floors[:, 0]).max(), at_most=1.04
        ),
        Claim("original: the same, smallest", (last[:, 0] / data.floors[:, 0]).min(), at_least=0.96),
        Claim(
            "compressed: final 1/2 mean square / theory, largest", (last[:, 1] / data.floors[:, 1]).max(), at_most=1.01
        ),
        Claim("compressed: the same, smallest", (last[:, 1] / data.floors[:, 1]).min(), at_least=0.99),
        Claim("true rank: final 1/2 mean square", last[:, NAMES.index(EXACT)].max(), at_most=1e-25),
        Claim("true rank: steps to 1e-4 of its first / compressed's", (first[:, 1] / first[:, 0]).max(), at_most=0.5),
    ]


def draw(data: Data) -> Figure:
    """Errors against steps, one panel for each rank; floors dotted."""
    figure, axes = style.panels(1, len(data.spec.ranks), height=2.9)
    colours = (style.BLUE, style.ORANGE, style.GREEN, style.RED, style.PURPLE)
    for axis, errors, sublinear, levels in zip(axes, data.errors, data.sublinear, data.floors, strict=True):
        for name, values, colour in zip(NAMES, errors, colours, strict=True):
            axis.loglog(data.steps[1:], values[1:], color=colour, label=name)
        axis.loglog(data.steps[1:], sublinear[1:], "--", color=style.BLACK, lw=0.9, label=LAW)
        for level, colour in zip(levels, (style.BLUE, style.ORANGE, style.PURPLE), strict=True):
            axis.axhline(level, color=colour, ls=":", lw=0.9)
        axis.set(xlabel="step $t$")
    axes[0].set_ylabel("1/2 mean square error")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    style.title(axes, *(f"$r = {rank}$" for rank in data.spec.ranks))
    return figure
