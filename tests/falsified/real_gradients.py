"""The figure `real_gradients`, made a little false."""

from dataclasses import replace

import numpy as np


def falsified(data) -> list:
    """Each must be refused."""

    def other(name, index, value):
        """A part of an array is another."""
        found = getattr(data, name).copy()
        found[index] = value
        return replace(data, **{name: found})

    every, first, last = slice(None), (0, slice(None), 0), (1, slice(None), -1)

    def both(name, value):
        """A part of an array, and of what noise alone leaves there: training loses as much as it did."""
        lost = getattr(data, f"{name}_now")[last] - getattr(data, name)[last]
        changed = other(name, last, value)
        now = getattr(changed, f"{name}_now").copy()
        now[last] = value + lost
        return replace(changed, **{f"{name}_now": now})

    return [
        other("stable", (every, every, 0), 1.6),
        other("stable", last, 1.9),
        other("stable", first, float("nan")),
        other("leading", last, 0.9),
        other("overlap", first, 0.26),
        both("overlap", 0.55),
        other("overlap", first, data.overlap_now[first] - 0.05),
        other("overlap", last, data.overlap_now[last] - 0.1),
        both("held", 0.7),
        other("held", first, data.held_now[first] - 0.2),
        other("held", last, data.held_now[last] - 0.05),
        replace(data, held=data.held_now - 0.015, held_now=data.held_now * 0 + 0.99),
        other("constant", (0, every, -1), data.constant[1, :, -1] - 0.045),
        replace(
            data, constant=np.stack([data.constant[1] * 0 + 0.97, data.constant[1] * 0 + 0.99, *data.constant[2:]])
        ),
        *(other("columns", (k, *first), value) for k, value in ((0, 0.9), (1, 0.7))),
        *(other("matrices", (k, *first), value) for k, value in ((0, 0.9), (1, 0.8))),
    ]
