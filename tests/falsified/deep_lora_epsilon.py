"""The figure `deep_lora_epsilon`, made a little false."""

from dataclasses import replace

import numpy as np

from figures.deep_lora_epsilon import PAPERS, SLOW, SMALL


def falsified(data) -> list:
    """Each must be refused."""

    def other(name, place, value):
        """A mean score is another."""
        found = getattr(data, name).copy()
        found[place] += value - found[place].mean()
        return replace(data, **{name: found})

    slow, last, first = data.rates.index(SLOW), (SMALL, -1), (SMALL, 1)
    papers, best = data.course[PAPERS].mean(axis=1), data.tuning.mean(axis=2).max(axis=1)
    lora, top = data.lora.mean(axis=1), int(data.tuning[SMALL].mean(axis=1).argmax())
    return [
        other("tuning", (SMALL, slow), data.tuning[PAPERS, slow].mean()),
        *(other("tuning", (SMALL, top), best[PAPERS] + gain) for gain in (0.2, np.nan)),
        other("tuning", (PAPERS, top), best[SMALL] + 0.01),
        other("course", first, papers[1]),
        *(other("course", last, papers[-1] + gain) for gain in (0.1, -0.1)),
        *(other("by_rank", (SMALL, rank), 0.7) for rank in (-1, -2)),
        *(other("by_rank", (SMALL, rank), 0.4) for rank in (0, 1, 2)),
        other("by_examples", (SMALL, 0), lora[0] + 0.3),
        other("by_examples", (SMALL, 1), lora[1]),
        other("by_examples", (SMALL, -1), lora[-1] + 0.01),
    ]
