"""One deep linear network on one low-rank problem: the cell that most figures sweep over. Not a figure itself.

The problem, drawn from `seed` alone so that networks of every form meet the same one, is a d x d target of rank r that
is seen whole (factorization), at some entries (completion) or through m Gaussian operators (sensing); the loss is
1/2 |A(E) - y|^2 throughout. Papers that average it over n numbers and step by s step by s / n here.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64

from lowdim import Narrow, compress, refresh, spectral
from sims.dynamics import Rates, Weights, discrepant, gradient_descent, product
from sims.losses import Factorization, Loss, Sensing, completion
from sims.run import Run, observe
from sims.start import haar, observed, orthogonal, sensing_operators, to_numpy, to_torch, truncated_gaussian

Matrix = Float64[np.ndarray, "rows cols"]
Arrays = dict[str, np.ndarray]
LOSS, SQUARE, HIDDEN = range(3)
"""Columns of `values`: the loss, |E - Phi|_F^2, and the mean square over the entries that were not observed."""


@dataclass(frozen=True)
class Network:
    """A problem, a network and how long it trains."""

    kind: Literal["factorization", "completion", "sensing"] = "completion"
    """What is seen of the target."""
    width: int = 100
    """d: the target is d x d."""
    rank: int = 5
    """r: the rank of the target."""
    spectrum: tuple[float, ...] = ()
    """Its singular values, with Haar singular vectors; without them, those of a truncated Gaussian matrix."""
    density: float = 0.3
    """Completion: the share p of observed entries."""
    measurements: int = 0
    """Sensing: the number m of operators, with entries N(0, 1/m)."""
    form: Literal["original", "spectral", "compressed", "narrow"] = "original"
    """original: orthogonal layers, `hidden` wide; narrow: the same, meant for a small `hidden`. spectral: Kwon's L
    factors of rank `hidden`. compressed: L + 2 factors from the original's start and first gradient, rank `hidden`."""
    hidden: int = 100
    """Hidden width, or r-hat for the two compressed forms."""
    depth: int = 3
    """L, the number of factors; without the two outer ones for `compressed`."""
    scale: float = 1e-2
    """eps of every factor (of the cores, for `compressed`)."""
    unscaled_ends: bool = False
    """spectral only: outer factors without eps, as in the authors' runs for L = 2."""
    outer: float = 1.0
    """Rate of the outer factors over that of the others: alpha for `spectral`, gamma for `compressed`."""
    lr: float = 1 / 300
    """eta on the unnormalised loss."""
    steps: int = 5000
    """At most so many steps."""
    every: int = 50
    """Measure after so many."""
    tolerance: float = 0.0
    """Stop when the loss is below."""
    triplets: int = 0
    """Also measure so many leading singular values of E and how its singular vectors align with the target's."""
    refreshes: tuple[int, ...] = ()
    """compressed with outer = 0: refresh its subspaces at these steps, multiples of `every`."""
    keep: int = 0
    """At a refresh keep so many singular directions of E in place of the old subspaces; 0 keeps all of these."""
    seed: int = 0
    """Seeds target, observations and start."""

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= self.width or (self.spectrum and len(self.spectrum) != self.rank):
            raise ValueError(
                f"rank = {self.rank}, width = {self.width}, {len(self.spectrum)} singular values: take 1 <= rank <= "
                "width, and as many singular values"
            )
        if self.kind == "sensing" and self.measurements < 1:
            raise ValueError(f"measurements = {self.measurements}: sensing needs at least one operator")
        if self.outer < 0 or self.scale <= 0 or not 0 < self.lr < math.inf or not 0 < self.density <= 1:
            raise ValueError(
                f"outer = {self.outer}, scale = {self.scale}, lr = {self.lr}, density = {self.density}: take outer >= "
                "0, scale > 0, a finite lr > 0 and a density in (0, 1]"
            )
        if self.depth < 2 or self.hidden < 1 or (self.unscaled_ends and self.form != "spectral"):
            raise ValueError(
                f"depth = {self.depth}, hidden = {self.hidden}, {self.form}: take depth >= 2 and hidden >= 1, and "
                "unscaled ends for the spectral form alone"
            )
        if self.refreshes and (self.form != "compressed" or self.outer or any(t % self.every for t in self.refreshes)):
            raise ValueError(
                f"refreshes = {self.refreshes}: only a compressed network with outer = 0 is refreshed, at multiples of "
                f"every = {self.every}"
            )
        if self.lr >= self.stable_lr:
            warnings.warn(
                f"lr = {self.lr} is not stable from about {self.stable_lr:.3g} on; take half of that", stacklevel=3
            )

    @property
    def share(self) -> float:
        """p: what A* A multiplies by on average."""
        return self.density if self.kind == "completion" else 1.0

    @property
    def stable_lr(self) -> float:
        """2 over the curvature p L sigma_1^(2 - 2/L) at the solution, for A* A = p.

        Times alpha^(2/L) for `spectral`, whose outer factors end sqrt(alpha) times as large as the others; orthonormal
        outer factors (`compressed`) add gamma sigma_1^2 each. A truncated Gaussian has sigma_1 below 2 sqrt(d).
        """
        sigma = self.spectrum[0] if self.spectrum else 2 * self.width**0.5
        power = sigma ** (2 - 2 / self.depth)
        if self.form == "compressed":
            return 2 / (self.share * (self.depth * power + 2 * self.outer * sigma**2))
        larger = self.outer ** (2 / self.depth) if self.form == "spectral" and self.outer else 1.0
        return 2 / (self.share * self.depth * larger * power)


def check_draws(network: Network, seeds: tuple[int, ...]) -> None:
    """Raise ValueError unless there are draws, of a completion problem on which a network can be 2 rank wide."""
    if not seeds:
        raise ValueError(f"seeds = {seeds}: give one or more")
    if 2 * network.rank > network.width or network.kind != "completion":
        raise ValueError(
            f"kind = {network.kind}, rank = {network.rank}, width = {network.width}: take completion, and a rank of at "
            "most half the width, since the compressed network is 2 rank wide"
        )


def target(network: Network) -> Matrix:
    """Phi."""
    rng = np.random.default_rng([network.seed, 0])
    if not network.spectrum:
        return truncated_gaussian(network.width, network.rank, rng)
    left, right = (haar(network.width, network.rank, rng) for _ in range(2))
    return left * np.array(network.spectrum) @ right.T


def loss_of(network: Network, goal: Matrix) -> tuple[Loss, Matrix]:
    """The loss, and where the target was observed (everywhere, but for completion)."""
    rng, everywhere = np.random.default_rng([network.seed, 1]), np.ones(goal.shape, dtype=bool)
    if network.kind == "factorization":
        return Factorization(goal), everywhere
    if network.kind == "sensing":
        operators = sensing_operators(network.measurements, (network.width, network.width), rng)
        return Sensing(operators, operators.reshape(len(operators), -1) @ goal.ravel()), everywhere
    known = observed((network.width, network.width), network.density, rng)
    return completion(goal, known, network.hidden if network.form != "original" else network.width), known


def start(network: Network, loss: Loss) -> tuple[Weights, Callable[[Weights], Weights]]:
    """The factors at t = 0, and what maps trained ones to refreshed ones."""
    if network.form == "spectral":
        return _spectral(network, loss), lambda factors: factors
    if network.form == "original" and network.hidden > network.width:
        raise ValueError(f"hidden = {network.hidden}, width = {network.width}: set hidden to {network.width}, too")
    hidden = network.hidden if network.form != "compressed" else network.width
    dims, scales = (network.width, *(hidden,) * (network.depth - 1), network.width), (network.scale,) * network.depth
    weights = orthogonal(dims, scales, np.random.default_rng([network.seed, 2]))
    if network.form != "compressed":
        return weights, lambda factors: factors
    wide, signal = to_torch(*weights), torch.from_numpy(-loss.gradient(product(weights)))

    def renewed(factors: Weights) -> Weights:
        right, *cores, left = to_torch(*factors)
        end = product(factors)
        signal = torch.from_numpy(end - loss.gradient(end) / network.share)  # observed entries where they are known
        narrow = Narrow(left, tuple(cores), right.mT)
        return to_numpy(*refresh(narrow, wide, signal, network.hidden, keep=network.keep or None).factors)

    return to_numpy(*compress(wide, signal, network.hidden).factors), renewed


def _spectral(network: Network, loss: Loss) -> Weights:
    signal = torch.from_numpy(-loss.gradient(np.zeros((network.width, network.width))))
    first, *between, last = to_numpy(*spectral(signal, network.hidden, network.depth, network.scale).factors)
    grown = 1 / network.scale if network.unscaled_ends else 1.0
    return first * grown, *between, last * grown


def train(network: Network) -> Arrays:
    """Train it: `steps`, `values` (see LOSS, SQUARE, HIDDEN), `seconds` of CPU time, and, if asked for, `triplets`.

    triplets: times x 3 x n; singular values of E, and |<u_i, u_i*>|, |<v_i, v_i*>| with those of the target.
    """
    goal = target(network)
    loss, known = loss_of(network, goal)
    measure = _measure(network, goal, loss, known)
    factors, renewed = start(network, loss)
    runs: list[Run] = []
    for begin, end in pairwise((0, *network.refreshes, network.steps)):
        if runs:
            factors = renewed(runs[-1].state)
        runs.append(descend(network, loss, factors, measure, end - begin))
    return _joined(runs, network.triplets)


def descend(
    network: Network, loss: Loss, factors: Weights, measure: Callable[[Weights], tuple[float, ...]], steps: int
) -> Run:
    """Gradient descent at the network's rates, at most so many steps, until the loss is below its tolerance.

    measure: what is kept, the loss first.
    """
    rates: Rates = network.lr
    if network.form in ("spectral", "compressed"):
        rates = discrepant(network.lr, network.outer, len(factors))
    step, label = gradient_descent(loss, rates), f"{network.form}, {network.kind}, seed {network.seed}"

    def done(values: tuple[float, ...]) -> bool:
        return values[LOSS] < network.tolerance

    return observe(step, factors, steps, network.every, measure, label, done)


def _joined(runs: list[Run], count: int) -> Arrays:
    """One run of several: each goes on where the one before it stopped, so that its first row repeats a step."""
    steps, values, seconds = runs[0].steps, runs[0].values, runs[0].seconds
    for run in runs[1:]:
        steps = np.append(steps, run.steps[1:] + steps[-1])
        values = np.vstack([values, run.values[1:]])
        seconds = np.append(seconds, run.seconds[1:] + seconds[-1])
    arrays = {"steps": steps, "values": values[:, :3], "seconds": seconds}
    return {**arrays, "triplets": values[:, 3:].reshape(-1, 3, count)} if count else arrays


def _measure(network: Network, goal: Matrix, loss: Loss, known: np.ndarray) -> Callable[[Weights], tuple[float, ...]]:
    hidden, count = ~known, network.triplets
    left, _, right = np.linalg.svd(goal) if count else (goal, goal, goal)

    def measure(factors: Weights) -> tuple[float, ...]:
        end = product(factors)
        error = (end - goal) ** 2
        values = (loss.value(end), float(error.sum()), float(error[hidden].mean()) if hidden.any() else 0.0)
        if not count or not np.isfinite(end).all():
            return values + (math.nan,) * (3 * count)
        u, sigma, v = np.linalg.svd(end)
        outputs = np.abs(np.sum(u[:, :count] * left[:, :count], axis=0))
        inputs = np.abs(np.sum(v[:count] * right[:count], axis=1))
        return (*values, *sigma[:count], *outputs, *inputs)

    return measure
