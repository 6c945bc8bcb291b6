"""What an optimizer is: its name and its numbers. Without torch, which takes seconds to import."""

from dataclasses import dataclass
from typing import Literal, get_args

OptimizerName = Literal["adamw", "lora", "low-rank", "galore", "fira", "apollo", "apollo-mini", "frugal"]
OPTIMIZERS: tuple[str, ...] = get_args(OptimizerName)
DENSE = ("adamw", "lora", "low-rank")
"""AdamW alone: on all weights, on low-rank updates of frozen ones, on low-rank weights."""


@dataclass(frozen=True)
class OptimizerSpec:
    """How weights move. Targets, what low-rank methods act on, are the linear layers of attention and feed-forward."""

    optimizer: OptimizerName = "adamw"
    """adamw; lora (frozen targets + B A), low-rank (targets B A), both with all else full; or a low-rank optimizer."""
    rank: int = 64
    """r. adamw ignores it, as all that follows but lr and weight_decay, if nobody watches; apollo-mini's is 1."""
    gap: int = 200
    """Steps from one subspace to the next."""
    scale: float = 0.25
    """Of a target's update; GaLore's alpha. lora: of its update, times 1 / rank (GaLore's baseline has 32)."""
    share: float = 1.0
    """adamw: learning rate of targets over that of all else. Of low-rank optimizers scale says that."""
    refresh: Literal["exact", "randomized", "warm"] = "exact"
    """How a new subspace is found; exact is the authors' SVD. APOLLO's are random."""
    moments: Literal["keep", "rotate", "reset"] = "keep"
    """What becomes of the moments in a new subspace; keep is the authors'."""
    state: Literal["fp32", "8bit"] = "fp32"
    """8bit: moments of one byte, low-rank optimizers only."""
    lr: float = 1e-2
    """At the end of the warm-up, of all that trains."""
    weight_decay: float = 0.0
    """Decoupled; the papers' is 0."""

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer = {self.optimizer!r}: take one of {', '.join(OPTIMIZERS)}")
        for name in ("rank", "gap"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: take 1 or more")
        if self.optimizer == "apollo-mini" and self.rank != 1:
            raise ValueError(f"rank = {self.rank}: apollo-mini has rank 1, and scale 128; take those, or apollo")
        if not 0 < self.lr < float("inf") or not 0 < self.scale < float("inf") or not 0 <= self.weight_decay < 1:
            raise ValueError(
                f"lr = {self.lr}, scale = {self.scale}, weight_decay = {self.weight_decay}: take finite numbers > 0, "
                "and 0 <= weight_decay < 1"
            )
        if self.optimizer.startswith("apollo") and (self.refresh != "exact" or self.moments == "rotate"):
            raise ValueError(
                f"refresh = {self.refresh!r}, moments = {self.moments!r} with optimizer = {self.optimizer!r}: its "
                "bases are random and not orthonormal, so leave refresh, and take keep or reset"
            )
        if not 0 < self.share < float("inf") or (self.share != 1 and self.optimizer != "adamw"):
            raise ValueError(
                f"share = {self.share} with optimizer = {self.optimizer!r}: take a finite number > 0, and 1 unless it "
                "is adamw"
            )
        if self.state == "8bit" and self.optimizer in DENSE:
            raise ValueError(f"state = '8bit' with optimizer = {self.optimizer!r}: take fp32, or a low-rank optimizer")
