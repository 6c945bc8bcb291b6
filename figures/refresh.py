"""Refreshing the subspaces closes the gap of frozen outer factors, geometrically in the number of refreshes.

Ours, on the stall of gamma = 0 in Yaras et al. 2024 (arXiv 2406.04112). Where a part of the target is seen, the first
signal is the target plus noise: P_Omega(Phi) / p has variance (1 - p) / p Phi_ij^2 an entry, sum_i y_i A_i about
|Phi|_F^2 / m. To first order it turns each singular vector of a target with equal singular values by

    sin^2 = s^2 = (r + 2) (1 - p) / (p d)  (completion; r + 2 = r - 1 + 3 for E v^4 = 3 / d^2),    r d / m  (sensing)

(times 1 - r / d: theory.partly_seen),

so that 1 - (1 - s^2)^2 of |Phi|_F^2 lies outside the subspaces and no core can learn it: the gap falls like d^(-1/2).
At the authors' d = 1000, r = 5, p = 0.2 this is 5.5 % of the initial mean square; their plot stalls at 6 %.

Refreshed while it trains (lowdim.refresh; signal E - grad / p), a network with cores 4r wide repeats what ADMiRA does
with least squares (Lee & Bresler 2009, arXiv 0905.0044): join what is kept with what the gradient adds, fit inside. It
overtakes gamma = 0.01, but outer factors that train at gamma = 0.1 do better: refresh where they have to stay frozen.
"""

from dataclasses import dataclass, replace
from time import process_time
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.networks import SQUARE, Arrays, Network, loss_of, start, target, train
from sims.sweep import Sweep, in_process
from theory.partly_seen import missed, turns

Errors = Float64[np.ndarray, "seeds times"]
FIXED, GROWING, WIDE, SENSING = "completion", "completion, cores grow", "completion, wider", "sensing"
ORIGINAL, SLOWLY, FASTER, EQUAL = "original", r"$\gamma=0.01$", r"$\gamma=0.1$", "as wide, never refreshed"


@dataclass(frozen=True)
class Spec:
    """Networks with frozen outer factors on two problems, and how often they are refreshed."""

    network: Network = Network(form="compressed", hidden=5, outer=0.0, lr=1e-2, every=50)
    """Completion. `steps` follow from the escape time; `every` is what lies between two refreshes."""
    wide: int = 200
    """The width of the same at another width."""
    sensing: Network = Network(
        "sensing", 60, 3, measurements=1200, form="compressed", hidden=3, outer=0.0, scale=3e-2, lr=1e-2, every=20
    )
    """Sensing."""
    counts: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32)
    """How often to refresh, beginning at 1.25 escape times; sensing as often as the last but one says."""
    growing: int = 6
    """How often for cores that keep all old subspaces and grow by 2r each time."""
    misses: tuple[int, ...] = (100, 200, 400)
    """Widths at which the part of the target outside the first subspaces is measured."""
    seeds: int = 3
    """Draws of target, observations and start; the last two problems have the first two of them."""

    def __post_init__(self) -> None:
        if self.counts[:2] != (0, 1) or len(self.counts) < 4 or min(self.growing, self.seeds) < 1:
            raise ValueError(
                f"counts = {self.counts}, growing = {self.growing}, seeds = {self.seeds}: take four counts or more, "
                "from 0 and 1 up, and growing and seeds >= 1"
            )

    def quick(self) -> "Spec":
        """Smaller problems, seen better."""
        network = replace(self.network, width=60, rank=2, hidden=2, density=0.4, scale=3e-2, lr=2e-2, every=30)
        sensing = replace(self.sensing, width=24, rank=1, hidden=1, measurements=220, lr=2e-2)
        return Spec(network, 100, sensing, (0, 1, 4, 8, 16), 4, misses=(60, 100), seeds=2)

    def full(self) -> "Spec":
        """Completion at the authors' d = 1000, p = 0.2, too; five CPU minutes."""
        network = replace(self.network, density=0.2, width=250, lr=5e-3)
        sensing = replace(self.sensing, width=100, rank=5, hidden=5, measurements=3000)
        return Spec(network, 1000, sensing, misses=(250, 500, 1000), seeds=4)


@dataclass(frozen=True, eq=False)
class Data:
    """Relative errors |E - Phi|_F / |Phi|_F. Completion, where nothing else is said."""

    spec: Spec
    refreshed: dict[str, Errors]
    """Error before the first refresh and after each: for completion, cores that grow, the other width, and sensing."""
    finals: Errors
    """Error at the end for each of `counts`."""
    curves: dict[str, Float64[np.ndarray, "times three"]]
    """First seed: step, error and CPU time with refreshing, for what is drawn against steps."""
    others: dict[str, Float64[np.ndarray, " seeds"]]
    """Error at the end of the networks that are never refreshed."""
    missed: Float64[np.ndarray, "problems three"]
    """s, the part of |Phi|_F outside the first subspaces, and its prediction: completion for `misses`, sensing."""


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Train all networks."""
    seeds = range(spec.network.seed, spec.network.seed + spec.seeds)
    narrow = [_scheduled(replace(spec.network, seed=seed), spec.counts[-1]) for seed in seeds]
    wide = [_scheduled(replace(n, width=spec.wide, refreshes=()), spec.counts[-1]) for n in narrow[:2]]
    sensing = [_scheduled(replace(spec.sensing, seed=n.seed), spec.counts[-2]) for n in narrow[:2]]
    groups: dict[str | int, list[Network]] = {
        **{count: [replace(n, refreshes=n.refreshes[:count]) for n in narrow] for count in spec.counts},
        ORIGINAL: [replace(n, form="original", hidden=n.width, refreshes=(), keep=0) for n in narrow],
        SLOWLY: [replace(n, outer=0.01, refreshes=()) for n in narrow],
        FASTER: [replace(n, outer=0.1, refreshes=()) for n in narrow],
        EQUAL: [replace(n, hidden=2 * n.hidden, refreshes=()) for n in narrow],
        GROWING: [replace(n, refreshes=n.refreshes[: spec.growing], keep=0) for n in narrow],
        WIDE: wide,
        SENSING: sensing,
    }
    results = iter(sweep(train, [network for networks in groups.values() for network in networks]))
    runs = {name: [(network, next(results)) for network in networks] for name, networks in groups.items()}
    cost = float(sweep(refreshing, narrow[:1])[0]["seconds"])
    return _collected(spec, runs, cost, sweep)


def _scheduled(network: Network, count: int) -> Network:
    """Refreshed `count` times at fixed width, the first time at 1.25 escape times 1 / (eta p sigma_1 eps)."""
    escape = 1 / (network.lr * network.share * np.linalg.norm(target(network), 2) * network.scale)
    first = int(np.ceil(1.25 * escape / network.every)) * network.every
    times = tuple(first + network.every * index for index in range(count))
    return replace(network, refreshes=times, keep=network.rank, steps=times[-1] + network.every)


def refreshing(network: Network) -> Arrays:
    """CPU time of one refresh, with the gradient that it needs: the least of five."""
    factors, renewed = start(network, loss_of(network, target(network))[0])
    seconds = []
    for _ in range(5):
        begun = process_time()
        renewed(factors)
        seconds.append(process_time() - begun)
    return {"seconds": np.array(min(seconds))}


def missing(network: Network) -> Arrays:
    """The part of |Phi|_F outside the first subspaces, which bounds any error between them from below: four seeds."""
    missed = []
    for seed in range(network.seed, network.seed + 4):
        network = replace(network, seed=seed)
        goal = target(network)
        right, *_, left = start(network, loss_of(network, goal)[0])[0]
        outside = goal - left @ (left.T @ goal @ right.T) @ right
        missed.append(np.linalg.norm(outside) / np.linalg.norm(goal))
    return {"missed": np.array(np.mean(missed))}


def seen(network: Network) -> dict[str, Any]:
    """The arguments of theory.partly_seen for its problem; a truncated Gaussian counts as flat."""
    shown = {"measurements": network.measurements} if network.kind == "sensing" else {"density": network.density}
    return {"spectrum": network.spectrum or (1.0,) * network.rank, "width": network.width, **shown}


def _collected(spec: Spec, runs: dict[str | int, list[tuple[Network, Arrays]]], cost: float, sweep: Sweep) -> Data:
    named = {FIXED: runs[spec.counts[-1]], **{name: runs[name] for name in (GROWING, WIDE, SENSING)}}
    shown = {name: runs[name][0] for name in (ORIGINAL, SLOWLY, FASTER)}
    shown |= {f"refreshes: {count}": runs[count][0] for count in spec.counts[:2] + spec.counts[-3::2]}
    places = [*(replace(spec.network, width=width) for width in spec.misses), spec.sensing]
    found = [float(result["missed"]) for result in sweep(missing, places)]
    rows = [(turns(**seen(n)).mean(), miss, missed(**seen(n))) for n, miss in zip(places, found, strict=True)]
    return Data(
        spec,
        refreshed={name: np.stack([_after_each(*run) for run in cells]) for name, cells in named.items()},
        finals=np.array([[_error(*run)[-1] for run in runs[count]] for count in spec.counts]).T,
        curves={name: _against_time(*run, cost) for name, run in shown.items()},
        others={name: np.array([_error(*run)[-1] for run in runs[name]]) for name in (ORIGINAL, SLOWLY, FASTER, EQUAL)},
        missed=np.array(rows),
    )


def _error(network: Network, result: Arrays) -> np.ndarray:
    return np.sqrt(result["values"][:, SQUARE]) / np.linalg.norm(target(network))


def _after_each(network: Network, result: Arrays) -> np.ndarray:
    """The error just before the first refresh, and `every` steps after each."""
    return _error(network, result)[network.refreshes[0] // network.every :][: len(network.refreshes) + 1]


def _against_time(network: Network, result: Arrays, cost: float) -> np.ndarray:
    done = (result["steps"][:, None] > np.array(network.refreshes)).sum(axis=1)
    return np.stack([result["steps"], _error(network, result), result["seconds"] + cost * done], axis=1)


def _contraction(errors: Errors) -> np.ndarray:
    """By what a refresh multiplies the error, after the first few and above 1e-4, beyond which the idle part is near.

    The mean over four refreshes, where it is largest.
    """
    later = errors[:, min(4, errors.shape[1] // 3) :]
    rates = (later[:, 4:] / later[:, :-4]) ** 0.25
    return np.max(rates, axis=1, where=later[:, :-4] > 1e-4, initial=1e-9)


def check(data: Data) -> list[Claim]:
    """Frozen networks miss what theory says; one refresh is not enough; many are, at the same width."""
    rates = {name: _contraction(data.refreshed[name]) for name in (FIXED, WIDE, SENSING)}
    never, once, often = data.finals[:, 0], data.finals[:, 1], data.finals[:, -1]
    growing = data.refreshed[GROWING][:, -1] / data.refreshed[FIXED][:, data.refreshed[GROWING].shape[1] - 1]
    deviation, floor = np.abs(data.missed[:, 1] / data.missed[:, 2] - 1).max(), never.mean() / data.missed[0, 1]
    return [
        Claim("original: final error", data.others[ORIGINAL].max(), at_most=1e-3),
        Claim("never refreshed: final error", never.min(), at_least=0.1, at_most=1),
        Claim("least part of a target outside its first subspaces", data.missed[:, 1].min(), at_least=0.1, at_most=1),
        Claim("target outside the first subspaces: relative deviation from theory", deviation, at_most=0.15),
        Claim("never refreshed: final error / target outside its subspaces", floor, at_least=0.9, at_most=1.3),
        Claim("once refreshed: final error / never refreshed", np.mean(once / never), at_least=0.2, at_most=0.95),
        *(
            Claim(f"{name}: each refresh at fixed width multiplies the error by", rate.max(), at_least=0.3, at_most=0.9)
            for name, rate in rates.items()
        ),
        Claim("the same, wider / narrower", rates[WIDE].mean() / rates[FIXED].mean(), at_least=0.5, at_most=0.95),
        Claim("often refreshed: error / as wide, never refreshed", (often / data.others[EQUAL]).max(), at_most=0.05),
        Claim("often refreshed: error / gamma = 0.01 at that step", (often / data.others[SLOWLY]).max(), at_most=0.5),
        Claim("gamma = 0.1 at that step: error / often refreshed", (data.others[FASTER] / often).max(), at_most=1.0),
        Claim("cores that grow: error / fixed width after as many refreshes", growing.max(), at_most=0.8),
    ]


def draw(data: Data) -> Figure:
    """Error against steps, refreshes and time; the part that the first subspaces miss."""
    figure, axes = style.panels(2, 2, height=2.5)
    colours = (style.BLUE, style.RED, style.ORANGE, style.BLACK, style.SKY, style.PURPLE, style.GREEN)
    for (name, curve), colour in zip(data.curves.items(), colours, strict=False):
        axes[0].semilogy(curve[:, 0], curve[:, 1], color=colour, label=name)
        axes[3].loglog(curve[1:, 2], curve[1:, 1], color=colour)
    axes[0].set(xlabel="step $t$", ylabel=r"$\|E-\Phi\|_F\,/\,\|\Phi\|_F$")
    axes[3].set(xlabel="CPU time with refreshing [s]", ylabel=axes[0].get_ylabel())
    _draw_refreshes(axes[1], data)
    axes[2].plot(*np.sort(data.missed[:, [0, 2]], axis=0).T, color=style.BLACK, lw=0.8, label=r"$\sqrt{1-(1-s^2)^2}$")
    label = "completion, $d=" + ", ".join(map(str, data.spec.misses)) + "$"
    axes[2].plot(*data.missed[:-1, :2].T, "o", color=style.BLUE, label=label)
    axes[2].plot(*data.missed[-1:, :2].T, "s", color=style.GREEN, label="sensing")
    axes[2].set(xlabel="turn of the first signal $s$", ylabel=r"$|\Phi|_F$ outside the subspaces")
    axes[2].legend(loc="upper left")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    style.title(axes, "error", "error after each refresh", "what the first subspaces miss", "error against CPU time")
    return figure


def _draw_refreshes(axis: Axes, data: Data) -> None:
    colours = (style.ORANGE, style.PURPLE, style.BLUE, style.GREEN)
    first, wide, other = (f"$d={d}$" for d in (data.spec.network.width, data.spec.wide, data.spec.sensing.width))
    labels = (first, f"{first}, cores grow", wide, f"{other}, sensing")
    for errors, colour, label in zip(data.refreshed.values(), colours, labels, strict=True):
        axis.semilogy(errors.T, color=colour, lw=0.9, label=[label] + [None] * (len(errors) - 1))
    axis.set(xlabel="refreshes")
    axis.legend(loc="lower left")
