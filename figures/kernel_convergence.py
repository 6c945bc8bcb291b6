"""Tangent kernels approach that of infinite width as n^-1/2; the linear ones have its mean at every width n.

Ours, on the limit of Jacot et al. 2018 (arXiv 1806.07572, theorem 1), in their parametrisation: four inputs in R^3,
hidden layers of equal width n; linear; ReLU with sigma_w^2 = 2, and 1 in the last layer; erf with sigma_w = 1.5 and
sigma_b = 0.05. Theta is what `empirical_ntk` measures; for moments, which take 8e4 draws, gradients are taken of many
networks at once, and some of them held against it.

(a) |Theta - Theta_oo|_F / |Theta_oo|_F falls as n^-1/2, as it does for means of n independent terms.
(b) Linear: sd Theta(x, x) is the root of `linear_variance` at every n, far from its first order in narrow networks.
(c) The mean is closer. E Theta = Theta_oo at every n if linear, and with one hidden layer whatever phi, since Theta is
    a mean of n equal terms; so is E f f' the NNGP kernel. For ReLU of any depth E Theta(x, x) is exact: a fresh
    Gaussian layer halves |phi(h)|^2 and opens each unit with 1/2 whatever h is. All else has a bias of order 1/n.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad_and_value, vmap

from figures import style
from figures.claims import Claim
from sims.kernel import empirical_ntk
from sims.sweep import Sweep, in_process
from sims.tangent import Gradients, Tangent
from sims.wide import Wide, moved
from theory.ntk import Kernels, infinite_width, linear_second_moment, linear_variance

INPUTS = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.8, 0.0], [1.0, 2.0, -1.0]])
SETTINGS = {"linear": {}, "relu": {"weight": 2**0.5, "last": 1.0}, "erf": {"weight": 1.5, "last": 1.5, "bias": 0.05}}
COLOURS = {"linear": style.BLUE, "relu": style.RED, "erf": style.GREEN}
BATCH = 500  # networks under one vmap


@dataclass(frozen=True)
class Network:
    """An architecture of L hidden layers, each n wide, and how often it is drawn."""

    activation: Literal["linear", "relu", "erf"]
    hidden: int
    width: int = 16
    draws: int = 1
    seed: int = 0

    @property
    def limit(self) -> Kernels:
        """Both kernels of infinite width, on the inputs."""
        return infinite_width(INPUTS, INPUTS, self.hidden, self.activation, **SETTINGS[self.activation])

    def drawn(self, generator: torch.Generator) -> Wide:
        """One network."""
        widths = (INPUTS.shape[1], *(self.width,) * self.hidden)
        return Wide(widths, self.activation, generator, **SETTINGS[self.activation])


LINEAR = tuple(Network("linear", hidden) for hidden in (1, 2, 3))
MEASURED = (*LINEAR, *(Network("relu", hidden) for hidden in (1, 2, 3)), *(Network("erf", h) for h in (1, 2)))
MANY = (*LINEAR, Network("relu", 1), Network("erf", 1), Network("relu", 2), Network("erf", 2))
UNBIASED = 5  # of them have the limit's mean at every width


@dataclass(frozen=True)
class Spec:
    """Widths and draws."""

    widths: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)
    """n in (a)."""
    draws: int = 16
    """Networks of each width in (a)."""
    narrow: tuple[int, ...] = (2, 4, 8, 16)
    """n in (b) and (c)."""
    many: int = 80_000
    """Networks of each width in (b) and (c)."""
    seed: int = 0
    """Of all draws."""

    def __post_init__(self) -> None:
        few = min(len(self.widths), len(self.narrow)) < 3 or min(*self.widths, *self.narrow) < 2
        if few or self.draws < 4 or self.many < 10_000 or self.many % BATCH:
            remedy = (
                f"take three widths >= 2 of each kind or more, draws >= 4, and many >= 10000, a multiple of {BATCH}"
            )
            raise ValueError(f"{self}: {remedy}")

    def quick(self) -> "Spec":
        """Three widths, fewer draws."""
        return replace(self, widths=(16, 64, 256), draws=10, narrow=(2, 4, 8), many=10_000)

    def full(self) -> "Spec":
        """Twice the width, four times the draws; four CPU minutes."""
        return replace(self, widths=(*self.widths, 2048), draws=64, narrow=(2, 4, 8, 16, 32), many=320_000)

    def grid(self, networks: tuple[Network, ...], widths: tuple[int, ...], draws: int) -> list[Network]:
        """Each network at each width."""
        return [replace(net, width=width, draws=draws, seed=self.seed) for net in networks for width in widths]


@dataclass(frozen=True, eq=False)
class Data:
    """Measured kernels over those of infinite width."""

    spec: Spec
    errors: Float[np.ndarray, "measured widths draws"]
    """|Theta - Theta_oo|_F / |Theta_oo|_F."""
    spread: Float[np.ndarray, "three depths narrow"]
    """sd Theta(x, x) / E Theta(x, x), linear: measured, exact, to first order in 1/n."""
    scores: dict[str, np.ndarray]
    """Means over draws less the exact ones, in standard errors."""
    bias: Float[np.ndarray, "two many narrow"]
    """|E Theta - Theta_oo|_F / |Theta_oo|_F: measured, and the root mean square that chance would make of none."""
    apart: float
    """Kernels of many networks at once from those by empirical_ntk, over the largest entry."""


def errors(network: Network) -> dict[str, np.ndarray]:
    """|Theta - Theta_oo|_F / |Theta_oo|_F of each draw."""
    generator, limit, found = torch.Generator().manual_seed(network.seed), network.limit.ntk, []
    for _ in range(network.draws):
        kernel = empirical_ntk(network.drawn(generator), torch.from_numpy(INPUTS))[:, 0, :, 0].numpy()
        found.append(np.linalg.norm(kernel - limit) / np.linalg.norm(limit))
    return {"errors": np.array(found)}


def moments(network: Network) -> dict[str, np.ndarray]:
    """Mean and its standard error of Theta, Theta^2 and f f' over many draws, four inputs by four."""
    generator, inputs = torch.Generator().manual_seed(network.seed), torch.from_numpy(INPUTS)
    template = network.drawn(generator)
    tangent, sums = Tangent(template), torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    sizes = {name: (BATCH, *p.shape) for name, p in tangent.parameters.items()}
    for _ in range(network.draws // BATCH):
        drawn = {name: torch.randn(size, generator=generator, dtype=inputs.dtype) for name, size in sizes.items()}
        kernels, outputs = _kernels(tangent, drawn, inputs)
        found = torch.stack([kernels, kernels**2, outputs[:, :, None] * outputs[:, None, :]], 1)
        sums += torch.stack([found.sum(0), (found**2).sum(0)])
    kernel = empirical_ntk(moved(template, {name: p[0] for name, p in drawn.items()}), inputs)[:, 0, :, 0]
    mean, square = (sums / network.draws).numpy()
    apart = ((kernels[0] - kernel).abs().max() / kernel.abs().max()).numpy()
    return {"mean": mean, "error": np.sqrt((square - mean**2) / network.draws), "apart": apart}


def _kernels(tangent: Tangent, drawn: Gradients, inputs: Float[Tensor, "m n_0"]) -> tuple[Tensor, Tensor]:
    """Theta (draws, m, m) and f (draws, m) of each network."""

    def output(parameters: Gradients, example: Tensor) -> Tensor:
        return tangent.at(example[None])(parameters)[0, 0]

    gradients, outputs = vmap(vmap(grad_and_value(output), (None, 0)), (0, None))(drawn, inputs)
    flat = [gradient.flatten(2) for gradient in gradients.values()]
    return torch.stack([g @ g.mT for g in flat]).sum(0), outputs


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Measure one network after the other in (a), many at once in (b) and (c)."""
    found = np.array([r["errors"] for r in sweep(errors, spec.grid(MEASURED, spec.widths, spec.draws))])
    results = sweep(moments, spec.grid(MANY, spec.narrow, spec.many))
    mean, error = (np.array([r[key] for r in results]).reshape(len(MANY), -1, 3, 4, 4) for key in ("mean", "error"))
    exact = np.full_like(mean, np.nan)  # Theta, Theta^2, f f'
    for rows, network in zip(exact, MANY, strict=True):
        rows[:, 2], rows[:, 0] = network.limit
    widths = [[(n,) * network.hidden for n in spec.narrow] for network in LINEAR]
    first, unit = np.s_[: len(LINEAR), :, :, 0, 0], 1 / INPUTS.shape[1]  # linear, of the first input
    exact[first][..., 1] = [[unit**2 * linear_second_moment(w) for w in row] for row in widths]
    scores, hidden = (mean - exact) / error, np.array([[network.hidden] for network in LINEAR])
    variance = (mean[first][..., 1] - mean[first][..., 0] ** 2) / unit**2
    order = 2 * hidden * (hidden + 1) * (2 * hidden + 1) / (3 * np.array(spec.narrow))
    norms = np.linalg.norm([(mean - exact)[:, :, 0], error[:, :, 0], exact[:, :, 0]], axis=(3, 4))
    return Data(
        spec,
        found.reshape(len(MEASURED), -1, spec.draws),
        np.sqrt([variance, [[linear_variance(w) for w in row] for row in widths], order]) / (hidden + 1),
        {
            "linear: E Theta(x, x)^2 less the exact one": scores[first][..., 1],
            "linear, or L = 1: E Theta less that of infinite width": scores[:UNBIASED, :, 0],
            "linear, or L = 1: E f f' less the NNGP kernel": scores[:UNBIASED, :, 2],
            "ReLU, L = 2: E Theta(x, x) less that of infinite width": scores[UNBIASED, :, 0].diagonal(0, 1, 2),
        },
        norms[:2] / norms[2],
        float(max(r["apart"] for r in results)),
    )


def _slopes(widths: tuple[int, ...], values: Float[np.ndarray, "nets widths"]) -> Float[np.ndarray, " nets"]:
    return np.asarray(np.polyfit(np.log(widths), np.log(values).T, 1)[0])


def check(data: Data) -> list[Claim]:
    """Slopes: four standard errors, the sd of one error being 0.6 of its mean, and 0.02 for higher orders in 1/n.

    Scores within 4.5: the most of up to 450 numbers. Theta^2 at n = 2, L = 3 has heavy tails: its sd is known to 10 %
    from 1e4 draws. The biases' slope, at n <= 16, has terms of order n^-2 and as much noise as (c) shows.
    """
    spec, slope = data.spec, _slopes(data.spec.widths, data.errors.mean(axis=2))
    room = 4 * 0.6 / np.sqrt(spec.draws * len(spec.widths) * np.log(spec.widths).var()) + 0.02
    falls, few = float(_slopes(spec.narrow, data.bias[0, UNBIASED:]).mean()), room / len(MEASURED) ** 0.5
    ratios, off = np.divide(*data.bias), np.abs(data.spread[0] / data.spread[1] - 1)
    relu = data.errors[MEASURED.index(Network("relu", 2))].mean(axis=1) * np.sqrt(spec.widths)
    return [
        Claim("slope of the error in n, least over networks", slope.min(), at_least=-0.5 - room, at_most=-0.4),
        Claim("slope of the error in n, most over networks", slope.max(), at_least=-0.6, at_most=-0.5 + room),
        Claim("slope of the error in n, mean over networks", slope.mean(), at_least=-0.5 - few, at_most=-0.5 + few),
        Claim("ReLU, L = 2: error times n^1/2, mean over widths", relu.mean(), at_least=1.4, at_most=3),
        Claim("linear: |sd / exact - 1|, most", off.max(), at_most=0.2),
        Claim("linear: |sd / exact - 1|, median", float(np.median(off)), at_most=0.04),
        *(Claim(f"{text}, in standard errors", np.abs(z).max(), at_most=4.5) for text, z in data.scores.items()),
        Claim("linear, or L = 1: bias / standard error, mean", ratios[:UNBIASED].mean(), at_most=1.5),
        Claim("ReLU and erf, L = 2: bias / standard error, narrowest", ratios[UNBIASED:, 0].mean(), at_least=1.7),
        Claim("ReLU and erf, L = 2: slope of the bias in n, mean", falls, at_least=-1.5, at_most=-0.7),
        Claim("many networks at once: distance from empirical_ntk / largest entry", data.apart, at_most=1e-13),
    ]


def draw(data: Data) -> Figure:
    """Points are measured, hollow where theory has no bias; black lines are theory, dashed ones a rate."""
    figure, axes = style.panels(1, 3, height=2.8)
    spec, mean, (bias, chance) = data.spec, data.errors.mean(axis=2), data.bias
    _points(axes[0], MEASURED, spec.widths, mean)
    _points(axes[1], LINEAR, spec.narrow, data.spread[0])
    _points(axes[2], MANY, spec.narrow, bias)
    _rate(axes[0], spec.widths, mean, -0.5, "$n^{-1/2}$")
    _rate(axes[2], spec.narrow, bias[UNBIASED:], -1, "$n^{-1}$")
    for law, line, name in zip(data.spread[1:], ("-", ":"), ("exact", "first order in $1/n$"), strict=True):
        axes[1].plot(spec.narrow, law.T, line, color=style.BLACK, lw=0.8, label=[name, "", ""])
    axes[2].fill_between(spec.narrow, chance.min(0), chance.max(0), color=style.SKY, alpha=0.3, label="chance")
    axes[0].set(xlabel="width $n$", ylabel=r"$\|\Theta-\Theta_\infty\|_F\,/\,\|\Theta_\infty\|_F$")
    axes[1].set(xlabel="width $n$", ylabel=r"sd $\Theta(x,x)$ / mean")
    axes[2].set(xlabel="width $n$", ylabel=r"$\|\mathrm{E}\,\Theta-\Theta_\infty\|_F\,/\,\|\Theta_\infty\|_F$")
    figure.legend(loc="outside lower center", ncols=7)
    style.title(axes, "one kernel", "spread, linear", "mean of many kernels")
    return figure


def _points(axis: Axes, networks: tuple[Network, ...], widths: tuple[int, ...], values: np.ndarray) -> None:
    for index, (net, row) in enumerate(zip(networks, values, strict=True)):
        colour, hollow = COLOURS[net.activation], networks is MANY and index < UNBIASED
        label = f"{net.activation}, {net.hidden}".replace("relu", "ReLU") if networks is MEASURED else ""
        axis.loglog(widths, row, " os^"[net.hidden], color=colour, mfc="none" if hollow else colour, label=label)
    ticks = widths[:: 1 + len(widths) // 5]
    axis.set_xticks(ticks, list(map(str, ticks)))
    axis.xaxis.minorticks_off()


def _rate(axis: Axes, widths: tuple[int, ...], values: np.ndarray, power: float, name: str) -> None:
    """c n^power with c the geometric mean of values / n^power."""
    powers = np.array(widths, dtype=float) ** power
    axis.plot(widths, np.exp(np.log(values / powers).mean()) * powers, "--", color=style.BLACK, lw=0.8, label=name)
