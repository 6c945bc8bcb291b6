"""The figure `deep_lora_forms`, made a little false."""

from dataclasses import replace

import numpy as np

from figures.deep_lora_forms import COMPRESSED, LARGEST, LORA, NARROW, SMALLEST, WIDE


def falsified(data) -> list:
    """Each must be refused."""

    def other(name, index, value):
        """A part of an array is another."""
        found = getattr(data, name).copy()
        found[index] = value
        return replace(data, **{name: found})

    flat, steep = np.full(data.spectra.shape[-1], 0.5), 0.5 * 1e-3 ** np.arange(data.spectra.shape[-1])
    last, half = (slice(None), -1), (slice(None), 2)
    return [
        *(other("spectra", index, flat) for index in (COMPRESSED, NARROW, WIDE)),  # full rank
        *(other("spectra", index, 0 * flat) for index in (COMPRESSED, WIDE)),  # idle
        other("spectra", LORA, steep),
        other("pearson", (COMPRESSED, *last[1:]), data.pearson[WIDE, -1].mean()),
        *(other("pearson", (COMPRESSED, *half[1:]), data.pearson[index, 2].mean()) for index in (NARROW, WIDE)),
        other("pearson", (WIDE, *half[1:]), np.nan),
        other("losses", COMPRESSED, data.losses[NARROW]),
        other("losses", LORA, data.losses[WIDE]),
        other("cosines", (COMPRESSED, 0, LARGEST), 0.9),
        other("cosines", (NARROW, 0, LARGEST), 0.99),
        other("cosines", (COMPRESSED, 1, SMALLEST), 0.9),
        other("cosines", (LORA, 0, SMALLEST), 0.1),
    ]
