"""Named experiments, their records and the command: what is run, what is not run again, and what a person sees."""

import fcntl
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import types
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lm_experiments import __main__ as command
from lm_experiments import assets, experiments, records, run_folder
from lm_experiments import finetune as finetune_module
from lm_experiments.__main__ import main
from lm_experiments.comparison import fitted, interval, scores
from lm_experiments.experiments import BELOW, EXPERIMENTS, GRIDS, MINILM, TUNING, Experiment, chosen, grid
from lm_experiments.finetune import Diverged
from lm_experiments.options import Finetuning
from lm_experiments.registry import recorded
from lm_experiments.runs import FineTune
from lm_experiments.setting import Setting
from lm_experiments.summary import label, summary
from lm_experiments.tasks.text import TASKS
from tests.tiny_models import HERE, made, run, spec

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("LOWDIM_DATA", ROOT.parent / "shared" / "data"))
sizes = pytest.mark.parametrize("size", ["small", "full"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("tiny"))


def made_up(what: FineTune, score: float = 0.5) -> records.Record:
    return records.Record(what, {"scores": [{"step": what.steps, TASKS[what.task].metric: score}]}, {})


# ---- experiments


@sizes
def test_every_experiment_is_of_different_runs_each_with_a_file_of_its_own(size):
    for name, experiment in EXPERIMENTS.items():
        cells = experiment.cells(size)
        assert len({cell.key for cell in cells}) == len(set(cells)) == len(cells) > 1, name
    everything = {cell for experiment in EXPERIMENTS.values() for cell in experiment.cells(size)}
    assert len({cell.key for cell in everything}) == len(everything)


def test_models_of_the_hub_are_of_one_revision():
    names = {cell.model for experiment in EXPERIMENTS.values() for cell in experiment.cells("full")}
    assert all(re.fullmatch(r"[\w/.-]+@[0-9a-f]{40}", name) for name in names), names


@sizes
def test_learning_rates_are_chosen_on_examples_and_seeds_that_no_later_run_has(size):
    """Of the validation examples each part has a half (tests/test_finetune.py: they share none)."""
    for name, experiment in EXPERIMENTS.items():
        cells = experiment.cells(size)
        tuning = not experiment.tuned
        assert {cell.part for cell in cells} == {"tuning" if tuning else "report"}, name
        assert all((cell.seed in TUNING) == tuning for cell in cells)
        assert tuning or all(cell.seed < min(TUNING) for cell in cells)


@sizes
def test_for_every_run_a_learning_rate_was_tried_and_methods_are_tuned_alike(size):
    """On a run that differs from what it is chosen for in nothing but task kind, seed, examples' half and the like."""
    tried = {(cell.model, cell.task, cell.method) for cell in EXPERIMENTS["rates"].cells(size)}
    for name, experiment in EXPERIMENTS.items():
        for cell in experiment.cells(size) if experiment.tuned else ():
            method = "compressed" if cell.method == "random" else cell.method
            assert (cell.model, "stsb" if cell.task == "stsb" else "sst2", method) in tried, (name, cell)
    assert {len(rates) for rates in GRIDS.values()} == {5}


def rated(best: dict[str, float], size="small") -> dict[FineTune, records.Record]:
    """All runs that choose rates, the best of each method as said."""
    cells = [cell for name in ("rates", "epsilon", "epsilon-classes") for cell in EXPERIMENTS[name].cells(size)]
    return {cell: made_up(cell, 0.9 if best[cell.method] == cell.lr else 0.1 * cell.lr) for cell in cells}


@sizes
@given(best=st.fixed_dictionaries({method: st.sampled_from(rates) for method, rates in GRIDS.items()}))
def test_the_best_rate_is_chosen(size, best):
    found = rated(best, size)
    for name, experiment in EXPERIMENTS.items():
        for cell in experiment.cells(size)[:12] if experiment.tuned else ():
            method = "compressed" if cell.method == "random" else cell.method
            assert chosen(cell, found.get) == replace(cell, lr=best[method]), name


def test_the_best_rate_is_so_in_the_mean_over_its_seeds_and_none_that_diverged():
    cell = EXPERIMENTS["fewshot"].cells("small")[0]
    found = rated({method: rates[1] for method, rates in GRIDS.items()})
    like = ("minilm", "stsb", cell.method, cell.eps)
    tries = {s: r for s, r in found.items() if (s.model, s.task, s.method, s.eps) == like}
    lucky, steady, broken = GRIDS[cell.method][2:]
    for tried in tries:
        by_seed = {lucky: (1.0, 0.0, 0.0), steady: (0.92, 0.91, 0.91), broken: (1.0, 1.0, 1.0)}.get(
            tried.lr, (0.5,) * 3
        )
        found[tried] = made_up(tried, by_seed[TUNING.index(tried.seed)])
    assert chosen(cell, found.get).lr == broken
    one = next(tried for tried in tries if tried.lr == broken)
    found[one] = replace(found[one], found={"diverged": "step 3 of it: the loss is not finite"})
    assert chosen(cell, found.get).lr == steady


def test_a_missing_rate_is_named_with_the_command_that_finds_it():
    found = rated({method: rates[1] for method, rates in GRIDS.items()})
    cell = EXPERIMENTS["fewshot"].cells("small")[0]
    gone = next(tried for tried in found if (tried.task, tried.method, tried.lr) == ("stsb", "lora", 3e-4))
    del found[gone]
    with pytest.raises(ValueError, match=r"no record of lr = 0\.0003 for lora, stsb: python -m lm_experiments rates"):
        chosen(cell, found.get)


def test_what_a_figure_reads_is_every_run_or_an_error_that_says_what_to_run(tmp_path):
    for cell, record in rated({method: rates[0] for method, rates in GRIDS.items()}).items():
        records.write(cell, record.found, {}, tmp_path)
    with pytest.raises(ValueError, match=r"16 of 16 runs of 'fewshot' have no record yet: python -m .* fewshot"):
        recorded("fewshot", "small", 2, tmp_path)
    cells = [chosen(c, lambda s: records.read(s, tmp_path)) for c in EXPERIMENTS["fewshot"].cells("small")]
    for cell in cells:
        records.write(cell, made_up(cell).found, {}, tmp_path)
    assert [record.spec for record in recorded("fewshot", "small", 2, tmp_path)] == [c for c in cells if c.seed < 2]
    with pytest.raises(ValueError, match=r"seeds = 11: 'fewshot' has 10; take as many at most"):
        recorded("fewshot", "small", 11, tmp_path)


BEST = {"compressed": "1e-2", "narrow": "3e-3", "wide": "3e-4", "lora": "1e-3"}


def test_a_run_of_your_own_starts_at_the_rate_and_epsilon_that_recorded_runs_found_best():
    own = Finetuning().run
    assert (own.method, own.eps) == ("compressed", BELOW)
    assert own.lr == chosen(replace(MINILM, eps=BELOW)).lr


@pytest.mark.parametrize("method", BEST)
def test_rates_in_the_help_are_those_that_recorded_runs_found_best(capsys, monkeypatch, method):
    monkeypatch.setenv("COLUMNS", "80")
    assert chosen(replace(MINILM, method=method)).lr == float(BEST[method])
    assert f"{method} {BEST[method]}" in screen(capsys, "finetune", "--help")
    if method == "lora":
        assert chosen(replace(MINILM, method=method, task="sst2")).lr == 3e-4


def test_rates_that_fall_with_the_rank_are_the_chosen_one_at_rank_8():
    found, experiment = rated({method: rates[1] for method, rates in GRIDS.items()}), EXPERIMENTS["rank-rates"]
    for cell in experiment.cells("small"):
        assert experiment.rated(cell, chosen, found.get) == replace(cell, lr=GRIDS["compressed"][1] * 8 / cell.rank)
    plain = EXPERIMENTS["rank"]
    assert all(plain.rated(cell, chosen, found.get) == chosen(cell, found.get) for cell in plain.cells("small"))


def test_a_grid_is_every_combination_a_seed_at_a_time():
    cells = grid(FineTune(), 2, rank=(2, 4), method=("lora", "narrow"))
    found = [(cell.rank, cell.method) for cell in cells]
    assert found == 2 * [(2, "lora"), (2, "narrow"), (4, "lora"), (4, "narrow")]
    assert [cell.seed for cell in cells] == [0] * 4 + [1] * 4


# ---- runs and their records


OTHER = {bool: lambda v: not v, int: lambda v: v + 2, float: lambda v: v / 2, type(None): lambda v: 0.5}
WORDS = {"model": "smollm2", "task": "sst2", "method": "lora"}
WORDS |= {"layers": "attention", "precision": "bf16", "part": "tuning"}


@pytest.mark.parametrize("name", [field.name for field in fields(FineTune)])
def test_every_field_makes_another_run_with_another_record(tmp_path, name):
    value = getattr(FineTune(), name)
    other = replace(FineTune(), **{name: WORDS[name] if isinstance(value, str) else OTHER[type(value)](value)})
    assert other.key != FineTune().key
    records.write(other, {"scores": []}, {}, tmp_path)
    assert records.read(FineTune(), tmp_path) is None
    assert records.read(other, tmp_path).spec == other


def test_keys_do_not_depend_on_the_process():
    program = "from lm_experiments.runs import FineTune; print(FineTune(lr=0.5, rank=2, watch=True).key)"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment).stdout
    assert printed.strip() == FineTune(lr=0.5, rank=2, watch=True).key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "sst3"}, "task = 'sst3': take one of stsb"),
        ({"method": "qlora"}, "method = 'qlora': take one of compressed"),
        ({"rank": 3}, "rank = 3 is odd: half of it comes from the gradient; take 4"),
        ({"steps": 0}, "steps = 0: take 1 or more"),
        ({"examples": -1}, "examples = -1: take 0 or more"),
        ({"seed": -1}, "seed = -1"),
        ({"length": 4}, "length = 4: take 8 or more"),
        ({"lr": float("nan")}, "lr = nan: take a finite number > 0"),
        ({"scale": 0.0}, "scale = 0.0"),
        ({"gamma": -1.0}, "gamma = -1.0"),
        ({"decay": 2.0}, "decay = 2.0"),
        ({"method": "full", "watch": True}, "updates of chosen layers only are watched; take watch = False"),
    ],
)
def test_impossible_runs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        FineTune(**changes)


FINITE = st.floats(-1e300, 1e300, allow_subnormal=False)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | FINITE | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def assert_rounded(found, original):
    """Floats to five significant digits; all else exactly."""
    assert type(found) is type(original)
    if isinstance(original, dict):
        assert list(found) == list(original)
        for key, value in original.items():
            assert_rounded(found[key], value)
    elif isinstance(original, list):
        for one, other in zip(found, original, strict=True):
            assert_rounded(one, other)
    elif isinstance(original, float):
        assert abs(found - original) <= 0.5000001e-4 * abs(original)
        assert len(re.sub(r"e.*|[-.]", "", repr(found)).strip("0")) <= 5
    else:
        assert found == original


@given(found=st.dictionaries(st.text(max_size=5), TREES, max_size=4))
def test_records_come_back_to_five_digits(tmp_path_factory, found):
    place, what = tmp_path_factory.mktemp("records"), FineTune(lr=0.123)
    assert records.read(what, place) is None
    where = {"threads": 1}
    written = records.write(what, found, where, place)
    record = records.read(what, place)
    assert (record.spec, record.where) == (what, where)
    assert_rounded(record.found, found)
    assert list(place.iterdir()) == [written]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_has_no_record(tmp_path, value):
    with pytest.raises(ValueError, match=f"{value} in a record"):
        records.write(FineTune(), {"scores": [{"step": 0, "pearson": value}]}, {}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_record_gives_its_score_after_any_evaluated_step():
    entries = [{"step": 0, "pearson": 0.1}, {"step": 50, "pearson": 0.7}, {"step": 200, "pearson": 0.6}]
    record = records.Record(FineTune(), {"scores": entries}, {})
    assert (record.score("pearson"), record.score("pearson", 50), record.score("pearson", 0)) == (0.6, 0.7, 0.1)


@pytest.mark.parametrize("damage", ["other", "field", "half", "empty", "list", "bytes"])
def test_a_record_that_is_not_this_runs_is_refused_by_name(tmp_path, damage):
    what = FineTune(lr=0.123)
    place = records.write(what, made_up(what).found, {}, tmp_path)
    content = place.read_text()
    place.write_bytes(
        {
            "other": content.replace("0.123", "0.5").encode(),
            "field": content.replace('"centre":true,', "").encode(),  # of a version that did not know it
            "half": content[: len(content) // 2].encode(),
            "empty": b"",
            "list": b"[]",
            "bytes": b"\xff\xfe{}",
        }[damage]
    )
    with pytest.raises(ValueError, match=rf"{re.escape(place.name)} is .*[dD]elete it and run it again"):
        records.read(what, tmp_path)
    if damage in ("other", "field"):
        with pytest.raises(ValueError, match="differing in " + {"other": "lr:", "field": "centre:"}[damage]):
            records.read(what, tmp_path)


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_half_written_record_is_impossible(tmp_path, monkeypatch, moment):
    """Whatever fails: the record is what it was before, and nothing lies beside it."""
    what = FineTune()
    before = records.write(what, made_up(what, 0.25).found, {}, tmp_path).read_bytes()

    def failing(*_):
        raise OSError(28, "No space left on device")

    target = {"write": (io.BufferedWriter, "write"), "fsync": (os, "fsync"), "replace": (Path, "replace")}[moment]
    if moment == "write":
        monkeypatch.setattr(assets, "write_atomically", None)  # a C type's method cannot be replaced: fill the disk
        limited(tmp_path, what)
    else:
        monkeypatch.setattr(*target, failing)
        with pytest.raises(OSError, match="No space left"):
            records.write(what, made_up(what, 0.75).found, {}, tmp_path)
        monkeypatch.undo()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def limited(place: Path, what: FineTune) -> None:
    """Write a record of 100 kB where files may have 10 kB."""
    program = f"""
import resource, signal
from pathlib import Path
from lm_experiments import records
from lm_experiments.runs import FineTune
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
records.write(FineTune(**{what.described()!r}), {{"losses": [0.12345] * 15_000}}, {{}}, Path({str(place)!r}))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert "File too large" in done.stderr, done.stderr


# ---- comparison


def test_what_is_fitted_is_the_loss_over_runs_and_their_last_steps():
    losses = [[9.0, 9.0, 1.0, 2.0], [9.0, 9.0, 3.0, 6.0]]
    runs = [records.Record(FineTune(seed=seed), {"losses": its}, {}) for seed, its in enumerate(losses)]
    assert fitted(runs, 2) == 3.0
    assert fitted(runs[:1], 1) == 2.0


def test_scores_are_grouped_by_field_and_intervals_are_students():
    runs = [FineTune(seed=seed, rank=rank) for seed in (1, 0) for rank in (2, 4)]
    grouped = scores([made_up(what, what.rank + what.seed / 8) for what in runs], "rank")
    assert {key: list(values) for key, values in grouped.items()} == {(2,): [2, 2.125], (4,): [4, 4.125]}
    low = interval(np.array([1.0, 2.0, 3.0]))
    assert (low.mean, low.half) == (2.0, pytest.approx(4.302653 / 3**0.5, rel=1e-6))  # t(2, .975), tables
    with pytest.raises(ValueError, match="two at least"):
        interval(np.array([1.0]))


# ---- the command


@pytest.fixture
def tiny(folder, tmp_path, monkeypatch):
    """An experiment of four tiny runs, and its command line."""
    cells = grid(spec(folder, steps=2, every=2, held_out=8), 2, method=("lora", "narrow"))
    monkeypatch.setitem(EXPERIMENTS, "tiny", Experiment("Is it small?", lambda size: cells, tuned=False))
    monkeypatch.setenv("COLUMNS", "80")
    places = {"data": folder, "runs": tmp_path / "runs", "results": tmp_path / "records"}
    line = ["tiny", *(str(part) for name, value in places.items() for part in (f"--{name}", value))]
    return types.SimpleNamespace(cells=cells, line=line, results=places["results"], runs=places["runs"])


def test_what_is_recorded_is_not_run_again(tiny, capsys, monkeypatch):
    assert main(tiny.line) == 0
    first = capsys.readouterr()
    assert first.err.count("✓") == 4
    assert "✓ 1 of 4: bert-stsb-lora-r4-n12-s0, pearson " in first.err
    kept = {path.name: path.read_bytes() for path in tiny.results.iterdir()}
    assert set(kept) == {f"{cell.key}.json" for cell in tiny.cells}
    monkeypatch.setattr(command, "_one", None)  # what runs one
    shutil.rmtree(tiny.runs)
    assert main(tiny.line) == 0
    assert not tiny.runs.exists()
    second = capsys.readouterr()
    assert second.err.count("✓") == 0
    assert second.out == first.out
    assert {path.name: path.read_bytes() for path in tiny.results.iterdir()} == kept
    record = json.loads(next(iter(kept.values())))
    assert set(record["where"]) == {"git", "versions", "hardware", "threads", "processes"}
    assert record["where"]["processes"] == 1
    assert len(record["found"]["losses"]) == 2
    one = re.search(r"lora\s+pearson\s+(\S+)\s+(\S+)\s+2", second.out)
    found = [records.read(cell, tiny.results).score("pearson") for cell in tiny.cells if cell.method == "lora"]
    assert one.groups() == (f"{np.mean(found):.4f}", f"{np.std(found, ddof=1):.4f}")


def test_only_some_seeds(tiny):
    assert main([*tiny.line, "--seeds", "1"]) == 0
    assert {records.read(cell, tiny.results) is not None for cell in tiny.cells if cell.seed == 0} == {True}
    assert {records.read(cell, tiny.results) for cell in tiny.cells if cell.seed == 1} == {None}


def test_what_another_process_is_at_is_left_to_it(tiny, capsys):
    busy = tiny.cells[1]
    tiny.runs.mkdir()
    with (tiny.runs / f"{busy.key}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(tiny.line) == 0
        assert [records.read(cell, tiny.results) is None for cell in tiny.cells] == [False, True, False, False]
    assert main(tiny.line) == 0  # that one died: its run is taken over
    assert records.read(busy, tiny.results)
    assert capsys.readouterr().err.count("✓") == 4


def test_what_another_process_has_just_finished_is_not_run_again(tiny, monkeypatch):
    """It wrote the record, and let go of the lock, between our look at the one and our hold of the other."""
    honest, cells = command._held, iter(tiny.cells)

    @contextmanager
    def late(lock, here):
        records.write(next(cells), {"scores": [{"step": 2, "pearson": 0.5}]}, {}, tiny.results)
        with honest(lock, here) as free:
            yield free

    monkeypatch.setattr(command, "_held", late)
    monkeypatch.setattr(command, "_one", None)
    assert main(tiny.line) == 0
    assert all(records.read(cell, tiny.results).score("pearson") == 0.5 for cell in tiny.cells)


@pytest.mark.slow  # 10 s, most of it for importing torch; the test above is the quick variant
def test_two_commands_at_once_never_run_the_same(tiny, folder, tmp_path):
    """Both start together, and say which runs they begin; forks, since a start of torch takes far longer than these."""
    program = f"""
import os, sys
from lm_experiments import __main__ as command
from lm_experiments import finetune as loop
from lm_experiments.experiments import EXPERIMENTS, Experiment, grid
from tests.tiny_models import Path, spec
cells = grid(spec(Path({str(folder)!r}), steps=2, every=2, held_out=8), 6, method=("lora", "narrow"))
EXPERIMENTS["tiny"] = Experiment("", lambda size: cells, tuned=False)
honest = loop.finetune
def said(cell, *rest, **more):
    os.write(1, (cell.key + "\\n").encode())
    return honest(cell, *rest, **more)
loop.finetune = said
children = []
for _ in range(2):
    if not (child := os.fork()):
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            sys.stdout = open(os.devnull, "w")
            code = command.main({tiny.line!r})
        finally:
            os._exit(code)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(call, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = grid(tiny.cells[0], 6, method=("lora", "narrow"))
    assert sorted(done.stdout.split()) == sorted(cell.key for cell in cells)
    assert all(records.read(cell, tiny.results) for cell in cells)


def test_a_run_that_fails_is_told_and_the_others_go_on(tiny, capsys, monkeypatch):
    honest = command._one

    def failing(cell, *rest):
        if cell == tiny.cells[1]:
            raise Diverged("step 1 of it: the loss is not finite")
        return honest(cell, *rest)

    monkeypatch.setattr(command, "_one", failing)
    records.write(tiny.cells[2], {"scores": []}, {}, tiny.results)
    records.path(tiny.cells[2], tiny.results).write_text("half a rec")
    assert main(tiny.line) == 1
    shown = capsys.readouterr()
    told = " ".join(shown.err.split())
    assert "✗ step 1 of it: the loss is not finite" in told
    assert "is no whole record" in told
    assert told.count("✓") == 2
    assert "pearson" in shown.out


def test_a_run_that_diverged_is_recorded_as_such_and_not_run_again(tiny, capsys, monkeypatch):
    loop = finetune_module.finetune

    def diverging(spec, *rest, **more):
        if spec == tiny.cells[1]:
            run_folder.claim(tiny.runs / spec.key, spec.described())
            raise Diverged("step 1 of it: the loss is not finite")
        return loop(spec, *rest, **more)

    monkeypatch.setattr(finetune_module, "finetune", diverging)
    assert main(tiny.line) == 1
    record = records.read(tiny.cells[1], tiny.results)
    assert record.found == {"diverged": "step 1 of it: the loss is not finite"}
    assert record.score("pearson") == record.score("pearson", 0) == -math.inf
    assert record.where["versions"]["torch"] == torch.__version__
    assert "diverged" in capsys.readouterr().out
    monkeypatch.setattr(command, "_one", None)
    assert main(tiny.line) == 0


def test_a_signal_ends_all_runs_and_the_same_command_goes_on(tiny, capsys):
    honest = Setting.answers

    def signalled(self, *rest):  # in the last evaluation of the first run
        signalled.calls += 1
        if signalled.calls == 2:
            os.kill(os.getpid(), 15)
        return honest(self, *rest)

    signalled.calls = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Setting, "answers", signalled)
        assert main(tiny.line) == 143
    assert not tiny.results.exists()
    assert main(tiny.line) == 0
    assert all(records.read(cell, tiny.results) for cell in tiny.cells)
    assert "stopped by a signal; the same call goes on from here" in capsys.readouterr().err


def test_tensorboard_that_is_not_installed_is_named_before_any_run(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit, match="pip install tensorboard"):
        main([*tiny.line, "--tensorboard", "--seeds", "1"])
    assert not tiny.runs.exists()


def test_tensorboard_gets_every_loss_and_lies_outside_the_runs_own_folder(tiny, monkeypatch):
    """A stand-in for torch.utils.tensorboard, whose package is 130 MB; claim() refuses folders with foreign files."""
    written = []

    class SummaryWriter:
        def __init__(self, place):
            Path(place).mkdir(parents=True)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            written.append("closed")

        def add_scalar(self, *what):
            written.append(what)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    assert main([*tiny.line, "--tensorboard", "--seeds", "1"]) == 0
    losses = [records.read(cell, tiny.results).found["losses"] for cell in tiny.cells[:2]]
    assert [(name, step) for name, _, step in written[:2]] == [("loss", 1), ("loss", 2)]
    np.testing.assert_allclose([value for _, value, _ in written[:2]], losses[0], rtol=1e-4)
    assert written[2] == "closed"


def screen(capsys, *arguments: object) -> str:
    """What a wrong command shows, without its frame, and its exit code if that is not 0."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    text = f"{left.value.code if isinstance(left.value.code, str) else ''}{shown.out}{shown.err}"
    assert isinstance(left.value.code, str) or (left.value.code != 0) == ("--help" not in arguments)
    assert max(map(len, text.splitlines())) <= 80 or isinstance(left.value.code, str)
    return " ".join(re.sub("[│─╭╮╰╯]", " ", text).split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["fewshots"],
            "no experiment is called 'fewshots'; did you mean 'fewshot'? There are: finetune, pretrain",
        ),
        (["finetun"], "did you mean 'finetune'?"),
        (["pretrain", "--optimizer", "adam"], "invalid choice 'adam'"),
        (["pretrain", "--state", "8bit"], "state = '8bit' with optimizer = 'adamw': take fp32"),
        (["pretrain", "--help"], "tiny, 3m, 9m, 60m, 130m, 350m, 1b or 7b, from scratch"),
        (["memory", "--rank", "0"], "rank = 0: take 1 or more"),
        (["finetune", "--rank", "3"], "rank = 3 is odd: half of it comes from the gradient; take 4"),
        (["finetune", "--rnk", "3"], "Perhaps you meant: --rank INT"),
        (["finetune", "--method", "lorra"], "invalid choice 'lorra'"),
        (["finetune", "--lr", "fast"], "--lr"),
        (["finetune", "--task", "sts"], "task = 'sts': take one of stsb, sst2, rte"),
        (["finetune", "--save-every", "0"], "save_every = 0: take 1 or more"),
        (["finetune", "--size", "full"], "Unrecognized options: --size"),
        (["rank", "--seeds", "0"], "seeds = 0: take 1 or more"),
        (["rank", "--lr", "1"], "Unrecognized options: --lr"),
        (["finetune", "--help"], "stsb, sst2, rte, mrpc, qnli, mnli, cola, qqp, boolq or imdb."),
        (["fewshot", "--help"], "Does Deep LoRA beat LoRA on STS-B, the more the fewer examples there are?"),
        (["rates", "--help"], "--seeds INT Only runs whose seed is below this"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_command_teaches(capsys, monkeypatch, arguments, said):
    monkeypatch.setenv("COLUMNS", "80")
    assert said in screen(capsys, *arguments)


def test_without_rates_an_experiment_says_what_to_run_first(capsys, tmp_path):
    said = screen(capsys, "forms", "--results", tmp_path, "--runs", tmp_path / "runs")
    assert said == "no record of lr = 0.0003 for compressed, stsb: python -m lm_experiments rates first"
    assert not (tmp_path / "runs").exists()
    said = screen(capsys, "epsilon-glue", "--size", "full", "--results", tmp_path)
    assert said.endswith("for compressed, sst2: python -m lm_experiments epsilon-classes --size full first")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_experiment_and_its_question(capsys, arguments):
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for name, experiment in EXPERIMENTS.items():
        assert f"{name} {experiment.question}" in " ".join(shown.split())


def test_nothing_is_told_to_the_hub_unless_asked(monkeypatch):
    for asked, set_to in ((None, "1"), ("0", "0")):
        monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
        if asked:
            monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", asked)
        assert main(["--help"]) == 0
        assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == set_to


def test_help_does_not_wait_for_torch():
    program = "import sys; from lm_experiments.__main__ import main; main(['--help']); print(sorted(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert "'rich.table'" in done.stdout
    assert "'torch'" not in done.stdout


@sizes
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_table_is_wider_than_a_terminal(name, size):
    """Nor any line about a run: the longest are those of BERT."""
    best = rated({method: rates[0] for method, rates in GRIDS.items()}, size)
    cells = EXPERIMENTS[name].cells(size)
    cells = [chosen(cell, best.get) for cell in cells] if EXPERIMENTS[name].tuned else list(cells)
    page = io.StringIO()
    Console(file=page, width=80).print(summary([made_up(cell, -0.1234567) for cell in cells]))
    lines = page.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert "…" not in page.getvalue()
    kinds = {replace(cell, seed=0) for cell in cells}
    rows = [line for line in lines if "-0.1235" in line]
    assert len(rows) == len(kinds) == len(set(rows))  # each kind in one line, and told from the others
    assert all(len(f"✓ 100 of 100: {label(cell)}") <= 64 for cell in cells)


def test_a_table_of_nothing_says_so():
    page = io.StringIO()
    Console(file=page).print(summary([]))
    assert page.getvalue().strip() == "no run is recorded yet"


# ---- the committed records


def again(record: records.Record) -> tuple[Setting, Path]:
    """Its setting, from here; skips where model or data are not."""
    what = record.spec
    if record.where["versions"]["torch"] != torch.__version__:
        pytest.skip(f"recorded with torch {record.where['versions']['torch']}, whose dropout may draw otherwise")
    for source in (DATA / "glue", DATA / "sentence_cls", None):
        try:
            setting = Setting(what, source, HERE.device)
        except (ConnectionError, FileNotFoundError, ValueError):
            continue
        if setting.fingerprint == record.found["data"]:
            return setting, source
    pytest.skip(f"no model {what.model}, or no {what.task} as it was recorded: ./run assets, LOWDIM_DATA=FOLDER")


def committed(method: str) -> list[Path]:
    return sorted(experiments.records.RESULTS.glob(f"*-{method}-*.json"))[:1]


@pytest.mark.slow
@pytest.mark.parametrize("path", [*committed("lora"), *committed("compressed")], ids=lambda path: path.stem)
def test_committed_records_are_what_their_specs_give(tmp_path, path):
    content = json.loads(path.read_text())
    record = records.read(FineTune(**content["spec"]))
    assert record is not None
    assert records.path(record.spec) == path
    _, source = again(record)
    short = replace(record.spec, steps=3, held_out=16, watch=False)  # what is held out changes no loss
    losses = run(short, tmp_path, source)["losses"]
    np.testing.assert_allclose(losses, record.found["losses"][:3], rtol=1e-3)
    assert len(record.found["losses"]) == record.spec.steps
    assert [entry["step"] for entry in record.found["scores"]] == list(record.spec.evaluations)
