"""Text as one stream of tokens, for language modelling: real documents, packed into rows of one length.

    "python"                         the Python sources of this environment's standard library: offline, 11 MB
    "files"                          a text file, or a folder of them; <|endoftext|> divides a file into documents; a
                                     single file without it is cut at blank lines, into 16,384 characters each
    "org/name[:config][@revision]"   the Hub's data set, its column "text"

A document is held out if its SHA-256, read as a fraction of 2^256, is below 1/20: a function of the document alone, so
that copies of it are all on one side, and documents that come later move none. Documents follow each other in the order
of their names, each ended by one token; rows ignore their borders, and attention does not (as in GaLore's script).
All is held in memory: 2 bytes a token.
"""

import gzip
import hashlib
import lzma
import re
import sysconfig
import tokenize
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int64, Integer
from transformers import PreTrainedTokenizerBase

SHARE = 1 / 20
"""Of documents that are held out, in the mean."""
BORDER = "<|endoftext|>"
ENDINGS = (".txt", ".text", ".md", ".rst", ".py")
"""Of text files, gzipped (.gz) or compressed by xz (.xz) or not."""
OPENED: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".xz": lzma.decompress}
ELSEWHERE = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
HUB = re.compile(r"(?P<id>[\w-][\w.-]*/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
END = 256
"""The token after a document of bytes."""
PIECE = 2**14  # characters, at least, of a document that is a part of a file
IGNORED = -100
"""In place of a token that is not predicted, as torch has it."""
AT_ONCE = 1000  # documents that a tokenizer gets together: fast ones work on them in parallel


@dataclass(frozen=True, eq=False)
class Stream:
    """Row k is tokens[k length : (k + 1) length + 1]: `length` tokens to read, and the same shifted by one to predict.

    So each token but the first is predicted once.
    """

    tokens: Integer[np.ndarray, " tokens"]
    length: int

    def __len__(self) -> int:
        return max(len(self.tokens) - 1, 0) // self.length

    def rows(self, indices: Integer[np.ndarray, " batch"]) -> Int64[np.ndarray, "batch length_plus_1"]:
        """These rows."""
        return self.tokens[indices[:, None] * self.length + np.arange(self.length + 1)].astype(np.int64)

    def labels(self, indices: Integer[np.ndarray, " batch"]) -> Int64[np.ndarray, "batch length"]:
        """What follows each token but the last."""
        return self.rows(indices)[:, 1:]

    def predicted(self, indices: Integer[np.ndarray, " batch"]) -> int:
        """Tokens that are."""
        return len(indices) * self.length


class Rows(Protocol):
    """Tokens to read and, shifted by one, to predict, but for labels that are IGNORED."""

    def __len__(self) -> int: ...

    def rows(self, indices: Integer[np.ndarray, " batch"]) -> Int64[np.ndarray, "batch longest"]:
        """The tokens of these rows."""
        ...

    def labels(self, indices: Integer[np.ndarray, " batch"]) -> Int64[np.ndarray, "batch longest_less_1"]:
        """What is to be predicted after each of them but the last."""
        ...

    def predicted(self, indices: Integer[np.ndarray, " batch"]) -> int:
        """How many tokens are."""
        ...


class Text(NamedTuple):
    """What is learned from, what is held out, and how many different tokens there are."""

    train: Rows
    held_out: Rows
    vocabulary: int
    fingerprint: dict[str, str]
    """SHA-256 over the tokens of each."""


def read(text: str, length: int, source: Path | None = None, tokenizer: PreTrainedTokenizerBase | None = None) -> Text:
    """The two streams of a text, in tokens of the tokenizer or, without one, in UTF-8 bytes.

    source: the file or the folder of "files", and of nothing else.
    Raises FileNotFoundError or ConnectionError where there is no such text; ValueError if it is too short for a row of
    `length` tokens on each side, is not UTF-8, or `text` is none of the three kinds.
    """
    documents = [document for document in _documents(text, source) if document]
    vocabulary = END + 1 if tokenizer is None else len(tokenizer)
    sides: dict[bool, list[str]] = {False: [], True: []}
    for document in documents:
        sides[is_held_out(document)].append(document)
    train, held_out = (Stream(_tokens(side, vocabulary, tokenizer), length) for side in sides.values())
    for name, stream in (("train on", train), ("hold out", held_out)):
        if not len(stream):
            raise ValueError(
                f"{text!r} gives {len(stream.tokens)} tokens to {name}, of {len(documents)} documents, which is no row "
                f"of length = {length}: give more documents ({BORDER} divides a file), or shorter rows"
            )
    return Text(train, held_out, vocabulary, {"train": _hash(train), "held_out": _hash(held_out)})


def is_held_out(document: str) -> bool:
    """Whether the document's SHA-256 says so."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()) < SHARE * 2**256


def _documents(text: str, source: Path | None) -> Iterable[str]:
    if (source is not None) != (text == "files"):
        raise ValueError(
            f"text = {text!r} with {'a' if source else 'no'} path at --data: 'files' needs one, and it alone"
        )
    if source is not None:
        return _from_files(source.expanduser())
    return _standard_library() if text == "python" else _from_hub(text)


def _standard_library() -> Iterator[str]:
    """Without tests, and without what the build wrote about its machine."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        if not ELSEWHERE & set(path.relative_to(root).parts) and not path.name.startswith("_sysconfigdata"):
            with tokenize.open(path) as file:  # in the encoding that the file declares
                yield file.read()


def _from_files(source: Path) -> Iterator[str]:
    paths = [source] if source.is_file() else sorted(path for path in source.rglob("*") if _is_text(path))
    if not paths:
        raise FileNotFoundError(f"{source} holds no text: give a text file, or a folder of {', '.join(ENDINGS)}")
    for path in paths:
        try:
            content = OPENED.get(path.suffix, bytes)(path.read_bytes()).decode()
        except (UnicodeDecodeError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
            raise ValueError(f"{path} is not text in UTF-8 ({error}): convert it, or take it away") from error
        if BORDER in content or len(paths) > 1:
            yield from (document.strip("\n") for document in content.split(BORDER))
        else:
            yield from _pieces(content)


def _pieces(content: str) -> Iterator[str]:
    piece = ""
    for paragraph in re.split(r"(?<=\n\n)", content):
        piece += paragraph
        if len(piece) >= PIECE:
            yield piece
            piece = ""
    if piece:
        yield piece


def _is_text(path: Path) -> bool:
    name = path.with_suffix("").name if path.suffix in OPENED else path.name
    return path.is_file() and Path(name).suffix in ENDINGS


def _from_hub(text: str) -> Iterator[str]:
    data = loaded(text)
    if "text" not in data.column_names:
        raise ValueError(f"{text} has the columns {', '.join(data.column_names)}, but no text: take another data set")
    yield from (row["text"] for row in data)


def loaded(text: str) -> Any:
    """The training part of a data set of the Hub. Raises ConnectionError, or ValueError for what is no name of one."""
    found = HUB.fullmatch(text)
    if found is None:
        raise ValueError(
            f"text = {text!r}: take python, files, instructions, or org/name[:config][@revision] of the Hub"
        )
    from datasets import load_dataset  # takes a second to import, which files need not wait for

    try:
        return load_dataset(found["id"], found["config"], split="train", revision=found["revision"], streaming=False)
    except OSError as error:  # the parent of all that Hub and network raise
        raise ConnectionError(
            f"could not get {text} from the Hub: {error}\nConnect, or unset HF_HUB_OFFLINE, if set; or take 'python', "
            "or 'files' and a path"
        ) from error


def _tokens(
    documents: list[str], vocabulary: int, tokenizer: PreTrainedTokenizerBase | None
) -> Integer[np.ndarray, " tokens"]:
    """All documents, each with its end, in the smallest integers that serve."""
    kind = np.uint16 if vocabulary <= 2**16 else np.int32
    end = END if tokenizer is None else tokenizer.eos_token_id
    if end is None:
        raise ValueError("the tokenizer has no eos_token to end documents with: give another one")
    parts = _bytes(documents) if tokenizer is None else _words(documents, tokenizer)
    pieces = [piece for part in parts for piece in (part.astype(kind), np.array([end], kind))]
    return np.concatenate([np.zeros(0, kind), *pieces])


def _bytes(documents: list[str]) -> Iterator[Integer[np.ndarray, " _"]]:
    return (np.frombuffer(document.encode(), np.uint8) for document in documents)


def _words(documents: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[Integer[np.ndarray, " _"]]:
    for first in range(0, len(documents), AT_ONCE):
        found = tokenizer(documents[first : first + AT_ONCE], add_special_tokens=False, verbose=False)
        yield from (np.array(ids, np.int64) for ids in found["input_ids"])


def _hash(stream: Stream) -> str:
    return hashlib.sha256(stream.tokens.tobytes()).hexdigest()
