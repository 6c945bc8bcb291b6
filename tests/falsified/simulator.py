"""The figure `simulator`, made a little false."""

from dataclasses import replace

import numpy as np


def falsified(data) -> list:
    """Each must be refused."""
    widths = np.array(data.spec.widths)
    late = np.arange(len(data.losses))[:, None] < len(data.losses) * np.linspace(0.5, 0.9, len(widths))
    return [
        replace(data, sizes=data.sizes * widths),
        replace(data, deviation=1e-8),
        replace(data, predicted=1.01 * data.predicted),
        replace(data, predicted=1.00001 * data.predicted),
        replace(data, predicted=data.predicted * widths / (widths - 2)),  # another rank
        replace(data, idle=data.idle[:, :1] + 0 * data.idle),
        replace(data, losses=1.4 * data.losses),
        replace(data, losses=0.9 * data.losses),
        replace(data, losses=np.where(late, data.losses[0], data.losses[-1])),
        replace(data, corners=data.corners * [[1.0], [1.1]]),
    ]
