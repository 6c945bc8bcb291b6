"""The 2r-dimensional dynamics are exact at every eps; the kernel is right only where |target - E(0)| << eps^L.

Ours, between Yaras et al. 2024 (arXiv 2406.04112) and the lazy regime of Chizat, Oyallon & Bach 2019 (arXiv
1812.07956): 1/2 |E - target|_F^2, descent from W_l(0) = eps Q_l at a tenth of `Problem.stable_lr`. The target is
E(0) + Phi, as in fine-tuning or with the output at the start subtracted, or Phi, from scratch. With Q = Q_L ... Q_1:

Kernel. dE = sum_l A_l dW_l B_l, A_l = W_L ... W_{l+1}, B_l = W_{l-1} ... W_1, Theta = sum_l (A_l A_l^T) x (B_l^T B_l).
At the start these are multiples of I and Theta = L eps^(2L-2) I, whatever the Q_l. With a = eta L eps^(2L-2) and
q = 1 - a the linearised error is q^t (E(0) - target): one speed for all directions.
Subspace. E(0) is eps^L I in the theorem's bases. For E(0) + Phi the active target is P + eps^L I and the idle gradient
prod_{k != l} rho_k (prod_k rho_k - eps^L) is 0 at the start: the idle block stays.
Where they part, target E(0) + Phi. Let W_l = eps Q_l ... Q_1 (I + D_l) (Q_{l-1} ... Q_1)^T, F = Q^T Phi / eps^L. To
first order all D_l = D = F (1 - q^t) / L, and the residual is -F q^t. So A_l A_l^T grows by (L - l)(D + D^T), B_l^T B_l
by (l - 1)(D + D^T), and a step has L (L - 1) / 2 products of two increments a F q^t / L. Summed over the steps,

    Q^T (E - E_kernel) / eps^L = (L-1)/2L q^(t-1) [(a t - 1 + q^t) (F G + G F) + a (1 - q^t) F^2],  G = F + F^T,
    |Theta - Theta(0)|_F / |Theta(0)|_F = (L-1)/2L (1 - q^t) (2 |G|_F^2 / d + 2 tr(G)^2 / d^2)^(1/2),

each up to a share O(|F|); relative to |Phi| both fall as eps^-L. Target Phi: the start has to be forgotten, by the same
rho_l / eps over a t at every eps and not by q^t, so that the kernel's error stays: scale alone is not lazy.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn import ParameterList

from figures import style
from figures.claims import Claim
from sims.dynamics import Matrix, Weights, gradient_descent, product, rollout
from sims.kernel import empirical_ntk
from sims.losses import Factorization
from sims.measure import idle_scale, singular_values
from sims.start import problem_start, problem_target, to_torch
from sims.sweep import Sweep, in_process
from theory.invariants import invariant_bases, reduced_dynamics, reduced_target, rho
from theory.lazy import descent_residual
from theory.problem import Problem

Arrays = dict[str, np.ndarray]
COLOURS = (style.BLUE, style.RED, style.GREEN)
ENDS = ((r"small $\epsilon$", style.RED), (r"medium $\epsilon$", style.GREEN), (r"large $\epsilon$", style.BLUE))
LABELS = (
    (r"target $E(0)+\Phi$: modes left to learn", "$a t$", r"$u_i^\top($target$-E)v_i/\sigma_i$", 3),
    (r"target $\Phi$: idle part of $E$", "$a t$", r"idle part $/\,\epsilon^L$", 3),
    ("largest error of $E$", r"$\epsilon^L/\sigma_1$", "over $|E(0)-$target$|_F$", 6),
    ("drift of the kernel", r"$\epsilon^L/\sigma_1$", r"$|\Theta-\Theta(0)|_F/|\Theta(0)|_F$", 1),
    ("what has moved in $W_l$", "$i$", r"$\sigma_i(W_l-W_l(0))/\sigma_1$", 1),
    ("what is there in $E$", "$i$", r"$\sigma_i(E)/\sigma_1(E)$", 1),
)
KEPT, FORGOTTEN = 0, 1  # the first index: targets E(0) + Phi and Phi
TIME, KERNEL, IDLE, MODES = 0, 1, slice(2, 4), slice(4, None)
"""Columns of `series`: a t, q^t; simulated, then predicted, idle singular values of E / eps^L and unlearned modes."""


@dataclass(frozen=True)
class Cell:
    """One run, until a t = 10, 5000 steps or all entries of U^T (E - target) V / sigma are below 1e-3."""

    problem: Problem
    keeps: bool
    """The target is E(0) + Phi, else Phi."""


@dataclass(frozen=True)
class Spec:
    """A problem, its depths and its scales."""

    problem: Problem = Problem(width=30, spectrum=(4.0, 2.0, 1.0))
    """Width, spectrum and seed; depth, scales and step vary."""
    depths: tuple[int, ...] = (2, 3)
    """L; (a), (b), (e) and (f) show the last one."""
    ratios: tuple[float, ...] = tuple(10.0 ** (k / 2) for k in range(-6, 7))
    """eps^L / sigma_1, ascending."""

    def __post_init__(self) -> None:
        problem, low, high = self.problem, self.ratios[0], self.ratios[-1]
        plain = not problem.decay and not problem.momentum and 2 <= problem.rank < problem.width / 4
        if not plain or not 1e-4 <= low <= 1e-2 or not 1e2 <= high <= 1e4 or not 0 < len(self.depths) < 4:
            raise ValueError(
                f"{self}: laws, modes and limits need others; take decay = momentum = 0, 2 <= rank < width / 4, "
                "ratios from 1e-4 ... 1e-2 to 1e2 ... 1e4, and 1 to 3 depths"
            )

    def quick(self) -> "Spec":
        """Rank 2, one scale each decade."""
        return replace(self, problem=replace(self.problem, width=14, spectrum=(2.0, 1.0)), ratios=self.ratios[::2])

    def full(self) -> "Spec":
        """Rank 4 and a third depth."""
        return replace(self, problem=replace(self.problem, width=40, spectrum=(8.0, 4.0, 2.0, 1.0)), depths=(2, 3, 4))

    def cell(self, keeps: bool, depth: int, ratio: float) -> Cell:
        """The run at eps^L = ratio sigma_1."""
        eps = float((ratio * self.problem.spectrum[0]) ** (1 / depth))
        problem = replace(self.problem, depth=depth, scales=eps, lr=1e-12)
        return Cell(replace(problem, lr=problem.stable_lr / 10), keeps)


def train(cell: Cell) -> Arrays:
    """Simulate, hold both predictions against every step, and see what has moved in the end."""
    problem, start, phi = cell.problem, problem_start(cell.problem), problem_target(cell.problem)
    begin, r, rows = product(start), problem.rank, []
    target, (left, sigma, right) = phi + begin if cell.keeps else phi, np.linalg.svd(phi)
    size, rate = np.prod(problem.eps), problem.depth * problem.eps[0] ** (2 * problem.depth - 2)
    steps = np.arange(min(5000, int(10 / problem.lr / rate) + 1) + 1)
    shares = descent_residual(np.array([[rate]]), np.ones(1), problem.lr, steps)[:, 0]  # q^t
    simulated = rollout(gradient_descent(Factorization(target), problem.lr), start, len(steps) - 1)
    predicted = _subspace(cell, start, phi, target, len(steps) - 1)
    for weights, theory, share, time in zip(simulated, predicted, shares, problem.lr * rate * steps, strict=True):
        both = product(weights), product(theory)
        modes = [left[:, :r].T @ (target - e) @ right[:r].T / sigma[:r] for e in both]
        apart = [np.linalg.norm(both[0] - e) for e in (target + share * (begin - target), both[1])]
        layers = max(np.abs(w - p).max() for w, p in zip(weights, theory, strict=True)) / np.abs(weights).max()
        idle = [idle_scale(e, problem.idle) / size for e in both]
        rows.append(np.array([*apart, layers, time, share, *idle, *np.diagonal(modes, 0, 1, 2).flat]))
        if np.abs(modes[0]).max() < 1e-3:
            break
    moved = np.array([singular_values(after - before) for after, before in zip(weights, start, strict=True)])
    return {
        "series": np.array(rows)[:, 3:],
        "errors": np.max(rows, axis=0)[:3] / [*[np.linalg.norm(begin - target)] * 2, 1],
        "moved": (moved / moved[:, :1]).max(axis=0),
        "spectrum": singular_values(both[0]) / np.linalg.norm(both[0], 2),
        **_kernels(problem, rate, start, weights, begin.T @ phi / size**2, shares[1 : len(rows)]),
    }


def _subspace(cell: Cell, start: Weights, phi: Matrix, target: Matrix, steps: int) -> Iterator[Weights]:
    """All weights as the theorem has them, at t = 0, ..., steps."""
    problem, k = cell.problem, 2 * cell.problem.rank
    bases = invariant_bases(start, phi, problem.rank)
    idle = np.tile(problem.eps, (steps + 1, 1)) if cell.keeps else rho(problem, steps)
    cores = reduced_dynamics(problem, reduced_target(bases, target, problem.rank))
    for scales, blocks in zip(idle, cores, strict=False):  # the cores have no end
        yield tuple(
            (scale / eps) * w + v[:, :k] @ (core - scale * np.eye(k)) @ u[:, :k].T
            for w, eps, scale, core, v, u in zip(start, problem.eps, scales, blocks, bases[1:], bases[:-1], strict=True)
        )


def _kernels(problem: Problem, rate: float, start: Weights, end: Weights, f: Matrix, left: np.ndarray) -> Arrays:
    """The kernel's defect at the start, its drift, and what the docstring has for the error and for the drift."""
    before, after, pace = _kernel(start), _kernel(end), problem.lr * rate
    share, g, done = (problem.depth - 1) / (2 * problem.depth), f + f.T, pace * np.arange(1, len(left) + 1)
    terms = np.array([f @ g + g @ f, f @ f]).reshape(2, -1)
    times = share * left / (1 - pace) * np.array([done - 1 + left, pace * (1 - left)])
    error = np.sqrt(np.einsum("it,ij,jt->t", times, terms @ terms.T, times).max()) / np.linalg.norm(f)
    grown = np.sqrt(2 * np.sum(g**2) / len(f) + 2 * np.trace(g) ** 2 / len(f) ** 2)
    defect, drift = np.abs(before / rate - np.eye(len(before))).max(), np.linalg.norm(after - before)
    laws = np.array([error, share * (1 - left[-1]) * grown])
    return {"kernel": np.array([defect, drift / np.linalg.norm(before)]), "laws": laws}


def _kernel(weights: Weights) -> Matrix:
    """Theta of the entries of E, which are the outputs at the unit vectors."""
    network, d = ParameterList(to_torch(*weights)).eval(), len(weights[0])
    found = empirical_ntk(network, torch.eye(d).double(), forward=lambda n, x: x @ product((*n.parameters(),)).mT)
    return found.reshape(d**2, d**2).numpy()


@dataclass(frozen=True, eq=False)
class Data:
    """Arrays over target, depth and ratio, and what is drawn of the last depth."""

    spec: Spec
    grids: Arrays
    """errors: kernel's and subspace's for E over |E(0) - target|_F, subspace's for all W_l; kernel: defect, drift."""
    series: tuple[tuple[np.ndarray, ...], ...]
    """By target, at the smallest ratio, at a quarter of the list and at the largest."""


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Run the grid for both targets."""
    size, shape = len(spec.ratios), (2, len(spec.depths), len(spec.ratios), -1)
    cells = [spec.cell(keeps, depth, x) for keeps in (True, False) for depth in spec.depths for x in spec.ratios]
    found = sweep(train, cells)
    grids = {name: np.array([run[name] for run in found]).reshape(shape) for name in found[0] if name != "series"}
    ends = [found[: len(found) // 2][-size:], found[-size:]]
    return Data(spec, grids, tuple(tuple(runs[index]["series"] for index in (0, size // 4, -1)) for runs in ends))


def check(data: Data) -> list[Claim]:
    """Rounding is 1e-15 to 1e-14 of the largest number, eps^L in E; laws are off by O(|F|), times eps^L by O(1)."""
    x, r = np.array(data.spec.ratios), data.spec.problem.rank
    errors, moved, kernel, e = (data.grids[name] for name in ("errors", "moved", "kernel", "spectrum"))
    lazy, measured = x > 9, np.stack([errors[KEPT, ..., 0], kernel[KEPT, ..., 1]], axis=-1)
    off = np.abs(measured / data.grids["laws"][KEPT] - 1) * x[:, None]
    orders = np.polyfit(np.log(x[lazy]), np.log(np.hstack([*measured])[lazy]), 1)[0]
    tenth = [np.interp(np.log(10), -np.log(curve), np.log(x)) for curve in errors[KEPT, ..., 0]]
    (rich, _, _), (early, _, late) = data.series
    halves = rich[np.argmax(rich[:, MODES][:, :r] < 0.5, axis=0), TIME]
    limit = np.abs(late[:, IDLE][:, 1] - late[:, KERNEL]).max()
    return [
        Claim("max |Theta(0) / (L eps^(2L-2)) - I|", kernel[..., 0].max(), 1e-12),
        Claim("subspace: max |W_l - predicted| / max |W_l|", errors[..., 2].max(), 1e-12),
        Claim("subspace: error of E over max(1, eps^L / sigma_1)", (errors[..., 1] / np.maximum(1, x)).max(), 1e-12),
        Claim("kernel: error at the smallest eps, least", errors[:, :, 0, 0].min(), 1, 0.9),
        Claim("kernel: distance of its orders in eps^L, error and drift, from -1", np.abs(orders + 1).max(), 0.02),
        Claim("kernel: |error and drift over law - 1| eps^L / sigma_1, from 10 on", off[:, lazy].max(), 0.5),
        Claim("kernel: eps^L / sigma_1 at which it is 10 % off, mean over depths", np.exp(np.mean(tenth)), 2, 0.2),
        Claim("target Phi: kernel's error at the largest eps, least", errors[FORGOTTEN, :, -1, 0].min(), 0.3, 0.15),
        Claim("target Phi: the last over what rho predicts", errors[FORGOTTEN, -1, -1, 0] / limit, 1.01, 0.99),
        Claim("target Phi, smallest eps: idle part left", early[-1, IDLE][0], 1, 0.9),
        Claim("target Phi, largest eps: the same over the kernel's", late[-1, IDLE][0] / late[-1, KERNEL], 1e5, 99),
        Claim("smallest eps: half time of the last mode over the first's", halves[-1] / halves[0], 10, 1.4),
        Claim("smallest eps: the kernel's half time over the last mode's", np.log(2) / halves[-1], 1e4, 10),
        Claim("movement of W_l: singular value 2r + 1 over the first", moved[KEPT, ..., 2 * r].max(), 1e-10),
        Claim("movement of W_l, both ends: r + 1 over the first", moved[KEPT, :, [0, -1], r].max(), 0.05),
        Claim("smallest eps: singular value r + 1 of E over the first", e[KEPT, :, 0, r].max(), 0.02),
        Claim("largest eps: last singular value of E over the first", e[KEPT, :, -1, -1].min(), 1, 0.9),
    ]


def draw(data: Data) -> Figure:
    """Simulation as points, the subspace prediction as black lines, the kernel's and the laws dashed."""
    figure, axes = style.panels(3, 2, height=2.1)
    x, r, grids = np.array(data.spec.ratios), data.spec.problem.rank, data.grids
    for axis, runs, columns in zip(axes, data.series, (MODES, IDLE), strict=False):
        for run, (name, colour) in zip(runs, ENDS, strict=True):
            simulated, predicted = np.split(run[1:, columns], 2, axis=1)
            shown = np.unique(np.geomspace(1, len(simulated), 50).astype(int)) - 1
            axis.plot(run[1:][shown, TIME], simulated[shown], "o", color=colour, alpha=0.6, mew=0)
            axis.plot(run[1:, TIME], predicted, "-", color=style.BLACK, lw=0.7)
            axis.semilogx(run[1:, TIME], run[1:, KERNEL], "--", color=style.ORANGE)
            axis.plot([], [], "o", color=colour, label=name)
        axis.plot([], [], "--", color=style.ORANGE, label="kernel")
    for index, (depth, colour) in enumerate(zip(data.spec.depths, COLOURS, strict=False)):
        axes[2].plot(x, grids["errors"][KEPT, index, :, 0], "o", color=colour, ms=4, label=f"kernel, $L={depth}$")
        axes[2].plot(x, grids["errors"][FORGOTTEN, index, :, 0], "s", color=colour, mfc="none", label=r"target $\Phi$")
        axes[2].plot(x, grids["errors"][KEPT, index, :, 1], "x", color=colour, ms=4, label="subspace")
        axes[3].plot(x, grids["kernel"][KEPT, index, :, 1], "o", color=colour, ms=4, label=f"$L={depth}$")
        for column in (0, 1):
            axes[2 + column].loglog(x[x > 0.5], grids["laws"][KEPT, index, x > 0.5, column], "k--", lw=0.8)
    for axis, name, edge in ((axes[4], "moved", 2 * r), (axes[5], "spectrum", r)):
        for column, (label, colour) in zip((0, len(x) // 4, -1), ENDS, strict=True):
            values = grids[name][KEPT, -1, column]
            axis.semilogy(np.arange(1, len(values) + 1), values, "o", color=colour, label=label if edge > r else None)
        axis.axvline(edge + 0.5, ls=":", color=style.BLACK, label=f"$i={edge}$")
    axes[0].plot([], [], "-", color=style.BLACK, lw=0.7, label="subspace")
    axes[3].plot([], [], "k--", lw=0.8, label="to first order")
    for axis, (_, across, upwards, place) in zip(axes, LABELS, strict=True):
        axis.set(xlabel=across, ylabel=upwards, ymargin=0.2)
        wide = len(data.spec.depths) if axis is axes[2] else 1
        axis.legend(loc=place, ncols=wide, columnspacing=0.7, handletextpad=0.2)
    style.title(axes, *(labels[0] for labels in LABELS))
    return figure
