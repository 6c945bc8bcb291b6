"""The figure `random_narrow`, made a little false."""

from dataclasses import replace

import numpy as np


def falsified(data) -> list:
    """Each must be refused."""
    count = len(data.spec.ranks)
    return [
        replace(data, random=0.5 * data.random),
        replace(data, random=30 * data.random),
        replace(data, random=data.random[:, ::-1]),
        replace(data, random=data.random[:, :1] + 0 * data.random),
        replace(data, random=data.compressed * np.linspace(1.29, 1.1, count)),
        replace(data, random=data.random * np.where(np.arange(count) == 1, 3.0, 1.0)),
        replace(data, compressed=data.compressed * np.linspace(1.5, 1.0, count)),
        replace(data, halves=data.halves * [[[0.5]], [[1.0]]]),
        replace(data, larger=data.larger * [[[3.0]], [[1.0]]]),
        replace(data, larger=np.stack([data.random, data.compressed])),
        replace(data, error=1e-3),
        replace(data, error=np.nan),
    ]
