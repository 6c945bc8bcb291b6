"""The figure `kernel_projection`, made a little false."""

from dataclasses import replace

import numpy as np


def falsified(data) -> list:
    """Each must be refused."""
    ranks = np.array(data.spec.ranks)

    def drawn(name, change, chosen=ranks):
        changed = {f"{name} {k}": change(data.found[f"{name} {k}"], k) for k in chosen}
        return replace(data, found={**data.found, **changed})

    def moved(factor):
        return replace(data, shift=np.array([factor * data.shift[0], data.shift[1]]))

    return [
        *(replace(data, exact=(*data.exact[:at], 1e-11, *data.exact[at + 1 :])) for at in range(len(data.exact))),
        *(replace(data, found={**data.found, "mean": data.found["mean"] + by}) for by in (-0.2, 0.2, np.nan)),
        *(drawn("square", lambda square, k: square + 1, [k]) for k in ranks[:3]),
        *(drawn("square", lambda square, k, by=by: by * square, ranks[:1]) for by in (0.7, 1.4)),
        *(replace(data, law=data.law * np.array([1, 1, 1, by])) for by in (0.25, 10.0)),
        *(drawn("within", lambda within, k: within - 0.1, [k]) for k in ranks),
        replace(data, density=data.density[[0, 1, 0]]),
        *(drawn("worst", lambda worst, k, by=by: by * worst) for by in (0.1, 4.0)),
        *(drawn("worst", lambda worst, k, power=power: worst * k**power) for power in (-0.25, 0.25)),
        replace(data, spec=replace(data.spec, width=512)),
        *(moved((ranks / ranks[-1]) ** power) for power in (-0.25, 0.25)),
        *(moved(factor) for factor in (0.5, 2.0, np.nan)),
    ]
