"""A deep linear head on a classifier of real images, compressed to fewer weights than a plain one, at equal accuracy.

After Kwon et al. 2023 (arXiv 2311.05061): Fashion-MNIST after 1250 steps; original, + DLN (the last linear map becomes
L factors), + C-DLN (those of their spectral start). They report test accuracies .893, .902, .901 and 150, 260, 115 s;
no code is public and we know neither network nor batches, so ours are our own. Their C-DLN is faster than their
original, which three factors in place of one 10 x width matrix can hardly be: theirs probably replace a larger matrix.
Here the DLN gains nothing, and the C-DLN loses nothing; what it saves is the DLN's weights and extra time.
Cross-entropy averaged over the batch, so eta needs no conversion. Gradient descent with momentum, not Adam, under which
the subspaces would not stand still; eta falls linearly to zero and is tuned for each head alike on validation images.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from figures import style
from figures.claims import Claim
from lm_experiments.classifier import COMPRESSED, DLN, HEADS, ORIGINAL, Arrays, Classifier, train
from lm_experiments.tasks.fashion_mnist import fingerprint
from sims.sweep import Sweep, in_process

PAPER = dict(zip(HEADS, (0.893, 0.902, 0.901), strict=True))
"""Test accuracies that Kwon et al. 2023 report."""


@dataclass(frozen=True)
class Spec:
    """Which classifier, the rates tried, and how often it is trained."""

    classifier: Classifier = Classifier()
    """What is trained, but for head, rate and seed."""
    rates: tuple[float, ...] = (0.025, 0.05)
    """eta tried with each head on the first seed; the one with the best validation accuracy trains the others."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One split, start and order of images each, which all three heads share."""

    def __post_init__(self) -> None:
        if not self.rates or len(self.seeds) < 2:
            raise ValueError(f"rates = {self.rates}, seeds = {self.seeds}: take a rate and two seeds at least")

    def quick(self) -> "Spec":
        """A tenth of the steps and of the images, smaller batches, one rate."""
        small = replace(self.classifier, training=6000, validation=500, test=5000, surrogate=1000)
        return Spec(replace(small, batch=64, steps=120, every=60), rates=(0.05,), seeds=self.seeds[:2])

    def full(self) -> "Spec":
        """Batches four times larger, which come near the paper's accuracies; about 6 CPU minutes."""
        return Spec(replace(self.classifier, batch=512), rates=(0.025, 0.05, 0.1), seeds=(0, 1, 2, 3, 4))


@dataclass(frozen=True, eq=False)
class Data:
    """What `train` returned, by head, stacked over the seeds."""

    spec: Spec
    rates: dict[str, float]
    """Chosen for each head."""
    runs: dict[str, Arrays]

    def accuracy(self, head: str) -> Float64[np.ndarray, " seeds"]:
        """Test accuracy after the last step."""
        return self.runs[head]["accuracy"][:, -1]

    def gain(self, head: str, over: str) -> float:
        """Test accuracy of a head minus that of another, mean over the seeds, which they share."""
        return float(np.mean(self.accuracy(head) - self.accuracy(over)))

    def weights(self, head: str) -> int:
        """Of the head, without the layers below."""
        return int(self.runs[head]["parameters"][0])

    def within_rank(self) -> Float64[np.ndarray, " seeds"]:
        """Share of the squared movement of the DLN's middle factor along its leading 2 x rank singular directions."""
        squares = self.runs[DLN]["movement"].astype(float) ** 2
        return squares[:, : 2 * self.spec.classifier.rank].sum(1) / squares.sum(1)


def data(spec: Spec, sweep: Sweep = in_process) -> Data:
    """Tune each head on the first seed, then train it with the others."""
    first, *others = spec.seeds
    blank = replace(spec.classifier, contents=fingerprint(spec.classifier.images))
    grid = [replace(blank, head=head, rate=rate, seed=first) for head in HEADS for rate in spec.rates]
    best: dict[str, tuple[Classifier, Arrays]] = {}
    for cell, result in zip(grid, sweep(train, grid), strict=True):
        if cell.head not in best or result["validation"] > best[cell.head][1]["validation"]:
            best[cell.head] = cell, result
    again = [replace(cell, seed=seed) for cell, _ in best.values() for seed in others]
    results = dict(zip(again, sweep(train, again), strict=True))
    runs = {
        head: [result, *(results[replace(cell, seed=seed)] for seed in others)] for head, (cell, result) in best.items()
    }
    return Data(
        spec,
        {head: cell.rate for head, (cell, _) in best.items()},
        {head: {name: np.stack([run[name] for run in list_]) for name in list_[0]} for head, list_ in runs.items()},
    )


def check(data: Data) -> list[Claim]:
    """Equal accuracy from fewer weights, to five standard errors.

    Two heads that disagree on a tenth of n test images differ by luck with variance 0.1 / n, and by about as much again
    from seed to seed. The movement is not confined exactly, as it is in theory, because the features move, too.
    """
    luck = 5 * (0.2 / (data.spec.classifier.test * len(data.spec.seeds))) ** 0.5
    difference = "test accuracy, {} minus {}, mean over paired seeds".format
    drift = max(float(run["drift"].max()) for run in data.runs.values())
    return [
        *(
            Claim(f"{head}: test accuracy, mean over seeds", float(data.accuracy(head).mean()), at_least=0.75)
            for head in HEADS
        ),
        Claim(difference(COMPRESSED, DLN), data.gain(COMPRESSED, DLN), at_least=-luck, at_most=luck),
        Claim(difference(DLN, ORIGINAL), data.gain(DLN, ORIGINAL), at_least=-luck, at_most=luck),
        Claim("weights of the head, DLN / C-DLN", data.weights(DLN) / data.weights(COMPRESSED), at_least=50),
        Claim("weights of the head, C-DLN / original", data.weights(COMPRESSED) / data.weights(ORIGINAL), at_most=1),
        Claim("movement of the sum over the classes, 1^T (W_L(t) - W_L(0)) / |W_L(0)|, all heads", drift, at_most=5e-5),
        Claim(
            "share of the squared movement of the DLN's middle factor along 2 x rank directions",
            float(data.within_rank().min()),
            at_least=0.95,
        ),
    ]


def draw(data: Data) -> Figure:
    """Test accuracy against steps and CPU time, every seed; how the DLN's middle factor moved."""
    figure, axes = style.panels(1, 3, height=2.6)
    for head, colour, line in zip(HEADS, (style.BLACK, style.BLUE, style.ORANGE), ("-", "-", "--"), strict=True):
        run, final = data.runs[head], data.accuracy(head)
        label = f"{head}: {final.mean():.3f} ± {final.std(ddof=1):.3f} (paper {PAPER[head]:.3f})"
        for row, (seconds, steps, accuracy) in enumerate(
            zip(run["seconds"], run["steps"], run["accuracy"], strict=True)
        ):
            shown = label if row == 0 else None
            axes[0].plot(steps[1:], accuracy[1:], "o", ls=line, color=colour, lw=1, label=shown)
            axes[1].plot(seconds[1:], accuracy[1:], "o", ls=line, color=colour, lw=1)
    for row in data.runs[DLN]["movement"]:
        axes[2].semilogy(np.arange(1, len(row) + 1), row, color=style.BLUE, lw=1)
    rank = 2 * data.spec.classifier.rank
    axes[2].axvline(rank + 0.5, color=style.BLACK, ls=":", lw=1, label=f"2 x rank = {rank}")
    axes[2].legend()
    axes[0].set(xlabel="step $t$", ylabel="test accuracy")
    axes[1].set(xlabel="CPU time [s]")
    axes[2].set(xlabel="index", ylabel="singular value")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
        title="test accuracy at the end, mean ± standard deviation over seeds",
    )  # fmt: skip
    style.title(axes, "test accuracy", "against CPU time", "DLN: movement of $W_2$")
    return figure
