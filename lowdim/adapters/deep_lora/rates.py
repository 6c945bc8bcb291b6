"""Discrepant learning rates: the outer factors of a compressed adapter learn gamma times as fast as its cores."""

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from .config import DeepLoraConfig
from .layer import DeepLoraLinear


def deep_lora_parameter_groups(model: nn.Module, lr: float, gamma: float | None = None) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: left and right of the active compressed adapters at gamma lr, all else at lr.

    "All else" are the cores, all factors of narrow and wide adapters, and whatever else trains: heads, biases.

    lr: > 0. The paper's compressed runs take 1e-2, its others 1e-4, with AdamW, weight decay 0 and no warm-up.
    gamma: >= 0, by default each adapter's own, which this becomes. 0 freezes left and right, and a later value > 0
        thaws them, if the cores train.

    Raises ValueError if a rate is out of range or the model has nothing to train.
    Yaras, Wang, Balzano & Qu 2024, arXiv 2406.04112.
    """
    if not 0 < lr < math.inf or (gamma is not None and not 0 <= gamma < math.inf):
        raise ValueError(f"lr = {lr}, gamma = {gamma}: take a finite lr > 0 and a finite gamma >= 0")
    if gamma is not None:
        _set_gamma(model, gamma)
    rates = _outer_rates(model)
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault(rates.get(id(parameter), 1.0), []).append(parameter)
    if not any(groups.values()):
        raise ValueError("the model has no parameter that trains: was it loaded without is_trainable=True?")
    return [{"params": parameters, "lr": rate * lr} for rate, parameters in groups.items() if parameters]


def _set_gamma(model: nn.Module, gamma: float) -> None:
    """It becomes the active compressed adapters' own, and is saved with them."""
    found = list(_compressed(model))
    for layer, name in found:
        layer.set_gamma(name, gamma)
    for module in model.modules():
        configs: dict[str, Any] = getattr(module, "peft_config", {})  # of a tuner, or of what it was injected into
        for name in {name for _, name in found} & set(configs):
            if isinstance(configs[name], DeepLoraConfig):
                configs[name].gamma = gamma


def _outer_rates(model: nn.Module) -> dict[int, float]:
    """The relative rate of each outer factor by the id of the parameter."""
    return {id(factor): layer.gamma[name] for layer, name in _compressed(model) for factor in layer.outer(name)}


def _compressed(model: nn.Module) -> Iterator[tuple[DeepLoraLinear, str]]:
    """Each layer with each of its active compressed adapters."""
    for layer in model.modules():
        if isinstance(layer, DeepLoraLinear):
            yield from ((layer, name) for name in layer.active_adapters if name in layer.gamma)
