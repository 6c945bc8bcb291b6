"""What is refused, before any work is lost."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, get_args

import torch
from torch import Tensor

from ..quantization.moments import CODECS
from .bases import Moments, Projector, Refresh
from .sharded import finite_everywhere
from .states import Precision

Pairs = list[tuple[Tensor, dict[str, Any]]]
"""Parameters with their groups."""
PROJECTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CHOICES = {
    "refresh": get_args(Refresh),
    "moments": get_args(Moments),
    "projector": get_args(Projector),
    "state": get_args(Precision),
    "codec": tuple(CODECS),
    "convention": ("torch", "authors"),
    "variant": ("code", "paper"),
}


def named(group: Mapping[str, Any], number: int) -> list[tuple[str, Tensor]]:
    """A group's parameters with their names, or their places if it has none."""
    names = group.get("param_names") or [f"parameter {i} of group {number}" for i in range(len(group["params"]))]
    return list(zip(names, group["params"], strict=True))


def check_parameters(named_ones: Sequence[tuple[str, Tensor]], *, projected: bool) -> None:
    """Raise ValueError for complex parameters, whose squares are not what Adam means by them, and for projected ones
    of a dtype in which nothing is computed."""
    for name, parameter in named_ones:
        if parameter.is_complex():
            raise ValueError(
                f"{name} is complex ({parameter.dtype}): keep it as torch.view_as_real of it, in groups without a rank"
            )
        if projected and parameter.dtype not in PROJECTED:
            raise ValueError(
                f"{name} is {parameter.dtype}: projected are float32, float64, bfloat16 and float16 weights; leave it "
                "out of the groups that have a rank"
            )


def check(group: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that does not exist, or two that do not go together."""
    for name, choices in CHOICES.items():
        if group.get(name, choices[0]) not in choices:
            raise ValueError(f"{name} = {group[name]!r}: take one of {', '.join(choices)}")
    for name in ("lr", "weight_decay", "residual_scale"):
        value = group.get(name, 0.0)
        if name == "lr" and value is None and group.get("relative_step"):
            continue
        number = isinstance(value, Real | Tensor)
        if not number or not 0 <= value < math.inf:
            raise ValueError(f"{name} = {value!r}: take a finite number >= 0")
    if "decay_rate" in group:
        _check_adafactor(group)
    betas = group.get("betas", (0.0, 0.0))
    if not isinstance(betas, tuple | list) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas = {betas}: take two numbers with 0 <= beta < 1")
    eps = group.get("eps", 0.0)
    if not all(0 <= value < math.inf for value in (eps if isinstance(eps, tuple | list) else (eps,))):
        raise ValueError(f"eps = {group['eps']}: take a finite number >= 0")
    if group["lazy"] and group["refresh"] not in ("exact", "randomized"):
        raise ValueError(
            f"lazy = True with refresh = {group['refresh']!r}: it compares leading directions, which only 'exact' and "
            "'randomized' put first"
        )
    if group["projector"] == "seed" and group["refresh"] != "random":
        raise ValueError(
            f"projector = 'seed' with refresh = {group['refresh']!r}: only 'random' bases can be drawn again"
        )
    if group["stochastic_rounding"] and any(p.dtype is torch.float16 for p in group["params"]):
        raise ValueError("stochastic_rounding = True for float16 weights: take bfloat16, or leave it off")


def _check_adafactor(group: Mapping[str, Any]) -> None:
    decay, clip, beta1 = group["decay_rate"], group["clip_threshold"], group["beta1"]
    if not (-1 <= decay < 0 and 0 < clip < math.inf and (beta1 is None or 0 <= beta1 < 1)):
        raise ValueError(
            f"decay_rate = {decay}, clip_threshold = {clip}, beta1 = {beta1}: take -1 <= decay_rate < 0, a finite "
            "clip_threshold > 0, and None or 0 <= beta1 < 1"
        )


def some(given: Pairs, groups: Sequence[Mapping[str, Any]]) -> Pairs:
    """What is given. Raises ValueError if nothing is: such a step would train nothing, and say nothing."""
    if not given:
        first = next((name for number, group in enumerate(groups) for name, _ in named(group, number)), "none at all")
        raise ValueError(
            f"no parameter of this optimizer has a gradient (the first is {first}): call backward() after zero_grad() "
            "and before step(), on the model whose parameters these are, with requires_grad"
        )
    return given


def check_gradient(parameter: Tensor, groups: Sequence[Mapping[str, Any]], *, due: bool) -> None:
    """Raise ValueError, with the parameter's name, for a gradient that cannot be used."""
    gradient = parameter.grad
    if gradient is None:
        return
    if gradient.is_sparse:
        raise ValueError(f"the gradient of {name_of(parameter, groups)} is sparse: take nn.Embedding(sparse=False)")
    if due and not finite_everywhere(gradient):
        raise ValueError(
            f"the gradient of {name_of(parameter, groups)} is not finite, and its subspace is due to be found anew: "
            "skip this step, or take a smaller lr. Nothing was changed"
        )


def name_of(parameter: Tensor, groups: Sequence[Mapping[str, Any]]) -> str:
    """A parameter's, or its place."""
    everyone = (pair for number, group in enumerate(groups) for pair in named(group, number))
    return next(name for name, one in everyone if one is parameter)


def check_unscaled(optimizer: object) -> None:
    """Raise ValueError under a GradScaler, which divides gradients by its scale and sees nothing else."""
    if hasattr(optimizer, "found_inf"):
        raise ValueError(
            "a GradScaler does not see cores, nor gradients that backward hooks use up: train in bfloat16 without it, "
            "or without galore_backward and layerwise"
        )
