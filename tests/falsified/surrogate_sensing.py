"""What `surrogate_sensing` claims, made a little false."""

from dataclasses import replace

import numpy as np


def falsified(data):
    (original, compressed), (first, *rest) = data.runs, data.surrogate
    return [
        _later(data, compressed, 8),  # no earlier than the original
        _later(data, compressed, -8),
        _later(data, original, 8),
        *(_floor(data, name, factor) for name in data.runs for factor in (30, np.nan)),
        _floor(data, original, 0.5),  # below the compressed one's
        _floor(data, compressed, 0.2),  # a fifth of the original's
        *(_floor(data, name, 0.01) for name in data.runs),  # the floor of factorization
        replace(data, surrogate=np.append(first, np.minimum(rest, first / 10))),  # a surrogate without noise
        replace(data, surrogate=np.append(first, np.maximum(rest, 0.99 * first))),  # and with too much
    ]


def _with(data, name, values):
    return replace(data, runs={**data.runs, name: {**data.runs[name], "values": values}})


def _later(data, name, blocks):
    values = data.runs[name]["values"]
    return _with(data, name, values[np.clip(np.arange(len(values)) - blocks, 0, len(values) - 1)])


def _floor(data, name, factor):
    values = data.runs[name]["values"].copy()
    values[-1] *= factor**2
    return _with(data, name, values)
