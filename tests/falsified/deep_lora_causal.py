"""The figure `deep_lora_causal`, made a little false."""

from dataclasses import replace

import numpy as np

from figures.deep_lora_fewshot import DEEP, LORA


def falsified(data) -> list:
    """Each must be refused."""

    def other(kind, step, value):
        """A mean accuracy is another."""
        found = data.accuracy.copy()
        found[kind, step] += value - found[kind, step].mean()
        return replace(data, accuracy=found)

    ends, early = data.accuracy[:, -1].mean(axis=1), data.accuracy[:, 1].mean(axis=1)
    memorised, forgot, idle = data.losses.copy(), data.losses.copy(), data.accuracy.copy()
    memorised[DEEP] = memorised[LORA]
    forgot[LORA, -1] += 0.1
    idle[:] = idle[:, :1]

    def tuned(step, value):
        """The compressed form at the next rate is another."""
        found = data.tuning.copy()
        found[-1, step] = value
        return replace(data, tuning=found)

    return [
        *(other(DEEP, -1, ends[LORA] + gain) for gain in (0.05, -0.05, np.nan)),
        other(DEEP, 1, early[LORA]),
        replace(data, losses=memorised),
        replace(data, losses=forgot),
        replace(data, accuracy=idle),
        tuned(-1, data.tuning[DEEP, -1] - 0.01),
        tuned(1, data.tuning[LORA, 1] - 0.01),
        replace(data, fitted=data.fitted[[LORA, DEEP, LORA]]),
    ]
