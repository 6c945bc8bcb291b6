"""LoRA of rank k sees the tangent kernel through a random projection: off by k^-1/2, as an exact variance says.

Ours, on the lemma of Malladi et al. 2023 (arXiv 2210.05643): a transformer with random weights on sequences from two
Markov chains; all linear layers of its blocks train, or get LoRA, W_0 + (alpha / k) B A with B = 0, A of entries N(0,
1/k). `empirical_ntk` measures K of the network and (alpha / k)^2 K~ of LoRA, K~ = <G A^T, G' A^T> summed over layers;
further draws of A take K~ from G.

(a) sd K~ / |G| |G'| of the pairs with the least, the median and the largest one, by `projection_variance` (lines) below
    that of one vector, (2 / k)^1/2: there are several layers and tokens.
(b) z = (K~ - K) / sd over pairs and draws becomes normal as k grows; at any k at least 95 % lie within 3.
(c) max |K~ - K| / |G| |G'| over pairs, below the eps that holds with probability 0.9 by `kernel_rank`, and by the
    paper's `jl_rank`: to be small these ask for k > d_in, where A compresses nothing.
(d) Predictions of ridge regression move by k^-1/2, too, as much as `ridge_shift_variance` says.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from sims.kernel import empirical_ntk
from sims.sweep import Sweep, in_process
from sims.tangent import Tangent
from sims.transformer import Transformer, rank_one_kernels, two_chains
from theory.gradients import jl_rank, kernel_rank, projected_mean, projection_variance, ridge_shift_variance

VOCABULARY, ALPHA, FAILURE = 32, 16.0, 0.1  # the last of the bounds
EDGES = np.linspace(-4, 8, 49)  # of z in (b)
CENTRES = (EDGES[1:] + EDGES[:-1]) / 2
NORMAL = np.exp(-(CENTRES**2) / 2) / (2 * np.pi) ** 0.5
TOLERANCES = np.geomspace(0.05, 60, 200)


@dataclass(frozen=True)
class Spec:
    """The network, its examples, and what is drawn."""

    width: int = 64
    """d_in of the blocks' linear layers; the last one of a block has twice that."""
    blocks: int = 2
    """Six linear layers each."""
    tokens: int = 16
    """Of a sequence."""
    train: int = 16
    """n examples, half of each class."""
    test: int = 8
    """m more."""
    ridge: float = 0.1
    """lam, over the mean of K(x, x)."""
    ranks: tuple[int, ...] = (1, 4, 16, 64, 256)
    """k; each divides the last."""
    rows: int = 8192
    """Rows of A in a cell: the first k of them are an A, the next k another one."""
    cells: int = 4
    """So many times, each on its own."""
    seed: int = 0
    """Of network, examples and A."""

    def __post_init__(self) -> None:
        last, total = self.ranks[-1], self.rows * self.cells
        if len(self.ranks) < 4 or any(last % k for k in self.ranks) or self.rows % last or total < 16 * last:
            remedy = "take four or more divisors of the last, rows that it divides, and 16 times as many in all"
            raise ValueError(f"ranks = {self.ranks}, {self.rows} rows in {self.cells} cells: {remedy}")
        if min(self.train, self.test) < 4:
            raise ValueError(f"train = {self.train}, test = {self.test}: take four or more of each")

    def quick(self) -> "Spec":
        """One narrow block, half the examples."""
        return replace(self, width=32, blocks=1, train=8, test=4, ranks=(1, 4, 16, 64), rows=2048, cells=1)

    def full(self) -> "Spec":
        """Twice the width and the blocks, 64 examples, twice the draws."""
        return replace(self, width=128, blocks=4, train=48, test=16, rows=32768, cells=2)


@dataclass(frozen=True)
class Draws:
    """A cell."""

    spec: Spec
    index: int


class Setting:
    """The network, its examples, and what theory needs of them: gradients at each layer, K, and sd K~ at k = 1."""

    def __init__(self, spec: Spec) -> None:
        generator, self.train = torch.Generator().manual_seed(spec.seed), spec.train
        self.transformer = Transformer(spec.width, spec.blocks, spec.tokens, VOCABULARY, generator)
        self.sequences, classes = two_chains(spec.train + spec.test, spec.tokens, VOCABULARY, generator)
        self.targets = classes[: spec.train].numpy()
        self.layers = [g[:, 0].numpy() for g in Tangent(self.transformer).held(self.sequences, 16).values()]
        self.kernel = np.sum([projected_mean(layer, layer) for layer in self.layers], axis=0)
        self.unit = np.sqrt(np.outer(self.kernel.diagonal(), self.kernel.diagonal()))
        self.spread = np.sqrt(np.sum([projection_variance(layer, layer, 1) for layer in self.layers], axis=0))
        self.ridge = spec.ridge * self.kernel.diagonal().mean()

    def predicted(self, kernels: Float64[np.ndarray, "*any examples examples"]) -> Float64[np.ndarray, "*any test"]:
        """f of the test examples by ridge regression."""
        n = self.train
        weights = np.linalg.solve(kernels[..., :n, :n] + self.ridge * np.eye(n), self.targets[:, None])
        return (kernels[..., n:, :n] @ weights)[..., 0]

    def measured(self, rank: int = 0) -> float:
        """`empirical_ntk` from K, or of LoRA from (alpha / k)^2 K~, on eight examples, over the largest entry."""
        network, expected, rng = self.transformer, self.kernel, np.random.default_rng(rank)
        if rank:
            a = [rng.standard_normal((rank, layer.shape[2])) / rank**0.5 for layer in self.layers]
            network = network.adapted([torch.from_numpy(rows) for rows in a], ALPHA)
            expected = (ALPHA / rank) ** 2 * rank_one_kernels(self.layers, a).sum(axis=0)
        found = empirical_ntk(network, self.sequences[:8])[:, 0, :, 0].numpy()
        return np.abs(found - expected[:8, :8]).max() / found.max()


def draws(cell: Draws) -> dict[str, np.ndarray]:
    """For each k and A means over pairs, the worst pair, and the shift; squares and counts are sums over some A.

    mean: of each row, the same one for every k.
    """
    spec, setting = cell.spec, Setting(cell.spec)
    rng, pairs = np.random.default_rng([spec.seed, cell.index]), np.triu_indices(len(setting.kernel))
    before, found = setting.predicted(setting.kernel), dict[str, list[np.ndarray]]()
    for _ in range(spec.rows // spec.ranks[-1]):
        a = [rng.standard_normal((spec.ranks[-1], layer.shape[2])) for layer in setting.layers]
        rows = rank_one_kernels(setting.layers, a)
        found.setdefault("mean", []).append(((rows - setting.kernel) / setting.spread)[:, *pairs].mean(axis=1))
        for k in spec.ranks:
            kernels = rows.reshape(-1, k, *setting.kernel.shape).mean(axis=1)
            off = kernels - setting.kernel
            z = (off / setting.spread * k**0.5)[:, *pairs]
            for name, values in {
                "square": (z**2).mean(axis=1),
                "within": (np.abs(z) <= 3).mean(axis=1),
                "worst": np.abs(off / setting.unit).max(axis=(1, 2)),
                "shift": setting.predicted(kernels) - before,
                "squares": (z**2).sum(axis=0)[None],
                "counts": np.histogram(z, EDGES)[0][None],
            }.items():
                found.setdefault(f"{name} {k}", []).append(values)
    return {name: np.concatenate(values) for name, values in found.items()}


@dataclass(frozen=True, eq=False)
class Data:
    """Draws of A against theory, for each k."""

    spec: Spec
    exact: tuple[float, ...]
    """What `measured` returns for the network and for LoRA of the three least ranks."""
    found: dict[str, np.ndarray]
    """All that `draws` returns, for each A."""
    spread: Float64[np.ndarray, "ranks 3"]
    """Measured sd K~ / |G| |G'| of the pairs with the least, the median and the largest one."""
    law: Float64[np.ndarray, "ranks 4"]
    """The same in theory, and that of one vector, (2 / k)^1/2."""
    density: Float64[np.ndarray, "ranks bins"]
    """Of z."""
    asked: Float64[np.ndarray, "2 tolerances"]
    """k of our bound and of the paper's, which is no use from eps = 2/3 on."""
    bound: Float64[np.ndarray, " ranks"]
    """eps of ours at each k."""
    shift: Float64[np.ndarray, "2 ranks"]
    """Root mean square shift of predictions over that of predictions; measured and in theory."""


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Draw, and lay theory beside."""
    results = sweep(draws, [Draws(spec, index) for index in range(spec.cells)])
    found = {name: np.concatenate([r[name] for r in results]) for name in results[0]}
    setting, n, ranks = Setting(spec), spec.train, np.array(spec.ranks)
    count, ratio = n + spec.test, (setting.spread / setting.unit)[np.triu_indices(n + spec.test)]
    shown = np.argsort(ratio)[[0, len(ratio) // 2, -1]]
    law = np.append(ratio[shown], 2**0.5) / ranks[:, None] ** 0.5
    squares = [found[f"squares {k}"].sum(axis=0)[shown] / len(found[f"worst {k}"]) for k in spec.ranks]
    test, train = ([g[part] for g in setting.layers] for part in (slice(n, None), slice(n)))
    variance = ridge_shift_variance(test, train, setting.targets, setting.ridge, 1).mean() / ranks
    moved = [np.mean(found[f"shift {k}"] ** 2) for k in spec.ranks]
    ours = np.array([kernel_rank(count, eps, FAILURE) for eps in TOLERANCES], float)
    theirs = [jl_rank(count, eps, FAILURE) if eps < 2 / 3 else np.nan for eps in TOLERANCES]
    counts = np.array([found[f"counts {k}"].sum(axis=0) for k in spec.ranks])
    return Data(
        spec,
        tuple(setting.measured(k) for k in (0, *spec.ranks[:3])),
        found,
        law[:, :3] * np.sqrt(squares),
        law,
        counts / counts.sum(axis=1, keepdims=True) / (EDGES[1] - EDGES[0]),
        np.array([ours, theirs]),
        np.exp(np.interp(np.log(ranks), np.log(ours[::-1]), np.log(TOLERANCES[::-1]))),
        np.sqrt([moved, variance] / np.mean(setting.predicted(setting.kernel) ** 2)),
    )


def check(data: Data) -> list[Claim]:
    """At 4.5 standard errors there is room for scores of 16 draws; that of the variance is 1 to 4 % at k = 1."""
    ranks, found, count = data.spec.ranks, data.found, data.spec.train + data.spec.test
    square, within, worst = ([found[f"{name} {k}"] for k in ranks] for name in ("square", "within", "worst"))
    samples = [(found["mean"], 0), *((x, 1) for x in square)]
    mean, *scores = (abs(x.mean() - at) / x.std(ddof=1) * len(x) ** 0.5 for x, at in samples)
    falling = [np.median(x) for x in worst[1:]], data.shift[0, 1:]
    orders = [np.polyfit(np.log(ranks[1:]), np.log(values), 1)[0] for values in falling]
    apart = np.abs(data.density - NORMAL).sum(axis=1)
    return [
        Claim("K from <G, G'>, LoRA's from (alpha / k)^2 K~, relative", np.max(data.exact), at_most=1e-12),
        Claim("mean of K~ - K over all rows, in standard errors", mean, at_most=4.5),
        Claim("variance / theory - 1, in standard errors, most", np.max(scores), at_most=4.5),
        Claim("variance / theory, k = 1", square[0].mean(), at_least=0.85, at_most=1.15),
        Claim("sd / that of one vector, largest pair", data.law[0, 2] / data.law[0, 3], at_least=0.1, at_most=0.9),
        Claim("share within 3 sd, least", np.min([x.mean() for x in within]), at_least=0.95),
        Claim("distance from normal, third k / k = 1", apart[2] / apart[0], at_most=0.7),
        Claim("worst pair / eps of the bound", np.max([x.max() for x in worst] / data.bound), at_least=0.1, at_most=1),
        Claim("worst pair, median: order in k from 4 on", orders[0], at_least=-0.6, at_most=-0.4),
        Claim("k of the bound at eps = 1/2, over d_in", kernel_rank(count, 0.5, FAILURE) / data.spec.width, at_least=1),
        Claim("shift of predictions: order in k from 4 on", orders[1], at_least=-0.6, at_most=-0.4),
        Claim("shift / theory, last k", data.shift[0, -1] / data.shift[1, -1], at_least=0.6, at_most=1.5),
    ]


def draw(data: Data) -> Figure:
    """Points and steps are measured; black lines are theory."""
    figure, axes = style.panels(2, 2, height=2.4)
    ranks, found, black = data.spec.ranks, data.found, {"color": style.BLACK, "lw": 0.8}
    axes[0].loglog(ranks, data.law[:, 3], ":", **black, label="one vector")
    for index, (name, colour) in enumerate((("least", style.ORANGE), ("median", style.BLUE), ("largest", style.GREEN))):
        axes[0].loglog(ranks, data.law[:, index], **black)
        axes[0].loglog(ranks, data.spread[:, index], "o", color=colour, label=f"{name} of all pairs")
        axes[1].stairs(data.density[index], EDGES, color=colour, label=f"$k = {ranks[index]}$")
    axes[1].semilogy(CENTRES, NORMAL, "--", **black, label="normal")
    for name, how, mark in (("median draw", np.median, "o"), ("worst draw", np.max, "^")):
        axes[2].loglog(ranks, [how(found[f"worst {k}"]) for k in ranks], mark, color=style.BLUE, label=name)
    for asked, look, name in zip(data.asked, ("-", ":"), ("our bound", "the paper's"), strict=True):
        axes[2].loglog(asked, TOLERANCES, look, **black, label=name)
    axes[2].axvline(data.spec.width, color=style.SKY, lw=0.8, label=r"$d_{\mathrm{in}}$")
    axes[3].loglog(ranks, data.shift[0], "o", color=style.BLUE, label="measured")
    axes[3].loglog(ranks, data.shift[1], "--", **black, label="first order")
    axes[1].set(xlabel=r"$(\tilde K-K)\,/\,\mathrm{sd}$", ylabel="density", ylim=(1e-5, 2))
    names = (r"sd $\tilde K\,/\,|G||G'|$", r"max $|\tilde K-K|\,/\,|G||G'|$", "shift / prediction, rms")
    limits = ((0.01, 3), (0.02, 100), (0.01, 4))
    for axis, name, ylim in zip((axes[0], *axes[2:]), names, limits, strict=True):
        axis.set(xlabel="rank $k$", ylabel=name, ylim=ylim, xticks=(*ranks, 4096) if axis is axes[2] else ranks)
        axis.xaxis.set_major_formatter("{x:.0f}")
    for axis in axes:
        axis.minorticks_off()
        axis.legend()
    style.title(axes, "entries", "their distribution", "the worst pair", "ridge regression")
    return figure
