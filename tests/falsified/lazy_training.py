"""What `lazy_training` claims, made a little false."""

from dataclasses import replace

import numpy as np

from figures.lazy_training import RATES, RELU, TANH


def falsified(data) -> list:
    grids, alphas, tail = data.grids, np.array(data.spec.alphas), np.array(data.spec.alphas) == data.spec.alphas[-1]
    first = np.arange(len(alphas)) == 0
    slopes = [_columns(which, (alphas / 32) ** 0.2) for which in range(4)]
    slopes += [_columns(which, (alphas / 32) ** power) for which in range(4) for power in (-1.3, 1.3)]
    return [
        *(_times(data, "apart", factor) for factor in slopes),
        *(_with(data, "apart", _smooth(grids["apart"], alphas, which)) for which in range(1, 4)),
        *(_times(data, "apart", [[[1, 1, 1, which]], [[1, 1, 1, 1]]]) for which in (0.01, 30)),
        _times(data, "explicit", 1e6),
        _times(data, "explicit", np.nan),
        _times(data, "growth", [[[[2.5, 1]]]]),
        _times(data, "growth", [[[[0.15, 1]]]]),
        *(_times(data, "growth", [[[[1, factor]]]]) for factor in (0.1, 20)),
        _times(data, "series", np.where(tail[:, None, None, None], [[1], [1.03], [1]], 1)),  # off at the largest alpha
        _with(data, "series", grids["series"][:, -1:] + 0 * grids["series"]),  # lazy at the smallest, too
        _times(data, "errors", np.where(tail[:, None, None], [1.2, 1, 1], 1)),
        *(_times(data, "errors", factor) for factor in ([10, 10, 1], [1, 1, 0.3], [1, 1, 100])),
        *(_times(data, "share", np.where(tail[:, None, None], [1, factor], 1)) for factor in (0.97, 1.03)),
        *(_times(data, "share", np.where(first[:, None, None], [1, factor], 1)) for factor in (0.2, 20)),
    ]


def _columns(which, values):
    """`values` over alpha for one of the measured distances, 1 for the others."""
    return np.where(np.arange(4) == which, np.asarray(values)[:, None], 1.0)


def _smooth(apart, alphas, which):
    """One of ReLU's distances as smooth networks have it."""
    found = apart.copy()
    found[RELU, :, which] = apart[RELU, alphas == 32, which] * (alphas / 32) ** RATES[TANH][which]
    return found


def _with(data, name, values):
    return replace(data, grids={**data.grids, name: values})


def _times(data, name, factor):
    return _with(data, name, data.grids[name] * np.array(factor))
