"""Deep LoRA on quantized bases, which are run, calibrated on and merged without ever being trained.

Skipped where bitsandbytes or torchao is not installed.
"""

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    get_peft_model,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from torch import nn

from lowdim.adapters import DeepLoraConfig, deep_lora_parameter_groups, initialize_deep_lora_weights, load, to_lora
from lowdim.adapters.deep_lora.layer import DeepLoraLinear

pytestmark = pytest.mark.filterwarnings("ignore")  # both packages warn about the machines that they are not on
FORMS = ("compressed", "narrow", "wide")
WIDTH = 64


class Net(nn.Module):
    def __init__(self, layer) -> None:
        super().__init__()
        self.one, self.two, self.head = layer(WIDTH, 2 * WIDTH), layer(2 * WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, inputs):
        return self.head(torch.relu(self.two(torch.relu(self.one(inputs)))))


def dense() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(nn.Linear).eval()


def bitsandbytes_8bit() -> Net:
    bnb = pytest.importorskip("bitsandbytes")
    model = Net(lambda i, o: bnb.nn.Linear8bitLt(i, o, has_fp16_weights=False))
    model.load_state_dict(dense().state_dict())
    return model.to("cpu").eval()


def bitsandbytes_4bit() -> Net:
    bnb = pytest.importorskip("bitsandbytes")
    model = Net(lambda i, o: bnb.nn.Linear4bit(i, o, quant_type="nf4", compute_dtype=torch.float32))
    model.load_state_dict(dense().state_dict())
    return model.to("cpu").eval()


def torchao_int8() -> Net:
    quantization = pytest.importorskip("torchao.quantization")
    transformers = pytest.importorskip("transformers")
    scheme = quantization.Int8WeightOnlyConfig()
    model = dense()
    quantization.quantize_(model, scheme, filter_fn=lambda module, name: name in ("one", "two"))
    model.hf_quantizer = type("Quantizer", (), {"quantization_config": transformers.TorchAoConfig(scheme)})()
    return model


BASES = {"8 bit": (bitsandbytes_8bit, 0.05), "4 bit": (bitsandbytes_4bit, 0.4), "int8": (torchao_int8, 0.05)}
each_base = pytest.mark.parametrize(("base", "rounding"), BASES.values(), ids=BASES)


def rows() -> torch.Tensor:
    return torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(1))


def loss_fn(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(inputs).float(), torch.arange(32) % 3)


def config(form: str, **changes) -> DeepLoraConfig:
    return DeepLoraConfig(form=form, rank=4, alpha=6.0, target_modules=["one", "two"], **changes)


def layers(model: nn.Module) -> list[DeepLoraLinear]:
    return [m for m in model.modules() if isinstance(m, DeepLoraLinear)]


@each_base
@pytest.mark.parametrize("form", FORMS)
def test_a_quantized_base_trains_merges_disables_and_comes_back(base, rounding, form, tmp_path):
    model = get_peft_model(base(), config(form, init_weights=False)).train()
    assert all(layer.quantization_backend is not None for layer in layers(model))
    optimizer = torch.optim.SGD(deep_lora_parameter_groups(model, 0.1, gamma=1.0))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    losses = []
    for _ in range(20):
        losses.append(loss_fn(model, rows()))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1].item() < losses[0].item()
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    model.save_pretrained(tmp_path)
    with torch.no_grad():  # from here on bitsandbytes packs the weights of a CPU model
        plain, trained = base()(rows()).float(), model.eval()(rows()).float()
        assert torch.linalg.norm(trained - plain) > 0.1
        with model.disable_adapter():
            torch.testing.assert_close(model(rows()).float(), plain)
        torch.testing.assert_close(load(base(), tmp_path).eval()(rows()).float(), trained, atol=1e-4, rtol=1e-4)
        merged = load(base(), tmp_path).merge_and_unload(safe_merge=True)
        assert type(merged.one) is type(base().one)
        assert torch.linalg.norm(merged(rows()).float() - trained) < rounding * torch.linalg.norm(trained)


@each_base
def test_several_adapters_of_a_quantized_base_mix_add_up_and_leave_as_lora(base, rounding):
    model = get_peft_model(base(), config("compressed", init_weights=False)).eval()
    model.add_adapter("two", config("compressed", init_weights=False, seed=1))
    inputs, alone = rows()[:2], {}
    with torch.no_grad():
        for name in ("default", "two"):
            model.set_adapter(name)
            alone[name] = model(inputs)
        mixed = model(inputs, adapter_names=["two", "default"])
        torch.testing.assert_close(mixed[0], alone["two"][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mixed[1], alone["default"][1], atol=1e-4, rtol=1e-4)
        model.add_weighted_adapter(["default", "two"], [0.5, -0.5], "sum")
        for layer in layers(model):
            parts = [layer.get_delta_weight(name) for name in ("default", "two", "sum")]
            torch.testing.assert_close(parts[2], (parts[0] - parts[1]) / 2, atol=1e-5, rtol=1e-5)
        exported, state = to_lora(model, "two")
        lora = get_peft_model(base(), exported).eval()
        assert isinstance(exported, LoraConfig)
        assert not set_peft_model_state_dict(lora, state).unexpected_keys
        torch.testing.assert_close(lora(inputs), alone["two"], atol=1e-4, rtol=1e-4)


@each_base
def test_what_was_merged_into_a_quantized_base_comes_out_again(base, rounding):
    model = get_peft_model(base(), config("narrow", init_weights=False)).eval()
    with torch.no_grad():
        adapted = model(rows()).float()
        with model.disable_adapter():
            plain = model(rows()).float()
        model.merge_adapter()
        model.unmerge_adapter()
        assert torch.linalg.norm(model(rows()).float() - adapted) < rounding * torch.linalg.norm(adapted)
        with model.disable_adapter():
            assert torch.linalg.norm(model(rows()).float() - plain) < rounding * torch.linalg.norm(plain)


@each_base
def test_a_quantized_base_is_calibrated_on_nearly_the_gradient_of_the_dense_one(base, rounding):
    model = get_peft_model(base(), config("compressed"))
    initialize_deep_lora_weights(model, rows(), loss_fn)
    exact = dense().requires_grad_(True)
    gradients = torch.autograd.grad(loss_fn(exact, rows()), [exact.one.weight, exact.two.weight])
    for layer, gradient in zip(layers(model), gradients, strict=True):
        factors = layer.factors("default")
        seen = torch.linalg.norm(factors.left.float().mT @ gradient @ factors.right.float())
        assert seen > (1 - rounding / 2) * torch.linalg.norm(torch.linalg.svdvals(gradient)[:2])


# transformers' way: a model that is quantized as it is loaded, the Trainer, and AutoPeftModel


def quantization(kind: str):
    transformers = pytest.importorskip("transformers")
    if kind == "int8":
        return transformers.TorchAoConfig(pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig())
    pytest.importorskip("bitsandbytes")
    return transformers.BitsAndBytesConfig(load_in_4bit=kind == "4 bit", load_in_8bit=kind == "8 bit")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with a tiny one."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("llama")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes)).save_pretrained(folder)
    return folder


def words() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(50, (16, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in ids]


@pytest.mark.parametrize("kind", BASES)
def test_a_quantized_model_is_trained_resumed_and_loaded_as_transformers_users_do(kind, llama, tmp_path):
    transformers = pytest.importorskip("transformers")
    shared = {"quantization_config": quantization(kind), "device_map": "cpu", "dtype": torch.float32}
    batch = {name: torch.stack([row[name] for row in words()]) for name in words()[0]}
    arguments = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": []}

    def started(seed: int) -> nn.Module:
        model = transformers.LlamaForCausalLM.from_pretrained(llama, **shared)
        model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
        model = get_peft_model(model, DeepLoraConfig(rank=4, seed=seed, target_modules="all-linear", scale=0.3))
        assert all(layer.quantization_backend is not None for layer in layers(model))
        return model

    def train(model: nn.Module, name: str, resumed: str | None = None) -> None:
        optimizer = torch.optim.AdamW(deep_lora_parameter_groups(model, 3e-2, 0.1), eps=1e-14)
        how = transformers.TrainingArguments(
            str(tmp_path / name), disable_tqdm=True, logging_strategy="no", **arguments
        )
        trainer = transformers.Trainer(model, how, train_dataset=words(), optimizers=(optimizer, None))
        trainer.train(resume_from_checkpoint=resumed)

    whole, other = started(0), started(7)
    initialize_deep_lora_weights(whole, batch)
    before = whole.eval()(**batch).loss.item()
    train(whole, "whole")
    train(other, "other", str(tmp_path / "whole" / "checkpoint-2"))
    for (name, one), (_, two) in zip(whole.named_parameters(), other.named_parameters(), strict=True):
        assert ".deep_lora_" not in name or torch.equal(one, two), name
    after = whole.eval()(**batch).loss.item()
    assert after < before - 0.02
    whole.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", **shared).eval()
    assert abs(loaded(**batch).loss.item() - after) < 2e-3
