"""The figure `pretraining_subspaces`, made a little false."""

from dataclasses import replace

import numpy as np


def falsified(data) -> list:
    """Each must be refused."""

    def ranks(change):
        return replace(data, by_rank=_changed(data.by_rank, change))

    def gaps(change):
        return replace(data, by_gap=_changed(data.by_gap, change))

    default = data.ranks.index(data.default[0])

    def same(found):
        found[1, 2] = found[1, 1] * 1.001

    def flat(arm, share):
        """The least rank is nearly as good as the largest, in one seed."""

        def change(found):
            found[arm, 0, 0] = share * found[arm, -1, 0]

        return change

    def steep(found):
        """Fira loses as much."""
        found[1, 0, 0] = found[1, -1, 0] * found[0, 0, 0] / found[0, -1, 0]

    def fira(rank, factor):
        def change(found):
            found[1, rank, 0] = factor * found[0, rank, 0]

        return change

    def wide(found):
        found[0, default] = found[1, 0] / 1.02

    def spread(arm):
        def change(found):
            found[arm, -1, 0] = 1.06 * found[arm, :-1, 0].min()

        return change

    def behind(found):
        found[1, 0, 0] = 1.001 * found[0, 0, 0]

    def rare(found):
        found[1, -1, 0] = 0.999 * found[1, 0, 0]

    return [
        *map(ranks, (same, flat(0, 1.09), flat(1, 1.04), steep, fira(0, 0.99), fira(-1, 0.96), wide)),
        *map(gaps, (spread(0), spread(1), behind, rare)),
        ranks(lambda found: found.fill(np.nan)),
    ]


def _changed(values, change):
    found = values.copy()
    change(found)
    return found
