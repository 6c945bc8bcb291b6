"""One small committed JSON per finished run: its spec, what was found, and where it ran."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_experiments.assets import write_atomically
from lm_experiments.runs import FineTune

RESULTS = Path(__file__).parent / "results"
DIGITS = 5  # significant ones kept of every float


@dataclass(frozen=True, eq=False)
class Record:
    """A run that was finished."""

    spec: FineTune
    found: dict[str, Any]
    """losses, scores, seconds, trainable, data; spectra and cosines if the run was watched."""
    where: dict[str, Any]
    """Versions, commit, hardware, threads."""

    def score(self, metric: str, step: int | None = None) -> float:
        """A metric after a step, by default the last one."""
        wanted = self.spec.steps if step is None else step
        return next(float(entry[metric]) for entry in self.found["scores"] if entry["step"] == wanted)


def path(spec: FineTune, folder: Path = RESULTS) -> Path:
    """Where its record is, or will be."""
    return folder / f"{spec.key}.json"


def write(spec: FineTune, found: dict[str, Any], where: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Keep a run's record, its floats to five significant digits."""
    content = {"spec": spec.described(), "found": _rounded(found), "where": where}
    write_atomically(path(spec, folder), (json.dumps(content, separators=(",", ":")) + "\n").encode())
    return path(spec, folder)


def read(spec: FineTune, folder: Path = RESULTS) -> Record | None:
    """The record of exactly this run; None if it was not run. Raises ValueError if the file is another run's."""
    place = path(spec, folder)
    if not place.is_file():
        return None
    content = json.loads(place.read_text())
    if content["spec"] != json.loads(json.dumps(spec.described())):
        raise ValueError(f"{place} is the record of another run: were defaults of FineTune changed? Run it again")
    return Record(spec, content["found"], content["where"])


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
