"""Text as tokens: nothing is lost, everything is predicted once, and a document alone says on which side it is."""

import gzip
import hashlib
import lzma
import sysconfig
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_experiments.tasks import streams
from lm_experiments.tasks.streams import BORDER, END, PIECE, Stream, is_held_out, read
from tests.tiny_models import llama
from tests.tiny_texts import DOCUMENTS, written

TWENTIETH = "0" + 63 * "c"  # 2^256 / 20 in hexadecimal, without what follows the point


def divided(tokens: np.ndarray) -> list[str]:
    """The documents of a stream of bytes."""
    ends = np.flatnonzero(tokens == END)
    assert ends[-1] == len(tokens) - 1
    return [part[part != END].astype(np.uint8).tobytes().decode() for part in np.split(tokens, ends + 1)[:-1]]


@given(count=st.integers(0, 60), length=st.integers(1, 9))
def test_rows_predict_each_token_but_the_first_once(count, length):
    stream = Stream(np.arange(count), length)
    rows = stream.rows(np.arange(len(stream)))
    assert rows.shape == (len(stream), length + 1)
    assert rows.dtype == np.int64
    predicted = rows[:, 1:].reshape(-1)
    assert (predicted == np.arange(1, len(predicted) + 1)).all()
    assert (rows[:, 1:] == rows[:, :-1] + 1).all()
    assert 0 <= max(count - 1, 0) - len(predicted) < length


def test_a_stream_of_bytes_gives_every_document_back(tmp_path):
    text = read("files", 16, written(tmp_path))
    sides = [divided(stream.tokens) for stream in (text.train, text.held_out)]
    assert sides[0] == [document for document in DOCUMENTS if not is_held_out(document)]
    assert sides[1] == [document for document in DOCUMENTS if is_held_out(document)]
    assert text.vocabulary == 257
    assert text.train.tokens.dtype == np.uint16


def test_a_document_is_held_out_by_its_hash_alone_one_in_twenty():
    documents = [f"document {number}" for number in range(20_000)]
    held_out = {document for document in documents if is_held_out(document)}
    assert held_out == {text for text in documents if hashlib.sha256(text.encode()).hexdigest() <= TWENTIETH}
    assert abs(len(held_out) - 1000) < 4 * (20_000 * 0.05 * 0.95) ** 0.5


def test_the_standard_library_is_there_offline_in_one_order_and_without_tests():
    text = read("python", 256)
    documents = divided(text.train.tokens) + divided(text.held_out.tokens)
    root = Path(sysconfig.get_path("stdlib"))
    assert (root / "argparse.py").read_text() in documents
    assert (root / "json" / "decoder.py").read_text() in documents
    tests = root / "test" / "test_argparse.py"
    assert not tests.exists() or tests.read_text() not in documents
    assert len(text.train.tokens) > 5_000_000
    assert 0.01 < len(text.held_out) / len(text.train) < 0.2
    assert read("python", 256).fingerprint == text.fingerprint


def test_files_are_read_in_order_compressed_or_not_and_nothing_else_is(tmp_path):
    contents = [BORDER.join(DOCUMENTS[part::3]) for part in range(3)]
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    for place in (plain, packed):
        (place / "b").mkdir(parents=True)
    for name, content, pack, ending in zip(
        ("a.txt", "b/c.md", "d.py"), contents, (gzip.compress, lzma.compress, bytes), (".gz", ".xz", ""), strict=True
    ):
        (plain / name).write_text(content)
        (packed / f"{name}{ending}").write_bytes(pack(content.encode()))
    (packed / "INDEX.tsv").write_text("no text")
    (packed / "weights.gz").write_bytes(b"no text either")
    one, other = (read("files", 16, place) for place in (plain, packed))
    assert one.fingerprint == other.fingerprint
    expected = [document for content in contents for document in content.split(BORDER)]
    assert divided(one.train.tokens) == [document for document in expected if not is_held_out(document)]


@given(paragraphs=st.lists(st.text("ab \n", max_size=8).map(lambda text: text * 800), max_size=12))
def test_a_file_without_borders_is_cut_at_blank_lines_and_nothing_is_lost(paragraphs):
    content = "\n\n".join(paragraphs)
    pieces = list(streams._pieces(content))
    assert "".join(pieces) == content
    assert all(len(piece) >= PIECE and piece.endswith("\n\n") for piece in pieces[:-1])


def test_one_long_file_gives_both_sides(tmp_path):
    place = tmp_path / "book.txt"
    place.write_text("\n\n".join(f"paragraph {number} {'and so on ' * 30}" for number in range(4000)))
    text = read("files", 64, place)
    assert len(text.held_out) > 0
    assert len(text.train.tokens) + len(text.held_out.tokens) > place.stat().st_size


def test_a_tokenizers_words_are_its_own_each_document_with_an_end(tmp_path):
    tokenizer, _ = llama([" ".join(DOCUMENTS)])
    text = read("files", 8, written(tmp_path), tokenizer)
    training = [document for document in DOCUMENTS if not is_held_out(document)]
    expected = [token for one in training for token in (*tokenizer(one)["input_ids"], tokenizer.eos_token_id)]
    assert text.train.tokens.tolist() == expected
    assert text.vocabulary == len(tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos_token to end documents with"):
        read("files", 8, tmp_path / "text", tokenizer)


def test_a_data_set_of_the_hub_is_asked_for_and_read(monkeypatch):
    asked = []

    def load_dataset(*names, **options):
        asked.append((*names, options))
        return datasets.Dataset.from_dict({"text": DOCUMENTS, "url": DOCUMENTS})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    text = read("allenai/c4:en@main", 16)
    assert asked == [("allenai/c4", "en", {"split": "train", "revision": "main", "streaming": False})]
    assert divided(text.train.tokens) == [document for document in DOCUMENTS if not is_held_out(document)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"words": ["a"]}))
    with pytest.raises(ValueError, match="has the columns words, but no text"):
        read("org/name", 16)

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ConnectionError, match=r"could not get org/name from the Hub: no network\nConnect"):
        read("org/name", 16)


@pytest.mark.parametrize(
    ("text", "content", "message"),
    [
        ("files", None, "'files' needs one, and it alone"),
        ("python", b"there", "'files' needs one, and it alone"),
        ("files", b"\xff\xfe", r"a\.txt is not text in UTF-8"),
        ("files", b"one short document", "gives 19 tokens to train on, of 1 documents, which is no row"),
        ("books", None, r"text = 'books': take python, files, instructions, or org/name"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, text, content, message):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(text, 64, tmp_path if content is not None else None)


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_a_file_that_is_cut_short_is_named(tmp_path, ending, pack):
    place = tmp_path / f"a.txt{ending}"
    place.write_bytes(pack(b"text" * 1000)[:-9])
    with pytest.raises(ValueError, match=rf"a\.txt\{ending} is not text in UTF-8"):
        read("files", 64, tmp_path)


def test_a_folder_without_text_says_which_files_are_text(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no text: give a text file, or a folder of \.txt"):
        read("files", 64, tmp_path)
