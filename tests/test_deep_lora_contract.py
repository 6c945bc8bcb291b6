"""Deep LoRA is a PEFT tuner like PEFT's own: what PEFT promises for those holds for all three forms.

With alpha != rank throughout, so that a forgotten scaling shows; on tiny models with random weights.
"""

import copy
import json
import re

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftConfig,
    PeftModel,
    convert_to_lora,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

import lowdim.adapters
from lowdim.adapters import DeepLoraConfig, deep_lora_parameter_groups, initialize_deep_lora_weights, to_lora
from lowdim.adapters.deep_lora.layer import DeepLoraLinear

RANK, DEPTH, ALPHA = 4, 3, 10.0
FORMS = ("compressed", "narrow", "wide")
WIDTH, FEED_FORWARD, VOCABULARY, LAYERS = 32, 48, 60, 2


def bert() -> nn.Module:
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": FEED_FORWARD,
        "vocab_size": VOCABULARY,
        "initializer_range": 0.2,
    }
    return BertForSequenceClassification(
        BertConfig(**sizes, num_hidden_layers=LAYERS, num_attention_heads=4, max_position_embeddings=32, num_labels=3)
    )


def llama() -> nn.Module:
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": FEED_FORWARD,
        "vocab_size": VOCABULARY,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(
        LlamaConfig(**sizes, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2)
    )


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=4,
            n_inner=FEED_FORWARD,
            vocab_size=VOCABULARY,
            n_positions=32,
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=1,
        )
    )


BUILDERS = {"bert": bert, "llama": llama, "gpt2": gpt2}
TARGETS = {  # attention and feed-forward: square, tall and wide layers
    "bert": ["query", "attention.output.dense", "intermediate.dense", "output.dense"],
    "llama": ["q_proj", "k_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
}
SHAPES = {  # (outputs, inputs) of a block's adapted layers
    "bert": [(32, 32), (32, 32), (48, 32), (32, 48)],
    "llama": [(32, 32), (16, 32), (48, 32), (32, 48)],
    "gpt2": [(96, 32), (48, 32)],
}
each_form = pytest.mark.parametrize("form", FORMS)
each_model = pytest.mark.parametrize("name", BUILDERS)


def base(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BUILDERS[name]().eval()


def config(form: str, name: str, **changes) -> DeepLoraConfig:
    arguments = {"form": form, "rank": RANK, "depth": DEPTH, "alpha": ALPHA, "target_modules": TARGETS[name]}
    return DeepLoraConfig(**(arguments | changes))


def visible(form: str, name: str, **changes) -> PeftModel:
    """A model whose adapter changes it from the start."""
    return get_peft_model(base(name), config(form, name, init_weights=False, **changes)).eval()


def tokens(name: str, rows: int = 4, seed: int = 1) -> dict[str, torch.Tensor]:
    ids = torch.randint(2, VOCABULARY, (rows, 7), generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(rows) % 3 if name == "bert" else ids
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@torch.no_grad()
def logits(model: nn.Module, name: str, **options) -> torch.Tensor:
    inputs = tokens(name)
    inputs.pop("labels")
    return model(**inputs, **options).logits.float()


def train(model: nn.Module, name: str, steps: int = 3, lr: float = 0.1) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**tokens(name)).loss.backward()
        optimizer.step()


def layers(model: nn.Module) -> list[DeepLoraLinear]:
    return [module for module in model.modules() if isinstance(module, DeepLoraLinear)]


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return torch.allclose(one, other, atol=tolerance, rtol=tolerance)


# what get_peft_model makes


@each_form
@each_model
def test_the_default_start_is_the_base_model_to_rounding_and_init_weights_false_is_not(form, name):
    plain = logits(base(name), name)
    assert close(logits(get_peft_model(base(name), config(form, name)).eval(), name), plain, 1e-6)
    assert not close(logits(visible(form, name), name), plain, 1e-2)


@each_form
def test_the_first_change_is_of_order_scale_to_the_depth(form):
    """|s F_L ... F_1| = (alpha / width) scale^L in spectral norm."""
    for scale, depth in ((0.1, 2), (0.1, 3), (0.2, 4)):
        model = get_peft_model(base("bert"), config(form, "bert", scale=scale, depth=depth))
        for layer in layers(model):
            width = min(layer.shape) if form == "wide" else RANK
            norm = float(torch.linalg.matrix_norm(layer.get_delta_weight("default").detach(), 2))
            assert norm == pytest.approx(ALPHA / width * scale**depth, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "found"), [("bert", {"query", "value"}), ("llama", {"q_proj", "v_proj"}), ("gpt2", {"c_attn"})]
)
def test_no_target_modules_means_those_of_lora_for_the_architecture(name, found):
    model = get_peft_model(base(name), DeepLoraConfig())
    assert {layer.layer_name.rpartition(".")[2] for layer in layers(model)} == found
    assert len(layers(model)) == LAYERS * len(found)


def test_all_linear_and_exclude_modules_and_layers_to_transform():
    everything = get_peft_model(base("llama"), DeepLoraConfig(target_modules="all-linear", exclude_modules=["k_proj"]))
    assert len(layers(everything)) == LAYERS * 6
    second = config("compressed", "llama", layers_to_transform=[1], layers_pattern="layers")
    assert {layer.layer_name.split(".")[2] for layer in layers(get_peft_model(base("llama"), second))} == {"1"}


@each_form
@each_model
def test_what_trains_is_the_factors_and_their_number_is_the_formula(form, name):
    """rank (m + n) + L rank^2 compressed; rank (m + n) + (L - 2) rank^2 narrow; the same with min(m, n) wide."""
    model = get_peft_model(base(name), config(form, name))
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(".deep_lora_" in n for n in names)
    expected = 0
    for m, n in SHAPES[name] * LAYERS:
        width = min(m, n) if form == "wide" else RANK
        expected += width * (m + n) + (DEPTH if form == "compressed" else DEPTH - 2) * width**2
    assert model.get_nb_trainable_parameters()[0] == expected


@each_form
@each_model
def test_every_factor_gets_a_gradient_and_moves_and_nothing_else_does(form, name):
    model = get_peft_model(base(name), config(form, name, scale=0.1))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, name)
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n]) != p.requires_grad, n
        assert (p.grad is None) != p.requires_grad


def test_registry_arguments_fit_tiny_layers_start_at_the_identity_and_move_in_three_steps():
    (kind, arguments), *rest = lowdim.adapters.registry().items()
    assert kind is DeepLoraConfig
    assert not rest
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 2), nn.LogSoftmax(-1))
    inputs = torch.arange(90.0).view(9, 10)
    plain = tiny(inputs).detach()
    for form in FORMS:
        model = get_peft_model(copy.deepcopy(tiny), kind(target_modules=["0", "2"], form=form, **arguments))
        torch.testing.assert_close(model(inputs).detach(), plain, atol=1e-4, rtol=1e-4)
        before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            model(inputs).sum().backward()
            optimizer.step()
        for n, p in model.named_parameters():
            assert not p.requires_grad or not torch.allclose(p, before[n], atol=1e-4, rtol=1e-4)


@each_form
def test_starts_depend_on_the_seed_and_on_the_layers_name_and_on_nothing_else(form):
    state = torch.get_rng_state()
    one, same, other = (visible(form, "bert", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for here, there, elsewhere in zip(layers(one), layers(same), layers(other), strict=True):
        assert torch.equal(here.get_delta_weight("default"), there.get_delta_weight("default"))
        assert not close(here.get_delta_weight("default"), elsewhere.get_delta_weight("default"))
    first, second = (layer for layer in layers(one) if layer.layer_name.endswith("query"))
    assert not close(first.get_delta_weight("default"), second.get_delta_weight("default"))


def test_status_and_repr_name_the_method():
    model = visible("compressed", "llama")
    status = model.get_model_status()
    assert (status.base_model_type, status.adapter_model_type) == ("LlamaForCausalLM", "DeepLoraModel")
    assert status.peft_types == {"default": "DEEP_LORA"}
    assert status.requires_grad == {"default": True}
    assert model.get_layer_status()[0].module_type == "deep_lora.DeepLoraLinear"
    assert "deep_lora.DeepLoraLinear" in repr(model)


# merging, switching, deleting


@each_form
@each_model
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=str
)
def test_merged_is_unmerged_in_every_precision(form, name, dtype, tolerance):
    """Up to a few roundings of that precision, relative to what the adapter changes."""
    model = get_peft_model(base(name).to(dtype), config(form, name, init_weights=False)).eval()
    adapted, before = logits(model, name), {n: p.clone() for n, p in model.state_dict().items()}
    change = torch.linalg.norm(adapted - logits(base(name).to(dtype), name))

    def same() -> bool:
        return bool(torch.linalg.norm(logits(model, name) - adapted) < tolerance * change)

    model.merge_adapter()
    assert all(layer.merged and layer.get_base_layer().weight.is_contiguous() for layer in layers(model))
    assert same()
    model.unmerge_adapter()
    assert same()
    for n, p in model.state_dict().items():
        assert close(p.float(), before[n].float(), tolerance)
    model = model.merge_and_unload(safe_merge=True)
    assert type(model) is type(base(name))
    assert not layers(model)
    assert next(model.parameters()).dtype is dtype
    assert same()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_models_train(dtype, autocast):
    """The adapter is in single precision unless autocast_adapter_dtype is off, as PEFT's are."""
    model = get_peft_model(
        base("llama").to(dtype), config("compressed", "llama", scale=0.3), autocast_adapter_dtype=autocast
    )
    train(model, "llama")
    assert logits(model, "llama").isfinite().all()
    assert layers(model)[0].outer("default")[0].dtype is (torch.float32 if autocast else dtype)


@each_form
def test_autocast_computes_the_product_of_cores_in_single_precision(form):
    """1e-9 is below what half precision holds: the start would be exactly zero, and so would its gradients."""
    model = get_peft_model(base("llama"), config(form, "llama"))
    with torch.autocast("cpu", torch.bfloat16):
        delta = layers(model)[0].get_delta_weight("default")
        model(**tokens("llama")).loss.backward()
    assert delta.dtype is torch.float32
    assert delta.any()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)


def test_safe_merge_refuses_adapters_that_overflow_together():
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)).half(), DeepLoraConfig(rank=2, target_modules=["0"]))
    model.add_adapter("two", DeepLoraConfig(rank=2, target_modules=["0"]))
    (layer,) = layers(model)
    for name in ("default", "two"):
        for factor in (*layer.outer(name), *layer.cores(name)):
            torch.nn.init.eye_(factor.data)
        layer.outer(name)[1].data.mul_(40_000)  # float16 ends at 65,504
    weight = layer.get_base_weight().clone()
    model.merge_adapter(["default"], safe_merge=True)
    model.unmerge_adapter()
    layer.set_base_weight(weight)
    with pytest.raises(ValueError, match="adapter 'two' makes the weight of '0' NaN or infinite"):
        model.merge_adapter(["default", "two"], safe_merge=True)
    assert torch.equal(layer.get_base_weight(), weight)
    assert not layer.merged


@each_form
def test_safe_merge_refuses_nan_and_leaves_every_layer_unmerged(form):
    model = visible(form, "bert")
    with torch.no_grad():
        layers(model)[-1].outer("default")[1][0, 0] = torch.nan
    before = {n: p.clone() for n, p in model.state_dict().items()}
    for attempt in (lambda: model.merge_adapter(safe_merge=True), lambda: model.merge_and_unload(safe_merge=True)):
        with pytest.raises(ValueError, match=r"weight of 'bert.encoder.layer.1.output.dense' NaN or infinite"):
            attempt()
        assert not any(layer.merged for layer in layers(model))
        for n, p in model.state_dict().items():
            torch.testing.assert_close(p, before[n], equal_nan=True, rtol=0, atol=0)


@each_form
@each_model
def test_disabled_and_unloaded_is_the_base_model(form, name):
    model, plain = visible(form, name), logits(base(name), name)
    adapted = logits(model, name)
    with model.disable_adapter():
        assert torch.equal(logits(model, name), plain)
    assert torch.equal(logits(model, name), adapted)
    model.merge_adapter()
    with model.disable_adapter():
        assert close(logits(model, name), plain)
    assert close(logits(model.unload(), name), plain)


def several(form: str, name: str) -> PeftModel:
    """Adapters "default", "second" (of another shape, on fewer layers) and "third"."""
    model = visible(form, name)
    second = {"rank": 2, "alpha": 3.0, "seed": 1, "init_weights": False, "target_modules": TARGETS[name][:1]}
    model.add_adapter("second", config(form, name, **second))
    model.add_adapter("third", config(form, name, seed=2, init_weights=False))
    return model.eval()


@each_form
@each_model
def test_several_adapters_switch_stack_and_disappear(form, name):
    model, plain = several(form, name), logits(base(name), name)
    outputs = {}
    for adapter in ("default", "second", "third"):
        model.set_adapter(adapter)
        outputs[adapter] = logits(model, name)
        trained = {n.split(".deep_lora_")[1].split(".")[1] for n, p in model.named_parameters() if p.requires_grad}
        assert trained == {adapter}
    assert not close(outputs["default"], outputs["second"], 1e-3)
    model.base_model.set_adapter(["default", "second"])
    stacked = logits(model, name)
    expected = base(name)
    for layer in layers(model):
        for adapter in {"default", "second"} & set(layer.scaling):
            expected.get_submodule(layer.layer_name).weight.data += layer.get_delta_weight(adapter)
    assert close(stacked, logits(expected, name))
    model.merge_adapter(["default"])
    model.unmerge_adapter()
    model.set_adapter("third")
    for adapter in ("default", "second"):
        model.delete_adapter(adapter)
    assert close(logits(model, name), outputs["third"])
    assert not any("default" in n or "second" in n for n in model.state_dict())
    model.delete_adapter("third")
    assert close(logits(model.base_model.model, name), plain)


SUMS = {
    "alike": [("compressed", {}), ("compressed", {"seed": 1, "rank": 2, "alpha": 3.0})],
    "of other depths": [("compressed", {}), ("compressed", {"depth": 2, "seed": 1})],
    "of other forms": [("narrow", {"depth": 5}), ("compressed", {"seed": 1})],
    "narrow": [("narrow", {}), ("narrow", {"seed": 1})],
    "wide": [("wide", {}), ("narrow", {"seed": 1})],
    "too wide together": [("compressed", {"rank": 12}), ("compressed", {"rank": 12, "seed": 1})],
    "on other layers, of other depths": [("compressed", {"target_modules": "ONE"}), ("narrow", {"seed": 1})],
    "on other layers": [("compressed", {"target_modules": "ONE"}), ("compressed", {"seed": 1})],
}


def test_a_sum_adapts_the_layers_of_its_summands_and_no_namesakes():
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "inner": nn.ModuleDict({"a": nn.Linear(3, 3)})})
    wrapped = get_peft_model(model, DeepLoraConfig(rank=4, target_modules="a", init_weights=False))
    wrapped.add_weighted_adapter(["default"], [2.0], "sum")
    (layer,) = layers(wrapped)
    assert close(layer.get_delta_weight("sum"), 2 * layer.get_delta_weight("default"))


@pytest.mark.parametrize("kind", SUMS)
@each_model
def test_a_weighted_sum_of_adapters_is_the_sum_of_their_changes(kind, name):
    one, parts = {"target_modules": TARGETS[name][:1]}, []
    for form, changes in SUMS[kind]:
        parts.append((form, changes | {"init_weights": False} | (one if "target_modules" in changes else {})))
    model = get_peft_model(base(name), config(parts[0][0], name, **parts[0][1])).eval()
    model.add_adapter("other", config(parts[1][0], name, **parts[1][1]))
    before = logits(model, name)
    model.add_weighted_adapter(["default", "other"], [0.7, -1.3], "sum")
    assert torch.equal(logits(model, name), before)  # it is not active yet
    model.add_weighted_adapter(["default", "other"], [0.7, -1.3], "best", combination_type="svd", rank=4)
    for layer in layers(model):
        both = zip((0.7, -1.3), ("default", "other"), strict=True)
        expected = sum(weight * layer.get_delta_weight(a) for weight, a in both if a in layer.scaling)
        assert close(layer.get_delta_weight("sum"), expected)
        errors = torch.linalg.svdvals(expected)[4:], torch.linalg.svdvals(layer.get_delta_weight("best") - expected)
        assert close(torch.linalg.norm(errors[0]), torch.linalg.norm(errors[1]), 1e-4)
    model.set_adapter("sum")
    train(model, name, steps=1)
    form = model.peft_config["sum"].form
    assert form == {"alike": "compressed", "on other layers": "compressed", "wide": "wide",
                    "too wide together": "wide" if name == "llama" else "compressed"}.get(kind, "narrow")  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["default", "nobody"], [1.0, 1.0], "sum"), "different summands among"),
        ((["default", "default"], [1.0, 1.0], "sum"), "different summands among"),
        ((["default"], [1.0], "other"), "give a new name"),
        ((["default", "other"], [1.0], "sum"), r"weights = \[1.0\] for the adapters"),
        ((["default", "other"], [1.0, float("nan")], "sum"), "a finite number for each"),
        ((["default", "other"], [1.0, 1.0], "sum", "ties"), "take 'linear' without, or 'svd' with a rank"),
        ((["default", "other"], [1.0, 1.0], "sum", "svd"), "'svd' with a rank"),
        ((["default", "other"], [1.0, 1.0], "sum", "svd", 33), "allows 1 <= rank <= 32"),
    ],
)
def test_sums_that_cannot_be_are_refused_and_leave_nothing_behind(arguments, message):
    model = visible("compressed", "bert")
    model.add_adapter("other", config("compressed", "bert", seed=1))
    before = set(model.state_dict())
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(*arguments)
    assert set(model.state_dict()) == before
    assert set(model.peft_config) == {"default", "other"}


@each_form
@each_model
def test_each_row_of_a_batch_has_its_own_adapter(form, name):
    model = several(form, name)
    names = ["second", "__base__", "default", "third"]
    mixed = logits(model, name, adapter_names=names)
    for row, adapter in enumerate(names):
        if adapter == "__base__":
            with model.disable_adapter():
                alone = logits(model, name)
        else:
            model.set_adapter(adapter)
            alone = logits(model, name)
        assert close(mixed[row], alone[row])


def test_generation_with_an_adapter_for_each_prompt_and_several_beams():
    model = several("compressed", "llama")
    prompts = {key: tokens("llama", rows=2)[key] for key in ("input_ids", "attention_mask")}
    for options in ({"num_beams": 2}, {"num_return_sequences": 2, "num_beams": 3}, {}):
        options |= {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        both = model.generate(**prompts, **options, adapter_names=["default", "third"])
        for row, adapter in enumerate(("default", "third")):
            model.set_adapter(adapter)
            one = model.generate(**{key: value[row : row + 1] for key, value in prompts.items()}, **options)
            assert torch.equal(both.view(2, len(one), -1)[row], one)


def test_mixed_batches_that_cannot_be_are_refused():
    model = several("compressed", "bert")
    with pytest.raises(ValueError, match=r"adapter_names holds \['nobody'\]: take from \['default', 'second', 'third'"):
        logits(model, "bert", adapter_names=["nobody"] * 4)
    with pytest.raises(ValueError, match="3 adapter_names for a batch in which DeepLoraLinear sees 4 rows"):
        logits(model, "bert", adapter_names=["default"] * 3)
    with pytest.raises(ValueError, match=r"model.eval\(\) first"):
        logits(model.train(), "bert", adapter_names=["default"] * 4)
    model.eval().merge_adapter()
    with pytest.raises(ValueError, match=r"\['default'\] merged into the weight: call unmerge_adapter\(\)"):
        logits(model, "bert", adapter_names=["default"] * 4)
    model.unmerge_adapter()
    with model.disable_adapter():  # as PEFT's LoRA: disabled is disabled
        assert close(logits(model, "bert", adapter_names=["default"] * 4), logits(base("bert"), "bert"))


# saving and loading


@each_form
@each_model
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_saved_adapter_comes_back_bit_for_bit_and_is_all_that_is_saved(form, name, low_cpu_mem_usage, tmp_path):
    model = visible(form, name)
    train(model, name)
    adapted = logits(model, name)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    count = sum(p.numel() for n, p in model.named_parameters() if ".deep_lora_" in n)
    assert sum(tensor.numel() for tensor in saved.values()) == count
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 4 * count + 200 * len(saved) + 200
    stems = {re.sub(r".*\.(deep_lora_\w+).*", r"\1", key) for key in saved}
    assert stems == {"deep_lora_right", "deep_lora_left", "deep_lora_cores"}
    assert not any("default" in key for key in saved)
    for load in (PeftModel.from_pretrained, lowdim.adapters.load):
        loaded = load(base(name), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(logits(loaded.eval(), name), adapted)
        assert not any(p.requires_grad for p in loaded.parameters())
        assert loaded.peft_config["default"].form == form
        named = load(base(name), tmp_path, adapter_name="mine", is_trainable=True)
        assert torch.equal(logits(named.eval(), name), adapted)
        assert all(p.requires_grad == (".deep_lora_" in n) for n, p in named.named_parameters())
    assert PeftConfig.from_pretrained(tmp_path).to_dict() == loaded.peft_config["default"].to_dict()


def test_auto_models_and_transformers_own_integration_load_it(tmp_path):
    base("llama").save_pretrained(tmp_path / "base")
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(plain, config("compressed", "llama", init_weights=False, task_type="CAUSAL_LM")).eval()
    adapted = logits(model, "llama")
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval(), "llama"), adapted)
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    plain.load_adapter(str(tmp_path / "adapter"))
    assert close(logits(plain, "llama"), adapted)


@each_form
def test_heads_are_saved_with_the_adapter_and_follow_it_in_mixed_batches(form, tmp_path):
    model = visible(form, "bert", modules_to_save=["classifier"])
    train(model, "bert")
    model.eval()
    adapted = logits(model, "bert")
    model.save_pretrained(tmp_path)
    assert any("classifier" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    loaded = lowdim.adapters.load(base("bert"), tmp_path).eval()
    assert torch.equal(logits(loaded, "bert"), adapted)
    mixed = logits(loaded, "bert", adapter_names=["default", "__base__"] * 2)
    assert close(mixed[::2], adapted[::2])
    assert close(mixed[1::2], logits(base("bert"), "bert")[1::2])
    with pytest.raises(ValueError, match="whole modules are not summed"):
        loaded.add_weighted_adapter(["default"], [1.0], "sum")
    assert close(logits(loaded.merge_and_unload(), "bert"), adapted)


@pytest.mark.parametrize(("bias", "more"), [("all", True), ("deep_lora_only", False)])
def test_biases_train_and_are_saved_where_asked(bias, more, tmp_path):
    model = visible("compressed", "bert", bias=bias)
    trained = {n for n, p in model.named_parameters() if p.requires_grad and ".deep_lora_" not in n}
    assert any("base_layer.bias" in n for n in trained)
    assert any("LayerNorm.bias" in n for n in trained) == more
    train(model, "bert")
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(lowdim.adapters.load(base("bert"), tmp_path), "bert"), logits(model.eval(), "bert"))


def test_gamma_zero_is_saved_and_stays_frozen_through_everything(tmp_path):
    model = get_peft_model(base("bert"), config("compressed", "bert", gamma=0.0))
    model.add_adapter("other", config("compressed", "bert", seed=1))

    def trained() -> set[str]:
        return {re.sub(r".*(deep_lora_\w+).*", r"\1", n) for n, p in model.named_parameters() if p.requires_grad}

    assert trained() == {"deep_lora_cores"}
    model.set_adapter("other")
    assert trained() == {"deep_lora_cores", "deep_lora_left", "deep_lora_right"}
    model.set_adapter("default")
    with model.disable_adapter():
        assert trained() == set()
    assert trained() == {"deep_lora_cores"}
    model.save_pretrained(tmp_path)
    model = lowdim.adapters.load(base("bert"), tmp_path, is_trainable=True)
    assert trained() == {"deep_lora_cores"}


def test_injection_without_a_wrapper():
    model = inject_adapter_in_model(config("compressed", "bert", init_weights=False), base("bert"))
    wrapped = visible("compressed", "bert")
    assert torch.equal(logits(model, "bert"), logits(wrapped, "bert"))
    state = get_peft_model_state_dict(model)
    other = inject_adapter_in_model(config("compressed", "bert", seed=3, init_weights=False), base("bert"))
    assert not set_peft_model_state_dict(other, state).unexpected_keys
    assert torch.equal(logits(other, "bert"), logits(wrapped, "bert"))
    initialize_deep_lora_weights(other, tokens("bert"))
    assert close(logits(other, "bert"), logits(base("bert"), "bert"), 1e-6)


def test_deepcopy_and_json_of_a_configuration():
    ours = config("narrow", "bert")
    assert copy.deepcopy(ours) == ours
    text = json.dumps(ours.to_dict(), default=sorted)
    assert json.loads(text)["peft_type"] == "DEEP_LORA"
    assert copy.deepcopy(visible("narrow", "bert")).peft_config["default"] == config(
        "narrow", "bert", init_weights=False
    )


# export


@each_form
@each_model
def test_the_exported_lora_is_the_same_function_under_pefts_own_lora(form, name, tmp_path):
    model = visible(form, name)
    train(model, name)
    adapted = logits(model.eval(), name)
    exported, state = to_lora(model)
    lora = get_peft_model(base(name), exported)
    result = set_peft_model_state_dict(lora, state)
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key]
    assert close(logits(lora.eval(), name), adapted)
    lora.save_pretrained(tmp_path)
    assert isinstance(PeftConfig.from_pretrained(tmp_path), LoraConfig)
    assert close(logits(PeftModel.from_pretrained(base(name), tmp_path).eval(), name), adapted)
    if form != "wide":
        assert exported.r == RANK
        assert not exported.rank_pattern


def test_export_carries_heads_and_biases_and_pefts_own_conversion_agrees():
    model = visible("compressed", "bert", modules_to_save=["classifier"], bias="deep_lora_only")
    train(model, "bert")
    adapted = logits(model.eval(), "bert")
    exported, state = to_lora(model)
    lora = get_peft_model(base("bert"), exported)
    set_peft_model_state_dict(lora, state)
    assert close(logits(lora.eval(), "bert"), adapted)
    model = visible("compressed", "llama")
    adapted = logits(model, "llama")
    converted, state = convert_to_lora(model, RANK)
    lora = get_peft_model(base("llama"), converted)
    set_peft_model_state_dict(lora, state)
    assert close(logits(lora.eval(), "llama"), adapted, 1e-4)


def test_export_of_an_unknown_adapter_is_refused():
    with pytest.raises(ValueError, match="no Deep LoRA layer has an adapter 'nobody'"):
        to_lora(visible("compressed", "bert"), "nobody")


# training


class Sentences(torch.utils.data.Dataset):
    def __init__(self, name: str) -> None:
        self.rows = tokens(name, rows=16)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {key: value[index] for key, value in self.rows.items()}


def trainer(model: nn.Module, folder, **changes) -> Trainer:
    arguments = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    quiet = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_strategy": "no", "seed": 3}
    optimizer = torch.optim.AdamW(deep_lora_parameter_groups(model, 1e-2, 0.1), weight_decay=0.0)
    return Trainer(model, TrainingArguments(str(folder), **(arguments | quiet | changes)),
                   train_dataset=Sentences("llama"), optimizers=(optimizer, None))  # fmt: skip


@each_form
def test_a_resumed_trainer_continues_bit_for_bit(form, tmp_path):
    def started() -> PeftModel:
        model = get_peft_model(base("llama"), config(form, "llama"))
        if form == "compressed":
            initialize_deep_lora_weights(model, tokens("llama"))
        return model

    whole = started()
    trainer(whole, tmp_path / "whole").train()
    resumed = get_peft_model(base("llama"), config(form, "llama", seed=7))  # another start: the checkpoint must decide
    trainer(resumed, tmp_path / "resumed").train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    moved = False
    for (n, p), (_, q), (_, r) in zip(*(m.named_parameters() for m in (whole, resumed, started())), strict=True):
        assert torch.equal(p, q), n
        moved |= not torch.equal(p, r)
    assert moved


@each_form
def test_gradient_checkpointing_gives_the_same_gradients(form):
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = get_peft_model(base("llama"), config(form, "llama", scale=0.3)).train()
        if checkpointing:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        model(**tokens("llama"), use_cache=False).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    for with_it, without in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(with_it, without)
