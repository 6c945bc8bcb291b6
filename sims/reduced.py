"""The lossless reduced-order simulator: the full d x d x L trajectory of deep matrix factorization from small cores.

Inside the invariant subspaces S_0, ..., S_L the layers are cores A_l = S_l^T W_l S_{l-1}, which train on their own.
Outside, every direction that passes through all layers sees the same scalars rho_l, so that one such direction stands
for all of them: it is carried along as one more row and column of every core, and no second recursion is needed.

    W_l(t) = S_l A_l(t) S_{l-1}^T + (rho_l(t) / rho_l(0)) (W_l(0) - S_l A_l(0) S_{l-1}^T)         (square layers)

A step costs O(L r^3), whatever d is. Exact for gradient descent and momentum from (semi-)orthogonal starts, for any
eps_l, step and decay; not for Adam, Gaussian starts or masks (theory/README.md).
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from lowdim.narrow import check_start, invariant_spaces
from lowdim.subspace import leading_subspace
from sims.run import Diverged
from sims.start import to_numpy, to_torch
from theory.problem import Problem

Array = Float64[np.ndarray, "..."]
Start = tuple[Float64[np.ndarray, "_ _"], ...]
Operation = tuple[Callable[..., Any], tuple[Any, ...]]


@dataclass(frozen=True, eq=False)
class Reduced:
    """A problem seen from inside its invariant subspaces. Leading axes are a batch: of seeds, scales, targets."""

    cores: tuple[Float64[np.ndarray, "*batch _ _"], ...]
    """A_l(0), with the idle direction as last row and column if there is one."""
    target: Float64[np.ndarray, "*batch rows cols"]
    """S_L^T Phi S_0, with zeros for the idle direction."""
    idle: Any
    """How many directions pass idly through all layers, d - 2r for square ones; an array if they differ in a batch."""

    @property
    def batch(self) -> tuple[int, ...]:
        """The shape of the leading axes."""
        return self.target.shape[:-2]


def reduce_start(start: Start, target: Float64[np.ndarray, "rows cols"], rank: int) -> tuple[Reduced, Start]:
    """The reduced problem of a (semi-)orthogonal start, and S_0, ..., S_L.

    start: W_l(0), W_1 first. target: Phi. rank: its rank, or more; a smaller one leaves out what lies beyond.
    Raises ValueError for layers that are not (semi-)orthogonal, and for a rank that does not fit.
    """
    weights, (signal,) = to_torch(*start), to_torch(target)
    check_start(weights, signal, rank)
    columns = leading_subspace(signal, rank)
    if float((signal - columns @ (columns.mT @ signal)).norm()) > 1e-10 * float(signal.norm()):
        raise ValueError(f"rank = {rank}: the target has a higher rank, so the run would not be exact; take its rank")
    spaces = to_numpy(*invariant_spaces(weights, torch.linalg.qr(signal.mT @ columns).Q, columns))
    cores = tuple(after.T @ weight @ before for weight, (before, after) in zip(start, pairwise(spaces), strict=True))
    idle = min(len(space) - space.shape[1] for space in spaces)
    scales = [np.linalg.norm(weight) / np.sqrt(min(weight.shape)) for weight in start] if idle else []  # eps_l
    small = spaces[-1].T @ target @ spaces[0]
    return Reduced(_bordered(cores, scales), _padded(small) if idle else small, idle), spaces


def sample(problem: Problem) -> Reduced:
    """The reduced problem of a Haar start and Haar singular vectors, drawn without a d x d matrix: any d will do.

    The cores know d only through M = V^T Q^T U, Phi = U Sigma V^T: an r x r corner of a Haar matrix. With the Gram
    matrix [[I, M], [M^T, I]] = R^T R of [V, Q^T U], the small target is R[:, r:] Sigma R[:, :r]^T, and A_l(0) is
    eps_l I.
    """
    rank = problem.rank
    corner = haar_corner(problem.width, rank, np.random.default_rng([problem.seed, 2]))
    gram = np.block([[np.eye(rank), corner], [corner.T, np.eye(rank)]])
    frames = np.linalg.cholesky(gram).T
    small = frames[:, rank:] * np.array(problem.spectrum) @ frames[:, :rank].T
    cores = tuple(eps * np.eye(2 * rank) for eps in problem.eps)
    return Reduced(_bordered(cores, problem.eps), _padded(small), problem.idle)


def haar_corner(width: int, rank: int, rng: np.random.Generator) -> Float64[np.ndarray, "rank rank"]:
    """The upper left rank x rank block of a Haar width x width matrix, in O(rank^3).

    The first `rank` columns are G R^-1 for a Gaussian G and the Cholesky factor R of G^T G. Below its first rows G
    enters through its Gram matrix alone, a Wishart matrix with width - rank degrees of freedom (Bartlett 1933).
    """
    top, lower = rng.standard_normal((rank, rank)), np.tril(rng.standard_normal((rank, rank)), -1)
    lower += np.diag(np.sqrt(rng.chisquare(width - rank - np.arange(rank))))
    factor = np.linalg.cholesky(top.T @ top + lower @ lower.T)
    return np.linalg.solve(factor, top.T).T


def stack(problems: Sequence[Reduced]) -> Reduced:
    """Several reduced problems with cores of equal shapes as one, along a new first axis."""
    cores = tuple(np.stack(layer) for layer in zip(*(problem.cores for problem in problems), strict=True))
    return Reduced(cores, np.stack([p.target for p in problems]), np.array([p.idle for p in problems]))


def _bordered(cores: Sequence[Array], scales: Sequence[float]) -> tuple[Array, ...]:
    """The cores with one more row and column each, zero but for eps_l in the corner; unchanged without scales."""
    if not len(scales):
        return tuple(cores)
    bordered = tuple(_padded(core) for core in cores)
    for core, scale in zip(bordered, scales, strict=True):
        core[-1, -1] = scale
    return bordered


def _padded(matrix: Float64[np.ndarray, "rows cols"]) -> Float64[np.ndarray, "_ _"]:
    return np.pad(matrix, ((0, 1), (0, 1)))


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A reduced run: `cores[l-1][i]` is A_l after `steps[i]` steps, bordered as in Reduced."""

    reduced: Reduced
    steps: Float64[np.ndarray, " times"]
    cores: tuple[Float64[np.ndarray, "times *batch _ _"], ...]

    @property
    def scales(self) -> Float64[np.ndarray, "times *batch depth"]:
        """rho_l(t); for problems without an idle direction there is none to ask for."""
        if not np.any(self.reduced.idle):
            raise ValueError("no direction is idle in this problem, so there is no rho; look at the cores")
        return np.stack([core[..., -1, -1] for core in self.cores], axis=-1)

    def products(self) -> Float64[np.ndarray, "times *batch rows cols"]:
        """A_L ... A_1, and in the corner prod_l rho_l: the end-to-end matrix, seen from inside."""
        product = self.cores[0]
        for core in self.cores[1:]:
            product = core @ product
        return product

    def singular_values(self) -> Float64[np.ndarray, "times *batch _"]:
        """Those of E, largest first; the idle one, of multiplicity `idle`, stands once among them."""
        return np.linalg.svd(self.products(), compute_uv=False)

    def losses(self) -> Float64[np.ndarray, "times *batch"]:
        """1/2 |E - Phi|_F^2 of the full network: the idle direction counts `idle` times."""
        residual = self.products() - self.reduced.target
        whole = (residual**2).sum(axis=(-1, -2))
        return (whole + np.maximum(self.reduced.idle - 1, 0) * residual[..., -1, -1] ** 2) / 2

    def weights(self, time: int, start: Start, spaces: Start) -> Start:
        """W_1, ..., W_L after `steps[time]` steps, d x d each, for square layers; not for a batch."""
        if len({size for weight in start for size in weight.shape}) > 1 or self.reduced.batch:
            raise ValueError("only one run of square layers is rebuilt; theory.subspaces has the others")
        rebuilt = []
        for weight, core, scale, (before, after) in zip(
            start, self.cores, self.scales[time], pairwise(spaces), strict=True
        ):
            ratio = scale / core[0, -1, -1]
            moved = core[time, :-1, :-1] - ratio * core[0, :-1, :-1]
            rebuilt.append(after @ moved @ before.T + ratio * weight)
        return tuple(rebuilt)


def simulate(
    reduced: Reduced, lr: Any, steps: int, every: int = 1, *, decay: float = 0.0, momentum: float = 0.0
) -> Trajectory:
    """Gradient descent, or heavy-ball momentum, on the cores; kept at the start and after each `every`-th step.

    lr: eta on the unnormalised loss, a number, or one for each problem of the batch. Warns of a step beyond the limit
    2 (1 - beta) / (L sigma_1^(2 - 2/L)). Raises ValueError for values out of range or unless `every` divides `steps`,
    and Diverged, with the trajectory so far, at the first that is not finite.
    """
    if every < 1 or steps < every or steps % every:
        raise ValueError(f"steps = {steps}, every = {every}: take steps >= every >= 1, and every a divisor of steps")
    _check_step(reduced, lr, decay, momentum)
    cores = tuple(core.copy() for core in reduced.cores)
    rate = np.broadcast_to(np.asarray(lr, dtype=float)[..., None, None], (*reduced.batch, 1, 1)).copy()
    plan = _step(cores, reduced.target, rate if reduced.batch else float(rate.item()), decay, momentum)
    kept = [tuple(core.copy() for core in cores)]
    with np.errstate(all="ignore"):  # a diverging run is reported below
        for block in range(steps // every):
            for _ in range(every):
                for operation, arguments in plan:
                    operation(*arguments)
            if not all(np.isfinite(core).all() for core in cores):
                message = f"diverged before step {(block + 1) * every}; take a smaller step size"
                raise Diverged(message, _trajectory(reduced, kept, every))
            kept.append(tuple(core.copy() for core in cores))
    return _trajectory(reduced, kept, every)


def _check_step(reduced: Reduced, lr: Any, decay: float, momentum: float) -> None:
    if not (np.isfinite(lr) & (np.asarray(lr) > 0)).all() or not 0 <= decay < np.inf or not 0 <= momentum < 1:
        raise ValueError(
            f"lr = {lr}, decay = {decay}, momentum = {momentum}: take a finite lr > 0, decay >= 0 and 0 <= momentum < 1"
        )
    depth, sigma = len(reduced.cores), np.linalg.norm(reduced.target, 2, axis=(-2, -1))
    limit = float((2 * (1 - momentum) / (depth * sigma ** (2 - 2 / depth))).min())
    if np.max(lr) >= limit:
        warnings.warn(f"lr = {np.max(lr)} is not stable from {limit:.3g} on; take half of that", stacklevel=3)


def _trajectory(reduced: Reduced, kept: list[tuple[Array, ...]], every: int) -> Trajectory:
    cores = tuple(np.stack(layer) for layer in zip(*kept, strict=True))
    return Trajectory(reduced, every * np.arange(len(kept), dtype=float), cores)


def _step(cores: tuple[Array, ...], target: Array, rate: Any, decay: float, momentum: float) -> list[Operation]:
    """One step as a list of in-place operations on buffers that never move: nothing is looked up or allocated twice."""
    plan: list[Operation] = []

    def multiply(left: Array, right: Array) -> Array:
        out = np.empty((*left.shape[:-1], right.shape[-1]))
        single = left.ndim == 2  # a bound ndarray.dot costs a third of np.matmul on matrices this small
        plan.append((left.dot, (right, out)) if single else (partial(np.matmul, out=out), (left, right)))
        return out

    below = [cores[0]]
    for core in cores[1:]:
        below.append(multiply(core, below[-1]))
    above = below.pop()
    plan.append((np.subtract, (above, target, above)))
    gradients = []
    for core in reversed(cores[1:]):
        gradients.append(multiply(above, below.pop().swapaxes(-1, -2)))
        above = multiply(core.swapaxes(-1, -2), above)
    for core, gradient in zip(cores, [above, *reversed(gradients)], strict=True):
        plan += _update(core, gradient, rate, decay, momentum)
    return plan


def _update(core: Array, gradient: Array, rate: Any, decay: float, momentum: float) -> list[Operation]:
    """M <- beta M + eta (gradient + lam A), A <- A - M, in place; M is the scaled gradient itself without momentum."""
    plan: list[Operation] = []
    if decay:
        pull = np.empty_like(core)
        plan += [(np.multiply, (core, decay, pull)), (np.add, (gradient, pull, gradient))]
    plan.append((np.multiply, (gradient, rate, gradient)))
    if momentum:
        velocity = np.zeros_like(core)
        plan += [(np.multiply, (velocity, momentum, velocity)), (np.add, (velocity, gradient, velocity))]
        gradient = velocity
    return [*plan, (np.subtract, (core, gradient, core))]
