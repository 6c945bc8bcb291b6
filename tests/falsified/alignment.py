"""What `alignment` claims, made a little false."""

from dataclasses import replace

import numpy as np


def falsified(data):
    whole, part = data.runs
    return [
        *(_thinned(data, kind) for kind in data.runs),  # a third of the blocks
        *(_stretched(data, kind) for kind in data.runs),
        *(_with(data, kind, "outputs", 0.98 * run["outputs"]) for kind, run in data.runs.items()),  # never settles
        *(_with(data, kind, "outputs", run["outputs"] ** 0) for kind, run in data.runs.items()),  # from the start
        *(_with(data, kind, "outputs", _dipped(run["outputs"], 4)) for kind, run in data.runs.items()),
        _with(data, whole, "outputs", _dipped(data.runs[whole]["outputs"], 1)),
        *(_with(data, kind, "subspace", 0.998 * run["subspace"]) for kind, run in data.runs.items()),
        *(_with(data, kind, "subspace", np.nan * run["subspace"]) for kind, run in data.runs.items()),
        *(_with(data, kind, "subspace", _fallen(run)) for kind, run in data.runs.items()),
        *(_with(data, kind, "subspace", run["subspace"] ** 1e-6) for kind, run in data.runs.items()),  # too early
        *(_with(data, kind, "subspace", _delayed(run["subspace"])) for kind, run in data.runs.items()),
        _with(data, whole, "sigma", 1.01 * data.runs[whole]["sigma"]),
        _with(data, part, "sigma", np.minimum(data.runs[part]["sigma"], 1)),
        _with(data, part, "sigma", 1.6 * data.runs[part]["sigma"]),
    ]


def _with(data, kind, name, values):
    return replace(data, runs={**data.runs, kind: {**data.runs[kind], name: values}})


def _thinned(data, kind):
    return replace(data, runs={**data.runs, kind: {name: array[::3] for name, array in data.runs[kind].items()}})


def _stretched(data, kind):
    run = {name: np.repeat(array, 3, axis=0) for name, array in data.runs[kind].items()}
    return replace(data, runs={**data.runs, kind: run})


def _dipped(cosines, count):
    """So many dips of 0.5 at the end, apart from its last block."""
    cosines = cosines.copy()
    cosines[-2 : -2 - 2 * count : -2] -= 0.5
    return cosines


def _fallen(run):
    cosines = run["subspace"].copy()
    cosines[int(np.argmax(run["sigma"][:, -1] >= 0.5))] -= 0.2
    return cosines


def _delayed(cosines):
    """All of it half as fast."""
    return cosines[np.arange(len(cosines)) // 2 + len(cosines) // 20]
