"""The figure `deep_lora_outer`, made a little false."""

from dataclasses import replace

import numpy as np

from figures.deep_lora_outer import EQUAL, FROZEN, PAPERS, SLOW


def falsified(data) -> list:
    """Each must be refused."""
    learned = data.gradient[PAPERS, -1].mean()

    def other(name, index, score):
        """The last mean of one kind is another."""
        found = getattr(data, name).copy()
        found[index, -1] += score - found[index, -1].mean()
        return replace(data, **{name: found})

    def at_zero(index, lost):
        """A head that starts at 0 loses as much."""
        found = data.centred.copy()
        found[index] += found[index - 1].mean() - lost - found[index].mean()
        return replace(data, centred=found)

    early = data.random.copy()
    early[PAPERS, len(data.steps) // 2] = data.gradient[PAPERS, len(data.steps) // 2] - 0.3
    return [
        *(other("random", kind, learned) for kind in (PAPERS, FROZEN)),
        other("random", FROZEN, data.random[PAPERS, -1].mean()),
        other("random", PAPERS, np.nan),
        *(other("gradient", kind, learned - 0.2) for kind in (FROZEN, SLOW)),
        *(other("gradient", kind, learned + 0.05) for kind in (FROZEN, SLOW, EQUAL)),
        other("gradient", EQUAL, learned - 0.1),
        replace(data, random=early),
        *(at_zero(index, lost) for index, lost in ((3, 0.2), (1, 0.3), (1, -0.1))),
    ]
