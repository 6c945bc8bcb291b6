"""The named pre-training runs: which of them answer which question about low-rank gradients.

From scratch ("pretrain-rates" and the others), and from SmolLM2 on to instructions and their answers ("instruct-rates",
"instruct"). Every arm's learning rate is chosen first, from a few tries on one seed that no later run has and at a
quarter of the steps, but on the same held-out text. "small" reads bytes of a text at --data, ten minutes of a CPU core
that multiplies bfloat16 itself and twenty of another, or a thousand instructions there, five minutes of such a core a
run; "full" is the papers' 60M LLaMA on C4, and the Hub's SmolLM2 on Alpaca, for GPUs, and was not run.

Zhao et al. 2024 (GaLore, arXiv 2403.03507), Chen et al. 2024 (Fira, arXiv 2410.01623), Zhu et al. 2024 (APOLLO, arXiv
2412.05270).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from lm_experiments import records
from lm_experiments.experiments import Experiment, Size, command
from lm_experiments.runs import Pretrain

Cells = tuple[Pretrain, ...]
Read = Callable[[Pretrain], records.Record[Pretrain] | None]
SMALL = Pretrain(model="3m", text="files", steps=600, batch=16, gap=50, every=50, precision="mixed")
FULL = Pretrain(
    model="60m",
    text="allenai/c4:en",
    tokenizer="google-t5/t5-base",
    steps=10_000,
    batch=512,
    rank=128,
    precision="bf16",
    every=500,
)
ANSWERS = Pretrain(
    model="smollm2",
    text="instructions",
    steps=96,
    batch=8,
    length=128,
    rank=32,
    gap=20,
    every=24,
    held_out=0,
    precision="mixed",
)
FULL_ANSWERS = replace(
    ANSWERS,
    model="HuggingFaceTB/SmolLM2-135M-Instruct",
    text="instructions:tatsu-lab/alpaca",
    steps=2400,
    batch=64,
    length=512,
    gap=200,
    every=400,
)
SEEDS = 3
TUNING = 100
"""The seed that chooses learning rates."""
SHORTER = 4
"""By how much its runs are."""
TURNED = {"optimizer": "galore", "refresh": "warm", "moments": "rotate"}
ARMS: dict[str, dict[str, Any]] = {
    "AdamW": {"optimizer": "adamw"},
    "AdamW, two rates": {"optimizer": "adamw", "share": 0.125},
    "LoRA": {"optimizer": "lora", "scale": 32.0},
    "low rank": {"optimizer": "low-rank"},
    "GaLore": {"optimizer": "galore"},
    "GaLore, warm": {"optimizer": "galore", "refresh": "warm"},
    "GaLore, warm, turned": TURNED,
    "GaLore, 8 bits": {"optimizer": "galore", "state": "8bit"},
    "Fira": {"optimizer": "fira"},
    "APOLLO": {"optimizer": "apollo", "scale": 1.0},
}
"""What is compared, at one rank: fields of a run. At one rate a projected update is shorter than Adam's, by scale and
(rank / side)^1/2 an eighth of it, while embeddings and head move alike. With two rates AdamW has that, too: what is
left between it and GaLore is the projection."""
LOW, HIGH = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3), (5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
RATES = {arm: LOW if arm in ("AdamW", "LoRA", "low rank") else HIGH for arm in ARMS}
RATES |= dict.fromkeys(("Fira", "APOLLO"), (1e-3, 2e-3, 5e-3, 1e-2, 2e-2))
"""Learning rates tried for each arm, the best of which should lie inside (`at_edge`). Updates of Fira and APOLLO are
longer than GaLore's: one adds the residual, of the other the scale is 1."""


ANSWERING: dict[str, dict[str, Any]] = {
    "AdamW": {"optimizer": "adamw"},
    "GaLore, warm, turned": {**TURNED, "scale": 4.0},
    "Fira, warm, turned": {**TURNED, "optimizer": "fira", "scale": 1.0},
}
"""The same of a pretrained model. Embeddings learn at the targets' lr, so scale makes up for what a projection to rank
32 of 576 takes from an update; 4 is GaLore's for fine-tuning, too. Fira, whose residual does a part of that, has 1; no
other scale was tried, and its best rate, embeddings' too, is three times that of the others."""


def _on_seeds(cells: Iterable[Pretrain]) -> Cells:
    """Each on three seeds, all on the first of them first."""
    once = tuple(cells)
    return tuple(replace(cell, seed=seed) for seed in range(SEEDS) for cell in once)


@dataclass(frozen=True)
class Comparison:
    """Arms that start alike, and how their learning rates are chosen."""

    runs: dict[Size, Pretrain]
    """What all have in common."""
    arms: dict[str, dict[str, Any]]
    rates: Mapping[str, tuple[float, ...]]
    name: str
    """Of the experiment that chooses."""
    watched: tuple[str, ...] = ()
    """Arms whose gradients are watched; that changes nothing else."""

    def arm(self, size: Size, cell: Pretrain) -> str:
        """Which one a run is of, at whatever seed, rank, gap and learning rate, falling or not."""
        like, free = self.runs[size], ("seed", "rank", "gap", "lr", "floor", "watch", "every")
        plain = replace(cell, **{name: getattr(like, name) for name in free})
        return next(arm for arm, its in self.arms.items() if replace(like, **its) == plain)

    def tries(self, size: Size, arm: str) -> Cells:
        """The runs that choose an arm's rate."""
        begin = replace(self.runs[size], **self.arms[arm], seed=TUNING)
        shorter = replace(begin, steps=begin.steps // SHORTER, every=begin.steps // SHORTER)
        return tuple(replace(shorter, lr=lr) for lr in self.rates[arm])

    def all_tries(self, size: Size) -> Cells:
        """Those of all arms."""
        return tuple(cell for arm in self.arms for cell in self.tries(size, arm))

    def best(self, size: Size, arm: str, read: Read = records.read) -> float:
        """The rate of the least perplexity tried. Raises ValueError if those runs are not there yet."""
        tries = {tried.lr: read(tried) for tried in self.tries(size, arm)}
        if missing := [lr for lr, record in tries.items() if record is None]:
            raise ValueError(f"no record of lr = {missing[0]:g} for {arm}: {command(self.name, size)} first")
        return min(tries, key=lambda lr: tries[lr].score(Pretrain.metric))  # type: ignore[union-attr]

    def at_edge(self, size: Size, read: Read = records.read) -> tuple[str, ...]:
        """Arms whose best rate is the least or the largest tried, so that a better one may lie beyond."""
        edges = {arm: (min(rates), max(rates)) for arm, rates in self.rates.items()}
        return tuple(arm for arm, its in edges.items() if self.best(size, arm, read) in its)

    def seeds(self, size: Size) -> Cells:
        """Every arm, on three seeds."""
        return _on_seeds(replace(self.runs[size], **its, watch=arm in self.watched) for arm, its in self.arms.items())


SCRATCH = Comparison({"small": SMALL, "full": FULL}, ARMS, RATES, "pretrain-rates", ("AdamW", "GaLore", "Fira"))
INSTRUCTED = Comparison(
    {"small": ANSWERS, "full": FULL_ANSWERS},
    ANSWERING,
    dict.fromkeys(ANSWERING, (3e-5, 5e-5, 1e-4, 2e-4, 3e-4, 1e-3)),
    "instruct-rates",
)


def shared(size: Size) -> Pretrain:
    """What all runs of a size that start from scratch have in common."""
    return SCRATCH.runs[size]


def _ranks(size: Size) -> Cells:
    whole = shared(size).rank
    ranks = (whole // 8, whole // 4, whole // 2, 2 * whole)
    return _on_seeds(
        replace(shared(size), **ARMS[arm], rank=r) for r in ranks for arm in ("GaLore, warm, turned", "Fira")
    )


def _gaps(size: Size) -> Cells:
    arms, gaps = ("GaLore", "GaLore, warm, turned"), (5, 2, 0.5, 0.2)
    return _on_seeds(replace(shared(size), **ARMS[arm], gap=round(shared(size).gap / k)) for k in gaps for arm in arms)


def _constant(size: Size) -> Cells:
    return _on_seeds([replace(shared(size), **ARMS["AdamW"], floor=1.0, watch=True)])


PRETRAININGS: dict[str, Experiment] = {
    "pretrain-rates": Experiment("Which learning rate is best for each optimizer?", SCRATCH.all_tries, tuned=False),
    "optimizers": Experiment(
        "GaLore, Fira, APOLLO, LoRA, low rank, AdamW: which reaches what perplexity?", SCRATCH.seeds
    ),
    "constant": Experiment("Do subspaces of gradients stand still while the learning rate does not fall?", _constant),
    "ranks": Experiment("What does the rank of the subspace cost?", _ranks),
    "gaps": Experiment("How often must the subspace be found anew?", _gaps),
    "instruct-rates": Experiment(
        "Which is best for each on instructions, from SmolLM2 on?", INSTRUCTED.all_tries, tuned=False
    ),
    "instruct": Experiment("Do GaLore and Fira learn to answer as full AdamW does?", INSTRUCTED.seeds),
}


def chosen(cell: Pretrain, read: Read = records.read) -> Pretrain:
    """The cell with the learning rate of the least perplexity tried for its arm, at that arm's own rank and gap.

    Raises ValueError if those runs are not there yet.
    """
    among, size = next(
        (comparison, size)
        for comparison in (SCRATCH, INSTRUCTED)
        for size in get_args(Size)
        if (comparison.runs[size].model, comparison.runs[size].text) == (cell.model, cell.text)
    )
    return replace(cell, lr=among.best(size, among.arm(size, cell), read))
