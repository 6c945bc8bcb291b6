"""Every figure computes, checks, draws and saves; a false one does not; and the command line teaches."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from figures import style
from figures.__main__ import main, make, names
from figures.claims import Claim, Refuted, hold

ROOT = Path(__file__).parents[1]
each_figure = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names()]
)


@cache
def quick(name):
    figure = import_module(f"figures.{name}")
    return figure, figure.data(figure.Spec().quick())


def test_the_folder_is_the_registry():
    assert names() == ["completion", "factorization", "invariant_subspace", "movielens"]


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


FALSE = {  # what each figure claims, made a little false
    "invariant_subspace": lambda data: [
        replace(data, predicted=1.01 * data.predicted),
        replace(data, idle_predicted=1.01 * data.idle_predicted),
        replace(data, deviation=data.deviation + 1e-11),
        replace(data, angles=data.angles + 1e-6),
    ],
    "factorization": lambda data: [
        replace(data, predicted=1.01 * data.predicted),
        replace(data, inside=data.inside + 1e-9),
        replace(data, error=data.error * [1.0, 1.01]),
        replace(data, predicted=0 * data.predicted, difference=0 * data.difference),
    ],
    "completion": lambda data: [
        replace(data, movement=data.movement * [1, 0]),
        replace(data, runs={name: replace(run, values=0 * run.values) for name, run in data.runs.items()}),
        replace(data, runs={name: replace(run, values=1e4 * run.values) for name, run in data.runs.items()}),
    ],
    "movielens": lambda data: [
        replace(data, curves={**data.curves, method: data.curves[method] * [1, 1, 1, factor]})
        for method, factor in product(("compressed",), (1.1, np.nan))
    ],
}


@each_figure
def test_a_false_figure_cannot_be_made(name, tmp_path, monkeypatch):
    figure, data = quick(name)
    for false in FALSE[name](data):
        monkeypatch.setattr(figure, "data", lambda spec, false=false: false)
        with pytest.raises(Refuted, match="the data contradict the figure, so it was not saved"):
            make(name, data.spec, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_claim_of_nan_does_not_hold_and_bounds_are_named():
    assert not Claim("x", float("nan"), at_most=1).holds
    with pytest.raises(Refuted, match="too large: 2, claimed >= 0 and <= 1"):
        hold([Claim("fine", 0.5, at_most=1), Claim("too large", 2, at_most=1, at_least=0)])


@pytest.mark.xdist_group("invariant_subspace")
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
def test_committed_record_is_of_the_default_figure_and_its_claims_held(name):
    """figures/records holds the numbers that the READMEs quote, from a run at default size."""
    figure = import_module(f"figures.{name}")
    record = json.loads((ROOT / "figures" / "records" / f"{name}.json").read_text())
    assert record["spec"] == json.loads(json.dumps(asdict(figure.Spec()), default=str))
    assert len(record["claims"]) == len(figure.check(quick(name)[1]))


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
    ],
)
def test_command_line_names_the_nearest_figure(arguments, message):
    with pytest.raises(SystemExit, match=message.replace("?", r"\?")):
        main(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["completion", "--density", "0"], "density = 0.0: the share of observed entries must lie in"),
        (["completion", "--densty", "0"], "--density FLOAT"),
        (["completion", "--gammas", "-1"], "give one or more ratios >= 0"),
        (["completion", "--problem.lr", ".0071"], "lr = 0.0071 with gamma = 0.1 is unstable; take lr < "),
        (["factorization", "--problem.width", "10"], "take rank <= 4 or width > 10"),
        (["factorization", "--problem.lr", "1"], "gradient descent"),
        (["movielens", "--relative-step", "1"], "at 1 and above training diverges"),
        (["movielens", "--rank", "ten"], "invalid"),
    ],
)
def test_bad_fields_are_refused_before_any_work(arguments, message, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code not in (0, None)
    shown = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert message in shown


def test_a_missing_ratings_file_fails_that_figure_with_the_path(capfd, tmp_path):
    assert main(["movielens", "--ratings", str(tmp_path / "u.data")]) == 1
    shown = "".join(capfd.readouterr().out.split())
    assert "noratingsfile" in shown
    assert "giveapathtou.data" in shown


def test_help_lists_every_figure_without_importing_torch():
    program = "import sys; from figures.__main__ import main; main(['--help']); sys.exit('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in names())
