"""Pre-training a small LLaMA: GaLore and Fira end near AdamW with two rates, and below AdamW with one; in less memory.

GaLore has its subspaces by SVD or warm-started, and moments that are kept, turned into each new subspace, or held in 8
bits: all end within 3 % of the first of these, and the default, warm and turned, is not ahead of it in every seed. Two
rates: AdamW whose targets learn at an eighth of the rate of embeddings and head, about what GaLore's scale, 1/4, and
its projection, (64 / 256)^1/2, make of them. That is much of what GaLore is ahead of AdamW at the end, though not early
on. LoRA on random weights and low-rank factors stay behind.

After Zhao et al. 2024 (GaLore, arXiv 2403.03507), Table 2, Chen et al. 2024 (Fira, arXiv 2410.01623), Table 2, and Zhu
et al. 2024 (APOLLO, arXiv 2412.05270), Table 2: from scratch, every method at one rank, 64 of 256, and at its best of
five learning rates, factors of 2 to 2.5 apart, on one seed, a quarter of the steps and the same held-out text. Here
three million parameters read 2.5 million bytes of books (the papers' 60 million: 1.1 billion tokens).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.recorded import Recorded
from lm_experiments import records
from lm_experiments.pretrainings import ARMS, SCRATCH, Comparison
from lm_experiments.registry import recorded
from sims.sweep import Sweep, in_process

COLOURS = dict(zip(ARMS, (
    style.BLACK, style.BLACK, style.ORANGE, style.YELLOW, style.BLUE, style.SKY, style.GREEN, style.BLUE, style.RED,
    style.PURPLE,
), strict=True))  # fmt: skip
DOTTED = ("AdamW, two rates", "GaLore, 8 bits")  # of the colour of another arm


@dataclass(frozen=True)
class Spec(Recorded):
    """python -m lm_experiments pretrain-rates and optimizers make the records; of real_gradients constant, too, of
    pretraining_subspaces ranks and gaps; of instructions instruct-rates and instruct, in their place."""

    FULL: ClassVar = 3
    seeds: int = 3
    """Runs of each arm."""


@dataclass(frozen=True, eq=False)
class Data:
    """By arm; on held-out text."""

    spec: Recorded
    arms: tuple[str, ...]
    steps: tuple[int, ...]
    perplexity: Float64[np.ndarray, "arms steps seeds"]
    state: Int64[np.ndarray, " arms"]
    """Bytes of the optimizer's state after the last step."""
    seconds: Float64[np.ndarray, "arms seeds"]
    """CPU time of all steps."""
    at_edge: tuple[str, ...]
    """Arms whose best learning rate is the least or the largest tried."""

    def over(self, arm: str, other: str) -> Float64[np.ndarray, " seeds"]:
        """An arm's perplexity after the last step over another's, seed by seed."""
        one, two = (self.perplexity[self.arms.index(name), -1] for name in (arm, other))
        return one / two

    def smaller(self, arm: str) -> float:
        """How many times less state it has than AdamW."""
        one, two = (float(self.state[self.arms.index(name)]) for name in (arm, "AdamW"))
        return two / one


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Read the committed records; ValueError, with the command that makes them, if some are missing."""
    return compared(SCRATCH, "optimizers", spec)


def compared(comparison: Comparison, name: str, spec: Recorded) -> Data:
    """The runs of a comparison's experiment, by arm."""
    found = recorded(name, spec.size, spec.seeds)
    runs = [[record for record in found if comparison.arm(spec.size, record.spec) == arm] for arm in comparison.arms]
    steps = found[0].spec.evaluations
    return Data(
        spec,
        tuple(comparison.arms),
        steps,
        np.array([[[run.score("perplexity", step) for run in rows] for step in steps] for rows in runs]),
        np.array([rows[0].found["optimizer_bytes"] for rows in runs]),
        np.array([[run.found["seconds"] for run in rows] for rows in runs]),
        comparison.at_edge(spec.size, records.read),
    )


def check(data: Data) -> list[Claim]:
    """Perplexities after the last step, over another arm's of the same seed."""
    if data.spec.size == "full":
        return _papers(data)
    near = [data.over(arm, "AdamW, two rates") for arm in ("GaLore", "Fira")]
    low = [data.over(arm, "GaLore") for arm in ("LoRA", "low rank")]
    variants = [data.over(arm, "GaLore") for arm in ("GaLore, warm", "GaLore, warm, turned", "GaLore, 8 bits")]
    return [
        Claim("arms whose best learning rate is the least or the largest tried", len(data.at_edge), at_most=0),
        Claim("GaLore over AdamW, most", data.over("GaLore", "AdamW").max(), at_most=0.95),
        Claim("Fira over AdamW, most", data.over("Fira", "AdamW").max(), at_most=0.95),
        Claim("AdamW with two rates over AdamW, most", data.over("AdamW, two rates", "AdamW").max(), at_most=0.95),
        Claim("GaLore and Fira over AdamW with two rates, least", np.min(near), at_least=0.95),
        Claim("the same, most", np.max(near), at_most=1.05),
        Claim("GaLore warm, warm and turned, in 8 bits, over GaLore: least", np.min(variants), at_least=0.97),
        Claim("the same, most", np.max(variants), at_most=1.03),
        Claim("warm and turned over GaLore, most", data.over("GaLore, warm, turned", "GaLore").max(), at_least=1),
        Claim("the same, least", data.over("GaLore, warm, turned", "GaLore").min(), at_most=1),
        Claim("Fira over GaLore, least", data.over("Fira", "GaLore").min(), at_least=0.97),
        Claim("the same, most", data.over("Fira", "GaLore").max(), at_most=1.03),
        Claim("APOLLO over AdamW, most", data.over("APOLLO", "AdamW").max(), at_most=1),
        Claim("APOLLO over GaLore, least", data.over("APOLLO", "GaLore").min(), at_least=1.02),
        Claim("LoRA and low rank over GaLore, least", np.min(low), at_least=1.1),
        Claim("AdamW's state over GaLore's", data.smaller("GaLore"), at_least=2.5),
        Claim("AdamW's state over that of GaLore in 8 bits", data.smaller("GaLore, 8 bits"), at_least=6),
    ]


def _papers(data: Data) -> list[Claim]:
    """What the papers say of 60 M parameters, 1.1 B tokens of C4 and rank 128."""
    return [
        Claim("GaLore over AdamW (the paper: 34.88 / 34.06)", data.over("GaLore", "AdamW").mean(), at_most=1.05),
        Claim("low rank over AdamW (GaLore: 78.18 / 34.06)", data.over("low rank", "AdamW").mean(), at_least=1.3),
        Claim("Fira over AdamW (the paper: 31.06 / 34.06)", data.over("Fira", "AdamW").mean(), at_most=1),
        Claim("APOLLO over AdamW (the paper: 31.55 / 34.06)", data.over("APOLLO", "AdamW").mean(), at_most=1),
        Claim("AdamW's state over GaLore's (by count: 1.42)", data.smaller("GaLore"), at_least=1.35),
    ]


def draw(data: Data) -> Figure:
    """Means over seeds; in (b) and (c) each of them."""
    figure, axes = style.panels(1, 3, height=2.9)
    for index, (arm, colour) in enumerate(COLOURS.items()):
        along, last = data.perplexity[index].mean(axis=1), data.perplexity[index, -1]
        line, mark = (":", "s") if arm in DOTTED else ("-", "o")
        axes[0].plot(data.steps[1:], along[1:], mark + line, color=colour, label=arm)
        axes[1].plot(np.full(len(last), data.state[index] / 2**20), last, mark, color=colour)
        axes[2].plot(data.seconds[index] / 60, last, mark, color=colour)
    token = "byte" if data.spec.size == "small" else "token"
    axes[0].set(xlabel="step", ylabel=f"perplexity of a {token}", yscale="log")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter("{x:g}")
    axes[1].set(xlabel="optimizer's state [MiB]", ylabel="perplexity, last step")
    axes[1].set_xscale("log", base=2)
    axes[1].xaxis.set_major_formatter("{x:g}")
    axes[2].set(xlabel="CPU time, shared machine [min]", ylabel="perplexity, last step")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    style.title(axes, "held-out text", "the end, by memory", "the end, by time")
    return figure
