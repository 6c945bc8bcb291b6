"""Measurements on weights, made without knowing what theory predicts."""

import numpy as np
from jaxtyping import Float64
from scipy.linalg import subspace_angles

Matrix = Float64[np.ndarray, "rows cols"]
Basis = Float64[np.ndarray, "cols _"]


def singular_values(weight: Matrix) -> Float64[np.ndarray, " rank"]:
    """sigma_1 >= sigma_2 >= ... of a matrix."""
    return np.linalg.svd(weight, compute_uv=False)


def idle_scale(weight: Matrix, idle: int) -> float:
    """The mean of the `idle` neighbouring singular values that lie closest together: the flat part of a spectrum."""
    values = singular_values(weight)
    if not 1 <= idle <= len(values):
        raise ValueError(f"idle = {idle} of {len(values)} singular values: take 1 <= idle <= {len(values)}")
    windows = np.lib.stride_tricks.sliding_window_view(values, idle)
    return float(np.mean(windows[np.argmin(np.ptp(windows, axis=1))]))


def largest_angle(basis: Matrix, other: Matrix) -> float:
    """The largest principal angle, in radians, between the spans of two bases of equal size."""
    return float(subspace_angles(basis, other)[0])


def singular_blocks(weight: Matrix, rank: int) -> tuple[Basis, Basis, Basis]:
    """Right singular vectors of the `rank` largest values, of those between, and of the `rank` smallest."""
    right = np.linalg.svd(weight)[2].T
    return right[:, :rank], right[:, rank:-rank], right[:, -rank:]


def effective_rank(weight: Matrix) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007, EUSIPCO): between 1 and the rank."""
    values = singular_values(weight)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def relative_error(found: Matrix, target: Matrix) -> float:
    """|found - target|_F / |target|_F."""
    return float(np.linalg.norm(found - target) / np.linalg.norm(target))
