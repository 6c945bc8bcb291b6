"""The memory that GaLore's, Fira's and APOLLO's papers print, and the arithmetic behind it, where there is one.

Papers: GaLore, Zhao et al. 2024, arXiv 2403.03507; Fira, Chen et al. 2024, 2410.01623; APOLLO, Zhu et al. 2024,
2412.05270. Exact counts are those of `memory`. What GaLore's Tables 2 and 6 (60M to 1B) follow was found by trying:

    a G is 1.024e9 bytes, and a parameter 2 bytes; models count by their names: 60, 130, 350 million, the 1B 2.60 G
    trainable of low-rank and LoRA = adapters r(m+n) + all that is no target
    weights: low-rank trainable; LoRA trainable + model, so that embeddings and head count twice
    states: twice the trainable's weights; GaLore's 3/4 of LoRA's, (mr + 2nr) / (2mr + 2nr) for m = n, embeddings too

The last line understates what GaLore needs, since embeddings and head keep two full moments.
"""

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import torch
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from lm_experiments import llama, memory

G = 1.024e9
RANKS = {"60m": 128, "130m": 256, "350m": 256, "1b": 512}
NAMES = {"60m": 60e6, "130m": 130e6, "350m": 350e6, "1b": 1.3 * G}
"""How many parameters the tables count, by size; the 1B's are the exact 2.60 G / 2 bytes."""
PRINTED = {
    ("weights", "adamw"): (0.12, 0.25, 0.68, 2.60),  # and GaLore's
    ("weights", "low-rank"): (0.08, 0.18, 0.36, 1.19),
    ("weights", "lora"): (0.20, 0.44, 1.04, 3.79),
    ("states", "adamw"): (0.23, 0.51, 1.37, 5.20),
    ("states", "galore"): (0.13, 0.28, 0.54, 1.78),
    ("states", "lora"): (0.17, 0.37, 0.72, 2.38),  # and low-rank's
    ("all", "adamw"): (0.36, 0.76, 2.06, 7.80),
    ("all", "galore"): (0.24, 0.52, 1.22, 4.38),
    ("all", "low-rank"): (0.26, 0.54, 1.08, 3.57),
    ("all", "lora"): (0.36, 0.80, 1.76, 6.17),
}
"""GaLore's Table 6 (weights, states) and Table 2 (all), each cell once, in G for 60M, 130M, 350M and 1B."""


class Counts(NamedTuple):
    """Elements of a model's parameters, and of what rank r adds to its targets."""

    all: int
    other: int
    moments: int
    projectors: int
    adapters: int


@cache
def counts(size: str, rank: int) -> Counts:
    """Of a size of LLaMA, or of "roberta": base, with a head of two classes."""
    model, targets = _encoder() if size == "roberta" else _decoder(size)
    galore, low = (list(memory.parts(model, targets, name, rank)) for name in ("galore", "low-rank"))
    return Counts(
        sum(part.weights for part in galore),
        sum(part.weights for part in galore if not part.target),
        sum(sum(part.moments) for part in galore if part.target),
        sum(part.projector for part in galore),
        sum(part.weights for part in low if part.target),
    )


def _decoder(size: str) -> tuple[nn.Module, Iterable[str]]:
    model = memory.meta(size)
    return model, llama.targets(model)


def _encoder() -> tuple[nn.Module, Iterable[str]]:
    """RoBERTa-base; its targets are the 72 linear layers of the encoder."""
    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)  # two classes
    with torch.device("meta"):
        model = RobertaForSequenceClassification(config)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return model, [name for name in layers if ".encoder." in name]


def cell(kind: str, optimizer: str, size: str, rank: int | None = None) -> float:
    """A cell of Tables 2 and 6 by the arithmetic above, in G. Raises KeyError for what has no such cell."""
    full = 2 * NAMES[size] / G
    found = counts(size, rank or RANKS[size])
    low = 2 * (found.adapters + found.other) / G
    weights = {"adamw": full, "galore": full, "low-rank": low, "lora": full + low}[optimizer]
    states = {"adamw": 2 * full, "galore": 1.5 * low, "low-rank": 2 * low, "lora": 2 * low}[optimizer]
    return {"weights": weights, "states": states, "all": weights + states}[kind]


def verdict(printed: float, computed: float, digits: int = 2) -> str:
    """Whether so many decimals of what is computed are what is printed: "rounded", "cut", or "no"."""
    unit = 10.0**-digits
    if abs(computed - printed) <= unit / 2:
        return "rounded"
    return "cut" if 0 <= computed - printed < unit else "no"


class Claim(NamedTuple):
    """A printed figure."""

    what: str
    printed: float
    computed: float
    unit: str
    digits: int
    note: str = ""

    @property
    def verdict(self) -> str:
        """As of a cell."""
        return verdict(self.printed, self.computed, self.digits)


def claims() -> list[Claim]:
    """What the papers print beside the tables, and what arithmetic gives for it."""
    return [*_shares(), *_sizes(), *_glue()]


def saved(size: str, rank: int, *, eight: bool = False, projectors: int | None = None) -> float:
    """Share of the bytes of Adam's bf16 states that GaLore's save, in percent; scales left out.

    eight: GaLore's moments in one byte. projectors: bytes of an element of theirs; by default a moment's.
    """
    found, width = counts(size, rank), 1 if eight else 2
    states = width * (found.moments + 2 * found.other) + (projectors or width) * found.projectors
    return 100 * (1 - states / (4 * found.all))


def saved_of_targets(size: str, rank: int) -> float:
    """The same of targets alone, at one width."""
    found = counts(size, rank)
    return 100 * (1 - (found.moments + found.projectors) / (2 * (found.all - found.other)))


def saved_in_all(activations: float) -> float:
    """Share of all memory that 8-bit GaLore, layer by layer, saves against bf16 Adam on 7B, in percent.

    1 - (2 P + S + A) / (8 P + A): P parameters, with gradients on Adam's side alone, S states of a byte, A activations.

    activations: GB, the same on both sides.
    """
    found = counts("7b", 1024)
    galore = 2 * found.all + found.moments + found.projectors + 2 * found.other
    return 100 * (1 - (galore / 1e9 + activations) / (8 * found.all / 1e9 + activations))


def _shares() -> list[Claim]:
    seven, in_bf16 = saved("7b", 1024, eight=True), saved("7b", 1024, eight=True, projectors=2)
    rounded = 100 * (1 - 1.79 / 5.20)
    left = 59.9 - 8 * counts("7b", 1024).all / 1e9
    notes = {
        "projectors": f"projectors in one byte; in bf16, as the code has them, {in_bf16:.2f}",
        "squares": f"1 - 3 r / 2 d, of square matrices; of the targets of 1B {saved_of_targets('1b', 512):.1f}",
        "states": f"of targets alone {saved_of_targets('7b', 1024):.2f}, of Table 6's 1B row {rounded:.2f}; the "
        "text's 14.66G - 5.06G no count gives",
        "left": f"with the {left:.1f} GB of activations that the printed 59.9 GB leave; 63.3, as measured, needs 2.5",
    }
    return [
        Claim("GaLore: 8-bit states, 7B, against bf16 Adam's", 82.5, seven, "%", 1, notes["projectors"]),
        Claim("Fira: states, 1B, r 512", 61.1, saved("1b", 512), "%", 1),
        Claim("GaLore 5.2: states at r = d / 4", 62.5, 100 * (1 - 3 / 8), "%", 1, notes["squares"]),
        Claim("GaLore 5.5: 8-bit states, 7B, by low rank", 65.5, saved("7b", 1024), "%", 1, notes["states"]),
        Claim("GaLore: all memory, 7B", 63.3, saved_in_all(left), "%", 1, notes["left"]),
    ]


def _sizes() -> list[Claim]:
    seven, rank_256, rank_1 = (counts("7b", rank) for rank in (1024, 256, 1))
    low = seven.moments + seven.projectors + 2 * seven.other
    in_bf16 = f"projectors in bf16: {(low + seven.projectors) / 1e9:.2f}"
    intro = "GaLore 1: 7B, weights 14, gradients and states 42, activations 2"
    return [
        Claim(intro, 58, 2 * 7 + 6 * 7 + 2, "GB", 0, "of 7e9 parameters; the 2 GB are the paper's"),
        Claim("GaLore Table 3: 8-bit GaLore, 7B, layer by layer", 18, (2 * seven.all + low) / 1e9, "G", 0),
        Claim("GaLore Table 3: 8-bit Adam, 7B", 26, 4 * seven.all / 1e9, "G", 0),
        Claim("APOLLO: states of 8-bit Adam, 7B", 13, 2 * seven.all / 1e9, "G", 0),
        Claim("APOLLO: states of 8-bit GaLore, 7B", 4.9, low / 1e9, "G", 1, in_bf16),
        Claim("APOLLO: states, 7B, r 256", 1.6, 2 * rank_256.moments / 1e9, "G", 1, "of targets alone"),
        Claim("APOLLO-Mini: states, 7B", 0.0, 2 * rank_1.moments / 1e9, "G", 1, "of targets alone"),
    ]


def _glue() -> list[Claim]:
    found = {rank: counts("roberta", rank) for rank in (4, 8)}
    full = found[4].all
    head = 768 * 768 + 768 + 2 * 768 + 2
    galore = {r: 2 * (full + n.moments + n.projectors) / 1e6 for r, n in found.items()}
    lora = {r: (2 * full + 6 * (n.adapters + head)) / 1e6 for r, n in found.items()}
    note = "without moments of embeddings and head, which its script trains; with them {:.0f}"
    notes = {r: note.format(galore[r] + 4 * n.other / 1e6) for r, n in found.items()}
    return [
        Claim("GaLore Table 4: GLUE, RoBERTa-base in full", 747, 6 * full / 1e6, "M", 0),
        Claim("GaLore Table 4: GLUE, GaLore, r 4", 253, galore[4], "M", 0, notes[4]),
        Claim("GaLore Table 4: GLUE, GaLore, r 8", 257, galore[8], "M", 0, notes[8]),
        Claim("GaLore Table 4: GLUE, LoRA, r 4", 257, lora[4], "M", 0),
        Claim("GaLore Table 4: GLUE, LoRA, r 8", 264, lora[8], "M", 0),
    ]
