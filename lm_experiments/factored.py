"""Linear layers of low rank for training from scratch: the two baselines of GaLore's paper.

Symbols: W_0 (m x n) the layer's start, B (m x r), A (r x n), x a row of inputs.

    lora:      y = x W_0^T + (alpha / r) x A^T B^T    W_0 frozen, B = 0 at first (Hu et al. 2021, arXiv 2106.09685)
    low-rank:  y = x A^T B^T                          at first B A is the best approximation of W_0 of rank r, and
                                                      B^T B = A A^T (Khodak et al. 2021, arXiv 2105.01029)
"""

from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lm_experiments.llama import targets
from lm_experiments.optimizer_spec import OptimizerSpec
from lowdim.subspace import leading_subspace


class Lora(nn.Module):
    """A frozen layer and a low-rank update of it."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale, (outputs, inputs) = alpha / rank, layer.weight.shape
        self.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
        bound = inputs**-0.5  # as PEFT draws it
        start = torch.empty(rank, inputs, dtype=self.weight.dtype, device=self.weight.device)
        self.down = nn.Parameter(start.uniform_(-bound, bound, generator=generator))
        self.up = nn.Parameter(torch.zeros(outputs, rank, dtype=start.dtype, device=start.device))

    def forward(self, inputs: Tensor) -> Tensor:
        """y, of shape (..., m)."""
        return linear(inputs, self.weight) + linear(linear(inputs, self.down), self.up) * self.scale


class LowRank(nn.Module):
    """A layer whose weight is a product."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        left = leading_subspace(layer.weight.detach(), rank)
        rest = left.mT @ layer.weight.detach()  # rows s_i v_i^T
        root = rest.norm(dim=1).sqrt()
        self.up = nn.Parameter(left * root)
        self.down = nn.Parameter(rest / root[:, None])

    def forward(self, inputs: Tensor) -> Tensor:
        """y, of shape (..., m)."""
        return linear(linear(inputs, self.down), self.up)


def factored(model: nn.Module, spec: OptimizerSpec, seed: int) -> nn.Module:
    """The model, its targets replaced in place if the optimizer is lora or low-rank; what is drawn is so from `seed`.

    Raises ValueError for a rank above that of a target.
    """
    if spec.optimizer not in ("lora", "low-rank"):
        return model
    generator = torch.Generator().manual_seed(crc32(f"lora {seed}".encode()))  # not the numbers of the weights
    for name, layer in targets(model).items():
        if layer.bias is not None:
            raise ValueError(f"{name} has a bias, which {spec.optimizer} has no place for: take another optimizer")
        if spec.rank > min(layer.weight.shape):
            raise ValueError(f"rank = {spec.rank} of {name}, {tuple(layer.weight.shape)}: take a rank below both")
        lora = spec.optimizer == "lora"
        model.set_submodule(name, Lora(layer, spec.rank, spec.scale, generator) if lora else LowRank(layer, spec.rank))
    return model


def frozen(model: nn.Module) -> dict[str, nn.Parameter]:
    """What does not train, and no library's file has: the starts of lora's layers."""
    return {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
