"""A torch module as a function of its trainable parameters, and its gradients, example by example.

Trainable is what has requires_grad: a frozen tensor leaves the kernel. Gradients are keyed by parameter, so that a
tensor that two layers share (tied weights) has one gradient, the sum of both, before any product is taken; kernels
summed over layers get this wrong.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call, vjp, vmap
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

Batch = Tensor | Mapping[str, Tensor]
Forward = Callable[[Module, Any], Tensor]
Gradients = dict[str, Tensor]

CHUNK = 16  # examples under one vmap: more of them fall out of the cache and are no faster


def logits(network: Module, batch: Batch) -> Tensor:
    """network(batch), or network(**batch) of a mapping: the tensor itself, or its `logits` as Hugging Face's have."""
    found = network(**batch) if isinstance(batch, Mapping) else network(batch)
    return found if isinstance(found, Tensor) else found.logits


def additive_mask(seen: Int[Tensor, "n tokens"], dtype: torch.dtype, causal: bool = False) -> Float[Tensor, "n 1 t t"]:
    """The 4-D mask that Hugging Face's models take as it is: 0 where attention may look, the least number elsewhere.

    seen: their attention_mask, 1 for tokens and 0 for padding. causal: for a decoder, which builds no mask of its own
    beside a ready one. Under vmap the 2-D mask fails, since transformers branches on its values.
    """
    look = seen.bool()[:, None, None, :].expand(-1, 1, seen.shape[1], -1)
    if causal:
        look = look & torch.ones(look.shape[-2:], dtype=torch.bool, device=seen.device).tril()
    return torch.zeros(look.shape, dtype=dtype, device=seen.device).masked_fill(~look, torch.finfo(dtype).min)


@dataclass(frozen=True, eq=False)
class Tangent:
    """A network at its present parameters, seen as a function of those that train."""

    network: Module
    """In eval mode: with dropout there is no f(x; theta)."""
    forward: Forward = logits
    """(network, batch of b examples) -> outputs of shape (b,) or (b, C), or any (b, ...), flattened to C."""

    def __post_init__(self) -> None:
        if any(module.training for module in self.network.modules()):
            raise ValueError(
                "the network is in training mode: dropout is random and batches are mixed; call network.eval() first"
            )
        if any(isinstance(module, _BatchNorm) and module.running_mean is None for module in self.network.modules()):
            raise ValueError(
                "a BatchNorm keeps no running statistics, so f(x) depends on the other examples; track them"
            )
        if not self.parameters:
            raise ValueError("no parameter has requires_grad, so the kernel is zero; thaw what trains")

    @property
    def parameters(self) -> Gradients:
        """The trainable ones by name, a shared one once."""
        return {name: p.detach() for name, p in self.network.named_parameters() if p.requires_grad}

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and what is measured of them."""
        return next(iter(self.parameters.values())).device

    def at(self, batch: Batch) -> Callable[[Gradients], Float[Tensor, "b C"]]:
        """theta -> f(batch; theta)."""
        called = _Called(self.network, self.forward)

        def outputs(parameters: Gradients) -> Tensor:
            found = functional_call(called, {f"network.{name}": p for name, p in parameters.items()}, (batch,))
            return found.reshape(length(batch), -1)

        return outputs

    def count(self, batch: Batch) -> int:
        """C, from a forward pass of one example."""
        length(batch)  # is it one?
        with torch.no_grad():
            return self.at(examples(batch, slice(1)))(self.parameters).shape[1]

    def gradients(self, batch: Batch) -> Gradients:
        """g_ic for each parameter: (b, C, *shape), by one forward pass and one backward pass for each output."""
        length(batch)  # is it one?
        _refuse_flat_mask(batch)

        def one(parameters: Gradients, example: Batch) -> Gradients:
            outputs, pull = vjp(lambda p: self.at(_each(lambda x: x[None], example))(p)[0], parameters)[:2]
            if len(outputs) > 1:
                return vmap(pull)(torch.eye(len(outputs)).to(outputs))[0]
            return {name: g[None] for name, g in pull(torch.ones_like(outputs))[0].items()}

        return vmap(one, (None, 0), randomness="error")(self.parameters, batch)

    def held(self, batch: Batch, chunk: int) -> Gradients:
        """`gradients` of many examples, `chunk` of them at a time."""
        n, rows = length(batch), Gradients()
        for taken in slices(n, chunk):
            for name, gradient in self.gradients(examples(batch, taken)).items():
                if name not in rows:
                    rows[name] = gradient.new_empty(n, *gradient.shape[1:])
                rows[name][taken] = gradient
        return rows

    def fitting(self, outputs: int, block_bytes: int) -> int:
        """How many examples' gradients block_bytes hold; at least two."""
        one = outputs * sum(p.numel() * p.element_size() for p in self.parameters.values())
        if block_bytes < 2 * one:
            raise ValueError(
                f"block_bytes = {block_bytes}: the gradients of one example take {one} bytes; take at least {2 * one}, "
                "freeze what need not count, or use ntk_product, which holds one gradient"
            )
        return block_bytes // one


class _Called(Module):
    """functional_call swaps the parameters of a module; the forward function is none."""

    def __init__(self, network: Module, forward: Forward) -> None:
        super().__init__()
        self.network, self.call = network, forward

    def forward(self, batch: Batch) -> Tensor:
        return self.call(self.network, batch)


def length(batch: Batch) -> int:
    """How many examples. Raises ValueError unless all of it are tensors, equally long."""
    found = list(batch.values()) if isinstance(batch, Mapping) else [batch]
    if not found or not all(isinstance(x, Tensor) and x.ndim for x in found) or len({len(x) for x in found}) > 1:
        raise ValueError(
            "a batch is a tensor, or a mapping of names to tensors, with one row an example in each; what else the "
            "network takes belongs into `forward`"
        )
    if not len(found[0]):
        raise ValueError("the batch is empty; give one example or more")
    return len(found[0])


def examples(batch: Batch, rows: slice) -> Batch:
    """Some of the examples."""
    return _each(lambda x: x[rows], batch)


def slices(n: int, size: int, begin: int = 0) -> list[slice]:
    """begin, ..., n - 1 in slices of at most `size`."""
    return [slice(start, min(start + size, n)) for start in range(begin, n, size)]


def _each(change: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    return {key: change(x) for key, x in batch.items()} if isinstance(batch, Mapping) else change(batch)


def _refuse_flat_mask(batch: Batch) -> None:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is not None and mask.ndim == 2:
        raise ValueError(
            "attention_mask is 2-D: Hugging Face's models branch on its values, which vmap cannot follow; pass "
            "additive_mask(attention_mask, dtype), with causal=True for a decoder"
        )
