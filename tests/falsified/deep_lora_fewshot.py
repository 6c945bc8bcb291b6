"""The figure `deep_lora_fewshot`, made a little false."""

from dataclasses import replace

import numpy as np

from figures.deep_lora_fewshot import DEEP, LORA, SHOWN


def falsified(data) -> list:
    """Each must be refused."""
    at = data.examples.index(SHOWN)

    def gained(index, gain):
        """The mean gain at one number of examples is another."""
        found = data.pearson.copy()
        found[DEEP, index] += gain - data.gains[index].mean()
        return replace(data, pearson=found)

    spread = data.pearson.copy()
    spread[DEEP, at] += 0.3 * (-1.0) ** np.arange(data.spec.seeds)
    noisy = data.pearson.copy()
    noisy[DEEP, -1] += 0.2 * (-1.0) ** np.arange(data.spec.seeds)
    course = data.course.copy()
    course[LORA] = course[DEEP]
    early = data.course.copy()
    early[:, 0] += 0.3
    learned = data.pearson.copy()
    learned[:, 0] += 0.4
    return [
        *(gained(at, gain) for gain in (-0.05, 0.0, 0.15, np.nan)),
        *(gained(-1, gain) for gain in (0.0, 0.05, -0.1)),
        *(gained(0, gain) for gain in (0.07, -0.07)),  # 0.07 is the paper's
        *(replace(data, pearson=found) for found in (spread, noisy, learned, data.pearson[:, ::-1])),
        *(replace(data, course=found) for found in (course, early)),
    ]
