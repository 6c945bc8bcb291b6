"""A gradient in a small subspace, and the way back.

G a gradient of d_0 x d_1 x ...; U_i an orthonormal basis (d_i, r_i) of some of its modes; R, the core:

    R = G x_i U_i^T,    back(R) = R x_i U_i.

One mode of a matrix is GaLore's projection, P^T G or G P; both are its "full" one; modes 0 and 1 of a convolution's
kernel are Tucker's. Zhao et al. 2024, arXiv 2403.03507, section 3; De Lathauwer, De Moor & Vandewalle 2000 (HOSVD).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

Bases = Mapping[int, Tensor]
"""By mode, an orthonormal basis (d_mode, r_mode)."""


def project(gradient: Tensor, bases: Bases) -> Tensor:
    """R: every mode that has a basis shrinks from d to r."""
    for mode, basis in bases.items():
        gradient = along(gradient, basis.mT, mode)
    return gradient


def back(core: Tensor, bases: Bases) -> Tensor:
    """The tensor of the gradient's shape whose core this is."""
    for mode, basis in bases.items():
        core = along(core, basis, mode)
    return core


def along(tensor: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """The product of a matrix with a mode of a tensor: (k, d) and (..., d, ...) to (..., k, ...)."""
    matrix = matrix.to(tensor.dtype)
    if tensor.ndim == 2:
        return matrix @ tensor if mode == 0 else tensor @ matrix.mT
    return torch.tensordot(matrix, tensor, dims=([1], [mode])).movedim(0, mode)


def rotation(before: Bases, after: Bases) -> Bases:
    """What takes a core in the old bases to the new ones, by mode: O = U_new^T U_old, (r, r)."""
    return {mode: basis.mT @ before[mode].to(basis.dtype) for mode, basis in after.items()}


def rotated(core: Tensor, turn: Bases, *, squared: bool = False) -> Tensor:
    """A moment in the new bases: O M of the first one, and of the second (O * O) V, as if its entries were independent.

    Robert et al. 2024 (LDAdam, arXiv 2410.16103) turn moments so, up to a correction of the second.
    """
    for mode, matrix in turn.items():
        core = along(core, matrix.square() if squared else matrix, mode)
    return core
