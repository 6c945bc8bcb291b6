"""What `compress` makes of a random orthogonal start, drawn without ever making its wide layers.

A deep linear network E = W_L ... W_1 whose layers start as scale times Haar orthogonal matrices has the end-to-end start
scale^L Q with Q Haar. Its compression depends on Q only through the subspaces S_0 = V + Q^T U and S_L = Q S_0 (U, V: the
leading singular vectors of the signal), and of a Haar Q these are known in law: Q^T U is a random frame A, and Q takes
what V adds to A to random directions B beside U. So

    right = qr [A  V],    left = qr [U  B],    core_1 = ... = core_L = scale I,

at the cost of two thin QRs, where a wide start costs L QRs of the layer's width. The invariant subspaces of a layer
with more inputs than outputs (or the reverse) have `rank` more dimensions on its long side if the semi-orthogonal W_1
is generic. Here the row space of W_1 is drawn through V, so that both sides have 2 rank and the narrow run stays exact.

Yaras, Wang, Balzano & Qu 2024, arXiv 2406.04112; the tests widen such a draw again and hand it to `compress`.
"""

import math

import torch
from torch import Tensor

from .narrow import Method, Narrow, leading_pairs


@torch.no_grad()
def compress_haar(
    signal: Tensor, rank: int, depth: int, scale: float, *, generator: torch.Generator, method: Method = "exact"
) -> Narrow:
    """A draw of `compress(weights, signal, rank)` for `depth` random orthogonal layers of hidden width min(d_0, d_L).

    signal: (d_L, d_0), what the product is to learn, up to scale: minus the gradient at a product of zero.
    rank: its rank or an upper estimate, 1 <= rank <= min(d_0, d_L) / 2; the cores are 2 rank x 2 rank.
    depth: L >= 2. scale: eps > 0.
    generator: draws A and B on the CPU, so that a start is the same on every device.
    method: how the signal's leading subspaces are found, "exact" or "randomized" (see `leading_subspace`).

    Raises ValueError if an argument is out of range, or the signal is zero, not finite or of half precision.
    """
    if depth < 2 or not 0 < scale < math.inf:
        raise ValueError(f"depth = {depth}, scale = {scale}: take depth >= 2 and a finite scale > 0")
    if not 1 <= rank <= min(signal.shape) // 2:
        raise ValueError(
            f"rank = {rank}: 2 rank = {2 * rank} directions do not fit into a {tuple(signal.shape)} signal; "
            f"take 1 <= rank <= {min(signal.shape) // 2}"
        )
    columns, rows = leading_pairs(signal, rank, method)
    before, beside = (_gaussian(side, generator) for side in (rows, columns))
    right = torch.linalg.qr(torch.hstack([before, rows])).Q
    left = torch.linalg.qr(torch.hstack([columns, beside])).Q
    core = scale * torch.eye(2 * rank, dtype=signal.dtype, device=signal.device)
    return Narrow(left, tuple(core.clone() for _ in range(depth)), right)


def _gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    """As many random directions as `like` has columns, on its device and of its dtype."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device="cpu").to(like.device)
