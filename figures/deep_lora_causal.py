"""On a causal language model compressed Deep LoRA is slower than LoRA, memorises less, and ends as high.

Yaras et al. 2024 (arXiv 2406.04112) fine-tune BERT and T5. Here SmolLM2-135M-Instruct reads 128 examples of SST-2 and
answers by a word; bfloat16, rank 8 in all linear layers, 60 steps of AdamW, learning rates chosen alike. Pairs share
seed, examples, batches and held-out half. Adam's epsilon is the paper's, of which the compressed form is slow on
MiniLM, too (`deep_lora_epsilon`).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.deep_lora_fewshot import COLOURS, DEEP, LABELS, LORA, METHODS
from figures.recorded import Recorded
from lm_experiments.comparison import scores
from lm_experiments.registry import recorded
from sims.sweep import Sweep, in_process

WINDOW = 5  # steps over which the losses of batches are averaged


@dataclass(frozen=True)
class Spec(Recorded):
    """python -m lm_experiments smollm2 makes the records."""

    seeds: int = 3
    """Runs of each kind."""


@dataclass(frozen=True, eq=False)
class Data:
    """LoRA, compressed Deep LoRA."""

    spec: Spec
    steps: tuple[int, ...]
    """At which the held-out examples were evaluated."""
    accuracy: Float64[np.ndarray, "two steps seeds"]
    losses: Float64[np.ndarray, "two windows seeds"]
    """On the examples, means over WINDOW steps."""


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Read the committed records; ValueError, with the command that makes them, if some are missing."""
    found = recorded("smollm2", spec.size, spec.seeds)
    steps = found[0].spec.evaluations
    after = [scores(found, "method", step=step) for step in steps]
    losses = [[record.found["losses"] for record in found if record.spec.method == method] for method in METHODS]
    return Data(
        spec,
        steps,
        np.array([[at[(method,)] for at in after] for method in METHODS]),
        np.array(losses).reshape(2, spec.seeds, -1, WINDOW).mean(axis=3).swapaxes(1, 2),
    )


def check(data: Data) -> list[Claim]:
    """Means over seeds."""
    start, early, *_, ends = data.accuracy.mean(axis=2).T
    fitted = data.losses[:, -1].mean(axis=1)
    return [
        Claim("compressed less LoRA: accuracy after the last step, size", abs(ends[DEEP] - ends[LORA]), at_most=0.03),
        Claim(f"LoRA less compressed: after {data.steps[1]} steps", early[LORA] - early[DEEP], at_least=0.05),
        Claim("LoRA: training loss at the end", fitted[LORA], at_most=0.05),
        Claim("compressed: training loss at the end over LoRA's", fitted[DEEP] / fitted[LORA], at_least=5),
        Claim("both: accuracy gained, least", (ends - start).min(), at_least=0.08),
    ]


def draw(data: Data) -> Figure:
    """Means over seeds, and each of them."""
    figure, axes = style.panels(1, 2, height=2.2)
    at = np.arange(data.losses.shape[1]) * WINDOW + (WINDOW + 1) / 2
    for name, colour, losses, accuracy in zip(LABELS, COLOURS, data.losses, data.accuracy, strict=True):
        for axis, where, rows in ((axes[0], at, losses), (axes[1], data.steps, accuracy)):
            axis.plot(where, rows.mean(axis=1), "o-", color=colour, label=name)
            axis.plot(where, rows, lw=0.5, alpha=0.5, color=colour)
    axes[0].set(xlabel="step", ylabel=f"training loss, mean of {WINDOW} steps", yscale="log")
    axes[1].set(xlabel="step", ylabel="accuracy, held out")
    axes[0].legend()
    style.title(axes, "fit of the 128 examples", "SST-2, SmolLM2-135M")
    return figure
