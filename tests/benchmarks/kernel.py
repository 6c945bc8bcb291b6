"""The tangent kernel of a small BERT: gradients of a few examples at a time against the two ways people write it.

Each way gives K between n training and 2n other examples of one output, the difference of two label words' logits.
"""

import importlib.util
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.func import functional_call, grad, jvp

from sims.kernel import additive_mask, empirical_ntk, ntk_product
from tests.benchmarks.tables import digits, table
from tests.benchmarks.timing import Call, medians, one_thread

OURS, NAIVE, PAIRS = "empirical_ntk", "backward per example", "JVP per pair"
VECTOR, ONE, NINE = "ntk_product", "one pair", "nine pairs"


@dataclass(frozen=True)
class Size:
    """A BertForMaskedLM of hidden size 128 with tied embeddings, and how many training examples."""

    layers: int = 2
    tokens: int = 32
    words: int = 2000
    examples: int = 32

    def network(self) -> torch.nn.Module:
        """At a random start, in eval mode."""
        from transformers import BertConfig, BertForMaskedLM

        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=self.words,
            hidden_size=128,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=self.tokens,
            attn_implementation="eager",
        )
        return BertForMaskedLM(config).eval()

    def batches(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """n and 2n sentences of random words, a quarter of them padded."""
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(5, self.words, (3 * self.examples, self.tokens), generator=generator)
        seen = torch.ones_like(ids)
        seen[::4, -self.tokens // 4 :] = 0
        whole = {"input_ids": ids, "attention_mask": additive_mask(seen, torch.float32)}
        return _part(whole, 0, self.examples), _part(whole, self.examples, None)


TINY = Size(layers=1, tokens=8, words=50, examples=3)
SCALED = (Size(examples=16), Size(), Size(examples=64), Size(layers=4, tokens=64), Size(layers=8), Size(words=16000))


def available() -> bool:
    """Whether transformers is there."""
    return importlib.util.find_spec("transformers") is not None


def label_words(network: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The logit of one word minus that of another at the fifth token."""
    scores = network(**batch).logits[:, 5]
    return scores[:, 7] - scores[:, 11]


def naive(network: torch.nn.Module, left: dict[str, Tensor], right: dict[str, Tensor]) -> Tensor:
    """One backward pass for each example, all gradients kept, one product in float32."""
    trained = list(network.parameters())
    rows = []
    for batch in (left, right):
        for i in range(len(batch["input_ids"])):
            found = torch.autograd.grad(label_words(network, _part(batch, i, i + 1))[0], trained)
            rows.append(torch.cat([g.reshape(-1) for g in found]))
    n = len(left["input_ids"])
    return torch.stack(rows[:n]) @ torch.stack(rows[n:]).mT


def pairs(network: torch.nn.Module, left: dict[str, Tensor], right: dict[str, Tensor]) -> Tensor:
    """The gradient of each of left, and for each pair a forward-mode derivative along it."""
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    called = _LabelWords(network)

    def value(batch: dict[str, Tensor]) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda p: functional_call(called, {f"network.{name}": x for name, x in p.items()}, (batch,))[0]

    rows = []
    for i in range(len(left["input_ids"])):
        direction = grad(value(_part(left, i, i + 1)))(parameters)
        others = [_part(right, j, j + 1) for j in range(len(right["input_ids"]))]
        rows.append(torch.stack([jvp(value(other), (parameters,), (direction,))[1] for other in others]))
    return torch.stack(rows).detach()


class _LabelWords(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return label_words(self.network, batch)


def ours(network: torch.nn.Module, left: dict[str, Tensor], right: dict[str, Tensor]) -> Tensor:
    """sims.kernel's."""
    return empirical_ntk(network, left, right, forward=label_words)[:, 0, :, 0]


def calls(size: Size) -> dict[str, Call]:
    """Ours and the naive one, and a product with one vector, which needs no kernel."""
    network, (left, right) = size.network(), size.batches()
    vector = torch.ones(len(right["input_ids"]), 1)
    return {
        OURS: lambda: ours(network, left, right),
        NAIVE: lambda: naive(network, left, right),
        VECTOR: lambda: ntk_product(network, left, right, vector, forward=label_words),
    }


def pair_calls(size: Size) -> dict[str, Call]:
    """One gradient and one forward-mode product, and one gradient and nine; the whole takes n and 2 n^2 of these."""
    network, (left, right) = size.network(), size.batches()
    first = _part(left, 0, 1)
    others = {key: x[:1].expand(9, *x.shape[1:]) for key, x in right.items()}
    return {ONE: lambda: pairs(network, first, _part(right, 0, 1)), NINE: lambda: pairs(network, first, others)}


def error(size: Size) -> dict[str, float]:
    """Largest |K - K64| / largest |K64|, K64 the Gram matrix in float64 of the same float32 network's gradients."""
    network, (left, right) = size.network(), size.batches()
    trained = list(network.parameters())

    def rows(batch: dict[str, Tensor]) -> Tensor:
        outputs = label_words(network, batch)
        found = [torch.autograd.grad(y, trained, retain_graph=True) for y in outputs]
        return torch.stack([torch.cat([g.reshape(-1) for g in one]) for one in found]).double()

    exact = rows(left) @ rows(right).mT
    ways = {OURS: ours(network, left, right), NAIVE: naive(network, left, right)}
    return {name: float((kernel - exact).abs().max() / exact.abs().max()) for name, kernel in ways.items()}


def peak(name: str, size: Size) -> float:
    """MB beyond what a process with the network holds before: the high-water mark of a fresh one. Linux."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, size))


def _peak(name: str, size: Size) -> float:
    with one_thread():
        small = calls(TINY if size == TINY else Size(size.layers, size.tokens, size.words, 1))[name]
        small()  # imports and thread pools
        call = calls(size)[name]
        return above(call, _status("VmRSS"))


def above(call: Call, before: float) -> float:
    """MB that the process holds at the highest while the call runs, beyond `before` [kB]."""
    Path("/proc/self/clear_refs").write_text("5")  # the mark falls to what is held now
    call()
    return (_status("VmHWM") - before) / 1e3


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{key}:"))  # kB


def report(rounds: int, sizes: tuple[Size, ...] = SCALED) -> tuple[list[Table], list[str]]:
    """Tables, and what was aimed at."""
    shown = table(
        "tangent kernel of a BERT, n x 2n examples", "layers", "tokens", "n", "P [1000]", "own [s]", "naive / own",
        "pairs / own", "vector [s]", "peak [MB]", "own / naive [%]", "error", "naive's",
    )  # fmt: skip
    reached: list[tuple[float, float, float, float]] = []
    for size in sizes:
        times = medians(calls(size), min(rounds, 5))
        pair = medians(pair_calls(size), min(rounds, 3))
        product = (pair[NINE] - pair[ONE]) / 8
        peaks, errors = {name: peak(name, size) for name in (OURS, NAIVE)}, error(size)
        all_pairs = size.examples * (pair[ONE] - product) + 2 * size.examples**2 * product
        reached.append(
            (times[NAIVE] / times[OURS], all_pairs / times[OURS], 100 * peaks[OURS] / peaks[NAIVE], errors[OURS])
        )
        parameters = sum(p.numel() for p in size.network().parameters())
        shown.add_row(
            *(str(x) for x in (size.layers, size.tokens, size.examples, round(parameters / 1e3))),
            *(digits(x) for x in (times[OURS], *reached[-1][:2], times[VECTOR], peaks[OURS], reached[-1][2])),
            f"{errors[OURS]:.0e}", f"{errors[NAIVE]:.0e}",
        )  # fmt: skip
    faster, than_pairs, memory, wrong = reached[sizes.index(Size()) if Size() in sizes else 0]
    return [shown], [
        f"{OURS}, times faster than {NAIVE}: target >= 1.5: reached {digits(faster)}",
        f"{OURS}, times faster than {PAIRS}: target >= 10: reached {digits(than_pairs)}",
        f"{OURS}, percent of {NAIVE}'s memory: target <= 60: reached {digits(memory)}",
        f"{OURS}, error against float64: target <= 1e-6: reached {wrong:.1e}",
    ]


def _part(batch: dict[str, Any], begin: int, end: int | None) -> dict[str, Any]:
    return {key: x[begin:end] for key, x in batch.items()}
