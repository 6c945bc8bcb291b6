"""The compressed form learns as the wide one does, from a tenth of its parameters; a narrow one has to wait.

Yaras, Wang, Balzano & Qu 2024 (arXiv 2406.04112), STS-B: their training losses at steps 1, 26, 51, 76, 101, 151, 200 are
4.06 1.05 .07 .07 .04 .02 .04 (wide), 4.06 3.91 3.37 2.75 1.09 .58 .06 (narrow, rank 8), 4.06 .86 .10 .09 .03 .02 .03
(compressed, rank 8), one seed, 16 pairs. Ours: MiniLM-L6, 256 pairs, each form's learning rate chosen alike.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from lm_experiments.comparison import scores
from lm_experiments.experiments import Size, recorded

FORMS = {
    "wide": ("Deep LoRA, wide", style.BLACK, "-"),
    "compressed": ("compressed", style.BLUE, "--"),
    "narrow": ("narrow", style.GREEN, "-."),
    "lora": ("LoRA", style.ORANGE, ":"),
}
WINDOW = 10  # steps over which losses are averaged


@dataclass(frozen=True)
class Spec:
    """Whose records are drawn."""

    size: Size = "small"
    """small: MiniLM; full: BERT-base, for which `python -m lm_experiments forms --size full` needs a GPU."""
    seeds: int = 3
    """Seeds below this."""

    def quick(self) -> "Spec":
        """Two seeds."""
        return replace(self, seeds=2)

    def full(self) -> "Spec":
        """The paper's model."""
        return Spec("full", 5)


@dataclass(frozen=True, eq=False)
class Data:
    """Losses and scores of each form."""

    spec: Spec
    losses: dict[str, Float64[np.ndarray, "seeds windows"]]
    """Training loss, mean over each `WINDOW` steps."""
    steps: Float64[np.ndarray, " evaluations"]
    scores: dict[str, Float64[np.ndarray, "evaluations seeds"]]
    """Pearson correlation on held-out pairs."""
    parameters: dict[str, int]
    """That train, without the head."""


def data(spec: Spec) -> Data:
    """From the committed records."""
    records = recorded("forms", spec.size, spec.seeds)
    steps = records[0].spec.evaluations
    at = [scores(records, "method", step=step) for step in steps]
    runs = {form: [r.found for r in records if r.spec.method == form] for form in FORMS}
    return Data(
        spec,
        {f: np.array([run["losses"] for run in runs[f]]).reshape(len(runs[f]), -1, WINDOW).mean(axis=2) for f in FORMS},
        np.array(steps, float),
        {form: np.array([found[form,] for found in at]) for form in FORMS},
        {form: runs[form][0]["trainable"]["body"] for form in FORMS},
    )
