"""burer_monteiro, a little false: each must be refused."""

from dataclasses import replace

import numpy as np

ORIGINAL, COMPRESSED, EXACT, OVER, SMALL = range(5)


def falsified(data) -> list:
    steeper, flatter = ((data.steps + data.steps[-1] / 10) ** power for power in (-0.5, 0.5))
    last = (data.steps == data.steps[-1]).astype(float)
    slow = np.interp(data.steps / 20, data.steps, data.errors[0, EXACT])
    return [
        _with(data, OVER, lambda values: values * 0.9),
        _with(data, OVER, lambda values: values * 1.1),
        _with(data, OVER, lambda values: values * 1e-3),
        _with(data, OVER, lambda values: values * steeper / steeper[-1]),
        _with(data, OVER, lambda values: values * flatter / flatter[-1]),
        replace(data, sublinear=1.06 * data.sublinear),
        *(_with(data, which, lambda values: values * (1 + 0.05 * last)) for which in (ORIGINAL, COMPRESSED)),
        *(_with(data, which, lambda values: values * (1 - 0.05 * last)) for which in (ORIGINAL, COMPRESSED)),
        _with(data, SMALL, lambda values: values * (1 + last)),
        _with(data, EXACT, lambda values: values + 1e-20),
        _with(data, EXACT, lambda values: slow * (1 - last)),
    ]


def _with(data, which, change):
    errors = data.errors.copy()
    errors[:, which] = change(errors[:, which])
    return replace(data, errors=errors)
