"""A backward pass that forms cores in place of gradients, against torch's, on a 60M LLaMA with random weights.

The head, 512 x 32,000, costs as much as all layers' gradients do and is not projected, so that counting products allows
no more than 1.19 times at rank 64; with a vocabulary of bytes, 1.36.
"""

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.benchmarks.tables import digits, table
from tests.benchmarks.timing import Call, medians

PLAIN, CORES = "forward and backward", "the same with galore_backward"


@dataclass(frozen=True)
class Size:
    """A LLaMA, a batch and a rank; the defaults are the 60M one's."""

    layers: int = 8
    width: int = 512
    hidden: int = 1376
    heads: int = 8
    words: int = 32000
    batch: int = 8
    tokens: int = 256
    rank: int = 64

    def network(self) -> nn.Module:
        """At a random start."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.words,
            hidden_size=self.width,
            intermediate_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            tie_word_embeddings=False,
        )
        return LlamaForCausalLM(config)


TINY = Size(layers=1, width=24, hidden=40, heads=2, words=100, batch=2, tokens=8, rank=4)


def available() -> bool:
    """Whether transformers is there."""
    return importlib.util.find_spec("transformers") is not None


def passes(name: str, size: Size) -> tuple[Call, Any, Any]:
    """The call, whose gradients are dropped before each; its model and its optimizer, which has made a first step."""
    from lowdim.optimizers import GaLoreAdamW, galore_backward, parameter_groups

    model = size.network()
    optimizer = GaLoreAdamW(parameter_groups(model, rank=size.rank, update_proj_gap=10**9))
    ids = torch.randint(size.words, (size.batch, size.tokens), generator=torch.Generator().manual_seed(1))

    def call() -> None:
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()

    call()
    optimizer.step()
    if name == CORES:
        galore_backward(model, optimizer)
    return call, model, optimizer


def waiting(model: nn.Module, optimizer: Any) -> int:
    """Bytes of the gradients of projected weights, or of the cores in their place."""
    kept = [p.grad for p in model.parameters() if p.grad is not None and p in optimizer.plans]
    kept += [state["core"] for state in optimizer.state.values() if "core" in state]
    return sum(tensor.untyped_storage().nbytes() for tensor in kept)


SIZES = (Size(), Size(words=257), Size(rank=128))


def report(rounds: int, sizes: tuple[Size, ...] = SIZES) -> tuple[list[Any], list[str]]:
    """A table, and what was aimed at."""
    shown = table(
        "forward and backward of a 60M LLaMA, float32", "rank", "tokens", "words", "plain [s]", "plain / cores",
        "gradients [MB]", "cores / gradients",
    )  # fmt: skip
    lines = []
    for size in sizes:
        made = {name: passes(name, size) for name in (PLAIN, CORES)}
        times = medians({name: call for name, (call, _, _) in made.items()}, rounds)
        bytes_ = {name: waiting(model, optimizer) for name, (_, model, optimizer) in made.items()}
        ratios = times[PLAIN] / times[CORES], bytes_[CORES] / bytes_[PLAIN]
        shown.add_row(
            str(size.rank), f"{size.batch} x {size.tokens}", str(size.words), digits(times[PLAIN]), digits(ratios[0]),
            digits(bytes_[PLAIN] / 1e6), digits(ratios[1]),
        )  # fmt: skip
        what = f"galore_backward, rank {size.rank}, {size.words} words"
        lines.append(f"{what}, times faster than {PLAIN}: target >= 1.25: reached {digits(ratios[0])}")
        lines.append(f"{what}, gradient memory of projected weights: target <= 0.25: reached {digits(ratios[1])}")
    return [shown], lines
