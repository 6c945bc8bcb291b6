"""The figure `completion`, made a little false."""

from dataclasses import replace

import numpy as np


def falsified(data) -> list:
    """Each must be refused."""

    def changed(name, **arrays):
        return replace(data, runs={**data.runs, name: {**data.runs[name], **arrays}})

    def later(name):
        """Everything a fifth later."""
        error = data.runs[name]["error"]
        return changed(name, error=np.concatenate([error[:1]] * (len(error) // 5) + [error])[: len(error)])

    original, much, little, frozen = data.runs
    error = data.runs[frozen]["error"]
    return [
        replace(data, movement=data.movement * [1, 0]),
        replace(data, movement=data.movement * [0, 1]),
        *(changed(name, error=1e4 * data.runs[name]["error"]) for name in (original, much, little)),
        changed(little, error=np.nan * data.runs[little]["error"]),
        changed(frozen, error=1e-2 * error),
        changed(frozen, error=0.85 * error),
        changed(frozen, error=1.4 * error),
        changed(frozen, error=error * np.linspace(1.1, 1.0, len(error))),
        *(later(name) for name in (much, little)),
        *(changed(name, steps=data.runs[name]["steps"] // 2) for name in (much, little)),
    ]
