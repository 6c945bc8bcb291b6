"""Deep LoRA of any form learns five directions a layer at most, LoRA all eight; the compressed form is ahead first.

After Yaras et al. 2024 (arXiv 2406.04112): loss curves of the three forms, ranks of what they learn, and how early the
leading directions point where they end. STS-B, 256 examples, all-MiniLM-L6-v2, each form at the learning rate that is
best for it. That the compressed form trains as fast as the wide one holds for the held-out score, on which it is ahead;
that the narrow one is slow does not: at a rate of its own it fits the examples better than the compressed one.

Whether directions stand still depends on which are counted: the nearest of a layer's eight (which the paper plots) is
where it ends from step 50 on, the farthest is noise to the last, as a layer does not learn eight.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.recorded import Recorded
from lm_experiments.comparison import scores
from lm_experiments.records import Record
from lm_experiments.registry import recorded
from lm_experiments.runs import FineTune
from sims.sweep import Sweep, in_process

METHODS = ("compressed", "narrow", "wide", "lora")
COMPRESSED, NARROW, WIDE, LORA = range(4)
LABELS = ("compressed", "narrow", "wide", "LoRA")
COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.RED)
WINDOW = 10  # steps over which the losses of batches are averaged
IDLE = 1e-3  # spectral norm up to which an update counts as none, as in the paper
TAIL = 1e-2  # share of a layer's largest singular value from which on another one counts
SMALLEST, LARGEST = 0, 1


class Spec(Recorded):
    """python -m lm_experiments forms makes the records."""


@dataclass(frozen=True, eq=False)
class Data:
    """By form: compressed, narrow, wide, LoRA."""

    spec: Spec
    steps: tuple[int, ...]
    """At which the held-out examples were evaluated."""
    losses: Float64[np.ndarray, "four seeds windows"]
    """Means over WINDOW steps."""
    pearson: Float64[np.ndarray, "four steps seeds"]
    spectra: Float64[np.ndarray, "four seeds layers kept"]
    """Leading singular values of every layer's update after the last step."""
    cosines: Float64[np.ndarray, "four later two"]
    """Of the principal angles between a layer's leading directions after a step and the last one, mean over layers and
    seeds: the smallest, and the largest, which the paper plots. From the second of `steps` on."""

    @property
    def ranks(self) -> Int64[np.ndarray, "four seeds layers"]:
        """Singular values above TAIL of a layer's largest; 0 where that is below IDLE."""
        largest = self.spectra[..., :1]
        return ((self.spectra > TAIL * largest) & (largest > IDLE)).sum(axis=-1)


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Read the committed records; ValueError, with the command that makes them, if some are missing."""
    found = recorded("forms", spec.size, spec.seeds)
    runs = [[record for record in found if record.spec.method == method] for method in METHODS]
    steps = found[0].spec.evaluations
    after = [scores(found, "method", step=step) for step in steps]
    return Data(
        spec,
        steps,
        np.array([[_smoothed(run.found["losses"]) for run in rows] for rows in runs]),
        np.array([[at[(method,)] for at in after] for method in METHODS]),
        np.array([[_spectra(run) for run in rows] for rows in runs]),
        np.array([[_cosines(rows, step) for step in steps[1:]] for rows in runs]),
    )


def _smoothed(losses: list[float]) -> Float64[np.ndarray, " windows"]:
    return np.array(losses[: len(losses) // WINDOW * WINDOW]).reshape(-1, WINDOW).mean(axis=1)


def _spectra(run: Record[FineTune]) -> Float64[np.ndarray, "layers kept"]:
    return np.array([*run.found["spectra"].values()])


def _cosines(runs: list[Record[FineTune]], step: int) -> tuple[float, float]:
    kept = [run.found["cosines"].get(str(step)) for run in runs]
    smallest, largest = (float(np.mean([at[name] for at in kept if at])) for name in ("smallest", "largest"))
    return smallest, largest


def check(data: Data) -> list[Claim]:
    """Each form against the one that it is said to be like, or unlike."""
    if data.spec.size == "full":
        return _papers(data)
    ranks, last, half = data.ranks, data.pearson[:, -1].mean(axis=1), data.pearson[:, 2].mean(axis=1)
    few = [(found <= 5).mean() for found in ranks[:LORA]]
    fitted, nearest = data.losses[:, :, -3:].mean(axis=(1, 2)), data.cosines[:, :, LARGEST]
    farthest = data.cosines[:LORA, :-1, SMALLEST]
    return [
        Claim("Deep LoRA: layers of rank 5 or less, least share of the forms", min(few), at_least=0.95),
        Claim("compressed: mean rank", ranks[COMPRESSED].mean(), at_least=1, at_most=2),
        Claim("wide: mean rank", ranks[WIDE].mean(), at_least=1.5, at_most=4),
        Claim("LoRA: layers of rank 8, share", (ranks[LORA] == ranks.max()).mean(), at_least=0.95),
        Claim("compressed less wide: Pearson, last", last[COMPRESSED] - last[WIDE], at_least=0.05),
        Claim("compressed less wide: Pearson after 100 steps", half[COMPRESSED] - half[WIDE], at_least=0.2),
        Claim("compressed less narrow: Pearson after 100 steps", half[COMPRESSED] - half[NARROW], at_least=0.02),
        Claim("training loss, compressed / narrow (the paper: < 1)", fitted[COMPRESSED] / fitted[NARROW], at_least=1.5),
        Claim("training loss, LoRA / the least of Deep LoRA", fitted[LORA] / fitted[:LORA].min(), at_most=0.9),
        Claim(
            "compressed: nearest direction after 50 steps, cosine to the last", nearest[COMPRESSED, 0], at_least=0.98
        ),
        Claim("narrow and wide: the same, most", nearest[[NARROW, WIDE], 0].max(), at_most=0.9),
        Claim("Deep LoRA: farthest direction before the end, most", farthest.max(), at_most=0.5),
        Claim("LoRA: farthest direction after 50 steps", data.cosines[LORA, 0, SMALLEST], at_least=0.5),
    ]


def _papers(data: Data) -> list[Claim]:
    """What Yaras et al. say of BERT-base: training losses in the first half, ranks, nearest directions."""
    early = data.losses[:, :, : data.losses.shape[2] // 2].mean(axis=(1, 2))
    few = (data.ranks[:LORA] <= 5).mean(axis=(1, 2))
    return [
        Claim("training loss, compressed / narrow", early[COMPRESSED] / early[NARROW], at_most=1),
        Claim("training loss, compressed / wide", early[COMPRESSED] / early[WIDE], at_most=1.5),
        Claim("Deep LoRA: layers of rank 5 or less, least share of the forms", few.min(), at_least=0.8),
        Claim("LoRA: mean rank less compressed's", np.diff(data.ranks[[COMPRESSED, LORA]].mean(axis=(1, 2)))[0],
              at_least=1),
        Claim("compressed: nearest direction at first, cosine to the last", data.cosines[COMPRESSED, 0, LARGEST],
              at_least=0.6),
    ]  # fmt: skip


def draw(data: Data) -> Figure:
    """Means over seeds; in (b) each of them, too."""
    figure, axes = style.panels(2, 2, height=2.3)
    last, ranks = data.steps[-1], data.ranks
    at = np.arange(data.losses.shape[2]) * WINDOW + (WINDOW + 1) / 2
    bins = np.arange(ranks.max() + 2) - 0.5
    for index, (name, colour) in enumerate(zip(LABELS, COLOURS, strict=True)):
        axes[0].plot(at, data.losses[index].mean(axis=0), color=colour, label=name)
        axes[1].plot(data.steps, data.pearson[index].mean(axis=1), "o-", color=colour)
        axes[1].plot(data.steps, data.pearson[index], lw=0.5, alpha=0.5, color=colour)
        counts = np.histogram(ranks[index], bins)[0] / ranks[index].size
        axes[2].stairs(counts, bins + (index - 1.5) / 20, color=colour, lw=1.4)
        axes[3].plot(data.steps[1:], data.cosines[index, :, SMALLEST], "o-", color=colour)
        axes[3].plot(data.steps[1:], data.cosines[index, :, LARGEST], "o:", color=colour)
    axes[2].plot([], [])  # steps are no lines
    axes[0].set(xlabel="step", ylabel=f"training loss, mean of {WINDOW} steps", xlim=(0, last))
    axes[1].set(xlabel="step", ylabel="Pearson correlation")
    axes[2].set(xlabel=f"singular values above {TAIL:g} of the largest", ylabel="share of the layers")
    axes[3].set(xlabel="step", ylabel="cosine to the last step's", ylim=(0, 1.02))
    axes[0].legend()
    style.title(
        axes,
        f"training, {data.spec.encoder}",
        "held out",
        "rank of what a layer learned",
        "leading directions: worst, best (dotted)",
    )
    return figure
