"""A backward pass that never forms the gradient of a projected weight, except when its subspace is found anew.

For y = x W^T with errors delta the gradient is G = delta^T x, and its core

    R = G P = delta^T (x P)    or    R = P^T G = (delta P)^T x,

which costs r / min(d_out, d_in) of G's time and memory; several micro-batches add up in R, and processes exchange R.
"""

from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from .layerwise import arrived
from .pipeline import LowRank
from .replicas import same

IGNORED = "_ddp_params_and_buffers_to_ignore"  # where DistributedDataParallel reads what it shall leave alone


class _Core:
    """One weight's errors become a core, or a gradient where that is due."""

    def __init__(self, optimizer: LowRank, parameter: Tensor, number: int) -> None:
        self.optimizer, self.parameter, self.number = optimizer, parameter, number
        self.tap = torch.empty(0)

    def called(self, device: torch.device) -> Tensor:
        """A leaf for every call of the layer: autograd comes to it once, after the last of their backward passes."""
        if self.tap.device != device or not self.tap.requires_grad:
            self.tap = torch.zeros((), device=device, requires_grad=True)
            self.tap.register_post_accumulate_grad_hook(self._done)  # type: ignore[no-untyped-call]
        return self.tap

    def _done(self, tap: Tensor) -> None:
        tap.grad = None
        if self.optimizer.window:
            arrived(self.optimizer, self.number, self.parameter)

    @torch.no_grad()
    def add(self, inputs: Tensor, errors: Tensor) -> None:
        """One call's x (rows, d_in) and delta (rows, d_out)."""
        if self._whole():
            gradient = (errors.mT @ inputs).to(self.parameter.dtype)
            self.parameter.grad = gradient if self.parameter.grad is None else self.parameter.grad.add_(gradient)
        else:
            ((mode, basis),) = self.optimizer.bases(self.parameter, errors.dtype).items()
            core = (errors @ basis).mT @ inputs if mode == 0 else errors.mT @ (inputs @ basis)
            self.optimizer.accumulate(self.parameter, core)

    def _whole(self) -> bool:
        """Within a layer-wise window a subspace that was due is there after the first micro-batch."""
        waiting = "core" in self.optimizer.state[self.parameter]
        return self.optimizer.due(self.parameter) and not (self.optimizer.window and waiting)


class LowRankBackward:
    """What `galore_backward` has changed; remove(), or the end of a with statement, undoes it."""

    def __init__(self, model: nn.Module, optimizer: LowRank, layers: dict[str, nn.Linear]) -> None:
        self.model, self.optimizer, self.modules = model, optimizer, [*layers.values()]
        numbers = {p: number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
        weights = dict.fromkeys(module.weight for module in self.modules)  # a set's order differs between processes
        receivers = {weight: _Core(optimizer, weight, numbers[weight]) for weight in weights}
        for module in self.modules:
            module.forward = _Forward(module, receivers[module.weight])  # type: ignore[assignment]
        optimizer.apart = weights
        same(weights)
        self._ignored: Any = getattr(model, IGNORED, None)
        setattr(model, IGNORED, {*(self._ignored or ()), *(f"{name}.weight" for name in layers)})

    def remove(self) -> None:
        """The modules and the optimizer as they were before."""
        for module in self.modules:
            module.__dict__.pop("forward", None)
        self.optimizer.apart = ()
        setattr(self.model, IGNORED, self._ignored)
        if self._ignored is None:
            delattr(self.model, IGNORED)

    def __enter__(self) -> "LowRankBackward":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def galore_backward(model: nn.Module, optimizer: LowRank) -> LowRankBackward:
    """Let the optimizer's linear layers accumulate P^T G (or G P) directly; `grad` stays None between refreshes.

    Equal to the projected gradient up to rounding. zero_grad, closures, accumulation and `layerwise` work as before;
    `torch.nn.utils.clip_grad_norm_`, and so Trainer's max_grad_norm, sees no cores and clips the other gradients alone:
    set that to 0 and use optimizer.clip_grad_norm_, which clips what there is. Call galore_backward before
    DistributedDataParallel wraps the model: these weights are left out of its buckets, begin as the first process has
    them, and `step` averages their cores (or, at a refresh, gradients) over the processes, all of which must have used
    the same layers. Layers with a forward of their own (subclasses, accelerate's hooks) are left as they are, and
    gradients of other uses of a weight (tied embeddings, penalties) are projected in `step`. Copies of the model are
    plain ones. A backward pass for the inputs alone (torch.autograd.grad) accumulates cores, too: call zero_grad after
    it.

    Raises ValueError if the optimizer needs whole gradients (Fira, APOLLO, Frugal), has no linear layer of the model
    with a projection on one side, or has weights that FSDP2 has divided; and in `step` under a GradScaler.
    """
    if optimizer.rule.needs_gradient:
        raise ValueError(
            f"{type(optimizer).__name__} needs whole gradients: only GaLore's optimizers make do with the core"
        )
    if optimizer.rows:
        raise ValueError("FSDP2 has divided these weights, and reduces whole gradients: it does not see cores")
    found = {
        name: module
        for name, module in model.named_modules()
        if _plain(module) and len(getattr(optimizer.plans.get(module.weight), "modes", ())) == 1
    }
    if not found:
        raise ValueError(
            "no linear layer's weight of this model is projected on one side: give the optimizer such groups"
        )
    return LowRankBackward(model, optimizer, found)


def _plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it computes what nn.Linear does: no subclass's own forward, none that accelerate or another has put."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward and "forward" not in vars(module)


class _Forward:
    """A layer's forward in place of its class's. Copies and pickles of the layer have their class's."""

    def __init__(self, module: nn.Linear, receiver: _Core) -> None:
        self.module, self.receiver = module, receiver

    def __call__(self, inputs: Tensor) -> Tensor:
        return _forward(self.module, self.receiver, inputs)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (nn.Linear.forward, self.module)


def _forward(module: nn.Linear, receiver: _Core, inputs: Tensor) -> Tensor:
    weight: Tensor = module.weight.detach()
    bias: Tensor | None = module.bias
    device = inputs.device.type
    if not torch.is_grad_enabled() or not module.weight.requires_grad:
        return linear(inputs, weight, bias)
    if torch.is_autocast_enabled(device):  # which looks at functions that it knows only
        dtype = torch.get_autocast_dtype(device)
        inputs, weight, bias = inputs.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    apply: Any = _Linear.apply
    rows = inputs.reshape(-1, inputs.shape[-1])
    with torch.autocast(device, enabled=False):
        output = apply(rows, weight, bias, receiver, receiver.called(weight.device))
    return output.view(*inputs.shape[:-1], len(weight))


class _Linear(torch.autograd.Function):
    """y = x W^T + b for rows x. Because of the tap its backward is reached though no other input needs it."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, receiver: _Core, _: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.receiver = receiver
        return linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, errors: Tensor) -> tuple[Tensor | None, None, Tensor | None, None, Tensor]:
        inputs, weight = ctx.saved_tensors
        before = errors @ weight if ctx.needs_input_grad[0] else None
        bias = errors.sum(0) if ctx.needs_input_grad[2] else None
        ctx.receiver.add(inputs, errors)
        return before, None, bias, None, errors.new_zeros(())
