"""Leading singular subspaces of a matrix, and the angles between subspaces.

The one place that finds a subspace: networks are compressed with it (narrow.py), and so are adapters and gradients.
"""

from typing import Literal

import torch
from torch import Tensor

Method = Literal["exact", "randomized", "warm"]
Side = Literal["left", "right"]

OVERSAMPLING = 10  # extra random directions; Halko et al. 2011 recommend 5 to 10


def leading_subspace(
    matrix: Tensor,
    rank: int,
    *,
    side: Side = "left",
    method: Method = "exact",
    start: Tensor | None = None,
    passes: int = 2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """An orthonormal basis of the span of the `rank` leading left singular vectors; shape (rows, rank).

    The basis has the device and dtype of the matrix; half precision is computed in float32.

    matrix: (rows, cols), finite.
    rank: 1 <= rank <= min(rows, cols).
    side: "right" takes the right singular vectors; shape (cols, rank). The same as for `matrix.mT`, up to signs.
    method: "exact", one thin SVD. "randomized", subspace iteration from rank + 10 random directions (Halko, Martinsson
        & Tropp 2011, arXiv 0909.4061, Algorithms 4.4 and 5.1): the leading vectors lie in the span of these up to a
        sine of order (sigma_{rank+11} / sigma_rank)^(2 passes + 1), and which `rank` of them are the leading ones is as
        certain as the gap between sigma_rank and sigma_{rank+1} makes it. "warm", the same iteration from `start`,
        without extra directions: cheap where a slowly changing matrix had the subspace `start` a little earlier. Its
        basis stays as near to `start` as Gram-Schmidt allows, column by column; the others' are singular vectors.
    start: (rows, rank), or (cols, rank) for the right side; required by "warm" and by it alone. Linearly independent
        columns, orthonormal or not.
    passes: power iterations of the last two methods, >= 1; each multiplies by the matrix and its transpose.
    generator: draws the random directions; by default one seeded with 0, so that all processes of a job agree.

    Raises ValueError if an argument is out of range or the matrix is not finite.
    """
    _check(matrix, rank, side, method, start, passes)
    work = _computable(matrix)
    if method == "exact":  # a copy: a view would keep all singular vectors alive
        found = torch.linalg.svd(work, full_matrices=False)
        vectors = found.U[:, :rank] if side == "left" else found.Vh[:rank].mT
        return vectors.to(matrix.dtype, copy=True).contiguous()
    work = work if side == "left" else work.mT
    if start is not None:
        return _warm(work, start.to(work.dtype), passes).to(matrix.dtype)
    return _randomized(work, rank, passes, generator).to(matrix.dtype)


def _randomized(work: Tensor, rank: int, passes: int, generator: torch.Generator | None) -> Tensor:
    basis = torch.linalg.qr(work @ _directions(work, rank, generator)).Q
    for _ in range(passes):
        basis = torch.linalg.qr(work.mT @ basis).Q
        basis = torch.linalg.qr(work @ basis).Q
    return basis @ torch.linalg.svd(basis.mT @ work, full_matrices=False).U[:, :rank]


def _warm(work: Tensor, basis: Tensor, passes: int) -> Tensor:
    """One QR a pass, on the short side, costs what lies below sigma_1 times the root of the machine precision."""
    for _ in range(passes):
        basis, scales = torch.linalg.qr(work @ _near_one(work.mT @ basis))
        basis = basis * torch.where(
            scales.diagonal() < 0, -1, 1
        )  # work work^T is positive: directions keep their signs
    return basis.contiguous()


def _near_one(matrix: Tensor) -> Tensor:
    """Divided by a power of two, which rounds nothing: float32 has no square of 1e20, nor of 1e-23."""
    _, exponent = torch.frexp(matrix.abs().amax())
    return torch.ldexp(matrix, -exponent.clamp(-126, 126))


def _computable(matrix: Tensor) -> Tensor:
    """The matrix in a precision that LAPACK has."""
    return matrix.float() if matrix.dtype in (torch.bfloat16, torch.float16) else matrix


def _directions(matrix: Tensor, rank: int, generator: torch.Generator | None) -> Tensor:
    """Gaussian directions in the space of the matrix's rows, a few more than `rank`."""
    generator = generator or torch.Generator(matrix.device).manual_seed(0)
    shape = (matrix.shape[1], min(rank + OVERSAMPLING, *matrix.shape))
    return torch.randn(shape, generator=generator, dtype=matrix.dtype, device=matrix.device)


def principal_angles(basis: Tensor, other: Tensor) -> Tensor:
    """The principal angles between two subspaces in radians, smallest first; shape (min(k, l),).

    From sines where an angle is small and from cosines where it is large, so that each is accurate to machine precision
    (Björck & Golub 1973, Math. Comp. 27).

    basis, other: (rows, k) and (rows, l), finite, of one dtype, with linearly independent columns, orthonormal or not.

    Raises ValueError for other shapes, dtypes or non-finite entries; dependent columns are not noticed.
    """
    shapes = [tuple(matrix.shape) for matrix in (basis, other)]
    if basis.ndim != 2 or other.ndim != 2 or len(basis) != len(other) or max(*basis.shape, *other.shape) > len(basis):
        raise ValueError(f"bases of shapes {shapes}: give two with equally many rows, and no more columns than rows")
    if basis.dtype != other.dtype or not (finite(basis) and finite(other)):
        raise ValueError(f"bases of dtypes {basis.dtype} and {other.dtype}: give finite ones of one dtype")
    if basis.shape[1] < other.shape[1]:
        basis, other = other, basis
    larger, smaller = torch.linalg.qr(_computable(basis)).Q, torch.linalg.qr(_computable(other)).Q
    inner = larger.mT @ smaller
    cosines = torch.linalg.svdvals(inner).clamp(max=1)
    sines = torch.linalg.svdvals(smaller - larger @ inner).clamp(max=1).flip(0)
    return torch.where(cosines**2 > 0.5, sines.asin(), cosines.acos())


def _check(matrix: Tensor, rank: int, side: Side, method: Method, start: Tensor | None, passes: int) -> None:
    if matrix.ndim != 2 or not matrix.is_floating_point():
        raise ValueError(f"a {matrix.dtype} tensor of shape {tuple(matrix.shape)}: give a floating-point matrix")
    if not 1 <= rank <= min(matrix.shape):
        raise ValueError(f"rank = {rank} of a {tuple(matrix.shape)} matrix: take 1 <= rank <= {min(matrix.shape)}")
    if method not in ("exact", "randomized", "warm") or side not in ("left", "right"):
        raise ValueError(
            f"side = {side!r}, method = {method!r}: take 'exact', 'randomized' or 'warm'; 'left' or 'right'"
        )
    if (start is not None) != (method == "warm"):
        raise ValueError(
            f"method = {method!r} with start = {start if start is None else 'given'}: 'warm' alone needs one"
        )
    rows = matrix.shape[0 if side == "left" else 1]
    if start is not None and (start.shape != (rows, rank) or not finite(start)):
        raise ValueError(f"start of shape {tuple(start.shape)}: 'warm' needs a finite ({rows}, {rank}), rows by rank")
    if passes < 1:
        raise ValueError(f"passes = {passes}: take at least one power iteration")
    if not finite(matrix):
        raise ValueError(
            "the matrix holds NaN or infinity: find the step that made it (is the learning rate too large?)"
        )


def finite(tensor: Tensor) -> bool:
    """Whether all entries are: in one pass, since NaN is passed on; eight times faster than isfinite of each."""
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())
