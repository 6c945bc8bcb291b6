"""A backward pass that never forms the gradient of a projected weight, except when its subspace is found anew.

For y = x W^T with errors delta the gradient is G = delta^T x, and its core

    R = G P = delta^T (x P)    or    R = P^T G = (delta P)^T x,

which costs r / min(d_out, d_in) of G's time and memory; several micro-batches add up in R, and processes exchange R.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from .layerwise import arrived
from .pipeline import LowRank


class _Core:
    """One weight's errors become a core, or a gradient where that is due."""

    def __init__(self, optimizer: LowRank, parameter: Tensor, number: int) -> None:
        self.optimizer, self.parameter, self.number, self.open = optimizer, parameter, number, 0

    @torch.no_grad()
    def add(self, inputs: Tensor, errors: Tensor) -> None:
        """One call's x (rows, d_in) and delta (rows, d_out); after the last call's a layer-wise optimizer steps."""
        self.open -= 1
        if self._whole():
            gradient = (errors.mT @ inputs).to(self.parameter.dtype)
            self.parameter.grad = gradient if self.parameter.grad is None else self.parameter.grad.add_(gradient)
        else:
            ((mode, basis),) = self.optimizer.bases(self.parameter, errors.dtype).items()
            core = (errors @ basis).mT @ inputs if mode == 0 else errors.mT @ (inputs @ basis)
            self.optimizer.accumulate(self.parameter, core)
        if not self.open and self.optimizer.window:
            arrived(self.optimizer, self.number, self.parameter)

    def _whole(self) -> bool:
        """Within a layer-wise window a subspace that was due is there after the first micro-batch."""
        waiting = "core" in self.optimizer.state[self.parameter]
        return self.optimizer.due(self.parameter) and not (self.optimizer.window and waiting)


class LowRankBackward:
    """What `galore_backward` has changed; remove(), or the end of a with statement, undoes it."""

    def __init__(self, modules: list[nn.Linear], undo: Callable[[], None]) -> None:
        self.modules, self._undo = modules, undo

    def remove(self) -> None:
        """The modules and the optimizer as they were before."""
        for module in self.modules:
            module.__dict__.pop("forward", None)
        self._undo()

    def __enter__(self) -> "LowRankBackward":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def galore_backward(model: nn.Module, optimizer: LowRank) -> LowRankBackward:
    """Let the optimizer's linear layers accumulate P^T G (or G P) directly; `grad` stays None between refreshes.

    Equal to the projected gradient up to rounding. zero_grad, closures, accumulation and `layerwise` work as before;
    `torch.nn.utils.clip_grad_norm_` sees nothing: use optimizer.clip_grad_norm_, which clips what there is. Call it
    before DistributedDataParallel wraps the model: these weights are left out of its buckets, and `step` averages their
    cores (or, at a refresh, gradients) over the processes.

    Raises ValueError if the optimizer needs whole gradients (Fira, APOLLO, Frugal), or has no linear layer of the model
    with a projection on one side.
    """
    if optimizer.rule.needs_gradient:
        raise ValueError(
            f"{type(optimizer).__name__} needs whole gradients: only GaLore's optimizers make do with the core"
        )
    numbers = {p: number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and len(getattr(optimizer.plans.get(module.weight), "modes", ())) == 1
    }
    if not found:
        raise ValueError(
            "no linear layer's weight of this model is projected on one side: give the optimizer such groups"
        )
    receivers = {weight: _Core(optimizer, weight, numbers[weight]) for weight in {m.weight for m in found.values()}}
    for module in found.values():
        module.forward = partial(_forward, module, receivers[module.weight])  # type: ignore[method-assign]
    hook = optimizer.register_step_pre_hook(lambda *_: _averaged(optimizer, list(receivers)))
    ignored = {*getattr(model, "_ddp_params_and_buffers_to_ignore", ()), *(f"{name}.weight" for name in found)}
    model._ddp_params_and_buffers_to_ignore = ignored  # type: ignore[assignment]

    def undo() -> None:
        hook.remove()
        del model._ddp_params_and_buffers_to_ignore

    return LowRankBackward([*found.values()], undo)


def _forward(module: nn.Linear, receiver: _Core, inputs: Tensor) -> Tensor:
    weight: Tensor = module.weight.detach()
    bias, device = module.bias, inputs.device.type
    if not torch.is_grad_enabled():
        return linear(inputs, weight, bias)
    if torch.is_autocast_enabled(device):  # which looks at functions that it knows only
        dtype = torch.get_autocast_dtype(device)
        inputs, weight, bias = inputs.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)  # type: ignore[assignment]
    apply: Any = _Linear.apply
    rows = inputs.reshape(-1, inputs.shape[-1])
    with torch.autocast(device, enabled=False):
        output = apply(rows, weight, bias, receiver, torch.zeros((), requires_grad=True))
    return output.view(*inputs.shape[:-1], len(weight))


class _Linear(torch.autograd.Function):
    """y = x W^T + b for rows x. Because of the last scalar its backward is reached though no other input needs it."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, receiver: _Core, _: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.receiver = receiver
        receiver.open += 1
        return linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, errors: Tensor) -> tuple[Tensor | None, None, Tensor | None, None, None]:
        inputs, weight = ctx.saved_tensors
        before = errors @ weight if ctx.needs_input_grad[0] else None
        bias = errors.sum(0) if ctx.needs_input_grad[2] else None
        ctx.receiver.add(inputs, errors)  # last: a layer-wise step changes the weight
        return before, None, bias, None, None


def _averaged(optimizer: LowRank, parameters: list[Tensor]) -> None:
    """Means over processes, of whatever DDP does not see."""
    if not dist.is_initialized() or dist.get_world_size() == 1 or optimizer.window:
        return
    for parameter in parameters:
        value = parameter.grad if parameter.grad is not None else optimizer.state[parameter].get("core")
        if value is not None:
            dist.all_reduce(value.div_(dist.get_world_size()))
