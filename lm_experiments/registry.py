"""All named experiments, of fine-tuning and pre-training: their runs with the learning rates chosen, their records."""

from collections import ChainMap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_experiments import experiments, pretrainings, records
from lm_experiments.experiments import EXPERIMENTS, Experiment, Size, command
from lm_experiments.pretrainings import PRETRAININGS

NAMED: ChainMap[str, Experiment] = ChainMap(PRETRAININGS, EXPERIMENTS)
"""Both as they are now. The last mapping comes first when they are listed."""
Read = Callable[[Any], records.Record[Any] | None]


def rated(name: str, cells: Sequence[Any], read: Read) -> list[Any]:
    """Runs of a named experiment with their learning rates; ValueError if the runs that choose them are not there."""
    if not NAMED[name].tuned:
        return [*cells]
    choose = pretrainings.chosen if name in PRETRAININGS else experiments.chosen
    return [NAMED[name].rated(cell, choose, read) for cell in cells]


def recorded(name: str, size: Size, seeds: int, results: Path = records.RESULTS) -> list[records.Record[Any]]:
    """The records of an experiment's runs whose seed is below `seeds`, in the order of its cells.

    Raises ValueError for more seeds than a tuned experiment has, which would be fewer runs than the figure says; and,
    with the command that makes them, if some are not there.
    """

    def read(cell: Any) -> records.Record[Any] | None:
        return records.read(cell, results)

    every = NAMED[name].cells(size)
    if NAMED[name].tuned and seeds > (most := 1 + max(cell.seed for cell in every)):
        raise ValueError(f"seeds = {seeds}: {name!r} has {most}; take as many at most")
    cells = [cell for cell in every if cell.seed < seeds]
    found = [read(cell) for cell in rated(name, cells, read)]
    if missing := found.count(None):
        call = command(name, size) + (", on a GPU" if size == "full" else "")
        raise ValueError(f"{missing} of {len(found)} runs of {name!r} have no record yet: {call} (see README)")
    return [record for record in found if record is not None]
