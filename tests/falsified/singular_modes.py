"""What `singular_modes` claims, made a little false."""

from dataclasses import replace

import numpy as np


def falsified(data) -> list:
    rich, lazy = "lambda = 0", "lambda = 100"
    worst = [name for name in data.traces if "lambda" not in name or name == rich]  # the groups' largest errors
    return [
        *(_trace(data, name, expected=1.02 * trace.expected) for name, trace in data.traces.items()),
        *(_trace(data, name, found=np.nan * trace.found) for name, trace in data.traces.items()),
        *(_trace(data, name, found=_off(data.traces[name], -2, factor)) for name in worst for factor in (4, 0)),
        *(
            _trace(data, name, found=_off(trace, slice(None), 12)) for name, trace in data.traces.items()
        ),  # still halves
        *(_trace(data, name, missed=1e-12) for name in data.traces),
        *(replace(data, growths={**data.growths, name: 1.002 * data.growths[name]}) for name in data.growths),
        *(replace(data, growths={**data.growths, name: 0.998 * data.growths[name]}) for name in data.growths),
        replace(data, lags=1.02 * data.lags),
        replace(data, lags=-data.lags),
        *(replace(data, half_times=factor * data.half_times) for factor in (0.98, 1.02)),
        replace(data, lazy={**data.lazy, rich: data.traces[rich].expected[:, 0]}),  # nothing to tell rich from lazy
        replace(data, lazy={**data.lazy, lazy: data.lazy[lazy] ** 1.1}),
    ]


def _trace(data, name, **changes):
    return replace(data, traces={**data.traces, name: data.traces[name]._replace(**changes)})


def _off(trace, levels, factor):
    """Some runs at `factor` times their distance to theory."""
    found = trace.found.copy()
    found[levels] = trace.expected + factor * (found[levels] - trace.expected)
    return found
