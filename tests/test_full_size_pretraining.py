"""Figures of pre-training at the papers' sizes, from made-up records: nobody has run them here."""

from dataclasses import replace
from importlib import import_module
from math import log, log2

import pytest

from figures.claims import hold
from lm_experiments import records
from lm_experiments.pretrainings import INSTRUCTED, SCRATCH
from lm_experiments.runs import Pretrain

FIGURES = ("instructions", "pretraining", "pretraining_subspaces", "real_gradients")
WORSE = {"low rank": 0.8, "LoRA": 0.03, "GaLore": 0.02, "Fira": -0.1, "APOLLO": -0.08}
"""By how much a perplexity is above full AdamW's, as the papers have it."""
SMALLER = {SCRATCH.runs["full"].text: 142, INSTRUCTED.runs["full"].text: 368}
"""AdamW's state, in hundredths of GaLore's, by count."""
KINDS = ("q", "k", "v", "o", "gate", "up", "down")


def perplexity(spec: Pretrain, step: int, sign: float) -> float:
    """Least at the middle one of the rates tried, or near it, at the default rank and gap."""
    among = INSTRUCTED if spec.text == INSTRUCTED.runs["full"].text else SCRATCH
    default = among.runs["full"]
    arm = among.arm("full", replace(spec, steps=default.steps))
    off = log(spec.lr / among.rates[arm][2]) ** 2
    above = WORSE.get(arm, 0.0) if sign > 0 else 0.1 * (arm != "AdamW")
    narrow, often = abs(log2(spec.rank / default.rank)), abs(log2(spec.gap / default.gap))
    swept = 0.02 * narrow + (0.005 if sign > 0 else 0.1) * often
    return (30 + spec.seed % 3) * (1 + above) * (1 + off) * (1 + swept) * (2 - step / spec.steps)


def gradients(step: int, last: int, sign: float) -> dict[str, object]:
    alike = 0.95 if sign > 0 else 0.3
    names = ("leading", "overlap", "held", "overlap_now", "held_now", "cosine", "spearman")
    layers = {name: [alike] * len(KINDS) for name in names} | {"stable": [5 - sign * 2 * step / last] * len(KINDS)}
    return {"step": step, **layers, "cosine_of_layers": alike, "spearman_of_layers": alike}


def made_up(spec: Pretrain, sign: float) -> records.Record[Pretrain]:
    found = {
        "scores": [{"step": step, "perplexity": perplexity(spec, step, sign)} for step in spec.evaluations],
        "optimizer_bytes": (SMALLER[spec.text] if (spec.optimizer == "adamw") == (sign > 0) else 100) * 2**20,
        "seconds": 60.0,
    }
    if spec.watch:
        at = [gradients(step, spec.steps, sign) for step in spec.evaluations]
        found["gradients"] = {"layers": [f"model.layers.0.{kind}_proj" for kind in KINDS], "at": at}
    return records.Record(spec, found, {})


@pytest.mark.parametrize("name", FIGURES)
def test_the_papers_claims_are_checked_and_what_refutes_them_is_refused(name, monkeypatch):
    figure = import_module(f"figures.{name}")
    monkeypatch.setattr(records, "read", lambda spec, *_: made_up(spec, 1.0))
    data = figure.data(figure.Spec().full())
    hold(figure.check(data))
    assert data.spec.size == "full"
    assert figure.draw(data).axes
    monkeypatch.setattr(records, "read", lambda spec, *_: made_up(spec, -1.0))
    claims = figure.check(figure.data(figure.Spec().full()))
    assert not any(claim.holds for claim in claims)
