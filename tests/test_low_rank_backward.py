"""Layer-wise updates and the backward pass without gradients: the same numbers as the plain way, in less memory."""

import copy
import gc
import io

import pytest
import torch
from torch import nn

from lowdim import leading_subspace
from lowdim.optimizers import (
    Apollo,
    FiraAdamW,
    Frugal,
    GaLoreAdafactor,
    GaLoreAdamW,
    GaLoreSGD,
    galore_backward,
    layerwise,
    parameter_groups,
)

CORE = {
    "adamw": GaLoreAdamW,
    "sgd": lambda groups, **more: GaLoreSGD(groups, momentum=0.9, **more),
    "adafactor": GaLoreAdafactor,
}
WHOLE = {"fira": FiraAdamW, "apollo": Apollo, "frugal": Frugal}


class Net(nn.Module):
    """Wide, tall and square layers, one called twice, one whose input needs no gradient, and some vectors."""

    def __init__(self, dtype=torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.shared = nn.Linear(10, 16), nn.Linear(16, 8), nn.Linear(8, 8, bias=False)
        self.norm, self.last = nn.LayerNorm(8), nn.Linear(8, 3)
        self.to(dtype)

    def forward(self, x):
        x = torch.relu_(self.first(x))
        return self.last(self.norm(self.shared(torch.tanh(self.shared(self.second(x))))))


def made(kind: str, dtype=torch.float64, **options):
    model = Net(dtype)
    groups = parameter_groups(model, rank=2, update_proj_gap=3, scale=0.5)
    return model, {**CORE, **WHOLE}[kind](groups, **options)


def batch(step: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(5, 4, 10, generator=torch.Generator().manual_seed(step), dtype=dtype)


def train(model, optimizer, first: int, count: int, parts: int = 1, dtype=torch.float64) -> None:
    for step in range(first, first + count):
        for part in batch(step, dtype).chunk(parts):
            (model(part).square().sum() / 5).backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_same(model, other, atol=1e-9) -> None:
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
    begin = Net(next(model.parameters()).dtype).parameters()
    moves = [float((one - two).detach().abs().max()) for one, two in zip(model.parameters(), begin, strict=True)]
    assert max(moves) > 1e-3


@pytest.mark.parametrize("kind", CORE)
@pytest.mark.parametrize("parts", [1, 5])
def test_without_gradients_training_is_the_same(kind, parts):
    (model, optimizer), (other, plain) = made(kind), made(kind)
    with galore_backward(model, optimizer):
        train(model, optimizer, 0, 8, parts)
    train(other, plain, 0, 8, parts)
    assert_same(model, other)


@pytest.mark.parametrize("kind", [*CORE, *WHOLE])
def test_layerwise_training_is_the_same(kind):
    (model, optimizer), (other, plain) = made(kind), made(kind)
    with layerwise(optimizer):
        train(model, optimizer, 0, 8)
    train(other, plain, 0, 8)
    assert_same(model, other)


@pytest.mark.parametrize("kind", [*CORE, *WHOLE])
@pytest.mark.parametrize("backward", [False, True])
def test_layerwise_micro_batches_are_one_step(kind, backward):
    """galore-torch makes a step for each of them. Steps 1 and 2 lie between two refreshes."""
    if backward and kind in WHOLE:
        return
    (model, optimizer), (other, plain) = made(kind, stagger=False), made(kind, stagger=False)
    for one, two in ((model, optimizer), (other, plain)):
        train(one, two, 0, 1)
    changed = galore_backward(model, optimizer) if backward else None
    with layerwise(optimizer, accumulate=5):
        train(model, optimizer, 1, 2, 5)
    train(other, plain, 1, 2, 5)
    assert_same(model, other)
    if changed:
        changed.remove()


@pytest.mark.parametrize("backward", [False, True])
def test_a_layerwise_subspace_is_that_of_the_first_micro_batch(backward):
    model, optimizer = made("adamw", refresh="exact")
    loss = model(batch(0)[:1]).square().sum() / 5
    weight = model.second.weight
    (gradient,) = torch.autograd.grad(loss, weight)
    changed = galore_backward(model, optimizer) if backward else None
    with layerwise(optimizer, accumulate=5):
        train(model, optimizer, 0, 1, 5)
    basis = optimizer.state[weight]["P0"]
    expected = leading_subspace(gradient, 2)
    torch.testing.assert_close(basis @ basis.mT, expected @ expected.mT, rtol=0, atol=1e-9)
    assert (changed is not None) == backward


def test_between_refreshes_no_gradient_is_there_and_the_core_is_its_projection():
    model, optimizer = made("adamw", stagger=False)
    train(model, optimizer, 0, 1)
    twin = copy.deepcopy(model)
    galore_backward(model, optimizer)
    for net in (model, twin):
        net(batch(1)).square().sum().backward()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            gradient, projected = twin.get_submodule(name).weight.grad, module.weight in optimizer.plans
            assert (module.weight.grad is None) == projected, name
            if projected:
                state = optimizer.state[module.weight]
                core = state["P0"].mT @ gradient if "P0" in state else gradient @ state["P1"]
                torch.testing.assert_close(state["core"], core, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.norm.weight.grad, twin.norm.weight.grad)


def test_zero_grad_forgets_cores():
    model, optimizer = made("adamw", stagger=False)
    with galore_backward(model, optimizer):
        train(model, optimizer, 0, 1)
        model(batch(1)).square().sum().backward()
        optimizer.zero_grad()
        before = copy.deepcopy(model)
        with pytest.raises(ValueError, match="has a gradient"):  # there is nothing to make a step with
            optimizer.step()
    for one, two in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, two)


def test_clipping_sees_gradients_and_cores():
    model, optimizer = made("sgd", stagger=False)
    with galore_backward(model, optimizer):
        train(model, optimizer, 0, 1)
        (100 * model(batch(1)).square().sum()).backward()
        parts = [p.grad for p in model.parameters() if p.grad is not None]
        parts += [state["core"] for state in optimizer.state.values() if "core" in state]
        norm = torch.stack([part.norm() for part in parts]).norm()
        assert float(optimizer.clip_grad_norm_(0.5)) == pytest.approx(float(norm.detach()))
        assert float(torch.stack([part.norm() for part in parts]).norm()) == pytest.approx(0.5, rel=1e-4)
        assert float(optimizer.clip_grad_norm_(2.0)) == pytest.approx(0.5, rel=1e-4)  # small ones stay


@pytest.mark.parametrize("layers", [False, True])
def test_a_run_resumed_within_a_window_goes_on_bit_for_bit(layers):
    def halfway(model, optimizer, handles):
        for part in batch(1).chunk(5)[:2]:
            (model(part).square().sum() / 5).backward()

    def rest(model, optimizer):
        for part in batch(1).chunk(5)[2:]:
            (model(part).square().sum() / 5).backward()
        optimizer.step()
        optimizer.zero_grad()
        train(model, optimizer, 2, 3, 5)

    def begun():
        model, optimizer = made("adamw")
        galore_backward(model, optimizer)
        return model, optimizer, layerwise(optimizer, accumulate=5) if layers else None

    model, optimizer, handles = begun()
    train(model, optimizer, 0, 1, 5)
    halfway(model, optimizer, handles)
    file = io.BytesIO()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.save([model.state_dict(), optimizer.state_dict(), gradients], file)
    other, again, _ = begun()
    weights, state, gradients = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    other.load_state_dict(weights)
    again.load_state_dict(state)
    for name, gradient in gradients.items():
        other.get_parameter(name).grad = gradient
    rest(model, optimizer)
    rest(other, again)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_schedulers_change_the_rate_of_layerwise_updates():
    (model, optimizer), (other, plain) = made("adamw", lr=0.1), made("adamw", lr=0.1)
    for one, two, layers in ((model, optimizer, True), (other, plain, False)):
        schedule = torch.optim.lr_scheduler.ExponentialLR(two, 0.5)
        handles = layerwise(two) if layers else None
        for step in range(4):
            train(one, two, step, 1)
            schedule.step()
        assert (handles is not None) == layers
    assert_same(model, other)


def test_layerwise_holds_one_gradient_at_a_time():
    model, optimizer = made("adamw")
    seen = []

    def count(parameter):
        seen.append(sum(p.grad is not None for p in model.parameters()))

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(count)  # before ours
    with layerwise(optimizer):
        train(model, optimizer, 0, 2)
    assert max(seen) == 1
    assert len(seen) == 2 * len(list(model.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_core_is_that_of_the_autocast_gradient(dtype):
    model, optimizer = made("adamw", torch.float32, stagger=False)
    train(model, optimizer, 0, 1, dtype=torch.float32)
    twin = copy.deepcopy(model)
    galore_backward(model, optimizer)
    for net in (model, twin):
        with torch.autocast("cpu", dtype):
            loss = net(batch(1, torch.float32)).float().square().sum()
        loss.backward()
    state = optimizer.state[model.second.weight]
    expected = state["P0"].mT @ twin.second.weight.grad
    assert torch.linalg.norm(state["core"] - expected) < 0.03 * torch.linalg.norm(expected)


def test_modules_and_optimizer_are_as_before_afterwards():
    model, optimizer = made("adamw")
    with galore_backward(model, optimizer):
        assert "forward" in model.first.__dict__
    assert "forward" not in model.first.__dict__
    assert not hasattr(model, "_ddp_params_and_buffers_to_ignore")
    assert not optimizer._optimizer_step_pre_hooks
    with layerwise(optimizer):
        assert optimizer.window == 1
    assert optimizer.window == 0
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_the_receiver_keeps_no_activations_alive():
    model, optimizer = made("adamw")
    galore_backward(model, optimizer)
    model(batch(0)).square().sum().backward()
    gc.collect()
    held = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == (5, 4, 16)]
    assert held == []


def test_evaluation_needs_no_taps():
    model, optimizer = made("adamw")
    expected = model(batch(0))
    with galore_backward(model, optimizer), torch.no_grad():
        assert torch.equal(model(batch(0)), expected)
    torch.testing.assert_close(model(batch(0)), expected)


@pytest.mark.parametrize("kind", WHOLE)
def test_rules_that_need_the_gradient_are_refused(kind):
    model, optimizer = made(kind)
    with pytest.raises(ValueError, match="needs whole gradients: only GaLore's optimizers make do with the core"):
        galore_backward(model, optimizer)


def test_a_model_without_such_layers_is_refused():
    optimizer = GaLoreAdamW([{"params": [nn.Parameter(torch.randn(4, 4))], "rank": 2}])
    with pytest.raises(ValueError, match="no linear layer's weight of this model is projected on one side"):
        galore_backward(Net(), optimizer)


def test_layerwise_twice_or_without_batches_is_refused():
    _, optimizer = made("adamw")
    with pytest.raises(ValueError, match="accumulate = 0, layer-wise already: False: take 1 or more, once"):
        layerwise(optimizer, accumulate=0)
    with layerwise(optimizer), pytest.raises(ValueError, match="layer-wise already: True"):
        layerwise(optimizer)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("window", [1, 2])
def test_more_micro_batches_than_were_said_are_refused(window, backward):
    """galore-torch makes a step for each of them, in silence."""
    model, optimizer = made("adamw")
    changed = galore_backward(model, optimizer) if backward else None
    with layerwise(optimizer, accumulate=window):
        train(model, optimizer, 0, 2, window)
        for seed in range(window):
            model(batch(seed)).square().sum().backward()
        with pytest.raises(
            ValueError, match=rf"has had its layer-wise .*: call step\(\) after {window} backward passes"
        ):
            model(batch(9)).square().sum().backward()
        optimizer.zero_grad()  # begins a step anew, as one that is skipped
        train(model, optimizer, 5, 2, window)
    assert (changed is not None) == backward


def test_a_layerwise_step_without_any_gradient_is_refused():
    model, optimizer = made("adamw")
    with layerwise(optimizer, accumulate=2):
        for _ in range(2):
            with pytest.raises(ValueError, match=r"no parameter .* has a gradient \(the first is first.weight\)"):
                optimizer.step()
            train(model, optimizer, 0, 1, 1)  # one of two micro-batches is a step, too


def test_hooks_taken_off_within_a_window_leave_no_count():
    model, optimizer = made("adamw")
    with layerwise(optimizer, accumulate=3):
        model(batch(0)).square().sum().backward()
    assert not any("parts" in state for state in optimizer.state.values())
    assert "core" in optimizer.state[model.first.weight]  # `step` takes it


# ---- layers that are more than y = x W^T + b


@pytest.mark.parametrize("layers", [False, True])
def test_gradients_of_other_uses_of_a_weight_count(layers):
    """A penalty, and an embedding with the same weight; layer-wise such weights are refused."""

    def trained(backward: bool):
        torch.manual_seed(0)
        embedding, head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        head.weight = embedding.weight
        model = nn.Sequential(embedding, head).double()
        groups = parameter_groups(model, rank=2, update_proj_gap=2, target=lambda name, _: name == "1")
        optimizer = GaLoreSGD(groups, lr=0.1)
        if layers:
            layerwise(optimizer)
        if backward:
            galore_backward(model, optimizer)
        for step in range(6):
            words = torch.randint(9, (7,), generator=torch.Generator().manual_seed(step))
            (model(words).logsumexp(-1).mean() + head.weight.square().sum() / 9).backward()
            optimizer.step()
            optimizer.zero_grad()
        return head.weight.detach()

    plain = trained(False)
    if layers:
        with pytest.raises(ValueError, match=r"0.weight is used outside its linear layer"):
            trained(True)
    else:
        torch.testing.assert_close(trained(True), plain, rtol=0, atol=1e-9)


class Halved(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs) / 2


@pytest.mark.parametrize("way", ["subclass", "instance"])
def test_layers_with_a_forward_of_their_own_keep_it(way):
    model, other = made("adamw"), made("adamw")
    for net, _ in (model, other):
        if way == "subclass":
            net.second.__class__ = Halved
        else:  # as accelerate's hooks do
            plain = net.second.forward
            net.second.forward = lambda inputs, plain=plain: plain(inputs) / 2
    kept = vars(model[0].second).get("forward")
    with galore_backward(*model):
        train(*model, 0, 5)
    assert vars(model[0].second).get("forward") is kept
    train(*other, 0, 5)
    assert_same(model[0], other[0])


def test_a_weight_that_is_frozen_later_stays_as_it_is():
    model, optimizer = made("adamw")
    with galore_backward(model, optimizer):
        train(model, optimizer, 0, 2)
        model.second.weight.requires_grad_(False)
        before, first = model.second.weight.clone(), model.first.weight.clone()
        train(model, optimizer, 2, 3)
        assert torch.equal(model.second.weight, before)
        assert not torch.equal(model.first.weight, first)
        model.second.weight.requires_grad_(True)
        train(model, optimizer, 5, 1)
        assert not torch.equal(model.second.weight, before)


def test_copies_of_the_model_are_plain_ones():
    """An average of weights, or a pickle, must not carry the optimizer, nor hide gradients from another one."""
    model, optimizer = made("adamw")
    galore_backward(model, optimizer)
    train(model, optimizer, 0, 2)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        torch.testing.assert_close(other(batch(3)), model(batch(3)))
        other(batch(3)).sum().backward()
        assert all(parameter.grad is not None for parameter in other.parameters())
    assert len(file.getvalue()) < 20_000
    twin = copy.deepcopy((model, optimizer))
    train(model, optimizer, 2, 4)
    train(*twin, 2, 4)
    assert_same(model, twin[0])


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("layers", [False, True])
@pytest.mark.filterwarnings("ignore")  # torch's own, of what it does while it captures
def test_a_compiled_model_trains_as_the_model_does(layers, backward):
    """Graphs as torch.compile captures them, without a compiler behind."""
    ended = []
    for compiled in (False, True):
        model, optimizer = made("adamw")
        if layers:
            layerwise(optimizer)
        if backward:
            galore_backward(model, optimizer)
        train(torch.compile(model, backend="aot_eager") if compiled else model, optimizer, 0, 7)
        ended.append(model)
    assert_same(*ended)
    torch.compiler.reset()
