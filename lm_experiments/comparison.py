"""Runs side by side: scores by what differs between them, and paired differences with Student's interval."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.stats import t

from lm_experiments.records import Record

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean and half the width of its confidence interval."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        """The lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + self.half


def scores(
    records: Sequence[Record[Any]], *fields: str, step: int | None = None
) -> dict[tuple[Any, ...], Float64[np.ndarray, " seeds"]]:
    """The headline metric after a step (by default the last) over seeds, ascending, by the values of these fields."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for record in sorted(records, key=lambda record: record.spec.seed):
        key = tuple(getattr(record.spec, field) for field in fields)
        found.setdefault(key, []).append(record.score(record.spec.metric, step))
    return {key: np.array(values) for key, values in found.items()}


def fitted(records: Sequence[Record[Any]], last: int) -> float:
    """The training loss, mean over runs and the last steps of each."""
    return float(np.mean([record.found["losses"][-last:] for record in records]))


def interval(values: Float64[np.ndarray, " seeds"]) -> Interval:
    """The mean of independent values and Student's 95 % interval: mean +- t s / n^1/2. Two values at least."""
    if len(values) < 2:
        raise ValueError(f"{len(values)} values: an interval needs two at least; run more seeds")
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return Interval(float(values.mean()), quantile * float(values.std(ddof=1)) / len(values) ** 0.5)
