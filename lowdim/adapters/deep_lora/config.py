"""The configuration of a Deep LoRA adapter."""

import math
from dataclasses import dataclass
from typing import Literal

from peft import PeftConfig
from peft.utils import PeftType

Form = Literal["compressed", "narrow", "wide"]


@dataclass
class DeepLoraConfig(PeftConfig):
    """W_0 + s F_L ... F_1 for m x n layers (m outputs, n inputs), in one of three forms.

    form: "compressed", F_L ... F_1 = left C_L ... C_1 right^T with left (m, rank), right (n, rank) orthonormal and L
        cores C_l = scale I. `initialize_deep_lora_weights` aligns left and right with the first gradient; until then
        they are random, which is a valid adapter but a slow one. "narrow", L random semi-orthogonal factors of width
        rank. "wide", L factors of width min(m, n), whatever `rank` is: what the other two imitate.
    rank: the width, at most min(m, n); twice the rank that is taken from the gradient, so even if compressed.
    depth: L >= 2.
    scale: eps > 0, of each factor's (core's) start. The paper starts at Delta = O(eps^L), which is not zero, but 1e-9
        with the defaults: below the resolution of W_0 in single precision. A larger one is a larger first change. The
        first gradient of every core is scale^(L-1) left^T G right, with the defaults on MiniLM 1e-12 to 1e-6 an entry:
        below Adam's usual epsilons, and lost in float16 (autocast_adapter_dtype=False).
    gamma: >= 0, learning rate of left and right relative to the cores' (see `deep_lora_parameter_groups`); 0 freezes
        them. For the compressed form only: in the others, all factors learn at one rate.
    alpha: s = alpha / width, as LoRA has it; by default s = 1, as the paper has it.
    seed: of the random starts; every layer draws its own from this and its name.
    init_weights: False takes random orthogonal cores and scale = 1, so that the adapter changes the model at once.
    target_modules, exclude_modules, layers_to_transform, layers_pattern, modules_to_save: as in LoraConfig. Linear
        layers, also quantized, and transformers' Conv1D.
    bias: "none", "all" or "deep_lora_only".

    Raises ValueError if a value is out of range.
    Yaras, Wang, Balzano & Qu 2024, arXiv 2406.04112.
    """

    form: Form = "compressed"
    rank: int = 8
    depth: int = 3
    scale: float = 1e-3
    gamma: float = 0.01
    alpha: float | None = None
    seed: int = 0
    init_weights: bool = True
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    bias: Literal["none", "all", "deep_lora_only"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PeftType("DEEP_LORA")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        self._check_numbers()
        if isinstance(self.target_modules, str) and (self.layers_to_transform, self.layers_pattern) != (None, None):
            raise ValueError(
                f"target_modules = {self.target_modules!r} is a pattern, which layers_to_transform and layers_pattern "
                "cannot narrow down: put the layers into the pattern, or give a list of names"
            )
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise ValueError(
                f"layers_pattern = {self.layers_pattern!r} without layers_to_transform: it says where the numbers of "
                "layers stand in module names; give the numbers too"
            )

    def _check_numbers(self) -> None:
        if self.form not in ("compressed", "narrow", "wide"):
            raise ValueError(f"form = {self.form!r}: take 'compressed', 'narrow' or 'wide'")
        if self.depth < 2 or self.rank < 1:
            raise ValueError(f"depth = {self.depth}, rank = {self.rank}: take depth >= 2 and rank >= 1")
        if self.form == "compressed" and self.rank % 2:
            raise ValueError(
                f"rank = {self.rank} is odd: half of it comes from the gradient, the other half is random; "
                f"take {self.rank + 1}, or form='narrow'"
            )
        if not (0 < self.scale < math.inf and 0 <= self.gamma < math.inf):
            raise ValueError(
                f"scale = {self.scale}, gamma = {self.gamma}: take a finite scale > 0 and a finite gamma >= 0"
            )
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha = {self.alpha}: take a finite alpha > 0, or None for a scaling of 1")
        if self.bias not in ("none", "all", "deep_lora_only"):
            raise ValueError(f"bias = {self.bias!r}: take 'none', 'all' or 'deep_lora_only'")
