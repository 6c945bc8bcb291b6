"""What `incremental_learning` claims, made a little false."""

from dataclasses import replace

import numpy as np

from figures.incremental_learning import INPUTS, OUTPUTS, VALUE


def falsified(data):
    return [
        *(_predicted(data, kind, factor) for kind in data.runs for factor in (0.5, 2)),  # a wrong formula
        _predicted(data, "completion", data.spec.completion.density),  # without p
        *(_value(data, kind, slice(None), [-1], 1.02) for kind in data.runs),  # wrong at the end
        *(_value(data, kind, slice(None), [-1], np.nan) for kind in data.runs),
        *(_value(data, kind, slice(None), [-1], 0.1) for kind in data.runs),  # the last one never learned
        *(_cosine(data, kind, column) for kind in data.runs for column in (OUTPUTS, INPUTS)),
        *(_together(data, kind) for kind in data.runs),  # no staircase
        *(_swapped(data, kind) for kind in data.runs),  # the smaller one first
    ]


def _predicted(data, kind, factor):
    return replace(data, predicted={**data.predicted, kind: factor * data.predicted[kind]})


def _with(data, kind, triplets):
    return replace(data, runs={**data.runs, kind: {**data.runs[kind], "triplets": triplets}})


def _value(data, kind, times, indices, factor):
    triplets = data.runs[kind]["triplets"].copy()
    triplets[times, VALUE, indices] *= factor
    return _with(data, kind, triplets)


def _cosine(data, kind, column):
    triplets = data.runs[kind]["triplets"].copy()
    triplets[:, column, -1] *= 0.6
    return _with(data, kind, triplets)


def _together(data, kind):
    triplets = data.runs[kind]["triplets"].copy()
    triplets[:, VALUE] = triplets[:, VALUE, :1] * triplets[-1, VALUE] / triplets[-1, VALUE, 0]
    return _with(data, kind, triplets)


def _swapped(data, kind):
    """The first two change their curves, each still with its own height."""
    triplets = data.runs[kind]["triplets"].copy()
    heights = triplets[-1, VALUE, :2]
    triplets[:, VALUE, :2] = (triplets[:, VALUE, :2] / heights)[:, ::-1] * heights
    return _with(data, kind, triplets)
