"""The figure `lazy_or_low_rank`, made a little false."""

from dataclasses import replace

import numpy as np

from figures.lazy_or_low_rank import FORGOTTEN, IDLE, KEPT, KERNEL, MODES, TIME


def falsified(data) -> list:
    """Each must be refused."""

    def grid(name, place, factor=1.0, plus=0.0):
        values = data.grids[name].copy()
        values[place] = factor * values[place] + plus
        return replace(data, grids={**data.grids, name: values})

    def run(target, index, columns, change):
        series = [list(runs) for runs in data.series]
        series[target][index] = series[target][index].copy()
        series[target][index][:, columns] = change(series[target][index][:, columns])
        return replace(data, series=tuple(map(tuple, series)))

    rank, x = data.spec.problem.rank, np.array(data.spec.ratios)
    bent, steep = x[:, None] ** np.array([0.1, 0.0]), x ** np.array(0.1)
    both = {**data.grids, "errors": data.grids["errors"].copy(), "laws": data.grids["laws"] * bent}
    both["errors"][KEPT, ..., 0] *= steep  # measurement and law agree on another order
    far = {**data.grids, "errors": data.grids["errors"].copy(), "laws": 10 * data.grids["laws"]}
    far["errors"][KEPT, ..., 0] *= 10  # and on another place
    far["kernel"] = 10 * data.grids["kernel"]
    return [
        replace(data, grids=both),
        replace(data, grids=far),
        grid("kernel", (..., 0), plus=1e-11),
        grid("errors", (..., 2), plus=1e-11),
        grid("errors", (..., 1), plus=1e-11 * np.maximum(1, x)),
        grid("errors", (..., 0, 0), 0.9),
        grid("errors", (KEPT, 0, slice(-2, None), 0), 1.01),
        grid("kernel", (KEPT, -1, -1, 1), 1.01),
        grid("laws", (KEPT, ..., 0), 0.99),
        grid("laws", (KEPT, ..., 1), 1.01),
        grid("errors", (FORGOTTEN, 0, -1, 0), 0.5),
        grid("errors", (FORGOTTEN, -1, -1, 0), 1.02),
        run(FORGOTTEN, -1, IDLE, lambda idle: 1.02 * idle),
        run(FORGOTTEN, 0, IDLE, lambda idle: 0.9 * idle),
        run(FORGOTTEN, -1, KERNEL, lambda share: share**0.3),
        run(KEPT, 0, MODES, lambda modes: np.roll(modes, 1, axis=1)[:, [0] * modes.shape[1]]),  # all at one time
        run(KEPT, 0, TIME, lambda time: 100 * time),
        grid("moved", (KEPT, ..., 2 * rank), plus=1e-8),
        grid("moved", (KEPT, -1, 0, rank), plus=0.1),
        grid("moved", (KEPT, 0, -1, rank), plus=0.1),
        grid("spectrum", (KEPT, -1, 0, rank), plus=0.1),
        grid("spectrum", (KEPT, 0, -1, -1), 0.5),
        grid("errors", (KEPT, 0, 1, 1), np.nan),
    ]
