"""While parameters move as far at every width, the kernel drifts by n^-1 in smooth networks and more slowly at kinks.

Ours, on Lee et al. 2019 (arXiv 1902.06720: at most n^-1/2) and Dyer & Gur-Ari 2020 (arXiv 1909.11304: n^-1 in smooth
networks). NTK parametrisation, L hidden layers of width n, f_0 subtracted, loss 1/2 |f - f_0 - y|^2, orthogonal x with
|x|^2 = n_0, y = 1, -1, ...; descent with the step 1 / lam_max(Theta_0) until |f - f_0 - y| is 1e-2 |y|.

(b) The movement is the linear model's, `descent_movement` of Theta_0; (c) divided by `parameter_norm` it falls as
n^-1/2 for L = 1 and as n^-1 for L = 2. (d) One example by gradient flow: a linear network with L = 1 obeys
`two_layer_drift`. A ReLU network has, with q = |x|^2 / n_0, Theta_oo = 2 q and on average

    Theta_T / Theta_0 - 1 = -|y| / (pi (2 q n)^1/2) + y^2 / (q n) + ...

An open unit, h ~ N(0, 2 q), moves by a y / n^1/2 to first order. It shuts where a y < 0 and h < |a y| / n^1/2, and for
good, having no gradient then. So 2 q a^2 / n leave the sum Theta: on average (2 q |y| / n^1/2) (E |a|^3 / 2) /
(4 pi q)^1/2 with E |a|^3 = (8 / pi)^1/2. The second term is the linear law of the n / 2 open units, f_0 averaged out.
Orthogonal examples open no unit for each other: for L = 1, (a) has both orders, too; for L = 2 this is measured only.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from figures import style
from figures.claims import Claim
from sims.kernel import empirical_ntk
from sims.run import observe
from sims.sweep import Sweep, in_process
from sims.tangent import Gradients, Tangent
from sims.wide import Wide, descent, distance, moved
from theory.lazy import descent_movement, parameter_norm, two_layer_drift

Drawn = tuple[Tangent, Float[Tensor, "m m"], Float[Tensor, " m"]]
COLOURS = {"linear": style.BLUE, "tanh": style.GREEN, "relu": style.RED}
STEP = 0.5  # of the flow's Runge-Kutta scheme, times 1 / Theta_0


@dataclass(frozen=True)
class Network:
    """An architecture of L hidden layers, each n wide, what it trains on, and how often it is drawn."""

    activation: Literal["linear", "tanh", "relu"] = "linear"
    hidden: int = 1
    width: int = 64
    examples: int = 4
    target: float = 1.0
    tolerance: float = 1e-2
    draws: int = 14
    seed: int = 0

    def drawn(self) -> list[Drawn]:
        """Networks, orthogonal inputs of the norm m^1/2, and targets of alternating signs."""
        generator, found = torch.Generator().manual_seed(100_000 * self.seed + self.width), []
        widths, weight = (self.examples, *(self.width,) * self.hidden), 2**0.5 if self.activation == "relu" else 1.0
        for _ in range(self.draws):
            matrix = torch.randn(self.examples, self.examples, generator=generator, dtype=torch.float64)
            inputs = torch.linalg.qr(matrix)[0] * self.examples**0.5
            tangent = Tangent(Wide(widths, self.activation, generator, weight=weight))
            found.append((tangent, inputs, self.target * (-1.0) ** torch.arange(self.examples, dtype=torch.float64)))
        return found


KINDS: tuple[tuple[Literal["linear", "tanh", "relu"], int], ...] = (
    ("linear", 1), ("linear", 2), ("tanh", 1), ("tanh", 2), ("relu", 1), ("relu", 2),
)  # fmt: skip
SMOOTH = 4  # of them
DRIFT, MOVED, PREDICTED, RELATIVE, EXPECTED = range(5)  # rows of `trained`


@dataclass(frozen=True)
class Spec:
    """Widths and draws."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """n in (a) to (c)."""
    network: Network = Network()
    """What those networks have in common: examples, target, tolerance, draws and seed."""
    wide: tuple[int, ...] = (128, 512, 2048, 8192)
    """n in (d)."""
    many: int = 40
    """Networks of each width in (d)."""

    def __post_init__(self) -> None:
        few = min(len(self.widths), len(self.wide)) < 2 or min(self.network.draws, self.many) < 4
        if few or self.network.examples < 2 or not 0 < self.network.tolerance <= 1e-2:
            raise ValueError(f"{self}: take two widths or more, draws >= 4, examples >= 2 and a tolerance up to 1e-2")

    def quick(self) -> "Spec":
        """Three widths, fewer draws."""
        network = replace(self.network, draws=4)
        return replace(self, widths=(32, 128, 512), network=network, wide=(2048, 8192), many=8)

    def full(self) -> "Spec":
        """Twice the width, three times the draws or more; four CPU minutes."""
        network = replace(self.network, draws=48)
        return replace(self, widths=(*self.widths, 2048), network=network, wide=(*self.wide, 32768), many=192)


@dataclass(frozen=True, eq=False)
class Data:
    """What moved in training, by architecture, width and draw."""

    spec: Spec
    trained: Float[np.ndarray, "five nets widths draws"]
    """Relative drift; |theta_T - theta_0|, and the linear model's; these over |theta_0| and `parameter_norm`."""
    single: Float[np.ndarray, "two wide many"]
    """Theta_T / Theta_0 - 1 of one example, linear and ReLU, L = 1."""
    exact: Float[np.ndarray, "wide many"]
    """The same by `two_layer_drift`, linear."""
    law: Float[np.ndarray, " wide"]
    """Its mean in theory, ReLU."""


def descend(network: Network) -> dict[str, np.ndarray]:
    """Train by descent: the drift of the kernel, and how far parameters moved, measured and predicted."""
    rows = []
    for drawn in network.drawn():
        tangent, inputs, targets = drawn
        begin, start = _kernel(tangent, tangent.parameters, inputs), tangent.parameters
        lr = float(1 / np.linalg.eigvalsh(begin)[-1])
        count, end = _trained(network, drawn, descent(tangent, inputs, targets, lr))
        moves = distance(end, start), descent_movement(begin, -targets.numpy(), lr, np.array([count]))[0]
        nowhere = {name: 0 * p for name, p in start.items()}
        norms = distance(start, nowhere), parameter_norm(len(inputs), (network.width,) * network.hidden)
        drift = np.linalg.norm(_kernel(tangent, end, inputs) - begin) / np.linalg.norm(begin)
        rows.append([drift, *moves, moves[0] / norms[0], moves[1] / norms[1]])
    return {"rows": np.transpose(rows)}


def flow(network: Network) -> dict[str, np.ndarray]:
    """Train one example by gradient flow: Theta_T / Theta_0 - 1, measured and by the linear law."""
    rows = []
    for drawn in network.drawn():
        tangent, inputs, targets = drawn
        begin = _kernel(tangent, tangent.parameters, inputs)
        euler = descent(tangent, inputs, targets, STEP / begin.item())
        _, end = _trained(network, drawn, partial(_runge_kutta, euler))
        outputs = [tangent.at(inputs)(p)[:, 0].numpy() for p in (tangent.parameters, end)]
        exact = two_layer_drift(network.width, 1.0, begin[0], *outputs)
        rows.append([_kernel(tangent, end, inputs).item() / begin.item() - 1, exact.item() / begin.item() - 1])
    return {"rows": np.transpose(rows)}


def _kernel(tangent: Tangent, parameters: Gradients, inputs: Float[Tensor, "m m"]) -> Float[np.ndarray, "m m"]:
    return empirical_ntk(moved(tangent.network, parameters), inputs)[:, 0, :, 0].numpy()


def _trained(network: Network, drawn: Drawn, step: Callable[[Gradients], Gradients]) -> tuple[int, Gradients]:
    """Steps until the residual is below the tolerance, and the parameters then."""
    tangent, inputs, targets = drawn
    goal = tangent.at(inputs)(tangent.parameters)[:, 0] + targets

    def residual(parameters: Gradients) -> tuple[float, ...]:
        return (float((tangent.at(inputs)(parameters)[:, 0] - goal).norm() / targets.norm()),)

    label = f"{network.activation}, L = {network.hidden}, n = {network.width}"
    run = observe(step, tangent.parameters, 1000, 1, residual, label, lambda v: v[0] < network.tolerance)
    return int(run.steps[-1]), run.state


def _runge_kutta(euler: Callable[[Gradients], Gradients], start: Gradients) -> Gradients:
    """A step of the flow of fourth order, from Euler's of the same size."""
    moves: list[Gradients] = []
    for share in (0.0, 0.5, 0.5, 1.0):
        at = {name: p + share * moves[-1][name] if moves else p for name, p in start.items()}
        moves.append({name: p - at[name] for name, p in euler(at).items()})
    first, second, third, fourth = moves
    return {
        name: p + (first[name] + 2 * second[name] + 2 * third[name] + fourth[name]) / 6 for name, p in start.items()
    }


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Train all networks at every width, then those of one example."""
    grid = [replace(spec.network, activation=a, hidden=h, width=n) for a, h in KINDS for n in spec.widths]
    trained = np.reshape([r["rows"] for r in sweep(descend, grid)], (len(KINDS), len(spec.widths), 5, -1))
    alone = replace(spec.network, hidden=1, examples=1, draws=spec.many)
    pairs = [replace(alone, activation=activation, width=n) for activation in ("linear", "relu") for n in spec.wide]
    single = np.reshape([r["rows"] for r in sweep(flow, pairs)], (2, len(spec.wide), 2, -1))
    widths, size = np.array(spec.wide), abs(spec.network.target)
    law = size**2 / widths - size / np.pi / np.sqrt(2 * widths)
    return Data(spec, np.moveaxis(trained, 2, 0), single[:, :, 0], single[0, :, 1], law)


def check(data: Data) -> list[Claim]:
    """Slopes of the drift: four standard errors, the sd of one drift being half its mean, and 0.05 for higher orders.

    Movements vary by 0.1 at n = 64, as Theta_0 does, and leave the linear model's by what the kernel drifts.
    """
    spec, log = data.spec, np.log(data.spec.widths)
    room = 4 * 0.5 / np.sqrt(spec.network.draws * len(log) * log.var()) + 0.05
    few, means = room / SMOOTH**0.5, data.trained.mean(axis=3)
    slopes = np.array([np.polyfit(log, np.log(rows).T, 1)[0] for rows in means])
    smooth, kinked, relative = slopes[DRIFT, :SMOOTH], slopes[DRIFT, SMOOTH:], slopes[RELATIVE]
    ratio = np.sqrt(((data.trained[MOVED] / data.trained[PREDICTED] - 1) ** 2).mean(axis=2))
    norms, slower = means[RELATIVE, :, -1] / means[EXPECTED, :, -1] - 1, kinked.mean() - smooth.mean()
    apart = np.abs(data.single[0] - data.exact).max(axis=1) / np.abs(data.exact).mean(axis=1)
    mean, error = data.single[1].mean(axis=1), data.single[1].std(axis=1) / np.sqrt(spec.many)
    return [
        Claim("smooth: slope of the kernel's drift, least", smooth.min(), at_least=-1 - room, at_most=-0.85),
        Claim("smooth: slope of the kernel's drift, most", smooth.max(), at_least=-1.15, at_most=-1 + room),
        Claim("smooth: slope of the kernel's drift, mean", smooth.mean(), at_least=-1 - few, at_most=-1 + few),
        Claim("ReLU: slope of the kernel's drift, mean", kinked.mean(), at_least=-0.75 - few, at_most=-0.4),
        Claim("ReLU less smooth: mean slope of the drift", slower, at_least=0.3 - few, at_most=0.7),
        Claim("slope of the movement, largest size", np.abs(slopes[MOVED]).max(), at_most=0.1),
        Claim("slope of the relative movement + 1/2, L = 1, size", np.abs(relative[::2] + 0.5).max(), at_most=0.1),
        Claim("slope of the relative movement + 1, L = 2, size", np.abs(relative[1::2] + 1).max(), at_most=0.1),
        Claim("movement / the linear model's - 1, rms, widest, most", ratio[:, -1].max(), at_most=0.03),
        Claim("the same, widest / narrowest, most", (ratio[:, -1] / ratio[:, 0]).max(), at_most=0.6),
        Claim("relative movement / theory - 1, widest, most", np.abs(norms).max(), at_most=0.03),
        Claim("one example, linear: |drift - exact| / mean drift, most", apart.max(), at_most=0.01),
        Claim("one example, ReLU: (drift - law) / its error, most", np.abs((mean - data.law) / error).max(), at_most=4),
        Claim("one example, ReLU: drift / law, widest", mean[-1] / data.law[-1], at_least=0.5, at_most=1.5),
    ]


def draw(data: Data) -> Figure:
    """Points are measured; black lines are theory or, dashed, a rate."""
    figure, axes = style.panels(2, 2, height=2.3)
    spec, means = data.spec, data.trained.mean(axis=3)
    black: dict[str, Any] = {"color": style.BLACK, "lw": 0.8}
    for axis, measured, theory in zip(axes, (DRIFT, MOVED, RELATIVE), ((), PREDICTED, EXPECTED), strict=False):
        for (activation, hidden), row in zip(KINDS, means[measured], strict=True):
            label = f"{activation}, {hidden}".replace("relu", "ReLU") if measured == DRIFT else ""
            axis.loglog(spec.widths, row, " os"[hidden], color=COLOURS[activation], label=label)
        if theory:
            axis.plot(spec.widths, means[theory].T, "-", **black)
    for power, rows, line in ((-1.0, means[DRIFT, :SMOOTH], "--"), (-0.5, means[DRIFT, SMOOTH:], "-.")):
        rate = np.array(spec.widths) ** power
        rate *= np.exp(np.log(rows / rate).mean())
        axes[0].plot(spec.widths, rate, line, **black, label=f"$n^{{{power:.2g}}}$")
    error = data.single[1].std(axis=1) / np.sqrt(spec.many)
    axes[3].loglog(spec.wide, np.abs(data.single[0]).mean(axis=1), "o", color=style.BLUE)
    axes[3].errorbar(spec.wide, -data.single[1].mean(axis=1), error, fmt="o", color=style.RED)
    axes[3].plot(spec.wide, np.transpose([np.abs(data.exact).mean(axis=1), -data.law]), **black, label=["theory", ""])
    axes[0].set(xlabel="width $n$", ylabel=r"$\|\Theta_T-\Theta_0\|_F\,/\,\|\Theta_0\|_F$")
    axes[1].set(xlabel="width $n$", ylabel=r"$\|\theta_T-\theta_0\|$", yscale="linear", ylim=(0, None))
    axes[2].set(xlabel="width $n$", ylabel=r"$\|\theta_T-\theta_0\|\,/\,\|\theta_0\|$")
    axes[3].set(xlabel="width $n$", ylabel=r"$|\Theta_T/\Theta_0-1|$")
    for axis in axes:
        axis.set_xscale("log", base=2)
    figure.legend(loc="outside lower center", ncols=9, columnspacing=1, handletextpad=0.4)
    style.title(axes, "drift of the kernel", "movement", "relative movement", "drift, one example, $L = 1$")
    return figure
