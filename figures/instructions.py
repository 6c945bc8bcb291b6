"""From a pretrained model on, GaLore ends within 1 % of AdamW and Fira 1 to 2 % above, with a quarter of its state.

All weights of SmolLM2-135M-Instruct, which were 4-bit, learn from 768 instructions and their answers, of which the loss
is, at rank 32 of 576 (of 192 in keys and values). Three quarters of what is left of the state (27 % of AdamW's) are
moments of embeddings, which are not projected. Subspaces are warm-started and moments turned. Scales are 4 (GaLore) and
1 (Fira), no others were tried; Fira's rate, at which embeddings learn, too, is three times that of the others.

Arms have their best of six learning rates, factors of 1.5 to 3.3 apart, on one seed and a quarter of the steps, where
they end in the opposite order, Fira first. Between those tried a better rate may lie: a parabola says by 0.6 % in
perplexity for AdamW, by 0.1 % at most for the others. Perplexity is that of the 745 tokens of the same 63 held-out
answers, so nothing is said of other answers.

After Zhao et al. 2024 (GaLore, arXiv 2403.03507), who fine-tune models of 2 to 7 billion parameters on OpenAssistant's
conversations, at rank 128. Of Fira (Chen et al. 2024, arXiv 2410.01623) we know no such result: the script its authors
released fine-tunes adapters.
"""

from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from figures.pretraining import Data, Spec, compared
from lm_experiments.pretrainings import INSTRUCTED
from sims.sweep import Sweep, in_process

ADAMW, GALORE, FIRA = INSTRUCTED.arms
COLOURS = {ADAMW: style.BLACK, GALORE: style.GREEN, FIRA: style.RED}


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Read the committed records; ValueError, with the command that makes them, if some are missing."""
    return compared(INSTRUCTED, "instruct", spec)


def check(data: Data) -> list[Claim]:
    """Perplexities after the last step, over those of AdamW from the same seed."""
    galore, fira = (data.over(arm, ADAMW) for arm in (GALORE, FIRA))
    if data.spec.size == "full":
        return [
            Claim("GaLore over AdamW (the paper: 0.990 to 1.005)", galore.mean(), at_most=1.02),
            Claim("AdamW's state over GaLore's (by count: 3.68)", data.smaller(GALORE), at_least=3.5),
        ]
    learned = data.perplexity[:, 0] / data.perplexity[:, -1]
    return [
        Claim("arms whose best learning rate is the least or the largest tried", len(data.at_edge), at_most=0),
        Claim("perplexity before over after training, least of all arms", learned.min(), at_least=1.5),
        Claim("GaLore over AdamW, least", galore.min(), at_least=0.99),
        Claim("the same, most", galore.max(), at_most=1.01),
        Claim("Fira over AdamW, least", fira.min(), at_least=1.005),
        Claim("the same, most", fira.max(), at_most=1.03),
        Claim("AdamW's state over GaLore's", data.smaller(GALORE), at_least=3.5),
        Claim("AdamW's state over Fira's", data.smaller(FIRA), at_least=3.5),
    ]


def draw(data: Data) -> Figure:
    """Means over seeds, and each of them."""
    figure, axes = style.panels(1, 2, height=2.3)
    adamw = data.perplexity[data.arms.index(ADAMW)]
    for arm, found, state in zip(data.arms, data.perplexity, data.state, strict=True):
        for axis, values, first in ((axes[0], found, 0), (axes[1], found / adamw, 1)):
            axis.plot(data.steps[first:], values[first:], "o", color=COLOURS[arm])
            axis.plot(data.steps[first:], values[first:].mean(axis=1), color=COLOURS[arm], label=arm)
        axes[0].plot([], [], " ", label=f"state {state / 2**20:.0f} MiB")
    axes[0].set(xlabel="step", ylabel="perplexity, held out")
    axes[1].set(xlabel="step", ylabel="of one seed, over AdamW's")
    axes[0].legend()
    style.title(axes, "SmolLM2-135M, answers to instructions", "beside AdamW")
    return figure
