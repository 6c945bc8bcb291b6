"""The figure `leak`, made a little false."""

from dataclasses import replace

import numpy as np


def falsified(data) -> list:
    """Each must be refused."""

    def changed(name, rule, column, change):
        values = getattr(data, name)[rule].copy()
        values[:, column] = change(values[:, column])
        return replace(data, **{name: {**getattr(data, name), rule: values}})

    rank = data.spec.training.outputs
    return [
        changed("whitened", "gradient descent", 0, lambda leak: leak + 1e-11),
        changed("whitened", "momentum", 0, lambda leak: leak + 1e-11),
        changed("whitened", "Adam", 0, lambda leak: 0.05 * leak),
        *(changed("raw", rule, 0, lambda leak: 0.03 * leak) for rule in data.raw),
        *(changed("raw", rule, 0, lambda leak: 1 + leak) for rule in ("gradient descent", "momentum")),
        *(changed("raw", rule, 1, lambda error: error + 0.06) for rule in data.raw),
        *(changed("whitened", rule, 1, lambda error: error + np.nan) for rule in data.whitened),
        replace(data, leaks=data.leaks[0] + 0 * data.leaks),
        replace(data, leaks=data.leaks[0] / np.array(data.spec.samples)),
        changed("raw", "gradient descent", 2, lambda sigma: 0.9 * sigma),
        changed("raw", "gradient descent", 2, lambda sigma: 1.4 * sigma),
        changed("raw", "gradient descent", 2 + rank, lambda sigma: 1.1 * sigma),
    ]
