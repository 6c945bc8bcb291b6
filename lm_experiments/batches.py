"""From examples to the tensors of a step: which examples, which tokens, what is to be predicted."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lm_experiments.tasks.text import Examples, TextTask

PARTS = {"tuning": 0, "report": 1}


@dataclass(frozen=True, eq=False)
class Encoded:
    """Token ids of each example, without padding, and its label."""

    ids: list[dict[str, list[int]]]
    labels: np.ndarray
    tokenizer: PreTrainedTokenizerBase

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Integer[np.ndarray, " batch"]) -> dict[str, Tensor]:
        """Padded on the right to the longest of these, with their labels: float32 scores or int64 classes."""
        padded = self.tokenizer.pad([self.ids[k] for k in indices], return_tensors="pt", padding_side="right")
        labels = torch.from_numpy(self.labels[indices])
        return {**padded, "labels": labels.float() if labels.is_floating_point() else labels}


def encode(
    tokenizer: PreTrainedTokenizerBase, task: TextTask, examples: Examples, length: int, *, asks: bool
) -> Encoded:
    """Tokens of prompts for causal models (asks), else of the texts as the model's pretraining paired them.

    What is longer than `length` tokens loses its end; a prompt loses its beginning, since the question stands last.
    """
    side, tokenizer.truncation_side = tokenizer.truncation_side, "left" if asks else "right"
    texts = (task.prompts(examples),) if asks else (list(examples.first), examples.second and list(examples.second))
    try:
        found = tokenizer(*texts, truncation=True, max_length=length)
    finally:
        tokenizer.truncation_side = side
    ids = [{name: found[name][k] for name in found} for k in range(len(examples))]
    return Encoded(ids, examples.labels, tokenizer)


def order(count: int, batch: int, seed: int, step: int) -> Integer[np.ndarray, " batch"]:
    """The examples of a step, from 1: one permutation after the other, each drawn from (seed, its number).

    A function of the step alone, so that a resumed run needs no memory of the data.
    """
    places = np.arange((step - 1) * batch, step * batch)
    epochs = {int(e): _permutation(count, seed, int(e)) for e in np.unique(places // count)}
    return np.array([epochs[int(p // count)][p % count] for p in places])


@lru_cache(maxsize=2)  # a step may end one epoch and begin the next
def _permutation(count: int, seed: int, epoch: int) -> Integer[np.ndarray, " count"]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def by_length(encoded: Encoded, batch: int) -> Iterator[Integer[np.ndarray, " batch"]]:
    """All examples, the shortest first, so that little is padded."""
    lengths = np.argsort([len(example["input_ids"]) for example in encoded.ids], kind="stable")
    yield from (lengths[k : k + batch] for k in range(0, len(lengths), batch))


def held_out(validation: Examples, part: str, count: int) -> Examples:
    """So many examples at most of one half of the validation examples (0: all), the halves drawn once for all runs."""
    half = np.random.default_rng(2024).permutation(len(validation))[PARTS[part] :: 2]
    return validation.take(half[: count or None])
