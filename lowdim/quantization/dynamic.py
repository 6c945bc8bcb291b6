"""The dynamic map of bitsandbytes: 256 values, finer for each decade that is nearer to the top.

    0, 1 and, for the decades i = 0..6, 10^(i-6) times the 2^i (2^(i+1) without sign) midpoints of an even grid on
    [0.1, 1], with both signs or none; sorted.

The signed map has 1 but not -1: a block's largest value loses 0.7 % if it is negative. Dettmers 2016, arXiv 1511.04561;
Dettmers et al. 2022, arXiv 2110.02861, section 2.2; values, ties and layout are those of bitsandbytes 0.50.2.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .blocks import Codec

SMALLEST = 1e-38  # a smaller scale is taken for this one, as in bitsandbytes: 1 / scale must be finite
CPU = torch.device("cpu")
GRID = 65535  # steps between -1 and 1


@dataclass(frozen=True)
class Dynamic(Codec):
    """uint8 codes of the nearest values of the map to x / scale, the lower one of two that are as near.

    signed: for values of both signs, or for x >= 0 (less becomes 0).
    grid: round x / scale to a grid of 65536 points on [-1, 1] first, as the CPU kernel of bitsandbytes 0.50 does: what
        is below 1.5e-5 of a block's largest value becomes that, 0 included. To compare, or to go on as it would.

    For finite values the codes are those of bitsandbytes' quantize_blockwise at block 256: of its CPU kernel with grid,
    of its torch kernel without (but for a last block that is shorter, whose rounding is its own there). NaN is NaN in
    the scale here, hidden in its CPU kernel.
    """

    signed: bool
    grid: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """uint8."""
        return torch.uint8

    @property
    def zero(self) -> int:
        """127 or 0, however the encoder treats 0."""
        return 127 if self.signed else 0

    def pack(self, codes: Tensor, scales: Tensor, values: Tensor, work: Tensor, offset: Tensor | float = 0.5) -> None:
        """Scale, and look up."""
        torch.amax(torch.abs(values, out=work), 1, keepdim=True, out=scales)
        values.mul_(1 / (scales if self.grid else scales.clamp(min=SMALLEST)))
        codes.copy_(_on_grid(values, self.signed) if self.grid else _nearest(values, work, self.signed))

    def unpack(self, codes: Tensor, scales: Tensor, values: Tensor, work: Tensor) -> None:
        """Look up, and scale."""
        entries = work.view(torch.int32).copy_(codes)
        torch.index_select(dynamic_map(self.signed, codes.device), 0, entries.view(-1), out=values.view(-1))
        values.mul_(scales)


@cache
def dynamic_map(signed: bool, device: torch.device) -> Tensor:
    """The 256 values, float32, ascending; do not write to them."""
    decades = []
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1, dtype=torch.float32, device=CPU)
        decades.append(10.0 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2))
    ends = torch.tensor([0.0, 1.0], dtype=torch.float32, device=CPU)
    return torch.cat([*decades, ends, *(-decade for decade in decades if signed)]).sort().values.to(device)


def _nearest(scaled: Tensor, work: Tensor, signed: bool) -> Tensor:
    """One look-up and one carry, exact.

    The upper 16 bits of a float32 leave room for at most one boundary between codes. The table's entry for them is

        code 2^16 + (2^16 - low bits of the first float beyond the boundary) - upper bits 2^16,

    so that adding the float's own bits and dropping the lower 16 carries 1 into the code beyond the boundary and
    nothing before it. Negative floats count downwards: their entry has -code, and abs() turns -code + 1 into code - 1.
    """
    bits, upper = scaled.view(torch.int32), work.view(torch.int32)
    torch.bitwise_right_shift(bits, 16, out=upper).add_(2**15)
    entries = _table(signed, scaled.device).index_select(0, upper.view(-1)).view(bits.shape)
    return entries.add_(bits).bitwise_right_shift_(16).abs_()


@cache
def _table(signed: bool, device: torch.device) -> Tensor:
    """The entries for upper bits -2^15 to 2^15 - 1, int32; made in int64, where nothing overflows."""
    bounds = _bounds(dynamic_map(signed, CPU))
    upper = torch.arange(-(2**15), 2**15, device=CPU) * 2**16
    first, last = (torch.bucketize((upper + low).int().view(torch.float32), bounds) for low in (0, 2**16 - 1))
    negative = upper < 0
    finite = (upper & 0x7F800000) != 0x7F800000
    crossed = finite & (first != last)
    assert int((first - last)[finite].abs().max()) == 1
    boundary = bounds[torch.minimum(first, last)[crossed]].view(torch.int32).long() & 0xFFFF
    beyond = boundary + ~negative[crossed]  # a tie has the lower code, which is beyond for negative floats
    entries = torch.where(finite, first, len(bounds)) * torch.where(negative, -(2**16), 2**16) - upper
    entries[crossed] += 2**16 - beyond
    return entries.int().to(device)


def _bounds(values: Tensor) -> Tensor:
    """Halfway between neighbours."""
    return (values[:-1] + values[1:]) / 2


def _on_grid(scaled: Tensor, signed: bool) -> Tensor:
    """As bitsandbytes' kernel, which fuses the last multiply-add: for all 2^25 values of `half` the step is the same.

    NaN becomes step 0.
    """
    half = scaled.clamp_(-1, 1).add_(1).mul_(0.5).nan_to_num_(0)
    steps = half.mul_(GRID).add_(0.5).int()
    return _grid_codes(signed, scaled.device).index_select(0, steps.view(-1)).view(steps.shape)


@cache
def _grid_codes(signed: bool, device: torch.device) -> Tensor:
    """The code of each grid point."""
    points = torch.arange(GRID + 1, dtype=torch.float32, device=CPU) * 2 / GRID - 1
    return torch.bucketize(points, _bounds(dynamic_map(signed, CPU))).int().to(device)
