"""The power law: codes for fourth roots, so that every magnitude that matters keeps a relative precision.

    code = floor(top z^(1/4) + 1/2),    z^ = (code / top)^4,    z = |x| / scale,    top = 127 with sign, 255 without.

With y = top z^(1/4) before rounding, |code - y| <= 1/2, so the relative error is within

    1 - (1 - 1/(2y))^4  <=  error(z)  <=  (1 + 1/(2y))^4 - 1,                                              (1)

2/y for large y: 1.6 % (0.8 % without sign) at the top of a block and 16 % (8 %) where z = 1e-4. x is coded as 0 only if
y <= 1/2, that is for z <= (2 top)^-4 = 2.4e-10 (1.5e-11). No table and no logarithm: roots and squares.

Ours; FlashAdamW in pytorch-optimizer compands with a softsign.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import Codec

LARGEST = 1e12  # above the inverse fourth root of any positive float32, 1.6e11: keeps a block of zeros from 0 / 0


@dataclass(frozen=True)
class Power(Codec):
    """Equation (1) of this module; `signed` codes are int8 for values of both signs, others uint8 for x >= 0.

    Coding what was decoded changes nothing, to the last bit. Multiplying by a power of 16 multiplies the
    scales alone. Without sign, x < 0 is coded as |x|.
    """

    signed: bool

    @property
    def dtype(self) -> torch.dtype:
        """int8 or uint8."""
        return torch.int8 if self.signed else torch.uint8

    @property
    def zero(self) -> int:
        """0."""
        return 0

    @property
    def top(self) -> int:
        """The code of a block's largest value."""
        return 127 if self.signed else 255

    def pack(self, codes: Tensor, scales: Tensor, values: Tensor, work: Tensor, offset: Tensor | float = 0.5) -> None:
        """Twice x^(-1/2) is the fourth root; on a CPU torch needs half the time that it takes for two roots."""
        roots = torch.abs(values, out=work)
        torch.amax(roots, 1, keepdim=True, out=scales)
        roots.pow_(-0.5).pow_(-0.5).mul_(scales.rsqrt().sqrt_().clamp_(max=LARGEST).mul_(self.top)).add_(offset)
        if self.signed:
            codes.copy_(roots.mul_(values.sign_()))  # a cast drops the fraction
        else:
            codes.copy_(values.view(torch.int32).copy_(roots))  # straight to uint8 takes torch three times as long

    def unpack(self, codes: Tensor, scales: Tensor, values: Tensor, work: Tensor) -> None:
        """Two squarings that keep the sign. The top code becomes 1, and the scale, exactly."""
        torch.mul(codes, 1 / self.top, out=values)
        for _ in range(2):
            values.mul_(torch.abs(values, out=work) if self.signed else values)
        values.mul_(scales)
