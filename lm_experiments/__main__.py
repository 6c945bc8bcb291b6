"""Fine-tune language models: python -m lm_experiments NAME [--data FOLDER] [--field value ...]."""

import difflib
import fcntl
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lm_experiments import records
from lm_experiments.experiments import EXPERIMENTS, Size, chosen
from lm_experiments.finetune import Diverged, Report, Stopped, finetune
from lm_experiments.processes import Parallel, Processes, processes
from lm_experiments.run_folder import MANIFEST
from lm_experiments.runs import FineTune
from lm_experiments.tasks.text import TASKS

HELP = """usage: python -m lm_experiments NAME [--data FOLDER] [--size small|full] [--seeds N] [--runs FOLDER]
       python -m lm_experiments finetune [--data FOLDER] [--field value ...]

Runs a named experiment, or one fine-tuning run of your own. Each finished run leaves a record; what is recorded already
is not run again, and what was stopped goes on from its last checkpoint. Start the same command in a second terminal to
run two at a time; under torchrun all processes work on one run.

experiments:
"""


@dataclass(frozen=True)
class Options:
    """Where data, runs and records are."""

    data: Path | None = None
    """A folder with the tasks' files (see README, Real data); without one they come from the Hub or ./run assets."""
    size: Size = "small"
    """small: MiniLM and SmolLM2, on a CPU. full: the paper's models and sizes, for a GPU."""
    seeds: int = 1000
    """Only runs whose seed is below this; those that choose learning rates count from 0, too."""
    runs: Path = Path("runs")
    """Folder of checkpoints and metrics.jsonl, one folder a run."""
    results: Path = records.RESULTS
    """Folder of the records."""
    parallel: Parallel = "ddp"
    """How the processes of torchrun share a model: replicas (ddp), or its weights divided (fsdp)."""
    save_every: int = 50
    """Steps from one checkpoint to the next."""
    tensorboard: bool = False
    """Write losses for TensorBoard into the run's folder, too (pip install tensorboard)."""


@dataclass(frozen=True)
class Single:
    """One run of your own."""

    run: FineTune = field(default_factory=partial(FineTune, task="boolq"))
    """What is run."""
    options: Options = field(default_factory=partial(Options, results=Path("runs") / "records"))
    """Where data, runs and records are."""


def main(arguments: list[str]) -> int:
    """Run what the arguments name; the exit code."""
    logging.basicConfig(format="%(message)s")
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("--help", "-h"):
        print(HELP + "\n".join(f"  {name:10} {found.question}" for name, found in EXPERIMENTS.items()))
        return 0
    with processes() as here:
        if name == "finetune":
            single = tyro.cli(
                Single, args=rest, prog="python -m lm_experiments finetune", config=(tyro.conf.OmitArgPrefixes,)
            )
            return _all([single.run], single.options, here, Console(stderr=True))
        if name not in EXPERIMENTS:
            near = difflib.get_close_matches(name, EXPERIMENTS, n=1, cutoff=0)[0]
            sys.exit(f"no experiment is called {name!r}; did you mean {near!r}? There are: {', '.join(EXPERIMENTS)}")
        options = tyro.cli(Options, args=rest, prog=f"python -m lm_experiments {name}")
        experiment = EXPERIMENTS[name]
        cells = [c for c in experiment.cells(options.size) if c.seed % 100 < options.seeds]
        if experiment.tuned:
            cells = [chosen(cell, lambda found: records.read(found, options.results)) for cell in cells]
        return _all(cells, options, here, Console(stderr=True))


def _all(cells: list[FineTune], options: Options, here: Processes, console: Console) -> int:
    """Run what has no record yet; then a table of all."""
    failed = 0
    with Progress(*Progress.get_default_columns(), console=console, disable=not here.first) as progress:
        runs, steps = progress.add_task("runs", total=len(cells)), progress.add_task("steps")
        for number, cell in enumerate(cells, 1):
            with _held(options.runs / f"{cell.key}.lock", here) as free:
                if free and records.read(cell, options.results) is None:
                    progress.reset(steps, total=cell.steps, description=cell.key)
                    try:
                        line = _one(cell, options, here, lambda step, loss: progress.update(steps, completed=step))
                        console.print(f"✓ {number} of {len(cells)}: {line}", highlight=False, markup=False)
                    except Stopped as stopped:
                        console.print(str(stopped))
                        return stopped.code
                    except (Diverged, ValueError, OSError) as error:
                        console.print(f"✗ {error}", style="red", highlight=False, markup=False)
                        failed += 1
            progress.update(runs, completed=number)
    if here.first:
        _report(cells, options)
    return min(failed, 1)


def _one(cell: FineTune, options: Options, here: Processes, report: Report) -> str:
    """Run it and keep the record; a line about it."""
    folder = options.runs / cell.key
    if options.tensorboard and here.first:
        report = _written(folder, report)
    found = finetune(
        cell, folder, options.data, here=here, parallel=options.parallel, save_every=options.save_every, report=report
    )
    if here.first:
        begun = json.loads((folder / MANIFEST).read_text())
        where = {key: begun[key] for key in ("git", "versions", "hardware", "threads")} | {"processes": here.size}
        records.write(cell, found, where, options.results)
    last, metric = found["scores"][-1], TASKS[cell.task].metric
    return f"{cell.key}, lr {cell.lr:g}: {metric} {last[metric]:.4f} after {found['seconds']:.0f} s of training"


def _written(folder: Path, inner: Report) -> Report:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def report(step: int, loss: float) -> None:
        writer.add_scalar("loss", loss, step)
        inner(step, loss)

    return report


@contextmanager
def _held(lock: Path, here: Processes) -> Iterator[bool]:
    """Whether this run is ours: another process on this machine, of the same command, may be at it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            if here.first:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield not here.any(not free)


def _report(cells: list[FineTune], options: Options) -> None:
    """A line for each kind of run: the headline metric over seeds."""
    table = Table("run", "lr", "gamma", "seeds", "metric", "mean", "sd")
    groups: dict[FineTune, list[float]] = {}
    for cell in cells:
        if record := records.read(cell, options.results):
            groups.setdefault(replace(cell, seed=0), []).append(record.score(TASKS[cell.task].metric))
    for cell, scores in groups.items():
        name = cell.key.rpartition("-s")[0]
        spread = f"{stdev(scores):.4f}" if len(scores) > 1 else ""
        numbers = f"{cell.lr:g}", f"{cell.gamma:g}", str(len(scores)), TASKS[cell.task].metric, f"{mean(scores):.4f}"
        table.add_row(name, *numbers, spread)
    Console().print(table, highlight=False, markup=False)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # between two runs; within one, `Interruption` saves first
        sys.exit(130)
