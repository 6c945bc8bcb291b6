"""What `compress` makes of a random orthogonal start, drawn without ever making its wide layers.

A deep linear network W_L ... W_1 whose layers start as scale times Haar orthogonal matrices starts at scale^L Q, Q
Haar. With U, V the leading singular vectors of the signal, its compression starts on S_0 = V + Q^T U and S_L = Q S_0,
whose law is known: A = Q^T U is a uniform orthonormal frame, whatever V is, and given A, Q takes what V adds to A to a
uniform frame of the complement of U. So with Gaussian matrices A, B, and qr keeping the span and the sign of its first
columns,

    right = qr [A  V],    left = qr [U  B],    core_1 = ... = core_L = scale I

is a draw of what `compress` makes of such layers, the same law exactly, at the cost of two thin QRs instead of L wide
ones. Where d_0 and d_L differ, the subspaces of generic semi-orthogonal layers have `rank` more dimensions on the long
side, because W_1 has a null space (or W_L^T, if d_L is the larger) that holds a part of V (of U). Here the layers are
uniform among those whose null space holds none, so that 2 rank suffice on both sides and the narrow run is as exact as
for square layers: right = qr [V A], left = qr [B U] if d_0 > d_L, as above if d_L > d_0.

Yaras, Wang, Balzano & Qu 2024, arXiv 2406.04112; the tests widen such a draw again, and compare its law.
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
    generator: draws A and B on the CPU, so that a start is the same on every device, up to rounding.
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
    columns, rows = _signed(*leading_pairs(signal, rank, method))
    long, short = (rows, columns) if len(rows) > len(columns) else (columns, rows)
    beside, images = (_gaussian(side, generator) for side in (long, short))
    ends = _orthonormal(long, beside), _orthonormal(images, short)
    right, left = ends if long is rows else reversed(ends)
    core = scale * torch.eye(2 * rank, dtype=signal.dtype, device=signal.device)
    return Narrow(left, tuple(core.clone() for _ in range(depth)), right)


def _signed(columns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of singular vectors with signs of their own, whichever library found them: largest entry of u positive."""
    largest = columns.gather(0, columns.abs().argmax(0, keepdim=True))
    signs = torch.where(largest < 0, -1, 1)
    return columns * signs, rows * signs


def _gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    """As many random directions as `like` has columns, on its device and of its dtype."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device="cpu").to(like.device)


def _orthonormal(*parts: Tensor) -> Tensor:
    """Gram-Schmidt: LAPACK's QR has signs of its own, which make the frame of a Gaussian matrix other than uniform."""
    basis, scales = torch.linalg.qr(torch.hstack(parts))
    return basis * torch.where(scales.diagonal() < 0, -1, 1)
