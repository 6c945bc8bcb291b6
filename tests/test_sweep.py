"""Sweeps: the same numbers wherever the cells run, finished cells kept, and nothing left running.

SLURM itself cannot run here: its jobs are tested without it ("jobs"), and its executor by what it is told.
"""

import builtins
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from sims import fingerprint
from sims.fingerprint import described, sources
from sims.sweep import in_process, workers

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Cell:
    seed: int
    scale: float = 1.0
    calls: Path | None = None
    error: str = ""


GRID = [Cell(2), Cell(0), Cell(1), Cell(0)]  # not in order of anything, and one twice


def spectrum(cell):
    """Singular values of a seeded matrix; each call leaves a file in cell.calls."""
    if cell.calls:
        (cell.calls / f"{cell.seed} {time.time_ns()}").touch()
    if cell.error:
        raise getattr(builtins, cell.error, np.linalg.LinAlgError)("no luck")
    matrix = cell.scale * np.random.default_rng([cell.seed, 40]).standard_normal((40, 40))
    return {"values": np.linalg.svd(matrix, compute_uv=False), "trace": np.trace(matrix), "seed": np.array(cell.seed)}


def slow_from_three_on(cell):
    if cell.calls:
        (cell.calls / f"{cell.seed}").touch()
    time.sleep(60 if cell.seed >= 3 else 0)
    return {"seed": np.array(cell.seed)}


def threads_and_terminal(cell):
    import torch

    terminal = os.environ["TTY_COMPATIBLE"]
    blas = max(pool["num_threads"] for pool in threadpool_info())
    return {"threads": np.array([blas, torch.get_num_threads()]), "terminal": np.array(terminal)}


def bits(results):
    return [{name: (array.dtype, array.shape, array.tobytes()) for name, array in found.items()} for found in results]


def calls(folder):
    return sorted(int(path.name.split()[0]) for path in folder.iterdir())


@pytest.fixture
def counted(tmp_path):
    (tmp_path / "calls").mkdir()
    return [replace(cell, calls=tmp_path / "calls") for cell in GRID]


@pytest.fixture
def scheduler():
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster:
        yield cluster.scheduler_address


@pytest.mark.parametrize("where", ["1", "2", "dask", "jobs", "tcp"])
def test_numbers_are_the_same_to_the_last_bit_wherever_the_cells_run(where, counted, tmp_path, request):
    where = request.getfixturevalue("scheduler") if where == "tcp" else where
    with workers(where, tmp_path / "cells") as sweep:
        computed = sweep(spectrum, counted)
        found = sweep(spectrum, counted)
    assert calls(tmp_path / "calls") == [0, 1, 2]  # a cell that stands twice in the grid runs once, and never again
    assert {path.suffix for path in (tmp_path / "cells").iterdir()} == {".npz"}
    expected = [{name: np.asarray(array) for name, array in one.items()} for one in in_process(spectrum, GRID)]
    assert bits(computed) == bits(found) == bits(expected)


def test_a_sweep_that_was_interrupted_goes_on_and_fresh_begins_anew(counted, tmp_path):
    with workers("1", tmp_path / "cells") as sweep:
        sweep(spectrum, counted[:2])
    with workers("1", tmp_path / "cells") as sweep:
        sweep(spectrum, counted)
        assert calls(tmp_path / "calls") == [0, 1, 2]
        sweep(spectrum, [replace(cell, scale=1.01) for cell in counted[:1]])  # another cell
        assert calls(tmp_path / "calls") == [0, 1, 2, 2]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    with workers("1", tmp_path / "cells", fresh=True) as sweep:
        sweep(spectrum, counted)
    assert calls(tmp_path / "calls") == [0, 0, 1, 1, 2, 2, 2]
    overwritten = [path for path, written in kept.items() if path.stat().st_mtime_ns > written]
    assert (len(kept), len(overwritten)) == (4, 3)


def test_nothing_is_kept_without_a_folder_and_nothing_starts_without_a_cell(counted, tmp_path):
    with workers("1") as sweep:
        sweep(spectrum, counted)
        sweep(spectrum, counted)
    assert calls(tmp_path / "calls") == [0, 0, 1, 1, 2, 2]
    for where in ("2", "dask", "jobs", "tcp://127.0.0.1:9"):
        with workers(where, tmp_path / "cells") as sweep:
            assert sweep(spectrum, []) == []
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize("spoil", ["empty", "half", "other bytes", "flipped", "no archive", "pickle", "another cell's"])
def test_a_file_that_is_not_whole_or_not_ours_is_computed_again(spoil, counted, tmp_path):
    with workers("1", tmp_path / "cells") as sweep:
        first, other = sweep(spectrum, counted[:1]), sweep(spectrum, counted[1:2])
        assert bits(first) != bits(other)
        by_age = sorted((tmp_path / "cells").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        content = by_age[0].read_bytes()
        middle = content.index(first[0]["values"].tobytes()) + 5
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        np.save(tmp_path / "array.npy", np.zeros(3))
        spoiled = {
            "empty": b"",
            "half": content[: len(content) // 2],
            "other bytes": b"foreign",
            "flipped": flipped,
            "no archive": (tmp_path / "array.npy").read_bytes(),
            "pickle": pickle.dumps(first),
            "another cell's": by_age[1].read_bytes(),
        }
        by_age[0].write_bytes(spoiled[spoil])
        assert bits(sweep(spectrum, counted[:1])) == bits(first)
        assert bits(sweep(spectrum, counted[:1])) == bits(first)
    assert calls(tmp_path / "calls") == [0, 2, 2]


def test_a_failing_cell_names_itself_keeps_its_kind_and_the_others(tmp_path):
    kinds = [(ValueError, "ValueError"), (OSError, "FileNotFoundError"), (FloatingPointError, "FloatingPointError")]
    kinds += [(ArithmeticError, "ZeroDivisionError"), (ValueError, "LinAlgError"), (RuntimeError, "KeyError")]
    with workers("2", tmp_path / "cells") as sweep:
        for seed, (kind, name) in enumerate(kinds):
            grid = [Cell(seed), Cell(100 + seed), Cell(seed, error=name), *(Cell(seed, scale=i) for i in range(2, 40))]
            with pytest.raises(kind, match=rf"spectrum of Cell\(seed={seed}, .*'{name}'\): .*no luck") as raised:
                sweep(spectrum, grid)
            assert type(raised.value) is type(raised.value.__cause__) is kind
            assert "in spectrum\n" in raised.value.__cause__.__notes__[0]
            kept = [described(cell) for cell in grid if _is_kept(cell, tmp_path / "cells")]
            assert kept[:2] == [described(Cell(seed)), described(Cell(100 + seed))]
            assert described(grid[2]) not in kept
        assert bits(sweep(spectrum, [Cell(0)])) == bits(sweep(spectrum, [Cell(0)]))  # the pool still works


def napping(cell):
    if cell.error:
        raise ValueError("no luck")
    time.sleep(0.2)
    (cell.calls / f"{cell.seed}").touch()
    return {"seed": np.array(cell.seed)}


@pytest.mark.parametrize("where", ["1", "2"])
def test_after_an_error_no_new_cell_begins(where, tmp_path):
    grid = [Cell(seed, calls=tmp_path, error="ValueError" if seed == 1 else "") for seed in range(30)]
    with workers(where) as sweep, pytest.raises(ValueError, match="napping of Cell"):
        sweep(napping, grid)
    assert calls(tmp_path)[0] == 0
    assert len(calls(tmp_path)) < 10


def _is_kept(cell, folder):
    return any(str(np.load(path)["cell"]).endswith(f": {described(cell)}") for path in folder.iterdir())


def killed(cell):
    if cell.error:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"seed": np.array(cell.seed)}


def test_a_lost_worker_is_an_error_that_says_so_and_the_next_sweep_has_new_ones(tmp_path):
    with workers("2", tmp_path) as sweep:
        with pytest.raises(OSError, match=r"killed of Cell\(seed=1.*the worker was lost .* out of memory\?"):
            sweep(killed, [Cell(1, error="killed")])
        assert sweep(killed, [Cell(7)])[0]["seed"] == 7


PROGRAM = """
import sys
from pathlib import Path
from sims.sweep import workers
from tests.test_sweep import Cell, slow_from_three_on
with workers(sys.argv[1], Path(sys.argv[2])) as sweep:
    sweep(slow_from_three_on, [Cell(seed, calls=Path(sys.argv[3])) for seed in range(40)])
"""


@pytest.mark.parametrize(
    ("where", "sent"),
    [
        ("1", signal.SIGINT),
        ("2", signal.SIGINT),
        ("2", signal.SIGKILL),
        ("dask", signal.SIGINT),
        ("jobs", signal.SIGINT),
    ],
)
def test_after_ctrl_c_finished_cells_are_there_and_nobody_works_on(where, sent, tmp_path):
    """Ctrl-C goes to the whole process group; a parent that is killed cannot clean up, and its pool ends itself."""
    (tmp_path / "calls").mkdir()
    command = [sys.executable, "-c", PROGRAM, where, tmp_path / "cells", tmp_path / "calls"]
    parent = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True, text=True)
    wait(lambda: kept(tmp_path) == 3 and (tmp_path / "calls" / "3").exists(), 120)
    if sent == signal.SIGKILL:
        parent.kill()
    else:
        os.killpg(parent.pid, sent)
    begun = time.monotonic()
    errors = parent.communicate(timeout=30)[1]
    assert parent.returncode == -sent
    assert time.monotonic() - begun < 20  # a cell that runs takes 60
    if where == "jobs":  # submitit's own processes tell of their interruption, too
        assert "KeyboardInterrupt" in errors
    elif sent == signal.SIGINT:
        assert errors.strip().splitlines()[-1] == "KeyboardInterrupt"
        assert errors.count("Traceback") == 1 or where == "dask"  # whose worker may tell of the task that it lost
    wait(lambda: not group_exists(parent.pid), 20)
    assert kept(tmp_path) == 3
    assert max(calls(tmp_path / "calls")) <= 3 + (os.cpu_count() or 1) + 1  # the rest never began


def kept(folder):
    return len(list(folder.glob("cells/*.npz")))


def group_exists(pid):
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_each_worker_has_one_thread_for_blas_and_torch_and_draws_no_bars(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "2")
    with workers("2", tmp_path) as sweep:
        (found,) = sweep(threads_and_terminal, [Cell(0)])
    assert found["threads"].tolist() == [1, 1]
    assert str(found["terminal"]) == "0"
    assert os.environ["OMP_NUM_THREADS"] == "2"  # what the caller had
    with workers("1") as sweep, threadpool_limits(2):  # as on a Dask worker that was started without these variables
        (found,) = sweep(threads_and_terminal, [Cell(0)])
    assert found["threads"].tolist() == [1, 1]


def test_the_bar_is_for_terminals(counted, capfd, monkeypatch):
    with workers("1") as sweep:
        sweep(spectrum, counted)
        assert capfd.readouterr() == ("", "")
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        sweep(spectrum, counted)
    assert "spectrum" in capfd.readouterr().err


def test_cells_of_workers_with_other_sources_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("sims.sweep.sources", lambda module: "of another commit")
    with workers("2", tmp_path / "cells") as sweep, pytest.warns(UserWarning, match="other sources or versions"):
        (found,) = sweep(spectrum, GRID[:1])
    assert found["seed"] == GRID[0].seed
    assert not (tmp_path / "cells").exists()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone whose cell lies in a package of its own; as old as the hills."""
    files = {
        "theory/problem.py": "",
        "sims/losses.py": "",
        "lowdim/narrow.py": "",
        "sweptpackage/__init__.py": "",
        "sweptpackage/cells.py": "from sweptpackage import near\ndef cell(config):\n    from . import late",
        "sweptpackage/near.py": "from .far import x",
        "sweptpackage/far.py": "x = 1",
        "sweptpackage/late.py": "",
        "sweptpackage/stranger.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        edit(tmp_path / name, text)
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import_module("sweptpackage.cells")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("sweptpackage")]:
        del sys.modules[name]
    sources.cache_clear()


def edit(path, text, when=1e9):
    path.write_text(text)
    os.utime(path, (when, when))


def fresh_sources():
    sources.cache_clear()
    return sources("sweptpackage.cells")


def test_a_changed_source_that_a_cell_may_run_changes_its_key_and_no_other_does(clone, monkeypatch):
    before = fresh_sources()
    parts = ["theory/problem", "sims/losses", "lowdim/narrow"]
    parts += [f"sweptpackage/{name}" for name in ("__init__", "cells", "near", "far", "late")]
    for name in parts:
        path = clone / f"{name}.py"
        text = path.read_text()
        edit(path, text + "\n# changed")
        assert fresh_sources() != before, name
        edit(path, text)
        assert fresh_sources() == before
        edit(path, text, time.time() + 60)  # edited after this process began: nobody knows what it runs
        assert fresh_sources() != before
        edit(path, text)
    edit(clone / "sweptpackage" / "stranger.py", "changed = True")
    assert fresh_sources() == before
    monkeypatch.setattr(fingerprint.metadata, "version", lambda name: "0")
    assert fresh_sources() != before


@dataclass(frozen=True)
class Nested:
    inner: Cell = Cell(1)
    numbers: tuple[float, ...] = (0.1, 2.0)
    hidden: int = field(default=0, repr=False)
    path: Path | None = None


def test_a_changed_value_changes_the_text_of_a_cell(tmp_path):
    (tmp_path / "data").write_text("1")
    cells = [Nested(), Nested(inner=Cell(2)), Nested(numbers=(0.1,)), Nested(hidden=1), Nested(path=tmp_path / "data")]
    cells += [Nested(numbers=(0.1, 2)), Nested(numbers=(np.nextafter(0.1, 1).item(), 2.0)), Cell(1), Cell(True)]
    texts = [described(cell) for cell in cells]
    (tmp_path / "data").write_text("2")
    texts.append(described(cells[4]))
    assert len(set(texts)) == len(texts)
    assert described(Nested()) == described(Nested())


@dataclass
class Changing:
    seed: int = 0


NOT_PLAIN = [[1], {"a": 1}, np.zeros(2000), object(), Changing(), (1, {2}), np.random.default_rng(0)]


@pytest.mark.parametrize("value", NOT_PLAIN, ids=lambda value: type(value).__name__)
def test_cells_that_cannot_be_told_apart_are_refused(value):
    with workers("1") as sweep, pytest.raises(ValueError, match=r"take numbers, strings|make the dataclass frozen"):
        sweep(spectrum, [Nested(path=value)])


def test_cells_that_workers_cannot_import_are_refused():
    def local(cell):
        return {}

    with workers("1") as sweep:
        for cell in (local, lambda cell: {}, np.random.default_rng(0).random):
            with pytest.raises(ValueError, match="define it at the top of a module"):
                sweep(cell, [Cell(0)])


def ragged(cell):
    return {"ragged": np.array([[1], [1, 2]], dtype=object)}


def test_results_are_arrays_of_numbers():
    with workers("1") as sweep, pytest.raises(RuntimeError, match="ragged: a result holds arrays of numbers"):
        sweep(ragged, [Cell(0)])


@pytest.mark.parametrize("where", ["0", "-1", "2.5", "", "ray", "tcp://", "tcp://nowhere", "SLURM"])
def test_unknown_workers_are_refused_before_any_work(where):
    with pytest.raises(ValueError, match=f"no workers are called '{where}'; there are .*\"dask\""), workers(where):
        raise AssertionError


@pytest.mark.parametrize("where", ["dask", "tcp://127.0.0.1:8786", "slurm", "jobs"])
def test_a_missing_extra_says_how_to_install_it(where, monkeypatch):
    monkeypatch.setattr("sims.engines.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lowdim\[cluster\]'.*\.\[cluster\]"), workers(where):
        raise AssertionError


def test_slurm_gets_one_array_and_one_core_for_each_cell(counted, tmp_path, monkeypatch):
    told = SimpleNamespace(arrays=[], parameters={}, cluster=None)

    class Executor:
        def __init__(self, folder, cluster):
            told.cluster, self.folder = cluster, folder
            assert folder.parent == tmp_path / "cells"  # which the nodes share

        def update_parameters(self, **parameters):
            told.parameters |= parameters

        def batch(self):
            told.arrays.append(0)
            return nullcontext()

        def submit(self, task, *job):
            told.arrays[-1] += 1
            task, *job = pickle.loads(pickle.dumps((task, *job)))
            return SimpleNamespace(done=lambda: True, result=lambda: task(*job))

    monkeypatch.setattr("submitit.AutoExecutor", Executor)
    with workers("slurm", tmp_path / "cells") as sweep:
        found = sweep(spectrum, counted)
    assert [int(one["seed"]) for one in found] == [2, 0, 1, 0]
    assert (told.cluster, told.arrays) == ("slurm", [3])
    assert told.parameters == {"name": "lowdim", "timeout_min": 1440, "cpus_per_task": 1}
    assert kept(tmp_path) == len(list((tmp_path / "cells").iterdir())) == 3  # job scripts and logs are gone


def test_without_slurm_the_way_to_try_it_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with workers("slurm", tmp_path) as sweep, pytest.raises(OSError, match=r'srun.*take "jobs" to try it out'):
        sweep(spectrum, GRID)
    assert list(tmp_path.iterdir()) == []


def test_no_scheduler_at_the_address_is_an_error_of_the_system(tmp_path, monkeypatch):
    monkeypatch.setattr("sims.engines.CONNECT", 1)
    with workers("tcp://127.0.0.1:9", tmp_path) as sweep, pytest.raises(OSError, match=r"127\.0\.0\.1:9"):
        sweep(spectrum, GRID)
