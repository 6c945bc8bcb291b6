"""Sums of adapters, exact on Delta W."""

import math
import re
from dataclasses import replace

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor

from ...narrow import Narrow
from .config import DeepLoraConfig
from .layer import DeepLoraLinear


def combine(
    model: BaseTuner,
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

    Biases that the adapters trained are not summed. The model is as it was if an error is raised.
    Raises ValueError if names are unknown or taken, weights do not match or are not finite, the rank is missing,
    superfluous or larger than a layer, or modules_to_save of the adapters would have to be summed.
    """
    configs = _checked(model, adapters, weights, adapter_name, combination_type, rank)
    layers = [m for m in model.modules() if isinstance(m, DeepLoraLinear) and set(adapters) & set(m.scaling)]
    fits = min(min(layer.shape) for layer in layers)
    if rank is not None and not 1 <= rank <= fits:
        raise ValueError(f"rank = {rank}: the smallest layer of {adapters} allows 1 <= rank <= {fits}")
    names = "|".join(re.escape(layer.layer_name) for layer in layers)  # a pattern: names in a list match as endings
    config = replace(_shape(configs, fits, rank), target_modules=names)
    model.peft_config[adapter_name] = config
    try:
        model.inject_adapter(model.model, adapter_name)
    except BaseException:
        del model.peft_config[adapter_name]
        raise
    parts = dict(zip(adapters, weights, strict=True))
    for layer in model.modules():
        if isinstance(layer, DeepLoraLinear) and adapter_name in layer.scaling:
            layer.set_factors(adapter_name, _summed(layer, parts, configs, config.form, rank))


def _shape(configs: list[DeepLoraConfig], fits: int, rank: int | None) -> DeepLoraConfig:
    """The configuration of the sum but for its layers, which are listed one by one."""
    listed = replace(configs[0], exclude_modules=None, layers_to_transform=None, layers_pattern=None)
    plain = replace(listed, modules_to_save=None, alpha=None, bias="none", form="narrow", depth=2)
    if rank is not None:
        return replace(plain, rank=rank)
    total = sum(config.rank for config in configs)
    if total > fits or any(config.form == "wide" for config in configs):
        return replace(plain, form="wide")
    if not _alike(configs):
        return replace(plain, rank=total)
    if all(config.form == "compressed" for config in configs):
        return replace(plain, rank=total, form="compressed", depth=configs[0].depth)
    return replace(plain, rank=total, depth=_cores(configs[0]) + 2)


def _cores(config: DeepLoraConfig) -> int:
    return config.depth if config.form == "compressed" else config.depth - 2


def _alike(configs: list[DeepLoraConfig]) -> bool:
    """Whether the adapters have equally many cores, and so can be laid side by side factor by factor."""
    return len({_cores(config) for config in configs}) == 1


def _summed(
    layer: DeepLoraLinear, weights: dict[str, float], configs: list[DeepLoraConfig], form: str, rank: int | None
) -> Narrow:
    """sum_i weights_i Delta_i of one layer, as factors of the shape that `_shape` has chosen."""
    if rank is not None:
        return _truncated(_delta(layer, weights), rank)
    if form == "wide":
        return _dense(_delta(layer, weights))
    parts, deep = zip(weights.items(), configs, strict=True), _alike(configs)
    return _side_by_side([_part(layer, name, weight, part, deep=deep) for (name, weight), part in parts])


def _part(layer: DeepLoraLinear, name: str, weight: float, config: DeepLoraConfig, *, deep: bool) -> Narrow:
    """One summand with its weight and scaling in `left`, its cores there too unless deep; 0 if the layer lacks it."""
    if name not in layer.scaling:
        left, right = (torch.zeros(rows, config.rank, device=layer.weight.device) for rows in layer.shape)
        return Narrow(left, (left.new_zeros(config.rank, config.rank),) * (_cores(config) * deep), right)
    if deep:
        factors = layer.factors(name)
        return replace(factors, left=weight * layer.scaling[name] * factors.left)
    right, top = layer.folded(name)
    return Narrow(weight * top, (), right.mT)


def _side_by_side(parts: list[Narrow]) -> Narrow:
    """sum_i left_i C_i ... C_i right_i^T as one network."""
    cores = tuple(_block_diagonal(list(cores)) for cores in zip(*(part.cores for part in parts), strict=True))
    return Narrow(torch.hstack([p.left for p in parts]), cores, torch.hstack([p.right for p in parts]))


def _block_diagonal(blocks: list[Tensor]) -> Tensor:
    whole = blocks[0].new_zeros(sum(map(len, blocks)), sum(map(len, blocks)))
    corner = 0
    for block in blocks:
        whole[corner : corner + len(block), corner : corner + len(block)] = block
        corner += len(block)
    return whole


def _delta(layer: DeepLoraLinear, weights: dict[str, float]) -> Tensor:
    """sum_i weights_i Delta_i, (outputs, inputs), in single precision at least; 0 for a layer that has none of them."""
    deltas = [weight * layer.get_delta_weight(name) for name, weight in weights.items() if name in layer.scaling]
    if not deltas:
        return torch.zeros(layer.shape, device=layer.weight.device)
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


def _checked(
    model: BaseTuner, adapters: list[str], weights: list[float], name: str, kind: str, rank: int | None
) -> list[DeepLoraConfig]:
    """The summands' configurations, or ValueError."""
    known = model.peft_config
    if name in known or not adapters or set(adapters) - set(known) or len(set(adapters)) < len(adapters):
        raise ValueError(f"a sum {name!r} of {adapters}: give a new name, and different summands among {list(known)}")
    if len(weights) != len(adapters) or not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights = {weights} for the adapters {adapters}: give a finite number for each")
    if kind not in ("linear", "svd") or (kind == "svd") != (rank is not None):
        raise ValueError(f"combination_type = {kind!r} with rank = {rank}: take 'linear' without, or 'svd' with a rank")
    wrapped = [(n, m) for n, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)]
    if heads := [n for n, m in wrapped if set(adapters) & set(m.modules_to_save)]:
        raise ValueError(
            f"{heads[0]!r} is in modules_to_save of {adapters}, and whole modules are not summed: sum adapters "
            "that were trained without modules_to_save"
        )
    return [config for adapter in adapters if isinstance(config := known[adapter], DeepLoraConfig)]
