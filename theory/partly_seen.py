"""Targets that are seen in part: what the first signal misses of them, and how far steps stay stable.

Symbols: Phi of rank r, singular values sigma_i, singular vectors u_i, v_i; d width, p share of observed entries, m
number of sensing operators with entries N(0, 1/m); L depth. Everything here is to first order, and ours.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

Spectrum = tuple[float, ...]
Matrix = Float64[np.ndarray, "rows cols"]


def turns(spectrum: Spectrum, width: int, *, density: float = 1.0, measurements: int = 0) -> Any:
    """The sine s_i of the angle between u_i (or v_i) and the first signal's subspace of the same dimension r.

    The signal is the target plus noise: P_Omega(Phi) / p has variance (1 - p) / p Phi_ab^2 at entry (a, b), and
    sum_k y_k A_k about |Phi|_F^2 / m everywhere. Noise that meets v_i turns u_i by its size over sigma_i, of which the
    share (d - r) / d leaves the span of u_1, ..., u_r:

        s_i^2 = (d - r) / d (1 - p) / (p d) (sum_k sigma_k^2 / sigma_i^2 + 2)     completion, Haar singular vectors:
                E u^2 v^2 v_i^2 is 3 / d^3 for v = v_i and 1 / d^3 for another, hence the 2;
        s_i^2 = (d - r) / m sum_k sigma_k^2 / sigma_i^2                           sensing.

    density: p, for completion. measurements: m, for sensing. Exact as s -> 0 and d -> infinity.
    """
    _check(spectrum, width, density, measurements)
    squares, leaving = np.square(spectrum), width - len(spectrum)
    if measurements:
        return np.sqrt(leaving / measurements * squares.sum() / squares)
    return np.sqrt(leaving / width**2 * (1 / density - 1) * (squares.sum() / squares + 2))


def missed(spectrum: Spectrum, width: int, *, density: float = 1.0, measurements: int = 0) -> float:
    """The part of |Phi|_F outside the subspaces of the first signal: no core between frozen outer factors learns it.

    Component i keeps sigma_i^2 (1 - s_i^2)^2 inside, so that sum_i sigma_i^2 (1 - (1 - s_i^2)^2) of |Phi|_F^2 is out.
    """
    squares = np.square(spectrum)
    outside = 1 - (1 - turns(spectrum, width, density=density, measurements=measurements) ** 2) ** 2
    return float(np.sqrt(squares @ outside / squares.sum()))


def top_curvature(target: Matrix, observed: Bool[np.ndarray, "rows cols"], depth: int, rounds: int = 200) -> float:
    """The largest eigenvalue of the Hessian of 1/2 |P_Omega(W_L ... W_1 - Phi)|^2 at the balanced solution.

    With J the derivative of P_Omega(E), the Hessian J^T J has the eigenvalues of J J^T, found by power iteration:

        X -> P_Omega sum_l (Phi Phi^T)^((L-l)/L) P_Omega(X) (Phi^T Phi)^((l-1)/L).

    Gradient descent is stable there below 2 over it. Where all is observed it is L sigma_1^(2 - 2/L).
    """
    if target.shape[0] != target.shape[1]:
        raise ValueError(f"a target of shape {target.shape}: give a square one")
    left, sigma, right = np.linalg.svd(target)
    sigma[sigma < 1e-12 * sigma[0]] = 0  # 0^0 = 1: the first and the last factor reach every direction on one side
    powers = [sigma ** (2 * layer / depth) for layer in range(depth)]
    weights = sum(np.outer(above, below) for above, below in zip(powers[::-1], powers, strict=True))
    value, direction = 0.0, target * observed
    for _ in range(rounds):
        inside = left.T @ (direction / np.linalg.norm(direction)) @ right.T
        direction = left @ (inside * weights) @ right * observed
        value = float(np.linalg.norm(direction))
    return value


def _check(spectrum: Spectrum, width: int, density: float, measurements: int) -> None:
    if not spectrum or min(spectrum) <= 0 or len(spectrum) > width:
        raise ValueError(f"spectrum = {spectrum}, width = {width}: give at most `width` singular values, all > 0")
    if not 0 < density <= 1 or measurements < 0:
        raise ValueError(
            f"density = {density}, measurements = {measurements}: take 0 < density <= 1, measurements >= 0"
        )
