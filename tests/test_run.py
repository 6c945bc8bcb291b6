"""The set-up script: what it installs, when it does not, and what it says when it cannot."""

import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The script as a module whose clone is an empty folder, and whose commands are recorded instead of run."""
    loader = SourceFileLoader("run", str(ROOT / "run"))
    module = module_from_spec(spec_from_loader("run", loader))
    loader.exec_module(module)
    for name in ("ROOT", "VENV", "STAMP", "UNFINISHED", "PYTHON", "CONSTRAINTS"):
        monkeypatch.setattr(module, name, tmp_path / getattr(module, name).relative_to(ROOT))
    (tmp_path / "requirements").mkdir()
    module.CONSTRAINTS.write_text((ROOT / "requirements" / "constraints.txt").read_text())
    (tmp_path / "pyproject.toml").write_text("[project]")
    module.commands, module.fails = [], lambda command: False

    def record(command, **_):
        command = [str(part) for part in command]
        module.commands.append(command)
        if "venv" in command:
            module.PYTHON.parent.mkdir(parents=True, exist_ok=True)
            module.PYTHON.touch()
        return subprocess.CompletedProcess(command, int(module.fails(command)), b"")

    monkeypatch.setattr(module.subprocess, "run", record)
    monkeypatch.setattr(module.sys, "argv", ["run", "figures", "--quick"])
    monkeypatch.setattr(module.os, "chdir", lambda _: None)
    monkeypatch.setattr(module.os, "execv", lambda python, arguments: module.commands.append(["exec", *arguments]))
    monkeypatch.setattr(module, "has_gpu", lambda: False)
    return module


def installs(run):
    return [command for command in run.commands if "install" in command]


def test_first_run_makes_the_environment_with_cpu_torch_and_then_starts(run):
    run.main()
    venv, torch, rest, started = run.commands
    assert venv[1:4] == ["-m", "venv", "--clear"]
    assert "--no-deps" in torch
    assert torch[-1] == "torch==2.13.0+cpu"
    assert run.TORCH_CPU in torch
    assert rest[-2:] == ["-e", f"{run.ROOT}[research]"]
    assert all(str(run.CONSTRAINTS) in command for command in (torch, rest))
    assert started == ["exec", str(run.PYTHON), "-m", "figures", "--quick"]
    assert not run.UNFINISHED.exists()


def test_second_run_installs_nothing_and_a_changed_pin_installs_again(run):
    run.main()
    run.commands.clear()
    run.main()
    assert [command[0] for command in run.commands] == ["exec"]
    run.CONSTRAINTS.write_text(run.CONSTRAINTS.read_text() + "new==1\n")
    run.main()
    assert len(installs(run)) == 2
    assert not [command for command in run.commands if "venv" in command]  # the environment is reused


def test_another_command_adds_its_extra_and_keeps_the_first(run, monkeypatch):
    run.main()
    monkeypatch.setattr(run.sys, "argv", ["run", "test"])
    run.main()
    assert set(json.loads(run.STAMP.read_text())) == {"research", "test", "torch"}


def test_a_gpu_gets_the_default_build_and_nobody_else_does(run, monkeypatch):
    monkeypatch.setattr(run.sys, "argv", ["run", "--torch", "cuda", "figures"])
    run.main()
    assert not [command for command in installs(run) if "+cpu" in command[-1]]
    monkeypatch.setattr(run.sys, "argv", ["run", "figures"])
    monkeypatch.setattr(run, "has_gpu", lambda: True)
    run.commands.clear()
    run.main()
    assert [command[0] for command in run.commands] == ["exec"]  # auto is cuda there, and it is installed


def test_another_flavour_of_torch_replaces_the_first(run, monkeypatch):
    run.main()
    run.commands.clear()
    monkeypatch.setattr(run.sys, "argv", ["run", "--torch", "cuda", "figures"])
    run.main()
    torch, _ = installs(run)
    assert torch[-2:] == ["--force-reinstall", "torch==2.13.0"]
    run.commands.clear()
    monkeypatch.setattr(run.sys, "argv", ["run", "--torch", "cpu", "figures"])
    run.main()
    assert installs(run)[0][-2:] == ["--force-reinstall", "torch==2.13.0+cpu"]


def test_a_failed_install_keeps_what_was_there(run, monkeypatch):
    run.main()
    monkeypatch.setattr(run.sys, "argv", ["run", "notebooks"])
    run.fails = lambda command: "install" in command
    with pytest.raises(SystemExit):
        run.main()
    run.commands.clear()
    monkeypatch.setattr(run.sys, "argv", ["run", "figures"])
    run.main()
    assert [command[0] for command in run.commands] == ["exec"]


def test_an_environment_of_the_users_own_is_reused_and_never_cleared(run):
    run.PYTHON.parent.mkdir(parents=True)
    run.PYTHON.touch()
    run.fails = lambda command: "-e" in command
    for _ in range(2):
        with pytest.raises(SystemExit, match="pip could not install"):
            run.main()
    assert not [command for command in run.commands if "venv" in command]
    run.PYTHON.unlink()
    with pytest.raises(SystemExit, match=r"not ours to delete.\n .* Move it away"):
        run.main()
    assert not [command for command in run.commands if "venv" in command]


def test_an_environment_that_was_left_half_made_is_made_anew(run):
    run.fails = lambda command: "venv" in command
    with pytest.raises(SystemExit, match="python -m venv failed"):
        run.main()
    run.commands.clear()
    run.fails = lambda command: False
    run.main()
    assert run.commands[0][1:4] == ["-m", "venv", "--clear"]
    assert not run.UNFINISHED.exists()


def test_an_interrupted_install_goes_on(run):
    run.fails = lambda command: "-e" in command
    with pytest.raises(
        SystemExit, match=r"pip could not install .*\n.* Is the network up\? .* With conda: ./run --no-venv"
    ):
        run.main()
    assert not run.STAMP.exists()
    run.commands.clear()
    run.fails = lambda command: False
    run.main()
    assert len(installs(run)) == 2


def test_no_cpu_torch_in_reach_does_not_end_in_three_gigabytes(run):
    run.fails = lambda command: "+cpu" in command[-1]
    with pytest.raises(SystemExit, match=r"No CPU build of torch==2.13.0 in reach\? ./run --torch cuda"):
        run.main()
    assert len(installs(run)) == 1


def test_old_python_and_missing_venv_say_what_to_do(run, monkeypatch):
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"cannot make virtual environments.\n .* apt install python3-venv"):
        run.main()
    monkeypatch.setattr(run.sys, "version_info", (3, 9))
    with pytest.raises(SystemExit, match=r"Python 3.11 or newer is needed, this is .*\n .* python3.12 run"):
        run.main()


def test_no_venv_uses_this_python_and_installs_nothing(run, monkeypatch):
    monkeypatch.setattr(run.sys, "argv", ["run", "--no-venv", "test", "-k", "rho"])
    run.main()
    assert run.commands == [["exec", sys.executable, *run.COMMANDS["test"][1], "-k", "rho"]]


def test_of_two_runs_at_once_one_waits(tmp_path):
    program = f"""
import sys, time
from importlib.machinery import SourceFileLoader
run = SourceFileLoader("run", {str(ROOT / "run")!r}).load_module()
run.ROOT = run.Path({str(tmp_path)!r})
with run.alone():
    begun = time.time()
    time.sleep(0.4)
    print(begun, time.time())
"""
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(2)]
    first, second = sorted(tuple(map(float, process.communicate()[0].split())) for process in both)
    assert first[1] <= second[0]


def test_help_lists_the_commands_and_an_unknown_one_is_refused():
    shown = subprocess.run([sys.executable, ROOT / "run", "--help"], capture_output=True, text=True)
    assert all(f"\n  {name} " in shown.stdout for name in ("figures", "test", "bench", "assets", "notebooks"))
    shown = subprocess.run([sys.executable, ROOT / "run", "figure"], capture_output=True, text=True)
    assert shown.returncode == 2
    assert "invalid choice: 'figure'" in shown.stderr


def test_run_needs_the_standard_library_only():
    import ast

    nodes = [
        node
        for node in ast.walk(ast.parse((ROOT / "run").read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
