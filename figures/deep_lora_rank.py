"""Robustness to the rank: the paper's LoRA collapses above rank 8, with a start and a scaling that few people use.

Yaras, Wang, Balzano & Qu 2024 (arXiv 2406.04112), STS-B, 16 pairs, 200 steps, BERT-base, ranks 2 to 64: LoRA .590 .568
.539 .524 .456 .175, Deep LoRA (narrow) .590 .642 .635 .652 .660 .667. Their LoRA has a first factor of N(0, 1) entries and
no alpha / r, so that its steps grow with r. Ours is PEFT's: Kaiming start, alpha = 16, alpha / r; MiniLM-L6, 256 pairs, Deep
LoRA compressed; each method's learning rate was chosen at rank 8 and is kept.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.deep_lora_fewshot import METHODS
from lm_experiments.comparison import interval, scores
from lm_experiments.experiments import Size, recorded

PAPER = {"lora": (0.590, 0.568, 0.539, 0.524, 0.456, 0.175), "compressed": (0.590, 0.642, 0.635, 0.652, 0.660, 0.667)}


@dataclass(frozen=True)
class Spec:
    """Whose records are drawn."""

    size: Size = "small"
    """small: MiniLM; full: BERT-base, for which `python -m lm_experiments rank --size full` needs a GPU."""
    seeds: int = 5
    """Seeds below this."""

    def quick(self) -> "Spec":
        """Three seeds."""
        return replace(self, seeds=3)

    def full(self) -> "Spec":
        """The paper's model and number of pairs."""
        return Spec("full", 5)


@dataclass(frozen=True, eq=False)
class Data:
    """Pearson correlations on held-out pairs over ranks and seeds."""

    spec: Spec
    ranks: tuple[int, ...]
    scores: dict[str, Float64[np.ndarray, "ranks seeds"]]


def data(spec: Spec) -> Data:
    """From the committed records."""
    records = recorded("rank", spec.size, spec.seeds)
    found = scores(records, "method", "rank")
    ranks = tuple(sorted({record.spec.rank for record in records}))
    return Data(spec, ranks, {method: np.array([found[method, r] for r in ranks]) for method in METHODS})
