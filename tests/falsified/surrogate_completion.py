"""surrogate_completion, a little false."""

from dataclasses import replace

import numpy as np


def _lasting(run, factor):
    """The same run in `factor` times as many blocks: it waits longer at first, or less long."""
    count = round(factor * run.blocks) + 1
    index = np.maximum(np.arange(count) - count + len(run.steps), 0)
    return replace(run, steps=50 * np.arange(count), recovery=run.recovery[index], seconds=run.seconds[index])


def _worse(run):
    return replace(run, recovery=10 * run.recovery)


def falsified(data) -> list:
    wide, narrow = data.original, data.compressed
    return [
        replace(data, original=[_lasting(run, 0.6) for run in wide]),
        replace(data, original=[_lasting(run, 1.6) for run in wide]),
        replace(data, original=[_lasting(wide[0], 0.6), *wide[1:]]),  # one draw
        replace(data, original=[_lasting(wide[0], 1.6), *wide[1:]]),
        replace(data, compressed=[_lasting(run, 0.6) for run in narrow]),
        replace(data, compressed=[_lasting(run, 1.6) for run in narrow]),
        replace(data, original=[_worse(run) for run in wide]),
        replace(data, compressed=[_worse(run) for run in narrow]),
        replace(data, original=[replace(run, seconds=run.seconds / 20) for run in wide]),
        replace(data, spaced=[_lasting(data.spaced[0], 0.6), data.spaced[1]]),
        replace(data, spaced=[data.spaced[0], _lasting(data.spaced[1], 0.6)]),
    ]
