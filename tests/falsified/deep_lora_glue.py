"""The figure `deep_lora_glue`, made a little false."""

from dataclasses import replace

import numpy as np

from figures.deep_lora_glue import DEEP, LORA, PAPER


def falsified(data) -> list:
    """Each must be refused."""

    def gained(index, gain):
        """The mean gain of one task, or of all, is another."""
        found = data.scores.copy()
        found[DEEP, index] += gain - data.gains[index].mean()
        return replace(data, scores=found)

    everywhere = slice(None)
    spread = data.scores.copy()
    spread[DEEP] += 0.05 * (-1.0) ** np.arange(data.spec.seeds)
    slow, idle = data.scores.copy(), data.scores.copy()
    slow[DEEP] += data.untrained[:, None] + 0.03 - data.scores[DEEP].mean(axis=1, keepdims=True)
    idle[LORA] = data.untrained[:, None]
    return [
        *(gained(everywhere, gain) for gain in (-0.1, 0.0, np.mean([*PAPER.values()]), np.nan)),
        *(gained(index, 0.01) for index in range(len(data.tasks))),
        *(replace(data, scores=found) for found in (spread, slow, idle)),
        *(replace(data, fitted=data.fitted[[kind, kind]]) for kind in (LORA, DEEP)),
    ]
