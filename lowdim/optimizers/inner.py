"""What turns a core R into a direction N: Adam, Adafactor, momentum. They see the small gradient and nothing else."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..quantization.moments import CODECS, adam8bit_
from .projection import Bases, rotated
from .states import State, in_bytes, in_place, moment, write


class Direction(NamedTuple):
    """W <- W - rate N."""

    core: Tensor
    """N, of the core's shape; a new tensor."""
    rate: float
    """lr, or what the inner optimizer makes of it, its bias correction included."""
    lr: float
    """The same without the correction: what multiplies weight decay, and steps that are not the inner optimizer's."""
    correction: float = 1.0
    """The bias correction alone, which is there also where lr is 0, as at the beginning of a warm-up."""
    decays_first: bool = False
    """In the authors' convention, too."""

    def decayed(self, group: Mapping[str, Any]) -> tuple[float, float]:
        """What decay leaves of the weight, and of the update: all of it in torch, which decays first."""
        shrink = 1 - float(self.lr * group["weight_decay"])
        return shrink, shrink if group["convention"] == "authors" and not self.decays_first else 1.0


class Inner(Protocol):
    """An inner optimizer. Its states of the core's shape turn with the subspace; `moments` says which hold squares.

    divisible: entries do not depend on each other, so a part of the core gives a part of the direction.
    turned: what else turns with the subspace.
    """

    moments: Mapping[str, bool]
    divisible: bool

    def __call__(self, state: State, core: Tensor, step: int, group: Mapping[str, Any], weight: Tensor) -> Direction:
        """The direction after `step` others."""
        ...

    def turned(self, state: State, turn: Bases) -> None:
        """Turn, in place, what `moments` does not name."""
        ...


class Adam:
    """N = M / (V^1/2 + eps), rate = lr c; M and V the means of R and R^2, c = (1 - b2^t)^1/2 / (1 - b1^t).

    So in GaLore's code, convention = "authors". In torch eps stands behind the correction: eps (1 - b2^t)^1/2 in its
    place. Kingma & Ba 2015, arXiv 1412.6980, end of section 2.
    """

    moments: Mapping[str, bool] = {"exp_avg": False, "exp_avg_sq": True}
    divisible = True

    def __call__(self, state: State, core: Tensor, step: int, group: Mapping[str, Any], weight: Tensor) -> Direction:
        """The direction of AdamW; its decay is the pipeline's."""
        beta1, beta2 = group["betas"]
        root, whole = math.sqrt(1 - beta2 ** (step + 1)), 1 - beta1 ** (step + 1)
        behind = group["convention"] == "torch" and group["correct_bias"]
        correction = root / whole if group["correct_bias"] else 1.0
        lr, rate = group["lr"], group["lr"] * correction
        if in_bytes(core, group):
            found = self._in_bytes(state, core, step, group, group["eps"] / (1.0 if behind else root))
            return Direction(found.mul_(whole / root), rate, lr, correction)
        first, second = (moment(state, name, core, group) for name in self.moments)
        first.lerp_(core, 1 - beta1)
        second.mul_(beta2).addcmul_(core, core, value=1 - beta2)
        write(state, "exp_avg", first, group)
        write(state, "exp_avg_sq", second, group)
        return Direction(first / second.sqrt().add_(group["eps"] * (root if behind else 1.0)), rate, lr, correction)

    def turned(self, state: State, turn: Bases) -> None:
        """Nothing."""

    def _in_bytes(self, state: State, core: Tensor, step: int, group: Mapping[str, Any], eps: float) -> Tensor:
        """c N; the moments are never whole in float32."""
        codec = CODECS[group["codec"]]
        if "exp_avg" not in state:
            for name, zeros in zip(self.moments, codec.zeros(core), strict=True):
                state[name], state[f"{name}_scales"] = zeros.codes, zeros.scales
        found = torch.empty_like(core, memory_format=torch.contiguous_format)
        first, second = (in_place(state, name) for name in self.moments)
        adam8bit_(found, core, first, second, step + 1, betas=group["betas"], eps=eps, codec=codec)
        return found


class Momentum:
    """N = M <- mu M + R, or R + mu M if nesterov; R itself for mu = 0 (torch.optim.SGD's convention)."""

    moments: Mapping[str, bool] = {"momentum_buffer": False}
    divisible = True

    def __call__(self, state: State, core: Tensor, step: int, group: Mapping[str, Any], weight: Tensor) -> Direction:
        """The direction of SGD."""
        if not group["momentum"]:
            return Direction(core.clone(), group["lr"], group["lr"])
        mean = moment(state, "momentum_buffer", core, group).mul_(group["momentum"]).add_(core)
        write(state, "momentum_buffer", mean, group)
        found = core.add(mean, alpha=group["momentum"]) if group["nesterov"] else mean.clone()
        return Direction(found, group["lr"], group["lr"])

    def turned(self, state: State, turn: Bases) -> None:
        """Nothing."""


class Adafactor:
    """N = R / V^1/2 clipped to a root mean square of 1, V from its row and column means (Shazeer & Stern 2018).

    V_ij = row_i col_j / mean(row); b2 = 1 - t^decay_rate. With beta1 the mean of rate N over steps is returned instead,
    with a rate of 1, as transformers' Adafactor does it.
    """

    moments: Mapping[str, bool] = {"exp_avg": False}
    divisible = False

    def __call__(self, state: State, core: Tensor, step: int, group: Mapping[str, Any], weight: Tensor) -> Direction:
        """The direction of Adafactor."""
        beta2 = 1 - (step + 1) ** group["decay_rate"]
        squares = core.square().add_(group["eps"][0])
        if core.ndim > 1:
            rows, columns = squares.mean(-1), squares.mean(-2)
            row = _mean(state, "exp_avg_sq_row", rows, beta2)
            column = _mean(state, "exp_avg_sq_col", columns, beta2)
            found = (row / row.mean(-1, keepdim=True)).rsqrt().unsqueeze(-1) * column.unsqueeze(-2).rsqrt() * core
        else:
            found = _mean(state, "exp_avg_sq", squares, beta2).rsqrt() * core
        found.div_((_rms(found) / group["clip_threshold"]).clamp(min=1))
        rate = adafactor_rate(int(state.get("step", 0)), group, weight)  # goes on where moments begin again
        if group["beta1"] is None:
            return Direction(found, rate, rate, decays_first=True)
        mean = moment(state, "exp_avg", core, group).mul_(group["beta1"]).add_(found, alpha=(1 - group["beta1"]) * rate)
        write(state, "exp_avg", mean, group)
        return Direction(mean.clone(), 1.0, rate, decays_first=True)

    def turned(self, state: State, turn: Bases) -> None:
        """The means of (O * O) V."""
        if "exp_avg_sq_row" in state:
            row, column = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
            squares = (row / row.mean(-1, keepdim=True)).unsqueeze(-1) * column.unsqueeze(-2)
            squares = rotated(squares, turn, squared=True)
            state["exp_avg_sq_row"], state["exp_avg_sq_col"] = squares.mean(-1), squares.mean(-2)


def adafactor_rate(step: int, group: Mapping[str, Any], weight: Tensor) -> float:
    """lr, or min(1e-2, t^-1/2) if relative_step, times the root mean square of the weights if scale_parameter."""
    rate = group["lr"]
    if group["relative_step"]:
        rate = min(1e-6 * (step + 1) if group["warmup_init"] else 1e-2, (step + 1) ** -0.5)
    size = max(group["eps"][1], float(_rms(weight))) if group["scale_parameter"] else 1.0
    return float(rate * size)


def _mean(state: State, name: str, values: Tensor, beta: float) -> Tensor:
    """Small, so always kept in full."""
    state[name] = state[name].to(values.dtype) if name in state else torch.zeros_like(values)
    mean: Tensor = state[name].lerp_(values, 1 - beta)
    return mean


def _rms(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor) / tensor.numel() ** 0.5
