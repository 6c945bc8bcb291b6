"""Checkpoints that a kill at any moment, a full disk or a flipped bit cannot spoil; no pickle.

    folder/ckpt-<step>/ tensors.safetensors  state.json  MANIFEST.json (the sha256 of the others)

A checkpoint is written into ckpt-<step>.tmp-<pid>, each file brought to the disk, MANIFEST.json last, and then renamed:
what has the final name is whole. latest() verifies all the same, since disks lose bits and safetensors has no checksum.

    tensors, state = flatten({"model": ..., "optimizer": optimizer.state_dict(), "random": random_state()})
    save(folder, step, tensors, state)
    if found := latest(folder): tree = unflatten(found.tensors, found.state)
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from lm_experiments.run_folder import CHECKPOINT, METRICS, Log, check_ours, claim, clear_leftovers, sync, write
from lm_experiments.trees import JSON, flatten, plain, random_state, restore_random_state, storable, unflatten

__all__ = [
    "Checkpoint",
    "Log",
    "claim",
    "flatten",
    "latest",
    "random_state",
    "restore_random_state",
    "save",
    "unflatten",
]

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "MANIFEST.json"
FORMAT = 1
KEPT = 2
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What was saved after `step` steps."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, JSON]


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, JSON]) -> Path:
    """Write folder/ckpt-<step> and keep the newest two; on the disk, with the lines of the Log, when this returns.

    folder: of a run that `claim` began. step: at least 0, and later than every checkpoint that is whole; the same
        checkpoint once more changes nothing. tensors: on any device, shared or not contiguous as they like, by name.
    state: JSON; see `flatten` for what it lacks.

    Raises ValueError for other arguments before anything is written; whatever else goes wrong (a full disk) leaves the
    folder as it was, but for newer checkpoints that were found damaged: they make room for this one.
    """
    check_ours(folder)
    if type(step) is not int or step < 0:
        raise ValueError(f"step = {step!r}: count the steps from 0, as an int")
    content, owned = plain(state, "state"), _owned(tensors)
    clear_leftovers(folder)
    final, partial = folder / f"ckpt-{step}", folder / f"ckpt-{step}.tmp-{os.getpid()}"
    try:
        _write(partial, step, owned, content)
        if (folder / METRICS).exists():
            sync(folder / METRICS)
        if _same(partial, final, step):
            shutil.rmtree(partial)
        else:
            _make_room(folder, step)
            partial.rename(final)
            sync(folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        error.add_note(f"{final} is not saved for sure; the checkpoints before it are untouched")
        raise
    for old in _steps(folder)[KEPT:]:
        _discard(folder / f"ckpt-{old}")
    return final


def latest(folder: Path, device: torch.device | str = "cpu") -> Checkpoint | None:
    """The newest checkpoint that is what was saved, its tensors on `device`; None if there never was one.

    device: leave it where an optimizer or random numbers are among them: their load_state_dict moves what belongs
        elsewhere, and counts of steps, say, do not.

    Those that are damaged are skipped and named in the log. Raises ValueError if all are.
    """
    faults = []
    for step in _steps(folder):
        path = folder / f"ckpt-{step}"
        if fault := _fault(path, step):
            faults.append(f"{path}: {fault}")
            LOG.warning("skipped %s", faults[-1])
            continue
        loaded = safetensors.torch.load_file(path / TENSORS, device=str(device))
        # the file's own pages are not aligned as a fresh tensor is, by which products may round differently
        copies = {name: tensor.clone() for name, tensor in loaded.items()}
        return Checkpoint(step, copies, json.loads((path / STATE).read_bytes()))
    if faults:
        raise ValueError(f"no checkpoint is whole: {'; '.join(faults)}. Restore one, or move all away to begin again")
    return None


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors wants them: contiguous on the CPU, no two in one memory. Copies only what is not."""
    owned: dict[str, Tensor] = {}
    memories = set()
    for name, tensor in tensors.items():
        if name == "__metadata__":
            raise ValueError("a tensor called __metadata__: safetensors keeps that name for itself; rename it")
        whole = storable(tensor, name).cpu().contiguous()
        memory = whole.untyped_storage().data_ptr()
        owned[name] = whole.clone() if memory in memories else whole
        memories.add(memory)
    return owned


def _write(partial: Path, step: int, tensors: dict[str, Tensor], state: dict[str, JSON]) -> None:
    partial.mkdir()
    safetensors.torch.save_file(tensors, partial / TENSORS)
    sync(partial / TENSORS)
    write(partial / STATE, json.dumps(state))
    shutil.copymode(partial / STATE, partial / TENSORS)  # safetensors gives others no access, whatever the umask
    write(partial / MANIFEST, _manifest(step, _hashes(partial)))
    sync(partial)


def _hashes(path: Path) -> dict[str, str]:
    hashes = {}
    for name in (TENSORS, STATE):
        with (path / name).open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _manifest(step: int, hashes: dict[str, str]) -> str:
    return json.dumps({"format": FORMAT, "step": step, "sha256": hashes}, indent=1)


def _fault(path: Path, step: int) -> str | None:
    """Why a checkpoint is not what was saved; None if it is."""
    try:
        there, hashes = (path / MANIFEST).read_bytes(), _hashes(path)
    except OSError as error:
        return str(error)
    if there == _manifest(step, hashes).encode():
        return None
    changed = [name for name, found in hashes.items() if found.encode() not in there]
    return f"{', '.join(changed) or f'step {step}'} and {MANIFEST} do not match"


def _steps(folder: Path) -> list[int]:
    """Of all checkpoints, whole or not, the newest first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(found[1]) for name in names if (found := CHECKPOINT.fullmatch(name))), reverse=True)


def _same(partial: Path, final: Path, step: int) -> bool:
    """Whether the new checkpoint is there already: a last step that is also an every-hundredth one."""
    there = final / MANIFEST
    return there.exists() and there.read_bytes() == (partial / MANIFEST).read_bytes() and not _fault(final, step)


def _make_room(folder: Path, step: int) -> None:
    """Remove the damaged checkpoints of this step and later ones, before which the run went on."""
    there = [later for later in _steps(folder) if later >= step]
    if whole := [later for later in there if not _fault(folder / f"ckpt-{later}", later)]:
        raise ValueError(f"step = {step}, but {folder} has a whole ckpt-{whole[0]}: go on from latest(folder)")
    for damaged in there:
        _discard(folder / f"ckpt-{damaged}")


def _discard(path: Path) -> None:
    """Renamed first, so that no kill leaves half a checkpoint under its name."""
    leftover = path.with_name(f"{path.name}-old.tmp-{os.getpid()}")
    path.rename(leftover)
    shutil.rmtree(leftover)
