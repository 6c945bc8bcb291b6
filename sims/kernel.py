"""The empirical tangent kernel of any torch module, measured by torch.func; it knows no prediction.

Symbols: f(x; theta) the network, n and m examples, C outputs of each, P trainable parameters,
g_ic = d f_c(x_i) / d theta in R^P, K[i, c, j, e] = <g_ic, g_je> (Jacot et al. 2018, arXiv 1806.07572).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.func import jvp, vjp
from torch.nn import Module
from torch.nn.attention import SDPBackend, sdpa_kernel

from sims.tangent import CHUNK, Batch, Forward, Gradients, Tangent, additive_mask, examples, length, logits, slices

__all__ = ["additive_mask", "empirical_ntk", "logits", "ntk_product", "projected_gradients"]

Formula = Literal["sgd", "signgd", "asymmetric"]
Sketch = Literal["gaussian", "countsketch"]
T = TypeVar("T")

COLUMNS = 8192  # float32 sums this short keep 7 digits; what they sum to is added up in float64
BLOCK_BYTES = 2**30
_SIGNED = {"sgd": (False, False), "signgd": (True, True), "asymmetric": (False, True)}


def empirical_ntk(
    network: Module,
    left: Batch,
    right: Batch | None = None,
    *,
    formula: Formula = "sgd",
    forward: Forward = logits,
    block_bytes: int = BLOCK_BYTES,
    label: str = "tangent kernel",
) -> Float[Tensor, "n C m C"]:
    """K[i, c, j, e] = <g_ic, g_je> between all examples of `left` and of `right` (or of `left` itself), in float64.

    formula: "sgd" as above; "signgd" <sign g_ic, sign g_je>; "asymmetric" <g_ic, sign g_je>, in which `right` are the
    training examples (Malladi et al. 2023, arXiv 2210.05643).

    Costs one gradient for each output of each example as long as left's fit into block_bytes; beyond, left is cut into
    blocks, and right's gradients are taken again for each. The gradients held at once take at most block_bytes; those
    of one example are C P numbers. Shows a progress bar on a terminal. Raises ValueError if not even two examples fit.
    """
    if formula not in _SIGNED:
        raise ValueError(f"formula = {formula!r}: take one of {', '.join(_SIGNED)}")
    tangent = Tangent(network, forward)
    symmetric, others = right is None, left if right is None else right
    n, m, outputs = length(left), length(others), tangent.count(left)
    held = tangent.fitting(outputs, block_bytes)
    chunk = min(CHUNK, held // 2)
    size = min(n, held - chunk)
    found = torch.zeros(n, outputs, m, outputs, dtype=torch.float64, device=tangent.device)
    rows: Gradients = {}
    for mine, theirs in _tracked(list(_plan(n, m, size, chunk, symmetric)), label):
        if theirs is None:
            rows.clear()  # before the next block is held
            rows = tangent.held(examples(left, mine), chunk)
            if symmetric:
                found[mine, :, mine] = _products(rows, rows, formula)
        else:
            _fill(found, rows, mine, tangent.gradients(examples(others, theirs)), theirs, formula, symmetric)
    # products of float32 gradients depend on their order by rounding
    return (found + found.permute(2, 3, 0, 1)) / 2 if symmetric and formula != "asymmetric" else found


def _fill(
    found: Tensor,
    rows: Gradients,
    mine: slice,
    columns: Gradients,
    theirs: slice,
    formula: Formula,
    symmetric: bool,
) -> None:
    """The products of two sets of gradients, and their mirror image."""
    found[mine, :, theirs] = _products(rows, columns, formula)
    if symmetric and formula == "asymmetric":
        found[theirs, :, mine] = _products(columns, rows, formula)
    elif symmetric:
        found[theirs, :, mine] = found[mine, :, theirs].permute(2, 3, 0, 1)


def ntk_product(
    network: Module,
    left: Batch,
    right: Batch,
    vectors: Float[Tensor, "m C"],
    *,
    forward: Forward = logits,
    chunk: int = CHUNK,
    label: str = "kernel times vector",
) -> Float[Tensor, "n C"]:
    """sum_je K[i, c, j, e] v_je without K: u = sum_je v_je g_je backwards, then <g_ic, u> forwards.

    One backward pass over right and one forward-mode pass over left; holds P numbers and what `chunk` examples need.
    Worth it for fewer vectors than examples, as in conjugate gradients. In the parameters' precision, the sums in
    float32 or better; returned in float64. Raises ValueError for vectors of another shape.
    """
    tangent = Tangent(network, forward)
    parameters, expected = tangent.parameters, (length(right), tangent.count(right))
    if tuple(vectors.shape) != expected:
        raise ValueError(f"vectors of shape {tuple(vectors.shape)}: give (m, C) = {expected}, one number for an output")
    direction = {name: torch.zeros_like(p, dtype=_wide(p.dtype)) for name, p in parameters.items()}
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward mode
        for taken in _tracked(slices(length(right), chunk), f"{label}, backwards"):
            outputs, pull = vjp(tangent.at(examples(right, taken)), parameters)[:2]
            (pulled,) = pull(vectors[taken].to(outputs))
            direction = {name: direction[name] + pulled[name] for name in direction}
        along = {name: found.to(parameters[name]) for name, found in direction.items()}
        batches = [examples(left, taken) for taken in slices(length(left), chunk)]
        tracked = _tracked(batches, f"{label}, forwards")
        return torch.cat([jvp(tangent.at(batch), (parameters,), (along,))[1] for batch in tracked]).double()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def projected_gradients(
    network: Module,
    batch: Batch,
    size: int,
    *,
    seed: int,
    sketch: Sketch = "gaussian",
    forward: Forward = logits,
    block_bytes: int = BLOCK_BYTES,
    label: str = "projected gradients",
) -> Float[Tensor, "n C size"]:
    """S g_ic for a random S of shape size x P with E <S g, S g'> = <g, g'>; in float64.

    "gaussian": entries N(0, 1/size), variance (|g|^2 |g'|^2 + <g, g'>^2) / size. "countsketch": one entry +-1 in each
    column (Charikar, Chen & Farach-Colton 2002), variance smaller by 2 sum_p g_p^2 g'_p^2 / size, and `size` times
    cheaper. S is drawn in pieces and never held; it is the same for equal seeds, in every precision of the network.
    """
    if size < 1:
        raise ValueError(f"size = {size}: take at least one direction")
    tangent = Tangent(network, forward)
    outputs = tangent.count(batch)
    held = tangent.fitting(outputs, block_bytes)
    found = torch.zeros(length(batch), outputs, size, dtype=torch.float64, device=tangent.device)
    chunk = min(CHUNK, held // 2)
    for taken in _tracked(slices(length(batch), held - chunk), label):
        generator = torch.Generator().manual_seed(seed)
        for block in _columns(tangent.held(examples(batch, taken), chunk)):
            _SKETCHES[sketch](block, found[taken].flatten(0, 1), generator)
    return found


def _gaussian(block: Tensor, found: Tensor, generator: torch.Generator) -> None:
    drawn = torch.randn(block.shape[1], found.shape[1], generator=generator, dtype=torch.float64)  # one for all dtypes
    found += block @ (drawn / found.shape[1] ** 0.5).to(block)


def _countsketch(block: Tensor, found: Tensor, generator: torch.Generator) -> None:
    bucket = torch.randint(found.shape[1], block.shape[1:], generator=generator)
    sign = 2 * torch.randint(2, block.shape[1:], generator=generator) - 1
    found.index_add_(1, bucket.to(block.device), (block * sign.to(block.device)).to(found.dtype))


_SKETCHES = {"gaussian": _gaussian, "countsketch": _countsketch}


def _products(left: Gradients, right: Gradients, formula: Formula) -> Float[Tensor, "a C b C"]:
    """Inner products of two sets of gradients, in float64 over blocks of columns."""
    signed_left, signed_right = _SIGNED[formula]
    found: Any = 0.0
    for a, b in zip(_columns(left), _columns(right), strict=True):
        found = found + ((a.sign() if signed_left else a) @ (b.sign() if signed_right else b).mT).double()
    first, second = next(iter(left.values())), next(iter(right.values()))
    return found.reshape(*first.shape[:2], *second.shape[:2])


def _columns(rows: Gradients) -> Iterator[Float[Tensor, "rows columns"]]:
    """The gradients as a matrix, COLUMNS columns at a time, in float32 or better."""
    for gradient in rows.values():
        flat = gradient.reshape(gradient.shape[0] * gradient.shape[1], -1)
        for block in torch.split(flat, COLUMNS, dim=1):
            yield block.to(_wide(block.dtype))


def _plan(n: int, m: int, size: int, chunk: int, symmetric: bool) -> Iterator[tuple[slice, slice | None]]:
    """(block of left to hold, None), then (the same, chunk of right) for each chunk that it meets."""
    for mine in slices(n, size):
        yield mine, None
        yield from ((mine, theirs) for theirs in slices(m, chunk, mine.stop if symmetric else 0))


def _tracked(work: Sequence[T], label: str) -> Iterable[T]:
    console = Console(stderr=True)
    return track(work, label, console=console, transient=True, disable=not console.is_terminal)
