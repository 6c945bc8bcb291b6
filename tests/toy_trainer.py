"""A small training run that is killed: AdamW, a schedule, dropout, noise of NumPy and Python, three checkpoints.

python toy_trainer.py FOLDER                 trains, or goes on with, the run in FOLDER
python toy_trainer.py --everywhere FOLDER    kills it at every file event, each in a fork of one process, since a start
                                             of torch takes a hundred times as long as this training; prints a JSON
                                             record of each
"""

import contextlib
import gc
import json
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.nn.functional import mse_loss

from lm_experiments.checkpoints import (
    Log,
    claim,
    flatten,
    latest,
    random_state,
    restore_random_state,
    save,
    unflatten,
)
from lm_experiments.interruption import Interruption

STEPS, EVERY = 6, 2
MODES = ("before", "torn", "unsynced", "term")


def train(folder: Path) -> int:
    """The exit code. Leaves FOLDER/final: the weights and the metrics, byte for byte."""
    claim(folder, {"seed": 0, "steps": STEPS, "every": EVERY})
    torch.set_num_threads(1)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    batches = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=STEPS + 1)
    parts, begun = {"model": model, "optimizer": optimizer, "schedule": schedule}, 0
    if found := latest(folder):
        tree, begun = unflatten(found.tensors, found.state), found.step
        for name, part in parts.items():
            part.load_state_dict(tree[name])
        restore_random_state(tree["random"], batches=batches)
    print(f"resumed from step {begun}", flush=True)
    log = Log(folder, found and found.step)
    with Interruption() as interrupted:
        for step in range(begun + 1, STEPS + 1):
            inputs = torch.randn(16, 4, generator=batches) + float(np.random.randn()) + random.gauss(0, 1)
            loss = mse_loss(model(inputs), inputs.sum(1, keepdim=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            log(step, loss=loss.item(), lr=schedule.get_last_lr()[0])
            if step % EVERY == 0 or interrupted:
                tree = {name: part.state_dict() for name, part in parts.items()}
                save(folder, step, *flatten(tree | {"random": random_state(batches=batches)}))
            if interrupted:
                return interrupted.exit_code
    log.close()
    (folder / "final").write_bytes(safetensors.torch.save(model.state_dict()) + (folder / "metrics.jsonl").read_bytes())
    return 0


def forked(folder: Path, train: Callable[[Path], int], **arming) -> tuple[int, str]:
    """Exit code and output of one training in a fork, armed by ckpt-chaos to die at an event, or not at all."""
    output = folder.with_name(f"{folder.name}.output")
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output.read_text()
    code = 1
    try:
        opened = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, 1)
        os.dup2(opened, 2)
        if arming:
            from ckpt_chaos import inject

            inject.arm(str(folder), torn_python=True, **arming)
        code = train(folder)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def kill_everywhere(work: Path, train: Callable[[Path], int], modes: Sequence[str] = MODES) -> None:
    """One JSON record a line; `train` leaves FOLDER/final, and is called again after each kill."""
    with contextlib.redirect_stdout(sys.stderr):
        train(work / "first")  # imports what torch imports late, which each fork would do again
    gc.freeze()  # a collection in a fork would touch, so copy, all of its memory
    events = work / "events"
    forked(work / "whole", train, crash_at=None, log_path=str(events))
    whole = (work / "whole" / "final").read_bytes()
    for mode in modes:
        for event, line in zip(count(1), events.read_text().splitlines()):
            _, kind, name, tornable = line.split("\t")
            if mode == "torn" and tornable == "0":
                continue
            folder = work / f"{mode}-{event}"
            killed, _ = forked(folder, train, crash_at=event, mode=mode)
            there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
            code, output = forked(folder, train)
            final = folder / "final"
            equal = final.exists() and final.read_bytes() == whole
            record = {"mode": mode, "event": f"{kind} {name}", "killed": killed, "there": there, "code": code}
            left = sorted(path.name for path in folder.iterdir())
            print(json.dumps(record | {"output": output, "equal": equal, "left": left}), flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1] == "--everywhere":
        kill_everywhere(Path(sys.argv[2]), train)
    else:
        sys.exit(train(Path(sys.argv[1])))
