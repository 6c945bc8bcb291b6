"""The adapters' step on a GPU, against PEFT's LoRA, by CUDA events: python -m tests.benchmarks.adapters_cuda."""

import gc
import statistics
from collections.abc import Mapping
from dataclasses import replace

import torch
from rich.console import Console
from torch import nn

from tests.benchmarks.adapters import DEEP, LORA, START, Size
from tests.benchmarks.tables import digits, table
from tests.benchmarks.timing import Call

SIZES = (Size(), Size(batch=16, tokens=256), replace(Size(batch=16, tokens=256), rank=32))


def step(name: str, size: Size, precision: torch.dtype) -> tuple[nn.Module, dict[str, torch.Tensor], Call]:
    """The model on the GPU, its batch, and one training step."""
    from lowdim import deep_lora_parameter_groups

    model = size.adapted(name).cuda()
    inputs = {key: value.cuda() for key, value in size.inputs().items()}
    groups = deep_lora_parameter_groups(model, 1e-2) if name == DEEP else [{"params": model.parameters()}]
    trained = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)

    def call() -> None:
        with torch.autocast("cuda", precision, enabled=precision is not torch.float32):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, inputs, call


def medians(calls: Mapping[str, Call], rounds: int) -> dict[str, float]:
    """Median milliseconds of each call on the GPU's own clock; all take turns in every round."""
    for call in calls.values():
        for _ in range(5):
            call()
    samples = [{name: _milliseconds(call) for name, call in calls.items()} for _ in range(rounds)]
    return {name: statistics.median(sample[name] for sample in samples) for name in calls}


def _milliseconds(call: Call) -> float:
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    call()
    ended.record()
    torch.cuda.synchronize()
    return begun.elapsed_time(ended)


def peak(call: Call) -> float:
    """MB at the highest during a step, beyond what was there before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def main(rounds: int = 30) -> None:
    """Print the table."""
    from lowdim import initialize_deep_lora_weights

    shown = table(
        f"Deep LoRA on {torch.cuda.get_device_name()}, a Llama of SmolLM2-135M's shape",
        "rank", "tokens", "precision", "LoRA [ms]", "deep / LoRA", "LoRA's step [MB]", "deep / LoRA", "start [steps]",
    )  # fmt: skip
    for size in SIZES:
        for precision in (torch.float32, torch.bfloat16):
            made = {name: step(name, size, precision) for name in (LORA, DEEP)}
            times = medians({name: call for name, (_, _, call) in made.items()}, rounds)
            peaks = {name: peak(call) for name, (_, _, call) in made.items()}
            model, inputs, _ = made[DEEP]
            begun = medians({START: lambda m=model, i=inputs: initialize_deep_lora_weights(m, i)}, 3)[START]
            shown.add_row(
                str(size.rank), f"{size.batch} x {size.tokens}", str(precision).removeprefix("torch."),
                digits(times[LORA]), digits(times[DEEP] / times[LORA]), digits(peaks[LORA]),
                digits(peaks[DEEP] / peaks[LORA]), digits(begun / times[DEEP]),
            )  # fmt: skip
            del made, model, inputs
            gc.collect()
    Console(width=130, highlight=False).print(shown)


if __name__ == "__main__":
    main()
