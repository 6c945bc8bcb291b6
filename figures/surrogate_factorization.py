"""A narrow network that starts on the target's singular vectors learns before the original does and ends below it.

After Kwon et al. 2023 (arXiv 2311.05061), deep matrix factorization: d = 100, r = 10, L = 3, eps = 1e-2, a truncated
Gaussian target, rank 2r, step 1 on the mean over the d^2 entries, that is eta = 1 / d^2 = 1e-4 on ours; 1000 blocks of
100 steps. They print 1/2 the mean square: .158 at the start, half of it after 650 blocks (original) and 556
(compressed), 4.19e-15 and 5.0e-16 at the end.

The original runs in the lossless simulator, which is checked against the plain network at the start and at half error;
times of the plain original are those of these checked steps. alpha is the rate of the outer factors over that of the
inner one; the curves for alpha other than 1 are the scalar recursion, which the run for alpha = 1 verifies.
"""

from dataclasses import dataclass, replace
from time import process_time

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import networks, style
from figures.claims import Claim
from figures.networks import Network
from sims.dynamics import Weights, gradient_descent, product, rollout
from sims.losses import Factorization
from sims.reduced import reduce_start, simulate
from sims.run import observe
from theory.problem import Problem
from theory.spectral import error, floors, modes, product_modes

Series = Float64[np.ndarray, "times values"]


@dataclass(frozen=True)
class Spec:
    """A compressed network, what it is compared with, and how much of the simulator is checked."""

    network: Network = Network(
        kind="factorization", rank=10, form="spectral", hidden=20, lr=1e-4, steps=100_000, every=100
    )
    """The compressed network; the original is as wide as the target."""
    alphas: tuple[float, ...] = (0.3, 2.0)
    """Other rates of the outer factors over that of the inner one: first one below 1, then those above."""
    checked: int = 600
    """Steps of the plain original that the simulator is checked against, twice; a multiple of `network.every`."""

    def __post_init__(self) -> None:
        net = self.network
        if net.kind != "factorization" or net.form != "spectral" or net.outer != 1.0:
            raise ValueError(
                f"network = {net.kind}, {net.form}, outer = {net.outer}: take factorization, spectral, outer = 1"
            )
        if not self.alphas or not 0 < self.alphas[0] < 1 or min(self.alphas[1:], default=1) < 1:
            raise ValueError(f"alphas = {self.alphas}: give first one below 1, where the claim fails, then others >= 1")
        if self.checked < net.every or self.checked % net.every:
            raise ValueError(f"checked = {self.checked}: take a multiple of network.every = {net.every}")

    def quick(self) -> "Spec":
        """The same at width 60, from a larger start."""
        network = replace(self.network, width=60, rank=6, hidden=12, scale=0.05, lr=1e-3, steps=4000, every=10)
        return replace(self, network=network, checked=100)

    def full(self) -> "Spec":
        """The default is the paper's size; more of the simulator is checked."""
        return replace(self, checked=20_000)


@dataclass(frozen=True, eq=False)
class Data:
    """What was measured at `steps`; E of the original, E_C of the compressed network."""

    spec: Spec
    steps: Float64[np.ndarray, " times"]
    error: Series
    """|E - Phi|_F and |E_C - Phi|_F, simulated."""
    predicted: Series
    """|E_C - Phi|_F by the recursion, for alpha = 1 and then for each of `alphas`."""
    spectrum: Float64[np.ndarray, "times two rank"]
    """The r largest singular values of E, and u_i^T E_C v_i, simulated."""
    predicted_spectrum: Series
    """a_i^2 b_i^(L-2), all rh of them."""
    deviation: Float64[np.ndarray, " times"]
    """|E_C simulated - E_C predicted|_F / |Phi|_F."""
    simulator: Float64[np.ndarray, " times"]
    """|E plain - E simulator|_F / |Phi|_F, at the start and then around half error."""
    floors: Float64[np.ndarray, " two"]
    """Where |E - Phi|_F and |E_C - Phi|_F are to end."""
    costs: dict[str, float]
    """CPU seconds of a step."""


def data(spec: Spec) -> Data:
    """Run the original in the simulator and the compressed network in full, and predict the latter."""
    net = spec.network
    goal = networks.target(net)
    problem = Problem(net.width, _spectrum(goal, net.rank), net.depth, net.scale, net.lr)
    original, original_spectrum, simulator, costs = _original(spec, goal)
    found, costs["compressed, plain"] = _compressed(net, goal)
    begun = process_time()
    scalars = modes(problem, net.hidden, net.steps, net.every)
    costs["compressed, recursion"] = (process_time() - begun) / net.steps
    foreseen = product_modes(problem, scalars)
    others = [modes(problem, net.hidden, net.steps, net.every, outer=alpha) for alpha in spec.alphas]
    size, diagonal = np.linalg.norm(goal), found[:, 2:]
    return Data(
        spec,
        np.arange(0, net.steps + 1, net.every).astype(float),
        error=np.stack([original, found[:, 0]], axis=1),
        predicted=np.stack([error(problem, each) for each in (scalars, *others)], axis=1),
        spectrum=np.stack([original_spectrum, diagonal[:, : net.rank]], axis=1),
        predicted_spectrum=foreseen,
        deviation=np.hypot(found[:, 1], np.linalg.norm(diagonal - foreseen, axis=1)) / size,
        simulator=simulator / size,
        floors=np.array(floors(problem, net.hidden)),
        costs=costs,
    )


def _spectrum(goal: Float64[np.ndarray, "d d"], rank: int) -> tuple[float, ...]:
    return tuple(float(sigma) for sigma in np.linalg.svd(goal, compute_uv=False)[:rank])


def _original(
    spec: Spec, goal: Float64[np.ndarray, "d d"]
) -> tuple[Float64[np.ndarray, " times"], Series, Float64[np.ndarray, " checked"], dict[str, float]]:
    """|E - Phi|_F and singular values by the simulator, how far the plain network is from it, and what both cost."""
    net = replace(spec.network, form="original", hidden=spec.network.width)
    loss = Factorization(goal)
    start, _ = networks.start(net, loss)
    begun = process_time()
    reduced, spaces = reduce_start(start, goal, net.rank)
    run = simulate(reduced, net.lr, net.steps, net.every)
    costs = {"original, simulator": (process_time() - begun) / net.steps}
    losses = run.losses()
    half, blocks = int(np.argmax(losses < losses[0] / 2)), spec.checked // net.every
    deviations, spent, step = [], 0.0, gradient_descent(loss, net.lr)
    for first in (0, max(half - blocks // 2, 0)):
        weights = run.weights(first, start, spaces)
        for block in range(first + 1, min(first + blocks, len(losses) - 1) + 1):
            begun = process_time()
            *_, weights = rollout(step, weights, net.every)
            spent += process_time() - begun
            deviations.append(np.linalg.norm(product(weights) - product(run.weights(block, start, spaces))))
    costs["original, plain"] = spent / (len(deviations) * net.every)
    return np.sqrt(2 * losses), run.singular_values()[:, : net.rank], np.array(deviations), costs


def _compressed(net: Network, goal: Float64[np.ndarray, "d d"]) -> tuple[Series, float]:
    """|E_C - Phi|_F, |E_C - U diag(.) V^T|_F and the diagonal U^T E_C V, simulated; CPU time of a step."""
    loss = Factorization(goal)
    start, _ = networks.start(net, loss)
    left, right = start[-1] / net.scale, start[0] / net.scale

    def measure(weights: Weights) -> tuple[float, ...]:
        end = product(weights)
        diagonal = np.einsum("di,di->i", left, end @ right.T)
        outside = np.linalg.norm(end - left * diagonal @ right)
        return (float(np.linalg.norm(end - goal)), float(outside), *diagonal)

    run = observe(gradient_descent(loss, net.lr), start, net.steps, net.every, measure, "compressed")
    return run.values, run.seconds[-1] / net.steps


def check(data: Data) -> list[Claim]:
    """The theorem at every measured time and its failure for a small alpha; recursion and floors against simulation."""
    net = data.spec.network
    mean = 1 / (2 * net.width**2)
    half_mean, empty = data.error**2 * mean, data.floors[1] ** 2 * mean
    small = net.scale ** (2 * net.depth) * mean  # that of one direction left at eps^L
    idle, full = (net.width - 2 * net.rank) * small, (net.width - net.rank) * small
    first, *others = data.predicted.T[1:] / data.error[:, 0]
    narrow, rest = 2 * net.width * net.hidden + (net.depth - 2) * net.hidden**2, data.error[-1, 0] / data.floors[0]
    halves = np.argmax(half_mean < half_mean[0] / 2, axis=0)
    late, ratio = float(halves[0]), halves[1] / max(halves[0], 1)  # 556 / 650 in the paper; .82 to .87 over our seeds
    return [
        Claim("initial 1/2 mean square", half_mean[0, 1], at_least=0.14, at_most=0.18),
        Claim("blocks to half of it, original", late, at_least=520 if net.width >= 100 else 30, at_most=780),
        Claim("blocks to half of it, compressed / original", ratio, at_least=0.75, at_most=0.92),
        Claim("max error compressed / error original", (data.error[:, 1] / data.error[:, 0]).max(), at_most=1),
        Claim("the same for the larger alpha", np.max(others or first * 0), at_most=1),
        Claim(f"the same for alpha = {data.spec.alphas[0]:g}: it fails", first.max(), at_least=1.5, at_most=1e9),
        # sqrt((rh - r) / (d - 2r + c_L r)) = .346 for rh = 2r and d = 10r
        Claim("final error, compressed / original", data.error[-1, 1] / data.error[-1, 0], at_least=0.33, at_most=0.36),
        Claim(
            "final 1/2 mean square, original",
            half_mean[-1, 0],
            at_most=full,
            at_least=idle,
        ),
        Claim("final error of the original / theory, with the active rest", rest, at_least=0.98, at_most=1.02),
        # empty modes fall by eta t eps^(2L-2), 1e-7 to 2e-4, until then
        Claim("final 1/2 mean square, compressed", half_mean[-1, 1], at_most=1.01 * empty, at_least=0.99 * empty),
        Claim("max |E_C simulated - recursion|_F / |Phi|_F", data.deviation.max(), at_most=1e-11),
        Claim("max |E simulator - plain|_F / |Phi|_F, checked steps", data.simulator.max(), at_most=1e-12),
        Claim("parameters, original / compressed", net.depth * net.width**2 / narrow, at_least=4, at_most=20),
    ]


def draw(data: Data) -> Figure:
    """Errors with their floors, how they compare, the modes, and the same errors against CPU time."""
    figure, axes = style.panels(2, 2, height=2.3)
    block, width = data.steps / data.spec.network.every, data.spec.network.width
    for column, (name, colour) in enumerate((("original", style.BLUE), ("compressed", style.ORANGE))):
        axes[0].semilogy(block, data.error[:, column] ** 2 / (2 * width**2), color=colour, label=name)
        floor = data.floors[column] ** 2 / (2 * width**2)
        axes[0].axhline(floor, color=colour, ls=":", lw=1)
    axes[0].plot([], [], ":", color=style.BLACK, lw=1, label="floor, theory")
    axes[0].set(xlabel=f"block of {data.spec.network.every} steps", ylabel="1/2 mean square error")
    axes[0].legend(loc="center left")
    _draw_ratios(axes[1], data)
    axes[2].plot(block, data.spectrum[:, 0], color=style.BLUE, lw=0.9)
    axes[2].plot(block[::20], data.spectrum[::20, 1], "o", color=style.ORANGE, ms=2.5, mew=0)
    axes[2].plot(block, data.predicted_spectrum, color=style.BLACK, lw=0.6)
    for line, colour, name in (
        ("-", style.BLUE, "original"), ("o", style.ORANGE, "compressed"), ("-", style.BLACK, "recursion")
    ):  # fmt: skip
        axes[2].plot([], [], line, color=colour, label=name)
    axes[2].set(xlabel=axes[0].get_xlabel(), ylabel=r"$\sigma_i(E)$, $u_i^\top E_C v_i$")
    axes[2].set_xlim(left=block[len(block) // 3])
    axes[2].legend(loc="center right")
    _draw_times(axes[3], data)
    style.title(axes, "error", "error over the original's", "what is learned", "error against CPU time")
    return figure


def _draw_ratios(axis: Axes, data: Data) -> None:
    block = data.steps / data.spec.network.every
    names = (1.0, *data.spec.alphas)
    for alpha, values, colour in zip(names, data.predicted.T, (style.ORANGE, style.RED, style.GREEN), strict=False):
        axis.semilogy(block, values / data.error[:, 0], color=colour, label=rf"$\alpha = {alpha:g}$")
    axis.axhline(1, color=style.BLACK, lw=0.8, ls="--")
    axis.set(xlabel=f"block of {data.spec.network.every} steps")
    axis.set_ylabel(r"$\|E_C-\Phi\|_F\,/\,\|E-\Phi\|_F$")
    axis.legend(loc="lower left")


def _draw_times(axis: Axes, data: Data) -> None:
    lines = {
        "original, plain": (0, style.BLUE, "-"),
        "original, simulator": (0, style.SKY, "--"),
        "compressed, plain": (1, style.ORANGE, "-"),
        "compressed, recursion": (1, style.RED, "--"),
    }
    for name, (column, colour, line) in lines.items():
        seconds = data.steps[1:] * data.costs[name]
        axis.loglog(seconds, data.error[1:, column], line, color=colour, label=name)
    axis.set(xlabel="CPU time [s]: steps times the cost of one", ylabel=r"$\|E-\Phi\|_F$")
    axis.legend(loc="lower left", fontsize=6)
