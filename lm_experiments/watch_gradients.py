"""What gradients are like while a model trains: of how low a rank, how fast they turn, how Adam scales their columns.

G (k x l) is the gradient of a target, its shorter side first, as GaLore projects it; P an orthonormal basis of its r
leading left directions, Q the one of the evaluation before.

    stable   |G|_F^2 / |G|_2^2           leading   |P^T G|_F^2 / |G|_F^2
    overlap  |Q^T P|_F^2 / r             held      |Q^T G|_F^2 / |G|_F^2

    overlap_now, held_now                the same, Q that of the batch after the next, at the same weights

They are taken of the next training batch, from which GaLore would find its next subspace. So two of them differ in
their examples and rounding, too: what a subspace has lost is drift and noise, of which noise alone takes what
overlap_now and held_now lack. Bases at random overlap by r / k.

Fira gives column j of what lies outside a subspace the step that Adam takes for one of the same norm inside,

    k_j = |N_j| / |R_j|,    N = Adam(R),  R = P^T G,

in place of the k_j of Adam(G). Both Adams are followed here, on the gradients that the optimizer sees, after clipping:
P is found anew by an SVD every `gap` steps, and moments are kept, as the authors do it, whatever the optimizer does.
Compared are means over the steps since the evaluation before: over the columns of a matrix, and over matrices, of
|N| / |R|. As factors are positive, their cosine is never far from 1; their correlation may be, Pearson's or, of their
ranks, Spearman's.

Zhao et al. 2024 (GaLore, arXiv 2403.03507), section 3; Chen et al. 2024 (Fira, arXiv 2410.01623), who compare two runs,
by cosine and by Spearman's correlation.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from lm_experiments.llama import targets
from lm_experiments.processes import whole
from lm_experiments.runs import Pretrain
from lowdim import leading_subspace

BETAS, EPS = (0.9, 0.999), 1e-8
TINY = 1e-8  # beside norms that may be zero, as in Fira
DIGITS = 3  # significant ones recorded: many numbers, all of them noisy
LEAST = sys.float_info.min


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """G of each target by name, (k, l) in float32; a square one is transposed, as GaLore projects its right side."""
    found = {name: layer.weight.grad for name, layer in targets(model).items()}
    there = {name: whole(gradient).float() for name, gradient in found.items() if gradient is not None}
    return {name: gradient if len(gradient) < gradient.shape[1] else gradient.mT for name, gradient in there.items()}


@dataclass
class Watch:
    """Follows gradients over training; `state`, by layer, is what a checkpoint keeps of it."""

    spec: Pretrain
    state: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def seen(self, step: int, found: Mapping[str, Tensor]) -> None:
        """The gradients of a step, from 1, go into the moments of both Adams."""
        for name, gradient in found.items():
            state = self.state.setdefault(name, {})
            if (step - 1) % self.spec.gap == 0:
                state["projector"] = self._basis(gradient)
            for kind, part in (("full", gradient), ("low", state["projector"].mT @ gradient)):
                direction = _adam(state, kind, part, step)
                columns, matrix = _factor(direction, part, dim=0), _factor(direction, part)
                for place, factors in ((f"{kind} columns", columns), (f"{kind} matrix", matrix)):
                    state[place] = state[place] + factors if place in state else factors

    def __call__(self, found: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Any]:
        """What is recorded of these gradients, and of the factors since the last call, as lists over layers.

        other: the gradients of another batch at the same weights. overlap and held are left out of the first call, and
        what is said of factors before the first step.
        """
        measured: dict[str, Any] = {}
        of_layers = self._layers()  # before the factors are forgotten
        for name, gradient in found.items():
            state = self.state.setdefault(name, {})
            for quantity, value in {**self._shape(state, gradient, other[name]), **_columns(state)}.items():
                measured.setdefault(quantity, []).append(_rounded(value))
        return measured | {quantity: _rounded(value) for quantity, value in of_layers.items()}

    def _layers(self) -> dict[str, float]:
        """How alike the factors of whole matrices are, over layers."""
        seen = [state for state in self.state.values() if "full matrix" in state]
        if not seen:
            return {}
        alike = _alike(*(torch.stack([s[f"{kind} matrix"] for s in seen]) for kind in ("full", "low")))
        return {f"{quantity}_of_layers": value for quantity, value in alike.items()}

    def _basis(self, gradient: Tensor) -> Tensor:
        return leading_subspace(gradient, min(self.spec.rank, len(gradient)))

    def _shape(self, state: dict[str, Tensor], gradient: Tensor, other: Tensor) -> dict[str, float]:
        """Of one gradient, whose basis is kept; 0 but for the overlaps if it is 0."""
        basis, energy = self._basis(gradient), _energy(gradient)
        core, bases = basis.mT @ gradient, {"_now": self._basis(other)}
        if "basis" in state:
            bases[""] = state["basis"]
        state["basis"] = basis
        found = {"stable": energy / max(_energy(core[0]), LEAST), "leading": _energy(core) / max(energy, LEAST)}
        for which, its in bases.items():
            found[f"overlap{which}"] = _energy(its.mT @ basis) / basis.shape[1]
            found[f"held{which}"] = _energy(its.mT @ gradient) / max(energy, LEAST)
        return found


def _adam(state: dict[str, Tensor], kind: str, gradient: Tensor, step: int) -> Tensor:
    """N, with its bias correction; Kingma & Ba 2015, arXiv 1412.6980."""
    first, second = (state.setdefault(f"{kind} {name}", torch.zeros_like(gradient)) for name in ("mean", "square"))
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    return first / (1 - BETAS[0] ** step) / ((second / (1 - BETAS[1] ** step)).sqrt() + EPS)


def _factor(direction: Tensor, gradient: Tensor, dim: int | None = None) -> Tensor:
    """|N| / |R|, of each column or of all."""
    norms = (torch.linalg.vector_norm(tensor, dim=dim) for tensor in (direction, gradient))
    return next(norms) / (next(norms) + TINY)


def _columns(state: dict[str, Tensor]) -> dict[str, float]:
    """How alike the factors of a layer's columns are, since the last time; they are forgotten, and its matrix's."""
    if "full columns" not in state:
        return {}
    alike = _alike(state.pop("full columns"), state.pop("low columns"))
    for place in ("full matrix", "low matrix"):
        del state[place]
    return alike


def _alike(one: Tensor, other: Tensor) -> dict[str, float]:
    """Cosine, Pearson's and Spearman's correlation of two vectors; correlations are 0 if one of them does not vary."""
    factors = (one.double(), other.double())
    ranks = (torch.from_numpy(rankdata(values.cpu().numpy())) for values in factors)
    return {
        "cosine": _cosine(*factors),
        "correlation": _cosine(*(values - values.mean() for values in factors)),
        "spearman": _cosine(*(values - values.mean() for values in ranks)),
    }


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other) / max(float(one.norm() * other.norm()), LEAST)


def _energy(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
