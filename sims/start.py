"""Where training starts and what it is to find: starts, spectra, low-rank targets, masks, sensing operators.

Everything is drawn with NumPy in float64 from a generator that the caller passes, so that a seed means the same numbers
on every device; `to_torch` moves them.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from theory.problem import Problem

Matrix = Float64[np.ndarray, "rows cols"]
Weights = tuple[Float64[np.ndarray, "_ _"], ...]
Dims = tuple[int, ...]
Scales = tuple[float, ...]


def haar(rows: int, cols: int, rng: np.random.Generator) -> Matrix:
    """A rows x cols matrix with orthonormal columns (rows, if there are fewer), uniform over all such matrices.

    QR of a Gaussian matrix; the signs of R's diagonal go into Q, without which Q is not uniform (Mezzadri 2007,
    arXiv math-ph/0609050).
    """
    tall, short = max(rows, cols), min(rows, cols)
    q, r = np.linalg.qr(rng.standard_normal((tall, short)))
    q *= np.sign(np.diagonal(r))
    return q if rows >= cols else q.T.copy()


def orthogonal(dims: Dims, scales: Scales, rng: np.random.Generator) -> Weights:
    """W_l(0) = eps_l Q_l with Q_l a Haar (semi-)orthogonal matrix of shape dims[l] x dims[l-1], l = 1, ..., L.

    dims: d_0 (inputs), d_1, ..., d_L (outputs). scales: eps_1, ..., eps_L > 0.
    """
    return tuple(eps * haar(rows, cols, rng) for eps, rows, cols in _layers(dims, scales))


def gaussian(dims: Dims, scales: Scales, rng: np.random.Generator) -> Weights:
    """Independent normal entries, each layer with the Frobenius norm that `orthogonal` would give it."""
    return tuple(_normed(rng.standard_normal((rows, cols)), eps) for eps, rows, cols in _layers(dims, scales))


def uniform(dims: Dims, scales: Scales, rng: np.random.Generator) -> Weights:
    """Independent entries, uniform on an interval around 0, each layer with the Frobenius norm of `orthogonal`."""
    return tuple(_normed(rng.uniform(-1, 1, (rows, cols)), eps) for eps, rows, cols in _layers(dims, scales))


STARTS = {"orthogonal": orthogonal, "gaussian": gaussian, "uniform": uniform}


def _layers(dims: Dims, scales: Scales) -> Iterator[tuple[float, int, int]]:
    if len(scales) != len(dims) - 1 or not all(0 < eps < np.inf for eps in scales):
        raise ValueError(
            f"scales = {scales} for {len(dims) - 1} layers: give one positive, finite scale for each layer"
        )
    if min(dims) < 1:
        raise ValueError(f"dims = {dims}: every layer needs at least one unit")
    return zip(scales, dims[1:], dims[:-1], strict=True)


def _normed(weight: Matrix, eps: float) -> Matrix:
    return weight * (eps * np.sqrt(min(weight.shape)) / np.linalg.norm(weight))


def flat(rank: int, top: float) -> tuple[float, ...]:
    """`rank` equal singular values."""
    return (top,) * rank


def spread(rank: int, top: float, bottom: float) -> tuple[float, ...]:
    """Equally spaced singular values, from `top` down to `bottom`."""
    return tuple(float(sigma) for sigma in np.linspace(top, bottom, rank))


def geometric(rank: int, top: float, ratio: float) -> tuple[float, ...]:
    """Singular values top, top ratio, top ratio^2, ...; 0 < ratio <= 1."""
    return tuple(float(top * ratio**index) for index in range(rank))


def problem_start(problem: Problem) -> Weights:
    """W_1(0), ..., W_L(0) of a problem."""
    return orthogonal((problem.width,) * (problem.depth + 1), problem.eps, np.random.default_rng([problem.seed, 0]))


def problem_target(problem: Problem) -> Matrix:
    """Phi = U diag(sigma) V^T of a problem, with Haar singular vectors."""
    rng = np.random.default_rng([problem.seed, 1])
    left, right = haar(problem.width, problem.rank, rng), haar(problem.width, problem.rank, rng)
    return left * np.array(problem.spectrum) @ right.T


def truncated_gaussian(width: int, rank: int, rng: np.random.Generator) -> Matrix:
    """The best approximation of rank `rank` to a width x width matrix of independent N(0, 1): the papers' targets.

    Its singular values lie close together below 2 sqrt(width), which hides the staircase of incremental learning.
    """
    left, sigma, right = np.linalg.svd(rng.standard_normal((width, width)))
    return left[:, :rank] * sigma[:rank] @ right[:rank]


def noisy(target: Matrix, level: float, rng: np.random.Generator) -> Matrix:
    """The target plus Gaussian noise of full rank whose spectral norm is `level` times the target's."""
    if not 0 <= level < np.inf:
        raise ValueError(f"level = {level}: give the noise's spectral norm over the target's, finite and >= 0")
    noise = rng.standard_normal(target.shape)
    return target + noise * (level * np.linalg.norm(target, 2) / np.linalg.norm(noise, 2))


def observed(shape: tuple[int, int], density: float, rng: np.random.Generator) -> Bool[np.ndarray, "rows cols"]:
    """Omega: each entry is observed with probability `density`, independently."""
    if not 0 < density <= 1:
        raise ValueError(f"density = {density}: the share of observed entries must lie in (0, 1]")
    return rng.random(shape) < density


def sensing_operators(
    measurements: int, shape: tuple[int, int], rng: np.random.Generator
) -> Float64[np.ndarray, "measurements rows cols"]:
    """A_1, ..., A_m with entries N(0, 1/m), so that sum_i <A_i, X> A_i is X on average."""
    if measurements < 1:
        raise ValueError(f"measurements = {measurements}: take at least one")
    operators = rng.standard_normal((measurements, *shape))
    operators /= np.sqrt(measurements)  # in place: 4000 operators of 200 x 200 are 1.3 GB
    return operators


def to_torch(*arrays: np.ndarray, device: str = "cpu") -> tuple[Any, ...]:
    """Copies of the arrays as torch tensors on a device: copies, since optimizers write in place."""
    import torch

    return tuple(torch.tensor(array, device=device) for array in arrays)


def to_numpy(*tensors: Any) -> Weights:
    """The torch tensors as contiguous NumPy arrays, which may share their memory."""
    return tuple(tensor.detach().cpu().contiguous().numpy() for tensor in tensors)
