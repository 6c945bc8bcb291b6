"""Fully connected networks in the NTK parametrisation, and their descent in the lazy scaling.

Symbols: n_0 inputs, n_1, ..., n_L hidden widths, h_0 = x, W_l and b_l with entries N(0, 1),

    h_l = phi(sigma_w W_l h_{l-1} / sqrt(n_{l-1}) + sigma_b b_l),
    f(x) = sigma_o W_{L+1} h_L / sqrt(n_L) + sigma_b b_{L+1}

(Jacot et al. 2018, arXiv 1806.07572), so that outputs, and steps of a fixed size, keep their scale as widths grow.
"""

from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad
from torch.nn import Module, Parameter, ParameterList

from sims.tangent import Gradients, Tangent

Activation = Literal["linear", "relu", "tanh", "erf"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "erf": torch.erf,
}


class Wide(Module):
    """One output; parameters of float64, in eval mode."""

    def __init__(
        self,
        widths: tuple[int, ...],
        activation: Activation,
        generator: torch.Generator,
        *,
        weight: float | None = None,
        last: float = 1.0,
        bias: float = 0.0,
    ) -> None:
        """widths: (n_0, n_1, ..., n_L). weight: sigma_w, by default 1, and sqrt 2 for ReLU, which keeps |h_l|^2 / n_l.

        last: sigma_o. bias: sigma_b; 0 for none. Raises ValueError without a hidden layer or for a width below one.
        """
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths = {widths}: take the inputs and at least one hidden width, each >= 1")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation = {activation!r}: take one of {', '.join(ACTIVATIONS)}")
        inner = (2**0.5 if activation == "relu" else 1.0) if weight is None else weight
        shapes = [(above, below) for below, above in pairwise((*widths, 1))]

        def drawn(*shape: int) -> Parameter:
            return Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))

        self.weights = ParameterList([drawn(*shape) for shape in shapes])
        self.biases = ParameterList([drawn(above) for above, _ in shapes if bias])
        self.scales, self.bias, self.activation = (*(inner,) * (len(widths) - 1), last), bias, activation
        self.eval()

    def forward(self, inputs: Float[Tensor, "b n_0"]) -> Float[Tensor, " b"]:
        """f(x) of each row."""
        found = inputs
        for layer, (weight, scale) in enumerate(zip(self.weights, self.scales, strict=True)):
            found = ACTIVATIONS[self.activation](found) if layer else found
            found = found @ weight.mT * (scale / weight.shape[1] ** 0.5)
            found = found + self.bias * self.biases[layer] if self.bias else found
        return found[:, 0]


def descent(
    tangent: Tangent, inputs: Float[Tensor, "n n_0"], targets: Float[Tensor, " n"], lr: float, scale: float = 1.0
) -> Callable[[Gradients], Gradients]:
    """theta <- theta - eta d/dtheta |F - y|^2 / (2 alpha^2),  F = alpha (f(theta) - f(theta_0)), on all examples.

    scale: alpha. It divides out of the linearised dynamics, F <- F - eta K (F - y), and only of these: with alpha the
    parameters need to move by 1 / alpha only (Chizat, Oyallon & Bach 2019, arXiv 1812.07956).
    """
    start = tangent.at(inputs)(tangent.parameters)[:, 0]

    def loss(parameters: Gradients) -> Tensor:
        return (tangent.at(inputs)(parameters)[:, 0] - start - targets / scale).square().sum() / 2

    gradient = grad(loss)

    def step(parameters: Gradients) -> Gradients:
        found = gradient(parameters)
        return {name: parameter - lr * found[name] for name, parameter in parameters.items()}

    return step


def moved(network: Module, parameters: Gradients) -> Module:
    """A copy of the network at these parameters."""
    copy = deepcopy(network)
    copy.load_state_dict({**copy.state_dict(), **parameters})
    return copy


def distance(parameters: Gradients, others: Gradients) -> float:
    """|theta - theta'|, the Euclidean distance."""
    return float(sum((parameters[name] - others[name]).square().sum() for name in parameters)) ** 0.5
