"""What was learned: each layer's update, how early it points where it ends, and whether the first gradient said so.

Symbols: G_1 (m x n) a layer's gradient on the first batch, before anything is trained and without dropout; P its `rank`
leading singular vectors on the shorter side (right if m >= n), which is what GaLore projects on; Delta = W - W_0.

    update:  |Delta P|^2 / |Delta|^2 (|P^T Delta|^2 on the left side)
    basis:   of the cosines between P and the subspace that the layer trains in, the (rank / 2)-th largest

Deep LoRA takes half of its width from the gradient and GaLore all, so that both have a `basis` of 1 at first, if they
take it from G_1: P, Deep LoRA's outer factors and GaLore's bases are all `lowdim.subspace.leading_subspace`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.optim import Optimizer

from lm_experiments.adapt import Loss, targets
from lm_experiments.processes import whole
from lm_experiments.runs import FineTune
from lowdim import leading_subspace, principal_angles
from lowdim.optimizers import GaLoreAdamW

KEPT = 16  # singular values recorded of each layer
DIRECTIONS = 8  # dimensions of the leading subspace that is followed
Weights = Mapping[str, Tensor]


@torch.no_grad()
def updates(model: nn.Module, start: Weights = MappingProxyType({})) -> dict[str, Tensor]:
    """W - W_0 of each layer that learns, (outputs, inputs) by name: an adapter's, or from W_0 where that is given."""
    if start:
        layers: dict[str, Any] = {name: model.get_submodule(name) for name in start}
        return {name: _here(layer.weight) - start[name] for name, layer in layers.items()}
    return {name: _here(layer.get_delta_weight("default")) for name, layer in _adapted(model).items()}


@torch.no_grad()
def bases(model: nn.Module, spec: FineTune, optimizer: Optimizer) -> dict[str, Tensor]:
    """What each layer trains in, on its shorter side, by name: of compressed adapters and of GaLore; else nothing."""
    if isinstance(optimizer, GaLoreAdamW):
        layers = {name: m.weight for name, m in model.named_modules() if isinstance(m, nn.Linear)}
        held = {name: optimizer.bases(w, torch.float32) for name, w in layers.items() if w in optimizer.plans}
        return {name: _here(basis) for name, by_mode in held.items() for basis in by_mode.values()}
    if spec.method not in ("compressed", "random"):
        return {}
    factors = {name: layer.factors("default") for name, layer in _adapted(model).items()}
    return {name: _here(f.right if shorter(f.left, f.right) == "right" else f.left) for name, f in factors.items()}


def shorter(outputs: Tensor, inputs: Tensor) -> Literal["left", "right"]:
    """GaLore's side of a layer, of which these have as many rows as it has outputs and inputs."""
    return "right" if len(outputs) >= len(inputs) else "left"


def _adapted(model: nn.Module) -> dict[str, Any]:
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    return {name.removeprefix("base_model.model."): layer for name, layer in layers.items()}


def _here(tensor: Tensor) -> Tensor:
    return whole(tensor).detach().float().cpu()


@dataclass
class Watch:
    """Follows the updates over training; `tensors` is what a checkpoint keeps of it."""

    spec: FineTune
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Leading left singular vectors "step/layer", (outputs, directions)."""
    start: dict[str, Tensor] = field(default_factory=dict)
    """W_0 by layer, of galore alone: adapters know their updates."""
    first: dict[str, Tensor] = field(default_factory=dict)
    """P by layer."""

    def begin(self, model: nn.Module, batch: Any, loss: Loss) -> None:
        """Look at the model before it has an adapter. Both are found again, and not kept, when a run is resumed."""
        layers: dict[str, Any] = {name: model.get_submodule(name) for name in targets(model, self.spec)}
        weights = {name: layer.weight for name, layer in layers.items()}
        gradients = torch.autograd.grad(loss(model.eval(), batch), list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            rank = min(self.spec.rank, *gradient.shape)
            self.first[name] = leading_subspace(_here(gradient), rank, side=shorter(gradient, gradient.mT))
        if self.spec.method == "galore":
            self.start = {name: _here(weight).clone() for name, weight in weights.items()}

    def inside(self, model: nn.Module, optimizer: Optimizer) -> dict[str, list[float]]:
        """`update` and, where there is one, `basis` of every layer, as above."""
        learned, trained = updates(model, self.start), bases(model, self.spec, optimizer)
        middle = (self.spec.rank + 1) // 2 - 1
        angles = [principal_angles(basis, self.first[name]) for name, basis in trained.items()]
        return {
            "update": [_share(update, self.first[name]) for name, update in learned.items()],
            "basis": [float(angle[middle].cos()) for angle in angles],
        }

    @property
    def directions(self) -> int:
        """As many as are followed: DIRECTIONS, but none beyond the adapter's width, which would be noise."""
        return DIRECTIONS if self.spec.method == "wide" else min(DIRECTIONS, self.spec.rank)

    def __call__(self, step: int, model: nn.Module) -> None:
        """Keep the leading subspaces after `step` steps."""
        for name, update in updates(model, self.start).items():
            if update.any():
                self.tensors[f"{step}/{name}"] = leading_subspace(update, self.directions, method="randomized")

    def cosines(self, last: int) -> dict[str, dict[str, list[float]]]:
        """Of the principal angles between each layer's leading subspace after a step and after the last one.

        By step, the layers' smallest (how far the worst direction is from where it ends) and largest (how near the best
        one is; the authors of Deep LoRA plot this one).
        """
        steps = sorted({int(key.partition("/")[0]) for key in self.tensors})
        found: dict[str, dict[str, list[float]]] = {}
        for step in steps:
            pairs = [
                (basis, self.tensors[f"{last}/{key.partition('/')[2]}"])
                for key, basis in self.tensors.items()
                if key.startswith(f"{step}/")
            ]
            values = [torch.linalg.svdvals(basis.mT @ final).clamp(max=1) for basis, final in pairs]
            found[str(step)] = {
                "smallest": [float(v[-1]) for v in values],
                "largest": [float(v[0]) for v in values],
            }
        return found


def spectra(learned: Weights) -> dict[str, list[float]]:
    """The leading singular values of each layer's update."""
    return {name: torch.linalg.svdvals(update)[:KEPT].tolist() for name, update in learned.items()}


def _share(update: Tensor, first: Tensor) -> float:
    """Of the squared norm, in the subspace on the side that is as long; 0 of no update."""
    inside = update @ first if shorter(update, update.mT) == "right" else first.mT @ update
    norm = torch.linalg.vector_norm(update)
    return float((torch.linalg.vector_norm(inside) / norm) ** 2) if norm else 0.0
