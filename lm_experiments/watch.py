"""What an adapter has learned: singular values of each layer's update, and how early it points where it ends."""

from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lm_experiments.processes import whole
from lm_experiments.runs import FineTune
from lowdim import leading_subspace

KEPT = 16  # singular values recorded of each layer
DIRECTIONS = 8  # dimensions of the leading subspace that is followed


@torch.no_grad()
def updates(model: nn.Module) -> dict[str, Tensor]:
    """W - W_0 of each adapted layer by name, (outputs, inputs)."""
    layers: dict[str, Any] = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    found = {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default") for name, layer in layers.items()
    }
    return {name: whole(update).float().cpu() for name, update in found.items()}


@dataclass
class Watch:
    """Follows the updates over training; `tensors` is what a checkpoint keeps of it."""

    spec: FineTune
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Leading left singular vectors "step/layer", (outputs, directions)."""

    @property
    def directions(self) -> int:
        """As many as are followed: DIRECTIONS, but none beyond the adapter's width, which would be noise."""
        return DIRECTIONS if self.spec.method == "wide" else min(DIRECTIONS, self.spec.rank)

    def __call__(self, step: int, model: nn.Module) -> None:
        """Keep the leading subspaces after `step` steps."""
        for name, update in updates(model).items():
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


def spectra(model: nn.Module) -> dict[str, list[float]]:
    """The leading singular values of each layer's update."""
    return {name: torch.linalg.svdvals(update)[:KEPT].tolist() for name, update in updates(model).items()}
