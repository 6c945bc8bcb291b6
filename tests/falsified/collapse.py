"""The figure `collapse`, made a little false."""

from dataclasses import replace

import numpy as np


def falsified(data) -> list:
    """Each must be refused."""
    layers = {name: len(getattr(data, name)) for name in ("linear", "relu", "scaled", "started")}

    def scaled(name, factor, field="measured", only=None):
        """One curve of a panel, or all of them, times a factor for each layer."""
        curves = tuple(
            replace(curve, **{field: getattr(curve, field) * factor(curve)}) if only in (None, index) else curve
            for index, curve in enumerate(getattr(data, name))
        )
        return replace(data, **{name: curves})

    def bent(curve):
        return 10 ** (0.3 * np.cos(np.pi * np.arange(len(curve.measured))))

    def at(layer, factor):
        return lambda curve: np.where(np.arange(len(curve.measured)) == layer, factor, 1.0)

    def from_layer(layer, factor):
        return lambda curve: np.where(np.arange(len(curve.measured)) >= layer, factor, 1.0)

    def last(factor):
        return lambda curve: at(len(curve.measured) - 1, factor)(curve)

    def straight(curve):
        return curve.fitted / curve.measured

    both = replace(  # simulation and theory agree, and are both wrong
        data,
        linear=tuple(replace(c, measured=1.2 * c.measured, predicted=1.2 * c.predicted) for c in data.linear),
    )
    low = replace(
        data,
        linear=tuple(replace(c, measured=0.8 * c.measured, predicted=0.8 * c.predicted) for c in data.linear),
    )
    steep = replace(
        data,
        scaled=tuple(
            replace(c, **{field: getattr(c, field) * c.network.scale**0.3 for field in ("measured", "predicted")})
            for c in data.scaled
        ),
    )
    bend = replace(
        data,
        linear=tuple(
            replace(c, **{field: getattr(c, field) * at(1, 0.85)(c) for field in ("measured", "predicted")})
            for c in data.linear
        ),
    )
    return [
        both,
        low,
        steep,
        bend,
        replace(data, linear=tuple(replace(curve, loss=2e-6) for curve in data.linear)),
        *(scaled(name, lambda curve: 1.01, "predicted") for name in ("linear", "scaled")),
        scaled("started", lambda curve: 1.01, "predicted", only=0),
        *(scaled(name, lambda curve: np.nan, only=1) for name in layers),
        *(scaled("started", bent, only=index) for index in range(1, layers["started"])),
        scaled("started", last(0.01), only=1),
        scaled("started", last(20.0), only=2),
        scaled("relu", straight, only=0),
        scaled("relu", from_layer(1, 0.3)),  # as much in the first layer as in the third one
        scaled("relu", from_layer(3, 2.5)),  # no more in the third one
        scaled("relu", last(2e-5), only=layers["relu"] - 2),
        scaled("relu", last(1000.0), only=layers["relu"] - 2),
        scaled("relu", last(3.0), only=layers["relu"] - 1),
    ]
