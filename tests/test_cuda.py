"""On a GPU what the other tests show on the CPU: start, training, merging and files of adapters, low-rank optimizers,
runs that repeat.

Skipped without a CUDA device; the CI has none.
"""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from lm_experiments import records
from lm_experiments.finetune import Stopped, finetune
from lm_experiments.processes import processes
from lowdim import (
    DeepLoraConfig,
    FiraAdamW,
    Frugal,
    GaLoreAdafactor,
    GaLoreAdamW,
    GaLoreSGD,
    deep_lora_parameter_groups,
    initialize_deep_lora_weights,
    leading_subspace,
    parameter_groups,
)
from tests.tiny_models import made, spec

DEVICE = os.environ.get("LOWDIM_TEST_DEVICE", "cuda")  # cpu tries the tests themselves
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device")
FORMS = ("compressed", "narrow", "wide")
TOKENS = torch.arange(48).reshape(4, 12) % 37


def base(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=37, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


def adapted(form: str, device: str, dtype: torch.dtype = torch.float32, scale: float = 0.3, **more) -> PeftModel:
    """The same on every device: started from the gradient of one batch, if compressed."""
    config = DeepLoraConfig(form=form, rank=4, scale=scale, gamma=0.1, target_modules="all-linear", **more)
    model = get_peft_model(base(dtype), config).to(device)
    if form == "compressed":
        initialize_deep_lora_weights(model, batch(device), method="exact")
    return model


def batch(device: str) -> dict[str, torch.Tensor]:
    return {"input_ids": TOKENS.to(device), "labels": TOKENS.to(device)}


def trained(model: PeftModel, device: str, steps: int = 20) -> list[float]:
    optimizer = torch.optim.AdamW(deep_lora_parameter_groups(model, lr=0.02))
    losses = []
    for _ in range(steps):
        loss = model(**batch(device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("form", FORMS)
def test_training_is_that_on_the_cpu(form):
    here, there = (trained(adapted(form, device), device) for device in ("cpu", DEVICE))
    assert here[-1] < 0.97 * here[0]
    assert there == pytest.approx(here, rel=2e-3)
    assert there[:3] == pytest.approx(here[:3], rel=1e-5)


@pytest.mark.parametrize("method", ["exact", "randomized"])
def test_the_leading_subspace_is_that_on_the_cpu(method):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 6, generator=generator)).Q for n in (200, 120))
    matrix = left @ torch.diag(torch.tensor([9.0, 7, 5, 0.01, 0.01, 0.01])) @ right.mT
    found = leading_subspace(matrix.to(DEVICE), 3, method=method)
    assert found.device.type == DEVICE
    cosines = torch.linalg.svdvals(found.cpu().mT @ left[:, :3])
    assert cosines.min() > 1 - 1e-4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_train_and_merge(form, dtype):
    model = adapted(form, DEVICE, dtype)
    losses = trained(model, DEVICE)
    assert losses[-1] < 0.97 * losses[0]
    expected = model(**batch(DEVICE)).logits.float()
    model.merge_adapter(safe_merge=True)
    merged = model(**batch(DEVICE)).logits.float()
    assert torch.linalg.norm(merged - expected) < 0.05 * torch.linalg.norm(expected)
    before = copy.deepcopy(base(dtype)).to(DEVICE)
    model.unmerge_adapter()
    for name, weight in before.named_parameters():
        there = dict(model.get_base_model().named_parameters())
        kept = there.get(name, there.get(name.replace(".weight", ".base_layer.weight")))
        torch.testing.assert_close(kept, weight, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_saved_on_the_gpu_is_loaded_on_the_cpu(form, tmp_path):
    model = adapted(form, DEVICE)
    trained(model, DEVICE)
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path, torch_device="cpu").eval()
    with torch.no_grad():
        there, here = model(TOKENS.to(DEVICE)).logits.cpu(), loaded(TOKENS).logits
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)


def test_a_batch_may_mix_adapters():
    model = adapted("compressed", DEVICE)
    trained(model, DEVICE)
    model.add_adapter("other", DeepLoraConfig(form="narrow", rank=4, scale=0.5, target_modules="all-linear"))
    model.eval()
    tokens, names = TOKENS.to(DEVICE), ["default", "other", "__base__", "default"]
    with torch.no_grad():
        mixed = model(input_ids=tokens, adapter_names=names).logits
        for name in ("default", "other"):
            model.set_adapter(name)
            rows = [i for i, wanted in enumerate(names) if wanted == name]
            torch.testing.assert_close(mixed[rows], model(tokens).logits[rows], rtol=1e-4, atol=1e-4)
        with model.disable_adapter():
            torch.testing.assert_close(mixed[2], model(tokens).logits[2], rtol=1e-4, atol=1e-4)


OPTIMIZERS = {
    "exact": lambda groups: GaLoreAdamW(groups, lr=0.01, refresh="exact", weight_decay=0.1),
    "warm": lambda groups: GaLoreAdamW(groups, lr=0.01),
    "8 bits": lambda groups: GaLoreAdamW(groups, lr=0.01, state="8bit", projector="int8"),
    "adafactor": lambda groups: GaLoreAdafactor(groups, lr=0.01, relative_step=False, scale_parameter=False),
    "sgd": lambda groups: GaLoreSGD(groups, lr=0.1, momentum=0.9),
    "fira": lambda groups: FiraAdamW(groups, lr=0.01),
    "frugal": lambda groups: Frugal(groups, lr=0.01),
}


def stepped(kind: str, device: str, tmp_path: Path | None = None) -> tuple[list[float], list[torch.Tensor]]:
    """Losses and weights of a model that trains in low-rank subspaces; tmp_path: stopped, and gone on from a file."""
    model = base().to(device)
    optimizer = OPTIMIZERS[kind](parameter_groups(model, rank=8, update_proj_gap=3))
    losses = []
    for step in range(8):
        if step == 4 and tmp_path is not None:
            torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
            weights, state = torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu")
            model = base().to(device)
            model.load_state_dict(weights)
            optimizer = OPTIMIZERS[kind](parameter_groups(model, rank=8, update_proj_gap=3))
            optimizer.load_state_dict(state)
        loss = model(**batch(device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert all(value.device.type == device for state in optimizer.state.values() for name, value in state.items()
               if torch.is_tensor(value) and value.ndim)  # fmt: skip
    return losses, [weight.detach().cpu() for weight in model.parameters()]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_low_rank_optimizers_step_as_on_the_cpu_and_go_on_from_a_file(kind, tmp_path):
    (here, _), (there, whole), (_, resumed) = (
        stepped(kind, "cpu"),
        stepped(kind, DEVICE),
        stepped(kind, DEVICE, tmp_path),
    )
    assert here[-1] < here[0] - 0.1
    assert there == pytest.approx(here, rel=2e-3 if kind == "exact" else 2e-2)  # random directions are the device's own
    for one, other in zip(whole, resumed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # sums in another order, on some GPUs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("method", ["compressed", "wide", "lora", "full"])
def test_runs_repeat_bit_for_bit_also_when_they_are_stopped(folder, tmp_path, method):
    what = spec(folder, method=method, dropout=0.1, watch=method != "full")

    def stop(step: int, loss: float) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with processes() as here:
        assert here.device.type == DEVICE
        whole, again = (finetune(what, tmp_path / name, folder, here=here) for name in ("whole", "again"))
        with pytest.raises(Stopped):
            finetune(what, tmp_path / "stopped", folder, here=here, report=stop)
        resumed = finetune(what, tmp_path / "stopped", folder, here=here)
    for found in (again, resumed):
        assert {**found, "seconds": 0} == {**whole, "seconds": 0}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_under_torchrun_one_process_trains_as_it_does_alone(folder, tmp_path, parallel, precision):
    what = spec(folder, precision=precision)
    with processes() as here:
        alone = finetune(what, tmp_path / "alone", folder, here=here)
    changed = {name: value for name, value in what.described().items() if value != getattr(type(what), name)}
    fields = [f"--{name.replace('_', '-')}={value}" for name, value in {"task": what.task, **changed}.items()]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    where = ["--data", folder, "--runs", tmp_path / "runs", "--results", tmp_path / "results", "--parallel", parallel]
    call = [*launch, "-m", "lm_experiments", "finetune", *fields, *where]
    done = subprocess.run([str(part) for part in call], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "results").glob("*.json")
    losses = json.loads(path.read_text())["found"]["losses"]
    assert losses == pytest.approx(alone["losses"], rel=1e-2 if precision == "bf16" else 1e-4)
    assert records.read(what, tmp_path / "results") is not None
