"""The figure `instructions`, made a little false."""

from dataclasses import replace

from figures.instructions import ADAMW, FIRA, GALORE


def falsified(data) -> list:
    """Each must be refused."""

    def other(arm, factor):
        """An arm ends at a multiple of AdamW's perplexity, in one seed."""
        found = data.perplexity.copy()
        found[data.arms.index(arm), -1, 0] = factor * found[data.arms.index(ADAMW), -1, 0]
        return replace(data, perplexity=found)

    def as_large(arm):
        """A third of AdamW's state."""
        found = data.state.copy()
        found[data.arms.index(arm)] = found[data.arms.index(ADAMW)] / 3
        return replace(data, state=found)

    unlearned = data.perplexity.copy()
    unlearned[:, 0] = 1.4 * unlearned[:, -1]
    return [
        replace(data, at_edge=(GALORE,)),
        replace(data, perplexity=unlearned),
        *(other(GALORE, factor) for factor in (0.98, 1.02, float("nan"))),
        *(other(FIRA, factor) for factor in (1.002, 1.04, float("nan"))),
        *(as_large(arm) for arm in (GALORE, FIRA)),
    ]
