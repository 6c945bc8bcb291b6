"""Instructions and their answers, for a language model that is to learn to answer: the loss is on the answer alone.

    "instructions"                      a JSON file, or a folder of them: a list of {"instruction", "input", "output"},
                                        of which "input" may be missing (Taori et al. 2023, Stanford Alpaca)
    "instructions:org/name[@revision]"  the Hub's data set with these columns, tatsu-lab/alpaca say

Each is rendered by the model's own chat template: a row is the template's prompt for the instruction, then the answer
up to the end of its turn, and of these the tokens of the answer are predicted. Prompt and answer become tokens apart,
as they do when the model answers. A row that is too long loses its end. A question is held out if `is_held_out` says
so of its text alone: the same ones whatever the model, and all answers to one question on one side.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Integer
from transformers import PreTrainedTokenizerBase

from lm_experiments.tasks.streams import IGNORED, Text, is_held_out, loaded

NAME = "instructions"
KEYS = ("instruction", "output")
LOG = logging.getLogger(__name__)


class Pair(NamedTuple):
    """What is asked and what is to be answered."""

    question: str
    answer: str


@dataclass(frozen=True, eq=False)
class Answers:
    """Row k is the prompt `prompts[k]` and the answer `answers[k]`: neither empty, length + 1 tokens in all at most."""

    prompts: list[list[int]]
    answers: list[list[int]]

    def __len__(self) -> int:
        return len(self.answers)

    def rows(self, indices: Integer[np.ndarray, " batch"]) -> Int64[np.ndarray, "batch longest"]:
        """These rows; what follows the shorter ones is never predicted, and no token before it sees it."""
        found = self._filled(indices, 0)
        for row, k in zip(found, indices, strict=True):
            row[: len(self.prompts[k])] = self.prompts[k]
        return found

    def labels(self, indices: Integer[np.ndarray, " batch"]) -> Int64[np.ndarray, "batch longest_less_1"]:
        """What follows each token but the last: of the answers, and IGNORED elsewhere."""
        return self._filled(indices, IGNORED)[:, 1:]

    def predicted(self, indices: Integer[np.ndarray, " batch"]) -> int:
        """Tokens of the answers."""
        return sum(len(self.answers[k]) for k in indices)

    def _filled(self, indices: Integer[np.ndarray, " batch"], other: int) -> Int64[np.ndarray, "batch longest"]:
        """The answers in their places, and `other` everywhere else."""
        longest = max(len(self.prompts[k]) + len(self.answers[k]) for k in indices)
        found = np.full((len(indices), longest), other, np.int64)
        for row, k in zip(found, indices, strict=True):
            first = len(self.prompts[k])
            row[first : first + len(self.answers[k])] = self.answers[k]
        return found


def read(name: str, length: int, source: Path | None = None, tokenizer: PreTrainedTokenizerBase | None = None) -> Text:
    """The pairs that are learned from and those that are held out, in tokens of the tokenizer.

    What has no answer, or no room for one beside its prompt, is left out, and counted in the log.

    source: the file or the folder of "instructions", and of nothing else.

    Raises FileNotFoundError if there is no file, ConnectionError if the Hub does not give it, ValueError for a
    tokenizer without a chat template, a file of another form, or a side without rows.
    """
    if tokenizer is None or tokenizer.chat_template is None:
        raise ValueError(
            f"text = {name!r} needs a tokenizer with a chat template: take a model that was made for instructions, "
            "smollm2 say, or give the tokenizer of one"
        )
    pairs = [*_pairs(name, source)]
    told = [pair for pair in pairs if pair.answer.strip()]
    sides: dict[bool, list[tuple[list[int], list[int]]]] = {False: [], True: []}
    for pair, prompt, answer in _tokens(told, tokenizer) if told else ():
        if room := max(length + 1 - len(prompt), 0):
            sides[is_held_out(pair.question)].append((prompt, answer[:room]))
    left_out = len(pairs) - sum(map(len, sides.values()))
    if left_out:
        LOG.warning(
            f"{left_out} of {len(pairs)} instructions are left out: {len(pairs) - len(told)} without an answer, the "
            f"others without room for one in length = {length}"
        )
    train, held_out = (Answers([p for p, _ in side], [a for _, a in side]) for side in sides.values())
    for what, side in (("train on", train), ("hold out", held_out)):
        if not len(side):
            raise ValueError(
                f"{name!r} gives nothing to {what}, of {len(pairs)} instructions with length = {length}: give more of "
                "them, or longer rows"
            )
    return Text(train, held_out, len(tokenizer), {"train": _hash(train), "held_out": _hash(held_out)})


def _pairs(name: str, source: Path | None) -> Iterator[Pair]:
    place = name.removeprefix(NAME).removeprefix(":")
    if (source is None) != bool(place):
        raise ValueError(
            f"text = {name!r} with {'a' if source else 'no'} path at --data: {NAME!r} needs one, "
            f"{NAME + ':org/name'!r} has none"
        )
    if source is not None:
        yield from _from_files(source.expanduser())
        return
    data = loaded(place)
    if lacking := [key for key in KEYS if key not in data.column_names]:
        raise ValueError(
            f"{place} has the columns {', '.join(data.column_names)}, but no {lacking[0]}: take another data set"
        )
    yield from (_pair(entry, f"{place}, row {number}") for number, entry in enumerate(data, 1))


def _from_files(source: Path) -> Iterator[Pair]:
    paths = [source] if source.is_file() else sorted(source.glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"{source} holds no instructions: give a JSON file, or a folder of *.json")
    for path in paths:
        try:
            entries = json.loads(path.read_bytes())
        except ValueError as error:  # of JSON, and of UTF-8
            raise ValueError(f"{path} is no JSON ({error}): mend it, or take it away") from error
        if not isinstance(entries, list):
            raise ValueError(f"{path} holds a {type(entries).__name__}: expected a list of objects with {_expected()}")
        yield from (_pair(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, 1))


def _pair(entry: Any, place: str) -> Pair:
    """Instruction and input with an empty line between, and the answer."""
    fields = entry if isinstance(entry, dict) else {}
    asked, more, told = (fields.get(key) for key in (KEYS[0], "input", KEYS[1]))
    if not (isinstance(asked, str) and asked and isinstance(more or "", str) and isinstance(told, str)):
        raise ValueError(f"{place} is {json.dumps(entry)[:60]}: expected an object with {_expected()}")
    return Pair(f"{asked}\n\n{more}" if more else asked, told)


def _expected() -> str:
    return '"instruction" and "output", and perhaps "input", all text'


def _tokens(pairs: list[Pair], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Pair, list[int], list[int]]]:
    """Of each pair the prompt's and the answer's."""
    rendered = [_rendered(pair, tokenizer) for pair in pairs]
    prompts, answers = (_ids((texts[side] for texts in rendered), tokenizer) for side in (0, 1))
    return zip(pairs, prompts, answers, strict=True)


def _rendered(pair: Pair, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The prompt, and all that the template writes for the answer to the end of its turn."""
    asked = [{"role": "user", "content": pair.question}]
    told = [*asked, {"role": "assistant", "content": pair.answer}]
    prompt = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    whole = str(tokenizer.apply_chat_template(told, tokenize=False))
    if not whole.startswith(prompt):
        raise ValueError(
            f"the chat template's prompt {prompt[-40:]!r} is not how it begins an answer: give another model"
        )
    return prompt, whole.removeprefix(prompt).rstrip()  # templates end a turn with a token and a new line


def _ids(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    found: list[list[int]] = tokenizer([*texts], add_special_tokens=False, verbose=False)["input_ids"]
    return found


def _hash(side: Answers) -> str:
    return hashlib.sha256(json.dumps([side.prompts, side.answers]).encode()).hexdigest()
