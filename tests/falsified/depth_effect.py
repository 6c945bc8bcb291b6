"""depth_effect, a little false."""

from dataclasses import replace

from figures.depth_effect import COMPRESSED, ORIGINAL, UNSCALED


def _times(data, key, factor):
    """One network's errors, so many times as large."""
    runs = [replace(run, recovery=factor * run.recovery) for run in data.curves[key]]
    return replace(data, curves={**data.curves, key: runs})


def _ended(data, key, share):
    """One network, ended after that share of its blocks, with every error that of the end."""
    runs = []
    for run in data.curves[key]:
        count = round(share * run.blocks) + 1
        runs.append(replace(run, steps=run.steps[:count], recovery=run.recovery[-1] + 0 * run.recovery[:count]))
    return replace(data, curves={**data.curves, key: runs})


def falsified(data) -> list:
    return [
        _times(data, (3, ORIGINAL), 20),
        _times(data, (3, COMPRESSED), 20),
        _times(data, (2, ORIGINAL), 100),
        _times(data, (2, ORIGINAL), 0.02),
        _times(data, (2, COMPRESSED), 0.01),
        _times(data, (2, COMPRESSED), 2),
        _times(data, (2, COMPRESSED), 1.02),  # no better at the first step
        _times(data, (2, UNSCALED), 0.1),
        replace(data, curves={**data.curves, (2, COMPRESSED): data.curves[2, UNSCALED]}),  # the published comparison
        _ended(data, (3, ORIGINAL), 0.5),
        _ended(data, (2, ORIGINAL), 0.1),
        _ended(data, (2, COMPRESSED), 0.1),
    ]
