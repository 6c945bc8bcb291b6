"""Few-shot STS-B: compressed Deep LoRA is ahead of LoRA at 256 examples, behind at 1024, and nobody learns from 16.

After Yaras et al. 2024 (arXiv 2406.04112), few-shot STS-B: there BERT-base gains .07 Pearson at 16 examples, .02 at 64
and .01 at 256, the more the fewer. On the smaller all-MiniLM-L6-v2 the gain does not grow as the examples get fewer:
refuted at this scale. Both methods have rank 8 in all linear layers and 200 steps of AdamW, their learning rates chosen
alike (`python -m lm_experiments rates`); pairs share seed, examples, batches, head and held-out half.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.recorded import Recorded
from lm_experiments.comparison import interval, scores
from lm_experiments.registry import recorded
from sims.sweep import Sweep, in_process

LORA, DEEP = 0, 1
METHODS = ("lora", "compressed")
LABELS = ("LoRA", "Deep LoRA, compressed")
COLOURS = (style.RED, style.BLUE)
SHOWN = 256  # examples of (c)


@dataclass(frozen=True)
class Spec(Recorded):
    """python -m lm_experiments fewshot makes the records."""

    FEWEST: ClassVar = 6
    FULL: ClassVar = 20

    seeds: int = 7
    """Pairs of runs for every number of examples."""


@dataclass(frozen=True, eq=False)
class Data:
    """Pearson correlation on the held-out half."""

    spec: Spec
    examples: tuple[int, ...]
    steps: tuple[int, ...]
    """Of AdamW, at which the held-out examples were evaluated."""
    pearson: Float64[np.ndarray, "two examples seeds"]
    """After the last step; LoRA, compressed."""
    course: Float64[np.ndarray, "two steps seeds"]
    """After each of `steps`, at 256 examples."""

    @property
    def gains(self) -> Float64[np.ndarray, "examples seeds"]:
        """Compressed Deep LoRA minus LoRA, in pairs."""
        return self.pearson[DEEP] - self.pearson[LORA]


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Read the committed records; ValueError, with the command that makes them, if some are missing."""
    found = recorded("fewshot", spec.size, spec.seeds)
    examples = tuple(sorted({record.spec.examples for record in found}))
    steps = found[0].spec.evaluations
    last, shown = scores(found, "method", "examples"), [r for r in found if r.spec.examples == SHOWN]
    after = [scores(shown, "method", step=step) for step in steps]
    return Data(
        spec,
        examples,
        steps,
        np.array([[last[method, n] for n in examples] for method in METHODS]),
        np.array([[at[(method,)] for at in after] for method in METHODS]),
    )


def check(data: Data) -> list[Claim]:
    """Gains with Student's 95 % intervals, which are narrow enough at 256 and 1024 examples only."""
    if data.spec.size == "full":
        return _papers(data)
    gains = dict(zip(data.examples, data.gains, strict=True))
    spans = {n: interval(gain) for n, gain in gains.items()}
    means = data.pearson.mean(axis=2)
    fewest, some, many = min(gains), gains[SHOWN], max(gains)
    return [
        Claim(f"gain of the compressed form, {SHOWN} examples", some.mean(), at_most=0.1),
        Claim(f"the same, lower end of its interval, {SHOWN} examples", spans[SHOWN].low, at_least=0),
        Claim(f"gain, {many} examples", gains[many].mean(), at_least=-0.05),
        Claim(f"the same, upper end of its interval, {many} examples", spans[many].high, at_most=0),
        Claim(f"gain, {fewest} examples, size", abs(gains[fewest].mean()), at_most=0.03),
        Claim(f"gain, {fewest} less {SHOWN} examples (the paper: > 0)", gains[fewest].mean() - some.mean(), at_most=0),
        Claim("four times the examples: least increase of the mean", np.diff(means).min(), at_least=0.02),
        Claim("both methods, 16 examples: Pearson, most", means[:, 0].max(), at_most=0.25),
        Claim("before training: Pearson, size of the mean", abs(data.course[:, 0].mean()), at_most=0.1),
        Claim(
            f"after 50 steps, {SHOWN} examples: LoRA less compressed",
            data.course[LORA, 1].mean() - data.course[DEEP, 1].mean(),
            at_least=0.1,
        ),
    ]


def _papers(data: Data) -> list[Claim]:
    """What Yaras et al. say of BERT-base."""
    gains = data.gains.mean(axis=1)
    return [
        Claim("gain of the compressed form, least over examples", gains.min(), at_least=0),
        Claim(f"gain, {data.examples[0]} less {data.examples[-1]} examples", gains[0] - gains[-1], at_least=0),
    ]


def draw(data: Data) -> Figure:
    """Means, and Student's 95 % intervals."""
    figure, axes = style.panels(1, 3, height=2.3)
    for name, colour, last, course in zip(LABELS, COLOURS, data.pearson, data.course, strict=True):
        found, along = ([interval(values) for values in rows] for rows in (last, course))
        for axis, at, spans in ((axes[0], data.examples, found), (axes[2], data.steps, along)):
            axis.errorbar(at, [s.mean for s in spans], [s.half for s in spans], fmt="o-", color=colour, label=name)
    spans = [interval(gain) for gain in data.gains]
    axes[1].errorbar(data.examples, [s.mean for s in spans], [s.half for s in spans], fmt="o-", color=style.BLACK)
    for n, gain in zip(data.examples, data.gains, strict=True):
        axes[1].plot([n] * len(gain), gain, "_", color=style.BLACK, alpha=0.4)
    axes[1].axhline(0, color=style.BLACK, lw=0.6)
    for axis in axes[:2]:
        axis.set_xscale("log", base=4)
        axis.set_xticks(data.examples, [str(n) for n in data.examples])
        axis.minorticks_off()
        axis.set_xlabel("examples $n$")
    axes[0].set(ylabel="Pearson correlation")
    axes[1].set(ylabel="compressed less LoRA")
    axes[2].set(xlabel="step", ylabel="Pearson correlation")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    style.title(axes, f"STS-B, {data.spec.encoder}, rank 8", f"gain in {data.spec.seeds} pairs", f"{SHOWN} examples")
    return figure
