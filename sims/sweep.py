"""One map for every grid of cells: in this process, in a pool, on Dask or on SLURM; finished cells are kept on disk.

    with workers("2", folder) as sweep:
        results = sweep(cell, grid)  # in the order of the grid

A cell is a pure function at the top of a module: from a frozen dataclass, with the seed in it, to arrays. Each cell has
one BLAS thread, so that its numbers are the same wherever it runs.
"""

import io
import os
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable
from zipfile import BadZipFile

import numpy as np
from rich.console import Console
from rich.progress import Progress
from threadpoolctl import threadpool_limits

from sims.engines import Engine, engine
from sims.fingerprint import check_cell, described, sources

C = TypeVar("C")
Result = dict[str, np.ndarray]
PLAIN = (FloatingPointError, ArithmeticError, ValueError, OSError)  # what a cell's error is, to its caller
SHOWN = 120  # characters of a cell in an error message


@runtime_checkable
class Sweep(Protocol):
    """A map: the results of a cell function on a grid, in the grid's order."""

    def __call__(self, cell: Callable[[C], Result], grid: Sequence[C], /) -> list[Result]:
        """The result of cell(config) for each config of the grid."""


def in_process(cell: Callable[[C], Result], grid: Sequence[C]) -> list[Result]:
    """The plain loop."""
    return [cell(config) for config in grid]


@contextmanager
def workers(where: str, folder: Path | None = None, *, fresh: bool = False) -> Iterator[Sweep]:
    """A map that runs cells on workers, which start with the first cell and end with the block.

    where: "1" for this process; "2", "3", ... for so many processes; "dask" for a Dask cluster on this machine,
    "tcp://host:port" for the Dask scheduler there; "slurm" for SLURM jobs, "jobs" for the same jobs without SLURM.
    folder: where finished cells are kept as SHA256.npz, and found again; None keeps nothing. The hash is over the cell,
    the sources that it runs, and the versions of NumPy and torch. fresh: compute, and overwrite, what is there.

    After an error no new cell begins; those that are done, and on a pool those that run, are kept. The error names its
    cell; ValueError, OSError and ArithmeticError keep their type. After Ctrl-C whatever runs is ended.
    Raises ValueError for another `where`, and ModuleNotFoundError where the extra `cluster` is needed and missing.
    """
    running = engine(where, folder)
    try:
        with _environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1"):
            yield partial(_sweep, running, folder, fresh)
    except BaseException:
        running.close(now=True)
        raise
    running.close(now=False)


def _sweep(
    engine: Engine, folder: Path | None, fresh: bool, cell: Callable[[C], Result], grid: Sequence[C]
) -> list[Result]:
    check_cell(cell)
    texts = [f"{cell.__module__}.{cell.__qualname__}: {described(config)}" for config in grid]
    paths = {text: folder / f"{_hash(text, cell.__module__)}.npz" for text in texts if folder}
    found = {text: result for text, path in paths.items() if not fresh and (result := _read(path, text)) is not None}
    todo = {text: config for text, config in zip(texts, grid, strict=True) if text not in found}
    failed: dict[str, Exception] = {}
    label = cell.__name__.strip("_").replace("_", " ")
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=len(set(texts)), completed=len(found))
        for text, outcome in _outcomes(engine, cell, todo):
            if isinstance(outcome, Exception):
                failed[text] = outcome
                continue
            found[text], is_ours = outcome
            if folder and is_ours:
                _write(paths[text], text, found[text])
            bar.advance(task)
    for text, error in failed.items():
        if isinstance(error, ChildProcessError):
            engine.close(now=True)  # the next sweep starts new workers
        shown = repr(todo[text])
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
        raise type(error)(f"{label} of {shown}: {error}") from error
    return [found[text] for text in texts]


def _outcomes(
    engine: Engine, cell: Callable[[C], Result], todo: dict[str, C]
) -> Iterator[tuple[str, tuple[Result, bool] | Exception]]:
    """Cells as they finish."""
    waiting, running = deque(todo.items()), dict[str, Any]()
    while waiting or running:
        batch = [waiting.popleft() for _ in range(min(len(waiting), engine.width - len(running)))]
        if batch:
            jobs = [(cell, config, sources(cell.__module__)) for _, config in batch]
            running.update(zip(dict(batch), engine.submit(_attempt, jobs), strict=True))
        done = [text for text, future in running.items() if future.done()]
        for text in done:
            outcome = _outcome(running.pop(text))
            yield text, outcome
            if isinstance(outcome, Exception):  # nothing new begins
                waiting.clear()
                running = {text: f for text, f in running.items() if f.done() or not engine.cancel(f)}
        if not done:
            time.sleep(engine.pause)


def _outcome(future: Any) -> tuple[Result, bool] | Exception:
    try:
        found, theirs, ours = future.result()
    except Exception as error:  # the worker's, not the cell's
        lost = ChildProcessError(f"the worker was lost ({error}); out of memory? Finished cells are kept: call again")
        lost.__cause__ = error
        return lost
    if theirs != ours:
        warnings.warn("workers run other sources or versions than this process: their cells are not kept", stacklevel=2)
    return found if isinstance(found, Exception) else (found, theirs == ours)


def _attempt(cell: Callable[[C], Result], config: C, ours: str) -> tuple[Result | Exception, str, str]:
    """On a worker: a cell's result, or its error in a form that travels, and the sources of both sides."""
    found: Result | Exception
    try:
        with threadpool_limits(1), _environment(TTY_COMPATIBLE="0"):  # no progress bars of cells between ours
            found = {name: np.asarray(array) for name, array in cell(config).items()}
            if unfit := [name for name, array in found.items() if array.dtype.hasobject]:
                raise TypeError(f"{', '.join(unfit)}: a result holds arrays of numbers")
    except Exception as error:
        kind = next((kind for kind in PLAIN if isinstance(error, kind)), None)
        found = kind(str(error)) if kind else RuntimeError(f"{type(error).__name__}: {error}")
        found.add_note(traceback.format_exc())
    return found, sources(cell.__module__), ours


@cache
def _hash(text: str, module: str) -> str:
    return sha256(f"{text}\n{sources(module)}".encode()).hexdigest()


def _read(path: Path, text: str) -> Result | None:
    """A kept result; None unless there is a whole one of this cell."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            if kept["cell"] != text:
                return None
            return {name.removeprefix("result."): kept[name] for name in kept.files if name != "cell"}
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, IndexError, BadZipFile):
        return None


def _write(path: Path, text: str, result: Result) -> None:
    """Nobody, not even after a crash, sees half a file."""
    content = io.BytesIO()
    arrays: dict[str, Any] = {f"result.{name}": array for name, array in result.items()}
    np.savez(content, cell=np.array(text), **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(content.getvalue())
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
