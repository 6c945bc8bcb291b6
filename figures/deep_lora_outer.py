"""Outer factors from the first gradient are what lets compressed Deep LoRA learn; gamma matters little up to 0.1.

After the ablation of Yaras et al. 2024 (arXiv 2406.04112, appendix: outer factors from the gradient or at random) and
their discrepant learning rates: the outer factors learn at gamma times the cores' rate, and are frozen at gamma = 0.
STS-B, 256 examples, MiniLM, rank 8, every form at the learning rate chosen for the compressed one. Random outer factors
that learn reach three fifths of the score in the same steps, frozen ones two; at gamma = 1 training is unstable.

(c) is ours: the head of a regression starts either at the mean score or at zero, in which case the first gradient says
little but that mean, and the compressed form, whose outer factors come from it, loses far more than LoRA does.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.recorded import Recorded
from lm_experiments.comparison import scores
from lm_experiments.registry import recorded
from sims.sweep import Sweep, in_process

GAMMAS = (0.0, 0.01, 0.1, 1.0)
FROZEN, PAPERS, SLOW, EQUAL = range(4)  # of them
RANDOM = (0.0, 0.01)
STARTS = (("lora", True), ("lora", False), ("compressed", True), ("compressed", False))


class Spec(Recorded):
    """python -m lm_experiments outer, centre and fewshot make the records."""


@dataclass(frozen=True, eq=False)
class Data:
    """Pearson correlation on the held-out half."""

    spec: Spec
    steps: tuple[int, ...]
    gradient: Float64[np.ndarray, "gammas steps seeds"]
    """Outer factors from the first gradient."""
    random: Float64[np.ndarray, "random steps seeds"]
    """Random orthonormal ones."""
    centred: Float64[np.ndarray, "four seeds"]
    """Of `STARTS`, after the last step."""


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Read the committed records; ValueError, with the command that makes them, if some are missing."""
    alone = [recorded(name, spec.size, spec.seeds) for name in ("outer", "centre")]
    among = alone[0][0].spec.examples
    shared = [record for record in recorded("fewshot", spec.size, spec.seeds) if record.spec.examples == among]
    steps = alone[0][0].spec.evaluations
    after = [scores([*alone[0], *shared], "method", "gamma", step=step) for step in steps]
    starts = scores([*alone[1], *shared], "method", "centre")
    return Data(
        spec,
        steps,
        np.array([[at["compressed", gamma] for at in after] for gamma in GAMMAS]),
        np.array([[at["random", gamma] for at in after] for gamma in RANDOM]),
        np.array([starts[start] for start in STARTS]),
    )


def check(data: Data) -> list[Claim]:
    """Means over seeds, after the last step but where a step is named."""
    if data.spec.size == "full":
        return _papers(data)
    gradient, random = data.gradient[:, -1].mean(axis=1), data.random[:, -1].mean(axis=1)
    half = len(data.steps) // 2
    early = data.gradient[PAPERS, half].mean() - data.random[PAPERS, half].mean()
    lora, lora_at_0, deep, deep_at_0 = data.centred.mean(axis=1)
    best = gradient[PAPERS]
    return [
        Claim("gradient less random, gamma 0.01: Pearson", best - random[PAPERS], at_least=0.2),
        Claim("gradient less random, gamma 0: Pearson", gradient[FROZEN] - random[FROZEN], at_least=0.3),
        Claim(f"gradient less random, gamma 0.01, after {data.steps[half]} steps", early, at_least=0.4),
        Claim("random, gamma 0.01 less 0: Pearson", random[PAPERS] - random[FROZEN], at_least=0.05),
        Claim("gradient, gamma 0.01 less 0: Pearson", best - gradient[FROZEN], at_least=-0.03, at_most=0.1),
        Claim("gradient, gamma 0.01 less 0.1: Pearson", best - gradient[SLOW], at_least=0, at_most=0.15),
        Claim("gradient, gamma 0.01 less 1: Pearson", best - gradient[EQUAL], at_least=0.15),
        Claim("compressed, head at the mean less at 0: Pearson", deep - deep_at_0, at_least=0.3),
        Claim("LoRA, the same", lora - lora_at_0, at_least=0, at_most=0.2),
    ]


def _papers(data: Data) -> list[Claim]:
    """What Yaras et al. say of BERT-base, at their gamma."""
    best = data.gradient[PAPERS, -1].mean()
    return [Claim("gradient less random, gamma 0.01: Pearson", best - data.random[PAPERS, -1].mean(), at_least=0)]


def draw(data: Data) -> Figure:
    """Means over seeds; in (a) and (c) each run, too."""
    figure, axes = style.panels(1, 3, height=2.3)
    for name, found, colour in (("gradient", data.gradient, style.BLUE), ("random", data.random, style.ORANGE)):
        _means(axes[0], found[:, -1], colour, name)
        axes[1].plot(data.steps, found[PAPERS].mean(axis=1), "o-", color=colour)
        axes[1].plot(data.steps, found[FROZEN].mean(axis=1), "o:", color=colour)
    _means(axes[2], data.centred[:2], style.RED, "LoRA")
    _means(axes[2], data.centred[2:], style.BLUE, "compressed")
    axes[0].set_xticks(range(len(GAMMAS)), [f"{gamma:g}" for gamma in GAMMAS])
    axes[2].set_xticks((0, 1), ("at the mean score", "at 0"))
    axes[0].set(xlabel=r"$\gamma$", ylabel="Pearson correlation")
    axes[1].set(xlabel="step", ylabel="Pearson correlation")
    axes[2].set(xlabel="where the head starts", ylabel="Pearson correlation", xlim=(-0.3, 1.3))
    axes[0].legend(title="outer factors")
    axes[2].legend()
    style.title(
        axes, f"{data.spec.encoder}, after the last step", r"$\gamma=0.01$, and $0$ (dotted)", "after the last step"
    )
    return figure


def _means(axis: Axes, found: Float64[np.ndarray, "kinds seeds"], colour: str, label: str) -> None:
    axis.plot(found.mean(axis=1), "o-", color=colour, label=label)
    axis.plot(found, "_", color=colour)
