"""Layers of any shapes train inside a family of subspaces, larger than 2r where widths change; theory has all weights.

Ours, beyond the square layers of Yaras et al. 2024 (arXiv 2406.04112): deep matrix factorization, r = 4, from
semi-orthogonal W_l(0) = eps_l Q_l with unequal eps_l and weight decay, and from a Gaussian start. The family is
computed from the start and the target alone (theory.subspaces); no small eps, no limit of small steps.
"""

from dataclasses import dataclass, replace
from itertools import islice, pairwise

import numpy as np
from jaxtyping import Float64, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from sims.dynamics import Weights, gradient_descent, rollout
from sims.losses import Factorization
from sims.measure import singular_values
from sims.start import haar, orthogonal
from theory.subspaces import Layers, invariant_subspaces, passing, predicted_run

Series = Float64[np.ndarray, "times _"]
Numbers = Int[np.ndarray, " _"]

SHAPES = (
    "square",
    "narrow output",
    "d_L = r",
    "narrow input",
    "bottleneck",
    "widening",
    "both ends narrow",
    "Gaussian",
)
"""Of the layers; for all but the last the start is semi-orthogonal."""
SHOWN = "narrow output"
"""The shape whose singular values are drawn."""
RANK = 4


@dataclass(frozen=True)
class Spec:
    """Widths in thirds of the largest, and how to run."""

    width: int = 60
    """The largest d_l; a multiple of 6, at least 6 r."""
    lr: float = 0.02
    """eta."""
    decay: float = 0.2
    """lam."""
    steps: int = 150
    """Steps of gradient descent."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width % 6 or self.width < 6 * RANK:
            raise ValueError(
                f"width = {self.width}: widths are sixths of it; take a multiple of 6, at least {6 * RANK}"
            )
        if not 0 < self.lr <= 0.1 or not 0 <= self.decay <= 1 or self.steps < 50:
            raise ValueError(
                f"lr = {self.lr}, decay = {self.decay}, steps = {self.steps}: take 0 < lr <= 0.1, which is stable for "
                "sigma_1 = 3, 0 <= decay <= 1, and at least 50 steps, so that something moves"
            )

    def quick(self) -> "Spec":
        """Fewer steps at width 30."""
        return replace(self, width=30, steps=60)

    def full(self) -> "Spec":
        """Width 240."""
        return replace(self, width=240)

    def dims(self, shape: str) -> tuple[int, ...]:
        """d_0, ..., d_3."""
        w, third, half = self.width, self.width // 3, self.width // 2
        return {
            "narrow output": (w, w, w, third),
            "d_L = r": (w, w, w, RANK),
            "narrow input": (third, w, w, w),
            "bottleneck": (w, half, half, w),
            "widening": (half, 2 * third, w, w),
            "both ends narrow": (third, w, w, third),
        }.get(shape, (w, w, w, w))


@dataclass(frozen=True, eq=False)
class Data:
    """By shape, in the order of SHAPES."""

    spec: Spec
    sizes: dict[str, Numbers]
    """k_0, ..., k_3, the dimensions of the family."""
    passing: dict[str, int]
    """n, idle directions that pass through all layers."""
    deviation: dict[str, Float64[np.ndarray, " times"]]
    """max |W_l simulated - W_l predicted|, worst layer."""
    moved: dict[str, float]
    """max |W_l(T) - W_l(0)|: what there was to predict."""
    simulated: Series
    """Singular values of W_2 of the shape SHOWN."""
    predicted: Series
    """The same from the family, the rho recursion and the decay."""


def data(spec: Spec) -> Data:
    """Predict and simulate each shape."""
    shown: list[Series] = []
    sizes, through, deviation, moved = {}, {}, {}, {}
    for shape in SHAPES:
        start, target = _problem(spec, shape)
        family = invariant_subspaces(start, target)
        sizes[shape] = np.array([basis.shape[1] for basis in family])
        through[shape] = passing(start, family)[0][0].shape[1]
        step = gradient_descent(Factorization(target), spec.lr, spec.decay)
        run = list(rollout(step, start, spec.steps))
        theory = list(islice(predicted_run(start, target, spec.lr, spec.decay), spec.steps + 1))
        deviation[shape] = np.array([_apart(*pair) for pair in zip(run, theory, strict=True)])
        moved[shape] = _apart(run[-1], start)
        if shape == SHOWN:
            shown = [np.array([singular_values(weights[1]) for weights in layers]) for layers in (run, theory)]
    return Data(spec, sizes, through, deviation, moved, *shown)


def _problem(spec: Spec, shape: str) -> tuple[Weights, np.ndarray]:
    rng = np.random.default_rng([spec.seed, SHAPES.index(shape)])
    dims = spec.dims(shape)
    start = orthogonal(dims, (1.0, 0.8, 0.6), rng)
    if shape == "Gaussian":
        start = tuple(0.5 * rng.standard_normal((rows, cols)) / np.sqrt(cols) for cols, rows in pairwise(dims))
    return start, haar(dims[-1], RANK, rng) * np.linspace(3, 2, RANK) @ haar(dims[0], RANK, rng).T


def _apart(weights: Layers, others: Layers) -> float:
    return float(max(np.abs(a - b).max() for a, b in zip(weights, others, strict=True)))


def check(data: Data) -> list[Claim]:
    """Dimensions are whole numbers; theory and simulation agree to 1e-12 (rounding, 1e-15 to 1e-14 here)."""
    r, d = RANK, data.spec.width
    expected = {
        "square": (2 * r, 2 * r, 2 * r, 2 * r),
        "narrow output": (3 * r, 3 * r, 3 * r, 2 * r),
        "d_L = r": (2 * r, 2 * r, 2 * r, r),
        "narrow input": (2 * r, 3 * r, 3 * r, 3 * r),
        "bottleneck": (3 * r, 2 * r, 2 * r, 3 * r),
        "widening": (2 * r, 3 * r, 4 * r, 4 * r),
        "both ends narrow": (d // 3, 2 * d // 3, 2 * d // 3, d // 3),
        "Gaussian": (d, d, d, d),
    }
    wrong = sum(int((data.sizes[shape] != np.array(sizes)).sum()) for shape, sizes in expected.items())
    return [
        Claim("dimensions of the families that differ from the table", wrong, at_most=0, at_least=0),
        Claim(
            "max |W_l simulated - predicted|, all shapes, layers and steps",
            max(curve.max() for curve in data.deviation.values()),
            at_most=1e-12,
        ),
        Claim("least movement of the weights, over all shapes", min(data.moved.values()), at_least=0.05),
        Claim("max deviation of the singular values", np.abs(data.simulated - data.predicted).max(), at_most=1e-12),
        Claim(
            "idle directions that pass, narrow output",
            data.passing[SHOWN],
            at_least=d // 3 - 2 * r,
            at_most=d // 3 - 2 * r,
        ),
    ]


def draw(data: Data) -> Figure:
    """Dimensions by layer, deviations by shape, and one spectrum with simulation as points and theory as lines."""
    figure, axes = style.panels(2, 2, height=2.3)
    colours = (style.BLACK, style.BLUE, style.SKY, style.RED, style.GREEN, style.PURPLE, style.ORANGE, style.YELLOW)
    for shape, colour, mark in zip(SHAPES, colours, "osv^DPXh", strict=True):
        axes[0].plot(data.sizes[shape], f"-{mark}", color=colour, ms=4, lw=1, label=f"{_name(shape)}")
        axes[2].semilogy(data.deviation[shape] + 1e-18, "-", color=colour, lw=1)
    _draw_shares(axes[1], data)
    axes[2].axhline(1e-12, color=style.BLACK, ls=":", lw=0.8, label="claimed bound")
    _draw_spectrum(axes[3], data)
    axes[0].set(xlabel="layer $l$", ylabel=r"$k_l = \dim S_l$", xticks=range(4), yscale="log")
    axes[0].set_ylim(3, 30 * data.spec.width)
    axes[0].legend(ncols=2, loc="upper left")
    axes[2].set(xlabel="step $t$", ylabel=r"$\max_{l,i,j}\,|\Delta (W_l)_{ij}|$", ylim=(1e-17, 1e-10))
    axes[2].legend(loc="upper right")
    style.title(
        axes,
        "dimensions of the family",
        "what trains, passes, or only decays",
        "simulation minus theory, colours as in (a)",
        f"singular values of $W_2$, {SHOWN}",
    )
    return figure


def _name(shape: str) -> str:
    return "$d_L = r$" if shape == "d_L = r" else shape


def _draw_shares(axis: Axes, data: Data) -> None:
    """Directions of R^{d_2}: the family, those that pass, and dead ends."""
    places = np.arange(len(SHAPES))
    trained = np.array([data.sizes[shape][2] for shape in SHAPES])
    through = np.array([data.passing[shape] for shape in SHAPES])
    whole = np.array([data.spec.dims(shape)[2] for shape in SHAPES])
    axis.bar(places, trained, color=style.RED, label="in the family")
    axis.bar(places, through, bottom=trained, color=style.BLUE, label="pass")
    axis.bar(places, whole - trained - through, bottom=trained + through, color=style.YELLOW, label="dead ends")
    axis.plot(places, whole, "_", color=style.BLACK, ms=12, label="$d_2$")
    axis.set(xlabel="shape", ylabel="directions at layer 2", ylim=(0, 1.45 * data.spec.width))
    axis.set_xticks(places, [_name(shape) for shape in SHAPES], rotation=30, ha="right", fontsize=6)
    axis.legend(ncols=2, loc="upper left")


def _draw_spectrum(axis: Axes, data: Data) -> None:
    steps = np.arange(len(data.simulated))
    every = max(1, len(steps) // 30)
    axis.plot(steps[::every], data.simulated[::every], "o", color=style.BLUE, alpha=0.5, mew=0)
    axis.plot(steps, data.predicted, "-", color=style.BLACK, lw=0.7)
    axis.plot([], [], "o", color=style.BLUE, label="simulated")
    axis.plot([], [], "-", color=style.BLACK, lw=0.7, label="theory")
    axis.set(xlabel="step $t$", ylabel=r"$\sigma_i(W_2(t))$")
    axis.legend()
