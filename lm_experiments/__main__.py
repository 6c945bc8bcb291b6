"""Train language models: python -m lm_experiments NAME [--data FOLDER] [--field value ...]."""

import difflib
import fcntl
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import Console
from rich.progress import Progress

from lm_experiments import records
from lm_experiments.options import Finetuning, Named, Options, Pretraining
from lm_experiments.registry import NAMED, rated
from lm_experiments.runs import FineTune, Spec
from lm_experiments.summary import label, summary

if TYPE_CHECKING:  # torch and PEFT take seconds to import, which --help need not wait for
    from lm_experiments.processes import Processes

CALL = "python -m lm_experiments"
OWN: dict[str, tuple[type[Finetuning | Pretraining], str]] = {
    "finetune": (Finetuning, "One run of your own; by default offline (BoolQ, MiniLM)."),
    "pretrain": (Pretraining, "One of your own, from scratch or not; by default offline, on Python's sources."),
}
MEMORY = "What a size and an optimizer need, exactly; --papers: the published figures."
HELP = f"""usage: {CALL} NAME [--data FOLDER] [--field value ...]

Runs a named experiment, or one run of your own. Each finished run leaves a
record; what is recorded already is not run again, and what was stopped goes on
from its last checkpoint. Start the same command in a second terminal to run two
at a time; under torchrun all processes work on one run.

{CALL} NAME --help has all fields.

names:
"""


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments name; the exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the Hub's library is imported, later
    name, rest = (arguments[0], list(arguments[1:])) if arguments else ("--help", [])
    if name in ("--help", "-h"):
        said = {name: line for name, (_, line) in OWN.items()} | {"memory": MEMORY}
        said |= {name: experiment.question for name, experiment in NAMED.items()}
        print(HELP + "\n".join(fill(f"  {n:15} {line}", 80, subsequent_indent=18 * " ") for n, line in said.items()))
        return 0
    names = [*OWN, "memory", *NAMED]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0)[0]
        sys.exit(f"no experiment is called {name!r}; did you mean {near!r}? There are: {', '.join(names)}")
    logging.basicConfig(format="%(message)s")
    if name in OWN:
        single = tyro.cli(OWN[name][0], args=rest, prog=f"{CALL} {name}", config=(tyro.conf.OmitArgPrefixes,))
        return _all([single.run], single.other)
    if name == "memory":
        from lm_experiments.memory import Memory
        from lm_experiments.memory_report import shown

        Console().print(shown(tyro.cli(Memory, args=rest, prog=f"{CALL} memory")))
        return 0
    named = tyro.cli(Named, args=rest, prog=f"{CALL} {name}", description=NAMED[name].question)
    try:
        cells = _cells(name, named)
    except ValueError as error:
        sys.exit(str(error))
    return _all(cells, named)


def _cells(name: str, named: Named) -> list[Spec]:
    """The runs of a named experiment, with the learning rates that were chosen for them; ValueError without those."""
    cells = [cell for cell in NAMED[name].cells(named.size) if cell.seed % 100 < named.seeds]
    return rated(name, cells, lambda found: records.read(found, named.results))


def _all(cells: Sequence[Spec], options: Options) -> int:
    """Run what has no record yet; then a table of all. The exit code: 1 if a run failed, 128 + n after signal n."""
    from lm_experiments.loop import Diverged, Stopped
    from lm_experiments.processes import processes

    if options.tensorboard:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError:
            sys.exit("--tensorboard needs a package that is not here: pip install tensorboard")
    failed: dict[Spec, Exception] = {}
    with processes() as here:
        console = Console(stderr=True, quiet=not here.first, highlight=False, markup=False, soft_wrap=True)
        with Progress(*Progress.get_default_columns(), console=console, disable=not here.first) as progress:
            runs, steps = progress.add_task("runs", total=len(cells)), progress.add_task("steps")
            for number, cell in enumerate(cells, 1):

                def shown(step: int, loss: float, cell: Spec = cell) -> None:
                    progress.update(steps, completed=step, total=cell.steps, description=label(cell))

                try:
                    if line := _unless_recorded(cell, options, here, shown):
                        console.print(f"✓ {number} of {len(cells)}: {line}")
                except Stopped as stopped:
                    console.print(str(stopped))
                    return stopped.code
                except (Diverged, ValueError, OSError) as error:
                    Console(stderr=True, soft_wrap=True).print(f"✗ {error}", style="red", highlight=False, markup=False)
                    if here.size > 1:
                        sys.exit(1)  # the others may not have met it, and wait: torchrun ends them
                    failed[cell] = error
                progress.update(runs, completed=number)
        if here.first:
            told = (cell for cell in cells if isinstance(failed.get(cell), Diverged | None))
            there = (records.read(cell, options.results) for cell in told)
            Console().print(summary([record for record in there if record]))
    return 1 if failed else 0


def _unless_recorded(
    cell: Spec, options: Options, here: "Processes", report: Callable[[int, float], None]
) -> str | None:
    """Run it and keep the record; a line about it. None if there is one, or another process is at it."""

    def recorded() -> bool:  # as the first process sees it, so that all do the same
        return here.any(here.first and records.read(cell, options.results) is not None)

    if recorded():
        return None
    with _held(options.runs / f"{cell.key}.lock", here) as free:
        if not free or recorded():
            return None
        with _board(cell, options, here, report) as watched:
            return _one(cell, options, here, watched)


def _one(cell: Spec, options: Options, here: "Processes", report: Callable[[int, float], None]) -> str:
    from lm_experiments.loop import Diverged
    from lm_experiments.run_folder import MANIFEST

    folder = options.runs / cell.key
    how = {"here": here, "parallel": options.parallel, "save_every": options.save_every}

    def keep(found: dict[str, Any]) -> None:
        if here.first:
            begun = json.loads((folder / MANIFEST).read_text())
            where = {key: begun[key] for key in ("git", "versions", "hardware", "threads")} | {"processes": here.size}
            records.write(cell, found, where, options.results)

    try:
        found = _training(cell)(cell, folder, options.data, report=report, **how)
    except Diverged as diverged:
        keep({"diverged": str(diverged)})
        raise
    keep(found)
    last, metric = found["scores"][-1], cell.metric
    return f"{label(cell)}, {metric} {last[metric]:.4f}, lr {cell.lr:g}, {found['seconds']:.0f} s"


def _training(cell: Spec) -> Callable[..., dict[str, Any]]:
    """What trains a run of this kind."""
    if isinstance(cell, FineTune):
        from lm_experiments.finetune import finetune

        return finetune
    from lm_experiments.pretrain import pretrain

    return pretrain


@contextmanager
def _board(
    cell: Spec, options: Options, here: "Processes", report: Callable[[int, float], None]
) -> Iterator[Callable[[int, float], None]]:
    """The report, with TensorBoard's beside it if wanted. Not in the run's own folder, where all is ours."""
    if not (options.tensorboard and here.first):
        yield report
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(options.runs / "tensorboard" / cell.key)) as writer:

        def both(step: int, loss: float) -> None:
            writer.add_scalar("loss", loss, step)
            report(step, loss)

        yield both


@contextmanager
def _held(lock: Path, here: "Processes") -> Iterator[bool]:
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


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # between two runs; within one, `Interruption` saves first
        sys.exit(130)
