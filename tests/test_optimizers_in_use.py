"""The optimizers where people use them: Trainer, accelerate, schedulers, GradScaler, other packages' groups."""

import copy
import io
import re
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from lowdim.optimizers import (
    Apollo,
    ApolloMini,
    FiraAdamW,
    Frugal,
    GaLoreAdafactor,
    GaLoreAdamW,
    GaLoreSGD,
    galore_backward,
    layerwise,
    parameter_groups,
)
from tests.tiny_models import SIZE

ALL = [GaLoreAdamW, GaLoreSGD, GaLoreAdafactor, FiraAdamW, Apollo, ApolloMini, Frugal]
KINDS = {kind.__name__: kind for kind in ALL}
each_kind = pytest.mark.parametrize("kind", KINDS)


def llama(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZE, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0, **changes}))


def layer(*shape: int, seed: int = 0, dtype=torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype))


def give(parameters, step: int) -> None:
    for index, parameter in enumerate(parameters):
        parameter.grad = layer(*parameter.shape, seed=100 * step + index).detach().to(parameter.dtype)


def train(parameters, optimizer, first: int, count: int) -> None:
    for step in range(first, first + count):
        give(parameters, step)
        optimizer.step()


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for (name, first), second in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second), name


# ---- transformers and accelerate

SENTENCES = [
    {"input_ids": row, "labels": row} for row in torch.randint(50, (24, 8), generator=torch.Generator().manual_seed(1))
]


def arguments(folder, **changes) -> TrainingArguments:
    return TrainingArguments(
        str(folder), max_steps=6, save_steps=3, per_device_train_batch_size=2, learning_rate=0.01, use_cpu=True,
        report_to=[], disable_tqdm=True, lr_scheduler_type="cosine", warmup_steps=2, logging_steps=100, seed=0,
        **changes,
    )  # fmt: skip


def trainer(folder, kind: str, way: str, **changes) -> Trainer:
    model, cls = llama(), KINDS[kind]
    groups = parameter_groups(model, rank=3, update_proj_gap=4)
    options = {"relative_step": False, "scale_parameter": False} if kind == "GaLoreAdafactor" else {}
    options |= {"momentum": 0.9} if kind == "GaLoreSGD" else {"weight_decay": 0.1}
    if way == "class":
        more = {"optimizer_cls_and_kwargs": (cls, {"params": groups, "lr": 0.01, **options})}
    else:
        optimizer = cls(groups, lr=0.01, **options)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        if way == "layers":
            layerwise(optimizer, changes["gradient_accumulation_steps"])
        if way == "backward":
            galore_backward(model, optimizer)
        more = {"optimizers": (optimizer, schedule)}
    return Trainer(model, arguments(folder, **changes), train_dataset=SENTENCES, **more)


@pytest.mark.parametrize(
    ("kind", "way", "accumulate"),
    [
        ("GaLoreAdamW", "class", 2), ("GaLoreAdamW", "layers", 2), ("FiraAdamW", "object", 2),
        ("GaLoreAdamW", "backward", 2),
        ("Apollo", "object", 1), ("GaLoreAdafactor", "object", 1),
    ],
)  # fmt: skip
def test_trainer_resumes_to_the_last_bit(tmp_path, kind, way, accumulate):
    """It reads the optimizer back with weights_only=True; a refresh lies on either side of the save."""
    whole = trainer(tmp_path, kind, way, gradient_accumulation_steps=accumulate)
    whole.train()
    begin, middle = llama(), LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-3")
    for one, two in ((begin, middle), (middle, whole.model)):
        assert (
            max(float((a - b).detach().abs().max()) for a, b in zip(one.parameters(), two.parameters(), strict=True))
            > 1e-3
        )
    parts = trainer(tmp_path, kind, way, gradient_accumulation_steps=accumulate)
    parts.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_equal(whole.model, parts.model)
    assert parts.state.global_step == 6


def test_trainer_gives_the_optimizer_its_own_schedule_and_groups(tmp_path):
    given = trainer(tmp_path, "GaLoreAdamW", "class")
    given.train()
    groups = given.optimizer.optimizer.param_groups
    assert [group.get("rank") for group in groups] == [3, None, None]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.0]
    assert all(group["lr"] == pytest.approx(0.0, abs=1e-9) for group in groups)  # the end of the cosine
    assert isinstance(given.optimizer.optimizer, GaLoreAdamW)


@pytest.mark.parametrize("kind", ["GaLoreAdamW", "FiraAdamW"])
def test_accelerate_accumulates_clips_saves_and_loads(tmp_path, kind):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = llama()
    plain = llama()
    optimizer = KINDS[kind](parameter_groups(model, rank=3, update_proj_gap=2), lr=0.01)
    other = KINDS[kind](parameter_groups(plain, rank=3, update_proj_gap=2), lr=0.01)
    prepared, wrapped = accelerator.prepare(model, optimizer)
    rows = torch.stack([row["input_ids"] for row in SENTENCES]).split(2)

    def steps(first: int, last: int) -> None:
        for batch in rows[first:last]:
            with accelerator.accumulate(prepared):
                accelerator.backward(prepared(batch, labels=batch).loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(prepared.parameters(), 0.5)
                wrapped.step()
                wrapped.zero_grad()

    steps(0, 6)
    for one, two in zip(rows[0:6:2], rows[1:6:2], strict=True):
        for batch in (one, two):
            (plain(batch, labels=batch).loss / 2).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        other.step()
        other.zero_grad()
    assert_equal(model, plain)
    accelerator.save_state(str(tmp_path))
    steps(6, 12)
    expected = copy.deepcopy(model)
    accelerator.load_state(str(tmp_path))
    assert_equal(model, plain)
    steps(6, 12)
    assert_equal(model, expected)


class Checkpointed(nn.Module):
    """Blocks whose activations are computed again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reentrant, self.first, self.last = reentrant, nn.Linear(6, 10), nn.Linear(10, 5)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 10)) for _ in range(2))
        self.double()

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.last(x)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("layers", [False, True])
def test_only_backward_passes_count(reentrant, layers):
    """Forward passes that are made again, or that nothing follows, do not make a layer wait for more gradients."""

    def trained(change: bool):
        model = Checkpointed(reentrant)
        optimizer = GaLoreAdamW(parameter_groups(model, rank=3, update_proj_gap=3), lr=0.01)
        handles = [galore_backward(model, optimizer)] if change else []
        handles += [layerwise(optimizer)] if change and layers else []
        for step in range(5):
            x = torch.randn(7, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            model(x)
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert len(handles) == change + (change and layers)
        return model

    one, other = trained(True), trained(False)
    for (name, first), second in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
        assert not torch.equal(first, Checkpointed(reentrant).get_parameter(name)), name


# ---- which parameters go where


def names(groups) -> list[set[str]]:
    return [{name for name, _ in group["params"]} for group in groups]


def test_blocks_are_projected_and_embeddings_head_and_norms_are_not():
    model = llama()
    projected, matrices, vectors = parameter_groups(model, rank=4, weight_decay=0.1, scale=2.0, update_proj_gap=7)
    assert len(projected["params"]) == 2 * 7
    assert all(re.search(r"layers\.\d\.(self_attn|mlp)\..*_proj\.weight", name) for name, _ in projected["params"])
    assert {name for name, _ in matrices["params"]} == {"model.embed_tokens.weight", "lm_head.weight"}
    assert all("norm" in name for name, _ in vectors["params"])
    assert [group["weight_decay"] for group in (projected, matrices, vectors)] == [0.1, 0.1, 0.0]
    assert {key: projected[key] for key in ("rank", "scale", "update_proj_gap")} == {
        "rank": 4, "scale": 2.0, "update_proj_gap": 7,
    }  # fmt: skip
    assert not {"rank", "scale"} & {*matrices, *vectors}
    everything = [id(p) for group in (projected, matrices, vectors) for _, p in group["params"]]
    assert sorted(everything) == sorted(map(id, model.parameters()))


def test_tied_embeddings_are_there_once_and_not_projected():
    projected, matrices, _ = parameter_groups(llama(tie_word_embeddings=True), rank=4)
    assert "model.embed_tokens.weight" in names([matrices])[0]
    assert not any("lm_head" in name for name in names([projected, matrices])[0])

    class Tied(nn.Module):
        """Without transformers' methods."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.inside, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
            self.head.weight = self.embedding.weight

    assert names(parameter_groups(Tied(), rank=4)) == [{"inside.weight"}, {"embedding.weight"}, {"inside.bias"}]


def test_frozen_parameters_are_in_no_group():
    model = llama()
    model.model.layers[0].requires_grad_(False)
    found = set().union(*names(parameter_groups(model, rank=4)))
    assert found == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any("layers.0." in name for name in found)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (r"q_proj$", {"self_attn.q_proj"}),
        (["k_proj", "v_proj"], {"self_attn.k_proj", "self_attn.v_proj"}),
        (["mlp"], {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
        (lambda name, module: name.endswith("o_proj"), {"self_attn.o_proj"}),
    ],
)
def test_targets_are_expressions_parts_of_names_or_functions(target, expected):
    (projected, *_) = names(parameter_groups(llama(), rank=4, target=target))
    assert projected == {f"model.layers.{i}.{name}.weight" for i in range(2) for name in expected}


def test_embeddings_are_projected_if_a_function_says_so():
    (projected, *_) = names(
        parameter_groups(llama(), rank=4, target=lambda name, module: isinstance(module, nn.Embedding))
    )
    assert projected == {"model.embed_tokens.weight"}


def test_layers_of_gpt2_are_linear_too():
    """transformers' Conv1D has weights (in, out); the head is tied to the embedding."""
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=16))
    projected, matrices, _ = names(parameter_groups(model, rank=4))
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert projected == {f"transformer.h.{i}.{name}.weight" for i in range(2) for name in layers}
    assert matrices == {"transformer.wte.weight", "transformer.wpe.weight"}


def test_wrapped_models_keep_their_head_out():
    class Wrapper(nn.Module):
        def __init__(self, module) -> None:
            super().__init__()
            self.module = module

    projected, matrices, _ = names(parameter_groups(Wrapper(llama()), rank=4))
    assert "module.lm_head.weight" in matrices
    assert len(projected) == 14


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (lambda: nn.Linear(8, 8), {"rank": 8}),
        (lambda: nn.Linear(8, 8), {"rank": 2, "target": "elsewhere"}),
        (lambda: nn.Linear(8, 8).requires_grad_(False), {"rank": 2}),
        (lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), {"rank": 2}),
        (lambda: nn.LayerNorm(8), {"rank": 1, "target": lambda name, module: True}),
        (lambda: nn.Sequential(nn.Linear(0, 8), nn.Linear(8, 0)), {"rank": 1}),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_model_in_which_nothing_fits_is_refused(model, options):
    with pytest.raises(ValueError, match=r"no weight of target = .* has both sides longer than rank = \d: give others"):
        parameter_groups(model(), **options)


# ---- other packages' habits


def test_scripts_for_galore_torch_run_unchanged():
    """Its group dictionaries, and AdamW's arguments by position; refresh and moments as in the package on request."""
    weights, others = [layer(12, 8), layer(8, 12, seed=1)], [layer(5, seed=2)]
    galore = {"params": weights, "rank": 3, "update_proj_gap": 2, "scale": 0.5, "proj_type": "std"}
    optimizer = GaLoreAdamW([{"params": others}, galore], 0.05, (0.8, 0.9), 1e-5, 0.1, True, True)
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["eps"] == 1e-5
    assert optimizer.defaults["weight_decay"] == 0.1
    train([*weights, *others], optimizer, 0, 5)
    assert {tuple(state["exp_avg"].shape) for state in optimizer.state.values()} == {(12, 3), (3, 12), (5,)}
    assert optimizer.plans[weights[0]].scale == 0.5


@pytest.mark.parametrize("kind", ["GaLoreAdamW", "FiraAdamW", "Apollo", "ApolloMini", "Frugal"])
def test_arguments_of_adamw_are_taken_unless_they_ask_for_more(kind):
    """By position, as the authors' packages have them, and those of torch that change no number."""
    one, two = layer(12, 8), layer(12, 8)
    torchs = {"foreach": True, "fused": None, "amsgrad": False, "maximize": False, "capturable": False}
    first = KINDS[kind]([{"params": [one], "rank": 3}], 0.05, (0.8, 0.9), 1e-5, 0.1)
    named = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-5, "weight_decay": 0.1, "differentiable": False}
    second = KINDS[kind]([{"params": [two], "rank": 3}], **named, **torchs)
    assert first.defaults == second.defaults
    train([one], first, 0, 3)
    train([two], second, 0, 3)
    assert torch.equal(one, two)
    for name in ("amsgrad", "maximize", "capturable", "differentiable"):
        with pytest.raises(ValueError, match=f"{name} = True: torch.optim.AdamW can do that, these optimizers cannot"):
            KINDS[kind]([one], **{name: True})


def test_fira_groups_may_say_alpha():
    one, two = layer(12, 8), layer(12, 8)
    first = FiraAdamW([{"params": [one], "rank": 3, "update_proj_gap": 2, "alpha": 0.7, "proj_type": "std"}], lr=0.05)
    second = FiraAdamW([{"params": [two], "rank": 3, "update_proj_gap": 2, "scale": 0.7}], lr=0.05)
    train([one], first, 0, 5)
    train([two], second, 0, 5)
    assert torch.equal(one, two)
    assert not torch.equal(one, layer(12, 8))


@each_kind
def test_schedulers_set_the_rate_of_each_group(kind):
    """A rate of 0 leaves weights as they are, and a warm-up begins with it."""
    one, two = layer(12, 8), layer(6, seed=1)
    options = {"relative_step": False, "lr": 0.1} if kind == "GaLoreAdafactor" else {"lr": 0.1}
    optimizer = KINDS[kind]([{"params": [one], "rank": 3}, {"params": [two], "lr": 0.2}], **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 2)
    give([one, two], 0)
    optimizer.step()
    assert torch.equal(one, layer(12, 8))
    assert torch.equal(two, layer(6, seed=1))
    schedule.step()
    train([one, two], optimizer, 1, 1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1]
    assert not torch.equal(one, layer(12, 8))
    assert not torch.equal(two, layer(6, seed=1))


def test_a_rate_may_be_a_tensor():
    one, two = layer(12, 8), layer(12, 8)
    for parameter, lr in ((one, 0.1), (two, torch.tensor(0.1))):
        train([parameter], GaLoreAdamW([{"params": [parameter], "rank": 3}], lr=lr, weight_decay=0.1), 0, 3)
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("kind", ["GaLoreAdamW", "FiraAdamW", "Apollo"])
def test_a_grad_scaler_skips_what_overflows_and_unscales_the_rest(kind):
    model, twin = nn.Linear(8, 12), nn.Linear(8, 12)
    twin.load_state_dict(model.state_dict())
    optimizer, plain = (KINDS[kind](parameter_groups(m, rank=3, update_proj_gap=2), lr=0.05) for m in (model, twin))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    for step in range(5):
        scale = 1e9 if step in (0, 2) else 1.0  # over float16's range: inf, at a first refresh and at a later one
        with torch.autocast("cpu", torch.float16):
            losses = [(m(x * scale).float() / scale).square().mean() for m in (model, twin)]
        before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
        scaler.scale(losses[0]).backward()
        scaler.step(optimizer)
        scaler.update()
        if scale == 1e9:
            torch.testing.assert_close((model.state_dict(), optimizer.state_dict()["state"]), before, rtol=0, atol=0)
        else:
            losses[1].backward()
            plain.step()
        for one in (optimizer, plain):
            one.zero_grad()
    assert scaler.get_scale() == 2.0**8
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=3e-3)
    assert float(optimizer.state[model.weight]["step"]) == 3


def test_a_grad_scaler_with_cores_is_refused():
    """It would divide gradients by its scale, and leave cores as they are."""
    model = nn.Linear(8, 12)
    optimizer = GaLoreAdamW(parameter_groups(model, rank=3))
    scaler = torch.amp.GradScaler("cpu")
    with galore_backward(model, optimizer):
        scaler.scale(model(torch.ones(2, 8)).sum()).backward()
        with pytest.raises(ValueError, match=r"a GradScaler does not see cores, nor .*: train in bfloat16 without it"):
            scaler.step(optimizer)


def test_a_grad_scaler_with_layerwise_updates_is_refused():
    model = nn.Linear(8, 12)
    optimizer = GaLoreAdamW(parameter_groups(model, rank=3))
    with layerwise(optimizer):
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(model(torch.ones(2, 8)).sum()).backward()
        with pytest.raises(ValueError, match="nor gradients that backward hooks use up: train in bfloat16 without it"):
            scaler.step(optimizer)


def test_layerwise_updates_cannot_be_clipped_and_say_so():
    model = nn.Linear(8, 12)
    optimizer = GaLoreAdamW(parameter_groups(model, rank=3))
    with layerwise(optimizer):
        model(torch.ones(2, 8)).sum().backward()
        with pytest.raises(ValueError, match=r"layer-wise updates are made before there is a norm .*: do not clip"):
            optimizer.clip_grad_norm_(1.0)


def test_frozen_parameters_may_be_in_the_groups_of_layerwise_updates():
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 6))
    optimizer = GaLoreAdamW([{"params": list(model.named_parameters())}], lr=0.1)
    model[0].requires_grad_(False)
    before = copy.deepcopy(model)
    with layerwise(optimizer):
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
        assert_equal(model[0], before[0])
        assert not torch.equal(model[1].weight, before[1].weight)
        model[0].requires_grad_(True)
        model(torch.ones(2, 8)).sum().backward()
        with pytest.raises(ValueError, match=r"0.weight has a gradient that came after .* and requires_grad_"):
            optimizer.step()


def test_groups_can_be_added_in_the_middle_of_a_run():
    first, second, third = layer(12, 8), layer(10, 6, seed=1), layer(4, seed=2)
    optimizer = GaLoreAdamW([{"params": [first], "rank": 3, "update_proj_gap": 2}], lr=0.05)
    train([first], optimizer, 0, 3)
    alone, fresh = layer(10, 6, seed=1), layer(4, seed=2)
    new = {"rank": 2, "update_proj_gap": 3}
    optimizer.add_param_group({"params": [second], **new})
    optimizer.add_param_group({"params": [third], "lr": 0.1})
    other = GaLoreAdamW([{"params": [alone], **new}, {"params": [fresh], "lr": 0.1}], lr=0.05)
    for step in range(3, 8):
        give([first, second, third], step)
        optimizer.step()
        alone.grad, fresh.grad = second.grad, third.grad
        other.step()
    assert torch.equal(second, alone)
    assert torch.equal(third, fresh)
    with pytest.raises(ValueError, match="rank = 9 of parameter 0 of group 3, whose gradient is 5 x 9"):
        optimizer.add_param_group({"params": [layer(5, 9)], "rank": 9})
    assert len(optimizer.param_groups) == 3
    assert len(optimizer.plans) == 2


@each_kind
def test_a_group_that_is_added_has_what_the_first_ones_have(kind):
    """What Fira and Frugal alone know, too."""
    made = []
    for later in (False, True):
        parameters = [layer(12, 8), layer(10, 6, seed=1)]
        more = {"FiraAdamW": {"variant": "paper"}, "Frugal": {"residual_scale": 0.3}}.get(kind, {})
        groups = [{"params": [parameter], "rank": 3, "scale": 0.5} for parameter in parameters]
        optimizer = KINDS[kind](groups[: 2 - later], **more)
        if later:
            optimizer.add_param_group(groups[1])
        optimizer = copy.deepcopy(optimizer)
        train([group["params"][0] for group in optimizer.param_groups], optimizer, 0, 3)
        made.append(optimizer.param_groups[1]["params"][0])
    assert torch.equal(*made)


@pytest.mark.parametrize("layers", [False, True])
def test_gaps_and_scales_may_be_changed_in_their_groups_and_ranks_may_not(layers):
    """Once a step: layer-wise updates take them from the next one on."""
    one, two = layer(12, 8), layer(12, 8)
    changed = GaLoreAdamW([{"params": [one], "rank": 3, "scale": 0.5, "update_proj_gap": 50}], lr=0.05)
    early = GaLoreAdamW([{"params": [two], "rank": 3, "scale": 1.0, "update_proj_gap": 2}], lr=0.025)
    changed.param_groups[0] |= {"scale": 0.25, "update_proj_gap": 2}
    if layers:
        layerwise(changed)
        with pytest.raises(ValueError, match="has a gradient"):  # with what there is, a step looks at the groups
            changed.step()
    changed.param_groups[0] |= {"lr": 0.1}
    for step in range(5):
        targets = layer(12, 8, seed=step).detach()
        for parameter, optimizer in ((one, changed), (two, early)):
            (parameter * targets).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(one, two)
    changed.param_groups[0]["rank"] = 4
    with pytest.raises(ValueError, match=r"rank or proj_type of parameter 0 of group 0 .* to 4 and 'std' from 3 and"):
        changed.step()
    changed.param_groups[0]["rank"] = 3
    one.sum().backward()
    changed.step()


def test_groups_have_ranks_sides_and_gaps_of_their_own():
    parameters = [layer(12, 8), layer(12, 8), layer(8, 12, seed=1)]
    groups = [
        {"params": parameters[:1], "rank": 2, "update_proj_gap": 2},
        {"params": parameters[1:2], "rank": 5, "proj_type": "left", "betas": (0.5, 0.6)},
        {"params": parameters[2:], "rank": 8, "state": "bf16"},
    ]
    optimizer = GaLoreAdamW(groups, lr=0.05)
    train(parameters, optimizer, 0, 3)
    found = [(tuple(s["exp_avg"].shape), s["exp_avg"].dtype) for s in optimizer.state.values()]
    assert found == [((12, 2), torch.float32), ((5, 8), torch.float32), ((8, 12), torch.bfloat16)]


# ---- resume


def saved(optimizer) -> dict:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": 2}, r"has rank = 3 in group 0 \(parameter 0 of group 0, ...\), this optimizer 2"),
        ({"proj_type": "left"}, r"has proj_type = 'std' in group 0 \(.*\), this optimizer 'left'"),
        ({"state": "bf16"}, r"has state = 'fp32' in group 0 \(.*\), this optimizer 'bf16'"),
        ({"projector": "int8"}, r"has projector = 'fp32' in group 0 \(.*\), this optimizer 'int8'"),
        ({"params": [layer(8, 12), layer(12, 8)]}, r"of parameter 0 of group 0 has bases {'P1': \(8, 3\)}, and here"),
        (
            {"params": [layer(14, 8), layer(6, 12)]},
            r"of parameter 0 of group 0 has exp_avg\w* of shape \(12, 3\)",
        ),
    ],
)
def test_a_run_with_another_plan_is_refused_before_anything_is_changed(change, words):
    parameters = [layer(12, 8), layer(6, 12)]
    optimizer = GaLoreAdamW([{"params": parameters, "rank": 3}], lr=0.05)
    train(parameters, optimizer, 0, 2)
    group = {"params": [layer(12, 8), layer(6, 12)], "rank": 3, **change}
    other = GaLoreAdamW([group], lr=0.3)
    train(group["params"], other, 5, 1)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=words):
        other.load_state_dict(saved(optimizer))
    found = other.state_dict()
    assert found["param_groups"] == before["param_groups"]
    torch.testing.assert_close(found["state"], before["state"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "params", "words"),
    [
        ("GaLoreAdafactor", layer(14, 8), r"of parameter 0 of group 0 has exp_avg_sq_row of shape \(12,\), .* \(14,\)"),
        ("GaLoreSGD", layer(14, 8), r"of parameter 0 of group 0 has momentum_buffer of shape \(12, 3\), .* \(14, 3\)"),
    ],
)
def test_moments_of_weights_of_another_shape_are_refused(kind, params, words):
    """Bases of the shorter side fit all the same."""
    options = {"momentum": 0.9} if kind == "GaLoreSGD" else {}
    weight = layer(12, 8)
    optimizer, other = (KINDS[kind]([{"params": [one], "rank": 3}], **options) for one in (weight, params))
    train([weight], optimizer, 0, 2)
    with pytest.raises(ValueError, match=words):
        other.load_state_dict(saved(optimizer))


def test_states_of_vectors_in_another_order_are_refused():
    optimizer, other = GaLoreAdamW([layer(5), layer(4)]), GaLoreAdamW([("gain", layer(4)), ("bias", layer(5))])
    train(optimizer.param_groups[0]["params"], optimizer, 0, 1)
    with pytest.raises(ValueError, match=r"state of gain has exp_avg\w* of shape \(5,\), and here it is \(4,\)"):
        other.load_state_dict(saved(optimizer))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "FiraAdamW",
            r"has no variant in group 0 \(block.weight, ...\), this optimizer one: it is another",
        ),
        ("Frugal", "has no residual_scale"),
        ("GaLoreSGD", "has betas in group 0"),
        ("GaLoreAdafactor", "has betas in group 0"),
    ],
)
def test_a_state_of_another_optimizer_is_refused_either_way(kind, words):
    one, two = layer(12, 8), layer(12, 8)
    group = {"params": [("block.weight", one)], "rank": 3}
    optimizer, other = GaLoreAdamW([group]), KINDS[kind]([{"params": [("block.weight", two)], "rank": 3}])
    train([one], optimizer, 0, 1)
    train([two], other, 0, 1)
    with pytest.raises(ValueError, match=words):
        other.load_state_dict(saved(optimizer))
    with pytest.raises(ValueError, match="it is another optimizer's; go on with that, or begin anew"):
        optimizer.load_state_dict(saved(other))


def test_what_may_change_at_a_resume_does():
    """lr, scale and gap are the saved run's, as in torch; the state of parameters not yet updated is empty."""
    parameters = [layer(12, 8), layer(6, 12)]
    optimizer = GaLoreAdamW([{"params": parameters, "rank": 3, "update_proj_gap": 5, "scale": 0.9}], lr=0.05)
    train(parameters[:1], optimizer, 0, 2)
    others = [layer(12, 8), layer(6, 12)]
    other = GaLoreAdamW([{"params": others, "rank": 3}])
    other.load_state_dict(saved(optimizer))
    assert other.param_groups[0]["lr"] == 0.05
    assert (other.plans[others[0]].gap, other.plans[others[0]].scale) == (5, 0.9)
    assert not other.state[others[1]]


@each_kind
def test_states_go_where_the_parameters_are(kind):
    """Counters stay on the CPU, wherever a checkpoint was loaded to: reading them elsewhere waits for the device."""
    parameters = [layer(12, 8), layer(5, seed=1)]
    optimizer = KINDS[kind]([{"params": parameters[:1], "rank": 3}, {"params": parameters[1:]}])
    train(parameters, optimizer, 0, 2)
    there = [nn.Parameter(p.detach().to("meta")) for p in parameters]
    other = KINDS[kind]([{"params": there[:1], "rank": 3}, {"params": there[1:]}])
    other.load_state_dict(saved(optimizer))
    counters = {"step", "drawn", "begun", "gap", "stayed"}
    for parameter in there:
        assert other.state[parameter]
        for name, value in other.state[parameter].items():
            assert value.device.type == ("cpu" if name in counters else "meta"), name


@pytest.mark.parametrize("kind", ["Apollo", "ApolloMini"])
def test_random_bases_do_not_change_with_the_names_of_parameters(kind):
    """Saved without names, and loaded by an optimizer that has them: until the next refresh."""
    one = layer(12, 8)
    optimizer = KINDS[kind]([{"params": [one], "rank": 3}])
    train([one], optimizer, 0, 2)
    two = nn.Parameter(one.detach().clone())
    other = KINDS[kind]([{"params": [("block.weight", two)], "rank": 3}])
    other.load_state_dict(saved(optimizer))
    train([one], optimizer, 2, 3)
    train([two], other, 2, 3)
    assert torch.equal(one, two)


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_of_wider_weights_goes_on(kind, dtype):
    wide, narrow = [layer(12, 8, dtype=torch.float64), layer(6)], [layer(12, 8, dtype=dtype), layer(6, dtype=dtype)]
    one, other = (KINDS[kind]([{"params": p[:1], "rank": 3}, {"params": p[1:]}]) for p in (wide, narrow))
    train(wide, one, 0, 3)
    other.load_state_dict(saved(one))
    before = narrow[0].detach().clone()
    train(narrow, other, 3, 2)
    assert not torch.equal(narrow[0], before)
    assert all(parameter.isfinite().all() for parameter in narrow)


@pytest.mark.parametrize("projector", ["fp32", "bf16", "int8"])
def test_a_saved_state_is_laid_out_row_by_row_and_goes_on_bit_for_bit(projector):
    """Broadcasts send memory as it lies; and products with a basis laid out otherwise would round otherwise."""
    one, other = layer(80, 48), layer(80, 48)
    first, second = (GaLoreAdamW([{"params": [p], "rank": 6}], lr=0.05, projector=projector) for p in (one, other))
    train([one], first, 0, 3)
    assert all(value.is_contiguous() for value in first.state_dict()["state"][0].values())
    second.load_state_dict(first.state_dict())
    other.data.copy_(one)
    for name, value in first.state[one].items():
        assert value.stride() == second.state[other][name].stride(), name
    train([one], first, 3, 3)
    train([other], second, 3, 3)
    assert torch.equal(one, other)


# ---- odd parameters


@each_kind
def test_scalars_and_empty_parameters_are_parameters(kind):
    parameters = [layer(), layer(0), layer(0, 4), layer(12, 8)]
    optimizer = KINDS[kind]([{"params": parameters[:3]}, {"params": parameters[3:], "rank": 3}])
    train(parameters, optimizer, 0, 3)
    assert not torch.equal(parameters[0], layer())
    assert all(p.isfinite().all() for p in parameters)


@each_kind
@pytest.mark.parametrize("rank", [None, 2])
def test_complex_parameters_are_refused_by_name(kind, rank):
    group = {"params": [("mixing", layer(6, 4, dtype=torch.complex64))], **({"rank": rank} if rank else {})}
    with pytest.raises(ValueError, match=r"mixing is complex \(torch.complex64\): keep it as torch.view_as_real"):
        KINDS[kind]([group])


@each_kind
def test_kernels_may_be_channels_last(kind):
    one, two = layer(6, 5, 3, 3), layer(6, 5, 3, 3)
    two.data = two.data.to(memory_format=torch.channels_last)
    for parameter in (one, two):
        optimizer = KINDS[kind]([{"params": [parameter], "rank": 2, "update_proj_gap": 2}])
        for step in range(4):
            parameter.grad = layer(6, 5, 3, 3, seed=step).detach().to(memory_format=torch.preserve_format)
            parameter.grad = torch.empty_like(parameter).copy_(parameter.grad).detach()
            optimizer.step()
    assert two.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(one, two.contiguous(), rtol=1e-4, atol=1e-5)
    assert not torch.equal(one, layer(6, 5, 3, 3))


def test_experts_without_tokens_in_some_micro_batches_are_updated_with_the_step():
    def trained(layers: bool):
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(6, 8), nn.Linear(6, 8)])
        optimizer = GaLoreSGD(parameter_groups(model, rank=3, update_proj_gap=1), lr=0.1, stagger=False)
        handles = layerwise(optimizer, accumulate=3) if layers else None
        for step in range(3):
            for part in range(3):
                x = torch.randn(4, 6, generator=torch.Generator().manual_seed(3 * step))
                loss = model[0](x).square().mean() + (model[1](x).square().mean() if part == step else 0)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert (handles is None) == (not layers)
        return model

    one, other = trained(True), trained(False)
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_a_parameter_without_a_hook_is_not_forgotten_in_silence():
    first, second = layer(12, 8), layer(5)
    optimizer = GaLoreAdamW([{"params": [first], "rank": 3}])
    with layerwise(optimizer):
        optimizer.add_param_group({"params": [second]})
        (first.sum() + second.sum()).backward()
        with pytest.raises(ValueError, match=r"parameter 0 of group 1 has a gradient that came after its layer-wise"):
            optimizer.step()


# ---- what is refused, and in which words

MATRIX = {"params": [("block.weight", layer(12, 8))], "rank": 3}


@pytest.mark.parametrize(
    ("kind", "group", "options", "words"),
    [
        ("GaLoreAdamW", {"rank": 9}, {}, r"rank = 9 of block.weight, whose gradient is 12 x 8: take 1 <= rank <= 8"),
        ("GaLoreAdamW", {"rank": 0}, {}, r"rank = 0 of block.weight"),
        ("GaLoreAdamW", {"rank": 2.5}, {}, r"rank = 2.5 of block.weight"),
        ("GaLoreAdamW", {"rank": None}, {}, r"rank = None of block.weight"),
        ("GaLoreAdamW", {"rank": "4"}, {}, r"rank = '4' of block.weight"),  # as transformers' optim_args are
        ("GaLoreAdamW", {"update_proj_gap": "4"}, {}, r"update_proj_gap = '4' of block.weight"),
        ("GaLoreAdamW", {"scale": torch.ones(2)}, {}, r"scale = tensor\(.* of block.weight: take a finite number > 0"),
        ("GaLoreAdamW", {"scale": torch.ones(1)}, {}, r"scale = tensor\(.* of block.weight: take a finite number > 0"),
        ("GaLoreAdamW", {"scale": torch.tensor(1j)}, {}, r"scale = tensor\(.* of block.weight: take a finite"),
        ("GaLoreAdamW", {"rank": 9, "proj_type": "tucker"}, {}, r"rank = 9 of block.weight.*<= 8"),
        ("FiraAdamW", {"proj_type": "full"}, {}, r"proj_type = 'full' of block.weight: Fira and APOLLO scale columns"),
        ("Apollo", {}, {"moments": "rotate"}, r"moments = 'rotate' of APOLLO's random bases, which are not"),
        ("Apollo", {"proj_type": "tucker"}, {}, r"proj_type = 'tucker' of block.weight: Fira and APOLLO scale columns"),
        ("GaLoreAdamW", {"update_proj_gap": None}, {}, r"update_proj_gap = None of block.weight: take 1 or more"),
        ("GaLoreAdamW", {"update_proj_gap": 0}, {}, r"update_proj_gap = 0 of block.weight: take 1 or more whole steps"),
        ("GaLoreAdamW", {"update_proj_gap": 1.5}, {}, r"update_proj_gap = 1.5 of block.weight"),
        ("GaLoreAdamW", {"scale": 0.0}, {}, r"scale = 0.0 of block.weight: take a finite number > 0"),
        ("GaLoreAdamW", {"scale": float("nan")}, {}, r"scale = nan of block.weight"),
        ("FiraAdamW", {"alpha": -1.0}, {}, r"scale = -1.0 of block.weight"),
        ("GaLoreAdamW", {"scale": "1"}, {}, r"scale = '1' of block.weight: take a finite number > 0"),
        ("GaLoreAdamW", {}, {"lr": "1e-3"}, r"lr = '1e-3': take a finite number >= 0"),
        ("GaLoreAdamW", {}, {"betas": None}, r"betas = None: take two numbers"),
        (
            "GaLoreAdamW", {"params": [("codes", torch.zeros(12, 8, dtype=torch.int8))]}, {},
            r"codes is torch.int8: projected are float32, .* weights; leave it out of the groups that have a rank",
        ),
        ("GaLoreAdamW", {"proj_type": "both"}, {}, r"proj_type = 'both' of block.weight: take one of std, reverse_std"),
        ("GaLoreAdamW", {"params": [("bias", layer(5))]}, {}, r"bias of shape \(5,\) has one side only: leave it out"),
        ("GaLoreAdamW", {"params": [("gain", layer())]}, {}, r"gain of shape \(\) has one side only"),
        ("GaLoreAdamW", {"params": [("none", layer(0, 4))]}, {}, r"none of shape \(0, 4\) is empty: leave it out of"),
        ("GaLoreAdamW", {"params": [layer(12, 8), layer(5)]}, {}, r"parameter 1 of group 0 of shape \(5,\) has one"),
        ("GaLoreAdamW", {}, {"refresh": "svd"}, r"refresh = 'svd': take one of exact, randomized, warm, random"),
        ("GaLoreAdamW", {}, {"moments": "turn"}, r"moments = 'turn': take one of keep, rotate, reset"),
        ("GaLoreAdamW", {}, {"projector": "int2"}, r"projector = 'int2': take one of fp32, bf16, int8, seed"),
        ("GaLoreAdamW", {}, {"state": "fp64"}, r"state = 'fp64': take one of fp32, bf16"),
        ("GaLoreAdamW", {}, {"convention": "hf"}, r"convention = 'hf': take one of torch, authors"),
        ("GaLoreAdamW", {}, {"lr": -1.0}, r"lr = -1.0: take a finite number >= 0"),
        ("GaLoreAdamW", {}, {"lr": float("nan")}, r"lr = nan"),
        ("GaLoreAdamW", {"weight_decay": float("inf")}, {}, r"weight_decay = inf: take a finite number >= 0"),
        ("GaLoreAdamW", {}, {"betas": (0.9, 1.0)}, r"betas = \(0.9, 1.0\): take two numbers with 0 <= beta < 1"),
        ("GaLoreAdamW", {}, {"betas": (0.9,)}, r"betas = \(0.9,\): take two numbers"),
        ("GaLoreAdamW", {}, {"eps": -1e-8}, r"eps = -1e-08: take a finite number >= 0"),
        ("GaLoreAdafactor", {}, {"eps": (1e-30, -1.0)}, r"eps = \(1e-30, -1.0\)"),
        ("GaLoreAdamW", {}, {"lazy": True}, r"lazy = True with refresh = 'warm': it compares leading directions"),
        ("GaLoreAdamW", {}, {"projector": "seed"}, r"projector = 'seed' with refresh = 'warm': only 'random' bases"),
        ("GaLoreAdamW", {}, {"refesh": "exact"}, r"refesh = 'exact' is no option of the optimizer; take .*refresh"),
        ("Apollo", {}, {"gap": 3}, r"gap = 3 is no option"),
        ("GaLoreAdamW", {}, {"rank": 3}, r"rank = 3 is no option of the optimizer; it is a key of groups: para"),
        ("GaLoreSGD", {}, {"momentum": 1.0}, r"momentum = 1.0, nesterov = False: take 0 <= momentum < 1"),
        ("GaLoreSGD", {}, {"nesterov": True}, r"momentum = 0.0, nesterov = True: .*> 0 with nesterov"),
        ("GaLoreAdafactor", {}, {"lr": 0.1}, r"lr = 0.1 with relative_step = True: give one of them"),
        ("FiraAdamW", {}, {"variant": "thesis"}, r"variant = 'thesis': take one of code, paper"),
        ("FiraAdamW", {"variant": "thesis"}, {}, r"variant = 'thesis': take one of code, paper"),
        ("Frugal", {}, {"residual_scale": float("nan")}, r"residual_scale = nan: take a finite number >= 0"),
        ("GaLoreAdamW", {}, {"lr": None}, r"lr = None: take a finite number >= 0"),
        ("GaLoreAdamW", {"weight_decay": None}, {}, r"weight_decay = None: take a finite number >= 0"),
        ("GaLoreAdafactor", {}, {"decay_rate": 0.8}, r"decay_rate = 0.8, .*: take -1 <= decay_rate < 0"),
        ("GaLoreAdafactor", {}, {"beta1": 1.0}, r"beta1 = 1.0: take .* None or 0 <= beta1 < 1"),
        ("GaLoreAdafactor", {}, {"clip_threshold": 0.0}, r"clip_threshold = 0.0, .* a finite clip_threshold > 0"),
        (
            "GaLoreAdamW", {"params": [layer(12, 8, dtype=torch.float16)]}, {"stochastic_rounding": True},
            r"stochastic_rounding = True for float16 weights: take bfloat16, or leave it off",
        ),
    ],
)  # fmt: skip
def test_bad_options_are_refused_with_the_value_and_the_remedy(kind, group, options, words):
    with pytest.raises(ValueError, match=words):
        KINDS[kind]([{**MATRIX, **group}], **options)


def test_a_group_may_be_empty():
    """As of a model without one kind of layers."""
    weight = layer(12, 8)
    optimizer = GaLoreAdamW([{"params": [], "rank": 3, "update_proj_gap": 4.5}, {"params": [weight], "rank": 3}])
    train([weight], optimizer, 0, 1)
    assert not torch.equal(weight, layer(12, 8))


def test_importing_the_optimizers_does_not_import_what_few_need():
    """torch.distributed.tensor takes seconds."""
    import subprocess

    code = "import sys, lowdim.optimizers; print(sys.modules.keys() & {'torch.distributed.tensor', 'transformers'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
