"""The figure `refresh`, made a little false."""

from dataclasses import replace

from figures.refresh import EQUAL, FASTER, FIXED, GROWING, ORIGINAL, SENSING, SLOWLY, WIDE


def falsified(data) -> list:
    """Each must be refused."""

    def refreshed(name, change):
        return replace(data, refreshed={**data.refreshed, name: change(data.refreshed[name])})

    def others(name, factor):
        return replace(data, others={**data.others, name: factor * data.others[name]})

    def finals(column, factor):
        values = data.finals.copy()
        values[:, column] *= factor
        return replace(data, finals=values)

    return [
        others(ORIGINAL, 1e4),
        finals(0, 0.1),
        finals(0, 0.7),
        finals(0, 1.4),
        finals(1, 5.0),
        finals(1, 0.1),
        finals(-1, 1e3),
        replace(data, missed=data.missed * [1, 1, 1.3]),
        replace(data, missed=data.missed * [1, 0.1, 0.1]),
        *(refreshed(name, lambda error: error**0.2) for name in (FIXED, WIDE, SENSING)),
        *(refreshed(name, lambda error: error**4) for name in (FIXED, WIDE, SENSING)),
        refreshed(WIDE, lambda error: data.refreshed[FIXED][: len(error)]),
        refreshed(GROWING, lambda error: data.refreshed[FIXED][:, : error.shape[1]]),
        others(EQUAL, 1e-3),
        others(SLOWLY, 1e-3),
        others(FASTER, 1e4),
    ]
