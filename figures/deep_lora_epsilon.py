"""Adam's epsilon below Deep LoRA's first gradients: the compressed form learns sooner and at lower rates, ends alike.

Yaras et al. 2024 (arXiv 2406.04112) train with an epsilon of 1e-6. The first gradient of a core is scale^(L-1) U^T G V,
with their scale of 1e-3 and L = 3 a millionth of what the outer factors see of the weight's: there Adam is gradient
descent with a rate of lr / epsilon, until layer after layer has grown. With an epsilon of 1e-14 it is Adam from the
first step. STS-B, all-MiniLM-L6-v2. What the other figures find stays as it is: at the rate that is best at rank 8,
ranks 32 and 64 still do not train, and the gain on LoRA still is largest at 64 examples, not at 16.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.recorded import Recorded
from lm_experiments import records
from lm_experiments.comparison import scores
from lm_experiments.experiments import ALL
from lm_experiments.records import Record
from lm_experiments.registry import recorded
from lm_experiments.runs import FineTune
from sims.sweep import Sweep, in_process

PAPERS, SMALL = 0, 1
LINES = (":", "-")
SLOW = 3e-3  # a third of the rate that is best


class Spec(Recorded):
    """python -m lm_experiments rates, epsilon, rank, epsilon-rank, fewshot and epsilon-fewshot make the records."""


@dataclass(frozen=True, eq=False)
class Data:
    """Pearson correlation on held-out examples, of the compressed form with the paper's epsilon and a small one."""

    spec: Spec
    epsilons: tuple[float, float]
    rates: tuple[float, ...]
    tuning: Float64[np.ndarray, "two rates choosing"]
    """After the last step, on the seeds that choose learning rates."""
    steps: tuple[int, ...]
    course: Float64[np.ndarray, "two steps seeds"]
    """At rank 8 and 256 examples, as all that follows on the report's seeds and each at the rate chosen for it."""
    ranks: tuple[int, ...]
    by_rank: Float64[np.ndarray, "two ranks seeds"]
    examples: tuple[int, ...]
    by_examples: Float64[np.ndarray, "two examples seeds"]
    lora: Float64[np.ndarray, "examples seeds"]
    """LoRA, with the paper's."""
    shown: int
    """Examples of `course` and `by_rank`."""


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Read the committed records; ValueError, with the command that makes them, if some are missing."""
    below = recorded("epsilon", spec.size, ALL)
    small, papers = below[0].spec.eps, type(below[0].spec)().eps
    tried = scores([*below, *(_with(record, papers) for record in below)], "eps", "lr")
    rates = tuple(sorted({record.spec.lr for record in below}))
    ranked, shot = (_both(name, spec) for name in ("rank", "fewshot"))
    by_rank, by_examples = (scores(found, "eps", field) for found, field in ((ranked, "rank"), (shot, "examples")))
    ranks, examples = (tuple(sorted({value for _, value in found})) for found in (by_rank, by_examples))
    lora = scores([r for r in recorded("fewshot", spec.size, spec.seeds) if r.spec.method == "lora"], "examples")
    middle = [record for record in ranked if record.spec.rank == below[0].spec.rank]
    steps, two = middle[0].spec.evaluations, (papers, small)
    return Data(
        spec,
        two,
        rates,
        np.array([[tried[eps, lr] for lr in rates] for eps in two]),
        steps,
        np.array([[scores(middle, "eps", step=step)[(eps,)] for step in steps] for eps in two]),
        ranks,
        np.array([[by_rank[eps, rank] for rank in ranks] for eps in two]),
        examples,
        np.array([[by_examples[eps, n] for n in examples] for eps in two]),
        np.array([lora[(n,)] for n in examples]),
        middle[0].spec.examples,
    )


def _with(record: Record[FineTune], eps: float) -> Record[FineTune]:
    """The same run's with another epsilon."""
    found = records.read(replace(record.spec, eps=eps))
    if found is None:
        raise ValueError(f"no record with eps = {eps:g}: python -m lm_experiments rates")
    return found


def _both(name: str, spec: Spec) -> list[Record[FineTune]]:
    """An experiment's runs of the compressed form, and the same with the small epsilon."""
    plain = [record for record in recorded(name, spec.size, spec.seeds) if record.spec.method == "compressed"]
    return plain + recorded(f"epsilon-{name}", spec.size, spec.seeds)


def check(data: Data) -> list[Claim]:
    """Means over seeds."""
    if data.spec.size == "full":
        return _ours(data)
    tuned, ends = data.tuning.mean(axis=2), data.course[:, -1].mean(axis=1)
    early, slow = data.course[:, 1].mean(axis=1), data.rates.index(SLOW)
    wide = [data.ranks.index(rank) for rank in data.ranks if rank >= 32]
    ranked = data.by_rank[SMALL].mean(axis=1)
    gains = (data.by_examples[SMALL] - data.lora).mean(axis=1)
    few, many = data.examples.index(min(data.examples)), data.examples.index(max(data.examples))
    return [
        Claim(f"Pearson at a rate of {SLOW:g}, small less the paper's", np.diff(tuned[:, slow])[0], at_least=0.1),
        Claim("the same at the best rate of each", np.diff(tuned.max(axis=1))[0], at_least=0, at_most=0.12),
        Claim(f"after {data.steps[1]} steps, small less the paper's", early[SMALL] - early[PAPERS], at_least=0.1),
        Claim("the same after the last, size", abs(ends[SMALL] - ends[PAPERS]), at_most=0.05),
        Claim("small, rank 32 and 64: Pearson, most", ranked[wide].max(), at_most=0.2),
        Claim("small, rank 2 to 8: Pearson, least", ranked[: wide[0] - 1].min(), at_least=0.6),
        Claim("small, gain on LoRA, 16 less 64 examples (the paper: > 0)", gains[few] - gains[few + 1], at_most=0),
        Claim("small, gain on LoRA, 64 examples", gains[few + 1], at_least=0.05),
        Claim("small, gain on LoRA, 1024 examples", gains[many], at_most=0),
    ]


def _ours(data: Data) -> list[Claim]:
    """What should hold of BERT-base, too."""
    early = data.course[:, 1].mean(axis=1)
    return [Claim(f"after {data.steps[1]} steps, small less the paper's: Pearson", np.diff(early)[0], at_least=0)]


def draw(data: Data) -> Figure:
    """Means over seeds; in (c) and (d) each run, too."""
    figure, axes = style.panels(2, 2, height=2.1)
    shown = f"{data.shown} examples"
    panels = zip(
        axes,
        (data.rates, data.steps, data.ranks, data.examples),
        (data.tuning, data.course, data.by_rank, data.by_examples),
        ("learning rate", "step", "rank $r$", "examples $n$"),
        strict=True,
    )
    for axis, at, found, label in panels:
        for line, rows, eps in zip(LINES, found, data.epsilons, strict=True):
            axis.plot(at, rows.mean(axis=1), f"o{line}", color=style.BLUE, label=f"compressed, epsilon {eps:g}")
            axis.plot(at, rows, "_", color=style.BLUE, alpha=0.5)
        axis.set(xlabel=label, ylabel="Pearson correlation")
    axes[3].plot(data.examples, data.lora.mean(axis=1), "o-", color=style.RED, label="LoRA, epsilon 1e-06")
    axes[0].set_xscale("log")
    for axis, at in ((axes[2], data.ranks), (axes[3], data.examples)):
        axis.set_xscale("log", base=2)
        axis.set_xticks(at, [str(value) for value in at])
        axis.minorticks_off()
    figure.legend(*axes[3].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    style.title(axes, f"where rates are chosen, {data.spec.encoder}", f"rank 8, {shown}", shown, "rank 8")
    return figure
