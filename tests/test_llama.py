"""LLaMA's sizes: the published counts, pinned; a start that depends on its seed alone; which layers are targets."""

import pytest
import torch
from transformers import LlamaConfig

from lm_experiments import llama
from lm_experiments.llama_sizes import BYTES, SIZES, VOCABULARY
from lm_experiments.memory import meta

COUNTS = {  # parameters, and those of targets
    "tiny": (41_696, 25_088),
    "3m": (3_296_000, 3_162_112),
    "9m": (9_048_960, 8_847_360),
    "60m": (58_073_600, 25_296_896),
    "130m": (134_105_856, 84_934_656),
    "350m": (367_969_280, 302_383_104),
    "1b": (1_339_082_752, 1_207_910_400),
    "7b": (6_738_415_616, 6_476_005_376),
}


def test_every_size_is_pinned():
    assert set(COUNTS) == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_a_size_has_the_published_number_of_parameters(name):
    """Counted on the meta device, and by the formula of the module's docstring."""
    model = meta(name)
    targets = sum(layer.weight.numel() for layer in llama.targets(model).values())
    assert (sum(parameter.numel() for parameter in model.parameters()), targets) == COUNTS[name]
    d, f, layers, heads, vocabulary = SIZES[name]
    assert sum(COUNTS[name]) == 2 * vocabulary * d + layers * (8 * d**2 + 6 * d * f + 2 * d) + d
    assert d % heads == 0
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_targets_are_the_linear_layers_of_attention_and_feed_forward_parts():
    model = meta("tiny")
    names = {name.rpartition(".")[2] for name in llama.targets(model)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(llama.targets(model)) == 7 * SIZES["tiny"].layers
    assert not any(layer.bias is not None for layer in llama.targets(model).values())


def test_a_start_depends_on_its_seed_alone_and_draws_from_no_other_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = (llama.fresh(llama.config("tiny"), seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    drawn = {name for name, value in one.items() if not torch.equal(value, other[name])}
    assert drawn == {name for name in one if "norm" not in name}
    spread = one["model.layers.0.mlp.up_proj.weight"].std().item()
    assert spread == pytest.approx(0.02, rel=0.05)


def test_what_comes_later_does_not_change_what_is_predicted_before():
    model = llama.fresh(llama.config("tiny"), 0)
    tokens = torch.randint(BYTES, (2, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 8:] = (tokens[:, 8:] + 1) % BYTES
    with torch.no_grad():
        one, other = (model(input_ids=ids, use_cache=False).logits for ids in (tokens, changed))
    torch.testing.assert_close(one[:, :8], other[:, :8])
    assert not torch.allclose(one[:, 8:], other[:, 8:])


def test_a_vocabulary_and_a_length_are_taken():
    found = llama.config("60m", vocabulary=32_100, length=4096)
    assert isinstance(found, LlamaConfig)
    assert (found.vocab_size, found.max_position_embeddings) == (32_100, 4096)
    assert llama.config("60m").vocab_size == VOCABULARY


def test_an_unknown_size_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="no size '2b': take one of tiny, 3m, 9m, 60m, 130m, 350m, 1b, 7b"):
        llama.config("2b")
