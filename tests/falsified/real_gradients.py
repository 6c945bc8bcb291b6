"""The figure `real_gradients`, made a little false."""

from dataclasses import replace


def falsified(data) -> list:
    """Each must be refused."""

    def other(name, index, value):
        """A part of an array is another."""
        found = getattr(data, name).copy()
        found[index] = value
        return replace(data, **{name: found})

    every, first, last = slice(None), (0, slice(None), 0), (1, slice(None), -1)
    return [
        other("stable", (every, every, 0), 1.6),
        other("stable", last, 1.9),
        other("stable", first, float("nan")),
        other("leading", last, 0.9),
        other("overlap", first, 0.26),
        other("overlap", last, 0.5),
        other("overlap", first, data.overlap_now[first] - 0.05),
        other("overlap", last, data.overlap_now[last] - 0.1),
        replace(data, chance=0.5),
        other("held", last, 0.7),
        other("held_now", last, data.held[last] + 0.05),
        *(other("columns", (k, *first), value) for k, value in ((0, 0.9), (1, 0.7))),
        *(other("matrices", (k, *first), value) for k, value in ((0, 0.9), (1, 0.8))),
    ]
