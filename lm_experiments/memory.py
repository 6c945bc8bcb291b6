"""What training a model needs, to the byte, from its shapes alone: weights, gradients, optimizer states.

Symbols: a target is m x n, k = min(m, n), l = max(m, n), r the rank (k if that is less). Numbers of elements, for each
target; all else, N elements, has a gradient and two moments of N.

                          weights       gradients    moments      projector
    adamw                 mn            mn           2 mn         0
    galore, fira, frugal  mn            mn           2 r l        r k
    apollo, apollo-mini   mn            mn           2 r l        0: drawn again from a seed
    lora                  mn + r(m+n)   r(m+n)       2 r(m+n)     0
    low-rank              r(m+n)        r(m+n)       2 r(m+n)     0

Counters: 4 bytes for the steps of each tensor that trains, 4 for the norm of each of fira's and apollo's limiters. One
byte (8bit) means 4 more for each block of 256, and only tensors of 4096 elements or more (bitsandbytes' rule); that of
projectors (int8) 4 for each of the r columns, whatever their size.
Activations are not counted: they are the same for all but lora and low-rank, and a matter of the batch.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn

from lm_experiments import llama
from lm_experiments.llama_sizes import SIZES
from lm_experiments.optimizer_spec import OPTIMIZERS, OptimizerName

WIDTHS = {"fp32": 4, "bf16": 2, "8bit": 1, "int8": 1}
BLOCK, SMALL = 256, 4096
LIMITED = ("fira", "apollo", "apollo-mini")


@dataclass(frozen=True)
class Memory:
    """Which model and optimizer, in which precision."""

    model: str = "7b"
    """tiny, 3m, 9m, 60m, 130m, 350m, 1b or 7b."""
    optimizer: OptimizerName = "galore"
    """As in pre-training."""
    rank: int = 1024
    """r."""
    weights: Literal["fp32", "bf16"] = "bf16"
    """Of weights and gradients."""
    states: Literal["fp32", "bf16", "8bit"] = "bf16"
    """Of moments."""
    projector: Literal["fp32", "bf16", "int8"] = "bf16"
    """Of projectors; in published 8-bit GaLore they stay as the weights are."""
    layerwise: bool = False
    """Each tensor is updated, and its gradient freed, during the backward pass: only the largest gradient is there."""
    tensors: bool = False
    """A line for each parameter of the model, too."""
    papers: bool = False
    """Instead: the figures that papers print, and which of them arithmetic reaches."""

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS or self.model not in SIZES:
            raise ValueError(
                f"model = {self.model!r}, optimizer = {self.optimizer!r}: take one of {', '.join(SIZES)}, and "
                f"one of {', '.join(OPTIMIZERS)}"
            )
        if self.rank < 1 or (self.optimizer == "apollo-mini" and self.rank != 1):
            raise ValueError(f"rank = {self.rank}: take 1 or more, and 1 for apollo-mini")


class Part(NamedTuple):
    """One weight of the model: numbers of elements."""

    target: bool
    weights: int
    trained: tuple[int, ...]
    """Of each tensor that has a gradient."""
    moments: tuple[int, ...]
    """Of each tensor of moments."""
    projector: int = 0
    columns: int = 0
    """Of the projector."""
    name: str = ""
    """Of the parameter."""


class Row(NamedTuple):
    """Bytes of one kind, and how many elements they hold."""

    kind: str
    elements: int
    bytes: int
    papers: int = 0
    """Bytes as papers count them: 2 an element, 1 in 8 bits, also of projectors; no gradients, scales, counters."""


def meta(name: str) -> nn.Module:
    """A size without memory."""
    with torch.device("meta"):
        return llama.fresh(llama.config(name), 0)


def parts(model: nn.Module, targets: Iterable[str], optimizer: str, rank: int) -> Iterator[Part]:
    """Every parameter of a model, shared ones once. targets: names of linear layers."""
    matrices = {f"{name}.weight" for name in targets}
    for name, parameter in model.named_parameters():
        if name in matrices:
            yield _target(*parameter.shape, optimizer=optimizer, rank=rank)._replace(name=name)
        else:
            count = parameter.numel()
            yield Part(False, count, (count,), (count, count), name=name)


def _target(m: int, n: int, *, optimizer: str, rank: int) -> Part:
    r, l, k = min(rank, m, n), max(m, n), min(m, n)  # noqa: E741 - the papers' letters
    if optimizer == "adamw":
        return Part(True, m * n, (m * n,), (m * n, m * n))
    if optimizer in ("lora", "low-rank"):
        factors = (m * r, r * n)
        return Part(True, sum(factors) + m * n * (optimizer == "lora"), factors, factors * 2)
    projector = (0, 0) if optimizer.startswith("apollo") else (r * k, r)
    return Part(True, m * n, (m * n,), (r * l, r * l), *projector)


def report(found: Iterable[Part], spec: Memory) -> list[Row]:
    """A row for each kind, in the order in which papers have them; the last one is their sum."""
    found = list(found)
    width, eight = WIDTHS[spec.weights], spec.states == "8bit"
    trained = [size for part in found for size in part.trained]
    gradients = max(trained) if spec.layerwise else sum(trained)
    projectors = sum(part.projector for part in found)
    counters = len(trained) + sum(part.target for part in found) * (spec.optimizer in LIMITED)
    weights = sum(part.weights for part in found)
    rows = [
        Row("weights", weights, weights * width, 2 * weights),
        Row("gradients", gradients, gradients * width),
        *(
            _stored(kind, [n for part in found if part.target == target for n in part.moments], spec.states, eight)
            for kind, target in (("moments of targets", True), ("other moments", False))
        ),
        Row("projectors", projectors, _based(found, spec.projector), projectors * (1 if eight else 2)),
        Row("counters", counters, 4 * counters),
    ]
    columns = zip(*((row.elements, row.bytes, row.papers) for row in rows), strict=True)
    return [*rows, Row("all", *map(sum, columns))]


def states(rows: Iterable[Row]) -> list[Row]:
    """Of a report those of moments and projectors."""
    return [row for row in rows if "moments" in row.kind or row.kind == "projectors"]


def _stored(kind: str, sizes: list[int], dtype: str, eight: bool) -> Row:
    elements = sum(sizes)
    return Row(kind, elements, sum(stored(size, dtype) for size in sizes), elements * (1 if eight else 2))


def _based(found: Iterable[Part], dtype: str) -> int:
    """Bytes of projectors; in int8 with a scale for each column."""
    return sum(part.projector * WIDTHS[dtype] + 4 * part.columns * (dtype == "int8") for part in found)


def stored(size: int, dtype: str) -> int:
    """Bytes of a tensor of so many elements."""
    if WIDTHS[dtype] > 1:
        return size * WIDTHS[dtype]
    return size + 4 * math.ceil(size / BLOCK) if size >= SMALL else 4 * size
