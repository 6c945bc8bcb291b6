"""A Deep LoRA adapter as a plain LoRA, exactly: A = right^T, B = s left C_L ... C_1."""

import re
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from .config import DeepLoraConfig
from .layer import DeepLoraLinear


@torch.no_grad()
def to_lora(model: nn.Module, adapter_name: str = "default") -> tuple[LoraConfig, dict[str, Tensor]]:
    """The configuration and state dict of a LoRA adapter with the same change of every weight, for any LoRA runtime.

    For use: `lora = get_peft_model(fresh_model, config)`, then `peft.set_peft_model_state_dict(lora, state)`. B is
    computed in single precision and rounded to the adapter's. Its rank is the adapter's width, and its scaling 1.
    Heads (modules_to_save) and trained biases come along.

    model: a PeftModel. Raises ValueError if it has no Deep LoRA adapter of that name.
    """
    named = {n: m for n, m in model.named_modules() if isinstance(m, DeepLoraLinear) and adapter_name in m.scaling}
    if not named:
        raise ValueError(f"no Deep LoRA layer has an adapter {adapter_name!r}: give a PeftModel and an adapter of it")
    state = {
        key: tensor
        for key, tensor in get_peft_model_state_dict(model, adapter_name=adapter_name).items()
        if ".deep_lora_" not in key
    }
    ranks = {}
    for name, layer in named.items():
        right, top = layer.folded(adapter_name)
        state[f"{name}.lora_A.weight"] = right.detach().clone()
        state[f"{name}.lora_B.weight"] = top.to(right.dtype)
        ranks[layer.layer_name] = len(right)
    return _config(model, adapter_name, ranks, transposed=any(layer.transposed for layer in named.values())), state


def _config(model: nn.Module, adapter_name: str, ranks: dict[str, int], *, transposed: bool) -> LoraConfig:
    """Scaling alpha / r = 1 everywhere; the ranks of wide adapters differ from layer to layer."""
    configs: Any = model.peft_config
    ours: DeepLoraConfig = configs[adapter_name]
    rank = max(ranks.values())
    others = {
        "^" + re.escape(name): size for name, size in ranks.items() if size != rank
    }  # PEFT reads them as patterns
    kept = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=others,
        alpha_pattern=others,
        fan_in_fan_out=transposed,
        bias="lora_only" if ours.bias == "deep_lora_only" else ours.bias,
        task_type=ours.task_type,
        base_model_name_or_path=ours.base_model_name_or_path,
        **{name: getattr(ours, name) for name in kept},
    )
