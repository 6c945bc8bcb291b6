"""Wide factors -> narrow ones with the same dynamics.

A deep linear network E = W_L ... W_1 that starts (semi-)orthogonal and learns a signal of low rank trains only inside
small subspaces S_0, ..., S_L of its layers; outside, it is rescaled at most. They are the smallest ones with

    row(signal) in S_0,   col(signal) in S_L,   W_l S_{l-1} in S_l,   W_l^T S_l in S_{l-1},

all taken at initialisation. Gradient descent on the cores S_l^T W_l S_{l-1} is the wide run, seen from inside: exactly,
if the gradient is made of E and the signal alone (factorization), approximately otherwise (completion, sensing). For
square layers S_0 = row(signal) + W_1^T ... W_L^T col(signal), one QR of 2 rank columns, and S_l = W_l S_{l-1}. A
non-square layer adds `rank` on its wide side; layers wider than what stands on both sides of them have still larger
ones (the tests have a table).

Yaras, Wang, Balzano & Qu 2024, arXiv 2406.04112 (square layers); theory/README.md for the statement and the proof.
"""

import math
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from .subspace import leading_subspace

Method = Literal["exact", "randomized"]
FLOATS = (torch.float32, torch.float64)
LARGEST_DEFECT = 1e-4
"""Orthogonal layers drawn in float32 have 1e-6, those that went through float16 about 5e-4, Gaussian ones about 1."""


@dataclass(frozen=True, eq=False)
class Narrow:
    """The network left @ core_L @ ... @ core_1 @ right.mT, kept factored.

    left: (d_L, k_L) and right: (d_0, k_0), orthonormal columns when `compress` made them; cores: (k_l, k_{l-1}) each.
    """

    left: Tensor
    cores: tuple[Tensor, ...]
    right: Tensor

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """All L + 2 of them in the order in which they act on an input: right.mT, core_1, ..., core_L, left."""
        return (self.right.mT, *self.cores, self.left)

    def product(self) -> Tensor:
        """The dense d_L x d_0 end-to-end matrix."""
        return reduce(lambda below, factor: factor @ below, self.factors)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Inputs (..., d_0) -> outputs (..., d_L), without forming the dense matrix."""
        return reduce(lambda below, factor: below @ factor.mT, self.factors, inputs)

    def parameter_groups(self, lr: float, outer: float) -> list[dict[str, Any]]:
        """Groups for a torch optimizer: the cores at `lr`, left and right at `outer` times that.

        outer: gamma of Yaras et al. for what `compress` made: 0 (then left and right stay frozen) where the whole
            target is seen, about 0.01 where a part is. alpha of Kwon et al. for what `spectral` made: 1 to 10, a larger
            one being faster until it is unstable.

        Switches on the gradients of what trains and off those of what does not.
        """
        if not 0 <= outer < math.inf or not 0 < lr < math.inf:
            raise ValueError(f"lr = {lr}, outer = {outer}: take a finite lr > 0 and a finite outer >= 0")
        ends = [factor.requires_grad_(outer > 0) for factor in (self.left, self.right)]
        groups = [{"params": [core.requires_grad_() for core in self.cores], "lr": lr}]
        return groups + [{"params": ends, "lr": outer * lr}] * (outer > 0)


@torch.no_grad()
def spectral(signal: Tensor, rank: int, depth: int, scale: float, *, method: Method = "exact") -> Narrow:
    """The narrow network of `depth` factors that starts on the signal's leading singular subspaces.

        W_1 = scale V^T,  W_2 = ... = W_{L-1} = scale I,  W_L = scale U,    U, V: the `rank` leading singular vectors

    (Kwon et al. 2023, arXiv 2311.05061). Unlike `compress` it mimics no given wide start, so that no wide layer is ever
    made; its outer factors are two of its L, carry the scale and train, at alpha >= 1 times the rate of the others.

    signal: (d_L, d_0), what is seen of the target, up to scale: the target (factorization), its observed part
        (completion), sum_i y_i A_i (sensing), or minus the gradient at a product of zero, which is all of these.
    rank: the width of the network, the target's rank or more; the paper's experiments take twice its rank.
    depth: L >= 2. scale: eps > 0.
    method: how the signal's leading subspaces are found, "exact" or "randomized" (see `leading_subspace`).

    Raises ValueError if an argument is out of range, or the signal is zero, not finite or of half precision.
    """
    if depth < 2 or not 0 < scale < math.inf:
        raise ValueError(f"depth = {depth}, scale = {scale}: take depth >= 2 and a finite scale > 0")
    left, right = leading_pairs(signal, rank, method)
    cores = tuple(scale * torch.eye(rank, dtype=signal.dtype, device=signal.device) for _ in range(depth - 2))
    return Narrow(scale * left, cores, scale * right)


def leading_pairs(signal: Tensor, rank: int, method: Method) -> tuple[Tensor, Tensor]:
    """Bases of the signal's `rank` leading left and right singular vectors, the latter paired with the former."""
    if method not in ("exact", "randomized"):
        raise ValueError(f"method = {method!r}: take 'exact' or 'randomized'")
    if signal.dtype not in FLOATS:
        raise ValueError(f"a signal of {signal.dtype}: give float32 or float64")
    if not signal.any():
        raise ValueError("the signal is zero, so there is nothing to learn: is the gradient that of an unused layer?")
    left = leading_subspace(signal, rank, method=method)
    right, scales = torch.linalg.qr(signal.mT @ left)  # signal^T U = V Sigma: row(signal) without a second SVD
    return left, right * torch.where(scales.diagonal() < 0, -1, 1)  # pairs: u_i^T signal v_i >= 0


@torch.no_grad()
def compress(weights: tuple[Tensor, ...], signal: Tensor, rank: int, *, method: Method = "exact") -> Narrow:
    """The narrow network that trains like the wide one.

    weights: W_1, ..., W_L at initialisation, W_l of shape (d_l, d_{l-1}) and eps_l times a (semi-)orthogonal matrix;
        any eps_l > 0.
    signal: (d_L, d_0), what the product is to learn, up to scale: the target, its observed part, or minus the gradient
        of the loss with respect to the product at initialisation. The last differs from the target by the product at
        initialisation; where that is not small and lines up with the target (a start near the identity, say), its
        leading singular vectors are others: give the target.
    rank: of the signal, or an upper estimate; only its leading `rank` singular vectors are used. The cores are
        2 rank x 2 rank for square layers, so 2 rank must be below every hidden width.
    method: how the signal's leading subspace is found, "exact" or "randomized" (see `leading_subspace`).

    Raises ValueError if shapes do not chain, dtypes or devices differ or are half precision, the signal is zero or not
    finite, a layer is not (semi-)orthogonal, or nothing would become narrower.
    """
    check_start(weights, signal, rank)
    columns, rows = leading_pairs(signal, rank, method)
    spaces = invariant_spaces(weights, rows, columns)
    if all(space.shape[1] == len(space) for space in spaces[1:-1]):
        raise ValueError(
            f"the invariant subspaces fill the hidden layers of widths {[len(space) for space in spaces[1:-1]]}, so "
            "nothing would become narrower; hidden layers wider than both ends need more than d_0 + d_L"
        )
    cores = tuple(after.mT @ weight @ before for weight, (before, after) in zip(weights, pairwise(spaces), strict=True))
    return Narrow(spaces[-1], cores, spaces[0])


def invariant_spaces(weights: tuple[Tensor, ...], rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
    """Orthonormal bases of S_0, ..., S_L for orthonormal bases of row(signal) and col(signal).

    As exact as the layers are orthogonal: their defects, at most 1e-4, are what the narrow run may deviate by.
    """
    if len({size for weight in weights for size in weight.shape}) > 1:
        return _grown(weights, rows, columns)
    back = reduce(lambda outputs, weight: weight.mT @ outputs, reversed(weights), columns)
    spaces = [torch.linalg.qr(torch.hstack([rows, back / torch.linalg.vector_norm(back)])).Q]
    for weight in weights:
        spaces.append(torch.linalg.qr(weight @ spaces[-1]).Q)
    return tuple(spaces)


def _grown(weights: tuple[Tensor, ...], rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
    """The subspaces for layers of any shapes: sweeps up and down, until no dimension grows.

    A direction is new if it leaves the span by more than ten times what the layers miss orthogonality, or the square
    root of the machine precision: rounding leaves far less, and a generic new direction is of order 1.
    """
    defect = max(orthogonality_defect(weight) for weight in weights)
    tolerance = max(10 * defect, torch.finfo(rows.dtype).eps ** 0.5)
    spaces = [rows, *(rows.new_zeros(len(weight), 0) for weight in weights[:-1]), columns]
    before: list[int] = []
    while (sizes := [space.shape[1] for space in spaces]) != before:
        before = sizes
        for layer, weight in enumerate(weights):
            spaces[layer + 1] = joined(spaces[layer + 1], weight @ spaces[layer], tolerance)
        for layer, weight in reversed(list(enumerate(weights))):
            spaces[layer] = joined(spaces[layer], weight.mT @ spaces[layer + 1], tolerance)
    return tuple(spaces)


def orthogonality_defect(weight: Tensor) -> float:
    """How far a layer is from eps times a (semi-)orthogonal matrix: the largest |W^T W x - eps^2 x| / |eps^2 x|.

    Over 16 random x (and with W W^T if W is wide), so that W^T W is never formed. NaN for a layer of zeros.
    """
    tall = weight if len(weight) >= weight.shape[1] else weight.mT
    generator = torch.Generator(weight.device).manual_seed(0)
    probes = torch.randn(tall.shape[1], 16, generator=generator, dtype=weight.dtype, device=weight.device)
    square = weight.square().sum() / tall.shape[1]  # eps^2
    defects = (tall.mT @ (tall @ probes) / square - probes).norm(dim=0) / probes.norm(dim=0)
    return float(defects.max())


def joined(basis: Tensor, directions: Tensor, tolerance: float) -> Tensor:
    """The basis, extended by what of the directions lies outside its span, relative to their mean length."""
    outside = directions - basis @ (basis.mT @ directions)
    new, sizes, _ = torch.linalg.svd(outside, full_matrices=False)
    new = new[:, sizes > tolerance * directions.norm() / directions.shape[1] ** 0.5]
    new = new[:, : len(basis) - basis.shape[1]]  # never more than fit
    new = torch.linalg.qr(new - basis @ (basis.mT @ new)).Q  # a small remainder keeps little orthogonality: once more
    return torch.hstack([basis, new])


def check_start(weights: tuple[Tensor, ...], signal: Tensor, rank: int) -> None:
    """Raise ValueError unless weights are a (semi-)orthogonal start and the signal and rank fit them."""
    shapes = [tuple(weight.shape) for weight in weights]
    if len(weights) < 2 or any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"weights of shapes {shapes}: give at least two matrices, W_1 first")
    if any(after[1] != before[0] for before, after in pairwise(shapes)):
        raise ValueError(f"weights of shapes {shapes} do not chain: W_l must be (d_l, d_{{l-1}}), W_1 first")
    if tuple(signal.shape) != (shapes[-1][0], shapes[0][1]):
        raise ValueError(f"signal of shape {tuple(signal.shape)}: the product is {(shapes[-1][0], shapes[0][1])}")
    if len({(tensor.dtype, tensor.device) for tensor in (*weights, signal)}) > 1 or signal.dtype not in FLOATS:
        raise ValueError("weights and signal need one device and one dtype, float32 or float64; convert them first")
    hidden = min(rows for rows, _ in shapes[:-1])
    if 2 * rank >= hidden:
        raise ValueError(
            f"rank = {rank}: 2 rank = {2 * rank} does not fit below the narrowest hidden layer, {hidden}; "
            f"take rank <= {(hidden - 1) // 2}, or train the network as it is"
        )
    for layer, weight in enumerate(weights, 1):
        if not (defect := orthogonality_defect(weight)) < LARGEST_DEFECT:
            raise ValueError(
                f"layer {layer} is not a multiple of a (semi-)orthogonal matrix (relative defect {defect:.1e}), so it "
                "moves in the whole space; start it with torch.nn.init.orthogonal_ in float32 or float64, times a scale"
            )
