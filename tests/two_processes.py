"""torchrun ... two_processes.py DATA WORK: several runs by two processes; each leaves what it found, for the tests."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from lm_experiments import checkpoints
from lm_experiments.finetune import Diverged, Run, Stopped, finetune
from lm_experiments.processes import Parallel, Processes, processes
from lm_experiments.setting import Setting
from tests.tiny_models import spec, without_time

PLAIN = {"dropout": 0.0, "steps": 5, "every": 5}
DROPPING = {"dropout": 0.3, "method": "compressed", "gamma": 0.0, "watch": True}
RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "ddp": (PLAIN, "ddp"),
    "fsdp": ({**PLAIN, "watch": True}, "fsdp"),
    "ddp full": ({**PLAIN, "method": "full", "lr": 1e-3}, "ddp"),
    "fsdp full": ({**PLAIN, "method": "full", "lr": 1e-3}, "fsdp"),
    "ddp lora in uneven parts": ({**PLAIN, "method": "lora", "batch": 5, "accumulate": 3}, "ddp"),
    "fsdp lora in uneven parts": ({**PLAIN, "method": "lora", "batch": 5, "accumulate": 3}, "fsdp"),
    "fsdp galore": ({**PLAIN, "method": "galore", "rank": 1, "watch": True}, "fsdp"),  # later directions are rounding
    "fsdp bf16": ({**PLAIN, "precision": "bf16"}, "fsdp"),
    "whole ddp resumed": (DROPPING, "ddp"),
    "whole fsdp resumed": (DROPPING, "fsdp"),
    "parts ddp resumed": (DROPPING, "ddp"),
    "parts fsdp resumed": (DROPPING, "fsdp"),
}
"""Name -> fields of the run, how it is shared."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def main(data: Path, work: Path, here: Processes) -> None:
    written: list[str] = []
    sys.addaudithook(lambda event, args: noted(event, args, work, written))

    def leave(name: str, content: dict[str, Any]) -> None:
        results[f"{name}.{here.rank}.json"] = json.dumps(content)

    results: dict[str, str] = {}
    ranks = torch.tensor(float(here.rank))
    counted = {"counted": dist.get_world_size(), "sum of ranks": here.total(ranks)}
    leave("processes", {"rank": here.rank, "size": here.size, **counted})
    for name, (changes, parallel) in RUNS.items():
        if name.startswith("parts"):
            leave(f"stop {parallel}", stopped(data, work / name, changes, parallel, here))
        found = finetune(spec(data, **changes), work / name, data, here=here, parallel=parallel)  # type: ignore[arg-type]
        leave(name, without_time(found))
    leave("held", held(data, here))
    leave("diverged", diverged(data, work / "diverged", here))
    leave("seeds", seeds(data, work / "seeds", here))
    leave("written", {"paths": [path for path in written if path]})
    for file, content in results.items():
        (work / file).write_text(content)


def noted(event: str, args: tuple[Any, ...], work: Path, written: list[str]) -> None:
    """Audit events that change files below `work`."""
    if event == "open" and isinstance(args[2], int) and not args[2] & WRITING:
        return
    if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
        written.extend(str(path) for path in args[:2] if isinstance(path, str | os.PathLike) and inside(path, work))


def inside(path: str | os.PathLike[str], work: Path) -> bool:
    return str(path).startswith(str(work))


def held(data: Path, here: Processes) -> dict[str, float]:
    """How much of all weights of the blocks each way of sharing has in this process."""
    found = {}
    for parallel in get_args(Parallel):
        model = here.wrapped(Setting(spec(data), data, here.device).model, parallel)
        weights = [p.to_local() if isinstance(p, DTensor) else p for n, p in model.named_parameters() if "layer" in n]
        found[parallel] = sum(p.numel() for p in weights) / sum(
            p.numel() for n, p in model.named_parameters() if "layer" in n
        )
    return found


def stopped(data: Path, folder: Path, changes: dict[str, Any], parallel: Any, here: Processes) -> dict[str, int]:
    """Stop after step 3, by a signal that comes to the second process during that step."""
    honest = Run._gradients

    def signalled(self: Run, step: int) -> float:
        if here.rank == 1 and step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(self, step)

    Run._gradients = signalled  # type: ignore[method-assign]
    try:
        finetune(spec(data, **changes), folder, data, here=here, parallel=parallel)
    except Stopped as stop:
        dist.barrier()  # the first process has saved
        kept = checkpoints.latest(folder)
        return {"code": stop.code, "step": kept.step if kept else -1}
    finally:
        Run._gradients = honest  # type: ignore[method-assign]
    return {}


def diverged(data: Path, folder: Path, here: Processes) -> dict[str, str]:
    """The second process alone has a loss that is not finite."""
    honest, calls = torch.nn.functional.mse_loss, []

    def poisoned(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return honest(outputs, labels) * (float("nan") if here.rank == 1 and len(calls) == 2 else 1)

    from lm_experiments import setting

    setting.mse_loss = poisoned
    try:
        finetune(spec(data, method="lora"), folder, data, here=here)
    except Diverged as error:
        return {"error": str(error)}
    finally:
        setting.mse_loss = honest
    return {}


def seeds(data: Path, folder: Path, here: Processes) -> dict[str, list[int]]:
    """What each process seeds its dropout with."""
    seen: list[int] = []
    honest = torch.manual_seed

    def watched(seed: int) -> torch.Generator:
        seen.append(seed)
        return honest(seed)

    torch.manual_seed = watched  # type: ignore[assignment]
    finetune(spec(data, steps=2, method="lora"), folder, data, here=here)
    torch.manual_seed = honest
    return {"seeds": seen[1:]}


if __name__ == "__main__":
    with processes() as here:
        main(Path(sys.argv[1]), Path(sys.argv[2]), here)
