"""The factors with which an adapter of one layer starts, before any gradient is seen."""

from zlib import crc32

import torch
from torch import Tensor

from ...narrow import Narrow
from .config import DeepLoraConfig


def width(config: DeepLoraConfig, shape: tuple[int, int], layer: str) -> int:
    """The hidden width of an adapter of the m x n layer of that name; ValueError if the rank is larger than fits."""
    if config.form == "wide":
        return min(shape)
    if config.rank > min(shape):
        raise ValueError(
            f"rank = {config.rank} of layer {layer!r}, whose weight is {shape[0]} x {shape[1]}: take rank <= "
            f"{min(shape)}, or leave the layer out with exclude_modules"
        )
    return config.rank


def generator(config: DeepLoraConfig, layer: str) -> torch.Generator:
    """The layer's own stream of random numbers, which depends on the seed and the layer's name alone.

    Both in 32 bits, because torch's CPU generator ignores all others of its seed.
    """
    return torch.Generator().manual_seed(crc32(f"{config.seed} {layer}".encode()))


def start(config: DeepLoraConfig, shape: tuple[int, int], layer: str) -> Narrow:
    """The random start for an m x n layer: its first and last factors as right^T and left, the others as cores.

    compressed: orthonormal left and right, and L cores scale I. narrow, wide: L factors, scale times (semi-)orthogonal.
    """
    size, draws = width(config, shape, layer), generator(config, layer)
    scale = config.scale if config.init_weights else 1.0
    compressed = config.form == "compressed"
    left, right = (_orthogonal(rows, size, 1.0 if compressed else scale, draws) for rows in shape)
    if compressed and config.init_weights:
        return Narrow(left, tuple(scale * torch.eye(size, device="cpu") for _ in range(config.depth)), right)
    count = config.depth if compressed else config.depth - 2
    return Narrow(left, tuple(_orthogonal(size, size, scale, draws) for _ in range(count)), right)


def _orthogonal(rows: int, columns: int, scale: float, draws: torch.Generator) -> Tensor:
    """scale times a random matrix with orthonormal columns, on the CPU: the same on every device, also under `meta`."""
    empty = torch.empty(rows, columns, device="cpu")
    return torch.nn.init.orthogonal_(empty, gain=scale, generator=draws)
