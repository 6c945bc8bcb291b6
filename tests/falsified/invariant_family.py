"""What `invariant_family` claims, made a little false."""

from dataclasses import replace


def falsified(data):
    return [
        *(replace(data, sizes={**data.sizes, shape: sizes + 1}) for shape, sizes in data.sizes.items()),
        *(replace(data, deviation={**data.deviation, s: curve + 1e-11}) for s, curve in data.deviation.items()),
        *(replace(data, moved={**data.moved, shape: 1e-3}) for shape in data.moved),
        replace(data, predicted=1.01 * data.predicted),
        replace(data, simulated=data.simulated + 1e-11),
        *(replace(data, passing={**data.passing, "narrow output": n}) for n in (0, data.passing["narrow output"] + 1)),
    ]
