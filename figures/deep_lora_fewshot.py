"""Compressed Deep LoRA against LoRA on few sentence pairs: what the paper claims of BERT, measured on MiniLM.

Yaras, Wang, Balzano & Qu 2024 (arXiv 2406.04112), STS-B few-shot. They report Pearson correlations of .529 -> .598 (16
pairs), .735 -> .751 (64), .814 -> .828 (256) over 20 seeds, of a Deep LoRA that is wide, not compressed. Ours: all linear
layers of MiniLM-L6 read both sentences at once, which its pretraining never did, so that 16 pairs teach it nothing; rank
8, 200 steps, learning rates of both methods chosen alike on other seeds and validation pairs. Equal seeds share pairs,
head and batches.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from lm_experiments.comparison import interval, scores
from lm_experiments.experiments import Size, recorded

METHODS = {"lora": ("LoRA", style.ORANGE, "o"), "compressed": ("Deep LoRA, compressed", style.BLUE, "s")}
PAPER = {16: (0.529, 0.598), 64: (0.735, 0.751), 256: (0.814, 0.828)}
"""LoRA and Deep LoRA by the number of pairs, BERT-base."""


@dataclass(frozen=True)
class Spec:
    """Whose records are drawn."""

    size: Size = "small"
    """small: MiniLM; full: BERT-base, for which `python -m lm_experiments fewshot --size full` needs a GPU."""
    seeds: int = 5
    """Seeds below this."""

    def quick(self) -> "Spec":
        """Three seeds."""
        return replace(self, seeds=3)

    def full(self) -> "Spec":
        """The paper's model, numbers of pairs and seeds."""
        return Spec("full", 20)


@dataclass(frozen=True, eq=False)
class Data:
    """Pearson correlations on held-out pairs, over numbers of training pairs n and seeds."""

    spec: Spec
    counts: tuple[int, ...]
    """n."""
    scores: dict[str, Float64[np.ndarray, "counts seeds"]]
    """After the last step, by method."""
    before: Float64[np.ndarray, "counts seeds"]
    """Before the first one, when the methods do not differ."""
    seconds: dict[str, float]
    """CPU time of a step by method, mean."""


def data(spec: Spec) -> Data:
    """From the committed records."""
    records = recorded("fewshot", spec.size, spec.seeds)
    found, first = scores(records, "method", "examples"), scores(records, "method", "examples", step=0)
    counts = tuple(sorted({record.spec.examples for record in records}))
    return Data(
        spec,
        counts,
        {method: np.array([found[method, n] for n in counts]) for method in METHODS},
        np.array([first["lora", n] for n in counts]),
        {
            m: float(np.mean([r.found["seconds"] / r.spec.steps for r in records if r.spec.method == m]))
            for m in METHODS
        },
    )
