"""python tiny_run.py WORK DATA MODE ...: the loop, killed at its file events in these ways (as toy_trainer.py is).

WORK: an empty folder; DATA: what tests/tiny_models.py makes."""

import json
import sys
from pathlib import Path

import safetensors.torch
import torch

from lm_experiments.checkpoints import latest
from lm_experiments.finetune import Stopped
from tests.tiny_models import run, spec, without_time
from tests.toy_trainer import kill_everywhere


def train(folder: Path) -> int:
    """The exit code. Leaves FOLDER/final: what was found, the weights and the metrics, byte for byte."""
    torch.set_num_threads(1)
    data = Path(sys.argv[2])
    what = spec(data, steps=4, every=2, examples=8, gamma=0.0, watch=True, dropout=0.3, held_out=8)
    try:
        found = run(what, folder, data, save_every=2)
    except Stopped as stopped:
        return stopped.code
    kept = latest(folder)
    assert kept is not None
    tensors = safetensors.torch.save(kept.tensors)
    metrics = (folder / "metrics.jsonl").read_bytes()
    (folder / "final").write_bytes(json.dumps(without_time(found)).encode() + tensors + metrics)
    return 0


if __name__ == "__main__":
    kill_everywhere(Path(sys.argv[1]), train, sys.argv[3:])
