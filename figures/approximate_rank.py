"""What a reduced network misses when the target has a tail: little until the tail escapes, and a bound knows how much.

Ours, after the incremental learning in Kwon et al. 2023 (arXiv 2311.05061): deep matrix factorization of targets of
full rank, with singular values 10, 5, 2.5, ... or with five large ones plus Gaussian noise, two and three layers from
eps^L = 1e-4, so that both start with the same E in norm. E_r is the exact network for the leading r components
(theory.approximate), E the full simulation.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from sims.dynamics import Weights, gradient_descent, product, rollout
from sims.losses import Factorization
from sims.start import haar, orthogonal
from theory.approximate import certificate, choose_rank, escape_time, linear_response, truncated_run

DEPTHS = (2, 3)
COLOURS = (style.RED, style.BLUE)
LEADING = (10.0, 9.0, 8.0, 7.0, 6.0)
"""Singular values of the noisy targets."""
LEARNED = 3
"""The geometric runs last 1.5 times this component's escape time."""
Vector = Float64[np.ndarray, " _"]


@dataclass(frozen=True)
class Spec:
    """Sizes, and how large a tail and how small a rank to try."""

    width: int = 60
    """d."""
    floor: float = 1e-4
    """eps^L, for both depths."""
    stability: float = 0.3
    """eta L sigma_1^(2 - 2/L); gradient descent diverges at 2."""
    ranks: tuple[int, ...] = (2, 3, 4, 6, 12)
    """r of the reduced networks of the geometric target; 2 is too small."""
    tails: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    """Spectral norm of the noise over sigma_1."""
    seed: int = 0

    def __post_init__(self) -> None:
        needed = {LEARNED - 1, LEARNED, LEARNED + 1}
        if 4 * max(*self.ranks, len(LEADING)) > self.width or not needed <= set(self.ranks):
            raise ValueError(
                f"ranks = {self.ranks} with width = {self.width}: take {sorted(needed)} and more, up to a quarter "
                f"of the width, and a width of at least {4 * len(LEADING)}"
            )
        if not self.tails or not 0 < min(self.tails) <= max(self.tails) <= 0.2:
            raise ValueError(f"tails = {self.tails}: give shares of sigma_1 in (0, 0.2], so that five components lead")
        if not 0 < self.stability < 2 or not 0 < self.floor < 1:
            raise ValueError(f"{self}: take 0 < stability < 2 and 0 < floor < 1")

    def quick(self) -> "Spec":
        """Half the width, from a larger scale, and two tails."""
        return replace(self, width=24, floor=5e-4, stability=0.5, ranks=(2, 3, 4, 6), tails=(1e-3, 1e-1))

    def full(self) -> "Spec":
        """Width 200, from smaller scales."""
        return replace(self, width=200, floor=1e-5, ranks=(2, 3, 4, 6, 12, 20))

    def scale(self, depth: int) -> float:
        """eps."""
        return float(self.floor ** (1 / depth))

    def lr(self, depth: int) -> float:
        """eta."""
        return self.stability / (depth * 10 ** (2 - 2 / depth))


@dataclass(frozen=True, eq=False)
class Misses:
    """One depth, target and rank; entries are t = 0, ..., steps."""

    rank: int
    next_escape: float
    """T_{r+1}."""
    truth: Vector
    """|E - E_r|_F, simulated."""
    bound: Vector
    """The certificate."""
    linear: Vector
    """The linear response."""


@dataclass(frozen=True, eq=False)
class Data:
    """Lists have an entry for each depth."""

    spec: Spec
    escaped: list[Vector]
    """The first step at which u_i^T E v_i is at least half of sigma_i, for the learned components."""
    predicted: list[Vector]
    """T_i."""
    ranks: list[list[Misses]]
    """Geometric target, one for each rank."""
    chosen: list[int]
    """What `choose_rank` takes for it."""
    tails: list[list[Misses]]
    """Noisy targets, one for each tail."""


def data(spec: Spec) -> Data:
    """Simulate each target once for each depth, with all its reduced networks alongside."""
    geometric = _geometric(spec)
    escaped, predicted, ranks, tails, chosen = [], [], [], [], []
    for depth in DEPTHS:
        scale, lr = spec.scale(depth), spec.lr(depth)
        times = escape_time(np.array([10.0, 5.0, 2.5]), scale, lr, depth)
        steps = int(1.5 * times[-1])
        full = _simulated(spec, depth, geometric, steps)
        escaped.append(_half_times(full, geometric))
        predicted.append(times)
        ranks.append([_misses(spec, depth, geometric, rank, full) for rank in spec.ranks])
        chosen.append(choose_rank(geometric, steps, eps=scale, lr=lr, depth=depth))
        steps = int(2 * escape_time(LEADING[-1], scale, lr, depth))
        noisy = [_noisy(spec, tail) for tail in spec.tails]
        tails.append([_misses(spec, depth, phi, len(LEADING), _simulated(spec, depth, phi, steps)) for phi in noisy])
    return Data(spec, escaped, predicted, ranks, chosen, tails)


def _geometric(spec: Spec) -> np.ndarray:
    rng = np.random.default_rng([spec.seed, 0])
    left, right = haar(spec.width, spec.width, rng), haar(spec.width, spec.width, rng)
    return left * 10 * 0.5 ** np.arange(spec.width) @ right.T


def _noisy(spec: Spec, tail: float) -> np.ndarray:
    rng = np.random.default_rng([spec.seed, 1])
    left, right = haar(spec.width, len(LEADING), rng), haar(spec.width, len(LEADING), rng)
    noise = rng.standard_normal((spec.width, spec.width))
    return left * np.array(LEADING) @ right.T + tail * LEADING[0] * noise / np.linalg.norm(noise, 2)


def _start(spec: Spec, depth: int) -> Weights:
    rng = np.random.default_rng([spec.seed, 2, depth])
    return orthogonal((spec.width,) * (depth + 1), (spec.scale(depth),) * depth, rng)


def _simulated(spec: Spec, depth: int, target: np.ndarray, steps: int) -> list[np.ndarray]:
    """E(0), ..., E(steps)."""
    step = gradient_descent(Factorization(target), spec.lr(depth))
    return [product(weights) for weights in rollout(step, _start(spec, depth), steps)]


def _half_times(full: list[np.ndarray], target: np.ndarray) -> Vector:
    """In steps; infinite if not reached."""
    left, sigma, right = np.linalg.svd(target)
    components = np.array([np.diagonal(left.T[:LEARNED] @ end @ right[:LEARNED].T) for end in full])
    reached = components >= sigma[:LEARNED] / 2
    return np.where(reached.any(axis=0), reached.argmax(axis=0), np.inf)


def _misses(spec: Spec, depth: int, target: np.ndarray, rank: int, full: list[np.ndarray]) -> Misses:
    start, lr, steps = _start(spec, depth), spec.lr(depth), len(full) - 1
    sigma = np.linalg.svd(target, compute_uv=False)
    pairs = zip(full, truncated_run(start, target, rank, lr), strict=False)
    return Misses(
        rank,
        float(escape_time(sigma[rank], spec.scale(depth), lr, depth)),
        truth=np.array([np.linalg.norm(end - reduced) for end, reduced in pairs]),
        bound=certificate(start, target, rank, lr, steps),
        linear=linear_response(float(np.linalg.norm(sigma[rank:])), spec.scale(depth), lr, depth, steps),
    )


def check(data: Data) -> list[Claim]:
    """The bound holds and is not vacuous, a rank that is too small is flagged, and two layers forgive less than three.

    Escape times are those of an aligned start, b_l = eps; orthogonal layers are not aligned, which costs 5 to 35 %.
    Rounding is far below all of this. The growth of a tail that is 1 in the linear response is (1 - x)^-3 for L = 3 and
    (sigma / eps^2)^x for L = 2 at the share x of its escape time, 64 and 180 at x = 3/4 if it were aligned.
    """
    misses = [miss for group in (*data.ranks, *data.tails) for miss in group]
    two, three = (next(m for m in ranks if m.rank == LEARNED) for ranks in data.ranks)
    small = [next(m for m in ranks if m.rank == LEARNED - 1) for ranks in data.ranks]
    chosen = [next(m for m in group if m.rank >= r) for group, r in zip(data.ranks, data.chosen, strict=True)]
    late = np.concatenate([found / times for found, times in zip(data.escaped, data.predicted, strict=True)])
    early = [tails[0].truth[-1] / tails[0].linear[-1] for tails in data.tails]
    missed = 10 * 0.5 ** (LEARNED - 1)
    return [
        Claim("earliest half time of a component / T_i", late.min(), at_least=0.9),
        Claim("latest half time of a component / T_i", late.max(), at_most=1.5),
        Claim("largest |E - E_r| / certificate", max((m.truth / m.bound).max() for m in misses), at_most=1),
        Claim(
            "median of |E - E_r| / certificate at the last step",
            float(np.median([m.truth[-1] / m.bound[-1] for m in misses])),
            at_least=0.05,
        ),
        Claim("|E - E_r| / linear response, smallest tail, least", min(early), at_least=0.7),
        Claim("|E - E_r| / linear response, smallest tail, most", max(early), at_most=1.3),
        Claim("rank too small: |E - E_r| / sigma_3, least", min(m.truth[-1] for m in small) / missed, at_least=0.7),
        Claim("rank too small: certificate / sigma_3, least", min(m.bound[-1] for m in small) / missed, at_least=1),
        Claim("rank chosen: certificate / sigma_1, most", max(m.bound[-1] for m in chosen) / 10, at_most=0.1),
        Claim(
            "growth of the missed component beyond the linear response, two layers over three",
            (two.truth[-1] / two.linear[-1]) / (three.truth[-1] / three.linear[-1]),
            at_least=1.2,
        ),
    ]


def draw(data: Data) -> Figure:
    """Simulation as points, theory as lines, two layers red and three blue."""
    figure, axes = style.panels(2, 2, height=2.3)
    for place, (depth, colour) in enumerate(zip(DEPTHS, COLOURS, strict=True)):
        axes[0].loglog(
            data.predicted[place], data.escaped[place], "o", color=colour, ms=4, label=f"$L={depth}$, simulated"
        )
        miss = data.ranks[place][data.spec.ranks.index(LEARNED)]
        _draw_time(axes[1], miss, colour)
        _draw_last(axes[2], data.spec.tails, data.tails[place], colour)
        _draw_last(axes[3], data.spec.ranks, data.ranks[place], colour)
        axes[3].plot([], [], " ", label=f"$L={depth}$: choose_rank takes {data.chosen[place]}")
    ends = [min(map(min, data.predicted)), max(map(max, data.predicted))]
    axes[0].loglog(ends, ends, "-", color=style.BLACK, lw=0.8, label="theory, $T_i$")
    axes[0].set(xlabel="predicted $T_i$ [steps]", ylabel="component at half height [steps]")
    axes[1].set(xlabel=r"step / escape time $T_{r+1}$ of what is missed", ylabel=r"$\|E - E_r\|_F$")
    axes[2].set(xscale="log", xlabel=r"tail / $\sigma_1$", ylabel=r"$\|E - E_r\|_F$, last step")
    axes[3].set(xscale="log", xlabel="rank $r$ of the reduced network", ylabel="as in (c)", xticks=data.spec.ranks)
    axes[3].set_xticklabels(map(str, data.spec.ranks))
    axes[3].minorticks_off()
    for mark, name in (("o", "simulated"), ("-", "certificate"), (":", "linear response")):
        axes[2].plot([], [], mark, color=style.BLACK, label=f"{name} (b, c, d)")
    axes[0].legend()
    axes[2].legend()
    axes[3].legend(loc="lower left", handlelength=0)
    style.title(axes, "escape of the components", f"$r = {LEARNED}$", "noisy targets, $r = 5$", "which rank suffices")
    return figure


def _draw_time(axis: Axes, miss: Misses, colour: str) -> None:
    shares = np.arange(len(miss.truth)) / miss.next_escape
    every = max(1, len(shares) // 25)
    axis.semilogy(shares[every::every], miss.truth[every::every], "o", color=colour)
    axis.semilogy(shares[1:], miss.bound[1:], "-", color=colour, lw=0.9)
    axis.semilogy(shares[1:], miss.linear[1:], ":", color=colour)


def _draw_last(axis: Axes, places: tuple[float, ...], misses: list[Misses], colour: str) -> None:
    axis.semilogy(places, [miss.truth[-1] for miss in misses], "o", color=colour, ms=4)
    axis.semilogy(places, [miss.bound[-1] for miss in misses], "-", color=colour, lw=0.9)
    axis.semilogy(places, [miss.linear[-1] for miss in misses], ":", color=colour)
