"""Two processes under torchrun, with gloo on the CPU: they train as one does, stop together, and one of them writes.

One start of torchrun (tests/two_processes.py) serves all tests of the default run: most of it is importing torch."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lm_experiments import checkpoints
from lm_experiments.processes import processes
from tests.tiny_models import made, run, spec
from tests.two_processes import RUNS

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def work(folder, tmp_path_factory) -> Path:
    """Where two processes have left what they found: NAME.RANK.json, and the runs' folders."""
    place = tmp_path_factory.mktemp("two")
    command = [*TORCHRUN, ROOT / "tests" / "two_processes.py", folder, place]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    return place


def found(work: Path, name: str, rank: int = 0) -> dict:
    return json.loads((work / f"{name}.{rank}.json").read_text())


def test_there_are_two(work):
    """Launchers that start one process without a word would pass every other test here."""
    for rank in (0, 1):
        assert found(work, "processes", rank) == {"rank": rank, "size": 2, "counted": 2, "sum of ranks": 1.0}


@pytest.mark.parametrize("name", [name for name in RUNS if "resumed" not in name])
def test_two_processes_train_as_one_does(folder, tmp_path, work, name):
    changes, parallel = RUNS[name]
    alone = run(spec(folder, **changes), tmp_path, folder)
    two = found(work, name)
    tight = changes.get("precision") != "bf16"
    np.testing.assert_allclose(two["losses"], alone["losses"], rtol=2e-5 if tight else 2e-2)
    assert len(set(two["losses"])) == len(two["losses"])
    for one, other in zip(two["scores"], alone["scores"], strict=True):
        assert one["pearson"] == pytest.approx(other["pearson"], abs=1e-4 if tight else 2e-2)
    assert two["trainable"] == alone["trainable"]
    config = json.loads((work / name / "config.json").read_text())
    assert (config["processes"], config["parallel"]) == (2, parallel)
    if tight:
        kept, expected = checkpoints.latest(work / name), checkpoints.latest(tmp_path)
        assert set(kept.tensors) == set(expected.tensors)
        for key, tensor in kept.tensors.items():
            if key.startswith("model/") and "key" not in key:  # a key's bias changes nothing: its gradient is noise
                torch.testing.assert_close(tensor, expected.tensors[key], atol=2e-4, rtol=1e-3)
    if changes.get("watch"):
        for layer, values in two["spectra"].items():
            np.testing.assert_allclose(values, alone["spectra"][layer], atol=1e-4)


def test_fsdp_divides_the_weights_and_ddp_does_not(work):
    """Trainer's fsdp= on a CPU did plain DDP without a word, and every test of equality would pass."""
    for rank in (0, 1):
        assert found(work, "held", rank) == {"ddp": 1.0, "fsdp": pytest.approx(0.5, abs=0.02)}


def test_both_processes_find_the_same(work):
    for name in RUNS:
        assert found(work, name, 0) == found(work, name, 1)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_resumed_with_dropout_two_processes_are_equal_bit_for_bit(work, parallel):
    """The signal came to the second process alone; both stopped after the same step, and the first one saved."""
    whole, parts = f"whole {parallel} resumed", f"parts {parallel} resumed"
    assert [found(work, f"stop {parallel}", rank) for rank in (0, 1)] == [{"code": 143, "step": 3}] * 2
    assert found(work, parts) == found(work, whole)
    one, other = (work / name for name in (parts, whole))
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    first, second = checkpoints.latest(one), checkpoints.latest(other)
    assert set(first.tensors) == set(second.tensors)
    assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())


def test_each_process_drops_other_units(work):
    assert found(work, "seeds", 0)["seeds"] != found(work, "seeds", 1)["seeds"]


def test_a_number_that_is_not_finite_in_one_process_stops_both(work):
    errors = [found(work, "diverged", rank)["error"] for rank in (0, 1)]
    assert errors[0] == errors[1]
    assert "step 2 of bert-" in errors[0]
    assert "the loss is not finite" in errors[0]
    assert not list((work / "diverged").glob("ckpt-*"))


def test_only_the_first_process_writes(work):
    """Every open for writing, rename, folder and removal below `work`, as Python's audit hooks saw them."""
    assert found(work, "written", 1)["paths"] == []
    assert len(found(work, "written", 0)["paths"]) > 20


def test_without_torchrun_there_is_one(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # some clusters set it for all jobs
    monkeypatch.delenv("RANK", raising=False)
    with processes() as here:
        assert (here.rank, here.size, here.first) == (0, 1, True)
        assert here.any(True)
        assert not here.any(False)


def command(folder: Path, tmp_path: Path, *more: object) -> list[str]:
    places = ["--data", folder, "--runs", tmp_path / "runs", "--results", tmp_path / "records"]
    fields = ["--task", "stsb", "--model", folder / "bert", "--examples", 12, "--batch", 4, "--rank", 4]
    return [*TORCHRUN, "-m", "lm_experiments", "finetune", *map(str, [*places, *fields, *more])]


@pytest.mark.slow  # two more starts of torchrun
def test_the_command_under_torchrun_stops_at_once_and_goes_on(folder, tmp_path):
    """SIGTERM to torchrun, as schedulers send it: both leave, the run is saved; the same command ends it."""
    long = ["--steps", 300, "--every", 300, "--save-every", 50]
    with (tmp_path / "output").open("w") as output:
        started = subprocess.Popen(command(folder, tmp_path, *long), env=environment(), stderr=output, stdout=output)
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("runs/*/ckpt-50")):
            assert time.monotonic() < deadline, (tmp_path / "output").read_text()[-2000:]
            time.sleep(0.02)
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) != 0
    (place,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir() and path.name != "records")
    assert 50 <= checkpoints.latest(place).step < 300
    assert not list(tmp_path.glob("records/*.json"))
    done = subprocess.run(command(folder, tmp_path, *long), capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("✓ 1 of 1") == 1
    assert done.stdout.count("pearson") == 1
    (record,) = (tmp_path / "records").glob("*.json")
    content = json.loads(record.read_text())
    assert content["where"]["processes"] == 2
    assert len(content["found"]["losses"]) == 300


@pytest.mark.slow
def test_a_refusal_in_the_first_process_ends_all(folder, tmp_path):
    """Here only that one sees the foreign file; the other would wait for it for ever."""
    what = spec(folder, task="stsb", length=128, every=50, lr=1e-3, head_lr=1e-3, scale=1e-3, steps=5)
    (tmp_path / "runs" / what.key).mkdir(parents=True)
    (tmp_path / "runs" / what.key / "theirs.txt").write_text("theirs")
    call = command(folder, tmp_path, "--steps", 5)
    done = subprocess.run(call, capture_output=True, text=True, env=environment(), timeout=100)
    assert done.returncode != 0
    assert "which is no run of ours: take a new or empty folder" in " ".join(done.stderr.split())
