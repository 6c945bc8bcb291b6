"""Perplexity falls with the rank of the subspace, for Fira less than for GaLore, and hardly minds how often it is new.

The runs of `pretraining`, a 3M LLaMA on books for 600 steps, at ranks from 8 to 128 of 256, and with a new subspace
every 10 to 250 steps; learning rates are those chosen at rank 64 and 50 steps, which may favour these. At rank 8 Fira
(exact subspaces, moments kept) is ahead of GaLore (warm ones, moments turned), but not of GaLore at rank 64, as its
authors say of 7 billion weights. Warm-started subspaces with turned moments are ahead of exact ones with moments kept
where they are found every 10 steps, and not at 50.

After Zhao et al. 2024 (GaLore, arXiv 2403.03507), Figure 5, who find gaps from 50 to 1000 steps alike on 130 million
weights, and Chen et al. 2024 (Fira, arXiv 2410.01623).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.pretraining import Spec
from lm_experiments.pretrainings import SCRATCH
from lm_experiments.records import Record
from lm_experiments.registry import recorded
from lm_experiments.runs import Pretrain
from sims.sweep import Sweep, in_process

PLAIN, TURNED, FIRA = "GaLore", "GaLore, warm, turned", "Fira"
RANKED, SPACED = (TURNED, FIRA), (PLAIN, TURNED)
COLOURS = {PLAIN: style.BLUE, TURNED: style.GREEN, FIRA: style.RED}


@dataclass(frozen=True, eq=False)
class Data:
    """Held-out perplexity after the last step."""

    spec: Spec
    ranks: tuple[int, ...]
    gaps: tuple[int, ...]
    """Steps from one subspace to the next."""
    default: tuple[int, int]
    """The rank and the gap of all other runs."""
    by_rank: Float64[np.ndarray, "two ranks seeds"]
    """GaLore warm and turned, Fira; at the default gap."""
    by_gap: Float64[np.ndarray, "two gaps seeds"]
    """GaLore, GaLore warm and turned; at the default rank."""


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Read the committed records; ValueError, with the command that makes them, if some are missing."""
    plain, ranked, spaced = (recorded(name, spec.size, spec.seeds) for name in ("optimizers", "ranks", "gaps"))
    ranks, by_rank = _table(RANKED, "rank", plain + ranked, spec)
    gaps, by_gap = _table(SPACED, "gap", plain + spaced, spec)
    return Data(spec, ranks, gaps, (plain[0].spec.rank, plain[0].spec.gap), by_rank, by_gap)


def _table(
    arms: tuple[str, ...], field: str, found: list[Record[Pretrain]], spec: Spec
) -> tuple[tuple[int, ...], Float64[np.ndarray, "arms values seeds"]]:
    """The values of a field, ascending, and each arm's perplexities at them."""
    last = {
        (SCRATCH.arm(spec.size, run.spec), getattr(run.spec, field), run.spec.seed): run.score(run.spec.metric)
        for run in found
    }
    values = tuple(sorted({value for arm, value, _ in last if arm in arms}))
    return values, np.array([[[last[arm, v, seed] for seed in range(spec.seeds)] for v in values] for arm in arms])


def check(data: Data) -> list[Claim]:
    """Of every seed, unless it says mean."""
    (turned, fira), (plain, warm) = data.by_rank, data.by_gap
    narrow = fira[0] / turned[data.ranks.index(data.default[0])]
    spread = data.by_gap.max(axis=1) / data.by_gap.min(axis=1)
    if data.spec.size == "full":
        return [
            Claim("Fira at an eighth of the rank over GaLore, mean (the paper: 7B)", narrow.mean(), at_most=1),
            Claim("GaLore: largest over least of all gaps, mean (the paper: alike)", spread[0].mean(), at_most=1.05),
        ]
    means = data.by_rank.mean(axis=2)
    higher = means[:, 1:] / means[:, :-1]
    ends = data.by_rank[:, 0] / data.by_rank[:, -1]
    return [
        Claim("from a rank to the next higher one, ratio of means, most", higher.max(), at_most=1),
        Claim("least rank over largest, GaLore, least", ends[0].min(), at_least=1.1),
        Claim("the same, Fira, least", ends[1].min(), at_least=1.05),
        Claim("the same, Fira's over GaLore's, most", (ends[1] / ends[0]).max(), at_most=0.98),
        Claim("Fira over GaLore at the least rank, most", (fira[0] / turned[0]).max(), at_most=0.98),
        Claim("Fira over GaLore at the largest rank, least", (fira[-1] / turned[-1]).min(), at_least=0.97),
        Claim("Fira at an eighth of the rank over GaLore, least", narrow.min(), at_least=1.03),
        Claim("largest over least of all gaps, most", spread.max(), at_most=1.05),
        Claim("warm and turned over GaLore at the least gap, most", (warm[0] / plain[0]).max(), at_most=1),
        Claim("warm and turned, least gap over largest, most", (warm[0] / warm[-1]).max(), at_most=1),
    ]


def draw(data: Data) -> Figure:
    """Means over seeds, and each of them."""
    figure, axes = style.panels(1, 2, height=2.4)
    _lines(axes[0], data.ranks, RANKED, data.by_rank, data.default[0])
    _lines(axes[1], data.gaps, SPACED, data.by_gap, data.default[1])
    token = "byte" if data.spec.size == "small" else "token"
    axes[0].set(xlabel="rank $r$", ylabel=f"perplexity of a {token}, held out")
    axes[1].set(xlabel="steps from one subspace to the next")
    style.title(axes, "rank", "gap")
    return figure


def _lines(
    axis: Axes, at: tuple[int, ...], arms: tuple[str, ...], found: Float64[np.ndarray, "two values seeds"], default: int
) -> None:
    axis.axvline(default, color=style.BLACK, ls=":", lw=1, label="default")
    for arm, rows in zip(arms, found, strict=True):
        axis.semilogx(at, rows.mean(axis=1), color=COLOURS[arm], label=arm)
        axis.semilogx(at, rows, "o", color=COLOURS[arm])
    axis.set_xticks(at, [str(value) for value in at])
    axis.minorticks_off()
    axis.legend(frameon=True, framealpha=1, edgecolor="none")
