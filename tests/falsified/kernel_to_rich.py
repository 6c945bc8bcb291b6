"""The figure `kernel_to_rich`, made a little false."""

from dataclasses import replace

import numpy as np


def falsified(data) -> list:
    """Each must be refused."""
    scales = np.array(data.spec.scales)
    first, last = np.arange(len(scales)) == 0, np.arange(len(scales)) == len(scales) - 1

    def excess(row, factor):
        found = data.excess.copy()
        found[row] *= factor
        return replace(data, excess=found)

    return [
        replace(data, deviation=data.deviation + 2e-7),
        replace(data, deviation=data.deviation * np.nan),
        replace(data, distance=data.distance + 0.011 * last),
        *(replace(data, departure=data.departure * factor) for factor in (0.94, 1.06)),
        excess(slice(None), np.where(last, 0.97, 1.0)),
        replace(data, change=data.change + 0.11 * last),
        replace(data, change=data.change * np.where(first, 1e-3, 1.0)),
        replace(data, lazy=0.05),
        *(excess(0, factor) for factor in (10.0, 1e-3)),
        excess(0, (scales / scales[1]) ** 1.5),
        excess(0, np.where(first, data.excess[0, 1] / data.excess[0, 0], 1.0)),  # it does not fall
        excess(1, np.where(first, 60.0, 1.0)),
        excess(1, (scales / scales[1]) ** 1.6),
        excess(2, 20.0),
        *(excess(2, (scales / scales[1]) ** power) for power in (-1.8, 0.3)),
    ]
