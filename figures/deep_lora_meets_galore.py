"""Deep LoRA and GaLore begin with leading directions of one first gradient, which one function finds; GaLore moves on.

Yaras et al. 2024 (arXiv 2406.04112) compress an adapter onto the first gradient's leading singular vectors, half of its
width, and train inside; Zhao et al. 2024 (GaLore, arXiv 2403.03507) project the gradients of the weights themselves on
such vectors, all of its rank, and find them anew every 50 steps. Both call `lowdim.subspace.leading_subspace`, here on
the same gradients of the same 37 layers: all-MiniLM-L6-v2 on 256 examples of STS-B, rank 8, without dropout, with which
GaLore would see another first gradient than Deep LoRA. P: the 8 leading singular vectors of a layer's first gradient,
on its shorter side; Delta: what the layer has learned.

Deep LoRA's directions hardly move, as they learn at a hundredth of the rate; GaLore takes new ones, by training and
because its batches differ, which are not told apart. Yet more of GaLore's update than of Deep LoRA's lies in P at the
end: the other half of Deep LoRA's width learns, too. (d) has the fourth largest of eight cosines (by chance 0.13), the
last that Deep LoRA takes from the gradient. GaLore's update is the sum of four of rank 8. (a) is no race: each has the
rate that ends best of five tried with dropout, GaLore's the least of three that tie, and Adam's epsilon delays Deep
LoRA.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.recorded import Recorded
from lm_experiments.comparison import scores
from lm_experiments.records import Record
from lm_experiments.registry import recorded
from lm_experiments.runs import FineTune
from sims.sweep import Sweep, in_process

METHODS = ("compressed", "galore", "lora")
DEEP, GALORE, LORA = range(3)
LABELS = ("Deep LoRA, compressed", "GaLore", "LoRA")
COLOURS = (style.BLUE, style.ORANGE, style.RED)
TAIL = 1e-2  # share of a layer's largest singular value from which on another one counts


@dataclass(frozen=True)
class Spec(Recorded):
    """python -m lm_experiments rates, and meeting, make the records."""

    seeds: int = 3
    """Runs of each method."""


@dataclass(frozen=True, eq=False)
class Data:
    """By method: Deep LoRA, GaLore, LoRA. Means over layers."""

    spec: Spec
    steps: tuple[int, ...]
    """At which the held-out examples were evaluated."""
    pearson: Float64[np.ndarray, "three steps seeds"]
    spectra: Float64[np.ndarray, "three seeds kept"]
    """Singular values of each layer's update after the last step over its largest."""
    ranks: Float64[np.ndarray, "three seeds"]
    """Singular values above TAIL of the largest."""
    shares: Float64[np.ndarray, "three later seeds"]
    """|Delta P|^2 / |Delta|^2, from the second of `steps` on."""
    bases: Float64[np.ndarray, "two later seeds"]
    """Of Deep LoRA and GaLore: the fourth largest cosine between P and what the layer trains in; Deep LoRA has four
    directions of the gradient, and four of its own."""


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Read the committed records; ValueError, with the command that makes them, if some are missing."""
    found = recorded("meeting", spec.size, spec.seeds)
    runs = [[record for record in found if record.spec.method == method] for method in METHODS]
    steps = found[0].spec.evaluations
    after = [scores(found, "method", step=step) for step in steps]
    return Data(
        spec,
        steps,
        np.array([[at[(method,)] for at in after] for method in METHODS]),
        np.array([[_spectra(run).mean(axis=0) for run in rows] for rows in runs]),
        np.array([[(_spectra(run) > TAIL).sum(axis=1).mean() for run in rows] for rows in runs]),
        np.array([[[_mean(run, step, "update") for run in rows] for step in steps[1:]] for rows in runs]),
        np.array([[[_mean(run, step, "basis") for run in rows] for step in steps[1:]] for rows in runs[:LORA]]),
    )


def _spectra(run: Record[FineTune]) -> Float64[np.ndarray, "layers kept"]:
    values = np.array([*run.found["spectra"].values()])
    return values / values[:, :1]


def _mean(run: Record[FineTune], step: int, name: str) -> float:
    return float(np.mean(run.found["first"][str(step)][name]))


def check(data: Data) -> list[Claim]:
    """Where they begin, and who stays there; of the small size also where all end."""
    shares, bases = data.shares.mean(axis=2), data.bases.mean(axis=2)
    last, ranks = data.pearson[:, -1].mean(axis=1), data.ranks.mean(axis=1)
    claims = [
        Claim("GaLore's first subspace: fourth largest cosine to P", bases[GALORE, 0], at_least=0.999),
        Claim("GaLore's update until the second one: share in P", shares[GALORE, 0], at_least=0.999),
        Claim("Deep LoRA's outer factors at the end: fourth largest cosine to P", bases[DEEP, -1], at_least=0.99),
        Claim("GaLore's last subspace: the same", bases[GALORE, -1], at_most=0.6),
        Claim("share in P, LoRA's update less Deep LoRA's", shares[LORA, -1] - shares[DEEP, -1], at_most=-0.1),
        Claim("mean rank of what a layer learned, Deep LoRA", ranks[DEEP], at_most=2),
        Claim("the same, LoRA", ranks[LORA], at_least=6, at_most=8),
        Claim("the same, GaLore, of 16 values recorded", ranks[GALORE], at_least=12),
    ]
    if data.spec.size == "small":
        claims += [
            Claim("share in P, Deep LoRA's update at the end", shares[DEEP, -1], at_least=0.3, at_most=0.6),
            Claim("the same, GaLore's less Deep LoRA's", shares[GALORE, -1] - shares[DEEP, -1], at_least=0.05),
            Claim("GaLore's update at the end: share in P", shares[GALORE, -1], at_most=0.8),
            Claim("Pearson after the last step, least", last.min(), at_least=0.65),
        ]
    return claims


def draw(data: Data) -> Figure:
    """Means over seeds, and each of them."""
    figure, axes = style.panels(2, 2, height=2.3)
    places, later = np.arange(1, data.spectra.shape[2] + 1), data.steps[1:]
    for index, (name, colour) in enumerate(zip(LABELS, COLOURS, strict=True)):
        axes[0].plot(data.steps, data.pearson[index].mean(axis=1), "o-", color=colour, label=name)
        axes[0].plot(data.steps, data.pearson[index], lw=0.5, alpha=0.5, color=colour)
        axes[1].plot(places, data.spectra[index].mean(axis=0), "o-", color=colour)
        axes[2].plot(later, data.shares[index].mean(axis=1), "o-", color=colour)
        axes[2].plot(later, data.shares[index], lw=0.5, alpha=0.5, color=colour)
    for bases, colour in zip(data.bases, COLOURS, strict=False):
        axes[3].plot(later, bases.mean(axis=1), "o-", color=colour)
        axes[3].plot(later, bases, lw=0.5, alpha=0.5, color=colour)
    axes[0].set(xlabel="step", ylabel="Pearson correlation")
    axes[1].set(
        xlabel="index, up to the 16 recorded", ylabel="singular value / largest", yscale="log", ylim=(1e-4, 1.5)
    )
    axes[2].set(xlabel="step", ylabel=r"$|\Delta P|^2 / |\Delta|^2$", ylim=(0, 1.05))
    axes[3].set(xlabel="step", ylabel="fourth largest cosine to $P$", ylim=(0, 1.05))
    axes[0].legend()
    style.title(
        axes,
        f"STS-B, {data.spec.encoder}",
        "singular values of a layer's update",
        "the update in the first gradient's subspace $P$",
        "the subspace trained in, against $P$",
    )
    return figure
