"""The figure `kernel_drift`, made a little false."""

from dataclasses import replace

import numpy as np

from figures.kernel_drift import DRIFT, MOVED, PREDICTED, RELATIVE, SMOOTH


def falsified(data) -> list:
    """Each must be refused."""
    widths = np.array(data.spec.widths, dtype=float)[:, None]

    def trained(row, factor, nets=slice(None)):
        """A row of some networks times a factor for each width."""
        found = data.trained.copy()
        found[row, nets] *= factor
        return replace(data, trained=found)

    def alone(index, factor):
        found = data.single.copy()
        found[index] *= factor
        return replace(data, single=found)

    means = data.trained[DRIFT].mean(axis=2)
    slopes = np.polyfit(np.log(widths[:, 0]), np.log(means).T, 1)[0]
    slower = slopes[SMOOTH:].mean() - slopes[:SMOOTH].mean()
    shape = data.trained.shape[2:]
    last = np.where(np.arange(len(widths)) == len(widths) - 1, 1.05, 1.0)[:, None]
    off = np.abs(data.trained[MOVED] / data.trained[PREDICTED] - 1)
    lazy = data.trained.copy()
    lazy[MOVED] = lazy[PREDICTED] * (1 + off[:, :1].mean(axis=2, keepdims=True) * np.ones(shape))
    narrowest = np.zeros_like(data.single)
    narrowest[1, 0] = 3 * data.law[0]
    noise = np.random.default_rng(0).choice([-1.0, 1.0], size=data.single[1].shape)
    return [
        *(trained(DRIFT, widths**power, slice(0, SMOOTH)) for power in (-0.5, 0.5)),
        *(trained(DRIFT, widths**power, index) for index in range(SMOOTH) for power in (-1.0, 1.0)),
        *(trained(DRIFT, widths**power, slice(SMOOTH, None)) for power in (-0.6, 0.5)),
        trained(DRIFT, widths**-slower, slice(SMOOTH, None)),  # as the smooth ones
        *(trained(MOVED, widths**power, index) for index in range(6) for power in (-0.2, 0.2)),
        *(trained(RELATIVE, widths**power, index) for index in range(6) for power in (-0.2, 0.2)),
        *(trained(row, last, index) for row in (MOVED, RELATIVE) for index in range(6)),
        replace(data, trained=lazy),  # as far off at every width
        *(alone(0, factor) for factor in (0.98, 1.02, -1.0, np.nan)),
        *(alone(1, factor) for factor in (-1.0, 0.4, 2.0, np.nan)),
        replace(data, single=data.single + narrowest),  # the widest is right, the rate is not
        replace(data, single=np.stack([data.single[0], data.law[:, None] * (3.0 + 0.1 * noise)])),
        replace(data, exact=1.02 * data.exact),
        *(replace(data, law=factor * data.law) for factor in (0.3, 3.0, -1.0)),
    ]
