"""Real ratings: what the reader accepts, and how it refuses everything else."""

import numpy as np
import pytest

from lm_experiments import assets
from lm_experiments.tasks.movielens import Ratings, read_ratings

GOOD = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n7\t3\t4\t881\n7\t9\t1.5\t882\n10\t3\t5\t883\n"


def write(folder, text, name="u.data"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("text", [GOOD, GOOD.split("\n", 1)[1], GOOD.replace("\n", "\r\n"), GOOD + "\n\n"])
def test_both_published_layouts_are_read(tmp_path, text):
    ratings = read_ratings(write(tmp_path, text))
    assert ratings.shape == (2, 2)
    values, known = ratings.matrix(np.arange(3))
    assert sorted(values[known == 1]) == [1.5, 4, 5]
    assert known.sum() == 3
    values, known = ratings.matrix(np.array([1]))
    assert values.sum() == 1.5
    assert known.sum() == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"holds no ratings: expected user, item, rating, separated by tabs"),
        ("user_id:token\titem_id:token\trating:float\n", r"holds no ratings"),
        ("1\t2\n", r"line 1: 2 filled column\(s\) in '1\\t2'; expected user, item, rating"),
        ("1,2,3\n", r"line 1: 1 filled column"),
        ("\t\t5\n", r"line 1: 1 filled column"),
        (GOOD + "3\t4\tfive\t1\n", r"line 5: the rating 'five' is not a finite number"),
        (GOOD + "3\t4\tnan\t1\n", r"line 5: the rating 'nan' is not a finite number"),
        (GOOD + "7\t3\t2\t1\n", r"rates a film twice by the same user: keep one"),
        (b"\xff\xfe\x00PK\x03", r"is not text"),
    ],
)
def test_bad_files_are_refused_with_the_line_and_the_reason(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_ratings(write(tmp_path, text))


def test_the_densest_part_is_what_counting_says():
    rows = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]
    users, items = (np.array(column) for column in zip(*rows, strict=True))
    densest = Ratings(users, items, np.arange(6.0)).densest(2, 2)
    assert densest.shape == (2, 2)
    assert densest.values.tolist() == [0, 1, 3, 4]


def test_a_missing_file_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no ratings file .*nowhere: give a path to u.data"):
        read_ratings(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no ratings file"):
        read_ratings(tmp_path)


def test_the_fetched_ratings_are_movielens_100k():
    ratings = read_ratings()
    assert ratings.shape == (943, 1682)
    assert len(ratings.values) == 100_000
    assert np.bincount(ratings.users).min() >= 20
    assert set(ratings.values) == {1, 2, 3, 4, 5}


def test_a_corrupted_cache_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = assets.cache() / "movielens-100k" / "ml-100k.inter"
    assets.write_atomically(path, GOOD.encode())
    with pytest.raises(ValueError, match=r"ml-100k.inter has sha256 .* delete it and run ./run assets"):
        read_ratings()


def test_a_wheel_with_another_file_inside_is_refused_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(assets, "_from_wheel", lambda asset: {"ml-100k.inter": GOOD.encode()})
    with pytest.raises(ValueError, match=r"recbole==1.2.1 has sha256 .* do not use it"):
        assets.fetch("movielens-100k")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_no_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConnectionError, match=r"(?s)could not download recbole==1.2.1: .* run ./run assets, or give"):
        assets.fetch("movielens-100k")


def test_files_are_written_in_one_piece_or_not_at_all(tmp_path, monkeypatch):
    path = write(tmp_path, "old")
    monkeypatch.setattr(assets.os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        assets.write_atomically(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["u.data"]
    assert path.read_text() == "old"
    monkeypatch.undo()
    assets.write_atomically(path, b"new")
    assert path.read_text() == "new"
