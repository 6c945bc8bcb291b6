"""LLaMA models to train from scratch, of the sizes in `llama_sizes`.

Symbols: d hidden size, f width of the feed-forward part, L layers, V vocabulary.

    parameters = 2 V d + L (4 d^2 + 3 d f + 2 d) + d        (embedding and head are not tied; norms; no biases)

of which the targets, what low-rank methods act on, are L (4 d^2 + 3 d f).
"""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lm_experiments.llama_sizes import SIZES

KINDS = ("attn", "mlp")
"""A linear layer is a target if one of these is in its module's path, as in GaLore's script for C4."""


def config(name: str, vocabulary: int | None = None, length: int = 1024) -> LlamaConfig:
    """The configuration of a size.

    vocabulary: V; by default the size's own. length: most tokens of a sequence, at least. Raises ValueError for a size
    that there is not.
    """
    if name not in SIZES:
        raise ValueError(f"no size {name!r}: take one of {', '.join(SIZES)}")
    size = SIZES[name]
    return LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.wide,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        vocab_size=vocabulary or size.vocabulary,
        max_position_embeddings=max(length, 1024),
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )


def fresh(configuration: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """A model at its start, in float32 on the CPU: weights normal with sd 0.02, drawn from `seed` alone, norms 1."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # transformers draws from the global generator
        return LlamaForCausalLM(configuration)


def targets(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of attention and feed-forward parts by name; of LLaMA all but the head."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name: layer for name, layer in layers.items() if any(kind in name for kind in KINDS)}
