"""Every figure computes, checks, draws and saves; a false one does not; and the command line teaches."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from figures import style
from figures.__main__ import main, make, names
from figures.claims import Claim, Refuted, hold
from figures.recorded import Recorded

ROOT = Path(__file__).parents[1]
NOT_RUN = {name for name in names() if issubclass(import_module(f"figures.{name}").Spec, Recorded)}
"""Of language models: their --full was not run, as the README says."""
each_figure = pytest.mark.parametrize("name", names())


@cache
def quick(name):
    figure = import_module(f"figures.{name}")
    return figure, figure.data(figure.Spec().quick())


def test_the_folder_is_the_registry_and_each_figure_has_falsified_data():
    assert {"completion", "factorization", "invariant_subspace", "movielens"} < set(names())
    assert names() == sorted(path.stem for path in (ROOT / "tests" / "falsified").glob("*.py"))


@each_figure
def test_claims_hold_on_the_quick_figure_and_all_are_bounded(name):
    figure, data = quick(name)
    claims = figure.check(data)
    hold(claims)
    assert all(claim.bound for claim in claims)


@each_figure
def test_figure_is_saved_as_png_pdf_and_json(name, tmp_path, monkeypatch):
    figure, data = quick(name)
    monkeypatch.setattr(figure, "data", lambda spec: data)
    claims = make(name, data.spec, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.{kind}" for kind in ("json", "pdf", "png")]
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert [claim["measured"] for claim in record["claims"]] == [float(claim.value) for claim in claims]
    assert record["spec"] == json.loads(json.dumps(asdict(data.spec), default=str))
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")


@each_figure
def test_axes_are_labelled_and_lettered_and_theory_is_told_apart(name):
    figure, data = quick(name)
    drawn = figure.draw(data)
    for letter, axis in zip("abcdefgh", drawn.axes, strict=False):
        assert axis.get_xlabel()
        assert axis.get_title(loc="left").startswith(f"({letter}) ")
        assert axis.lines
    assert all(axis.get_ylabel() for axis in drawn.axes[::3])
    assert drawn.axes[0].get_legend() or drawn.axes[1].get_legend() or drawn.legends


@each_figure
def test_a_false_figure_cannot_be_made(name, tmp_path, monkeypatch):
    figure, data = quick(name)
    variants = import_module(f"tests.falsified.{name}").falsified(data)
    assert variants
    for false in variants:
        monkeypatch.setattr(figure, "data", lambda spec, false=false: false)
        with pytest.raises(Refuted, match="not saved: its claims are refuted, or the run was too short for them"):
            make(name, data.spec, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_claim_of_nan_does_not_hold_and_bounds_are_named():
    assert not Claim("x", float("nan"), at_most=1).holds
    with pytest.raises(Refuted, match="too large: 2, claimed >= 0 and <= 1"):
        hold([Claim("fine", 0.5, at_most=1), Claim("too large", 2, at_most=1, at_least=0)])


def test_an_interrupted_figure_leaves_no_half_written_file(tmp_path, monkeypatch):
    figure, data = quick("invariant_subspace")
    monkeypatch.setattr(figure, "data", lambda spec: data)
    honest = style.rendered

    def interrupted(drawn, kind, about):
        if kind == "pdf":
            raise KeyboardInterrupt
        return honest(drawn, kind, about)

    monkeypatch.setattr(style, "rendered", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make("invariant_subspace", data.spec, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["invariant_subspace.png"]


@each_figure
def test_full_size_is_a_valid_spec_and_quick_is_smaller(name):
    spec = import_module(f"figures.{name}").Spec()
    assert type(spec.full()) is type(spec.quick()) is type(spec)
    assert spec.quick() != spec


@each_figure
@pytest.mark.parametrize("size", ["default", "full"])
def test_committed_record_is_of_the_figure_and_its_claims_held(name, size):
    """figures/records holds the numbers that the READMEs quote, from runs at default size and at the papers'."""
    figure = import_module(f"figures.{name}")
    spec = figure.Spec() if size == "default" else figure.Spec().full()
    path = ROOT / "figures" / "records" / ("" if size == "default" else size) / f"{name}.json"
    if size == "full" and name in NOT_RUN:
        assert not path.exists()
        return
    record = json.loads(path.read_text())
    assert record["spec"] == json.loads(json.dumps(asdict(spec), default=str))
    assert [claim["claim"] for claim in record["claims"]] == [claim.text for claim in figure.check(quick(name)[1])]
    for claim in record["claims"]:
        bounds = dict(re.findall(r"([<>]=) (\S+)", claim["bound"]))
        # bounds are recorded with three digits
        assert float(bounds.get(">=", "-inf")) * 0.99 <= claim["measured"] <= float(bounds.get("<=", "inf")) * 1.01


def test_readme_picture_was_drawn_from_the_default_spec():
    """The picture carries its Spec in its metadata."""
    from figures.invariant_subspace import Spec

    assert (
        json.dumps(asdict(Spec()), default=str).encode() in (ROOT / "figures" / "invariant_subspace.png").read_bytes()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["movielen"], "no figure is called 'movielen'; did you mean 'movielens'?"),
        (["completion", "factorisation"], "did you mean 'factorization'?"),
        (["--density", ".2"], "fields belong to one figure; name it"),
        (["all", "--density", ".2"], "fields belong to one figure; name it"),
        (["--quick", "movielen"], "did you mean 'movielens'?"),
        (["--quikc"], "--quikc: did you mean --quick?"),
        (["movielens", "--quick", "--record"], "--record keeps the default figure's numbers"),
        (["movielens", "--full", "--record", "--rank", "2"], "leave out --quick and fields"),
        (["--wrkers", "2"], "--wrkers 2: did you mean --workers?"),
        (["movielens", "--workers", "ray"], "--workers ray: no workers are called 'ray'; there are"),
    ],
)
def test_command_line_names_the_nearest_figure(arguments, message):
    with pytest.raises(SystemExit, match=message.replace("?", r"\?")):
        main(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["completion", "--network.density", "0"], "a finite lr > 0 and a density in (0, 1]"),
        (["completion", "--network.densty", "0"], "--network.density FLOAT"),
        (["completion", "--gammas", "-1"], "give one or more ratios >= 0"),
        (["completion", "--network.form", "spectral"], "take the original network of a completion problem"),
        (["factorization", "--every", "0"], "steps = 1200, every = 0: take steps >= every >= 1"),
        (["factorization", "--steps=-1"], "steps = -1, every = 12: take steps >= every >= 1"),
        (["factorization", "--problem.width", "10"], "take rank <= 4 or width > 10"),
        (["movielens", "--relative-step", "1"], "from 1 on training may diverge"),
        (["movielens", "--rank", "0"], "1 <= rank < half of the users and of the items"),
        (["movielens", "--depth", "1"], "take depth >= 2"),
        (["invariant_subspace", "--steps", "1"], "take steps >= 8"),
        (["factorization", "--problem.decay", "0.1"], "this figure is of plain gradient descent; take 0"),
        (["movielens", "--rank", "ten"], "invalid"),
    ],
)
def test_bad_fields_are_refused_before_any_work(arguments, message, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code not in (0, None)
    shown = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert message in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["movielens", "--ratings", "nowhere/u.data"], "nowhere/u.data: give a path to u.data"),
        (
            ["factorization", "--quick", "--steps", "24", "--plain-steps", "24"],
            "claims are refuted, or the run was too short for them",
        ),
    ],
)
def test_a_figure_that_cannot_be_made_says_why_and_is_not_saved(arguments, message, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("figures.__main__.OUT", tmp_path)
    assert main(arguments) == 1
    assert message in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("figure", ["invariant_subspace", "factorization"])
def test_an_unstable_step_is_warned_of_before_the_run_and_the_run_stops(figure, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("figures.__main__.OUT", tmp_path)
    field = "--paper.lr" if figure == "invariant_subspace" else "--problem.lr"
    assert main([figure, "--quick", field, "1", "--workers", "1"]) == 1
    warned, stopped = capfd.readouterr().err.split("✗")
    assert "lr = 1.0: from 0.0" in warned
    assert "descent is not stable; take lr = 0.0" in warned
    assert ".py" not in warned  # said as a sentence, not as a place in the code
    assert "diverged" in stopped
    assert list(tmp_path.rglob("*.png")) == []


def test_a_line_with_markup_in_the_ratings_is_quoted_as_it_is(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("figures.__main__.OUT", tmp_path / "out")
    (tmp_path / "u.data").write_text("[/b]\n")
    assert main(["movielens", "--ratings", str(tmp_path / "u.data")]) == 1
    assert "in '[/b]'; expected user, item, rating" in capfd.readouterr().err


def test_too_few_ratings_are_refused_with_what_there_is(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("figures.__main__.OUT", tmp_path / "out")
    (tmp_path / "u.data").write_text("1\t1\t5\n1\t2\t4\n2\t1\t3\n")
    assert main(["movielens", "--ratings", str(tmp_path / "u.data")]) == 1
    assert "3 ratings of 2 films by 2 users are too few for rank = 10" in capfd.readouterr().err


def test_sizes_and_fields_go_into_folders_of_their_own_and_records_are_kept_on_request(tmp_path, monkeypatch):
    figure, data = quick("invariant_subspace")
    monkeypatch.setattr(figure, "data", lambda spec: data)
    monkeypatch.setattr("figures.__main__.OUT", tmp_path / "out")
    monkeypatch.setattr("figures.__main__.RECORDS", tmp_path / "records")
    for options in ([], ["--quick"], ["--steps", "20"], ["--record"], ["--full", "--record"]):
        assert main(["invariant_subspace", *options]) == 0
    folders = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")}
    assert folders == {"out", "out/quick", "out/custom", "out/full", "records", "records/full"}


def test_one_sweep_runs_the_grids_of_all_figures_and_its_options_stand_anywhere(tmp_path, monkeypatch, capfd):
    _, data = quick("invariant_subspace")
    monkeypatch.setattr("figures.__main__.OUT", tmp_path)
    swept = []

    def with_grid(spec, sweep=None):
        swept.append((sweep, sweep(cell_of_a_figure, [Point(3), Point(4)])))
        return data

    figure = import_module("figures.invariant_subspace")
    monkeypatch.setattr(figure, "data", with_grid)
    for arguments in (
        ["--workers", "1", "invariant_subspace", "invariant_subspace"],
        ["invariant_subspace", "--workers=1"],
        ["--fresh", "invariant_subspace", "--workers", "1"],
    ):
        assert main([*arguments, "--quick"]) == 0
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
        assert len(kept) == 2
        swept.append(kept)
    (one, found), (other, again), first, _, second, _, third = swept
    assert one is other
    assert [int(result["square"]) for result in found] == [int(result["square"]) for result in again] == [9, 16]
    assert first == second
    assert all(third[path] > written for path, written in first.items())
    assert "2 of 2 figures made in " in capfd.readouterr().out


@dataclass(frozen=True)
class Point:
    value: int


def cell_of_a_figure(point):
    return {"square": np.array(point.value**2)}


@pytest.mark.parametrize("arguments", [["--help"], ["--quick", "-h"], ["completion", "movielens", "--help"]])
def test_help_lists_every_figure_without_importing_torch(arguments):
    program = f"import sys; from figures.__main__ import main; main({arguments}); sys.exit('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in names())
