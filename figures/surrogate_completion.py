"""Matrix completion: started from the observed entries, a network ten times narrower needs a third of the steps.

After Kwon et al. 2023 (arXiv 2311.05061), completion of d = 100, r = 5 with 30 % observed, L = 3, eps = 1e-2, rank 2r
and alpha = 5; blocks of 50 steps until half the mean square over the observed entries is below 1e-12, that is until
our loss is below 1e-12 p d^2. Their step 10 on that mean is eta = 10 / (p d^2) = 1/300 on ours. Their recovery error
carries the 1/2 of their loss, too: half the mean square over the unobserved entries.

Their 158 and 46 blocks belong to the best rank-r approximation of a Gaussian matrix, although the code that they
published takes every (d/2r)-th of its singular triplets. Such targets have a smaller sigma_r and take longer (264 and
72 blocks with that code); they are shown as "spaced". Draws differ: steps scale as 1 / sigma_r of what is observed.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.networks import HIDDEN, Arrays, Network, check_draws, train
from sims.sweep import Sweep, in_process

PAPER = (158, 46)
"""Published blocks, original and compressed."""


@dataclass(frozen=True)
class Spec:
    """The problem, the rate of the outer factors, and the draws."""

    network: Network = Network(width=100, rank=5, density=0.3, lr=1 / 300, steps=20_000, tolerance=3e-9)
    """Problem and training; `form`, `hidden` and `outer` are set for each of the two networks."""
    outer: float = 5.0
    """alpha: the rate of the compressed network's outer factors over that of the one between."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Draws of target, observed entries and start."""

    def __post_init__(self) -> None:
        check_draws(self.network, self.seeds)

    def quick(self) -> "Spec":
        """Half the width. Equal eta p sigma, that is the same number of blocks: sigma grows as sqrt(d)."""
        network = replace(self.network, width=50, rank=3, density=0.4, lr=0.5**-0.5 * 0.3 / 0.4 / 300, tolerance=1e-9)
        return replace(self, network=network, seeds=(0, 1))

    def full(self) -> "Spec":
        """The default has the paper's size; with twice the draws."""
        return replace(self, seeds=tuple(range(10)))

    def pair(self, seed: int, spectrum: tuple[float, ...] = ()) -> list[Network]:
        """The original and the compressed network on one draw."""
        network = replace(self.network, seed=seed, spectrum=spectrum)
        narrow = replace(network, form="spectral", hidden=2 * network.rank, outer=self.outer)
        return [replace(network, form="original", hidden=network.width), narrow]


@dataclass(frozen=True, eq=False)
class Curve:
    """One run; it was measured after each block of steps."""

    steps: Int[np.ndarray, " times"]
    recovery: Float[np.ndarray, " times"]
    """Half the mean square over the unobserved entries, as the authors have it."""
    seconds: Float[np.ndarray, " times"]
    """CPU time."""

    @property
    def blocks(self) -> int:
        """How many until it was stopped."""
        return len(self.steps) - 1


def curve(result: Arrays) -> Curve:
    """What `train` found."""
    return Curve(result["steps"], result["values"][:, HIDDEN] / 2, result["seconds"])


@dataclass(frozen=True, eq=False)
class Data:
    """Curves by seed."""

    spec: Spec
    original: list[Curve]
    compressed: list[Curve]
    spaced: list[Curve]
    """Original and compressed for the target of the published code, first seed."""


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Train both networks on every draw, and on a target with spaced singular values."""
    grid = [network for seed in spec.seeds for network in spec.pair(seed)]
    curves = [curve(result) for result in sweep(train, [*grid, *spec.pair(spec.seeds[0], spaced(spec.network))])]
    return Data(spec, curves[:-2:2], curves[1:-2:2], curves[-2:])


def spaced(network: Network) -> tuple[float, ...]:
    """Every (d/2r)-th singular value of a d x d Gaussian matrix, from the largest down to about the median."""
    gaussian = np.random.default_rng(network.seed).standard_normal((network.width, network.width))
    picked = (np.arange(network.rank) * network.width / (2 * network.rank)).astype(int)
    return tuple(float(sigma) for sigma in np.linalg.svd(gaussian, compute_uv=False)[picked])


def check(data: Data) -> list[Claim]:
    """Blocks near the paper's, their ratio on every draw, and as good a recovery; CPU time falls by more than blocks.

    Medians over seeds may be off by the 30 % by which draws differ, the ratio of one draw by less.
    """
    pairs = list(zip(data.original, data.compressed, strict=True))
    ratios = [wide.blocks / narrow.blocks for wide, narrow in pairs]
    blocks = [float(np.median([run.blocks for run in runs])) for runs in (data.original, data.compressed)]
    times = [wide.seconds[-1] / narrow.seconds[-1] for wide, narrow in pairs]
    slower = [run.blocks / number for run, number in zip(data.spaced, blocks, strict=True)]
    finals = [max(float(run.recovery[-1]) for run in runs) for runs in (data.original, data.compressed)]
    share = data.spec.network.tolerance / (data.spec.network.density * data.spec.network.width**2)
    return [
        Claim("original: blocks, median", blocks[0], at_least=0.7 * PAPER[0], at_most=1.4 * PAPER[0]),
        Claim("compressed: blocks, median", blocks[1], at_least=0.7 * PAPER[1], at_most=1.4 * PAPER[1]),
        Claim("blocks, original / compressed, smallest", min(ratios), at_least=2.5, at_most=5),
        Claim("blocks, original / compressed, largest", max(ratios), at_least=2.5, at_most=5),
        # no more error where nothing is seen than 30 times what is left where something is
        Claim("original: final recovery error / tolerance, largest", finals[0] / share, at_most=30),
        Claim("compressed: final recovery error / tolerance, largest", finals[1] / share, at_most=30),
        Claim("CPU time, original / compressed, median", float(np.median(times)), at_least=2.5),
        Claim("spaced singular values, original: blocks / those above", slower[0], at_least=1.05, at_most=2.5),
        Claim("spaced singular values, compressed: blocks / those above", slower[1], at_least=1.05, at_most=2.5),
    ]


def draw(data: Data) -> Figure:
    """Error against steps and CPU time for every draw, spaced singular values dotted; the paper's blocks as ticks."""
    figure, axes = style.panels(1, 2, height=2.8)
    forms = (("original", data.original, style.BLUE), ("compressed", data.compressed, style.ORANGE))
    for index, (name, runs, colour) in enumerate(forms):
        for label, run in zip([name, *[None] * len(runs)], runs, strict=False):
            axes[0].semilogy(run.steps, run.recovery, color=colour, lw=0.9, label=label)
            axes[1].loglog(run.seconds[1:], run.recovery[1:], color=colour, lw=0.9)
        odd = data.spaced[index]
        axes[0].semilogy(odd.steps, odd.recovery, ":", color=colour, label=f"{name}, spaced $\\sigma_i$")
        end = PAPER[index] * data.spec.network.every
        axes[0].axvline(end, color=colour, ls="--", lw=0.8, label=f"{name}: paper's end")
    axes[0].set(xlabel="step $t$", ylabel="recovery error")
    axes[1].set(xlabel="CPU time [s]")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    style.title(axes, "recovery error against steps", "and against CPU time")
    return figure
