"""Large outputs make a network its linearisation, at rates that kinks change; small ones make it learn the features.

After Chizat, Oyallon & Bach 2019 (arXiv 1812.07956): F = alpha (f(theta) - f(theta_0)), loss |F - y|^2 / (2 alpha^2);
networks, task and sizes are ours. Lines are the linearised model in closed form, from the empirical kernel at the
start. As alpha grows, distances in the order of NAMES fall as alpha to the -1, -1, -2 and -1 if phi is smooth, as they
assume. ReLU is not, and an argument of ours, no theorem, has rms over draws at a fixed width fall by -1, -1/2, -3/2,
-1/2: moving by 1/alpha takes a share 1/alpha of the pairs (unit, example) over the kink, where gradients jump by O(1)
with random signs, which add up in squares. A drift with a mean, ~ 1/alpha, comes on top: -0.7 is what is seen. At the
other end f must become y / alpha. ReLU without biases makes f of degree L + 1 in theta, so that, once the start is
forgotten, Theta ~ alpha^(-2L/(L+1)), and eta has to fall as alpha^(2L/(L+1)). The task is y ~ |x_1| - E |x_1|, Gaussian
x: one direction of n_0, but n_0^2 / 2 quadratic features to a kernel. Errors are mean squares over those of y.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad, jvp
from torch.nn import Module

from figures import style
from figures.claims import Claim
from sims.dynamics import rollout
from sims.kernel import empirical_ntk
from sims.run import observe
from sims.sweep import Sweep, in_process
from sims.tangent import CHUNK, Gradients, Tangent
from sims.wide import Activation, Wide, descent, distance, moved
from theory.lazy import descent_prediction, descent_residual

Arrays = dict[str, np.ndarray]
NETWORKS: dict[Activation, dict[str, float]] = {"tanh": {"bias": 0.5}, "relu": {"weight": 2**0.5}}  # y is even
TANH, RELU, SAMPLES = 0, 1, 40
NAMES = ("theta_T - theta_0", "Theta_T - Theta_0", "theta_T - theta_lin", "F - F_lin at test points")
RATES = ((-1.0, -1.0, -2.0, -1.0), (-1.0, -0.5, -1.5, -0.5))
FITTED = ((32.0, np.inf), (8.0, 32.0))  # tanh's drift has a rate in the tail alone; there, few ReLU units meet a kink
EVER = np.unique(np.geomspace(1, 1e7, 80).astype(int))  # steps among which the kernel has its best test error


@dataclass(frozen=True)
class Task:
    """One run."""

    inputs: int = 15
    """n_0."""
    examples: int = 120
    """To train on, about n_0^2 / 2; as many to test on."""
    widths: tuple[int, ...] = (32, 32)
    """n_1, ..., n_L."""
    steps: int = 600
    """Of descent, for every alpha."""
    pace: float = 0.7
    """eta lam_max(Theta_0) from alpha = 1 on, and alpha^(2L/(L+1)) times that below."""
    activation: Activation = "relu"
    """phi; varies."""
    alpha: float = 1.0
    """The output scale; varies."""
    seed: int = 0
    """Of network and examples; counted up from here."""

    def __post_init__(self) -> None:
        if min(self.inputs, self.examples) < 2 or self.steps < 1 or self.steps % SAMPLES or not 0 < self.pace < 2:
            raise ValueError(f"{self}: take inputs, examples > 1, {SAMPLES} k steps, 0 < pace < 2 for convergence")


@dataclass(frozen=True)
class Spec:
    """The task, the output scales and how often it is drawn."""

    task: Task = Task()
    """What is learned."""
    alphas: tuple[float, ...] = tuple(2.0**k for k in (-5, -3, -1, 0, 1, 2, 3, 4, 5, 7))
    """Ascending, from 1/8 or less to above 32, with 8 and 32 among them."""
    draws: int = 3
    """Of network and examples; one does not tell kinks from smooth networks."""

    def __post_init__(self) -> None:
        a = self.alphas
        if not {8, 32} <= {*a} or [*a] != sorted(a) or not 0 < a[0] <= 1 / 8 or a[-1] <= 32 or self.draws < 2:
            raise ValueError(f"{self}: take two draws or more, ascending alphas, 0 < first <= 1/8, 8, 32, last > 32")

    def quick(self) -> "Spec":
        """Four alphas, two draws, a fifth of the steps."""
        return Spec(replace(self.task, steps=120, pace=1.6), (0.125, 8.0, 32.0, 128.0), draws=2)

    def full(self) -> "Spec":
        """Twice the widths, more inputs and examples, ten draws."""
        return Spec(Task(20, 200, (64, 64), steps=1200), self.alphas, draws=10)


class Start:
    """theta_0, the examples, the kernels there, and what the linearised model predicts from them."""

    def __init__(self, task: Task) -> None:
        generator = torch.Generator().manual_seed(task.seed)
        network = Wide((task.inputs, *task.widths), task.activation, generator, **NETWORKS[task.activation])
        x = torch.randn(2 * task.examples, task.inputs, generator=generator, dtype=torch.float64)
        y = (x[:, 0].abs() - (2 / torch.pi) ** 0.5) / (1 - 2 / torch.pi) ** 0.5
        n, self.tangent, self.theta = task.examples, Tangent(network), Tangent(network).parameters
        self.train, self.test, self.goal, self.hidden = x[:n], x[n:], y[:n], y[n:].numpy()
        self.kernel, self.cross = _kernel(network, self.train), _kernel(network, self.test, self.train)
        self.residual, self.largest = -y[:n].numpy(), np.linalg.norm(self.kernel, 2)
        self.slow = min(1.0, task.alpha ** (2 * len(task.widths) / (len(task.widths) + 1)))
        self.lr, self.task = float(task.pace * self.slow / self.largest), task

    def movement(self) -> Gradients:
        """theta_lin - theta_0 = J^T Theta^-1 (I - (I - eta Theta)^k) y / alpha: F_lin where Theta_* = I."""
        steps, cross = np.array([self.task.steps]), np.eye(self.task.examples) / self.task.alpha
        pull = torch.from_numpy(descent_prediction(self.kernel, cross, self.residual, self.lr, steps)[0])
        return {name: torch.tensordot(pull, g[:, 0], 1) for name, g in self.tangent.held(self.train, CHUNK).items()}


def train(task: Task) -> Arrays:
    """Descend, and compare with the linearised model after as many steps.

    series: eta lam_max t, residuals of network and closed form. apart: see NAMES, 2 and 4 relative. errors: both, and
    the kernel's at its best step. share: of |W_1|^2 on x_1, start and end. growth: eta lam_max(Theta_T), scaled drift.
    """
    at = Start(task)
    tangent, theta, every = at.tangent, at.theta, task.steps // SAMPLES

    def outputs(x: Tensor, parameters: Gradients) -> Float64[np.ndarray, " b"]:
        return (task.alpha * (tangent.at(x)(parameters) - tangent.at(x)(theta))[:, 0]).numpy()

    step = descent(tangent, at.train, at.goal, at.lr, task.alpha)
    run = observe(step, theta, task.steps, every, lambda p: (_relative(outputs(at.train, p), -at.residual),))
    kernel, found = _kernel(moved(tangent.network, run.state), at.train), outputs(at.test, run.state)
    predicted, *ever = descent_prediction(at.kernel, at.cross, at.residual, at.lr, np.array([task.steps, *EVER]))
    errors = [_relative(f, at.hidden) for f in (found, predicted, *ever)]
    residual = np.linalg.norm(descent_residual(at.kernel, at.residual, at.lr, run.steps), axis=1)
    off = distance({name: p - theta[name] for name, p in run.state.items()}, at.movement())
    drift, first = _relative(kernel, at.kernel), (theta["weights.0"], run.state["weights.0"])
    return {
        "series": np.array([at.lr * at.largest * run.steps, run.values[:, 0], residual / residual[0]]),
        "apart": np.array([distance(run.state, theta), drift, off, _relative(found, predicted)]),
        "errors": np.array([errors[0], errors[1], min(errors[2:])]) ** 2,
        "share": np.array([float(w[:, 0].square().sum() / w.square().sum()) for w in first]),
        "growth": np.array([at.lr * np.linalg.norm(kernel, 2), drift * at.slow]),
        "outputs": np.array([predicted, found]),
    }


def verify(task: Task) -> Arrays:
    """Relative error of `movement`: the linearised model descends step by step, by jvp and without a kernel."""
    at = Start(task)
    f, nowhere = at.tangent.at(at.train), {name: torch.zeros_like(p) for name, p in at.theta.items()}

    def loss(movement: Gradients) -> Tensor:
        return (jvp(f, (at.theta,), (movement,))[1][:, 0] - at.goal / task.alpha).square().sum() / 2

    def step(movement: Gradients) -> Gradients:
        return {name: movement[name] - at.lr * g for name, g in grad(loss)(movement).items()}

    *_, end = rollout(step, nowhere, task.steps)
    return {"error": np.array(distance(end, at.movement()) / distance(end, nowhere))}


def _kernel(network: Module, *inputs: Tensor) -> Float64[np.ndarray, "_ n"]:
    return empirical_ntk(network, *inputs)[:, 0, :, 0].numpy()


def _relative(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


@dataclass(frozen=True, eq=False)
class Data:
    """Over activation (tanh, relu), alpha and draw: what `train` and `verify` return; `apart` as its rms over draws."""

    spec: Spec
    grids: Arrays


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Run the grid, and the linearised model once for each activation."""
    tasks, shape = [replace(spec.task, activation=phi) for phi in NETWORKS], (2, len(spec.alphas), spec.draws)
    cells = [replace(t, alpha=a, seed=t.seed + k) for t in tasks for a in spec.alphas for k in range(spec.draws)]
    found = sweep(train, cells)
    grids = {name: np.array([run[name] for run in found]).reshape(*shape, *found[0][name].shape) for name in found[0]}
    grids["apart"] = np.sqrt(np.square(grids["apart"]).mean(axis=2))
    grids["explicit"] = np.array([run["error"] for run in sweep(verify, [replace(t, steps=SAMPLES) for t in tasks])])
    return Data(spec, grids)


def check(data: Data) -> list[Claim]:
    """What hangs on few kinks holds to .57 / draws^1/2, three sd, which excludes smooth rates; the drift has a mean."""
    alphas, grids, at = np.array(data.spec.alphas), data.grids, data.spec.alphas.index(32.0)
    errors, share, apart = grids["errors"].mean(axis=2), grids["share"][RELU].mean(axis=1), grids["apart"]
    off = np.abs(grids["series"][..., 1, :] - grids["series"][..., 2, :]).max(axis=(2, 3))
    best, ahead = errors[RELU].min(axis=0), share[:, 1] / share[:, 0]
    claims = [
        ("explicit descent of the linearised model: error of theta_lin", grids["explicit"].max(), 0, 1e-10),
        ("largest eta lam_max(Theta_T)", grids["growth"][..., 0].max(), 0.3, 1.9),
        ("largest alpha: residual, largest distance from the closed form", off[:, -1].max(), 0, 0.02),
        ("smallest alpha: the same, least", off[:, 0].min(), 0.05, 1),
        ("alpha = 32: |F - F_lin|, ReLU over tanh", apart[RELU, at, 3] / apart[TANH, at, 3], 1.2, 100),
        ("largest alpha: test error off the closed form's", np.ptp(errors[:, -1, :2], axis=1).max(), 0, 0.05),
        ("ReLU: least test error over the kernel's at its best step", best[0] / best[2], 0.02, 0.7),
        ("ReLU, largest alpha: share of |W_1|^2 on x_1 over the start's", ahead[-1], 0.98, 1.02),
        ("ReLU, smallest alpha: share of |W_1|^2 on x_1 over the start's", ahead[0], 1.8, data.spec.task.inputs),
        ("ReLU, smallest alpha: drift alpha^(2L/(L+1))", grids["growth"][RELU, 0, :, 1].mean(), 0.15, 2),
    ]
    for index, (name, (low, high)) in enumerate(zip(NETWORKS, FITTED, strict=True)):
        fitted = (alphas >= low) & (alphas <= high)
        slopes = np.polyfit(np.log(alphas[fitted]), np.log(apart[index, fitted]), 1)[0]
        for column, (text, rate) in enumerate(zip(NAMES, RATES[index], strict=True)):
            wide = 0.57 / data.spec.draws**0.5 if index == RELU and column else 0.15
            least = -0.9 if (index, column) == (RELU, 1) else rate - wide
            claims.append((f"{name}: exponent of |{text}|, theory {rate:g}", slopes[column], least, rate + wide))
    return [Claim(text, float(value), at_least=low, at_most=high) for text, value, low, high in claims]


def draw(data: Data) -> Figure:
    """Points are networks; lines are the linearised model, or exponents through the value at alpha = 32."""
    figure, axes = style.panels(2, 3, height=2.4)
    alphas, grids = np.array(data.spec.alphas), data.grids
    for index, colour in ((0, style.RED), (len(alphas) // 3, style.GREEN), (-1, style.BLUE)):
        times, left, linear = grids["series"][RELU, index, 0][:, 1:]
        axes[0].loglog(times, left, "o", color=colour, label=rf"$\alpha = {alphas[index]:g}$")
        axes[3].plot(*grids["outputs"][RELU, index, 0], ".", color=colour, alpha=0.6, mew=0)
    axes[0].loglog(times, linear, "k-", label="linearised", lw=0.9)
    axes[0].set(xlabel=r"$\eta \lambda_{\max} t$", ylabel=r"$|F - y| / |y|$")
    axes[3].axline((0, 0), slope=1, color=style.BLACK, lw=0.9)
    axes[3].set(xlabel=r"$F_{lin}$ at test points", ylabel="$F$ at test points")
    for index, (name, colour) in enumerate((("tanh", style.BLUE), ("ReLU", style.RED))):
        _distances(axes[1 + index], alphas, grids["apart"][index], index)
        for axis, key in ((axes[4], "errors"), (axes[5], "share")):
            values = grids[key][index].mean(axis=1)[:, :: 1 if key == "errors" else -1].T
            for line, kind, row in zip("o-:", ("trained", "linearised", "its best step"), values, strict=False):
                axis.semilogx(alphas, row, line, color=colour, label=name if axis is axes[5] else kind, lw=0.9)
    for axis, shown in ((axes[4], slice(3, None)), (axes[5], slice(None, None, 2))):
        axis.set(xlabel=r"$\alpha$", ylim=(0, None))
        axis.legend(*(found[shown] for found in axis.get_legend_handles_labels()))
    axes[0].legend(fontsize=6, handlelength=1, loc="lower left")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    style.title(axes, "residual, ReLU", "distances, tanh", "distances, ReLU", "function", "error", "$|W_1|^2$ on $x_1$")
    return figure


def _distances(axis: Axes, alphas: np.ndarray, apart: np.ndarray, index: int) -> None:
    names = r"$|\theta_T - \theta_0|$", r"$|\Theta_T - \Theta_0|$", r"$|\theta_T - \theta_{lin}|$", r"$|F - F_{lin}|$"
    colours, tail = (style.BLUE, style.GREEN, style.RED, style.ORANGE), np.clip(alphas, *FITTED[index])
    for name, rate, values, colour in zip(names, RATES[index], apart.T, colours, strict=True):
        axis.loglog(alphas, values, "o", color=colour, label=name)
        axis.loglog(tail, values[alphas == 32] * (tail / 32) ** rate, "k--", lw=0.8)
    axis.set(xlabel=r"$\alpha$")
