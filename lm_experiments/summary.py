"""What runs have shown, as a table for a terminal of 80 columns."""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from statistics import mean, stdev
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from lm_experiments.records import Record
from lm_experiments.runs import FineTune, Pretrain


def label(spec: FineTune | Pretrain) -> str:
    """A run's key without its hash."""
    return spec.key.rpartition("-")[0]


def summary(found: Sequence[Record[Any]]) -> Group:
    """What the runs have in common, and a row for each kind: its headline metric after the last step, over seeds."""
    kinds: dict[FineTune | Pretrain, list[float]] = {}
    for record in found:
        kinds.setdefault(replace(record.spec, seed=0), []).append(record.score(record.spec.metric))
    shown = next(iter(kinds)).SHOWN if kinds else ()
    differing = [name for name in shown if len({getattr(kind, name) for kind in kinds}) > 1]
    spread = any(len(scores) > 1 for scores in kinds.values())
    common = ", ".join(_said(kind, name) for kind in list(kinds)[:1] for name in shown if name not in differing)
    if len(kinds) == 1:  # by its name, as its files have it
        (kind,) = kinds
        told = ", ".join(_said(kind, name) for name in kind.TOLD)
        common = f"{label(kind).rpartition('-')[0]}: {told}"
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for name in (*differing, "metric", "mean", *(["sd"] if spread else []), "seeds"):
        words = name == "metric" or any(isinstance(getattr(kind, name, 0), str) for kind in kinds)
        table.add_column(name, justify="left" if words else "right")
    for kind, scores in kinds.items():
        cells = [_shown(getattr(kind, name)) for name in differing]
        sd = [f"{stdev(scores):.4f}" if len(scores) > 1 and isfinite(sum(scores)) else ""] if spread else []
        score = f"{mean(scores):.4f}" if isfinite(sum(scores)) else "diverged"
        table.add_row(*cells, kind.metric, score, *sd, str(len(scores)))
    return Group(common or "no run is recorded yet", table if kinds else "")


def _said(kind: FineTune | Pretrain, name: str) -> str:
    value = getattr(kind, name)
    return _shown(value) if isinstance(value, str) else f"{name} {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value.rstrip("/").rpartition("/")[2].partition("@")[0]
    return f"{value:g}" if isinstance(value, float) else str(value)
