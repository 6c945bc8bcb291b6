"""The folder of one run: config.json, manifest.json, metrics.jsonl, and checkpoints (see lm_experiments.checkpoints).

One process writes into it at a time: rank 0 of a distributed run. Files appear whole or not at all.
"""

import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lm_experiments.trees import JSON, plain

CONFIG, MANIFEST, METRICS = "config.json", "manifest.json", "metrics.jsonl"
KIND = "run of lm_experiments"
CHECKPOINT = re.compile(r"ckpt-(\d+)")
LEFTOVER = re.compile(r"(?:ckpt-\d+(?:-old)?|config\.json|manifest\.json)\.tmp-(\d+)")
PACKAGES = ("torch", "numpy", "safetensors", "transformers", "peft", "accelerate", "datasets")
LOG = logging.getLogger(__name__)


def claim(folder: Path, config: Mapping[str, Any]) -> dict[str, JSON]:
    """Begin a run in a new or empty folder, or go on with the one that this same config began; give its manifest.

    config: what the run computes from, as JSON keeps it (tuples become lists); its `seed`, if any, is noted.

    The manifest has the versions, seed, git commit (and whether the checkout had changes), hardware and torch threads
    of the beginning; what differs from them on resuming is logged, since then no two runs are equal bit for bit.
    Raises ValueError if the folder holds files of another kind, or was begun with another config.
    """
    wanted = plain(config, "config", tuples=True)
    folder.mkdir(parents=True, exist_ok=True)
    now = _surroundings(wanted.get("seed"))
    if not (folder / MANIFEST).exists():  # written first: with it the folder is ours
        if foreign := [path.name for path in folder.iterdir() if not LEFTOVER.fullmatch(path.name)]:
            raise ValueError(f"{folder} has {sorted(foreign)[:5]}, which is no run of ours: take a new or empty folder")
        clear_leftovers(folder)
        _install(folder / MANIFEST, now)
    begun = check_ours(folder)
    clear_leftovers(folder)
    if not (folder / CONFIG).exists():
        _install(folder / CONFIG, wanted)
    if differing := list(_differences(_config(folder / CONFIG), wanted)):
        raise ValueError(
            f"{folder} was begun with another config: {'; '.join(differing)}. Take another folder for the new config, "
            "or the old values to go on"
        )
    if changed := [line for line in _differences(begun, now) if not line.startswith("begun:")]:
        LOG.warning("%s goes on, but not as it began, so it may round differently: %s", folder, "; ".join(changed))
    return begun


def _config(path: Path) -> JSON:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or take a new folder") from error


def check_ours(folder: Path) -> dict[str, JSON]:
    """The manifest of a folder that `claim` made; ValueError if it did not."""
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} has no manifest of ours ({error}): claim(folder, config) first") from error
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise ValueError(f"{folder / MANIFEST} is of another program: take a new or empty folder")
    return found


def _differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**there, **here}:
            yield from _differences(there.get(key, "absent"), here.get(key, "absent"), f"{path}.{key}".lstrip("."))
    elif there != here:
        yield f"{path}: {there!r} there, {here!r} here"


def _surroundings(seed: JSON) -> dict[str, JSON]:
    installed = {name: _version(name) for name in PACKAGES}
    gpus: list[JSON] = [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]
    status = _git("status", "--porcelain")
    return {
        "kind": KIND,
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "git": {"commit": _git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)},
        "versions": {"python": platform.python_version(), **installed},
        "hardware": {"system": f"{sys.platform} {platform.machine()}", "cpu": _cpu(), "gpus": gpus},
        "threads": torch.get_num_threads(),
    }


@cache
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(*command: str) -> str | None:
    """What git says of our sources; None where there is no checkout, or no git."""
    try:
        done = subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")  # Linux alone; platform.processor() is often empty there
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return f"{found[1] if found else platform.processor()}, {os.cpu_count()} cores"


def _install(path: Path, content: Mapping[str, JSON]) -> None:
    partial = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    write(partial, json.dumps(content, indent=1))
    partial.rename(path)
    sync(path.parent)


def write(path: Path, content: str) -> None:
    """A new file, on the disk when this returns."""
    with path.open("x") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """What was written to a file, or the names in a folder, are on the disk when this returns."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def clear_leftovers(folder: Path) -> None:
    """Delete what was half written, or half deleted, by a process of this machine that is gone.

    That of a process which lives stays, even if it only has the number of the one that died. Ours is no longer ours:
    in containers processes have the same few numbers, and this one is not writing now.
    """
    for path in folder.iterdir():
        found = LEFTOVER.fullmatch(path.name)
        if found and (int(found[1]) == os.getpid() or not _lives(int(found[1]))):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it lives, and is somebody else's
        return True
    return True


class Log:
    """metrics.jsonl: log(step, loss=0.5) appends {"step": 3, "loss": 0.5}. Steps never fall.

    step: of the checkpoint that the run goes on from: lines of later steps go, so that they are not there twice; None
        for a run that begins. Log a step before it is saved, and the lines of a killed run are those of one that was
        not. `checkpoints.save` brings the lines to the disk.

    Raises ValueError if a line that should stay is damaged, or None is given where there are checkpoints.
    """

    def __init__(self, folder: Path, step: int | None = None) -> None:
        if step is None and any(CHECKPOINT.fullmatch(path.name) for path in folder.iterdir()):
            raise ValueError(f"{folder} has checkpoints: give the step of the one from which the run goes on")
        self._last = -1 if step is None else step
        self._file = os.open(folder / METRICS, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        os.ftruncate(self._file, _kept(folder / METRICS, self._last))

    def __call__(self, step: int, **fields: JSON) -> None:
        """One line; it is with the system, so survives this process, when this returns."""
        if step < self._last:
            raise ValueError(f"step = {step} after step {self._last}: a resumed run could not tell what to keep")
        line = json.dumps(plain({"step": step, **fields}, "metrics")).encode() + b"\n"
        if os.write(self._file, line) < len(line):  # one call, so that a kill leaves no half of a line
            raise OSError(f"{METRICS}: the line of step {step} does not fit on the disk: make room and resume")
        self._last = step

    def close(self) -> None:
        """No more lines."""
        os.close(self._file)


def _kept(path: Path, step: int) -> int:
    """How many bytes are lines of steps up to that one. What is damaged after them, a torn last line say, may go."""
    lines = path.read_bytes().splitlines(keepends=True)
    steps = [_step(line) for line in lines]
    count = max((number for number, found in enumerate(steps, 1) if found is not None and found <= step), default=0)
    if None in steps[:count]:
        raise ValueError(f"{path}, line {steps.index(None) + 1} is damaged: mend or delete that line")
    return sum(map(len, lines[:count]))


def _step(line: bytes) -> int | None:
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None
