"""What a model and an optimizer need, and what papers print, as tables for a terminal of 80 columns."""

from collections.abc import Iterable
from textwrap import fill

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from lm_experiments import llama
from lm_experiments.conventions import PRINTED, RANKS, cell, claims, verdict
from lm_experiments.memory import Memory, Part, meta, parts, report

NOTE = "GB = 1e9 bytes. papers: 2 bytes an element, 1 in 8 bits; no gradients or scales."
LEGEND = "GaLore's Tables 6 (weights, states) and 2 (all), in G: printed (computed)"
MARKS = {"rounded": " ", "cut": "-", "no": "!"}
MARKED = "- the printed figure is the computed one cut, ! it is neither cut nor rounded"


def shown(spec: Memory) -> RenderableType:
    """The report; or, if asked for, the papers' figures."""
    return papers() if spec.papers else exact(spec)


def exact(spec: Memory) -> Group:
    """Bytes by kind, the papers' way beside them; below, in GaLore's tables' way, if they have such a cell."""
    model = meta(spec.model)
    table = _table("", "elements", "bytes", "GB", "papers, GB")
    found = list(parts(model, llama.targets(model), spec.optimizer, spec.rank))
    for row in report(found, spec):
        table.add_row(
            row.kind, f"{row.elements:,}", f"{row.bytes:,}", f"{row.bytes / 1e9:.3f}", f"{row.papers / 1e9:.3f}"
        )
    said = f"{spec.model}, {spec.optimizer}, rank {spec.rank}, weights {spec.weights}, states {spec.states}"
    lines: list[RenderableType] = [said + (", layer by layer" if spec.layerwise else ""), table, NOTE]
    lines += [by_tensor(found, spec)] if spec.tensors else []
    if spec.model in RANKS and ("all", spec.optimizer) in PRINTED:
        kinds = {kind: cell(kind, spec.optimizer, spec.model, spec.rank) for kind in ("weights", "states", "all")}
        lines.append("As GaLore's Tables 2 and 6, in G: " + ", ".join(f"{k} {v:.2f}" for k, v in kinds.items()))
    return Group(*lines)


def by_tensor(found: Iterable[Part], spec: Memory) -> Table:
    """Bytes of every parameter and what belongs to it; they add up to the kinds', but for layer-wise gradients."""
    table = _table("bytes", "weights", "gradient", "moments", "projector")
    table.columns[0].overflow = "fold"
    for part in found:
        size = {row.kind: row.bytes for row in report([part], spec)}
        moments = size["moments of targets"] + size["other moments"]
        cells = (size["weights"], size["gradients"], moments, size["projectors"])
        table.add_row(part.name.removesuffix(".weight"), *map(str, cells))
    return table


def papers() -> Group:
    """Every printed figure beside what arithmetic gives."""
    table = _table("", *(name.upper() for name in RANKS))
    for (kind, optimizer), printed in PRINTED.items():
        cells = [(p, cell(kind, optimizer, size)) for p, size in zip(printed, RANKS, strict=True)]
        table.add_row(f"{kind}, {optimizer}", *(f"{p:.2f} ({c:.3f}){MARKS[verdict(p, c)]}" for p, c in cells))
    lines = []
    for claim in claims():
        number = f"{claim.computed:.{claim.digits + 1}f}"
        line = f"{claim.what}: {claim.printed:.{claim.digits}f} {claim.unit} ({number}){MARKS[claim.verdict].strip()}"
        lines.append(fill(line + (f"; {claim.note}" if claim.note else ""), 80, subsequent_indent="  "))
    return Group(LEGEND, table, "\n".join([MARKED, "", *lines]))


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left")
    return table
