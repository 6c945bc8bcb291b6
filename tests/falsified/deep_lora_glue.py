"""The figure `deep_lora_glue`, made a little false."""

from dataclasses import replace

import numpy as np

from figures.deep_lora_glue import DEEP, LORA, PAPER, SMALL


def falsified(data) -> list:
    """Each must be refused."""

    def gained(kind, index, gain):
        """The mean gain of one task, or of all, is another."""
        found = data.scores.copy()
        found[kind, index] += gain - data.gains[kind - DEEP, index].mean()
        return replace(data, scores=found)

    everywhere = slice(None)
    spread, equal = data.scores.copy(), data.scores.copy()
    spread[DEEP] += 0.05 * (-1.0) ** np.arange(data.spec.seeds)
    equal[SMALL] = equal[DEEP] - 0.001
    slow, idle = data.scores.copy(), data.scores.copy()
    slow[DEEP] += data.untrained[:, None] + 0.03 - data.scores[DEEP].mean(axis=1, keepdims=True)
    idle[LORA] = data.untrained[:, None]
    even = data.scores.copy()
    even[SMALL] += data.gains[1].mean() - data.gains[1].mean(axis=1, keepdims=True)
    even[SMALL] += -0.005 - (even[SMALL] - even[LORA]).mean()
    return [
        *(gained(DEEP, everywhere, gain) for gain in (-0.1, 0.0, np.mean([*PAPER.values()]), np.nan)),
        *(gained(DEEP, index, 0.01) for index in range(len(data.tasks))),
        *(gained(SMALL, everywhere, gain) for gain in (-0.06, 0.01)),
        *(replace(data, scores=found) for found in (spread, equal, slow, idle, even)),
        *(replace(data, fitted=np.stack([data.fitted[LORA], *pair])) for pair in _fits(data.fitted)),
    ]


def _fits(fitted) -> tuple:
    """One form has fitted its examples as LoRA has."""
    return (fitted[LORA], fitted[SMALL]), (fitted[DEEP], fitted[LORA])
