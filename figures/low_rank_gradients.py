"""Gradients turn to their slowest direction and so become low-rank, but not within published bounds for all samples.

Zhao et al. 2024 (GaLore, arXiv 2403.03507), of W <- W + eta G, G = A - mean_i B_i W C_i; sizes and spectra are ours.
Points are simulated, lines are theory. (a) Lemma 3.3: for one sample the stable rank of G falls to that of G's slowest
part within the lemma's bound, and far below. (b) For the four samples of `sims.low_rank_gradients.entangled` it is
above the lemma's bound at every step, and ours is attained. One unit of time is that in which the part in lam_2 falls
by e over that in lam_1. (c) Cor. 3.4, N' of n dimensions in the samples: gradients of samples have rank N' at most; a
constant with a part beside the samples keeps it, of rank n - N' at most; and neither has both: gradients of orthonormal
samples keep a stable rank of N' > n / 2 for ever.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from sims.dynamics import rollout
from sims.low_rank_gradients import Family, batch, descent, entangled, generic, spread_out
from sims.start import haar
from theory.low_rank_gradients import (
    course,
    kept,
    lemma_bound,
    sample_ranks,
    slowest,
    stable_rank,
    stable_rank_bound,
)

Series = Float64[np.ndarray, " times"]
UNITS, SEEN, LEAST = 7, 50, 1e-9  # of time in (a), measurements; smaller sr - limit are not drawn
DIGITS = 1e-6  # |G| over that at the start down to which (c) descends: sr still has ten digits
ONE, FOUR = "one sample", "four samples"
PACES = {ONE: 1.0, FOUR: 0.02}  # eta
CASES = ("orthonormal samples", "samples", "constant beside samples")


@dataclass(frozen=True)
class Spec:
    """Sizes and draws."""

    small: tuple[int, int] = (8, 6)
    """m and n in (a)."""
    condition: float = 30.0
    """Of B and C in (a), whose eigenvalues are spaced geometrically from 1 down; it sets the time to wait."""
    shape: tuple[int, int] = (20, 20)
    """m and n in (c)."""
    counts: int = 10
    """How many N' from 1 to min(m, n - 1)."""
    steps: int = 200
    """In (c), of eta = 1; fewer where G vanishes."""
    seed: int = 0
    """Of everything that is drawn."""

    def __post_init__(self) -> None:
        if min(*self.small, *self.shape) < 2 or self.shape[0] < 0.8 * self.shape[1] or not 1 < self.condition < np.inf:
            raise ValueError(f"{self}: take sizes >= 2, m >= 0.8 n in (c) for N' > n / 2, and a finite condition > 1")
        if self.counts < 2 or self.steps < 100:
            raise ValueError(f"counts = {self.counts}, steps = {self.steps}: take two or more, and 100 steps or more")

    def quick(self) -> "Spec":
        """Half the sizes."""
        return replace(self, small=(4, 5), shape=(10, 10), counts=5)

    def full(self) -> "Spec":
        """Larger, not square."""
        return replace(self, small=(10, 9), condition=60.0, shape=(35, 40), counts=14)


class Ranks(NamedTuple):
    """One run in (a) or (b): stable ranks, and bounds on them, less the limit."""

    times: Series
    found: Series
    exact: Series
    lemma: Series
    ours: Series
    slant: float
    limit: float


class Late(NamedTuple):
    """One N' in (c)."""

    seen: int
    ranks: tuple[float, ...]  # late sr, in the order of CASES
    limit: float  # of the last case, by theory
    most: tuple[int, int]  # N' and n - N' by theory
    rank: int  # of a late gradient of samples
    kept: float  # |G^par| / |A| of samples


@dataclass(frozen=True, eq=False)
class Data:
    """Runs by name, and N' from 1 up."""

    spec: Spec
    runs: dict[str, Ranks]
    late: tuple[Late, ...]


def data(spec: Spec) -> Data:
    """Descend from W = 0."""
    rng, (rows, cols) = np.random.default_rng(spec.seed), spec.shape
    families = {ONE: generic(spec.small, 1, spec.condition, rng), FOUR: entangled()}
    runs = {name: _ranks(family, PACES[name]) for name, family in families.items()}
    counts = np.unique(np.linspace(1, min(rows, cols - 1), spec.counts).astype(int))
    return Data(spec, runs, tuple(_late(spec, int(count), rng) for count in counts))


def _ranks(family: Family, lr: float) -> Ranks:
    """UNITS of time, in SEEN measurements."""
    first, sides = family.constant, (family.lefts, family.rights)
    slow = slowest(first, *sides)
    unit = -1 / np.log((1 - lr * slow.others[0]) / (1 - lr * slow.rate))
    every = int(np.ceil(UNITS * unit / SEEN))
    steps, limit = np.arange(0, every * SEEN + 1, every), stable_rank(slow.part)
    weights = [*rollout(descent(family, lr), 0 * first, int(steps[-1]))][::every]
    found, exact = (
        np.array([stable_rank(g) for g in gs]) for gs in (map(family, weights), course(first, *sides, lr, steps))
    )
    lemma, ours = (bound(first, *sides, lr, steps) - limit for bound in (lemma_bound, stable_rank_bound))
    return Ranks(steps / unit, found - limit, exact - limit, lemma, ours, slow.slant, limit)


def _late(spec: Spec, count: int, rng: np.random.Generator) -> Late:
    """Features with singular values 1 to 1/2, B_i of condition 3: all that moves falls by 11/12 a step or faster."""
    rows, cols = spec.shape
    features = haar(cols, count, rng) * np.geomspace(1, 0.5, count) @ haar(count, count, rng)
    lefts = np.array([spread_out(rows, 3.0, rng) for _ in range(count)])
    samples = batch(features, lefts, haar(rows, count, rng))
    beside = replace(samples, constant=rng.standard_normal((rows, cols)))
    alike = batch(haar(cols, count, rng), np.array([np.eye(rows)] * count), haar(rows, count, rng))
    ends = [_end(f, lr * count, spec.steps) for f, lr in ((alike, 0.05), (samples, 1.0), (beside, 1.0))]
    hidden = [kept(family.constant, family.lefts, family.rights) for family in (samples, beside)]
    rank = int(np.linalg.matrix_rank(ends[1], rtol=1e-8))
    share = float(np.linalg.norm(hidden[0]) / np.linalg.norm(samples.constant))
    return Late(count, tuple(map(stable_rank, ends)), stable_rank(hidden[1]), sample_ranks(features), rank, share)


def _end(family: Family, lr: float, steps: int) -> np.ndarray:
    """The last gradient with digits."""
    least = DIGITS * np.linalg.norm(family.constant)
    gradients = map(family, rollout(descent(family, lr), 0 * family.constant, steps))
    return [gradient for gradient in gradients if np.linalg.norm(gradient) >= least][-1]


def check(data: Data) -> list[Claim]:
    """The lemma's bound holds in (a) and fails in (b) by its 5.4 of t = 0 at least; ours holds, and is (b).

    Ratios to bounds are at least 1e-9 somewhere: others would be no bounds. Simulation and theory agree to rounding.
    """
    (one, four), n, late = (data.runs[name] for name in (ONE, FOUR)), data.spec.shape[1], data.late
    ranks, counts = np.array([point.ranks for point in late]).T, np.array([point.seen for point in late])
    limits, most = np.array([point.limit for point in late]), np.array([point.most for point in late])
    claims = [
        (f"{ONE}: slant of V_1", one.slant, 0.0, 1e-7),
        (f"{ONE}: max (sr - limit) / (lemma's bound - limit)", _most(one.found, one.lemma), 1e-9, 1.0),
        (f"{FOUR}: max |(sr - limit) / (our bound - limit) - 1|", np.abs(four.found / four.ours - 1).max(), 0.0, 1e-8),
        (f"{FOUR}: slant of V_1", four.slant, 0.447, 0.448),
        (f"{FOUR}: min (sr - limit) / (lemma's bound - limit)", np.min(four.found / four.lemma), 5.399, 5.401),
    ]
    for name, run, start, limit in ((ONE, one, 0.3, 1.0), (FOUR, four, 0.7, 1.25)):
        claims += [
            (f"{name}: sr of the limit", run.limit, limit - 1e-9, limit + 1e-9),
            (f"{name}: sr - limit at the start", run.found[0], start, float(n)),
            (f"{name}: sr - limit at the end", run.found[-1], -1e-9, 0.01),
            (f"{name}: max (sr - limit) / (our bound - limit)", _most(run.found, run.ours), 1e-9, 1 + 1e-9),
            (f"{name}: max |simulated - theory|", np.abs(run.found - run.exact).max(), 0.0, 1e-9),
        ]
    claims += [
        ("samples: max rank(G) - N'", max(point.rank - point.most[0] for point in late), -float(n), 0.0),
        ("samples: part in the null space of S, share of G", max(point.kept for point in late), 0.0, 1e-13),
        ("constant beside: max sr / (n - N')", np.max(ranks[2] / most[:, 1]), 0.1, 1 + 1e-9),
        ("constant beside: max |sr / limit - 1|", np.abs(ranks[2] / limits - 1).max(), 0.0, 1e-9),
        ("orthonormal: max |sr / N' - 1|", np.abs(ranks[0] / counts - 1).max(), 0.0, 1e-8),
        ("orthonormal: largest sr / (n / 2)", ranks[0].max() / (n / 2), 1.4, 2.0),
    ]
    return [Claim(text, float(value), at_least=low, at_most=high) for text, value, low, high in claims]


def _most(found: Series, bound: Series) -> float:
    """The largest ratio, of ranks that are drawn."""
    shown = ~(found <= LEAST)  # NaN is
    return float(np.max(found[shown] / bound[shown]))


def draw(data: Data) -> Figure:
    """Points are simulated, lines are theory."""
    figure, axes = style.panels(1, 3, height=2.6)
    for axis, run in zip(axes, data.runs.values(), strict=False):
        shown = run.found > LEAST
        axis.semilogy(run.times, run.lemma, "--", color=style.RED, lw=1, label="bound of lemma 3.3")
        axis.semilogy(run.times, run.ours, "-", color=style.BLACK, lw=1, zorder=3, label="our bound")
        axis.semilogy(run.times[shown], run.found[shown], "o", color=style.BLUE, label="$G_t$")
        axis.semilogy(run.times[shown], run.exact[shown], "-", color=style.BLUE, lw=0.8)
        axis.set(ylim=(LEAST, None), xlabel=r"$t\,\ln[(1 - \eta\lambda_1)\,/\,(1 - \eta\lambda_2)]$")
    axes[0].set(ylabel=r"$\mathrm{sr}(G_t) - \mathrm{sr}(G^\parallel)$")
    axes[1].legend(loc="lower left")
    _draw_late(axes[2], data)
    style.title(axes, ONE, FOUR, "corollary 3.4")
    return figure


def _draw_late(axis: Axes, data: Data) -> None:
    n, counts = data.spec.shape[1], [point.seen for point in data.late]
    ranks = np.array([point.ranks for point in data.late]).T
    for name, values, colour in zip(CASES, ranks, (style.RED, style.BLUE, style.GREEN), strict=True):
        axis.plot(counts, values, "o", color=colour, label=name)
    axis.plot(counts, [point.limit for point in data.late], "-", color=style.GREEN, lw=0.8)
    axis.plot([0, n], [0, n], "--", color=style.BLACK, lw=0.8)
    axis.plot([0, n], [n, 0], ":", color=style.BLACK, lw=1)
    axis.fill_between([0, n / 2, n], [0, n / 2, 0], color=style.SKY, alpha=0.25, lw=0, label=r"$\min(N', n - N')$")
    axis.text(0.74 * n, 0.9 * n, "$N'$", ha="right")
    axis.text(0.16 * n, 0.9 * n, "$n - N'$")
    axis.set(xlabel="$N'$", ylabel=r"late $\mathrm{sr}(G_t)$", xlim=(0, n), ylim=(0, 1.75 * n))
    axis.locator_params(nbins=5, integer=True)
    axis.legend(loc="upper left")
