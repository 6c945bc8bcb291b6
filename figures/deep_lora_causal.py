"""On a causal language model compressed Deep LoRA memorises less than LoRA and ends as high; its rate says how soon.

Yaras et al. 2024 (arXiv 2406.04112) fine-tune BERT and T5. Here SmolLM2-135M-Instruct reads 128 examples of SST-2 and
answers by a word; bfloat16, rank 8 in all linear layers, 60 steps of AdamW, learning rates chosen alike. Pairs share
seed, examples, batches and held-out half. Of the rates tried for the compressed form, 3e-3 and 1e-2 end exactly alike
on the half that chooses; the lower one is taken, at which it is slower than LoRA, and at the higher one it is not.
Adam's epsilon is the paper's, of which the compressed form is slow on MiniLM, too (`deep_lora_epsilon`).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.deep_lora_fewshot import COLOURS, DEEP, LABELS, LORA, METHODS
from figures.recorded import Recorded
from lm_experiments.comparison import fitted, scores
from lm_experiments.experiments import ALL, GRIDS
from lm_experiments.records import Record
from lm_experiments.registry import recorded
from lm_experiments.runs import FineTune
from sims.sweep import Sweep, in_process

WINDOW = 5  # steps over which the losses of batches are averaged


@dataclass(frozen=True)
class Spec(Recorded):
    """python -m lm_experiments rates and smollm2 make the records."""

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
    tuning: Float64[np.ndarray, "three steps"]
    """Mean accuracy on the half that chooses rates: LoRA and compressed at theirs, compressed at the next higher."""
    fitted: Float64[np.ndarray, " three"]
    """Mean loss of the last WINDOW steps, of the same."""


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
        *_tuning(found, steps, spec),
    )


def _tuning(
    found: list[Record[FineTune]], steps: tuple[int, ...], spec: Spec
) -> tuple[Float64[np.ndarray, "three steps"], Float64[np.ndarray, " three"]]:
    """Of the runs that chose the rates of those found."""
    lora, deep = (next(r.spec.lr for r in found if r.spec.method == method) for method in METHODS)
    tried = GRIDS[METHODS[DEEP]]
    kinds = zip((*METHODS, METHODS[DEEP]), (lora, deep, tried[min(tried.index(deep) + 1, len(tried) - 1)]), strict=True)
    tuning = [run for run in recorded("rates", spec.size, ALL) if run.spec.model == found[0].spec.model]
    rows = [[run for run in tuning if (run.spec.method, run.spec.lr) == kind] for kind in kinds]
    accuracy = [[np.mean([run.score(run.spec.metric, step) for run in row]) for step in steps] for row in rows]
    return np.array(accuracy), np.array([fitted(row, WINDOW) for row in rows])


def check(data: Data) -> list[Claim]:
    """Means over seeds; those of rates are about the small size, whose rates tie."""
    start, early, *_, ends = data.accuracy.mean(axis=2).T
    fitted = data.losses[:, -1].mean(axis=1)
    claims = [
        Claim("compressed less LoRA: accuracy after the last step, size", abs(ends[DEEP] - ends[LORA]), at_most=0.03),
        Claim(f"LoRA less compressed: after {data.steps[1]} steps", early[LORA] - early[DEEP], at_least=0.05),
        Claim("LoRA: training loss at the end", fitted[LORA], at_most=0.05),
        Claim("compressed: training loss at the end over LoRA's", fitted[DEEP] / fitted[LORA], at_least=5),
        Claim("both: accuracy gained, least", (ends - start).min(), at_least=0.08),
    ]
    if data.spec.size == "full":
        return claims
    tied, lora = np.diff(data.tuning[DEEP:, -1])[0], data.tuning[LORA]
    return [
        *claims,
        Claim(
            "where rates are chosen, compressed at the next rate less at its own: accuracy, size",
            abs(tied),
            at_most=0.005,
        ),
        Claim(
            f"LoRA less compressed at the next rate: after {data.steps[1]} steps",
            lora[1] - data.tuning[-1, 1],
            at_most=0,
        ),
        Claim(
            "compressed at the next rate: training loss at the end over LoRA's",
            data.fitted[-1] / data.fitted[LORA],
            at_least=5,
        ),
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
