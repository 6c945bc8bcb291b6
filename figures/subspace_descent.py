"""Descent in a fixed subspace converges inside it alone, at an exact rate; only new subspaces reach the rest.

W <- W + eta P P^T G Q Q^T, G = A - B W C: GaLore with SGD inside (Zhao et al. 2024, arXiv 2403.03507); sizes are
ours. (a) Theorem 3.8, fixed P and Q: R = P^T G Q falls, in the end by exactly 1 - eta kappa a step, while G itself
grows to an oblique projection of G_0. Points are simulated, lines are theory. (b) Q = I, P of rank r, new every T steps
or never: lines are means over draws of B, C and A, bands their extremes; dotted is what stays without new subspaces, by
theory. (c) The loss over its least value, which no step can raise, although the gradient grows.
"""

from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from figures import style
from figures.claims import Claim
from sims.dynamics import rollout
from sims.low_rank_gradients import Family, Refresh, Side, generic, inside, projected
from sims.sweep import Sweep, in_process
from theory.subspace_descent import contraction, excess, kappa, refresh_contraction, stays, subspace_course

Arrays = dict[str, np.ndarray]
KINDS: tuple[Refresh, ...] = ("svd", "random", "never")
NAMES = {"svd": "SVD refresh", "random": "random refresh", "never": "never refreshed"}
SEEN = 50  # points of a run


@dataclass(frozen=True)
class Task:
    """One projected run from W = 0 with eta = 1 / lam_max(S) = 1."""

    shape: tuple[int, int] = (20, 20)
    """m, n."""
    condition: float = 60.0
    """Of B and C, whose eigenvalues are spaced geometrically from 1 down."""
    rank: int = 5
    """r."""
    gap: int = 50
    """T."""
    steps: int = 2000
    """A multiple of T, and of 50."""
    refresh: Refresh = "svd"
    """Varies."""
    side: Side = "left"
    """Both in (a)."""
    seed: int = 0
    """Of B, C and A; counted up from here."""

    def __post_init__(self) -> None:
        if not 1 <= self.rank < min(self.shape) or not 1 < self.condition < np.inf:
            raise ValueError(f"{self}: take 1 <= rank < both sizes and a finite condition > 1")
        if self.gap < 1 or self.steps < 1 or self.steps % self.gap or self.steps % SEEN:
            raise ValueError(f"steps = {self.steps}, gap = {self.gap}: take a multiple of the gap and of {SEEN}")


@dataclass(frozen=True)
class Spec:
    """The task, and how often it is drawn."""

    task: Task = Task()
    """What is projected."""
    draws: int = 8
    """Of B, C and A in (b) and (c)."""

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise ValueError(f"draws = {self.draws}: take two or more, to see a spread")

    def quick(self) -> "Spec":
        """Half the size, two draws."""
        return Spec(replace(self.task, shape=(10, 10), condition=20.0, rank=3, gap=20, steps=1000), draws=2)

    def full(self) -> "Spec":
        """Larger, not square, twice the steps and more draws."""
        return Spec(replace(self.task, shape=(30, 40), rank=8, steps=4000), draws=20)


@dataclass(frozen=True, eq=False)
class Data:
    """What `train` returns: of (a), and by kind over draws."""

    spec: Spec
    fixed: Arrays
    runs: dict[str, Arrays]


def train(task: Task) -> Arrays:
    """|G_t| / |G_0|, |R_t| / |R_0| and the loss over its least one, at every t; and what theory says of them.

    falls: relative falls of the excess loss in each gap, and what is promised. share: |R|^2 / |G|^2 after a refresh.
    Without refresh, foreseen: |G_t| / |G_0| at every SEENth part of the run; limits: of it and of the loss; off: max
    |G_t - foreseen| / |G_0|; bound: 1 - eta kappa.
    """
    rng = np.random.default_rng([task.seed, 1]) if task.refresh == "random" else None
    family = generic(task.shape, 1, task.condition, np.random.default_rng([task.seed, 0]))
    step = projected(family, 1.0, task.rank, task.gap, refresh=task.refresh, side=task.side, rng=rng)
    states = [*rollout(step, inside(np.zeros(task.shape)), task.steps)]
    gradients = np.array([family(state.weight) for state in states])
    frames = [(state.left, state.right) for state in states[1:]]
    whole = np.linalg.norm(gradients, axis=(1, 2))
    within = np.array([np.linalg.norm(p.T @ g @ q) for g, (p, q) in zip(gradients, frames, strict=False)])
    above = np.array([_excess(family, gradient) for gradient in gradients])
    share, gaps = (within / whole[:-1])[:: task.gap] ** 2, above[:: task.gap]
    factors = [refresh_contraction(task.condition**-2, 1.0, 1.0, task.gap, min(1.0, part)) for part in share]
    found = {"whole": whole / whole[0], "inside": within / within[0], "loss": above / above[0], "share": share}
    found["falls"] = 1 - np.array([gaps[1:] / gaps[:-1], factors])
    return found | (_foreseen(task, family, gradients, *frames[0]) if task.refresh == "never" else {})


def _foreseen(task: Task, family: Family, gradients: np.ndarray, left: np.ndarray, right: np.ndarray) -> Arrays:
    given = gradients[0], family.lefts, family.rights, left, right
    times, size = np.arange(0, task.steps + 1, task.steps // SEEN), np.linalg.norm(gradients[0])
    foreseen, rest = subspace_course(*given, 1.0, times), stays(*given)
    within = left.T @ gradients[0] @ right, *_symmetric(left.T @ family.lefts @ left, right.T @ family.rights @ right)
    return {
        "foreseen": np.linalg.norm(foreseen, axis=(1, 2)) / size,
        "limits": np.array([np.linalg.norm(rest) / size, 1 - excess(*within) / _excess(family, gradients[0])]),
        "off": np.linalg.norm(gradients[times] - foreseen, axis=(1, 2)).max() / size,
        "bound": np.array(contraction(kappa(family.lefts, family.rights, left, right), 1.0, 1.0)),
    }


def _symmetric(*found: np.ndarray) -> list[np.ndarray]:
    """To the last digit."""
    return [(side + side.mT) / 2 for side in found]


def _excess(family: Family, gradient: np.ndarray) -> float:
    """Loss less its minimum, <G, B^-1 G C^-1> / 2, of one sample."""
    (left,), (right,) = family.lefts, family.rights
    return float(np.sum(gradient * np.linalg.solve(right, np.linalg.solve(left, gradient).T).T) / 2)


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """All kinds for each draw, and both sides projected once."""
    seeds = [spec.task.seed + draw for draw in range(spec.draws)]
    cells = [replace(spec.task, refresh=kind, seed=seed) for kind in KINDS for seed in seeds]
    *found, fixed = sweep(train, [*cells, replace(spec.task, refresh="never", side="both")])
    runs = {}
    for index, kind in enumerate(KINDS):
        drawn = found[index * spec.draws : (index + 1) * spec.draws]
        runs[str(kind)] = {name: np.array([run[name] for run in drawn]) for name in drawn[0]}
    return Data(spec, fixed, runs)


def check(data: Data) -> list[Claim]:
    """Rates and limits are theory's; the orders of refreshing well, at random and never are wide enough for draws.

    The slowest mode is alone once the next, 5 to 20 % faster, has gone; |R| is followed down to 1e-7 of its start,
    where it has nine digits. Promises are for the worst spectrum: they are exceeded a hundred times.
    """
    fixed, runs, least = data.fixed, data.runs, data.spec.task.rank / min(data.spec.task.shape)
    lasting = fixed["inside"][fixed["inside"] > 1e-7]
    ratios = lasting[1:] / lasting[:-1] / fixed["bound"]
    off = max(float(fixed["off"]), float(runs["never"]["off"].max()))
    svd, random, never = (runs[kind]["whole"][:, -1].mean() for kind in KINDS)
    losses, stuck = [runs[kind]["loss"] for kind in KINDS], runs["never"]["limits"][:, 1]
    claims = [
        ("fixed: max |R_t+1| / |R_t| over 1 - eta kappa, less 1", ratios.max() - 1, -1e-3, 1e-9),
        ("fixed: 1 - eta kappa", fixed["bound"], 0.9, 0.9999),
        ("fixed: |R_T| / |R_0|", fixed["inside"][-1], 0.0, 1e-4),
        ("fixed: |G_T| / |G_0|", fixed["whole"][-1], 0.9, 3.0),
        ("fixed: |G_T| over what theory says stays", fixed["whole"][-1] / fixed["limits"][0], 0.999, 1.001),
        ("fixed or never refreshed: max |G_t - theory| / |G_0|", off, 0.0, 1e-10),
        ("never refreshed: mean |G_T| / |G_0|", never, 0.7, 1.5),
        ("random refresh: mean |G_T| / |G_0|", random, 0.01, 0.5),
        ("SVD refresh: mean |G_T| / |G_0|", svd, 1e-4, 0.25),
        ("SVD refresh over random refresh", svd / random, 1e-3, 0.7),
        ("random refresh over never refreshed", random / never, 0.01, 0.5),
        ("never refreshed: excess loss at the end, least", losses[2][:, -1].min(), 0.2, 1.0),
        ("the same, least over the least in the subspace", np.min(losses[2][:, -1] / stuck), 1.0, 1.5),
        ("largest rise of the loss in a step", max(np.diff(loss).max() for loss in losses), -1.0, 1e-12),
        ("SVD refresh: least share of |G|^2, over r / min(m, n)", runs["svd"]["share"].min() / least, 1.0, 1 / least),
        ("random refresh: mean share of |G|^2, over r / m", runs["random"]["share"].mean() / least, 0.85, 1.15),
    ]
    for kind in KINDS[:2]:
        falls = runs[kind]["falls"]
        text = f"{NAMES[kind]}: fall of the loss in a gap over what is promised, least"
        claims.append((text, np.min(falls[:, 0] / falls[:, 1]), 1.0, 1e4))
    return [Claim(text, float(value), at_least=low, at_most=high) for text, value, low, high in claims]


def draw(data: Data) -> Figure:
    """Points, and lines over bands, are simulated; black lines are theory."""
    figure, axes = style.panels(1, 3, height=2.5)
    fixed, times = data.fixed, np.arange(0, data.spec.task.steps + 1, data.spec.task.steps // SEEN)
    shown = times[:-1]
    axes[0].semilogy(times, fixed["whole"][times], "o", color=style.RED, label=r"$\Vert G_t\Vert$")
    axes[0].semilogy(times, fixed["foreseen"], "-", color=style.BLACK, lw=0.8)
    axes[0].semilogy(shown, fixed["inside"][shown], "o", color=style.BLUE, label=r"$\Vert P^\top G_t\, Q\Vert$")
    axes[0].semilogy(times, fixed["bound"] ** times, "--", color=style.BLACK, lw=1, label=r"$(1 - \eta\kappa)^t$")
    for axis, name, limit in ((axes[1], "whole", 0), (axes[2], "loss", 1)):
        _draw_kinds(axis, data.runs, name)
        stays = data.runs["never"]["limits"][:, limit].mean()
        axis.axhline(stays, color=style.BLACK, ls=":", lw=1, label="what stays" if limit == 0 else None)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
    for axis, label in zip(
        axes, ("norm, relative to the start", r"$\Vert G_t\Vert\,/\,\Vert G_0\Vert$", ""), strict=True
    ):
        axis.set(xlabel="step $t$", ylabel=label)
    axes[2].set(ylabel="excess loss, relative")
    axes[0].legend(loc="lower left")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    style.title(axes, "fixed $P$ and $Q$", "gradient", "loss")
    return figure


def _draw_kinds(axis: Axes, runs: dict[str, Arrays], name: str) -> None:
    for kind, colour in zip(KINDS, (style.BLUE, style.ORANGE, style.RED), strict=True):
        values = runs[kind][name]
        axis.semilogy(values.mean(axis=0), "-", color=colour, label=NAMES[kind])
        axis.fill_between(
            np.arange(values.shape[1]), values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, lw=0
        )
