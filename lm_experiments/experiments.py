"""The named experiments: which runs answer which question of Yaras, Wang, Balzano & Qu 2024 (arXiv 2406.04112).

Learning rates are chosen first, for each method alike, on the other half of the validation examples and with seeds that
no later run has ("rates"); all later runs take the best one. A run of size "small" takes two to five minutes of one CPU
core, of an H200 2 s; "full" are the paper's models and sizes, for a GPU, and were not run here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from lm_experiments import records
from lm_experiments.runs import FineTune
from lm_experiments.tasks.text import TASKS

Size = Literal["small", "full"]
Cells = tuple[FineTune, ...]
BERTS, T5S, SMOLLM2S = (
    "cd5ef92a9fb2f889e972770a36d4ed042daf221e",
    "a9723ea7f1b39c1eae772870f3b547bf6ef7e6c1",
    "93efa2f097d58c2a74874c7e644dbc9b0cee75a2",
)
"""Revisions on the Hub."""
MINILM = FineTune(model="minilm", examples=256, steps=200, length=64)
SMOLLM2 = FineTune(
    model="smollm2",
    task="sst2",
    examples=128,
    steps=60,
    every=20,
    held_out=300,
    length=64,
    precision="bf16",
)
BERT = FineTune(model=f"google-bert/bert-base-cased@{BERTS}", examples=1024, steps=1000, every=100, held_out=0)
T5 = replace(BERT, model=f"google-t5/t5-base@{T5S}")
BELOW = 1e-14
"""An epsilon below the first gradients of the compressed form's cores."""
TUNING = (100, 101, 102)
"""The seeds that choose learning rates."""
ALL = max(TUNING) + 1
"""What all seeds are below."""
GRIDS: dict[str, tuple[float, ...]] = {
    "lora": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    "compressed": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "narrow": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "wide": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
    "galore": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
}
"""Learning rates tried for each method. Outer factors at random learn with the rate of the compressed form."""


@dataclass(frozen=True)
class Experiment:
    """A question and the runs that answer it."""

    question: str
    """One line."""
    cells: Callable[[Size], tuple[Any, ...]]
    """All runs, in an order in which a part of them is already worth something; their lr is chosen later, if tuned."""
    tuned: bool = True
    """Whether `chosen` gives the cells' learning rates."""
    times: Callable[[Any], float] = lambda cell: 1.0
    """What a cell's chosen learning rate is multiplied by."""

    def rated(self, cell: Any, choose: Callable[..., Any], read: Callable[[Any], Any]) -> Any:
        """The cell with its learning rate."""
        found = choose(cell, read)
        return replace(found, lr=found.lr * self.times(cell))


def grid(base: FineTune, seeds: int, **choices: tuple[Any, ...]) -> Cells:
    """Every combination of the choices, for one seed after the other."""
    cells = [base]
    for name, values in choices.items():
        cells = [replace(cell, **{name: value}) for cell in cells for value in values]
    return tuple(replace(cell, seed=seed) for seed in range(seeds) for cell in cells)


def command(name: str, size: Size) -> str:
    """What makes an experiment's runs."""
    return f"python -m lm_experiments {name}" + (" --size full" if size == "full" else "")


def _encoder(size: Size) -> FineTune:
    return MINILM if size == "small" else BERT


def _causal(size: Size) -> FineTune:
    return SMOLLM2 if size == "small" else replace(SMOLLM2, model=f"HuggingFaceTB/SmolLM2-135M@{SMOLLM2S}")


def _rates(size: Size) -> Cells:
    return tuple(cell for base, methods in _tuned_on(size) for method in methods for cell in _tries(base, method))


def _tuned_on(size: Size) -> Iterator[tuple[FineTune, tuple[str, ...]]]:
    """Where learning rates are chosen: STS-B for scores, SST-2 for classes."""
    base = _encoder(size)
    both = ("lora", "compressed")
    yield replace(base, task="stsb"), (*both, "narrow", "wide", "galore")
    yield replace(base, task="sst2"), both
    yield _causal(size), both
    if size == "full":
        yield replace(T5, task="stsb"), both
        yield replace(T5, task="sst2"), both


def _tries(base: FineTune, method: str) -> Cells:
    cell = replace(base, method=method, part="tuning")  # type: ignore[arg-type]
    return tuple(replace(cell, lr=lr, seed=seed) for lr in GRIDS[method] for seed in TUNING)


def chosen(cell: FineTune, read: Callable[[FineTune], records.Record[FineTune] | None] = records.read) -> FineTune:
    """The cell with the learning rate best for its model, method, kind of task and eps, in the mean over `TUNING`.

    Raises ValueError if those runs are not there yet.
    """
    method = "compressed" if cell.method == "random" else cell.method
    task = "stsb" if cell.task == "stsb" else "sst2"
    bases = [(base, size) for size in get_args(Size) for base, _ in _tuned_on(size)]
    base, size = next((b, size) for b, size in bases if (b.model, b.task) == (cell.model, task))
    totals = dict.fromkeys(GRIDS[method], 0.0)
    for tried in _tries(replace(base, eps=cell.eps), method):
        record = read(tried)
        if record is None:
            first = "rates" if cell.eps == base.eps else {"stsb": "epsilon", "sst2": "epsilon-classes"}[task]
            raise ValueError(f"no record of lr = {tried.lr:g} for {method}, {task}: {command(first, size)} first")
        totals[tried.lr] += record.score(TASKS[task].metric)
    return replace(cell, lr=max(totals, key=totals.__getitem__))


def _shot(size: Size) -> FineTune:
    """A few-shot run on STS-B, 256 examples."""
    return MINILM if size == "small" else replace(BERT, examples=256, steps=500)


def _fewshot(size: Size) -> Cells:
    sizes, seeds = ((16, 64, 256, 1024), 10) if size == "small" else ((16, 64, 256), 20)
    return grid(_shot(size), seeds, examples=sizes, method=("lora", "compressed"))


def _glue(size: Size) -> Cells:
    tasks = ("sst2", "rte", "mrpc", "qnli", "mnli", "qqp") + (() if size == "small" else ("cola", "stsb"))
    bases = (replace(MINILM, held_out=400),) if size == "small" else (BERT, T5)
    return tuple(cell for base in bases for cell in grid(base, 10, task=tasks, method=("lora", "compressed")))


def _rank(size: Size) -> Cells:
    base = MINILM if size == "small" else replace(BERT, examples=16, steps=200)
    return grid(base, 5, rank=(8, 2, 64, 4, 32, 16), method=("lora", "compressed"))


def _rank_rates(size: Size) -> Cells:
    return tuple(cell for cell in _rank(size) if cell.method == "compressed" and cell.rank != 8)


def _forms(size: Size) -> Cells:
    base = replace(MINILM if size == "small" else replace(BERT, examples=16, steps=200, every=50), watch=True)
    return grid(base, 5, method=("compressed", "narrow", "wide", "lora"))


def _meeting(size: Size) -> Cells:
    """Without dropout, so that all see the same first gradient, bit for bit; evaluated when GaLore's subspaces are."""
    shot = MINILM if size == "small" else replace(BERT, examples=16, steps=200, every=50)
    base = replace(shot, watch=True, dropout=0.0)
    return grid(base, 3 if size == "small" else 5, method=("compressed", "galore", "lora"))


def _centre(size: Size) -> Cells:
    return grid(replace(_shot(size), centre=False), 5, method=("lora", "compressed"))


def _outer(size: Size) -> Cells:
    cells = grid(_shot(size), 5, method=("random",), gamma=(0.01, 0.0))
    return cells + grid(_shot(size), 5, method=("compressed",), gamma=(0.0, 0.1, 1.0))


def _epsilon(task: str) -> Callable[[Size], Cells]:
    return lambda size: _tries(replace(_encoder(size), task=task, eps=BELOW), "compressed")


def _below(cells: Callable[[Size], Cells]) -> Callable[[Size], Cells]:
    """Those of the compressed form on the encoder, with the small epsilon."""

    def found(size: Size) -> Cells:
        kind = (_encoder(size).model, "compressed")
        return tuple(replace(cell, eps=BELOW) for cell in cells(size) if (cell.model, cell.method) == kind)

    return found


def _smollm2(size: Size) -> Cells:
    return grid(_causal(size), 5 if size == "small" else 10, method=("lora", "compressed"))


EXPERIMENTS: dict[str, Experiment] = {
    "rates": Experiment("Which learning rate is best for each method?", _rates, tuned=False),
    "fewshot": Experiment("Does Deep LoRA beat LoRA on STS-B, the more the fewer examples there are?", _fewshot),
    "forms": Experiment("Does the compressed form learn as the wide one does, and the narrow one more slowly?", _forms),
    "meeting": Experiment("Do Deep LoRA and GaLore, of one first gradient, go one way?", _meeting),
    "outer": Experiment("Do outer factors from the gradient beat random ones, and what does gamma do?", _outer),
    "centre": Experiment("What if the first gradient is spent on the mean score?", _centre),
    "epsilon": Experiment(
        "What if Adam's epsilon lies below the first gradients of the compressed form?", _epsilon("stsb"), tuned=False
    ),
    "epsilon-classes": Experiment("Which learning rate is best then, for classes?", _epsilon("sst2"), tuned=False),
    "epsilon-rank": Experiment("Is it robust to its rank then?", _below(_rank)),
    "epsilon-fewshot": Experiment("Does it gain the more the fewer examples there are then?", _below(_fewshot)),
    "epsilon-glue": Experiment("Does it beat LoRA on the few-shot tasks of GLUE then?", _below(_glue)),
    "rank": Experiment("Is Deep LoRA robust to its rank where LoRA is not?", _rank),
    "rank-rates": Experiment(
        "Is it with a learning rate that falls as 1 / rank?", _rank_rates, times=lambda cell: 8 / cell.rank
    ),
    "smollm2": Experiment("Does what holds for an encoder hold for a causal language model?", _smollm2),
    "glue": Experiment("Does Deep LoRA beat LoRA on the few-shot tasks of GLUE?", _glue),
}
