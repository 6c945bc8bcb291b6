"""torchrun ... two_pretrainings.py TEXT WORK: pre-training by two processes; each leaves what it found."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from lm_experiments import checkpoints
from lm_experiments.loop import Diverged, Stopped
from lm_experiments.pretrain import Run, pretrain
from lm_experiments.processes import Processes, processes
from tests.tiny_models import without_time
from tests.tiny_texts import spec

CLIPPED = {"clip": 0.4, "batch": 5, "accumulate": 3, "weight_decay": 0.1}
RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "ddp": (CLIPPED, "ddp"),
    "fsdp": (CLIPPED, "fsdp"),
    "ddp lora": ({"optimizer": "lora", "scale": 32.0}, "ddp"),
    "fsdp lora": ({"optimizer": "lora", "scale": 32.0}, "fsdp"),
    "fsdp low-rank": ({"optimizer": "low-rank"}, "fsdp"),
    "fsdp bf16": ({"precision": "bf16"}, "fsdp"),
    "ddp layerwise": ({"optimizer": "fira", "layerwise": True, "batch": 5}, "ddp"),
    "ddp cores": ({"optimizer": "galore", "low_rank_backward": True, **CLIPPED}, "ddp"),
    "ddp cores, layerwise": ({"optimizer": "galore", "low_rank_backward": True, "layerwise": True}, "ddp"),
    "ddp watch": ({"optimizer": "galore", "watch": True}, "ddp"),
    "fsdp watch": ({"watch": True}, "fsdp"),
}
"""Name -> fields of the run, how it is shared."""


def main(text: Path, work: Path, here: Processes) -> None:
    results: dict[str, Any] = {}
    for name, (changes, parallel) in RUNS.items():
        found = pretrain(spec(**changes), work / name, text, here=here, parallel=parallel)  # type: ignore[arg-type]
        results[name] = without_time(found)
    for parallel in ("ddp", "fsdp"):
        results[f"resumed {parallel}"] = resumed(text, work / f"resumed {parallel}", parallel, here)
    try:
        pretrain(spec(lr=1e30, warmup=0.0), work / "diverged", text, here=here)
    except Diverged as error:
        results["diverged"] = str(error)
    (work / f"found.{here.rank}.json").write_text(json.dumps(results))


def resumed(text: Path, folder: Path, parallel: Any, here: Processes) -> dict[str, Any]:
    """Stopped by a signal that comes to the second process during step 3; then to the end."""
    honest, what = Run._gradients, spec(**CLIPPED)

    def signalled(self: Run, step: int) -> float:
        if here.rank == 1 and step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(self, step)

    Run._gradients = signalled  # type: ignore[method-assign]
    step = -1
    try:
        pretrain(what, folder, text, here=here, parallel=parallel)
    except Stopped:
        dist.barrier()  # the first process has saved
        kept = checkpoints.latest(folder)
        step = kept.step if kept else -1
    finally:
        Run._gradients = honest  # type: ignore[method-assign]
    return {"stopped": step, **without_time(pretrain(what, folder, text, here=here, parallel=parallel))}


if __name__ == "__main__":
    with processes() as here:
        main(Path(sys.argv[1]), Path(sys.argv[2]), here)
