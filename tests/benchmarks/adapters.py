"""Compressed Deep LoRA against PEFT's LoRA of equal rank, on a Llama of SmolLM2-135M's shape with random weights.

Neither time nor memory depends on the weights. All linear layers of the blocks get an adapter; a step is forward,
backward and AdamW on one batch.
"""

import importlib.util
import multiprocessing
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tests.benchmarks.kernel import above
from tests.benchmarks.tables import digits, table
from tests.benchmarks.timing import Call, medians, one_thread

LORA, DEEP = "PEFT LoRA step", "compressed Deep LoRA step"
START, BASE, MERGED = "initialize_deep_lora_weights", "base model", "merged model"


@dataclass(frozen=True)
class Size:
    """A Llama and a batch; the defaults are SmolLM2-135M's."""

    layers: int = 30
    width: int = 576
    heads: int = 9
    words: int = 49152
    batch: int = 4
    tokens: int = 64
    rank: int = 8

    def network(self) -> nn.Module:
        """At a random start."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.words,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads // 3,
            intermediate_size=self.width * 8 // 3,
            tie_word_embeddings=True,
        )
        return LlamaForCausalLM(config)

    def inputs(self) -> dict[str, torch.Tensor]:
        """Random words."""
        ids = torch.randint(self.words, (self.batch, self.tokens), generator=torch.Generator().manual_seed(1))
        return {"input_ids": ids, "labels": ids}

    def adapted(self, name: str) -> nn.Module:
        """With the adapter of a call."""
        from peft import LoraConfig, get_peft_model

        from lowdim import DeepLoraConfig

        shared: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        lora = LoraConfig(r=self.rank, lora_alpha=2 * self.rank, **shared)
        return get_peft_model(self.network(), lora if name == LORA else DeepLoraConfig(rank=self.rank, **shared))


TINY = Size(layers=2, width=96, heads=3, words=100, batch=2, tokens=8)


def available() -> bool:
    """Whether transformers and PEFT are there."""
    return all(importlib.util.find_spec(name) is not None for name in ("transformers", "peft"))


def trained(model: nn.Module) -> int:
    """Parameters that train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def step(name: str, size: Size) -> Call:
    """One training step."""
    from lowdim import deep_lora_parameter_groups

    model, inputs = size.adapted(name), size.inputs()
    groups = (
        deep_lora_parameter_groups(model, 1e-2) if name == DEEP else [p for p in model.parameters() if p.requires_grad]
    )
    optimizer = torch.optim.AdamW(groups, lr=1e-3)

    def call() -> None:
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def start(size: Size) -> Call:
    """The compression of all layers, one batch's gradient included."""
    from lowdim import initialize_deep_lora_weights

    model, inputs = size.adapted(DEEP), size.inputs()
    return lambda: initialize_deep_lora_weights(model, inputs)


def inference(size: Size) -> dict[str, Call]:
    """The base model, and one with a merged adapter."""
    ids = {"input_ids": size.inputs()["input_ids"]}
    base, merged = size.network().eval(), size.adapted(DEEP).merge_and_unload().eval()  # type: ignore[operator]
    return {BASE: lambda: _without_gradients(base, ids), MERGED: lambda: _without_gradients(merged, ids)}


@torch.no_grad()
def _without_gradients(model: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    model(**inputs)


def peak(name: str, size: Size) -> float:
    """MB at the highest, the model included, of a fresh process that makes three steps. Linux."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, size))


def _peak(name: str, size: Size) -> float:
    with one_thread():
        call = step(name, size)

        def steps() -> None:
            for _ in range(3):
                call()

        return above(steps, 0)


def report(
    rounds: int, sizes: tuple[Size, ...] = (Size(), replace(Size(), rank=32), replace(Size(), tokens=256))
) -> Any:
    """Tables, and what was aimed at."""
    shown = table(
        "Deep LoRA on a Llama of SmolLM2-135M's shape", "rank", "tokens", "LoRA [s]", "deep / LoRA", "LoRA [MB]",
        "deep / LoRA", "more parameters", "L r^2", "start [steps]", "merged / base",
    )  # fmt: skip
    reached = []
    for size in sizes:
        times = medians({LORA: step(LORA, size), DEEP: step(DEEP, size)}, rounds)
        once, models = medians({START: start(size)}, min(rounds, 3))[START], medians(inference(size), rounds)
        peaks = {name: peak(name, size) for name in (LORA, DEEP)}
        deep, layers = size.adapted(DEEP), 7 * size.layers
        more = (trained(deep) - trained(size.adapted(LORA))) / layers
        row = times[DEEP] / times[LORA], peaks[DEEP] / peaks[LORA], once / times[DEEP], models[MERGED] / models[BASE]
        reached.append((*row, more / (3 * size.rank**2)))
        shown.add_row(
            str(size.rank), f"{size.batch} x {size.tokens}", digits(times[LORA]), digits(row[0]), digits(peaks[LORA]),
            digits(row[1]), digits(more), str(3 * size.rank**2), digits(row[2]), digits(row[3]),
        )  # fmt: skip
    time, memory, begun, merged, parameters = reached[0]
    return [shown], [
        f"{DEEP}, times {LORA}: target <= 1.10: reached {digits(time)}",
        f"{DEEP}, peak memory of {LORA}: target <= 1.05: reached {digits(memory)}",
        f"{DEEP}, parameters a layer beyond LoRA's, in L r^2: target <= 1: reached {digits(parameters)}",
        f"{START}, in steps: target < 5: reached {digits(begun)}",
        f"{MERGED}, times {BASE}: target about 1: reached {digits(merged)}",
    ]
