"""The figure `deep_lora_meets_galore`, made a little false."""

from dataclasses import replace

from figures.deep_lora_meets_galore import DEEP, GALORE, LORA


def falsified(data) -> list:
    """Each must be refused."""

    def other(name, index, value):
        """A part of an array is another."""
        found = getattr(data, name).copy()
        found[index] = value
        return replace(data, **{name: found})

    return [
        other("bases", (GALORE, 0), 0.99),
        other("bases", (GALORE, -1), 0.9),
        other("bases", (DEEP, -1), 0.95),
        other("bases", (DEEP, -1), float("nan")),
        other("shares", (GALORE, 0), 0.95),
        *(other("shares", (DEEP, -1), value) for value in (0.25, 0.62)),
        other("shares", (GALORE, -1), data.shares[DEEP, -1] + 0.03),
        other("shares", (GALORE, -1), 0.9),
        other("shares", (LORA, -1), data.shares[DEEP, -1] - 0.05),
        other("ranks", DEEP, 3.0),
        *(other("ranks", LORA, value) for value in (5.0, 9.0)),
        other("ranks", GALORE, 8.0),
        *(other("pearson", (method, -1), 0.5) for method in (DEEP, GALORE, LORA)),
    ]
