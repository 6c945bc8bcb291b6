"""GLUE's metrics against their formulas, and what they say of what knows nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_experiments.metrics import score
from lm_experiments.tasks.text import TASKS

BINARY = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40).map(lambda p: np.array(p).T)
SCORES = st.lists(
    st.tuples(st.integers(-20, 20), st.integers(0, 5)), min_size=2, max_size=40
).map(lambda pairs: np.array(pairs, dtype=float).T)  # fmt: skip


def ratio(over, under):
    return over / under if under else 0.0


@given(BINARY)
def test_accuracy_f1_and_matthews_are_their_formulas(pair):
    guessed, true = pair
    tp, tn = np.sum(guessed & true), np.sum((1 - guessed) & (1 - true))
    fp, fn = np.sum(guessed & (1 - true)), np.sum((1 - guessed) & true)
    both = score(TASKS["mrpc"], guessed, true)
    assert both == pytest.approx({"accuracy": (tp + tn) / len(true), "f1": ratio(2 * tp, 2 * tp + fp + fn)})
    under = np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    assert score(TASKS["cola"], guessed, true)["matthews"] == pytest.approx(ratio(tp * tn - fp * fn, under), abs=1e-12)


def correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    return ratio(a @ b, np.sqrt((a @ a) * (b @ b)))


def ranks(values):
    return np.array([np.sum(values < value) + (np.sum(values == value) + 1) / 2 for value in values])


@given(SCORES)
def test_pearson_and_spearman_are_their_formulas(pair):
    guessed, true = pair
    scores = score(TASKS["stsb"], guessed.astype(np.float32), true)
    assert list(scores) == ["pearson", "spearman"]
    assert scores["pearson"] == pytest.approx(correlation(guessed, true), abs=1e-12)
    assert scores["spearman"] == pytest.approx(correlation(ranks(guessed), ranks(true)), abs=1e-12)


@pytest.mark.parametrize("spread", [0.0, 1e-15, 1e-13])
def test_scores_that_are_constant_up_to_rounding_know_nothing(spread):
    labels, guessed = np.arange(6.0), 3.1 + spread * np.arange(6)
    assert score(TASKS["stsb"], guessed, labels) == {"pearson": 0.0, "spearman": 0.0}
    assert score(TASKS["stsb"], labels, guessed) == {"pearson": 0.0, "spearman": 0.0}


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_for_all_has_no_matthews_correlation(label):
    assert score(TASKS["cola"], np.full(5, label), np.array([0, 1, 1, 0, 1])) == {"matthews": 0.0}
    assert score(TASKS["cola"], np.full(5, label), np.full(5, label)) == {"matthews": 0.0}


def test_several_classes():
    assert score(TASKS["mnli"], np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0])) == {"accuracy": 0.75}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_perfect_answer_scores_one_and_the_headline_is_first(task):
    labels = np.arange(6) % task.classes if task.labels else np.arange(6.0)
    scores = score(task, labels, labels)
    assert next(iter(scores)) == task.metric
    assert list(scores.values()) == pytest.approx([1.0] * len(task.metrics))


@pytest.mark.parametrize(
    ("task", "guessed", "labels", "message"),
    [
        ("rte", [0, 1], [0, 1, 1], r"rte: predictions \(2,\) for labels \(3,\): give one prediction an example"),
        ("rte", [[0.1, 0.9]], [1], r"predictions \(1, 2\) for labels \(1,\)"),
        ("rte", [], [], r"predictions \(0,\)"),
        ("rte", [0.0, 1.0], [0, 1], r"rte: predictions are float64: give integer classes, the argmax"),
        ("rte", [0, 2], [0, 1], r"rte: predictions from 0 to 2: its classes are 0 to 1"),
        ("rte", [0, 1], [0, -1], r"rte: labels from -1 to 0: its classes are 0 to 1"),
        ("stsb", [1.0, np.nan], [0.0, 1.0], r"stsb: 1 of 2 predictions are not finite; train at a lower rate"),
    ],
)
def test_impossible_predictions_are_refused(task, guessed, labels, message):
    with pytest.raises(ValueError, match=message):
        score(TASKS[task], np.array(guessed), np.array(labels))
