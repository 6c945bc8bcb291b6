"""The figure `pretraining`, made a little false."""

from dataclasses import replace


def falsified(data) -> list:
    """Each must be refused."""

    def other(arm, like, factor):
        """An arm ends at a multiple of another's perplexity, in one seed."""
        found, (one, two) = data.perplexity.copy(), (data.arms.index(name) for name in (arm, like))
        found[one, -1, 0] = factor * found[two, -1, 0]
        return replace(data, perplexity=found)

    def with_state(arm, share):
        """As much of AdamW's state."""
        found = data.state.copy()
        found[data.arms.index(arm)] = share * found[0]
        return replace(data, state=found)

    below = data.perplexity.copy()
    below[data.arms.index("GaLore, warm, turned"), -1] = 0.99 * below[data.arms.index("GaLore"), -1]

    def scaled(name, factor):
        """All but one arm end higher or lower."""
        found = factor * data.perplexity
        found[data.arms.index(name)] /= factor
        return replace(data, perplexity=found)

    above = data.perplexity.copy()
    above[data.arms.index("GaLore, warm, turned"), -1] = 1.01 * above[data.arms.index("GaLore"), -1]
    return [
        replace(data, at_edge=("AdamW",)),
        scaled("AdamW", 0.96 / data.over("GaLore", "AdamW").max()),
        scaled("AdamW", 0.96 / data.over("Fira", "AdamW").max()),
        scaled("AdamW", 0.96 / data.over("AdamW, two rates", "AdamW").max()),
        *(other("AdamW, two rates", "GaLore", factor) for factor in (0.94, 1.06)),
        *(other(arm, "GaLore", f) for arm in ("GaLore, warm", "GaLore, 8 bits") for f in (0.96, 1.04, float("nan"))),
        other("GaLore, warm, turned", "GaLore", 1.05),
        *(replace(data, perplexity=changed) for changed in (below, above)),
        *(other("Fira", "GaLore", factor) for factor in (0.95, 1.04)),
        *(other("APOLLO", *pair) for pair in (("AdamW", 1.01), ("GaLore", 1.0))),
        *(other(arm, "GaLore", 1.05) for arm in ("LoRA", "low rank")),
        with_state("GaLore", 0.5),
        with_state("GaLore, 8 bits", 0.2),
    ]
