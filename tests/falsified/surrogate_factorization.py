"""surrogate_factorization, a little false: each must be refused."""

from dataclasses import replace

import numpy as np


def falsified(data) -> list:
    late = np.vstack([data.error[:1]] * (len(data.error) // 20) + [data.error])[: len(data.error)]
    shifted = np.stack([data.error[:, 0], late[:, 1]], axis=1)  # compressed later, original as it was
    shifted[-1] = data.error[-1]
    alone = lambda column, row, factor: replace(data, error=_scaled(data.error, column, row, factor))  # noqa: E731
    never = data.error * [[0.0, 1.0]] + data.error[:1, :1] * [[1.0, 0.0]]
    first = [1.0] * data.predicted.shape[1]
    return [
        alone(1, 0, 1.1),  # initial loss
        replace(data, error=never),
        replace(data, error=shifted),
        alone(1, 1, 1.001),  # above the original once
        alone(0, -1, 1.05),
        alone(0, -1, 0.97),
        alone(1, -1, 1.03),
        alone(1, -1, 0.97),
        replace(data, floors=data.floors * [1.03, 1.0]),
        replace(data, floors=data.floors * [1.0, 1.01]),
        replace(data, predicted=data.predicted * [*first[:-1], 1.001]),  # alpha = 2 above the original
        replace(data, predicted=np.stack([data.predicted[:, 0]] * len(first), axis=1)),  # alpha = 0.3 does not fail
        replace(data, deviation=data.deviation + 1e-10),
        replace(data, simulator=data.simulator + 1e-11),
        replace(data, spec=replace(data.spec, network=replace(data.spec.network, hidden=data.spec.network.width // 2))),
    ]


def _scaled(values, column, row, factor):
    values = values.copy()
    values[row, column] *= factor
    return values
