"""lowdim: find the small subspace in which a deep low-rank model trains, and train only there."""

from .narrow import Narrow, compress, spectral
from .refresh import refresh
from .subspace import leading_subspace, principal_angles

__all__ = ["Narrow", "compress", "leading_subspace", "principal_angles", "refresh", "spectral"]
