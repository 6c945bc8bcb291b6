"""What the command line takes: which runs, where data, runs and records are, and how to run."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from lm_experiments import records
from lm_experiments.experiments import Size
from lm_experiments.runs import FineTune, Pretrain


@dataclass(frozen=True)
class Options:
    """Where data, runs and records are, and how to run."""

    data: Path | None = None
    """Fine-tuning: a folder with the tasks' files (see README, Real data); without one they come from the Hub or ./run
    assets. Pre-training on "files": a text file, or a folder of them; on "instructions": a JSON file, or a folder."""
    runs: Path = Path("runs")
    """Folder of checkpoints and metrics.jsonl, one folder a run."""
    results: Path = records.RESULTS
    """Folder of the records."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How the processes of torchrun share a model: replicas (ddp), or its weights divided (fsdp)."""
    save_every: int = 50
    """Steps from one checkpoint to the next."""
    tensorboard: bool = False
    """Write losses for TensorBoard into the folder "tensorboard" of `runs`, too (pip install tensorboard)."""

    def __post_init__(self) -> None:
        if self.save_every < 1:
            raise ValueError(f"save_every = {self.save_every}: take 1 or more steps")


@dataclass(frozen=True)
class Named(Options):
    """Which runs of the experiment, where data, runs and records are, and how to run."""

    size: Size = "small"
    """small: MiniLM and SmolLM2, on a CPU. full: the paper's models and sizes, for a GPU."""
    seeds: int = 1000
    """Only runs whose seed is below this; those that choose learning rates count from 0, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1:
            raise ValueError(f"seeds = {self.seeds}: take 1 or more")


OWN = partial(Options, results=Path("runs") / "records")


@dataclass(frozen=True)
class Finetuning:
    """One fine-tuning run of your own."""

    run: FineTune = field(default_factory=partial(FineTune, task="boolq", lr=1e-2, eps=1e-14))
    """What is computed. Defaults are those of the compressed form: with the paper's epsilon and a rate of 1e-3 nothing
    but the head would learn; other methods need an lr of their own."""
    other: Options = field(default_factory=OWN)
    """Where data, runs and records are, and how to run."""


@dataclass(frozen=True)
class Pretraining:
    """One pre-training run of your own."""

    run: Pretrain = field(default_factory=Pretrain)
    """What is computed."""
    other: Options = field(default_factory=OWN)
    """Where data, runs and records are, and how to run."""
