"""What is Deep LoRA's own: the start from the first gradient, the learning rates, and what is refused."""

import copy
import gc
import json
import re
import subprocess
import sys
from collections import namedtuple
from contextlib import nullcontext
from importlib import reload

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from peft.utils import PeftType
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import BatchEncoding
from transformers.pytorch_utils import Conv1D

import lowdim.adapters
from lowdim import principal_angles
from lowdim.adapters import DeepLoraConfig, deep_lora_parameter_groups, initialize_deep_lora_weights, installed
from lowdim.adapters.deep_lora import calibration
from lowdim.adapters.deep_lora.layer import DeepLoraLinear
from lowdim.adapters.registration import register

LAYERS = ["first", "second", "shared", "last"]


class Net(nn.Module):
    """Square, tall, wide and transposed layers, one called twice, a dropout, and a batch norm with a state."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first = nn.Linear(10, width)
        self.second = nn.Linear(width, 16)
        self.norm = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(0.5)
        self.shared = nn.Linear(16, 16)
        self.last = Conv1D(8, 16)  # 16 inputs, 8 outputs
        self.unused = nn.Linear(6, 6)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.second(torch.tanh(self.first(inputs))))
        hidden = self.dropout(torch.tanh(self.shared(hidden)))
        return self.last(torch.tanh(self.shared(hidden)))


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Net()
        model.last.weight.data.normal_(0, 0.3)
        return model.to(dtype)


def config(**changes) -> DeepLoraConfig:
    return DeepLoraConfig(**({"rank": 4, "target_modules": LAYERS} | changes))


def batch(rows: int = 20, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 10, generator=generator, dtype=dtype), torch.randn(
        rows, 8, generator=generator, dtype=dtype
    )


def loss_fn(model: nn.Module, rows) -> torch.Tensor:
    inputs, outputs = rows
    return functional.mse_loss(model(inputs), outputs)


def layers(model: nn.Module) -> dict[str, DeepLoraLinear]:
    return {m.layer_name: m for m in model.modules() if isinstance(m, DeepLoraLinear)}


def dense_gradients(model: nn.Module, rows) -> dict[str, torch.Tensor]:
    """dloss/dW of every layer, (outputs, inputs), by autograd on the dense model in evaluation mode."""
    model = model.eval().requires_grad_(True)
    weights = {name: model.get_submodule(name).weight for name in LAYERS}
    found = torch.autograd.grad(loss_fn(model, rows), list(weights.values()))
    return {name: g.mT if name == "last" else g for name, g in zip(weights, found, strict=True)}


def aligned(method: str = "exact", seed: int = 0, **changes) -> PeftModel:
    model = get_peft_model(net(seed), config(**changes))
    initialize_deep_lora_weights(model, [batch()], loss_fn, method=method)
    return model


# the start from the first gradient


@settings(max_examples=20)
@given(st.integers(0, 2**16), st.sampled_from([2, 4, 6]), st.sampled_from(["exact", "randomized"]))
def test_outer_factors_hold_the_leading_singular_vectors_of_the_dense_gradient(seed, rank, method):
    gradients = dense_gradients(net(seed), batch())
    for name, layer in layers(aligned(method, seed, rank=rank)).items():
        u, sizes, v = torch.linalg.svd(gradients[name])
        certain = int(
            ((sizes[: rank // 2] / sizes[1 : rank // 2 + 1]) > 1.05).all()
        )  # else which ones are leading is not
        for basis, vectors in ((layer.factors("default").left, u), (layer.factors("default").right, v.mT)):
            torch.testing.assert_close(basis.mT @ basis, torch.eye(rank, dtype=basis.dtype))
            outside = vectors[:, : rank // 2] - basis @ (basis.mT @ vectors[:, : rank // 2])
            assert outside.norm() < (1e-8 if method == "exact" else 0.1) or not certain
        for core in layer.cores("default"):
            torch.testing.assert_close(core, 1e-3 * torch.eye(rank, dtype=core.dtype))


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_first_gradient_of_every_core_is_what_the_outer_factors_see_times_the_other_cores(depth):
    model, gradients = aligned(depth=depth, scale=0.01).eval(), dense_gradients(net(), batch())
    loss_fn(model, batch()).backward()
    for name, layer in layers(model).items():
        factors = layer.factors("default")
        expected = 0.01 ** (depth - 1) * factors.left.mT @ gradients[name] @ factors.right
        for core in layer.cores("default"):  # the adapter is not quite 0, but 0.01^depth
            assert torch.linalg.norm(core.grad - expected) < 0.01 * torch.linalg.norm(expected)


def test_the_first_training_step_goes_down_the_gradient_and_not_a_random_way():
    """With small cores, the change of the loss is what the aligned subspace sees of G, and a random one sees less."""

    def seen(model: PeftModel) -> float:
        gradients, total = dense_gradients(net(), batch()), 0.0
        for name, layer in layers(model).items():
            factors = layer.factors("default")
            total += float((factors.left.mT @ gradients[name] @ factors.right).detach().square().sum())
        return total

    whole = sum(float(g.square().sum()) for g in dense_gradients(net(), batch()).values())
    assert seen(aligned()) > 0.8 * whole
    assert seen(get_peft_model(net(), config())) < 0.35 * whole


def test_the_gradient_is_that_of_the_frozen_weight_without_this_adapter_but_with_the_others():
    rows, plain = batch(), aligned()
    moved = get_peft_model(net(), config(init_weights=False))  # an adapter that changes the model by a lot
    initialize_deep_lora_weights(moved, [rows], loss_fn, method="exact")
    for one, other in zip(layers(plain).values(), layers(moved).values(), strict=True):
        torch.testing.assert_close(one.factors("default").left, other.factors("default").left)
        torch.testing.assert_close(one.factors("default").right, other.factors("default").right)

    stacked = get_peft_model(net(), config(init_weights=False, seed=5))
    dense = net()
    for name, layer in layers(stacked).items():
        dense.get_submodule(name).weight.data += layer.get_delta_weight("default").detach()
    stacked.add_adapter("second", config())
    stacked.base_model.set_adapter(["default", "second"])
    initialize_deep_lora_weights(stacked, [rows], loss_fn, adapter_name="second", method="exact")
    gradients = dense_gradients(dense, rows)
    for name, layer in layers(stacked).items():
        leading = torch.linalg.svd(gradients[name]).U[:, :2]
        basis = layer.factors("second").left.detach()
        assert (leading - basis @ (basis.mT @ leading)).norm() < 1e-8


def test_calibration_leaves_gradients_modes_states_and_generators_as_they_were():
    model = get_peft_model(net(), config())
    model.train()
    model.base_model.model.norm.eval().requires_grad_(True)  # a mixture of modes, and something else that trains
    loss_fn(model, batch()).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert gradients
    modes = {n: m.training for n, m in model.named_modules()}
    others = {n: t.clone() for n, t in model.state_dict().items() if "deep_lora" not in n}
    rng, rows = torch.get_rng_state(), batch()
    kept = tuple(t.clone() for t in rows)
    identities = {n: id(p) for n, p in model.named_parameters()}
    initialize_deep_lora_weights(model, [rows], loss_fn)
    assert torch.equal(torch.get_rng_state(), rng)
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert all(torch.equal(p.grad, gradients[n]) for n, p in model.named_parameters() if n in gradients)
    assert all(torch.equal(model.state_dict()[n], t) for n, t in others.items())
    assert all(torch.equal(one, other) for one, other in zip(rows, kept, strict=True))
    assert {n: id(p) for n, p in model.named_parameters()} == identities  # an optimizer that holds them goes on
    assert not any(m._forward_hooks for m in model.modules())
    assert all(layer.active_adapters == ["default"] for layer in layers(model).values())


def test_an_error_in_the_loss_leaves_no_hook_and_no_mode_behind():
    model = get_peft_model(net(), config()).train()
    before = {n: t.clone() for n, t in model.state_dict().items()}

    def broken(model, rows):
        loss_fn(model, rows)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        initialize_deep_lora_weights(model, [batch()], broken)
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items())
    assert all(layer.active_adapters == ["default"] for layer in layers(model).values())


def test_one_dense_gradient_lives_at_a_time(monkeypatch):
    """Wide layers, few rows: every tensor of a weight's size that is alive when a layer is compressed is counted."""
    width, deep = 64, nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    model = get_peft_model(deep, DeepLoraConfig(rank=2, target_modules=[str(i) for i in range(4)]))
    alive, original = [], calibration.compress_haar

    def dense() -> int:
        gc.collect()
        return sum(1 for o in gc.get_objects() if type(o) is torch.Tensor and o.numel() >= width * width)

    def counted(*arguments, **options):
        alive.append(dense())
        return original(*arguments, **options)

    monkeypatch.setattr(calibration, "compress_haar", counted)
    before = dense()
    rows = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    initialize_deep_lora_weights(model, [rows], lambda model, rows: model(rows).square().mean())
    assert len(alive) == 4
    assert max(alive) - before <= 1
    assert dense() == before


def test_starts_follow_the_seed_and_the_loader_is_asked_for_one_batch():
    asked = []

    def loader():
        for index in range(3):
            asked.append(index)
            yield batch(seed=index)

    one = get_peft_model(net(), config())
    initialize_deep_lora_weights(one, loader(), loss_fn)
    assert asked == [0]
    same, other = aligned("randomized"), aligned("randomized", gamma=0.5, target_modules=LAYERS)
    for a, b, c in zip(*(layers(m).values() for m in (one, same, other)), strict=True):
        assert torch.equal(a.get_delta_weight("default"), b.get_delta_weight("default"))
        assert torch.equal(a.get_delta_weight("default"), c.get_delta_weight("default"))
    reseeded = get_peft_model(net(), config(seed=1))
    initialize_deep_lora_weights(reseeded, loader(), loss_fn)
    for a, b in zip(layers(one).values(), layers(reseeded).values(), strict=True):
        assert not torch.allclose(a.factors("default").right, b.factors("default").right)


class Mapped(nn.Module):
    """As transformers' models: keywords in, an object with a loss out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, inputs, labels=None):
        out = self.net(inputs)
        return namedtuple("Output", "loss logits")(
            functional.mse_loss(out, labels) if labels is not None else None, out
        )


def test_a_mapping_is_fed_to_the_model_by_keyword_and_a_batch_may_come_without_a_loader():
    rows = dict(zip(("inputs", "labels"), batch(), strict=True))
    for given_rows in (rows, [rows]):
        model = get_peft_model(Mapped(), config())
        initialize_deep_lora_weights(model, given_rows, method="exact")
        for ours, theirs in zip(layers(model).values(), layers(aligned()).values(), strict=True):
            angles = principal_angles(*(layer.factors("default").left[:, :2].detach() for layer in (ours, theirs)))
            assert angles.max() < 1e-8 or ours.layer_name.endswith("last")  # of the frames that do not depend on names


def test_half_precision_models_are_calibrated_in_single_precision():
    model = get_peft_model(net(dtype=torch.bfloat16), config())
    initialize_deep_lora_weights(model, [batch(dtype=torch.bfloat16)], loss_fn, method="exact")
    for name, gradient in dense_gradients(net(dtype=torch.bfloat16), batch(dtype=torch.bfloat16)).items():
        whole, layer = gradient.float(), layers(model)[name]
        assert layer.factors("default").left.dtype is torch.float32
        seen = layer.factors("default").left.detach().mT @ whole @ layer.factors("default").right.detach()
        assert seen.norm() > 0.98 * torch.linalg.svdvals(whole)[:2].norm()


def test_inputs_that_the_model_overwrites_are_noticed():
    class Overwriting(nn.Module):
        def __init__(self, late: bool) -> None:
            super().__init__()
            self.one, self.two, self.late = nn.Linear(8, 8), nn.Linear(8, 8), late

        def forward(self, inputs):
            hidden = torch.relu_(self.one(inputs))
            out = self.two(hidden)
            return out + hidden.mul_(2) if self.late else out

    def start(late: bool) -> None:
        model = get_peft_model(Overwriting(late), DeepLoraConfig(rank=2, target_modules=["one", "two"]))
        initialize_deep_lora_weights(model, torch.ones(4, 8), lambda model, rows: model(rows).square().sum())

    start(late=False)  # an output may be overwritten
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        start(late=True)


def test_around_the_call_or_in_the_loss_autocast_gives_the_same_start():
    """The products of the model are in bfloat16, those that reduce the gradient are not."""

    def started(inside: bool) -> list[torch.Tensor]:
        def loss(model, rows):
            with autocast if inside else nullcontext():
                return model(rows).float().square().sum()

        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 7))
        model = get_peft_model(base, DeepLoraConfig(rank=4, target_modules=["0", "2"]))
        with nullcontext() if inside else autocast:
            initialize_deep_lora_weights(model, torch.linspace(-1, 1, 60).reshape(5, 12), loss)
        return [factor for layer in layers(model).values() for factor in layer.outer("default")]

    autocast = torch.autocast("cpu", torch.bfloat16)
    for one, other in zip(started(inside=True), started(inside=False), strict=True):
        assert one.dtype is torch.float32
        assert torch.equal(one, other)


def test_the_narrow_network_of_a_linear_regression_trains_to_the_solution():
    """End to end in float64: white inputs, a change of rank 2, plain gradient descent on the cores alone."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.linalg.qr(torch.randn(40, 12, generator=generator, dtype=torch.float64)).Q
    base = nn.Sequential(nn.Linear(12, 9, bias=False)).double()
    change = torch.randn(9, 2, generator=generator).double() @ torch.randn(2, 12, generator=generator).double() / 5
    outputs = inputs @ (base[0].weight.detach() + change).mT

    def loss(model, rows):
        return 0.5 * (model(rows) - outputs).square().sum()

    model = get_peft_model(base, DeepLoraConfig(rank=4, scale=0.1, gamma=0.0, target_modules=["0"]))
    initialize_deep_lora_weights(model, inputs, loss)
    optimizer = torch.optim.SGD(deep_lora_parameter_groups(model, lr=0.1))
    for _ in range(2000):
        optimizer.zero_grad()
        loss(model, inputs).backward()
        optimizer.step()
    delta = layers(model)["0"].get_delta_weight("default").detach()
    assert torch.linalg.norm(delta - change) < 1e-2 * torch.linalg.norm(change)


# learning rates


def names(model: nn.Module, parameters) -> set[str]:
    wanted = {id(p) for p in parameters}
    return {re.sub(r".*(deep_lora_\w+|unused).*", r"\1", n) for n, p in model.named_parameters() if id(p) in wanted}


def test_groups_hold_every_trained_parameter_once_at_its_rate():
    model = get_peft_model(net(), config(gamma=0.25, modules_to_save=["unused"]))
    inner, outer = deep_lora_parameter_groups(model, lr=0.1)
    assert (inner["lr"], outer["lr"]) == (0.1, 0.025)
    assert names(model, inner["params"]) == {"deep_lora_cores", "unused"}
    assert names(model, outer["params"]) == {"deep_lora_left", "deep_lora_right"}
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    listed = [id(p) for group in (inner, outer) for p in group["params"]]
    assert sorted(listed) == sorted(trained)


@pytest.mark.parametrize("form", ["narrow", "wide"])
def test_other_forms_train_at_one_rate(form):
    model = get_peft_model(net(), config(form=form, gamma=0.25))
    (group,) = deep_lora_parameter_groups(model, lr=0.1)
    assert group["lr"] == 0.1
    assert len(group["params"]) == sum(p.requires_grad for p in model.parameters())


def test_gamma_zero_freezes_the_outer_factors_and_a_later_one_thaws_them(tmp_path):
    model = aligned()
    (cores,) = deep_lora_parameter_groups(model, 0.1, gamma=0)
    assert names(model, cores["params"]) == {"deep_lora_cores"}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([cores])
    loss_fn(model, batch()).backward()
    optimizer.step()
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n]) == ("deep_lora_cores" not in n)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["gamma"] == 0
    _, outer = deep_lora_parameter_groups(model, 0.1, gamma=0.5)
    assert names(model, outer["params"]) == {"deep_lora_left", "deep_lora_right"}
    assert outer["lr"] == 0.05
    assert deep_lora_parameter_groups(model, 0.1)[1]["lr"] == 0.05  # it has become the adapter's own


def test_groups_are_those_of_the_active_adapters():
    model = get_peft_model(net(), config())
    model.add_adapter("other", config(gamma=0.5))
    model.set_adapter("other")
    inner, outer = deep_lora_parameter_groups(model, 1.0)
    assert outer["lr"] == 0.5
    listed = {id(p) for p in (*inner["params"], *outer["params"])}
    assert all(("other" in n) == (id(p) in listed) for n, p in model.named_parameters() if "deep_lora" in n)


def test_gamma_does_not_thaw_what_was_loaded_for_inference_or_frozen_on_purpose(saved):
    loaded = lowdim.adapters.load(net(), saved)
    with pytest.raises(ValueError, match="no parameter that trains"):
        deep_lora_parameter_groups(loaded, 0.1, gamma=0.5)
    assert not any(p.requires_grad for n, p in loaded.named_parameters() if "deep_lora" in n)
    loaded.set_adapter("default")  # now it trains, at the gamma that was given
    assert [group["lr"] for group in deep_lora_parameter_groups(loaded, 0.1)] == [0.1, 0.05]


def test_gamma_reaches_adapters_that_were_injected_without_a_peft_model():
    model = inject_adapter_in_model(config(), net())
    assert [group["lr"] for group in deep_lora_parameter_groups(model, 1.0, gamma=0.5)] == [1.0, 0.5]
    (cores,) = deep_lora_parameter_groups(model, 1.0, gamma=0.0)
    assert names(model, cores["params"]) == {"deep_lora_cores"}
    assert model.peft_config["default"].gamma == 0


@pytest.mark.parametrize("arguments", [{"lr": 0.0}, {"lr": float("inf")}, {"lr": 1.0, "gamma": -1.0}])
def test_impossible_rates_are_refused(arguments):
    with pytest.raises(ValueError, match="take a finite lr > 0 and a finite gamma >= 0"):
        deep_lora_parameter_groups(get_peft_model(net(), config()), **arguments)


def test_a_model_that_does_not_train_has_no_groups():
    with pytest.raises(ValueError, match="no parameter that trains: was it loaded without is_trainable=True"):
        deep_lora_parameter_groups(get_peft_model(net(), config()).requires_grad_(False), 0.1)


# what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 3}, r"rank = 3 is odd: half of it comes from the gradient.*take 4, or form='narrow'"),
        ({"rank": 0}, "take depth >= 2 and rank >= 1"),
        ({"depth": 1}, "take depth >= 2 and rank >= 1"),
        ({"scale": 0.0}, "take a finite scale > 0"),
        ({"scale": float("nan")}, "take a finite scale > 0"),
        ({"gamma": -0.1}, "a finite gamma >= 0"),
        ({"alpha": 0.0}, "take a finite alpha > 0, or None"),
        ({"form": "thin"}, "take 'compressed', 'narrow' or 'wide'"),
        ({"bias": "some"}, "take 'none', 'all' or 'deep_lora_only'"),
        ({"target_modules": ".*", "layers_to_transform": 1}, "is a pattern, which layers_to_transform"),
        ({"layers_pattern": "layers"}, "without layers_to_transform"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rank": 10},
            r"rank = 10 of layer 'last', whose weight is 8 x 16: take rank <= 8, or leave .* exclude_modules",
        ),
        ({"target_modules": [*LAYERS, "norm"]}, r"module 'norm' is a BatchNorm1d, and Deep LoRA adapts linear layers"),
        ({"target_modules": ["nothing"]}, "not found in the base model"),
    ],
)
def test_layers_that_cannot_be_adapted_are_named_and_the_model_stays_as_it_was(changes, message):
    model = net()
    modules, training = dict(model.named_modules()), {n: p.requires_grad for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, config(**changes))
    assert dict(model.named_modules()) == modules
    assert {n: p.requires_grad for n, p in model.named_parameters()} == training
    adapted = get_peft_model(model, config())
    state = set(adapted.state_dict())
    with pytest.raises(ValueError, match=message):
        adapted.add_adapter("second", config(**changes))
    assert set(adapted.state_dict()) == state
    assert set(adapted.peft_config) == {"default"}
    assert all("second" not in layer.scaling for layer in layers(adapted).values())


def test_layers_that_are_never_called_are_refused():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    with pytest.raises(ValueError, match=r"'attention.out_proj' belongs to a torch.nn.MultiheadAttention"):
        get_peft_model(model, DeepLoraConfig(rank=2, target_modules=["out_proj"]))


def refused(message: str, dataloader=None, loss=loss_fn, model=None, **options) -> None:
    """initialize_deep_lora_weights raises this, and the adapter is as it was."""
    model = model or get_peft_model(net(), config())
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        initialize_deep_lora_weights(model, [batch()] if dataloader is None else dataloader, loss, **options)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in before.items())


def test_a_layer_without_a_gradient_is_named_and_no_layer_is_changed():
    model = get_peft_model(net(), config(target_modules=[*LAYERS, "unused"]))
    refused(r"the gradient is zero in 'unused' \(1 of 5 layers\): .*exclude_modules", model=model)


def test_layers_behind_a_cut_are_named():
    class Cut(Net):
        def forward(self, inputs):
            with torch.no_grad():
                hidden = self.second(torch.tanh(self.first(inputs)))
            return self.last(torch.tanh(self.shared(hidden)))

    model = get_peft_model(Cut().double(), config())
    refused(r"gradient is zero in 'first', 'second' \(2 of 4 layers\)", model=model)


def test_gradients_that_are_not_finite_are_named():
    inputs, outputs = batch()
    outputs[3, 2] = torch.nan
    refused(r"the gradient is not finite in 'first'.*\(4 of 4 layers\): is the batch", [(inputs, outputs)])


@pytest.mark.parametrize(
    ("dataloader", "loss", "message"),
    [
        ([], loss_fn, "no batch in list: give a data loader with at least one, or a batch"),
        (3, loss_fn, "no batch in int"),
        ([batch()], None, "a batch of type tuple: give a mapping of model inputs, or a loss_fn"),
        (
            [{"inputs": batch()[0]}],
            None,
            r"by default it is model\(\*\*batch\).loss, so give labels",
        ),
        ([batch()], lambda model, rows: model(rows[0]), "the loss is no scalar"),
        ([batch()], lambda model, rows: torch.ones(()), "does not depend on any adapted layer"),
    ],
)
def test_a_missing_batch_or_loss_is_refused(dataloader, loss, message):
    refused(message, dataloader, loss)


def test_adapters_without_a_compressed_form_are_refused():
    narrow = get_peft_model(net(), config(form="narrow"))
    refused(r"adapter 'default' has no compressed form to align, it is 'narrow'", model=narrow)
    refused(r"adapter 'nobody' has no compressed form to align, there is none", adapter_name="nobody")
    with pytest.raises(ValueError, match="there is none: get_peft_model"):
        initialize_deep_lora_weights(net(), [batch()], loss_fn)
    merged = get_peft_model(net(), config())
    merged.merge_adapter()
    refused(r"'first' has adapters merged into its weight: call unmerge_adapter\(\)", model=merged)
    refused("take 'exact' or 'randomized'", method="warm")


def test_adapters_that_would_lose_what_they_learned_and_models_without_weights_are_refused(saved):
    refused("'default' was loaded for inference.*is_trainable=True", model=lowdim.adapters.load(net(), saved))
    empty = get_peft_model(net().to("meta"), config(), low_cpu_mem_usage=True)
    with pytest.raises(ValueError, match="layer 'first' is on the meta device: load the model's weights first"):
        initialize_deep_lora_weights(empty, [batch()], loss_fn)


def test_names_in_errors_are_those_that_exclude_modules_takes():
    model = get_peft_model(net(), config(target_modules=[*LAYERS, "unused"]))
    with pytest.raises(ValueError, match="the gradient is zero in") as raised:
        initialize_deep_lora_weights(model, [batch()], loss_fn)
    (named,) = re.findall(r"'([\w.]+)'", str(raised.value))
    initialize_deep_lora_weights(
        get_peft_model(net(), config(target_modules=[*LAYERS, "unused"], exclude_modules=[named])), [batch()], loss_fn
    )


class Rows(nn.Module):
    """One layer that sees the rows of a batch one by one, or all of them."""

    def __init__(self, *, apart: bool) -> None:
        super().__init__()
        self.layer, self.apart = nn.Linear(6, 5, bias=False), apart
        self.layer.weight.data = torch.linspace(-1, 1, 30).view(5, 6)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.layer(row) for row in inputs]) if self.apart else self.layer(inputs)


def test_vectors_align_as_batches_do():
    rows, found = torch.linspace(0, 1, 42).sin().view(7, 6), []
    for apart in (True, False):
        model = get_peft_model(Rows(apart=apart), DeepLoraConfig(rank=2, target_modules=["layer"]))
        initialize_deep_lora_weights(model, rows, lambda model, x: model(x).square().mean(), method="exact")
        found.append(layers(model)["layer"].factors("default"))
    torch.testing.assert_close(found[0].left, found[1].left, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0].right, found[1].right, atol=1e-5, rtol=1e-5)


def test_batches_keep_their_type_and_are_not_changed():
    inputs, outputs = batch()
    rows = BatchEncoding({"inputs": inputs, "outputs": outputs})

    def loss(model, batch):
        assert batch is not rows
        return loss_fn(model, (batch.inputs, batch["outputs"]))

    model = get_peft_model(net(), config())
    initialize_deep_lora_weights(model, [rows], loss, method="exact")
    assert rows.inputs is inputs
    assert torch.equal(layers(model)["last"].factors("default").left, layers(aligned())["last"].factors("default").left)


# checkpoints and versions


@pytest.fixture
def saved(tmp_path):
    aligned().save_pretrained(tmp_path)
    return tmp_path


def broken(folder, what: str) -> str:
    weights, configuration = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    match what:
        case "weights cut in the data":
            weights.write_bytes(weights.read_bytes()[:-40])
        case "weights cut in the header":
            weights.write_bytes(weights.read_bytes()[:30])
        case "weights empty":
            weights.write_bytes(b"")
        case "weights missing":
            weights.unlink()
        case "configuration cut":
            configuration.write_text(configuration.read_text()[:100])
        case "configuration missing":
            configuration.unlink()
        case "a parameter missing":
            tensors = load_file(weights)
            tensors.popitem()
            save_file(tensors, weights)
        case "another rank":
            text = json.loads(configuration.read_text())
            configuration.write_text(json.dumps(text | {"rank": 2}))
    return {"a parameter missing": r"lacks .* \(1 parameters are missing\)", "another rank": "does not fit the model",
            "configuration cut": "is no JSON", "configuration missing": "give the folder that save_pretrained wrote",
            }.get(what, "is broken|does not exist: it was not written completely")  # fmt: skip


@pytest.mark.parametrize(
    "what",
    ["weights cut in the data", "weights cut in the header", "weights empty", "weights missing", "configuration cut",
     "configuration missing", "a parameter missing", "another rank"],
)  # fmt: skip
def test_half_written_checkpoints_are_named_and_the_model_stays_as_it_was(what, saved):
    model = net()
    modules, training = dict(model.named_modules()), {n: p.requires_grad for n, p in model.named_parameters()}
    message = broken(saved, what)
    with pytest.raises(ValueError, match=message):
        lowdim.adapters.load(model, saved)
    assert dict(model.named_modules()) == modules
    assert {n: p.requires_grad for n, p in model.named_parameters()} == training
    assert not hasattr(model, "peft_config")
    aligned().save_pretrained(saved)
    assert layers(lowdim.adapters.load(model, saved))


@pytest.mark.parametrize("what", ["weights cut in the data", "a parameter missing", "another rank"])
def test_a_further_adapter_is_loaded_whole_or_not_at_all(what, saved):
    model = lowdim.adapters.load(net(), saved)
    state, message = set(model.state_dict()), broken(saved, what)
    with pytest.raises(ValueError, match=message):
        lowdim.adapters.load(model, saved, adapter_name="second")
    assert set(model.state_dict()) == state
    assert (set(model.peft_config), model.active_adapter) == ({"default"}, "default")
    with pytest.raises(ValueError, match="the model has an adapter 'default' already"):
        lowdim.adapters.load(model, saved)
    aligned().save_pretrained(saved / "inside")
    model = lowdim.adapters.load(model, saved, adapter_name="second", subfolder="inside")
    assert set(model.peft_config) == {"default", "second"}
    for layer in layers(model).values():
        assert torch.equal(layer.factors("default").left, layer.factors("second").left)


def python(program: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", program, *arguments], capture_output=True, text=True)


LATE = """
import sys, lowdim
from torch import nn
from peft import PeftModel
from transformers.pytorch_utils import Conv1D

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(10, 12), nn.Linear(12, 16)
        self.shared, self.last = nn.Linear(16, 16), Conv1D(8, 16)

try:
    PeftModel.from_pretrained(Net().double(), sys.argv[1])
except KeyError as error:
    print(error)
print("lowdim.adapters" in sys.modules)
lowdim.DeepLoraConfig
print("lowdim.adapters" in sys.modules)
lowdim.adapters.load(Net().double(), sys.argv[1])
print(type(PeftModel.from_pretrained(Net().double(), sys.argv[1]).base_model).__name__)
"""


def test_a_process_that_did_not_import_lowdim_gets_pefts_key_error_and_our_load_does_not(saved):
    assert python(LATE, str(saved)).stdout.splitlines() == ["'DEEP_LORA'", "False", "True", "DeepLoraModel"]


@pytest.mark.parametrize("version", ["0.20.9", "0.22.0", "0.22.0.dev0", "1.0", "0.2.1"])
def test_other_versions_of_peft_are_refused_with_the_command_that_helps(version):
    with pytest.raises(ImportError, match=rf"PEFT {version} is installed.*pip install 'peft>=0.21,<0.22'"):
        installed.check(version)


def test_this_version_is_accepted_and_a_missing_one_is_named():
    for version in ("0.21.0", "0.21.2", "0.21.3.dev0"):
        installed.check(version)
    with pytest.raises(ImportError, match=r"PEFT is not installed: pip install 'lowdim\[peft\]'"):
        installed.check(None)


def test_the_version_is_looked_at_before_anything_of_peft_is_imported():
    program = "import importlib.metadata as m; m.version = lambda name: '0.22.1'\nimport lowdim.adapters"
    done = python(program)
    assert "ImportError: PEFT 0.22.1 is installed" in done.stderr
    assert done.returncode == 1
    hidden = (
        "import sys; sys.modules['peft'] = None\nimport lowdim\nlowdim.compress\nfrom lowdim import *\nprint('fine')"
    )
    assert python(hidden).stdout == "fine\n"


def test_registering_twice_changes_nothing_and_a_foreign_method_of_that_name_is_not_overwritten():
    members = list(PeftType)
    reload(lowdim.adapters)
    assert list(PeftType) == members
    assert copy.deepcopy(PeftType("DEEP_LORA")) is PeftType.DEEP_LORA
    with pytest.raises(ImportError, match="PEFT already has a method 'deep_lora'"):
        register("deep_lora", DeepLoraConfig.__mro__[1], nn.Module)
    with pytest.raises(AttributeError, match="module 'lowdim' has no attribute 'nothing'"):
        _ = lowdim.nothing
