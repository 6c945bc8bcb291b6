"""One small committed JSON per finished run: its spec, what was found, and where it ran."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lm_experiments.assets import write_atomically
from lm_experiments.runs import FineTune, Pretrain

RESULTS = Path(__file__).parent / "results"
DIGITS = 5  # significant ones kept of every float
LOWER_IS_BETTER = ("loss", "perplexity")
S = TypeVar("S", bound=FineTune | Pretrain)


@dataclass(frozen=True, eq=False)
class Record(Generic[S]):
    """A run that was finished."""

    spec: S
    found: dict[str, Any]
    """What the run's `found` says: scores, seconds, data, and more. Or diverged: where."""
    where: dict[str, Any]
    """Versions, commit, hardware, threads."""

    def score(self, metric: str, step: int | None = None) -> float:
        """A metric after a step, by default the last one; the worst, +-inf, of a run that diverged."""
        if "diverged" in self.found:
            return math.inf if metric in LOWER_IS_BETTER else -math.inf
        wanted = self.spec.steps if step is None else step
        return next(float(entry[metric]) for entry in self.found["scores"] if entry["step"] == wanted)


def path(spec: FineTune | Pretrain, folder: Path = RESULTS) -> Path:
    """Where its record is, or will be."""
    return folder / f"{spec.key}.json"


def write(spec: FineTune | Pretrain, found: dict[str, Any], where: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Keep a run's record, its floats to five significant digits; ValueError if one is not finite."""
    content = {"spec": spec.described(), "found": _rounded(found), "where": where}
    write_atomically(path(spec, folder), (json.dumps(content, separators=(",", ":")) + "\n").encode())
    return path(spec, folder)


def read(spec: S, folder: Path = RESULTS) -> Record[S] | None:
    """The record of exactly this run; None if it was not run. ValueError if the file is damaged or another run's."""
    place = path(spec, folder)
    if not place.is_file():
        return None
    try:
        content = json.loads(place.read_bytes())
        there, record = content["spec"], Record(spec, content["found"], content["where"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place} is no whole record ({error!r}): delete it and run it again") from error
    wanted = spec.described()
    if differing := [name for name in {**there, **wanted} if there.get(name, "absent") != wanted.get(name, "absent")]:
        raise ValueError(
            f"{place} is the record of another run, differing in {', '.join(differing)}: were defaults changed "
            "since? Delete it and run it again"
        )
    return record


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} in a record, which JSON cannot keep: a run that diverged has no record")
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
