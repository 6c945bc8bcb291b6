"""Gradients of a language model are of low rank from the start, less so later; training turns their subspaces early on.

A 3 M parameter LLaMA on bytes, trained by AdamW, GaLore and Fira, r = 64 of 256; every target's gradient of the next
batch of 16 rows, each 50 steps; means over layers. Zhao et al. 2024 (GaLore, arXiv 2403.03507) say that gradients
become of low rank while training: the stable rank of a batch's begins near 1, and grows, how much of it by noise is not
measured. They say that its subspace turns slowly: over the first 50 steps training takes half of the energy that
another batch's subspace holds at the same weights, less and less up to the middle, and a fiftieth at most from there
on, where another batch alone takes more. The learning rate falls meanwhile, to a tenth; but at one that does not
(AdamW, purple) training takes little more.

(d) is what Fira rests on (Chen et al. 2024, arXiv 2410.01623): that Adam scales a column of the projected gradient as
it would scale the whole one's, here of one run's gradients, averaged over 50 steps (the paper compares two runs).
Factors are positive, and their cosine is near 1 for whatever varies little; that their ranks agree, too, says that it
is the same columns that are scaled more. The paper has cosines of .90 to .93 over columns and .98 to .99 over layers,
and ranks' correlations of .83 to .94 and .95 to 1.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.pretraining import Spec
from lm_experiments.llama_sizes import SIZES
from lm_experiments.records import Record
from lm_experiments.registry import recorded
from lm_experiments.runs import Pretrain
from sims.sweep import Sweep, in_process

OPTIMIZERS = ("adamw", "galore", "fira")
LABELS = ("AdamW", "GaLore", "Fira")
COLOURS = (style.BLUE, style.ORANGE, style.GREEN)
SHADES = (style.BLUE, style.SKY, style.GREEN, style.BLACK, style.ORANGE, style.RED, style.PURPLE)
"""Of kinds of layers, in the order of a block."""
MEASURES = ("cosine", "spearman")
COSINE, SPEARMAN = range(2)


@dataclass(frozen=True, eq=False)
class Data:
    """By optimizer: AdamW, GaLore, Fira."""

    spec: Spec
    steps: tuple[int, ...]
    """After which gradients were watched."""
    kinds: tuple[str, ...]
    """Of the layers: q_proj, ..."""
    chance: float
    """Overlap of two subspaces at random."""
    stable: Float64[np.ndarray, "three seeds steps layers"]
    leading: Float64[np.ndarray, "three seeds steps layers"]
    """Share of the energy in the r leading directions."""
    overlap: Float64[np.ndarray, "three seeds later layers"]
    """Of the r leading directions with those of the evaluation before; this and all below from the second one on."""
    held: Float64[np.ndarray, "three seeds later layers"]
    """Share of the energy in the leading directions of the evaluation before."""
    overlap_now: Float64[np.ndarray, "three seeds later layers"]
    """As overlap, with those of another batch at the same weights: what noise alone leaves."""
    held_now: Float64[np.ndarray, "three seeds later layers"]
    """As held, the same."""
    columns: Float64[np.ndarray, "two three seeds later layers"]
    """Cosine and Spearman's correlation of factors, low-rank Adam's with Adam's, over the columns of a layer."""
    matrices: Float64[np.ndarray, "two three seeds later"]
    """The same over layers, of one factor each."""
    constant: Float64[np.ndarray, "four seeds later layers"]
    """held, held_now, overlap and overlap_now under AdamW at a learning rate that does not fall after its warm-up."""


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Read the committed records; ValueError, with the command that makes them, if some are missing."""
    found = [record for record in recorded("optimizers", spec.size, spec.seeds) if record.spec.watch]
    runs = [[record for record in found if record.spec.optimizer == name] for name in OPTIMIZERS]
    first, steady = found[0], [recorded("constant", spec.size, spec.seeds)]
    return Data(
        spec,
        first.spec.evaluations,
        tuple(name.rpartition(".")[2] for name in first.found["gradients"]["layers"]),
        first.spec.rank / SIZES[first.spec.model].hidden,
        _read(runs, "stable", 0),
        _read(runs, "leading", 0),
        _read(runs, "overlap", 1),
        _read(runs, "held", 1),
        _read(runs, "overlap_now", 1),
        _read(runs, "held_now", 1),
        np.array([_read(runs, name, 1) for name in MEASURES]),
        np.array([_read(runs, f"{name}_of_layers", 1) for name in MEASURES]),
        np.array([_read(steady, name, 1)[0] for name in ("held", "held_now", "overlap", "overlap_now")]),
    )


def _read(
    runs: list[list[Record[Pretrain]]], name: str, first: int
) -> Float64[np.ndarray, "three seeds steps *layers"]:
    """A quantity at all evaluations from that one on."""
    return np.array([[[at[name] for at in run.found["gradients"]["at"][first:]] for run in rows] for rows in runs])


def check(data: Data) -> list[Claim]:
    """Means over layers and seeds; the least, or most, of all optimizers and evaluations."""
    if data.spec.size == "full":
        return _papers(data)
    stable, leading, overlap, held, overlap_now, held_now = (
        values.mean(axis=(1, 3))
        for values in (data.stable, data.leading, data.overlap, data.held, data.overlap_now, data.held_now)
    )
    columns, matrices = data.columns.mean(axis=(2, 4)), data.matrices.mean(axis=2)
    late = slice(len(data.steps) // 2, None)
    turned, lost = overlap_now - overlap, held_now - held
    constant = data.constant[:2].mean(axis=(1, 3))[:, late]
    steady, noise = constant[1] - constant[0], 1 - constant[1]
    return [
        Claim("stable rank before the first step", stable[:, 0].max(), at_least=1, at_most=1.5),
        Claim("stable rank, last over first, least", (stable[:, -1] / stable[:, 0]).min(), at_least=2),
        Claim("energy of the leading directions, least", leading.min(), at_least=0.94),
        Claim("overlap with the subspace before, over chance, least", overlap.min() / data.chance, at_least=1.2),
        Claim("the same in the second half, least", overlap[:, late].min() / data.chance, at_least=2.5),
        Claim("overlap lost by training in the first 50 steps, least", turned[:, 0].min(), at_least=0.1),
        Claim("the same in the second half, most", turned[:, late].max(), at_most=0.05),
        Claim("energy in the subspace before, second half, least", held[:, late].min(), at_least=0.75),
        Claim("energy lost by training in the first 50 steps, least", lost[:, 0].min(), at_least=0.3),
        Claim("the same in the second half, most", lost[:, late].max(), at_most=0.03),
        Claim("the same over what another batch loses, most", (lost / (1 - held_now))[:, late].max(), at_most=1),
        Claim("at a constant rate, energy lost by training in the second half, most", steady.max(), at_most=0.04),
        Claim("the same over what another batch loses, most", (steady / noise).max(), at_most=1),
        Claim("factors of columns, cosine, least", columns[COSINE].min(), at_least=0.95),
        Claim("factors of columns, Spearman's correlation, least", columns[SPEARMAN].min(), at_least=0.8),
        Claim("factors of layers, cosine, least", matrices[COSINE].min(), at_least=0.98),
        Claim("factors of layers, Spearman's correlation, least", matrices[SPEARMAN].min(), at_least=0.9),
    ]


def _papers(data: Data) -> list[Claim]:
    """What GaLore's and Fira's authors say of 60 M parameters; of overlaps they give no number."""
    stable, columns = data.stable.mean(axis=(1, 3)), data.columns[COSINE].mean(axis=(1, 3))
    return [
        Claim("stable rank, last over first, most (GaLore: it falls)", (stable[:, -1] / stable[:, 0]).max(), at_most=1),
        Claim("factors of columns, cosine, least (Fira: .90)", columns.min(), at_least=0.9),
    ]


def draw(data: Data) -> Figure:
    """(a) means over optimizers, seeds and layers of a kind; all else over seeds and layers."""
    figure, axes = style.panels(2, 2, height=2.3)
    later = data.steps[1:]
    for kind, colour in zip(dict.fromkeys(data.kinds), SHADES, strict=True):
        those = np.array(data.kinds) == kind
        label = kind.removesuffix("_proj")
        axes[0].plot(data.steps, data.stable[..., those].mean(axis=(0, 1, 3)), "o-", color=colour, label=label)
    alike = (data.columns[SPEARMAN], data.columns[COSINE])
    pairs = ((data.held, data.held_now), (data.overlap, data.overlap_now), alike)
    for axis, (one, other) in zip(axes[1:], pairs, strict=True):
        for name, colour, solid, dashed in zip(LABELS, COLOURS, one, other, strict=True):
            axis.plot(later, solid.mean(axis=(0, 2)), "o-", color=colour, label=name if axis is axes[1] else None)
            axis.plot(later, dashed.mean(axis=(0, 2)), "--", color=colour)
    for axis, solid, dashed in ((axes[1], *data.constant[:2]), (axes[2], *data.constant[2:])):
        name = "AdamW, constant rate"
        axis.plot(later, solid.mean(axis=(0, 2)), "o-", color=style.PURPLE, label=name if axis is axes[1] else None)
        axis.plot(later, dashed.mean(axis=(0, 2)), "--", color=style.PURPLE)
    axes[2].axhline(data.chance, color=style.BLACK, ls=":", lw=1, label="chance")
    older, now = f"of {data.steps[1]} steps before", "of another batch now"
    for axis, solid, dashed in zip(axes[1:], (older, older, "Spearman's"), (now, now, "cosine"), strict=True):
        axis.plot([], [], "o-", color=style.BLACK, label=solid)
        axis.plot([], [], "--", color=style.BLACK, label=dashed)
    axes[0].set(xlabel="step", ylabel="stable rank", ylim=(1, None))
    axes[1].set(xlabel="step", ylabel="share of the energy")
    axes[2].set(xlabel="step", ylabel="overlap", ylim=(0, 1.1))
    axes[3].set(xlabel="step", ylabel="similarity of factors", ylim=(None, 1.01))
    for axis in axes:
        axis.legend(ncols=2)
    style.title(
        axes,
        "a batch's gradient, by layer, all optimizers",
        "its energy in a subspace",
        "overlap with that subspace",
        "low-rank Adam's factors and Adam's",
    )
    return figure
