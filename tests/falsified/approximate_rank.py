"""What `approximate_rank` claims, made a little false."""

from dataclasses import replace

import numpy as np


def falsified(data):
    small, enough = 0, 1  # places of the ranks 2 and 3
    chosen = data.spec.ranks.index(data.chosen[0])
    return [
        replace(data, predicted=[1.5 * times for times in data.predicted]),
        replace(data, predicted=[0.5 * times for times in data.predicted]),
        replace(data, escaped=[times + np.inf for times in data.escaped]),  # never
        *(_all(data, name, depth, "bound", 0.15) for name in ("ranks", "tails") for depth in (0, 1)),
        *(_one(data, "tails", depth, 0, "linear", factor) for depth in (0, 1) for factor in (0.5, 2)),
        *(_one(data, "ranks", depth, small, "truth", 0.5) for depth in (0, 1)),
        *(_one(data, "ranks", depth, small, "bound", np.nan) for depth in (0, 1)),
        *(_one(data, "ranks", depth, chosen, "bound", 1e3) for depth in (0, 1)),
        _one(data, "ranks", 1, enough, "linear", 0.01),
        replace(data, ranks=[data.ranks[1]] * 2, chosen=[data.chosen[1]] * 2),  # two layers as forgiving as three
        _vacuous(data),
        _silent(data),
    ]


def _one(data, name, depth, place, field, factor):
    """The chosen depth and rank or tail, with one of its curves scaled."""
    groups = [list(group) for group in getattr(data, name)]
    miss = groups[depth][place]
    groups[depth][place] = replace(miss, **{field: factor * getattr(miss, field)})
    return replace(data, **{name: groups})


def _all(data, name, depth, field, factor):
    for place in range(len(getattr(data, name)[depth])):
        data = _one(data, name, depth, place, field, factor)
    return data


def _vacuous(data):
    for name in ("ranks", "tails"):
        for depth in (0, 1):
            data = _all(data, name, depth, "bound", 30)
    return data


def _silent(data):
    """A rank that is too small, a bound that does not say so, and a truth that obeys it."""
    miss = data.ranks[0][0]
    return _one(_one(data, "ranks", 0, 0, "bound", 0.9 * 2.5 / miss.bound[-1]), "ranks", 0, 0, "truth", 1e-3)
