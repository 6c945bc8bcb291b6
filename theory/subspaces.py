"""The invariant family of a deep linear network of any shapes and any start: what trains, what passes by, what stands.

Symbols: W_l of shape d_l x d_{l-1}, E = W_L ... W_1, Phi of shape d_L x d_0, eta step, lam weight decay. The invariant
family is the smallest (S_0, ..., S_L), S_l a subspace of R^{d_l}, with

    row(Phi) in S_0,   col(Phi) in S_L,   W_l(0) S_{l-1} in S_l,   W_l(0)^T S_l in S_{l-1}.

Statement. Let S_l and T_l stand for orthonormal bases of the family and of its complements. For every t, eta and lam,

    W_l(t) = S_l A_l(t) S_{l-1}^T + T_l C_l(t) T_{l-1}^T,      E(t) = S_L A_L ... A_1 S_0^T + T_L C_L ... C_1 T_0^T,

where the A_l follow gradient descent on 1/2 |A_L ... A_1 - S_L^T Phi S_0|^2 and the C_l on 1/2 |C_L ... C_1|^2
(`derivations.invariant_family_step`). If the W_l(0) are eps_l times semi-orthogonal, so are the C_l(0): for Q^T Q = I,
C^T C = T_{l-1}^T Q^T (I - S_l S_l^T) Q T_{l-1} = I, because Q^T S_l lies in S_{l-1}; likewise for Q Q^T = I.

For square orthogonal layers this is the theorem of Yaras et al. 2024 (arXiv 2406.04112), S_l of 2r dimensions and
C_l = rho_l I. The rest is ours.
"""

import math
from collections import deque
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from jaxtyping import Float64

Matrix = Float64[np.ndarray, "rows cols"]
Layers = tuple[Float64[np.ndarray, "_ _"], ...]
"""W_1, ..., W_L with W_l of shape d_l x d_{l-1}, or their cores."""
Bases = tuple[Float64[np.ndarray, "_ _"], ...]
"""Orthonormal columns in R^{d_0}, ..., R^{d_L}, possibly none."""

RANK_TOLERANCE = 1e-10
"""Singular values of Phi below this share of the largest are rounding, as in `invariants.invariant_bases`."""
TOLERANCE = float(np.sqrt(np.finfo(float).eps))
"""A direction is new if at least this share of it lies outside the span. One that is accepted at the share s >= sqrt(u)
is known to u / s <= sqrt(u), so that its own rounding, sent on through the layers, is not taken for a direction."""


def invariant_subspaces(start: Layers, target: Matrix) -> Bases:
    """Orthonormal bases of S_0, ..., S_L, d_l x k_l.

    Every direction that joins is sent once through the layers at its two sides, until nothing new comes out. What comes
    out counts as new by its length relative to |W_l|_2.

    start: W_l(0), any finite matrices that chain. target: Phi, not 0.
    Raises ValueError for shapes that do not chain, values that are not finite, or Phi = 0.
    """
    _check(start, target)
    left, sigma, right = np.linalg.svd(target, full_matrices=False)
    rank = int(np.sum(sigma > RANK_TOLERANCE * sigma[0]))
    layers = [weight / (np.linalg.norm(weight, 2) or 1.0) for weight in start]
    spaces = [np.zeros((dim, 0)) for dim in (target.shape[1], *map(len, start))]
    waiting = deque([(0, row) for row in right[:rank]] + [(len(start), column) for column in left.T[:rank]])
    while waiting:
        at, direction = waiting.popleft()
        outside = direction - spaces[at] @ (spaces[at].T @ direction)
        if spaces[at].shape[1] == len(direction) or np.linalg.norm(outside) <= TOLERANCE:
            continue
        outside /= np.linalg.norm(outside)
        outside -= spaces[at] @ (spaces[at].T @ outside)  # a short remainder keeps little orthogonality: once more
        new = outside / np.linalg.norm(outside)
        spaces[at] = np.column_stack([spaces[at], new])
        if at < len(layers):
            waiting.append((at + 1, layers[at] @ new))
        if at > 0:
            waiting.append((at - 1, layers[at - 1].T @ new))
    return tuple(spaces)


def _check(start: Layers, target: Matrix) -> None:
    shapes = [weight.shape for weight in start]
    dims = [target.shape[1], *(rows for rows, _ in shapes)]
    if not shapes or [cols for _, cols in shapes] != dims[:-1] or len(target) != dims[-1]:
        raise ValueError(f"layers of shapes {shapes} do not multiply to the target's {target.shape}; W_1 comes first")
    if not all(np.isfinite(matrix).all() for matrix in (*start, target)):
        raise ValueError("the start or the target has entries that are not finite; give finite matrices")
    if not target.any():
        raise ValueError("the target is 0: it selects no directions, every layer is idle; give a target that is not 0")


def seen_from(bases: Bases, weights: Layers) -> Layers:
    """S_l^T W_l S_{l-1}: the layers in the coordinates of the bases, k_l x k_{l-1}."""
    return tuple(after.T @ weight @ before for weight, (before, after) in zip(weights, pairwise(bases), strict=True))


def reduced_start(start: Layers, subspaces: Bases) -> Layers:
    """A_l(0) = S_l^T W_l(0) S_{l-1}."""
    return seen_from(subspaces, start)


def reduced_run(cores: Layers, target: Matrix, lr: float, decay: float = 0.0) -> Iterator[Layers]:
    """A(0), A(1), ...: gradient descent of a network of any shapes on 1/2 |A_L ... A_1 - target|_F^2.

    A_l <- (1 - eta lam) A_l - eta (A_L ... A_{l+1})^T (A_L ... A_1 - target) (A_{l-1} ... A_1)^T.
    """
    while True:
        yield cores
        residual = chain(cores, target.shape[1]) - target
        cores = tuple(
            (1 - lr * decay) * core
            - lr * chain(cores[layer + 1 :], len(core)).T @ residual @ chain(cores[:layer], target.shape[1]).T
            for layer, core in enumerate(cores)
        )


def chain(factors: Layers, inputs: int) -> Float64[np.ndarray, "_ _"]:
    """F_n ... F_1, the identity on R^inputs if there are none."""
    product = np.eye(inputs)
    for factor in factors:
        product = factor @ product
    return product


def complements(subspaces: Bases) -> Bases:
    """Orthonormal bases T_l of what is orthogonal to S_l, d_l x (d_l - k_l)."""
    return tuple(np.linalg.qr(basis, mode="complete")[0][:, basis.shape[1] :] for basis in subspaces)


def passing(start: Layers, subspaces: Bases) -> tuple[Bases, Float64[np.ndarray, " depth"]]:
    """The idle directions that pass through all layers, and each layer's scale on them.

    Returns orthonormal bases P_0, ..., P_L, all of the same n columns, orthogonal to the S_l, and scales s_l > 0 with
    W_l(0) P_{l-1} = s_l P_l and W_l(0)^T P_l = s_l P_{l-1}; W_L(0) ... W_1(0) is 0 on the other idle inputs.

    Semi-orthogonal C_l / eps_l are contractions: an idle input whose length survives all of them keeps it at each, and
    C^T C v = v there, so these directions are invariant. The others are dead ends, whose gradient is 0, if C_L ... C_1
    vanishes on them. Haar layers of any shapes split like this, by test (13,000 random shapes of 2 to 6 layers without
    an exception): a singular value of C_L ... C_1 / prod eps strictly between 0 and 1 belongs to principal angles
    between neighbouring layers, generic ones are simple, and the family holds the directions of simple ones. If several
    angles are equal, they need not be in it, and the idle part does not split.

    Raises ValueError if the idle part does not split in this way; the A_l are exact even then.
    """
    idle = complements(subspaces)
    blocks = seen_from(idle, start)
    whole = chain(blocks, idle[0].shape[1])
    largest = math.prod(float(np.linalg.norm(block, 2)) if block.size else 0.0 for block in blocks)
    _, sizes, right = np.linalg.svd(whole) if whole.size else (None, np.zeros(0), np.eye(whole.shape[1]))
    inner = right[: int(np.sum(sizes > TOLERANCE * largest))].T
    bases, scales = [idle[0] @ inner], []
    for layer, weight in enumerate(start):
        image = weight @ bases[-1]
        scale = float(np.linalg.norm(image) / np.sqrt(max(inner.shape[1], 1)))
        after = image / (scale or 1.0)
        if not np.allclose(weight.T @ after, scale * bases[-1], rtol=0, atol=TOLERANCE * scale):
            raise ValueError(
                f"layer {layer + 1} stretches the idle directions that pass through all layers unequally, so they have "
                "no common scale; start from Haar (semi-)orthogonal layers, or simulate this part"
            )
        bases.append(after)
        scales.append(scale)
    return tuple(bases), np.array(scales)


def passing_scales(scales: Float64[np.ndarray, " depth"], lr: float, decay: float = 0.0) -> Iterator[np.ndarray]:
    """rho(0), rho(1), ..., one entry for each layer: rho_l <- rho_l (1 - eta lam - eta prod_{k != l} rho_k^2)."""
    while True:
        yield scales
        others = np.array([np.prod(np.delete(scales, layer) ** 2) for layer in range(len(scales))])
        scales = scales * (1 - lr * decay - lr * others)


def predicted_run(start: Layers, target: Matrix, lr: float, decay: float = 0.0) -> Iterator[Layers]:
    """(W_1(t), ..., W_L(t)) for t = 0, 1, ... from the family, without ever running the full network.

    W_l(t) = S_l A_l(t) S_{l-1}^T + rho_l(t) P_l P_{l-1}^T + (1 - eta lam)^t D_l: the family trains, the passing
    directions follow the rho recursion from rho_l(0) = s_l, and the dead ends D_l have gradient 0 and only decay.
    The loss is the reduced one plus n/2 prod_l rho_l^2.

    Raises ValueError as `invariant_subspaces` and `passing` do.
    """
    spaces = invariant_subspaces(start, target)
    through, scales = passing(start, spaces)
    trained = _outer(spaces, reduced_start(start, spaces))
    units = _outer(through, tuple(np.eye(through[0].shape[1]) for _ in start))
    dead = [w - s - scale * p for w, s, scale, p in zip(start, trained, scales, units, strict=True)]
    small = spaces[-1].T @ target @ spaces[0]
    runs = zip(
        reduced_run(reduced_start(start, spaces), small, lr, decay), passing_scales(scales, lr, decay), strict=False
    )
    for time, (cores, rho) in enumerate(runs):
        parts = zip(_outer(spaces, cores), rho, units, dead, strict=True)
        yield tuple(s + scale * p + (1 - lr * decay) ** time * d for s, scale, p, d in parts)


def _outer(bases: Bases, cores: Layers) -> Layers:
    """B_l core_l B_{l-1}^T."""
    return tuple(after @ core @ before.T for core, (before, after) in zip(cores, pairwise(bases), strict=True))
