"""Few-shot GLUE on MiniLM, 200 steps: LoRA is ahead of compressed Deep LoRA, by little if epsilon is small; no gain.

After Yaras et al. 2024 (arXiv 2406.04112), the few-shot table of GLUE: with 1024 examples on BERT-base and 600 to 1000
steps Deep LoRA is ahead on all eight tasks, by .0279 on average. The forms recorded there are full width; here it is
the compressed one, with 256 examples on all-MiniLM-L6-v2. With the paper's epsilon of Adam, and with one below the
first gradients of its cores (`deep_lora_epsilon`), it has not fitted them after 200 steps as LoRA has, so that nothing
is said here about longer training. Learning rates are chosen on SST-2 for all tasks of classes, alike for both methods
and both epsilons; pairs share seed, examples, batches, head and held-out half.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.deep_lora_fewshot import COLOURS, DEEP, LABELS, LORA, METHODS
from figures.recorded import Recorded
from lm_experiments.comparison import fitted, interval, scores
from lm_experiments.registry import recorded
from lm_experiments.tasks.text import TASKS
from sims.sweep import Sweep, in_process

PAPER = {"sst2": 0.0186, "rte": 0.0293, "mrpc": 0.0042, "qnli": 0.0477, "mnli": 0.011, "qqp": 0.005, "cola": 0.0901,
         "stsb": 0.0176}  # fmt: skip
"""Mean gains with 1024 examples on BERT-base, ten seeds."""
LAST = 20  # steps over which training losses are averaged
SMALL = 2
KINDS = (*LABELS, r"the same, small $\epsilon$")
SHADES = (*COLOURS, style.SKY)


class Spec(Recorded):
    """python -m lm_experiments rates, glue, epsilon-classes and epsilon-glue make the records."""

    FEWEST: ClassVar = 3
    FULL: ClassVar = 10


@dataclass(frozen=True, eq=False)
class Data:
    """On the held-out half after the last step, by the tasks' own metrics: accuracy in all that are run here."""

    spec: Spec
    examples: int
    tasks: tuple[str, ...]
    scores: Float64[np.ndarray, "three tasks seeds"]
    """LoRA, compressed, compressed with an epsilon below its first gradients."""
    untrained: Float64[np.ndarray, " tasks"]
    """Before training, mean over seeds."""
    fitted: Float64[np.ndarray, "three tasks"]
    """Loss on the examples, mean over seeds and the last LAST steps."""

    @property
    def gains(self) -> Float64[np.ndarray, "two tasks seeds"]:
        """Compressed Deep LoRA minus LoRA, in pairs, with either epsilon."""
        return self.scores[DEEP:] - self.scores[LORA]


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Read the committed records; ValueError, with the command that makes them, if some are missing."""
    found, deep = (recorded(name, spec.size, spec.seeds) for name in ("glue", "epsilon-glue"))
    found = [record for record in found if record.spec.model == found[0].spec.model]  # at full size BERT, and T5
    kinds = [*([record for record in found if record.spec.method == method] for method in METHODS), deep]
    first = scores(found, "task", step=0)
    tasks = tuple(task for (task,) in first)
    return Data(
        spec,
        found[0].spec.examples,
        tasks,
        np.array([[scores(runs, "task")[(task,)] for task in tasks] for runs in kinds]),
        np.array([first[(task,)].mean() for task in tasks]),
        np.array([[fitted([run for run in runs if run.spec.task == task], LAST) for task in tasks] for runs in kinds]),
    )


def check(data: Data) -> list[Claim]:
    """Gains with Student's 95 % interval over seeds, of their means over tasks; a single task's are too wide."""
    if data.spec.size == "full":
        return _papers(data)
    papers, small = data.gains.mean(axis=1)  # over tasks
    learned = (data.scores.mean(axis=2) - data.untrained).mean(axis=1)
    unfitted = (data.fitted[DEEP:] / data.fitted[LORA]).min()
    told = float(np.mean([PAPER[task] for task in data.tasks]))
    return [
        Claim(
            f"gain of the compressed form, mean over tasks (the paper: {told:.3f})",
            papers.mean(),
            at_least=-0.08,
            at_most=-0.01,
        ),
        Claim("the same, upper end of its interval: below the paper's", interval(papers).high, at_most=told),
        Claim("gain, most over tasks (the paper: > 0 on all)", data.gains[0].mean(axis=1).max(), at_most=0),
        Claim("small epsilon: gain, mean over tasks", small.mean(), at_least=-0.05, at_most=0),
        Claim("small epsilon: gain, least over tasks", data.gains[1].mean(axis=1).min(), at_most=-0.01),
        Claim("small less the paper's epsilon, mean over tasks", (small - papers).mean(), at_least=0),
        Claim("learned, mean over tasks, the least of all", learned.min(), at_least=0.05),
        Claim("training loss at the end, compressed over LoRA's, least", unfitted, at_least=5),
    ]


def _papers(data: Data) -> list[Claim]:
    """What Yaras et al. say of BERT-base, with their epsilon."""
    gains = data.gains[0].mean(axis=1)
    return [
        Claim("gain of the compressed form, least over tasks", gains.min(), at_least=0),
        Claim("gain, mean over tasks (the paper: 0.028)", gains.mean(), at_least=0.01),
    ]


def draw(data: Data) -> Figure:
    """Means, and Student's 95 % intervals; the paper's gains beside them."""
    figure, axes = style.panels(1, 2, height=2.4)
    at, names = np.arange(len(data.tasks)), [TASKS[task].folder for task in data.tasks]
    for shift, name, colour, rows in zip((-0.2, 0, 0.2), KINDS, SHADES, data.scores, strict=True):
        spans = [interval(values) for values in rows]
        means, halves = [span.mean for span in spans], [span.half for span in spans]
        axes[0].errorbar(at + shift, means, halves, fmt="o", color=colour, label=name)
    axes[0].plot(at, data.untrained, "_", color=style.BLACK, ms=14, label="before training")
    everywhere = np.append(at, len(at))
    for shift, colour, rows in zip((-0.15, 0.15), SHADES[DEEP:], data.gains, strict=True):
        for place, gain in zip(everywhere + shift, [*rows, rows.mean(axis=0)], strict=True):
            axes[1].plot([place] * len(gain), gain, "_", color=colour, alpha=0.5)
            axes[1].errorbar(place, interval(gain).mean, interval(gain).half, fmt="o", color=colour)
    told = np.array([PAPER[task] for task in data.tasks])
    told = np.append(told, told.mean())
    axes[1].plot(everywhere, told, "x", ms=5, color=style.PURPLE, label="paper: BERT-base, 1024 examples")
    axes[1].axhline(0, color=style.BLACK, lw=0.6)
    axes[0].set_xticks(at, names)
    axes[1].set_xticks(everywhere, [*names, "mean"])
    axes[0].set(xlabel="task", ylabel=" or ".join(dict.fromkeys(TASKS[task].metric for task in data.tasks)))
    axes[1].set(xlabel="task", ylabel="Deep LoRA less LoRA")
    figure.legend(loc="outside lower center", ncols=3)
    style.title(axes, f"{data.examples} examples, {data.spec.encoder}, rank 8", f"gain in {data.spec.seeds} pairs")
    return figure
