"""Weights whose rows are divided among processes, as FSDP2 (torch's fully_shard) divides them.

With G_i the rows of the gradient that process i has, and P_i those of a basis,

    R_i = G_i P              the rows of R, with the columns projected: R and its moments are divided as the weight is
    R = sum_i P_i^T G_i      with the rows projected: every process has R, and its moments, whole

and each process changes its own rows of W. Bases are found from the whole gradient, which is gathered for that moment,
by every process, and kept whole. So "right" costs no more communication between refreshes, "left" r numbers a column.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..subspace import finite
from .inner import Inner
from .projection import Bases
from .states import State


def is_divided(tensor: object) -> bool:
    """Whether it is a DTensor, whose module takes long to import where it is not needed."""
    return hasattr(tensor, "device_mesh")


def rows_of(named: Iterable[tuple[str, Tensor]], inner: Inner, group: Mapping[str, Any]) -> dict[Tensor, "Rows"]:
    """Of the divided parameters. Raises ValueError if they are divided in another way, or for what needs whole ones."""
    rows = {parameter: Rows.of(name, parameter) for name, parameter in named if is_divided(parameter)}
    if rows and not inner.divisible:
        raise ValueError(
            f"{type(inner).__name__} takes means over whole matrices, and these are divided among processes (FSDP2): "
            "take GaLoreAdamW or GaLoreSGD"
        )
    if rows and group["state"] == "8bit":
        raise ValueError("state = '8bit' of weights divided among processes (FSDP2): blocks have no rows; take 'bf16'")
    return rows


def local(tensor: Any) -> Any:
    """What of a tensor this process has; others as they are."""
    return tensor.to_local() if is_divided(tensor) else tensor


def whole(tensor: Any) -> Any:
    """All of it, in every process; they all call it."""
    return tensor.full_tensor() if is_divided(tensor) else tensor


def finite_everywhere(tensor: Tensor) -> bool:
    """Whether all of it is; if it is divided, every process hears the same."""
    good = finite(local(tensor))
    if not is_divided(tensor):
        return good
    return not Rows.of("", tensor).total(torch.tensor(int(not good), dtype=torch.int32, device=tensor.device))


@dataclass(frozen=True)
class Rows:
    """The rows first:last of a weight of `shape` that this process has."""

    first: int
    last: int
    shape: tuple[int, ...]
    mesh: Any
    placements: tuple[Any, ...]
    group: Any

    @classmethod
    def of(cls, name: str, parameter: Any) -> "Rows":
        """Raises ValueError if it is divided in another way."""
        mesh, placements = parameter.device_mesh, tuple(parameter.placements)
        dividing = [dim for dim, placement in enumerate(placements) if not placement.is_replicate()]
        if len(dividing) != 1 or type(placements[dividing[0]]).__name__ != "Shard" or placements[dividing[0]].dim:
            raise ValueError(
                f"{name} is divided as {placements}: only rows, divided once (Shard(0), fully_shard's default), are "
                "understood"
            )
        count, part = mesh.size(dividing[0]), mesh.get_local_rank(dividing[0])
        chunk = -(-parameter.shape[0] // count)  # as torch.chunk cuts
        first, last = (min(index * chunk, parameter.shape[0]) for index in (part, part + 1))
        return cls(first, last, tuple(parameter.shape), mesh, placements, mesh.get_group(dividing[0]))

    def total(self, value: Tensor) -> Tensor:
        """The sum over the processes that have the other rows, in place if it can be."""
        value = value.contiguous()
        dist.all_reduce(value, group=self.group)
        return value

    def of_bases(self, bases: Bases) -> Bases:
        """Their rows that meet ours."""
        return {mode: basis[self.first : self.last] if mode == 0 else basis for mode, basis in bases.items()}

    def opened(self, state: State) -> State:
        """A parameter's state with this process's rows in place of what is divided."""
        return {name: local(value) for name, value in state.items()}

    def closed(self, state: State, names: Collection[str]) -> State:
        """The same, with what is divided, by name, as DTensors: torch's checkpoints know what to do with them."""
        return {name: self._joined(value) if name in names else value for name, value in state.items()}

    def placed(self, value: Tensor) -> Tensor:
        """A loaded tensor of all rows, or a DTensor, as ours are."""
        return value if is_divided(value) else self._joined(value[self.first : self.last].clone())

    def _joined(self, rows: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        shape = torch.Size((self.shape[0], *rows.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(rows.contiguous(), self.mesh, self.placements, shape=shape, stride=stride)
