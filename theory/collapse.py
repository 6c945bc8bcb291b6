"""Whitened classification: how fast the classes collapse from layer to layer, exactly and as a law.

Symbols: X inputs (d x N, X X^T = I), Y one-hot labels of K classes with n samples each (N = K n), M_l = W_l ... W_1, so
that layer l sees M_l X; D_l = tr(Sigma_W) / tr(Sigma_B) there, Sigma_W the mean over samples around their class mean,
Sigma_B the mean over classes around the mean of all. U = Y^T / sqrt(n) has orthonormal columns.

With P = U U^T and J = 1 1^T / N, tr(Sigma_W) = |M_l X (I - P)|^2 / N and tr(Sigma_B) = |M_l X (P - J)|^2 / N, hence

    D_l = |M_l (I - X U U^T X^T)^(1/2)|^2 / |M_l X U (I - 1 1^T / K)|^2.

Since min 1/2 |E X - Y|^2 is the factorization of Phi = Y X^T, and the columns of X U span row(Phi), which the invariant
family S_0, ..., S_L contains, the cores A_l = S_l^T W_l S_{l-1} and the idle scales give D_l at every step.
"""

from collections.abc import Iterator
from itertools import accumulate

import numpy as np
from jaxtyping import Float64, Int

from theory.subspaces import Layers, invariant_subspaces, passing, passing_scales, reduced_run, reduced_start

Matrix = Float64[np.ndarray, "_ _"]
Labels = Int[np.ndarray, " samples"]
Series = Float64[np.ndarray, " depth"]


def separation(start: Layers, inputs: Matrix, labels: Labels, lr: float, decay: float = 0.0) -> Iterator[Series]:
    """(D_0, ..., D_{L-1}) at t = 0, 1, ... of a deep linear classifier, without ever running it. Exact for every step.

    With a = S_0^T X U and A_{l:1} = A_l ... A_1,

        D_l = (|A_{l:1} (I - a a^T)^(1/2)|^2 + p prod_{k<=l} rho_k^2 + q prod_{k<=l} (eps_k (1 - eta lam)^t)^2)
              / |A_{l:1} a (I - 1 1^T / K)|^2,

    where p idle inputs pass through all layers and q end at the last one: q = 0 if W_L is d x d, p = 0 if it is K x d.

    start: W_l(0) = eps_l Q_l; d x d, but for W_L, which has K rows or more (those beyond K learn 0). inputs: X.
    labels: 0, ..., K - 1, each n times. lr: eta on 1/2 |E X - Y|^2.
    Raises ValueError for data that are not whitened, classes of unequal size, or hidden layers that are not square.
    """
    frame = _class_frame(start, inputs, labels)  # X U
    target = np.zeros((len(start[-1]), len(inputs)))
    target[: frame.shape[1]] = np.sqrt(len(labels) / frame.shape[1]) * frame.T  # Y X^T
    spaces = invariant_subspaces(start, target)
    through, idle = passing(start, spaces)
    passed = through[0].shape[1]
    dead = len(inputs) - spaces[0].shape[1] - passed
    eps = np.array([np.linalg.norm(weight) / np.sqrt(min(weight.shape)) for weight in start])
    sides = _within_and_between(spaces[0].T @ frame)
    runs = zip(
        reduced_run(reduced_start(start, spaces), spaces[-1].T @ target @ spaces[0], lr, decay),
        passing_scales(idle, lr, decay),
        strict=True,
    )
    for time, (cores, rho) in enumerate(runs):
        left = passed * _products(rho**2) + dead * _products((eps * (1 - lr * decay) ** time) ** 2)
        seen = [[np.sum(side**2) for side in accumulate(cores[:-1], _after, initial=side)] for side in sides]
        yield (seen[0] + left) / seen[1]


def _after(below: Matrix, core: Matrix) -> Matrix:
    return core @ below


def _within_and_between(frame: Matrix) -> tuple[Matrix, Matrix]:
    """(I - a a^T)^(1/2) and a (I - 1 1^T / K). a has singular values <= 1, and 1 itself if N = d."""
    values, vectors = np.linalg.eigh(np.eye(len(frame)) - frame @ frame.T)
    inside = values > 1e-12  # rounding: a class direction would be counted as within, and outgrow what really is
    return vectors[:, inside] * np.sqrt(values[inside]), frame - frame.mean(axis=1, keepdims=True)


def _products(squares: Series) -> Series:
    """1, s_1, s_1 s_2, ..., s_1 ... s_{L-1}."""
    return np.cumprod(np.concatenate([[1.0], squares[:-1]]))


def _class_frame(start: Layers, inputs: Matrix, labels: Labels) -> Matrix:
    """X U, d x K, or ValueError."""
    width, counts = len(inputs), np.bincount(labels)
    if len(labels) != inputs.shape[1] or len(set(counts.tolist())) > 1:
        raise ValueError(f"classes of {counts.tolist()} samples for {inputs.shape[1]} inputs: give each class as many")
    if np.abs(inputs @ inputs.T - np.eye(width)).max() > 1e-10:
        raise ValueError("the inputs are not whitened: X X^T must be I; multiply them by (X X^T)^(-1/2)")
    if any(weight.shape != (width, width) for weight in start[:-1]) or len(start[-1]) < len(counts):
        shapes = [weight.shape for weight in start]
        raise ValueError(
            f"layers of shapes {shapes}: the hidden ones must be {width} x {width}, the last one >= {len(counts)} rows"
        )
    return inputs @ np.eye(len(counts))[labels] / np.sqrt(counts[0])


def separation_law(classes: int, samples: int, depth: int, eps: float) -> Series:
    """D_l ~ D_0 (eps^2 / n^(1/L))^l for l = 0, ..., L-1, D_0 = (1 - 1/n) / (1/n - 1/N): a straight line in log D_l.

    For N = d, W_L of K x d, W_l(0) = eps Q_l, lam = 0, small steps, converged; see `separation_factor`.
    """
    _check_law(classes, samples, depth, eps)
    first = (1 - 1 / samples) / (1 / samples - 1 / (classes * samples))
    return first * (eps**2 / samples ** (1 / depth)) ** np.arange(depth)


def separation_factor(classes: int, samples: int, depth: int, eps: float) -> Series:
    """The least D_l over the law, l = 0, ..., L-1; the most is 1. Both hold for gradient flow at its limit E = Phi.

    Let S = W_1^T W_1. The flow keeps W_{l+1}^T W_{l+1} = W_l W_l^T below the last layer, so M_l^T M_l = S^l, and
    W_{L-1} W_{L-1}^T - W_L^T W_L = eps^2 (I - Q_L^T Q_L). With E^T E = n R, R the projector on row(Phi), the latter is

        n R <= S^L <= n R + eps^2 S^(L-1).

    Unit y orthogonal to row(Phi): y^T S^L y <= eps^2 y^T S^(L-1) y, so by Jensen y^T S^l y <= eps^(2l), with equality
    on the d - 2K idle directions. Unit x in row(Phi): S^l >= n^(l/L) R, for t^(l/L) is operator monotone (Loewner
    1934); and s = (x^T S^L x)^(1/L) has s^L <= n + eps^2 s^(L-1), hence with q = eps^2 / n^(1/L) < 1
    x^T S^l x <= s^l <= n^(l/L) (1 - q)^(-l/L). Altogether, and exactly 1 at l = 0,

        (d - 2K) / (d - K) (1 - q)^(l/L) <= D_l / law <= 1.
    """
    _check_law(classes, samples, depth, eps)
    width, ratio = classes * samples, eps**2 / samples ** (1 / depth)
    factor = (1 - 2 * classes / width) / (1 - classes / width) * (1 - ratio) ** (np.arange(depth) / depth)
    factor[0] = 1.0
    return factor


def _check_law(classes: int, samples: int, depth: int, eps: float) -> None:
    if classes < 2 or samples < 3 or depth < 2 or not 0 < eps**2 < samples ** (1 / depth):
        raise ValueError(
            f"classes = {classes}, samples = {samples}, depth = {depth}, eps = {eps}: the law needs classes >= 2, "
            f"samples >= 3 (so that directions stay idle), depth >= 2 and 0 < eps^2 < samples^(1/depth)"
        )
