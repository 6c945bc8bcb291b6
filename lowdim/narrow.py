"""Wide factors -> narrow ones with the same dynamics.

A deep linear network E = W_L ... W_1 that starts (semi-)orthogonal and learns a signal of low rank moves only inside
small subspaces S_0, ..., S_L of its layers. They are the smallest ones with

    row(signal) in S_0,   col(signal) in S_L,   W_l S_{l-1} in S_l,   W_l^T S_l in S_{l-1},

all taken at initialisation. Gradient descent on the cores S_l^T W_l S_{l-1} is the wide run, seen from inside: exactly,
if the gradient stays in the span of the signal (factorization), approximately otherwise (completion, sensing). For
square layers each S_l has 2 rank dimensions; a non-square layer adds `rank` on its wide side; layers wider than what
stands on both sides of them have larger ones still (the tests have a table).

Yaras, Wang, Balzano & Qu 2024, arXiv 2406.04112 (square layers); theory/README.md for the statement and the proof.
"""

from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from .subspace import Method, leading_subspace

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


@torch.no_grad()
def compress(weights: tuple[Tensor, ...], signal: Tensor, rank: int, *, method: Method = "exact") -> Narrow:
    """The narrow network that trains like the wide one.

    weights: W_1, ..., W_L at initialisation, W_l of shape (d_l, d_{l-1}) and eps_l times a (semi-)orthogonal matrix;
        any eps_l > 0.
    signal: (d_L, d_0), what the product is to learn, up to scale: the target, its observed part, or minus the gradient
        of the loss with respect to the product at initialisation.
    rank: of the signal, or an upper estimate; only its leading `rank` singular vectors are used. The cores are
        2 rank x 2 rank for square layers, so 2 rank must be below every hidden width.
    method: how the signal's leading subspace is found, "exact" or "randomized" (see `leading_subspace`).

    Raises ValueError if shapes do not chain, dtypes or devices differ or are half precision, the signal is zero or not
    finite, a layer is not (semi-)orthogonal, or nothing would become narrower.
    """
    _check(weights, signal, rank)
    columns = leading_subspace(signal, rank, method=method)
    rows = torch.linalg.qr(signal.mT @ columns).Q
    spaces = invariant_spaces(weights, rows, columns)
    if all(space.shape[1] == len(space) for space in spaces[1:-1]):
        raise ValueError(
            f"the invariant subspaces fill the hidden layers of widths {[len(space) for space in spaces[1:-1]]}, so "
            "nothing would become narrower; hidden layers wider than both ends need more than d_0 + d_L"
        )
    cores = tuple(after.mT @ weight @ before for weight, (before, after) in zip(weights, pairwise(spaces), strict=True))
    return Narrow(spaces[-1], cores, spaces[0])


def invariant_spaces(weights: tuple[Tensor, ...], rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
    """Orthonormal bases of S_0, ..., S_L, grown by sweeps up and down until their dimensions stay.

    A direction is new if it leaves the span by more than the layers miss orthogonality, or sqrt(machine precision):
    what rounding leaves is far below that, and a generic new direction is of order 1.
    """
    defect = max(orthogonality_defect(weight) for weight in weights)
    tolerance = max(10 * defect, torch.finfo(rows.dtype).eps ** 0.5)
    spaces = [rows, *(rows.new_zeros(len(weight), 0) for weight in weights[:-1]), columns]
    sizes = None
    while sizes != (sizes := [space.shape[1] for space in spaces]):
        for layer, weight in enumerate(weights):
            spaces[layer + 1] = _joined(spaces[layer + 1], weight @ spaces[layer], tolerance)
        for layer, weight in reversed(list(enumerate(weights))):
            spaces[layer] = _joined(spaces[layer], weight.mT @ spaces[layer + 1], tolerance)
    return tuple(spaces)


def orthogonality_defect(weight: Tensor) -> float:
    """How far a layer is from eps times a (semi-)orthogonal matrix: |W^T W x - eps^2 x| / |eps^2 x|, NaN for a zero W.

    x is one random vector (and W^T W becomes W W^T if W is wide), so that neither product is ever formed.
    """
    tall = weight if len(weight) >= weight.shape[1] else weight.mT
    generator = torch.Generator(weight.device).manual_seed(0)
    probe = torch.randn(tall.shape[1], generator=generator, dtype=weight.dtype, device=weight.device)
    square = weight.square().sum() / tall.shape[1]  # eps^2
    return float(torch.dist(tall.mT @ (tall @ probe), square * probe) / (square * probe.norm()))


def _joined(basis: Tensor, directions: Tensor, tolerance: float) -> Tensor:
    """The basis, extended by what of the directions lies outside its span, relative to the largest of them."""
    outside = directions - basis @ (basis.mT @ directions)
    new, sizes, _ = torch.linalg.svd(outside, full_matrices=False)
    new = new[:, sizes > tolerance * torch.linalg.matrix_norm(directions, 2)][:, : len(basis) - basis.shape[1]]
    new = torch.linalg.qr(new - basis @ (basis.mT @ new)).Q  # a small remainder keeps little orthogonality: once more
    return torch.hstack([basis, new])


def _check(weights: tuple[Tensor, ...], signal: Tensor, rank: int) -> None:
    if len(weights) < 2 or any(weight.ndim != 2 for weight in weights):
        raise ValueError(f"{len(weights)} weights: give at least two matrices, W_1 first")
    shapes = [tuple(weight.shape) for weight in weights]
    if any(after[1] != before[0] for before, after in pairwise(shapes)):
        raise ValueError(f"weights of shapes {shapes} do not chain: W_l must be (d_l, d_{{l-1}}), W_1 first")
    if tuple(signal.shape) != (shapes[-1][0], shapes[0][1]):
        raise ValueError(f"signal of shape {tuple(signal.shape)}: the product is {(shapes[-1][0], shapes[0][1])}")
    if len({(tensor.dtype, tensor.device) for tensor in (*weights, signal)}) > 1 or signal.dtype not in FLOATS:
        raise ValueError("weights and signal need one device and one dtype, float32 or float64; convert them first")
    if not signal.any():
        raise ValueError("the signal is zero, so there is nothing to learn: is the gradient that of an unused layer?")
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
