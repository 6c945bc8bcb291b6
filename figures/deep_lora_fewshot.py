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


def check(data: Data) -> list[Claim]:
    """Filled in below, once the runs are there."""
    first = data.counts[0]
    gain = {n: interval(data.scores["compressed"][i] - data.scores["lora"][i]) for i, n in enumerate(data.counts)}
    return [
        Claim("before training: |Pearson|, largest mean over seeds", np.abs(data.before.mean(axis=1)).max(), at_most=0.1),
        Claim(f"Deep LoRA minus LoRA, n = {first}", gain[first].mean, at_least=-1, at_most=1),
    ]


def draw(data: Data) -> Figure:
    """Every seed, its mean; and the paired differences with Student's 95 % interval."""
    figure, axes = style.panels(1, 2, height=2.6)
    places = np.arange(len(data.counts))
    for offset, (method, (name, colour, mark)) in zip((-0.08, 0.08), METHODS.items(), strict=True):
        for seed in data.scores[method].T:
            axes[0].plot(places + offset, seed, mark, color=colour, alpha=0.4, mew=0)
        axes[0].plot(places + offset, data.scores[method].mean(axis=1), "-", color=colour, marker=mark, label=name)
    gains = [interval(deep - plain) for deep, plain in zip(data.scores["compressed"], data.scores["lora"], strict=True)]
    axes[1].axhline(0, color=style.BLACK, lw=0.8)
    axes[1].errorbar(places, [g.mean for g in gains], [g.half for g in gains], fmt="s", color=style.BLUE, capsize=3)
    axes[0].set(ylabel="Pearson correlation")
    axes[1].set(ylabel="Deep LoRA minus LoRA")
    for axis in axes:
        axis.set(xlabel="training pairs $n$", xticks=places, xticklabels=data.counts)
    axes[0].legend()
    style.title(axes, "STS-B, every seed and mean", "difference, paired, 95 % interval")
    return figure
