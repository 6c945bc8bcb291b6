"""The figure of watched gradients, drafted before its records are there: on made-up ones it reads, claims and draws."""

import sys
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import numpy as np
import pytest

from figures.claims import Refuted, hold
from lm_experiments.pretrainings import PRETRAININGS
from lm_experiments.records import Record

ROOT = Path(__file__).parents[1]
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYERS = [f"model.layers.{k}.{'mlp' if kind in KINDS[4:] else 'self_attn'}.{kind}" for k in range(4) for kind in KINDS]
BETWEEN = {
    "stable": (1.2, 1.9), "leading": (0.991, 0.999), "overlap": (0.4, 0.5), "held": (0.6, 0.9), "cosine": (0.95, 0.99),
    "correlation": (0.5, 0.8),
}  # fmt: skip


def drafted(place: str):
    path = ROOT / place
    loader = SourceFileLoader(path.name.partition(".")[0], str(path))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = module  # where dataclasses look for their annotations
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def figure():
    return drafted("figures/real_gradients.py.draft")


def made_up(cell, draw) -> Record:
    """As `Watch` records it: less at the first evaluation."""
    at = []
    for step in cell.evaluations:
        names = BETWEEN if step else ("stable", "leading")
        entry = {name: draw.uniform(*BETWEEN[name], len(LAYERS)).tolist() for name in names}
        of_layers = {f"{name}_of_layers": float(draw.uniform(*BETWEEN[name])) for name in ("cosine", "correlation")}
        at.append({"step": step, **entry, **(of_layers if step else {})})
    return Record(cell, {"scores": [], "gradients": {"layers": LAYERS, "at": at}}, {})


@pytest.fixture
def found(figure, monkeypatch):
    """Nine records in another order than the figure's, and what the figure makes of them."""
    draw = np.random.default_rng(0)
    records = [made_up(cell, draw) for cell in PRETRAININGS["gradients"].cells("small")]
    asked = []

    def recorded(*what):
        asked.append(what)
        return records

    monkeypatch.setattr(figure, "recorded", recorded)
    data = figure.data(figure.Spec())
    assert asked == [("gradients", "small", 3)]
    return records, data


def test_what_is_read_is_what_was_recorded(found):
    records, data = found
    assert data.steps == tuple(range(0, 601, 50))
    assert data.kinds == KINDS * 4
    assert data.chance == 64 / 256
    assert data.stable.shape == data.leading.shape == (3, 3, 13, 28)
    assert data.overlap.shape == data.held.shape == (3, 3, 12, 28)
    assert data.columns.shape == (2, 3, 3, 12, 28)
    assert data.matrices.shape == (2, 3, 3, 12)
    for record in records:
        place = (("adamw", "galore", "fira").index(record.spec.optimizer), record.spec.seed)
        at = record.found["gradients"]["at"]
        assert data.stable[place][12, 5] == at[12]["stable"][5]
        assert data.leading[place][0, 27] == at[0]["leading"][27]
        assert data.held[place][0, 1] == at[1]["held"][1]
        assert data.overlap[place][11, 0] == at[12]["overlap"][0]
        assert [data.columns[k][place][3, 2] for k in (0, 1)] == [at[4][name][2] for name in ("cosine", "correlation")]
        assert data.matrices[1][place][3] == at[4]["correlation_of_layers"]


def test_its_claims_hold_on_what_they_say_and_on_nothing_else(figure, found):
    _, data = found
    hold(figure.check(data))
    assert all(claim.bound for claim in figure.check(data))
    variants = drafted("tests/falsified/real_gradients.py.draft").falsified(data)
    failing = [{claim.text for claim in figure.check(false) if not claim.holds} for false in variants]
    assert all(failing)
    assert set.union(*failing) == {claim.text for claim in figure.check(data)}
    with pytest.raises(Refuted):
        hold(figure.check(variants[0]))


def test_it_draws_means_by_kind_and_by_optimizer(figure, found):
    _, data = found
    drawn = figure.draw(data)
    assert [axis.get_title(loc="left")[:3] for axis in drawn.axes] == ["(a)", "(b)", "(c)", "(d)"]
    assert all(axis.get_xlabel() == "step" and axis.get_ylabel() for axis in drawn.axes)
    kinds, shares, overlaps, factors = (axis.lines for axis in drawn.axes)
    np.testing.assert_allclose(kinds[2].get_ydata(), data.stable[..., 2::7].mean(axis=(0, 1, 3)))
    assert [line.get_label() for line in kinds] == [kind.removesuffix("_proj") for kind in KINDS]
    np.testing.assert_allclose(shares[5].get_ydata(), data.held[2].mean(axis=(0, 2)))
    np.testing.assert_allclose(overlaps[1].get_ydata(), data.overlap[1].mean(axis=(0, 2)))
    assert set(overlaps[3].get_ydata()) == {0.25}
    np.testing.assert_allclose(factors[0].get_ydata(), data.columns[1, 0].mean(axis=(0, 2)))
    drawn.canvas.draw()


def test_sizes_are_valid_specs(figure):
    assert figure.Spec().full() == replace(figure.Spec(), size="full")
    assert figure.Spec().quick().seeds == 1
    with pytest.raises(ValueError, match="seeds = 0: take 1 or more"):
        figure.Spec(seeds=0)
