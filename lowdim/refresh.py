"""Move the subspaces of a compressed network while it trains.

Where only part of the target is seen (completion, sensing), the subspaces that `compress` finds at initialisation miss
part of the movement, and cores between frozen outer factors stall. The directions that they miss have hardly moved: in
the wide network they still are where they started, W_l = eps_l Q_l. So once training has shown more of the target, the
subspaces can take in new directions, with cores that go on where the wide network would be.

Ours; the figure `refresh` has what it buys.
"""

from functools import reduce

import torch
from torch import Tensor

from .narrow import Method, Narrow, check_start, joined, leading_pairs


@torch.no_grad()
def refresh(
    narrow: Narrow,
    weights: tuple[Tensor, ...],
    signal: Tensor,
    rank: int,
    *,
    keep: int | None = None,
    method: Method = "exact",
) -> Narrow:
    """The compressed network, gone on to subspaces that also hold the signal, with the same product up to O(prod eps).

        S_0' = S_0 + row(signal) + W_1^T ... W_L^T col(signal),   S_l' = W_l S_{l-1}',

    with the cores of S_l A_l S_{l-1}^T + W_l - S_l A_l(0) S_{l-1}^T: what A_l has learned, and the start elsewhere.

    narrow: made by `compress`, or by this, from the same weights; its left and right untrained.
    weights: the wide start W_1(0), ..., W_L(0), square.
    signal: (d_L, d_0), what the product is to learn, as known now: for completion the product minus the gradient over
        the observed share.
    rank: how many of the signal's leading singular vectors to take in.
    keep: take so many of the product's leading singular directions in place of S_0, so that cores stay at most
        2 (keep + rank) wide however often the network is refreshed; None keeps all of S_0.
    method: how the signal's are found, "exact" or "randomized".

    Raises ValueError as `compress` does, and for layers that are not square, a `keep` out of range, or a narrow network
    that is not from these weights or whose outer factors have been trained.
    """
    check_start(weights, signal, rank)
    if len({size for weight in weights for size in weight.shape}) > 1:
        raise ValueError("only square layers can be refreshed; compress with a larger rank, or train left and right")
    old = _images(weights, narrow.right)
    if old[-1].shape != narrow.left.shape or not torch.allclose(old[-1], narrow.left, atol=_tolerance(signal)):
        raise ValueError("narrow is not from these weights, or its left and right have been trained: give both as made")
    first = _widened(narrow, weights, leading_pairs(signal, rank, method), keep)
    if first.shape[1] >= len(signal):
        raise ValueError(
            f"rank = {rank}, keep = {keep}: cores of {first.shape[1]} would fill the layers of {len(signal)}; take less"
        )
    spaces = _images(weights, first)
    return Narrow(spaces[-1], _continued(narrow.cores, weights, old, spaces), first)


def _widened(narrow: Narrow, weights: tuple[Tensor, ...], pairs: tuple[Tensor, Tensor], keep: int | None) -> Tensor:
    """S_0': what is kept, the signal's rows, and its columns (with those that are kept) seen through the start."""
    kept, (columns, rows) = narrow.right, pairs
    if keep is not None:
        inner = reduce(lambda below, core: core @ below, narrow.cores)
        left, right = leading_pairs(inner, keep, "exact")
        kept, columns = narrow.right @ right, torch.hstack([narrow.left @ left, columns])
    back = reduce(lambda outputs, weight: weight.mT @ outputs, reversed(weights), columns)
    whole = joined(kept, rows, _tolerance(rows))
    return joined(whole, back / torch.linalg.vector_norm(back), _tolerance(rows))


def _tolerance(matrix: Tensor) -> float:
    """Of directions that are in a subspace already, rounding is left."""
    return float(torch.finfo(matrix.dtype).eps ** 0.5)


def _continued(
    cores: tuple[Tensor, ...], weights: tuple[Tensor, ...], old: tuple[Tensor, ...], new: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """S_l'^T (W_l + S_l (A_l - A_l(0)) S_{l-1}^T) S_{l-1}' with A_l(0) = S_l^T W_l S_{l-1}."""
    continued = []
    for layer, (core, weight) in enumerate(zip(cores, weights, strict=True)):
        learned = core - old[layer + 1].mT @ weight @ old[layer]
        moved = weight @ new[layer] + old[layer + 1] @ (learned @ (old[layer].mT @ new[layer]))
        continued.append(new[layer + 1].mT @ moved)
    return tuple(continued)


def _images(weights: tuple[Tensor, ...], first: Tensor) -> tuple[Tensor, ...]:
    """S_0, S_1 = W_1 S_0, ..., S_L, with orthonormal bases as `compress` makes them."""
    spaces = [first]
    for weight in weights:
        spaces.append(torch.linalg.qr(weight @ spaces[-1]).Q)
    return tuple(spaces)
