"""Where training starts and what it is to find: orthogonal starts, low-rank targets, masks, sensing operators.

Everything is drawn with NumPy in float64 from a generator that the caller passes, so that a seed means the same numbers
on every device; `to_torch` moves them.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from theory.problem import Problem

Matrix = Float64[np.ndarray, "rows cols"]
Weights = tuple[Float64[np.ndarray, "_ _"], ...]


def haar(rows: int, cols: int, rng: np.random.Generator) -> Matrix:
    """A rows x cols matrix with orthonormal columns (rows, if there are fewer), uniform over all such matrices.

    QR of a Gaussian matrix; the signs of R's diagonal go into Q, without which Q is not uniform (Mezzadri 2007,
    arXiv math-ph/0609050).
    """
    tall, short = max(rows, cols), min(rows, cols)
    q, r = np.linalg.qr(rng.standard_normal((tall, short)))
    q *= np.sign(np.diagonal(r))
    return q if rows >= cols else q.T.copy()


def orthogonal(dims: tuple[int, ...], scales: tuple[float, ...], rng: np.random.Generator) -> Weights:
    """W_l(0) = eps_l Q_l with Q_l a Haar (semi-)orthogonal matrix of shape dims[l] x dims[l-1], l = 1, ..., L.

    dims: d_0 (inputs), d_1, ..., d_L (outputs). scales: eps_1, ..., eps_L > 0.
    """
    if len(scales) != len(dims) - 1 or not all(0 < eps < np.inf for eps in scales):
        raise ValueError(
            f"scales = {scales} for {len(dims) - 1} layers: give one positive, finite scale for each layer"
        )
    return tuple(eps * haar(rows, cols, rng) for eps, rows, cols in zip(scales, dims[1:], dims[:-1], strict=True))


def problem_start(problem: Problem) -> Weights:
    """W_1(0), ..., W_L(0) of a problem."""
    return orthogonal((problem.width,) * (problem.depth + 1), problem.eps, np.random.default_rng([problem.seed, 0]))


def problem_target(problem: Problem) -> Matrix:
    """Phi = U diag(sigma) V^T of a problem, with Haar singular vectors."""
    rng = np.random.default_rng([problem.seed, 1])
    left, right = haar(problem.width, problem.rank, rng), haar(problem.width, problem.rank, rng)
    return left * np.array(problem.spectrum) @ right.T


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
    return rng.standard_normal((measurements, *shape)) / np.sqrt(measurements)


def to_torch(*arrays: np.ndarray, device: str = "cpu") -> tuple[Any, ...]:
    """Copies of the arrays as torch tensors on a device: copies, since optimizers write in place."""
    import torch

    return tuple(torch.tensor(array, device=device) for array in arrays)


def to_numpy(*tensors: Any) -> Weights:
    """The torch tensors as contiguous NumPy arrays, which may share their memory."""
    return tuple(tensor.detach().cpu().contiguous().numpy() for tensor in tensors)
