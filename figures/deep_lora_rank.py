"""Rank 2 to 64: at one learning rate LoRA keeps its score, Deep LoRA does not; at one that falls as 1 / r both do.

After Yaras et al. 2024 (arXiv 2406.04112): there, with 16 examples on BERT-base, LoRA falls from .59 Pearson at rank 2
to .18 at rank 64, and Deep LoRA rises from .59 to .67. Here all-MiniLM-L6-v2 has 256 examples of STS-B, and each method
the learning rate that is best for it at rank 8. LoRA's update is alpha / r B A with alpha = 16, so that a larger rank
moves it no farther. A step of Adam moves each entry of Deep LoRA's r x r cores by as much as the rate, and the cores,
in norm, by up to r times that: at rank 32 and 64 they do not train. With a rate that falls as 1 / r they do.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.recorded import Recorded
from lm_experiments.comparison import fitted, scores
from lm_experiments.registry import recorded
from sims.sweep import Sweep, in_process

LORA, DEEP, SCALED = range(3)
LABELS = ("LoRA", "Deep LoRA, compressed", r"the same, rate $\propto 1/r$")
COLOURS = (style.RED, style.BLUE, style.GREEN)
LAST = 30  # steps over which training losses are averaged


class Spec(Recorded):
    """python -m lm_experiments rank, and rank-rates, make the records."""


@dataclass(frozen=True, eq=False)
class Data:
    """LoRA, compressed, compressed with a rate that falls as 1 / r."""

    spec: Spec
    ranks: tuple[int, ...]
    pearson: Float64[np.ndarray, "three ranks seeds"]
    """On the held-out half, after the last step."""
    losses: Float64[np.ndarray, "three ranks"]
    """On the examples, mean over seeds and the last LAST steps."""
    examples: int


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Read the committed records; ValueError, with the command that makes them, if some are missing."""
    found, scaled = (recorded(name, spec.size, spec.seeds) for name in ("rank", "rank-rates"))
    deep = [record for record in found if record.spec.method == "compressed"]
    at_8 = [record for record in deep if record.spec.rank == 8]  # where both rates are the same
    kinds = [[record for record in found if record.spec.method == "lora"], deep, scaled + at_8]
    ranks = tuple(sorted({record.spec.rank for record in deep}))
    return Data(
        spec,
        ranks,
        np.array([[scores(kind, "rank")[(rank,)] for rank in ranks] for kind in kinds]),
        np.array([[fitted([run for run in kind if run.spec.rank == rank], LAST) for rank in ranks] for kind in kinds]),
        found[0].spec.examples,
    )


def check(data: Data) -> list[Claim]:
    """Best less worst rank is what a method loses by its rank."""
    if data.spec.size == "full":
        return _papers(data)
    means, wide = data.pearson.mean(axis=2), [data.ranks.index(rank) for rank in data.ranks if rank >= 32]
    lost = np.ptp(means, axis=1)
    return [
        Claim("LoRA: Pearson, best less worst rank", lost[LORA], at_most=0.1),
        Claim(
            "LoRA: Pearson, largest less smallest rank (the paper: -.41)",
            means[LORA, -1] - means[LORA, 0],
            at_least=-0.05,
        ),
        Claim("compressed, one rate: Pearson at rank 32 and 64, most", means[DEEP, wide].max(), at_most=0.2),
        Claim(
            "the same: loss over that at rank 8, least",
            (data.losses[DEEP, wide] / data.losses[DEEP, 2]).min(),
            at_least=2,
        ),
        Claim("compressed, rate as 1 / r: Pearson, best less worst rank", lost[SCALED], at_most=0.15),
        Claim("the same: Pearson, least over ranks", means[SCALED].min(), at_least=0.65),
    ]


def _papers(data: Data) -> list[Claim]:
    """What Yaras et al. say of BERT-base and 16 examples, at one rate."""
    means = data.pearson.mean(axis=2)
    return [
        Claim(
            "LoRA: Pearson, largest less smallest rank (the paper: -.41)", means[LORA, -1] - means[LORA, 0], at_most=0
        ),
        Claim("compressed: the same (the paper, narrow: .08)", means[DEEP, -1] - means[DEEP, 0], at_least=0),
    ]


def draw(data: Data) -> Figure:
    """Means over seeds, and each of them."""
    figure, axes = style.panels(1, 2, height=2.4)
    for name, colour, rows, losses in zip(LABELS, COLOURS, data.pearson, data.losses, strict=True):
        axes[0].plot(data.ranks, rows.mean(axis=1), "o-", color=colour, label=name)
        axes[0].plot(data.ranks, rows, "_", color=colour)
        axes[1].plot(data.ranks, losses, "o-", color=colour)
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(data.ranks, [str(rank) for rank in data.ranks])
        axis.minorticks_off()
        axis.set_xlabel("rank $r$")
    axes[0].set(ylabel="Pearson correlation")
    axes[1].set(ylabel=f"training loss, mean of {LAST} steps")
    axes[0].legend()
    style.title(axes, f"STS-B, {data.spec.encoder}, {data.spec.seeds} seeds", f"fit of the {data.examples} examples")
    return figure
