"""The figure `kernel_convergence`, made a little false."""

from dataclasses import replace

import numpy as np

from figures.kernel_convergence import MEASURED, UNBIASED


def falsified(data) -> list:
    """Each must be refused."""
    widths, narrow = np.array(data.spec.widths, dtype=float), np.array(data.spec.narrow, dtype=float)

    def errors(factor, net=slice(None)):
        found = data.errors.copy()
        found[net] *= np.broadcast_to(factor, widths.shape)[:, None]
        return replace(data, errors=found)

    def spread(factor, *at):
        found = data.spread.copy()
        found[0][at] *= factor
        return replace(data, spread=found)

    def bias(factor, nets):
        found = data.bias.copy()
        found[0, nets] *= factor
        return replace(data, bias=found)

    biased = slice(UNBIASED, None)
    return [
        *(errors((widths / widths.max()) ** power) for power in (-0.5, 0.5, -0.25, 0.25)),
        *(errors(widths**power, net) for net in range(len(MEASURED)) for power in (-1.0, 1.0)),
        *(errors(factor, 4) for factor in (0.4, 2.2, np.nan)),
        *(spread(factor) for factor in (0.95, 1.06, np.nan)),
        *(spread(factor, row, column) for row in range(3) for column in range(3) for factor in (0.7, 1.4)),
        *(
            replace(data, scores={**data.scores, text: scores + shift})
            for text, scores in data.scores.items()
            for shift in (-8.0, 8.0)
        ),
        bias(3.0, slice(0, UNBIASED)),
        bias(0.3, biased),
        *(bias(narrow**power, biased) for power in (-0.8, 0.7)),  # n^-2 and n^0
        replace(data, apart=1e-12),
    ]
