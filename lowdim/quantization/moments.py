"""Adam's two moments in 8 bits, and the one step that never holds them whole in float32.

    M <- b1 M + (1 - b1) G,    V <- b2 V + (1 - b2) G^2,    N = M^ / (sqrt(V^) + eps)                             (1)
    M^ = M / (1 - b1^t),       V^ = V / (1 - b2^t)

N is made from M and V before they are coded. What is kept of V is its root: the dynamic map turns one in a hundred of
log-normal V into 0, and the next step divides by that.

A step changes V by a thousandth (b2 = 0.999), neighbouring codes differ by percents: rounded to the nearest, V stays
where it is. Where the gradients of half of each block shrink tenfold, sqrt(V) is 4.6 (dynamic map of V) to 6 times (its
root, either law) too large four memories 1 / (1 - b2) later. So rounding walks: the code of place i of a block is

    floor(y + u_ti),    u_ti = fraction(t phi + i chi),    phi = 0.618..., chi = 0.754...                         (2)

in step t, up as often as y's fraction says, to O(log t / t); without a generator, so that a resumed run goes on bit for
bit.

Kingma & Ba 2015, arXiv 1412.6980, Algorithm 1; states in 8 bits: Dettmers et al. 2022, arXiv 2110.02861; (2) is ours.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import BLOCK, CHUNK, Codec, Quantized, Rows, scratch
from .companding import Power
from .dynamic import Dynamic

GOLDEN, PLASTIC = 0.6180339887498949, 0.7548776662466927  # 1 / x for x^2 = x + 1 and x^3 = x + 1
EDGE = 1e-3  # keeps y + u from the next code where y is whole but for float32's rounding


@dataclass(frozen=True)
class Moments:
    """Codecs of Adam's moments: `first` for M; `second` for sqrt(V), or V if not `root`, rounded as (2) if `walk`."""

    first: Codec
    second: Codec
    root: bool = True
    walk: bool = True

    def zeros(self, like: Tensor) -> tuple[Quantized, Quantized]:
        """M = V = 0 for a parameter of this shape, on its device."""
        return self.first.zeros(like), self.second.zeros(like)

    def encode(self, mean: Tensor, square: Tensor) -> tuple[Quantized, Quantized]:
        """M and V >= 0, to the nearest codes; as Codec.encode."""
        return self.first.encode(mean), self.second.encode(square.sqrt() if self.root else square)

    def decode(self, first: Quantized, second: Quantized) -> tuple[Tensor, Tensor]:
        """M and V, float32; as Codec.decode."""
        square = self.second.decode(second)
        return self.first.decode(first), square.square_() if self.root else square

    def check(self, first: Quantized, second: Quantized, like: Tensor) -> None:
        """Raise ValueError unless these are moments of such a tensor in this codec."""
        self.first.check(first, like)
        self.second.check(second, like)


CODECS = {
    "power": Moments(Power(signed=True), Power(signed=False)),
    "dynamic": Moments(Dynamic(signed=True), Dynamic(signed=False), root=False, walk=False),
}
"""By name. "dynamic" keeps what bitsandbytes keeps, V without root too, so that its states can be taken over."""


@torch.no_grad()
def adam8bit_(
    update: Tensor,
    gradient: Tensor,
    first: Quantized,
    second: Quantized,
    step: int,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    codec: Moments = CODECS["power"],
    chunk: int = CHUNK,
) -> None:
    """Write N of (1) to `update` and code M and V again, in place, `chunk` elements at a time.

    update, gradient: of one shape and any floating dtypes; may be one tensor. What is not contiguous is copied.
    first, second: the moments, as codec.zeros makes them; overwritten.
    step: t >= 1, counted with this one.
    eps: as in torch's Adam, added after bias correction. An optimizer that adds it before, as galore-torch does, with
        N = (M / (sqrt(V) + eps)) sqrt(1 - b2^t) / (1 - b1^t), passes eps / sqrt(1 - b2^t).
    chunk: as in Codec.encode, and the result does not depend on it; scratch is 3 x 4 bytes for each of its elements
        ("dynamic": 4 x 4), 0.47 MiB by default. On a GPU take a few million.

    Raises ValueError if a number is out of range, or shapes, dtypes or devices do not fit.
    """
    _check(update, gradient, step, betas, eps)
    codec.check(first, second, gradient)
    buffers, adam = scratch(3, gradient, chunk), _Adam(*betas, eps, step)
    offset = _walk(step, gradient.device) if codec.walk else 0.5
    m, v = Rows(first.codes, chunk, codec.first.zero), Rows(second.codes, chunk, codec.second.zero)
    g, n = Rows(gradient, chunk), Rows(update, chunk)
    scales = m.scales(first.scales), v.scales(second.scales)
    for mr, vr, gr, nr, ms, vs in zip(m.pieces, v.pieces, g.pieces, n.pieces, *scales, strict=True):
        mean, square, work = buffers[:, : mr.shape[0]]
        codec.first.unpack(mr, ms, mean, work)
        codec.second.unpack(vr, vs, square, work)
        nr.copy_(adam.advance(mean, square, work.copy_(gr), codec.root))
        codec.first.pack(mr, ms, mean, work)
        codec.second.pack(vr, vs, square, work, offset)
    for rows in (m, v, n):
        rows.close()


def _walk(step: int, device: torch.device) -> Tensor:
    """u of (2), within EDGE of its ends; (256,)."""
    places = torch.arange(BLOCK, dtype=torch.float32, device=device) * PLASTIC
    return places.add_(step * GOLDEN % 1).frac_().mul_(1 - 2 * EDGE).add_(EDGE)


class _Adam:
    """Equation (1) with what is constant in a step taken out: N = M / (spread sqrt(V) + floor)."""

    def __init__(self, b1: float, b2: float, eps: float, step: int) -> None:
        self.b1, self.b2 = b1, b2
        self.spread = (1 - b1**step) / math.sqrt(1 - b2**step)
        self.floor = (1 - b1**step) * eps

    def advance(self, mean: Tensor, square: Tensor, gradient: Tensor, root: bool) -> Tensor:
        """N, in place of the gradient; M, and V or its root, whichever `square` was, in place of the old ones."""
        if root:
            square.square_()
        mean.mul_(self.b1).add_(gradient, alpha=1 - self.b1)
        square.mul_(self.b2).addcmul_(gradient, gradient, value=1 - self.b2)
        roots = square.sqrt_() if root else torch.sqrt(square, out=gradient)
        torch.mul(roots, self.spread, out=gradient).add_(self.floor)
        return torch.div(mean, gradient, out=gradient)


def _check(update: Tensor, gradient: Tensor, step: int, betas: tuple[float, float], eps: float) -> None:
    if step < 1:
        raise ValueError(f"step = {step}: the first step is 1")
    if not all(0 <= beta < 1 for beta in betas) or not 0 <= eps < math.inf:
        raise ValueError(f"betas = {betas}, eps = {eps}: take 0 <= beta < 1 and a finite eps >= 0")
    if gradient.layout != torch.strided or not gradient.is_floating_point() or not update.is_floating_point():
        raise ValueError(f"{gradient.layout} {gradient.dtype} and {update.dtype}: give dense floating-point tensors")
    if update.shape != gradient.shape or update.device != gradient.device:
        raise ValueError(
            f"an update of shape {tuple(update.shape)} on {update.device} for a gradient of shape "
            f"{tuple(gradient.shape)} on {gradient.device}: give one of the same shape and device"
        )
