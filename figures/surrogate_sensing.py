"""Sensing: the compressed network learns earlier than the original, and ends at a lower floor.

After Kwon et al. 2023 (arXiv 2311.05061), deep matrix sensing: spectral start from the surrogate (1/m) sum_i y_i A_i,
r-hat = 2r, alpha = 1, L = 3, eps = 1e-2. --full is their d = 200, r = 5, m = 4000. They step by 20 on a *sum* over
operators with entries N(0, 1) / m, for which sum_i <A_i, X> A_i is X / m on average; with ours, N(0, 1/m), it is X, so
that eta = 20 / 4000 = 5e-3. Smaller sizes keep d r / m and eta sigma_1, that is eta sqrt(d). The first 25 blocks of 50
steps are published: half error near blocks 16 and 13, floors 7e-6 and 4e-6, 4.2 and 4.0 s: there is no gain in time,
since a step of either network reads all operators, and its matrix products cost nothing beside that. Ours at --full:
blocks 16 and 13, 8.4e-6 and 5.3e-6 (figures/records/full).

Why the floors lie so far above those of factorization, sqrt(d - 2r) eps^L and sqrt(r-hat - r) eps^L: the surrogate has
singular values s_i beyond the r-th, about 2 |Phi|_F sqrt(d/m) the largest. They grow directions that Phi does not
have, db/dt = s_i b^(L-1), while the signal is not yet learned. If the gradient stood still until the first component
escapes, at T_1, they would end at (eps (1 - T_1 / T_i)^(-1/(L-2)))^L with T_i the escape time of s_i. The last
component escapes later than the first, so that the floors are higher than this, by a factor that we only measure.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.networks import SQUARE, Arrays, Network, loss_of, target, train
from sims.sweep import Sweep, in_process
from theory.approximate import escape_time

ORIGINAL, COMPRESSED = "original", "compressed"


@dataclass(frozen=True)
class Spec:
    """The original network; the compressed one differs in form and width alone."""

    network: Network = field(
        default_factory=lambda: Network(
            kind="sensing", width=80, hidden=80, measurements=1600, lr=5e-3 * (200 / 80) ** 0.5, steps=1500
        )
    )
    """What is solved, by the original network."""
    over: int = 2
    """r-hat = `over` r."""

    def __post_init__(self) -> None:
        network = self.network
        if network.kind != "sensing" or network.form != ORIGINAL or network.depth < 3:
            raise ValueError(
                f"kind = {network.kind}, form = {network.form}, depth = {network.depth}: this figure is about the "
                "original network on sensing, and its estimate is for depth >= 3"
            )
        if self.over < 2 or self.over * network.rank >= network.width:
            raise ValueError(f"over = {self.over}: the floor needs r-hat = over * rank in [2 rank, width)")

    def quick(self) -> "Spec":
        """Width 30 and rank 3."""
        lr = 5e-3 * (200 / 30) ** 0.5
        return Spec(replace(self.network, width=30, hidden=30, rank=3, measurements=600, lr=lr))

    def full(self) -> "Spec":
        """The paper's size; about six CPU minutes and 1.6 GB."""
        return Spec(replace(self.network, width=200, hidden=200, measurements=4000, lr=5e-3, steps=1250))


@dataclass(frozen=True, eq=False)
class Data:
    """What `train` returned, by name, and the surrogate."""

    spec: Spec
    runs: dict[str, Arrays]
    surrogate: Float64[np.ndarray, " width"]
    """s_1 >= s_2 >= ...: the singular values of A*(y)."""
    norm: float
    """|Phi|_F."""

    def error(self, name: str) -> Float64[np.ndarray, " times"]:
        """|E - Phi|_F / |Phi|_F."""
        return np.sqrt(self.runs[name]["values"][:, SQUARE]) / self.norm

    def half(self, name: str) -> float:
        """The first measured step with |E - Phi|^2 below half of |Phi|^2."""
        below = self.error(name) ** 2 < 0.5
        return float(self.runs[name]["steps"][below][0]) if below.any() else np.inf

    def beyond(self, name: str) -> Float64[np.ndarray, " beyond"]:
        """The singular values of E beyond the r-th, at the end."""
        return self.runs[name]["triplets"][-1, 0, self.spec.network.rank :]

    def grown(self, name: str) -> Float64[np.ndarray, " beyond"]:
        """The estimate of them: eps^L (1 - T_1 / T_i)^(-L/(L-2))."""
        network, count = self.spec.network, self.beyond(name).size
        times = escape_time(self.surrogate, network.scale, network.lr, network.depth)
        beyond = times[network.rank : network.rank + count]
        return network.scale**network.depth * (1 - times[0] / beyond) ** (-network.depth / (network.depth - 2))

    def bare(self, name: str) -> float:
        """The floor of factorization, relative: sqrt(d - 2r) eps^L, sqrt(r-hat - r) eps^L for the compressed one."""
        network = self.spec.network
        idle = network.width - 2 * network.rank if name == ORIGINAL else (self.spec.over - 1) * network.rank
        return idle**0.5 * network.scale**network.depth / self.norm


def surrogate(network: Network) -> Arrays:
    """The singular values of the surrogate A*(y), minus the gradient at E = 0."""
    goal = target(network)
    loss, _ = loss_of(network, goal)
    return {"values": np.linalg.svd(loss.gradient(np.zeros_like(goal)), compute_uv=False)}


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Train both networks with the same operators."""
    original = replace(spec.network, triplets=spec.network.width)
    rank = spec.over * spec.network.rank
    grid = [original, replace(spec.network, form="spectral", hidden=rank, triplets=rank)]
    runs = dict(zip((ORIGINAL, COMPRESSED), sweep(train, grid), strict=True))
    (found,) = sweep(surrogate, [spec.network])
    return Data(spec, runs, found["values"], float(np.linalg.norm(target(spec.network))))


def check(data: Data) -> list[Claim]:
    """Earlier by a fifth; floors far above those of factorization, and a few times the estimate.

    Half error comes 1.2 times later in the original also in factorization, 1348 to 1115 steps: its start is not aligned
    with the target. 15 % more for the noise of the operators. At sizes and seeds that we tried the floors are 1 to 5
    times the estimate, a lower one but for chance.
    """
    claims = [
        Claim(
            "steps to half error, compressed / original",
            data.half(COMPRESSED) / data.half(ORIGINAL),
            at_least=0.65,
            at_most=0.95,
        ),
        Claim(
            "final relative error, original / compressed",
            data.error(ORIGINAL)[-1] / data.error(COMPRESSED)[-1],
            at_least=1,
            at_most=3,
        ),
    ]
    for name in data.runs:
        floor, network = data.error(name)[-1], data.spec.network
        estimate = np.linalg.norm(data.grown(name)) / data.norm
        claims += [
            Claim(f"{name}: half error at block", data.half(name) / network.every, at_least=10, at_most=22),
            Claim(f"{name}: final relative error", floor, at_most=2e-5),
            Claim(f"{name}: final error / floor of factorization", floor / data.bare(name), at_least=4, at_most=300),
            Claim(f"{name}: final error / estimate", floor / estimate, at_least=0.8, at_most=6),
        ]
    return claims


def draw(data: Data) -> Figure:
    """Error against steps and CPU time, and what the floor is made of."""
    figure, axes = style.panels(1, 3, height=2.5)
    rank = data.spec.network.rank
    for (name, run), colour in zip(data.runs.items(), (style.BLUE, style.ORANGE), strict=True):
        error, values = data.error(name), data.beyond(name)
        axes[0].semilogy(run["steps"], error, "-", color=colour, label=name)
        axes[0].axhline(data.bare(name), color=colour, ls=":", lw=0.8, label=f"{name}, floor of factorization")
        axes[1].semilogy(rank + 1 + np.arange(values.size), values, ".", color=colour)
        axes[2].semilogy(run["seconds"][1:], error[1:], "-", color=colour)
    indices = rank + 1 + np.arange(data.beyond(ORIGINAL).size)
    axes[1].semilogy(indices, data.grown(ORIGINAL), "--", color=style.BLACK, lw=0.8, label="estimate")
    scale = data.spec.network.scale**data.spec.network.depth
    axes[1].axhline(scale, color=style.BLACK, ls=":", lw=0.8, label=r"start, $\epsilon^L$")
    axes[0].set(xlabel="step $t$", ylabel=r"$\|E-\Phi\|_F\,/\,\|\Phi\|_F$")
    axes[1].set(xlabel="index $i$, beyond the rank", ylabel=r"$\sigma_i(E)$ at the end")
    axes[1].legend()
    axes[2].set(xlabel="CPU time [s]", ylabel=r"$\|E-\Phi\|_F\,/\,\|\Phi\|_F$")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    style.title(axes, "error", "what the floor is made of", "a step costs the same")
    return figure
