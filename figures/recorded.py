"""The Spec of figures that are drawn from committed records of language models' runs."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self


@dataclass(frozen=True)
class Recorded:
    """Which records are read; the figure's error names the command that makes those that are missing."""

    FEWEST: ClassVar = 2
    """Seeds of the quick figure."""
    FULL: ClassVar = 5
    """The paper's."""

    size: Literal["small", "full"] = "small"
    """small: MiniLM, SmolLM2, or a LLaMA of 3 M weights on CPU. full: the paper's models and sizes, for a GPU; what is
    checked then is what the paper says, which nobody has run here."""
    seeds: int = 5
    """Runs of each kind."""

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise ValueError(f"seeds = {self.seeds}: take 2 or more for an interval")

    @property
    def encoder(self) -> str:
        """The encoder that was fine-tuned, as titles call it."""
        return "MiniLM" if self.size == "small" else "BERT-base"

    def quick(self) -> Self:
        """As few seeds as the claims need."""
        return replace(self, seeds=self.FEWEST)

    def full(self) -> Self:
        """The paper's model and its seeds."""
        return replace(self, size="full", seeds=self.FULL)
