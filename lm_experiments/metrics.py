"""The metrics of GLUE (Wang et al. 2019, 1804.07461), as scikit-learn and SciPy compute them.

Where a metric is 0/0, because predictions or labels are all the same, it is 0: what knows nothing scores nothing.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from lm_experiments.tasks.text import TextTask


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The share of right classes."""
    return float(accuracy_score(labels, predictions))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """2 TP / (2 TP + FP + FN) of class 1."""
    return float(f1_score(labels, predictions, zero_division=0.0))


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The correlation of classes, in [-1, 1] (Matthews 1975)."""
    return 0.0 if _constant(predictions) or _constant(labels) else float(matthews_corrcoef(labels, predictions))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The linear correlation of scores, in [-1, 1]."""
    return 0.0 if _constant(predictions) or _constant(labels) else float(pearsonr(labels, predictions).statistic)


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The linear correlation of the scores' ranks, in [-1, 1]."""
    return 0.0 if _constant(predictions) or _constant(labels) else float(spearmanr(labels, predictions).statistic)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    metric.__name__: metric for metric in (accuracy, f1, matthews, pearson, spearman)
}


def score(
    task: TextTask, predictions: Shaped[np.ndarray, " examples"], labels: Shaped[np.ndarray, " examples"]
) -> dict[str, float]:
    """The task's metrics by name, the headline first.

    predictions: integer classes (an argmax, not logits), or finite scores for a task with scores. Raises ValueError.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.ndim != 1 or predictions.shape != labels.shape or not len(labels):
        raise ValueError(
            f"{task.name}: predictions {predictions.shape} for labels {labels.shape}: give one prediction an example"
        )
    if task.labels:
        _check_classes(task, predictions, "predictions")
        _check_classes(task, labels, "labels")
    elif not (np.isfinite(predictions).all() and np.isfinite(labels).all()):
        count = int((~np.isfinite(predictions)).sum())
        raise ValueError(f"{task.name}: {count} of {len(labels)} predictions are not finite; train at a lower rate")
    else:
        predictions, labels = predictions.astype(np.float64), labels.astype(np.float64)
    return {name: METRICS[name](predictions, labels) for name in task.metrics}


def _check_classes(task: TextTask, values: np.ndarray, what: str) -> None:
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{task.name}: {what} are {values.dtype}: give integer classes, the argmax of the logits")
    if values.min() < 0 or values.max() >= task.classes:
        raise ValueError(
            f"{task.name}: {what} from {values.min()} to {values.max()}: its classes are 0 to {task.classes - 1}"
        )


def _constant(values: np.ndarray) -> bool:
    """Up to rounding: SciPy's correlations mean nothing below a spread of 1e-13."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())
