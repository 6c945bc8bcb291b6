"""Sums of adapters, exact on Delta W."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...narrow import Narrow
from .config import DeepLoraConfig
from .layer import DeepLoraLinear

if TYPE_CHECKING:
    from .model import DeepLoraModel


def combine(
    model: "DeepLoraModel",
    adapters: list[str],
    weights: list[float],
    adapter_name: str,
    combination_type: str = "linear",
    rank: int | None = None,
) -> None:
    """Add an adapter whose Delta W is sum_i weights_i Delta_i W in every layer that any of them adapts.

    combination_type: "linear", exactly. Adapters with equally many cores are laid side by side, [left_i],
        block_diag(C_i), [right_i], so that the sum can train on as one deep adapter of the summed rank; others become a
        product of two factors; if the summed rank does not fit, or one is wide, the form is wide. "svd", the best
        approximation of that rank, a product of two factors.

    Raises ValueError if names are unknown, taken or target modules cannot be united, weights do not match or are not
    finite, or the rank is missing or superfluous.
    """
    _check(model, adapters, weights, adapter_name, combination_type, rank)
    layers = [m for m in model.modules() if isinstance(m, DeepLoraLinear) and set(adapters) & set(m.scaling)]
    configs = [model.peft_config[name] for name in adapters]
    config = _config(configs, min(min(layer.shape) for layer in layers), rank)
    model.peft_config[adapter_name] = config
    model.inject_adapter(model.model, adapter_name)
    for layer in layers:
        if combination_type == "svd":
            factors = _truncated(_sum(layer, adapters, weights), config.rank)
        elif config.form == "wide":
            factors = _dense(_sum(layer, adapters, weights))
        else:
            parts = zip(adapters, weights, configs, strict=True)
            factors = _side_by_side([_part(layer, *part, deep=_deep(configs)) for part in parts])
        layer.set_factors(adapter_name, factors)


def _cores(config: DeepLoraConfig) -> int:
    return config.depth if config.form == "compressed" else config.depth - 2


def _deep(configs: list[DeepLoraConfig]) -> bool:
    """Whether the adapters have equally many cores, and so can be laid side by side factor by factor."""
    return len({_cores(config) for config in configs}) == 1


def _config(configs: list[DeepLoraConfig], fits: int, rank: int | None) -> DeepLoraConfig:
    """The configuration of the sum: the first's, but for the shape of its factors."""
    modules = [config.target_modules for config in configs]
    united = modules[0] if isinstance(modules[0], str) else set().union(*modules)
    plain = replace(configs[0], target_modules=united, alpha=None, form="narrow", depth=2)
    if rank is not None:
        return replace(plain, rank=rank)
    total = sum(config.rank for config in configs)
    if total > fits or any(config.form == "wide" for config in configs):
        return replace(plain, form="wide")
    if not _deep(configs):
        return replace(plain, rank=total)
    if all(config.form == "compressed" for config in configs):
        return replace(plain, rank=total, form="compressed", depth=configs[0].depth)
    return replace(plain, rank=total, depth=_cores(configs[0]) + 2)


def _part(layer: DeepLoraLinear, name: str, weight: float, config: DeepLoraConfig, *, deep: bool) -> Narrow:
    """One summand with its weight and scaling in `left`; zeros where the layer does not have it."""
    if name not in layer.scaling:
        left, right = (torch.zeros(rows, config.rank) for rows in layer.shape)
        return Narrow(left, (torch.zeros(config.rank, config.rank),) * (_cores(config) * deep), right)
    if deep:
        factors = layer.factors(name)
        return replace(factors, left=weight * layer.scaling[name] * factors.left)
    right, top = layer.folded(name)
    return Narrow(weight * top, (), right.mT)


def _side_by_side(parts: list[Narrow]) -> Narrow:
    """sum_i left_i C_i ... C_i right_i^T as one network."""
    device = next((part.left.device for part in parts if part.left.device.type != "cpu"), parts[0].left.device)
    parts = [Narrow(p.left.to(device), tuple(c.to(device) for c in p.cores), p.right.to(device)) for p in parts]
    cores = tuple(torch.block_diag(*cores) for cores in zip(*(part.cores for part in parts), strict=True))
    return Narrow(torch.hstack([p.left for p in parts]), cores, torch.hstack([p.right for p in parts]))


def _sum(layer: DeepLoraLinear, adapters: list[str], weights: list[float]) -> Tensor:
    """sum_i weights_i Delta_i, (outputs, inputs), in single precision at least."""
    deltas = [w * layer.get_delta_weight(name) for name, w in zip(adapters, weights, strict=True) if name in layer.scaling]
    total = torch.stack(deltas).sum(0)
    return total.mT if layer.transposed else total


def _dense(delta: Tensor) -> Narrow:
    """Any m x n matrix as two factors of inner width min(m, n): itself and the identity."""
    identity = torch.eye(min(delta.shape), dtype=delta.dtype, device=delta.device)
    return Narrow(identity, (), delta.mT) if len(delta) <= delta.shape[1] else Narrow(delta, (), identity)


def _truncated(delta: Tensor, rank: int) -> Narrow:
    """The best approximation of that rank, its singular values shared out evenly."""
    left, sizes, right = torch.linalg.svd(delta, full_matrices=False)
    roots = sizes[:rank].sqrt()
    return Narrow(left[:, :rank] * roots, (), right[:rank].mT * roots)


def _check(
    model: "DeepLoraModel", adapters: list[str], weights: list[float], name: str, kind: str, rank: int | None
) -> None:
    known = model.peft_config
    if name in known or not adapters or set(adapters) - set(known):
        raise ValueError(f"a sum {name!r} of {adapters}: give a new name, and summands among {list(known)}")
    if len(weights) != len(adapters) or not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights = {weights} for the adapters {adapters}: give a finite number for each")
    if kind not in ("linear", "svd") or (kind == "svd") != (rank is not None):
        raise ValueError(f"combination_type = {kind!r} with rank = {rank}: take 'linear' without, or 'svd' with a rank")
    modules = [known[adapter].target_modules for adapter in adapters]
    if any(isinstance(names, str) for names in modules) and any(names != modules[0] for names in modules):
        raise ValueError(f"target_modules {modules} cannot be united: give all adapters the same pattern, or lists")
