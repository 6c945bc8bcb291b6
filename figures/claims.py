"""A figure's claim, in numbers. A figure whose claim does not hold is not saved."""

import math
from dataclasses import dataclass


class Refuted(Exception):
    """The computed data do not support what the figure claims."""


@dataclass(frozen=True)
class Claim:
    """A measured number and the bound that makes the sentence true."""

    text: str
    """What is measured, as a reader would say it."""
    value: float
    """What came out."""
    at_most: float = math.inf
    at_least: float = -math.inf

    @property
    def holds(self) -> bool:
        """False for NaN, too."""
        return self.at_least <= self.value <= self.at_most

    @property
    def bound(self) -> str:
        """The bound as text, for tables and messages."""
        if self.at_least == self.at_most:
            return f"= {self.at_least:.3g}"
        parts = [f">= {self.at_least:.3g}"] * math.isfinite(self.at_least)
        return " and ".join(parts + [f"<= {self.at_most:.3g}"] * math.isfinite(self.at_most))


def hold(claims: list[Claim]) -> None:
    """Raise Refuted, naming each claim that fails."""
    failed = [f"{claim.text}: {claim.value:.3g}, claimed {claim.bound}" for claim in claims if not claim.holds]
    if failed:
        raise Refuted("not saved: its claims are refuted, or the run was too short for them.\n  " + "\n  ".join(failed))
