"""Every figure computes, checks, draws and saves; a false one does not; and the command line teaches."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from functools import cache
from importlib import import_module
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
        replace(data, idle_predicted=data.idle_predicted[:1] + 0 * data.idle_predicted),  # no recursion at all
        replace(data, predicted_angles=1.01 * data.predicted_angles),
        replace(data, deviation=data.deviation + 1e-11),
        replace(data, angles=data.angles + 1e-6),
    ],
    "factorization": lambda data: [
        replace(data, predicted=1.01 * data.predicted),
        replace(data, predicted=data.predicted[0] + 0 * data.predicted),  # the paper's bound instead of our equality
        replace(data, inside=data.inside + 1e-9),
        replace(data, error=data.error * [1.0, 1.01]),
    ],
    "completion": lambda data: [
        replace(data, movement=data.movement * [1, 0]),
        *(
            replace(data, runs={**data.runs, name: replace(run, values=factor * run.values)})
            for (name, run), factor in zip(data.runs.items(), (1e4, 1e5, 1e4, 0.01), strict=True)
        ),
        *(replace(data, runs={**data.runs, name: _later(run)}) for name, run in list(data.runs.items())[1:3]),
    ],
    "movielens": lambda data: [
        replace(data, curves={**data.curves, name: curve * [1, 1, 1, factor]})
        for name, curve in data.curves.items()
        for factor in ((1.1, np.nan) if name in ("original", "compressed", "ALS, tuned penalty") else (0.8, np.nan))
    ],
}


def _later(run):
    """The same run, everything a fifth later."""
    return replace(run, values=np.vstack([run.values[:1]] * (len(run.values) // 5) + [run.values])[: len(run.values)])


@each_figure
def test_a_false_figure_cannot_be_made(name, tmp_path, monkeypatch):
    figure, data = quick(name)
    for false in FALSE[name](data):
        monkeypatch.setattr(figure, "data", lambda spec, false=false: false)
        with pytest.raises(Refuted, match="not saved: its claims are refuted, or the run was too short for them"):
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
        (["factorization", "--problem.lr", "1"], "gradient descent is not stable"),
        (["movielens", "--relative-step", "1"], "from 1 on training may diverge"),
        (["movielens", "--rank", "0"], "1 <= rank < half of the users and of the items"),
        (["movielens", "--depth", "1"], "take depth >= 2"),
        (["invariant_subspace", "--steps", "1"], "take steps >= 8"),
        (["invariant_subspace", "--paper.scales", "20"], "or smaller scales if they are > 1"),
        (["completion", "--problem.decay", "0.1"], "outer factors would decay"),
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
        (["factorization", "--quick", "--every", "0"], "steps = 1200, every = 0: take steps >= every >= 1"),
        (["factorization", "--quick", "--steps=-1"], "steps = -1, every = 12: take steps >= every >= 1"),
        (["factorization", "--quick", "--steps", "24"], "claims are refuted, or the run was too short for them"),
    ],
)
def test_a_figure_that_cannot_be_made_says_why_and_is_not_saved(arguments, message, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("figures.__main__.OUT", tmp_path)
    assert main(arguments) == 1
    assert message in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.xdist_group("invariant_subspace")
def test_sizes_and_fields_go_into_folders_of_their_own_and_records_are_kept_on_request(tmp_path, monkeypatch):
    figure, data = quick("invariant_subspace")
    monkeypatch.setattr(figure, "data", lambda spec: data)
    monkeypatch.setattr("figures.__main__.OUT", tmp_path / "out")
    monkeypatch.setattr("figures.__main__.RECORDS", tmp_path / "records")
    for options in ([], ["--quick"], ["--steps", "20"], ["--record"]):
        assert main(["invariant_subspace", *options]) == 0
    folders = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")}
    assert folders == {"out", "out/quick", "out/custom", "records"}


@pytest.mark.parametrize("arguments", [["--help"], ["--quick", "-h"], ["completion", "movielens", "--help"]])
def test_help_lists_every_figure_without_importing_torch(arguments):
    program = f"import sys; from figures.__main__ import main; main({arguments}); sys.exit('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in names())
