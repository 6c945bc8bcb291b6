"""The figure `deep_lora_rank`, made a little false."""

from dataclasses import replace

import numpy as np

from figures.deep_lora_rank import DEEP, LORA, SCALED


def falsified(data) -> list:
    """Each must be refused."""

    def other(kind, rank, value):
        """A mean score is another."""
        found = data.pearson.copy()
        found[kind, rank] += value - found[kind, rank].mean()
        return replace(data, pearson=found)

    fitted = data.losses.copy()
    fitted[DEEP] = fitted[DEEP, 2]
    return [
        *(other(LORA, rank, 0.3) for rank in range(len(data.ranks))),
        other(LORA, -1, data.pearson[LORA, 0].mean() - 0.06),
        *(other(DEEP, rank, 0.7) for rank in (-1, -2)),
        *(other(SCALED, rank, 0.5) for rank in range(len(data.ranks))),
        other(SCALED, 3, np.nan),
        replace(data, losses=fitted),
    ]
