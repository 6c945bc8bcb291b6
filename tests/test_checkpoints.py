"""Checkpoints: what is saved comes back bit for bit, and no kill, full disk or flipped bit loses what was saved before.

tests/toy_trainer.py is the run that is killed."""

import errno
import json
import logging
import math
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from lm_experiments.checkpoints import Log, claim, flatten, latest, random_state, restore_random_state, save, unflatten
from lm_experiments.interruption import Interruption

ROOT = Path(__file__).parents[1]
TOY = ROOT / "tests" / "toy_trainer.py"
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint32, torch.bool]


@st.composite
def tensors(draw) -> torch.Tensor:
    """Any bits of any dtype, axes in any order, or with gaps, or overlapping; 0-dim and empty ones, too."""
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    count = math.prod(shape)
    content = bytearray(draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize)))
    if dtype == torch.bool:
        content = bytearray(byte % 2 for byte in content)
    flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
    tensor = flat.reshape(shape).permute(draw(st.permutations(range(len(shape)))))
    if draw(st.booleans()) and tensor.ndim:
        return tensor[::2] if draw(st.booleans()) else tensor.expand(2, *tensor.shape)
    return nn.Parameter(tensor) if dtype.is_floating_point and draw(st.booleans()) else tensor


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
arrays = st.sampled_from([np.uint32, np.float64, np.int8]).flatmap(
    lambda kind: st.sampled_from([np.ones((2, 3), kind).T, np.array(3, kind), kind(7), np.empty(0, kind)])
)
keys = st.one_of(
    st.text(max_size=3),
    st.sampled_from(["$tensor", "a/b", "a"]),
    st.integers(0, 3),
    st.tuples(scalars),
    st.just(np.int8(4)),
)
trees = st.recursive(
    st.one_of(scalars, tensors(), arrays),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
        st.lists(st.integers(0, 5), max_size=4).map(Counter),
    ),
    max_leaves=8,
)


def bits(value) -> object:
    """What two values share if they are the same: types, order of keys, every bit, and the layout that is kept."""
    if isinstance(value, torch.Tensor):
        order = sorted(range(value.ndim), key=value.stride, reverse=True)
        dense = value.permute(order).is_contiguous()
        kept = value if dense else value.contiguous()  # what overlaps itself or has gaps
        layout = kept.stride() if min(value.shape, default=2) > 1 else ()
        fresh = value.detach().clone(memory_format=torch.contiguous_format)  # contiguous() keeps odd strides of size 1
        raw = fresh.flatten().view(torch.uint8) if value.numel() else torch.empty(0)
        return "tensor", value.dtype, tuple(value.shape), tuple(layout), raw.numpy().tobytes()
    if isinstance(value, (np.ndarray, np.generic)):
        return type(value), value.dtype, np.shape(value), value.tobytes()
    if isinstance(value, dict):
        return type(value), [(bits(key), bits(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [bits(item) for item in value]
    return type(value), struct.pack(">d", value) if type(value) is float else value


@pytest.fixture
def run(tmp_path) -> Path:
    claim(tmp_path / "run", {"seed": 0})
    return tmp_path / "run"


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    claim(folder, {"seed": 0})
    return folder


def save_tree(folder: Path, step: int, tree: object) -> Path:
    return save(folder, step, *flatten(tree))


def latest_tree(folder: Path) -> object:
    found = latest(folder)
    return unflatten(found.tensors, found.state)


# ---- what is saved comes back


@given(trees)
def test_any_tree_comes_back_bit_for_bit_through_the_disk(shared_run, tree):
    for path in shared_run.glob("ckpt-*"):
        shutil.rmtree(path)
    save_tree(shared_run, 3, tree)
    assert latest(shared_run).step == 3
    assert bits(latest_tree(shared_run)) == bits(tree)


def test_one_tensor_in_two_places_is_stored_once_and_stays_one(run):
    weight = torch.randn(4, 3)
    save_tree(
        run, 1, {"embedding": weight, "head": weight, "part": weight[:2], "other": weight.clone(), "turned": weight.T}
    )
    assert set(latest(run).tensors) == {"embedding", "part", "other", "turned"}
    tree = latest_tree(run)
    assert tree["embedding"] is tree["head"]
    tree["head"].zero_()
    assert torch.equal(tree["part"], weight[:2])
    assert torch.equal(tree["turned"], weight.T)


def test_the_layout_in_memory_stays_so_that_products_round_alike(run):
    basis = torch.linalg.qr(torch.randn(6, 4)).Q  # LAPACK's: columns first
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    save_tree(run, 1, {"basis": basis, "images": images, "gaps": images[:, :, ::2]})
    tree = latest_tree(run)
    assert basis.stride() == tree["basis"].stride() == (1, 6)
    assert tree["images"].is_contiguous(memory_format=torch.channels_last)
    assert tree["gaps"].is_contiguous()
    assert all(torch.equal(tree[name], tensor) for name, tensor in {"basis": basis, "images": images}.items())


def test_every_kind_of_float_keeps_its_bits(run):
    nans = [struct.unpack(">d", bytes.fromhex(bits))[0] for bits in ("fff8000000000000", "7ff8000000000abc")]
    floats = [*nans, math.inf, -math.inf, -0.0, 5e-324, 0.1, 1.7976931348623157e308]
    save_tree(run, 1, floats)
    assert struct.pack(">8d", *latest_tree(run)) == struct.pack(">8d", *floats)


def test_two_paths_of_one_spelling_are_two_tensors(run):
    given = {"a/b": torch.zeros(1), "a": {"b": torch.ones(1), 1: torch.full((1,), 2.0), "1": torch.full((1,), 3.0)}}
    save_tree(run, 1, given)
    tree = latest_tree(run)
    assert [float(tree["a/b"]), *map(float, tree["a"].values())] == [0, 1, 2, 3]


def test_empty_tensors_share_no_memory_so_two_stay_two(run):
    save_tree(run, 1, [torch.empty(0), torch.empty(0)])
    assert len({id(tensor) for tensor in latest_tree(run)}) == 2


def test_shared_and_strided_tensors_may_be_saved_without_flatten(run):
    weight = torch.arange(12.0).reshape(3, 4)
    given = {"whole": weight, "again": weight, "row": weight[1], "turned": weight.T, "wide": weight[:1].expand(5, 4)}
    save(run, 1, given, {})
    assert all(torch.equal(latest(run).tensors[name], tensor) for name, tensor in given.items())


def test_loaded_tensors_are_aligned_and_their_own(run):
    save(run, 1, {"odd": torch.ones(3, dtype=torch.int8), "even": torch.ones(5), "scalar": torch.tensor(2.0)}, {})
    loaded = latest(run).tensors
    assert all(tensor.data_ptr() % 64 == 0 for tensor in loaded.values())  # as torch makes them: products round alike
    for tensor in loaded.values():
        tensor.zero_()
    assert float(latest(run).tensors["scalar"]) == 2


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "value",
    [
        lambda: 0,
        {1, 2},
        b"bytes",
        np.array(["text"]),
        np.array([object()]),
        torch.eye(2).to_sparse(),
        torch.empty(2, device="meta"),
        torch.ones(2, dtype=torch.complex128),
        torch.ones(2).as_subclass(Subclass),
        torch.Size([1]),
    ],
    ids=lambda value: type(value).__name__ + str(getattr(value, "dtype", "")),
)
def test_what_cannot_be_kept_is_refused_by_its_path(value):
    with pytest.raises(ValueError, match="optimizer/groups/1/odd"):
        flatten({"optimizer": {"groups": [0, {"odd": value}]}})


@pytest.mark.parametrize("value", [(1,), math.nan, {1: 2}, np.float64(1), torch.ones(1)], ids=repr)
def test_a_state_that_json_would_change_is_refused_by_its_path(run, value):
    with pytest.raises(ValueError, match=r"state/data/0"):
        save(run, 1, {}, {"data": [value]})
    assert not list(run.glob("ckpt-*"))


SCHEDULES = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20, cycle_momentum=False),
    "multi step": lambda o: lr_scheduler.MultiStepLR(o, [2, 4, 4, 5]),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
}
OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.03),
    "tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.03), amsgrad=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9),
    "SGD before momentum": lambda p: torch.optim.SGD(p, lr=0.03),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.03),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.03),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_optimizer_and_schedule_goes_on_as_if_nothing_had_happened(run, optimizer, schedule):
    def parts():
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 1))
        descent = OPTIMIZERS[optimizer](model.parameters())
        return {"model": model, "optimizer": descent, "schedule": SCHEDULES[schedule](descent)}

    def train(parts, steps):
        for _ in range(steps):
            loss = parts["model"](torch.randn(8, 3)).square().mean()
            parts["optimizer"].zero_grad()
            loss.backward()
            parts["optimizer"].step()
            parts["schedule"].step()

    torch.manual_seed(0)
    whole = parts()
    train(whole, 3)
    save_tree(run, 3, {name: part.state_dict() for name, part in whole.items()} | {"random": random_state()})
    train(whole, 4)
    torch.manual_seed(1)
    resumed, tree = parts(), latest_tree(run)
    for name, part in resumed.items():
        part.load_state_dict(tree[name])
    restore_random_state(tree["random"])
    train(resumed, 4)
    for name, part in resumed.items():
        assert bits(dict(part.state_dict())) == bits(dict(whole[name].state_dict()))


def test_every_random_generator_goes_on_where_it_was(run):
    given = {"batches": torch.Generator().manual_seed(5), "noise": np.random.default_rng(6)}
    given["old"] = np.random.Generator(np.random.MT19937(7))  # its state holds an array

    def draw():
        own = [torch.rand(3, generator=given["batches"]).tolist(), given["noise"].random(3), given["old"].random(2)]
        return [*map(list, own), torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.randn()]

    draw(), random.gauss(0, 1), random.gauss(0, 1)  # an odd number, so that both keep a spare Gaussian
    save_tree(run, 1, random_state(**given))
    expected = draw()
    draw()
    restore_random_state(latest_tree(run), **given)
    assert draw() == expected
    with pytest.raises(ValueError, match="give the same"):
        restore_random_state(latest_tree(run))


def test_a_run_of_another_number_of_gpus_goes_on_with_a_word_about_it(caplog):
    state = random_state()
    expected = torch.rand(3).tolist()
    restore_random_state(state | {"cuda": [state["torch"]] * (torch.cuda.device_count() + 1)})
    assert torch.rand(3).tolist() == expected
    assert "CUDA devices then" in caplog.text


# ---- damage


FILES = ("tensors.safetensors", "state.json", "MANIFEST.json")


@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_changed_byte_anywhere_is_seen_and_the_checkpoint_before_it_is_taken(shared_run, file, place, change):
    for path in shared_run.glob("ckpt-*"):
        shutil.rmtree(path)
    for step in (1, 2):
        save_tree(shared_run, step, {"weight": torch.full((3,), float(step)), "step": step})
    damaged = shared_run / "ckpt-2" / file
    content = bytearray(damaged.read_bytes())
    content[int(place * len(content))] ^= change
    damaged.write_bytes(content)
    assert latest(shared_run).step == 1
    assert latest_tree(shared_run)["weight"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_damage_is_named_in_the_log_and_made_good_by_the_next_save(run, caplog, file, damage):
    for step in (1, 2):
        save(run, step, {"weight": torch.ones(step)}, {})
    path = run / "ckpt-2" / file
    path.write_bytes(path.read_bytes()[: -3 if damage == "cut" else 0])
    if damage == "gone":
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert latest(run).step == 1
    assert "skipped" in caplog.text
    assert "ckpt-2" in caplog.text
    assert file in caplog.text
    save(run, 2, {"weight": torch.ones(7)}, {})
    assert len(latest(run).tensors["weight"]) == 7
    assert {path.name for path in run.glob("ckpt-*")} == {"ckpt-1", "ckpt-2"}


def test_damaged_later_checkpoints_never_push_out_a_whole_one(run):
    for step in (4, 8):
        save(run, step, {}, {})
    (run / "ckpt-8" / "state.json").write_text("{")
    for step in (5, 6):  # the run went on from 4 and was told to stop early
        save(run, step, {}, {})
        assert latest(run).step == step
    assert {path.name for path in run.glob("ckpt-*")} == {"ckpt-5", "ckpt-6"}


def test_when_all_are_damaged_nothing_is_begun_again_silently(run):
    save(run, 1, {}, {})
    (run / "ckpt-1" / "MANIFEST.json").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint is whole.*MANIFEST.*to begin again"):
        latest(run)


def test_a_renamed_checkpoint_is_not_taken_for_another_step(run):
    save(run, 1, {}, {})
    (run / "ckpt-1").rename(run / "ckpt-9")
    with pytest.raises(ValueError, match="ckpt-9"):
        latest(run)


def test_before_the_first_checkpoint_there_is_none(run, tmp_path):
    assert latest(run) is None
    assert latest(tmp_path / "nowhere") is None


# ---- saving


def test_the_newest_two_stay_and_time_does_not_run_backwards(run):
    for step in (9, 10, 11):  # 10 comes after 9, by number
        assert save(run, step, {}, {"step": step}) == run / f"ckpt-{step}"
    assert {path.name for path in run.glob("ckpt-*")} == {"ckpt-10", "ckpt-11"}
    save(run, 11, {}, {"step": 11})  # the same once more
    for step, state in ((11, {"step": 12}), (10, {})):
        with pytest.raises(ValueError, match="has a whole ckpt-11: go on from latest"):
            save(run, step, {}, state)
    assert latest(run).state == {"step": 11}
    assert {path.name for path in run.glob("ckpt-*")} == {"ckpt-10", "ckpt-11"}


@pytest.mark.parametrize("step", [-1, 1.0, True, "1"])
def test_a_step_is_a_count(run, step):
    with pytest.raises(ValueError, match="step = "):
        save(run, step, {}, {})


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "ckpt-1").mkdir()
    (tmp_path / "config.json").write_text("{}")
    for use in (lambda: claim(tmp_path, {}), lambda: save(tmp_path, 1, {}, {})):
        with pytest.raises(ValueError, match=r"take a new or empty folder|claim\(folder, config\) first"):
            use()
    (tmp_path / "manifest.json").write_text('{"kind": "app"}')
    for use in (lambda: claim(tmp_path, {}), lambda: save(tmp_path, 1, {}, {})):
        with pytest.raises(ValueError, match="another program"):
            use()
    assert {path.name for path in tmp_path.iterdir()} == {"ckpt-1", "config.json", "manifest.json"}


def test_a_full_disk_at_any_moment_leaves_what_was_saved(run, monkeypatch):
    save(run, 1, {"weight": torch.ones(3)}, {})
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    real, left = os.fsync, 0

    def fsync(opened):
        nonlocal left
        left -= 1
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(opened)

    monkeypatch.setattr(os, "fsync", fsync)
    for moment in range(1, 100):
        left = moment
        try:
            save(run, 2, {"weight": torch.zeros(3)}, {})
        except OSError as error:
            if (run / "ckpt-2").exists():  # renamed, but not yet known to be on the disk
                break
            assert "ckpt-2 is not saved for sure" in error.__notes__[0]  # noqa: PT017 - some moments raise, the last does not
            assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert moment == 5  # tensors, state, manifest, the folder with them; then the one with the name
    monkeypatch.undo()
    assert latest(run).step == 2


@pytest.mark.parametrize("tensors", [{"weight": torch.ones(50_000)}, {}], ids=["in the tensors", "in the state"])
def test_a_file_that_the_disk_cannot_hold_leaves_what_was_saved(run, tensors):
    save(run, 1, {}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises((OSError, safetensors.SafetensorError)):
            save(run, 2, tensors, {"text": "" if tensors else "x" * 200_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in run.glob("ckpt-*")] == ["ckpt-1"]
    assert latest(run).step == 1


def test_everything_is_on_the_disk_before_it_has_its_name(run, monkeypatch):
    happened = []
    real = os.fsync, Path.rename

    def fsync(opened):
        here = {path.stat().st_ino: path.relative_to(run).as_posix() for path in (run, *run.rglob("*"))}
        happened.append(here[os.fstat(opened).st_ino].replace(f".tmp-{os.getpid()}", ".tmp"))
        real[0](opened)

    def rename(path, target):
        happened.append(f"rename {target.name}")
        return real[1](path, target)

    log = Log(run)
    log(2, loss=1.0)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    save(run, 2, {"weight": torch.ones(3)}, {})
    log.close()
    *files, folder, metrics, name, top = happened
    assert sorted(files[:2]) == ["ckpt-2.tmp/state.json", "ckpt-2.tmp/tensors.safetensors"]
    assert files[2:] == ["ckpt-2.tmp/MANIFEST.json"]
    assert [folder, metrics, name, top] == ["ckpt-2.tmp", "metrics.jsonl", "rename ckpt-2", "."]


def test_only_leftovers_of_dead_processes_are_cleared(run):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as alive:
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        names = [f"ckpt-5.tmp-{number}" for number in (alive.pid, dead.pid, os.getpid(), 10**30)]
        for name in (*names, "notes.tmp-1", "ckpt-5.tmp-x"):
            (run / name).mkdir()
            (run / name / "state.json").write_text("half")
        save(run, 6, {}, {})
        left = {path.name for path in run.glob("*.tmp-*")}
        alive.communicate(b"\n")
    assert left == {names[0], "notes.tmp-1", "ckpt-5.tmp-x"}


# ---- the folder


def test_the_same_config_goes_on_and_another_is_told_what_differs(tmp_path, caplog):
    config = {"lr": 1e-3, "seed": 3, "task": {"name": "stsb", "shots": (16, 64)}}
    begun = claim(tmp_path / "a" / "b", config)
    assert claim(tmp_path / "a" / "b", config) == begun == json.loads((tmp_path / "a/b/manifest.json").read_text())
    assert caplog.text == ""
    for changed, named in (
        ({"lr": 2e-3}, "lr: 0.001 there, 0.002 here"),
        ({"task": {"name": "rte", "shots": (16, 64)}}, "task.name: 'stsb' there, 'rte' here"),
        ({"wd": 0.1}, "wd: 'absent' there, 0.1 here"),
    ):
        with pytest.raises(ValueError, match=f"{named}.*Take another folder"):
            claim(tmp_path / "a" / "b", config | changed)
    (tmp_path / "a/b/config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged.*restore it"):
        claim(tmp_path / "a" / "b", config)
    with pytest.raises(ValueError, match="config/task/run"):
        claim(tmp_path / "c", {"task": {"run": lambda: 0}})
    assert not (tmp_path / "c").exists()


def test_the_manifest_says_what_ran_where(run, caplog):
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["seed"] == 0
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["threads"] == torch.get_num_threads()
    assert str(os.cpu_count()) in manifest["hardware"]["cpu"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert manifest["git"]["commit"] == (head.stdout.strip() or None)
    (run / "manifest.json").write_text(json.dumps(manifest | {"threads": 99}))
    claim(run, {"seed": 0})
    assert "threads: 99 there" in caplog.text


def test_a_resumed_log_is_that_of_a_run_that_was_never_killed(run):
    def write(log, steps):
        for step in steps:
            log(step, loss=1 / (step + 3))
            log(step, score=[step, None])
        log.close()

    write(Log(run), range(6))
    whole = (run / "metrics.jsonl").read_bytes()
    for step in range(6):
        write(Log(run, step - 1), range(step, 6))
        assert (run / "metrics.jsonl").read_bytes() == whole
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "lo')  # what a power cut leaves
    write(Log(run, 5), [])
    assert (run / "metrics.jsonl").read_bytes() == whole
    (run / "metrics.jsonl").write_bytes(whole.replace(b'{"step": 2, "l', b"\0" * 14))
    with pytest.raises(ValueError, match="line 5 is damaged"):
        Log(run, 5)
    write(Log(run), [])  # from the start: nothing is kept
    assert (run / "metrics.jsonl").read_bytes() == b""
    save(run, 1, {}, {})
    with pytest.raises(ValueError, match="give the step"):
        Log(run)


def test_a_log_refuses_what_a_resumed_run_could_not_read(run):
    log = Log(run)
    log(3, loss=1.0)
    with pytest.raises(ValueError, match="step = 2 after step 3"):
        log(2)
    with pytest.raises(ValueError, match="metrics/loss = nan"):
        log(4, loss=math.nan)
    log.close()
    assert (run / "metrics.jsonl").read_text() == '{"step": 3, "loss": 1.0}\n'


# ---- signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_a_flag_until_the_step_edge(number, code, capfd):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Interruption() as interrupted:
        assert not interrupted
        assert interrupted.exit_code == 0
        signal.raise_signal(number)
        assert interrupted
        assert interrupted.exit_code == code
        signal.raise_signal(signal.SIGTERM)  # as launchers do
        assert interrupted.exit_code == code
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert "saving at the end of this step" in capfd.readouterr().err


def test_the_second_ctrl_c_ends_at_once_and_an_ignored_one_stays_ignored():
    with Interruption():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interrupted:
            signal.raise_signal(signal.SIGINT)
            assert not interrupted
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# ---- kills


@pytest.fixture
def scratch():
    """In memory where there is such a folder: what survives a kill of the process, and the fsyncs, are the same."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def test_killed_at_every_file_event_a_run_ends_as_if_it_had_not_been(scratch):
    """ckpt-chaos kills it before each, after half of each file, with all that was not synced lost, or by SIGTERM."""
    done = subprocess.run(
        [sys.executable, TOY, "--everywhere", scratch], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    bad = [kill for kill in kills if kill["code"] or not kill["equal"] or kill["killed"] not in (137, 143, -15)]
    assert bad == []
    for kill in kills:
        whole = [int(name[5:]) for name in kill["there"] if name[5:].isdigit()]
        assert f"resumed from step {max(whole, default=0)}\n" in kill["output"]  # no finished work is done again
        assert not [name for name in kill["left"] if ".tmp-" in name]
    count = Counter(kill["mode"] for kill in kills)
    assert count["before"] == count["unsynced"] == count["term"] >= 20
    assert count["torn"] >= 10  # the three files of three checkpoints, config and manifest
    assert {kill["killed"] for kill in kills if kill["mode"] == "term"} == {143, -15}  # -15: before the training


@pytest.mark.slow
def test_ckpt_chaos_itself_has_no_complaint(tmp_path):
    """The same from outside: a new process for each kill and each resumed run."""
    command = [sys.executable, "-m", "ckpt_chaos", "run", "--work", str(tmp_path / "work"), "--max-points", "120"]
    command += ["--modes", "before,torn,term,unsynced", "--step-regex", r"resumed from step (\d+)"]
    command += ["--checkpoint-glob", "{out}/ckpt-*", "--fail-on", "HARD_FAIL,SILENT_DIVERGENCE,LOST_WORK"]
    command += ["--result-file", "{out}/final", "--", sys.executable, str(TOY), "{out}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
