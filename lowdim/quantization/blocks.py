"""Tensors in 8 bits: a code for each element, a float32 scale for each block of 256 of them.

    x_i = scale_b law(code_i),      scale_b = max |x| over the block b of i, in row-major order; the last may be shorter

so 1 + 4/256 bytes an element. A codec is a law for codes; plain tensors hold them, for state_dict and safetensors.
Blocks: Dettmers, Lewis, Shleifer & Zettlemoyer 2022, arXiv 2110.02861, section 2.1.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 256  # elements that share a scale
CHUNK = 160 * BLOCK  # elements worked on at once: three float32 buffers of them are 0.47 MiB, and stay in the cache


class Quantized(NamedTuple):
    """codes: int8 or uint8, of the tensor's shape; scales: float32 (ceil(elements / 256),)."""

    codes: Tensor
    scales: Tensor

    @property
    def nbytes(self) -> int:
        """n + 4 ceil(n / 256) for n elements."""
        return self.codes.nbytes + self.scales.nbytes


class Codec(ABC):
    """A law for codes. Deterministic, and the same whatever the chunk; NaN or infinity spoils its own block alone."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the codes."""

    @property
    @abstractmethod
    def zero(self) -> int:
        """The code of 0."""

    @abstractmethod
    def pack(self, codes: Tensor, scales: Tensor, values: Tensor, work: Tensor, offset: Tensor | float = 0.5) -> None:
        """Write the codes (blocks, 256) and scales (blocks, 1) of float32 values (blocks, 256).

        values: overwritten, and so is `work`, which is like them.
        offset: is added to a code before its fraction is dropped, in (0, 1): 1/2 for the nearest; one number, or (256,)
            for the places in a block. A law that looks its codes up has no fractions and does not use it.
        """

    @abstractmethod
    def unpack(self, codes: Tensor, scales: Tensor, values: Tensor, work: Tensor) -> None:
        """The way back, shapes as in `pack`: write `values`; `work` is overwritten."""

    def zeros(self, like: Tensor) -> Quantized:
        """What decodes to zeros of this shape, on this device."""
        codes = torch.full(like.shape, self.zero, dtype=self.dtype, device=like.device)
        return Quantized(codes, torch.zeros(-(-like.numel() // BLOCK), dtype=torch.float32, device=like.device))

    @torch.no_grad()
    def encode(self, values: Tensor, out: Quantized | None = None, *, chunk: int = CHUNK) -> Quantized:
        """The nearest codes, into `out` if given; works in float32 with scratch for a few times `chunk` elements.

        values: any shape and floating dtype; copied first if not contiguous. What float32 cannot hold becomes infinite.
        chunk: elements at once, a multiple of 256; on a GPU large ones save launches.

        Raises ValueError for values that are not floating, an `out` that does not fit, or an impossible chunk.
        """
        if not values.is_floating_point():
            raise ValueError(f"values of dtype {values.dtype}: give a floating-point tensor")
        found = self.zeros(values) if out is None else out
        self.check(found, values)
        buffers = scratch(2, values, chunk)
        codes, inputs = Rows(found.codes, chunk, self.zero), Rows(values, chunk)
        for row, scales, source in zip(codes.pieces, codes.scales(found.scales), inputs.pieces, strict=True):
            value, work = buffers[:, : row.shape[0]]
            self.pack(row, scales, value.copy_(source), work)
        codes.close()
        return found

    @torch.no_grad()
    def decode(self, quantized: Quantized, out: Tensor | None = None, *, chunk: int = CHUNK) -> Tensor:
        """The values, float32 or into `out`, of any floating dtype, contiguous or not; `chunk` as in `encode`.

        Raises ValueError for codes and scales that do not fit together, an `out` that does not fit, or the chunk.
        """
        given = torch.empty_like(quantized.codes, dtype=torch.float32) if out is None else out
        self.check(quantized, given)
        buffers = scratch(2, given, chunk)
        codes, outputs = Rows(quantized.codes, chunk, self.zero), Rows(given, chunk)
        for row, scales, target in zip(codes.pieces, codes.scales(quantized.scales), outputs.pieces, strict=True):
            value, work = buffers[:, : row.shape[0]]
            self.unpack(row, scales, value, work)
            target.copy_(value)
        outputs.close()
        return given

    def check(self, quantized: Quantized, like: Tensor) -> None:
        """Raise ValueError unless these are this codec's codes and scales, for a tensor of this shape and device."""
        codes, scales = quantized
        if codes.dtype != self.dtype or codes.shape != like.shape or codes.device != like.device:
            raise ValueError(
                f"codes of {codes.dtype}, shape {tuple(codes.shape)}, on {codes.device} for a tensor of shape "
                f"{tuple(like.shape)} on {like.device}: give {self.dtype} of its shape and device, as zeros() makes"
            )
        count = -(-codes.numel() // BLOCK)
        if scales.dtype != torch.float32 or scales.shape != (count,) or scales.device != codes.device:
            raise ValueError(
                f"scales of {scales.dtype}, shape {tuple(scales.shape)}, on {scales.device} for {codes.numel()} codes "
                f"on {codes.device}: give float32 ({count},) on the same device"
            )
        if not (codes.is_contiguous() and scales.is_contiguous()):
            raise ValueError("codes or scales are not contiguous: call .contiguous() on them")


class Rows:
    """A tensor's blocks as the rows of (blocks, 256) views, `chunk` elements each; the rest, filled up, is a copy.

    So is all of a tensor that is not contiguous, or is one chunk with a rest: close() brings back what was written.
    """

    def __init__(self, tensor: Tensor, chunk: int, fill: int = 0) -> None:
        self.tensor, self.height = tensor, chunk // BLOCK
        self.flat = tensor.reshape(-1)
        count = tensor.numel()
        self.copied = count if count % BLOCK and count < chunk else count % BLOCK
        self.whole = (count - self.copied) // BLOCK
        self.pieces = self._split(self.flat[: count - self.copied].view(self.whole, BLOCK))
        if self.copied:
            missing = (0, -count % BLOCK)
            filled = torch.nn.functional.pad(self.flat[-self.copied :], missing, value=fill)
            self.pieces.append(filled.view(-1, BLOCK))

    def scales(self, scales: Tensor) -> list[Tensor]:
        """Those of each piece, (blocks, 1) views."""
        column = scales.view(-1, 1)
        return self._split(column[: self.whole]) + [column[self.whole :]] * bool(self.copied)

    def _split(self, rows: Tensor) -> list[Tensor]:
        """Of small tensors the most time is Python's, and split's."""
        if self.whole <= self.height:
            return [rows] * bool(self.whole)
        return list(torch.split(rows, self.height))

    def close(self) -> None:
        """Write copies back."""
        if self.copied:
            self.flat[-self.copied :].copy_(self.pieces[-1].view(-1)[: self.copied])
        if not self.tensor.is_contiguous():
            self.tensor.copy_(self.flat.view(self.tensor.shape))


def scratch(buffers: int, like: Tensor, chunk: int) -> Tensor:
    """float32 (buffers, blocks of a chunk, 256) on its device; ValueError for a chunk that is not of whole blocks."""
    if chunk < BLOCK or chunk % BLOCK:
        raise ValueError(f"chunk = {chunk}: take a positive multiple of {BLOCK}")
    rows = min(chunk, like.numel() + BLOCK - 1) // BLOCK
    return torch.empty((buffers, rows, BLOCK), dtype=torch.float32, device=like.device)
