"""The sizes of LLaMA models: those of GaLore's, Fira's and APOLLO's papers, and small ones for a CPU; a table alone.

Those of the published configurations (Zhao et al. 2024, arXiv 2403.03507, code; its Table 5 prints layers and heads of
the 1B model swapped).
"""

from typing import NamedTuple

VOCABULARY = 32_000
"""T5's tokenizer, which the papers use."""
BYTES = 257
"""256 bytes and the end of a document."""


class Size(NamedTuple):
    """What tells the sizes apart."""

    hidden: int
    wide: int
    layers: int
    heads: int
    vocabulary: int = VOCABULARY


SIZES = {
    "tiny": Size(32, 88, 2, 2, BYTES),
    "3m": Size(256, 688, 4, 4, BYTES),
    "9m": Size(384, 1024, 5, 6, BYTES),
    "60m": Size(512, 1376, 8, 8),
    "130m": Size(768, 2048, 12, 12),
    "350m": Size(1024, 2736, 24, 16),
    "1b": Size(2048, 5461, 24, 32),
    "7b": Size(4096, 11008, 32, 32),
}
"""By what they are called; tiny (42 thousand parameters), 3m and 9m read bytes."""
