"""What one run is, fine-tuning or pre-training: everything its numbers depend on."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, get_args

from lm_experiments.optimizer_spec import DENSE, OptimizerSpec
from lm_experiments.tasks.text import TASKS

Method = Literal["compressed", "random", "narrow", "wide", "lora", "galore", "full"]
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True)
class FineTune:
    """One model, one task, a few examples, one method. AdamW without weight decay, no warm-up.

    Every field is part of what is recorded; where the data lie is not, since their hash is.
    """

    SHOWN: ClassVar = ("model", "task", "method", "rank", "examples", "gamma", "centre", "eps", "lr")
    """Fields that get a column of a table if they differ between the runs."""
    TOLD: ClassVar = ("gamma", "lr")
    """Fields that are told of runs which differ in nothing but the seed, beside their name."""

    model: str = "minilm"
    """minilm or smollm2, which ./run assets brings; a folder that save_pretrained wrote; org/name[@revision]."""
    task: str = "stsb"
    """stsb, sst2, rte, mrpc, qnli, mnli, cola, qqp, boolq or imdb. Encoders get a head; causal models answer classes by
    words."""
    examples: int = 256
    """n, drawn without replacement; 0 takes all."""
    method: Method = "compressed"
    """Deep LoRA compressed from the first gradient, the same from random outer factors, narrow or wide; lora; galore,
    which trains the layers themselves in subspaces of their gradients; full."""
    rank: int = 8
    """Width of the adapter, and of GaLore's subspaces. The wide form ignores it."""
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
    """Of the adapter, or of what trains in its place if method = galore or full; the head's is head_lr. Best of those
    tried on MiniLM, rank 8: compressed 1e-2, narrow 3e-3, wide 3e-4, lora 1e-3 (scores) or 3e-4 (classes)."""
    centre: bool = True
    """A score's head starts at the mean score; otherwise the first gradient says little else than that mean."""
    head_lr: float = 1e-3
    """The same for every method, so that methods differ in the adapter alone."""
    eps: float = 1e-6
    """Adam's epsilon; 1e-6 is the paper's. The first gradients of Deep LoRA's cores are far smaller: 1e-12 to 1e-6."""
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
    """Record singular values and leading subspaces of each layer's update at every evaluation, and how much of it
    lies in that of the first gradient."""
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
        for name in ("scale", "alpha", "lr", "head_lr", "eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}: take a finite number > 0")
        if not 0 <= self.gamma < float("inf") or not 0 <= self.decay <= 1:
            raise ValueError(f"gamma = {self.gamma}, decay = {self.decay}: take gamma >= 0 and 0 <= decay <= 1")
        if self.method in ("compressed", "random") and self.rank % 2:
            raise ValueError(f"rank = {self.rank} is odd: half of it comes from the gradient; take {self.rank + 1}")
        if self.watch and self.method == "full":
            raise ValueError(
                "watch = True with method = full: updates of chosen layers only are watched; take watch = False"
            )

    @property
    def evaluations(self) -> tuple[int, ...]:
        """The steps after which the held-out examples are evaluated."""
        return _evaluations(self.steps, self.every)

    @property
    def metric(self) -> str:
        """The headline metric of its task."""
        return TASKS[self.task].metric

    @property
    def key(self) -> str:
        """A name for files: what a reader looks for, and a hash over all fields that are not the default."""
        return _key(self, f"{_short(self.model)}-{self.task}-{self.method}-r{self.rank}-n{self.examples}-s{self.seed}")

    def described(self) -> dict[str, Any]:
        """All fields, as JSON keeps them."""
        return asdict(self)


@dataclass(frozen=True)
class Pretrain(OptimizerSpec):
    """One model, one text, one optimizer: the next token is predicted. Adam's betas are .9 and .999, its epsilon is
    1e-8, whatever the optimizer.

    The learning rate rises linearly, then falls as a cosine. Defaults are GaLore's for C4, but for size and text.
    """

    SHOWN: ClassVar = ("model", "text", "optimizer", "rank", "gap", "scale", "refresh", "moments", "state", "lr")
    TOLD: ClassVar = ("lr",)
    metric: ClassVar = "perplexity"

    model: str = "3m"
    """tiny, 3m, 9m, 60m, 130m, 350m, 1b or 7b, from scratch; or a pretrained causal model with its tokenizer: smollm2,
    a folder that save_pretrained wrote, org/name[@revision]."""
    text: str = "python"
    """python: the standard library's sources; files: text at --data; or org/name[:config][@revision] of the Hub.
    instructions: pairs at --data, or instructions:org/name[@revision] of the Hub; answers alone are predicted."""
    tokenizer: str | None = None
    """Of a model from scratch: a folder or org/name[@revision]; None reads bytes."""
    steps: int = 1000
    """Of the optimizer."""
    batch: int = 32
    """Rows of the text in a step, over all processes."""
    accumulate: int = 1
    """Parts, one after the other, of each process's share of a batch."""
    length: int = 256
    """Tokens of a row that are predicted; an instruction and its answer have as many at most, and one."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    floor: float = 0.1
    """Learning rate at the last step over that at the end of the warm-up."""
    clip: float = 0.0
    """Norm to which the gradient of all that trains is cut, before the optimizer sees it; 0 never cuts."""
    layerwise: bool = False
    """Update a weight in the backward pass as soon as its gradient is there, and free that; low-rank optimizers only.
    With accumulate, new subspaces of galore come from the first part of a batch."""
    low_rank_backward: bool = False
    """Do not form the gradients G of targets, but P^T G, between two subspaces; galore only. A norm that clip cuts has
    P^T G in G's place."""
    precision: Literal["fp32", "mixed", "bf16"] = "fp32"
    """mixed: products in bfloat16. bf16: weights, gradients and moments, too, as in GaLore's runs."""
    every: int = 200
    """Steps from one evaluation to the next; there is one before the first step, too, and one after the last."""
    held_out: int = 256
    """Rows of held-out text to evaluate on at most, evenly spread; 0 takes all."""
    watch: bool = False
    """Record what the gradients of targets are like, and their leading `rank` directions, at every evaluation. Costs
    the moments of a full and of a low-rank Adam in float32, beside the optimizer's own, and some of the time."""
    seed: int = 0
    """Of weights and of the order of rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"steps": 1, "batch": 1, "accumulate": 1, "length": 1, "every": 1, "held_out": 0, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} = {getattr(self, name)}: take {low} or more")
        if not 0 <= self.warmup < 1 or not 0 <= self.floor <= 1 or not 0 <= self.clip < float("inf"):
            raise ValueError(
                f"warmup = {self.warmup}, floor = {self.floor}, clip = {self.clip}: take 0 <= warmup < 1, "
                "0 <= floor <= 1 and a finite clip >= 0"
            )
        self._check_gradients()

    def _check_gradients(self) -> None:
        """Raise ValueError for what needs gradients that are not there."""
        if self.layerwise and (self.optimizer in DENSE or self.clip):
            raise ValueError(
                f"layerwise = True with optimizer = {self.optimizer!r}, clip = {self.clip}: take a low-rank optimizer, "
                "and clip = 0, since a norm over all gradients is never there"
            )
        if self.low_rank_backward and self.optimizer != "galore":
            raise ValueError(
                f"low_rank_backward = True with optimizer = {self.optimizer!r}, which needs gradients: take galore"
            )
        if self.watch and (self.layerwise or self.low_rank_backward or self.optimizer in ("lora", "low-rank")):
            raise ValueError(
                "watch = True needs the whole gradients of all targets at once: take layerwise = False, "
                f"low_rank_backward = False, and adamw or a low-rank optimizer in place of {self.optimizer}"
            )

    @property
    def evaluations(self) -> tuple[int, ...]:
        """The steps after which the held-out rows are evaluated."""
        return _evaluations(self.steps, self.every)

    @property
    def key(self) -> str:
        """A name for files: what a reader looks for, and a hash over all fields that are not the default."""
        return _key(self, f"{_short(self.model)}-{_short(self.text)}-{self.optimizer}-r{self.rank}-s{self.seed}")

    def described(self) -> dict[str, Any]:
        """All fields, as JSON keeps them."""
        return asdict(self)


Spec = FineTune | Pretrain


def _evaluations(steps: int, every: int) -> tuple[int, ...]:
    return (*range(0, steps, every), steps)


def _key(spec: FineTune | Pretrain, name: str) -> str:
    """The name, and a hash over all fields that are not the default."""
    values = {field.name: getattr(spec, field.name) for field in fields(spec)}
    changed = {name: value for name, value in values.items() if value != getattr(type(spec), name)}
    return f"{name}-{hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:10]}"


def _short(name: str) -> str:
    """Of a folder or a place on the Hub, what it is called."""
    return name.rstrip("/").rpartition("/")[2].partition("@")[0].partition(":")[0]
