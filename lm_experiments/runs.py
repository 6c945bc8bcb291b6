"""What one fine-tuning run is: everything its numbers depend on."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from lm_experiments.tasks.text import TASKS

Method = Literal["compressed", "random", "narrow", "wide", "lora", "full"]
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True)
class FineTune:
    """One model, one task, a few examples, one method. AdamW without weight decay, epsilon 1e-6, no warm-up.

    Every field is part of what is recorded; where the data lie is not, since their hash is.
    """

    model: str = "minilm"
    """minilm or smollm2, which ./run assets brings; a folder that save_pretrained wrote; org/name[@revision]."""
    task: str = "stsb"
    """stsb, sst2, rte, mrpc, qnli, mnli, cola, qqp, boolq or imdb. Encoders get a head; causal models answer classes by
    words."""
    examples: int = 256
    """n, drawn without replacement; 0 takes all."""
    method: Method = "compressed"
    """Deep LoRA compressed from the first gradient, the same from random outer factors, narrow or wide; lora; full."""
    rank: int = 8
    """Width of the adapter. LoRA's is as wide; the wide form ignores it."""
    depth: int = 3
    """L of Deep LoRA."""
    scale: float = 1e-3
    """eps of Deep LoRA's start."""
    gamma: float = 0.01
    """Learning rate of the outer factors over the cores', compressed and random only."""
    alpha: float = 16.0
    """LoRA's: its update is alpha / rank B A."""
    layers: Literal["all", "attention"] = "all"
    """all: every linear layer but the head; attention: query and value."""
    lr: float = 1e-3
    """Of the adapter, or of the model if method = full; the head's is head_lr."""
    centre: bool = True
    """A score's head starts at the mean score; otherwise the first gradient says little else than that mean."""
    head_lr: float = 1e-3
    """The same for every method, so that methods differ in the adapter alone."""
    decay: float = 1.0
    """Learning rate at the last step over that at the first, linear between; 1 keeps it constant."""
    steps: int = 200
    """Of AdamW."""
    batch: int = 16
    """Examples in a step, over all processes."""
    accumulate: int = 1
    """Parts, one after the other, of each process's share of a batch."""
    length: int = 128
    """Tokens of an example at most; longer ones are cut."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: frozen weights and products in bfloat16; what trains stays in float32."""
    dropout: float | None = None
    """One rate for every dropout of the model; None keeps its own."""
    every: int = 50
    """Steps from one evaluation to the next; there is one before the first step, too, and one after the last."""
    held_out: int = 600
    """Validation examples to evaluate on at most; 0 takes all of the part."""
    part: Literal["tuning", "report"] = "report"
    """Which half of the validation examples, divided once for all: learning rates are chosen on the other half."""
    watch: bool = False
    """Record singular values and leading subspaces of each layer's update at every evaluation."""
    seed: int = 0
    """Of examples, batches, head, adapter and dropout."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task = {self.task!r}: take one of {', '.join(TASKS)}")
        if self.method not in METHODS:
            raise ValueError(f"method = {self.method!r}: take one of {', '.join(METHODS)}")
        least = {"examples": 0, "rank": 1, "depth": 2, "steps": 1, "batch": 1, "accumulate": 1, "length": 8}
        for name, low in {**least, "every": 1, "held_out": 0, "seed": 0}.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} = {getattr(self, name)}: take {low} or more")
        for name in ("scale", "alpha", "lr", "head_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}: take a finite number > 0")
        if not 0 <= self.gamma < float("inf") or not 0 <= self.decay <= 1:
            raise ValueError(f"gamma = {self.gamma}, decay = {self.decay}: take gamma >= 0 and 0 <= decay <= 1")
        if self.method in ("compressed", "random") and self.rank % 2:
            raise ValueError(f"rank = {self.rank} is odd: half of it comes from the gradient; take {self.rank + 1}")
        if self.watch and self.method == "full":
            raise ValueError(
                "watch = True with method = full: updates are watched in adapters only; take watch = False"
            )

    @property
    def evaluations(self) -> tuple[int, ...]:
        """The steps after which the held-out examples are evaluated."""
        return (*range(0, self.steps, self.every), self.steps)

    @property
    def key(self) -> str:
        """A name for files: what a reader looks for, and a hash over all fields that are not the default."""
        changed = {field.name: getattr(self, field.name) for field in fields(self) if self._differs(field.name)}
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:10]
        model = self.model.rstrip("/").rpartition("/")[2].partition("@")[0]
        return f"{model}-{self.task}-{self.method}-r{self.rank}-n{self.examples}-s{self.seed}-{digest}"

    def _differs(self, name: str) -> bool:
        return bool(getattr(self, name) != getattr(FineTune, name))

    def described(self) -> dict[str, Any]:
        """All fields, as JSON keeps them."""
        return asdict(self)
