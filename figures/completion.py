"""Matrix completion: compressed learns when the original does if its outer factors train a little; frozen, it stalls.

After Yaras et al. 2024 (arXiv 2406.04112), deep matrix completion with gamma = 0.01 and gamma = 0; gamma is the rate
of the outer factors over that of the cores. --full is their d = 1000, r = 5, 20 % observed, eps = 1e-3 and step 5e3 on
the mean over all d^2 entries, that is eta = 5e3 / d^2 = 5e-3 on ours. It ends at a mean of 1e-13 (theirs: 1e-9 for the
original, 1e-13 for gamma = 0.01), and at 32,000 steps, over 1.5 times what the original takes, where theirs took up to
170,000: gamma = 0 stalls. Where it does, theory knows (figures/refresh.py): at the part of the target that the first
subspaces miss, 0.235 of |Phi|_F at their size, where their plot stalls at 0.25.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.networks import SQUARE, Arrays, Network, descend, loss_of, start, target, train
from figures.refresh import seen
from sims.dynamics import Weights, product
from sims.sweep import Sweep, in_process
from theory.partly_seen import missed

ORIGINAL = "original"


@dataclass(frozen=True)
class Spec:
    """A target, the share of it that is observed, and the rates of the outer factors."""

    network: Network = Network(
        width=200, spectrum=(30.0, 27.0, 24.0, 21.0, 18.0), hidden=200, lr=1e-2, steps=4000, tolerance=1e-7
    )
    """The original; the compressed ones are of the target's rank."""
    gammas: tuple[float, ...] = (0.1, 0.01, 0.0)
    """Learning rate of the outer factors over that of the cores."""

    def __post_init__(self) -> None:
        if not self.gammas or min(self.gammas) < 0:
            raise ValueError(f"gammas = {self.gammas}: give one or more ratios >= 0")
        if self.network.kind != "completion" or self.network.form != "original":
            raise ValueError(
                f"{self.network.kind} by {self.network.form}: take the original network of a completion problem"
            )

    def quick(self) -> "Spec":
        """The same at width 100, where the singular values that give the same entries are smaller."""
        spectrum = (20.0, 18.0, 16.0, 14.0, 12.0)
        return Spec(replace(self.network, width=100, hidden=100, spectrum=spectrum, density=0.4, steps=6000))

    def full(self) -> "Spec":
        """The paper's size; an hour and a quarter of CPU time, nearly all of it the original's 19,200 steps."""
        network = Network(width=1000, hidden=1000, density=0.2, scale=1e-3, lr=5e-3, steps=32_000, every=100)
        return Spec(replace(network, tolerance=1e-13 * 1000**2 / 2), gammas=(0.1, 0.01, 0.0))


@dataclass(frozen=True, eq=False)
class Data:
    """Runs by name: `steps`, `error` = |E - Phi|_F / |Phi|_F and `seconds`; a run ends below the tolerance."""

    spec: Spec
    runs: dict[str, Arrays]
    movement: Float64[np.ndarray, "times 2"]
    """|W_1(t) - W_1(0)|_F of the original, inside the subspaces of the compressed network and outside."""


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Run the original and one compressed network for each gamma on the same entries."""
    (original,) = sweep(watched, [spec.network])
    small = replace(spec.network, form="compressed", hidden=spec.network.rank, outer=0.0)
    results = [original, *sweep(train, [replace(small, outer=gamma) for gamma in spec.gammas])]
    names = [ORIGINAL, *(rf"compressed, $\gamma={gamma:g}$" for gamma in spec.gammas)]
    size = np.linalg.norm(target(spec.network))
    runs = {
        name: {"steps": r["steps"], "error": np.sqrt(r["values"][:, SQUARE]) / size, "seconds": r["seconds"]}
        for name, r in zip(names, results, strict=True)
    }
    return Data(spec, runs, original["movement"])


def watched(network: Network) -> Arrays:
    """What `train` gives of the original network, and the movement of W_1 inside the first subspaces and outside."""
    goal = target(network)
    loss, _ = loss_of(network, goal)
    weights, _ = start(network, loss)
    right = start(replace(network, form="compressed", hidden=network.rank, outer=0.0), loss)[0][0].T
    left = np.linalg.qr(weights[0] @ right)[0]  # S_1 = W_1(0) S_0

    def measure(layers: Weights) -> tuple[float, ...]:
        end, moved = product(layers), layers[0] - weights[0]
        inside = left @ (left.T @ moved @ right) @ right.T
        parts = (float(np.linalg.norm(part)) for part in (inside, moved - inside))
        return (loss.value(end), float(((end - goal) ** 2).sum()), *parts)

    run = descend(network, loss, weights, measure, network.steps)
    return {"steps": run.steps, "values": run.values[:, :2], "seconds": run.seconds, "movement": run.values[:, 2:]}


def check(data: Data) -> list[Claim]:
    """gamma > 0: half error when the original has it, a small error in the end. gamma = 0: a plateau far above."""
    inside, outside = data.movement[-1]
    leak = outside / np.hypot(inside, outside)
    original = data.runs[ORIGINAL]
    claims = [
        Claim("original: final relative error", original["error"][-1], at_most=1e-4),
        Claim("original: |movement of W_1 outside the subspaces| / |movement|", leak, at_least=0.1, at_most=0.7),
    ]
    for gamma, run in zip(data.spec.gammas, list(data.runs.values())[1:], strict=True):
        last, middle = run["error"][-1], run["error"][len(run["error"]) * 3 // 4]
        if gamma:
            half, small = (_first_below(run, e) / max(_first_below(original, e), 1) for e in (0.5**0.5, 1e-3))
            claims += [
                Claim(f"gamma = {gamma:g}: final relative error", last, at_most=1e-3),
                Claim(f"gamma = {gamma:g}: steps to half error / original's", half, at_least=0.9, at_most=1.1),
                Claim(f"gamma = {gamma:g}: steps to 1e-3 / original's", small, at_least=0.97, at_most=3),
            ]
        else:
            miss = last / missed(**seen(data.spec.network))
            claims += [
                Claim("gamma = 0: final relative error", last, at_least=0.05, at_most=1),
                Claim("gamma = 0: final error / what theory says it misses", miss, at_least=0.9, at_most=1.3),
                Claim("gamma = 0: final error / that at three quarters", last / max(middle, 1e-300), at_least=0.99),
            ]
    return claims


def _first_below(run: Arrays, error: float) -> float:
    """The first measured step with |E - Phi|_F at most so many times |Phi|_F; infinite if there is none."""
    below = run["error"] <= error
    return float(run["steps"][below][0]) if below.any() else np.inf


def draw(data: Data) -> Figure:
    """Error against steps and against time, and the reason for the stall."""
    figure, axes = style.panels(1, 3, height=2.4)
    colours = (style.BLUE, style.GREEN, style.ORANGE, style.RED, style.PURPLE, style.SKY)
    for (name, run), colour in zip(data.runs.items(), colours, strict=False):
        line = "o-" if name == ORIGINAL else "-"
        axes[0].semilogy(run["steps"], run["error"], line, color=colour, label=name, markevery=4)
        axes[1].loglog(run["seconds"][1:], run["error"][1:], line, color=colour, label=name, markevery=4)
    axes[0].axhline(missed(**seen(data.spec.network)), color=style.BLACK, ls="--", lw=0.8, label="missed, theory")
    axes[0].set(xlabel="step $t$", ylabel=r"$\|E-\Phi\|_F\,/\,\|\Phi\|_F$")
    axes[1].set(xlabel="CPU time [s]")
    steps = data.runs[ORIGINAL]["steps"]
    for column, (name, line) in enumerate((("inside the subspaces", "-"), ("outside", "--"))):
        axes[2].plot(steps, data.movement[:, column], line, color=style.BLUE, label=name)
    axes[2].set(xlabel="step $t$", ylabel=r"$\|W_1(t) - W_1(0)\|_F$, original")
    axes[2].legend(loc="upper left")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(data.runs) + 1)
    style.title(axes, "error", "error against CPU time", r"why $\gamma = 0$ stalls")
    return figure
