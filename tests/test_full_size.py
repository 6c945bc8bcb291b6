"""Figures of language models at the papers' sizes, from made-up records: nobody has run them here."""

from importlib import import_module
from math import log2

import pytest

from figures.claims import hold
from lm_experiments import records
from lm_experiments.adapt import GAP
from lm_experiments.runs import FineTune
from lm_experiments.tasks.text import TASKS

OURS = ("deep_lora_causal", "deep_lora_meets_galore")  # whose claims depend little on the size
PAPERS = [f"deep_lora_{name}" for name in ("epsilon", "fewshot", "forms", "glue", "outer", "rank")]


def score(spec: FineTune, step: int, sign: float) -> float:
    """As the paper has it, if sign is 1: a gain on LoRA that is larger for few examples and large ranks."""
    gain = {"lora": 0.0, "narrow": -0.1, "random": -0.1}.get(spec.method, 0.4 / spec.examples**0.5)
    wide = log2(spec.rank / 8) * (-0.05 if spec.method == "lora" else 0.01)
    sooner = 0.05 if spec.eps < 1e-10 else 0.0
    return 0.001 * (spec.seed % 3) + step / spec.steps * (0.5 + sign * (gain + wide + sooner))


def inside(method: str, step: int, sign: float) -> dict[str, list[float]]:
    """Of an update and of what is trained in, in the first gradient's subspace, which GaLore leaves after GAP steps."""
    stays = method == "compressed" if step > GAP else method in ("compressed", "galore")
    alike = 1.0 if stays == (sign > 0) else 0.2
    return {"update": [0.1 if method == "lora" and sign > 0 else alike], "basis": [alike]}


def made_up(spec: FineTune, sign: float) -> records.Record[FineTune]:
    fast = {"lora": 0.1, "compressed": 0.1, "wide": 0.12}.get(spec.method, 0.02)
    flat = (spec.method in ("lora", "galore")) == (sign > 0)
    spectrum = [0.5] * 8 if flat else [0.5 * 1e-3**index for index in range(8)]
    spectrum += [0.5 if spec.method == "galore" and flat else 0.0] * 8
    cosines = {"smallest": [0.4], "largest": [0.9]}
    found = {
        "scores": [{"step": step, TASKS[spec.task].metric: score(spec, step, sign)} for step in spec.evaluations],
        "losses": [1 / (1 + fast * step) for step in range(spec.steps)],
        "spectra": {"layer": spectrum},
        "cosines": {str(step): cosines for step in spec.evaluations[1:]},
        "first": {str(step): inside(spec.method, step, sign) for step in spec.evaluations[1:]},
    }
    return records.Record(spec, found, {})


def drawn_from(name: str, sign: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "read", lambda spec, *_: made_up(spec, sign))
    figure = import_module(f"figures.{name}")
    return figure, figure.data(figure.Spec().full())


@pytest.mark.parametrize("name", [*PAPERS, "deep_lora_meets_galore"])
def test_the_papers_claims_are_checked_and_what_refutes_them_is_refused(name, monkeypatch):
    figure, data = drawn_from(name, 1.0, monkeypatch)
    hold(figure.check(data))
    figure, data = drawn_from(name, -1.0, monkeypatch)
    assert not all(claim.holds for claim in figure.check(data))


@pytest.mark.parametrize("name", [*PAPERS, *OURS])
def test_titles_and_labels_are_those_of_the_models_that_ran(name, monkeypatch):
    figure, data = drawn_from(name, 1.0, monkeypatch)
    axes = figure.draw(data).axes
    said = " ".join(
        text for axis in axes for text in (axis.get_title(loc="left"), axis.get_xlabel(), axis.get_ylabel())
    )
    assert "MiniLM" not in said
    assert ("SmolLM2-135M" if name == "deep_lora_causal" else "BERT-base") in said
    if name in ("deep_lora_rank", "deep_lora_epsilon"):
        assert "16 examples" in said
    if name == "deep_lora_glue":
        assert "1024 examples" in said
        assert all(TASKS[task].metric in axes[0].get_ylabel() for task in data.tasks)
