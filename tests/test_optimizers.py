"""GaLore, Fira, APOLLO and Frugal against slow references, closed forms and torch's own optimizers."""

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowdim.optimizers import (
    Apollo,
    ApolloMini,
    FiraAdamW,
    Frugal,
    GaLoreAdafactor,
    GaLoreAdamW,
    GaLoreSGD,
    bases,
)
from lowdim.optimizers.states import read
from tests.reference_optimizers import Reference, side_of

EXACT = {"refresh": "exact", "moments": "keep", "stagger": False}
RULES = {
    "galore": (GaLoreAdamW, {}),
    "fira-code": (FiraAdamW, {"variant": "code"}),
    "fira-paper": (FiraAdamW, {"variant": "paper"}),
    "frugal": (Frugal, {"residual_scale": 0.3}),
}
ALL = {**RULES, "apollo": (Apollo, {}), "apollo-mini": (ApolloMini, {}), "sgd": (GaLoreSGD, {"momentum": 0.9})}
shapes = st.tuples(st.integers(3, 9), st.integers(3, 9))
sides = st.sampled_from(["std", "reverse_std", "left", "right"])
seeds = st.integers(0, 2**16)


def gradients(shape, steps: int, seed: int) -> list[np.ndarray]:
    """Of slowly decaying size, with a gap behind every singular value."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) * np.geomspace(1, 0.3, shape[-1]) * 0.97**t for t in range(steps)]


def trained(optimizer_of, weight: np.ndarray, given, group: dict) -> np.ndarray:
    parameter = nn.Parameter(torch.from_numpy(weight.copy()))
    optimizer = optimizer_of([{"params": [parameter], **group}])
    for gradient in given:
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    return parameter.detach().numpy()


@settings(max_examples=40)
@given(
    shapes, sides, st.sampled_from(list(RULES)), st.sampled_from(["torch", "authors"]),
    st.sampled_from(["keep", "rotate"]), st.booleans(), st.data(), seeds,
)  # fmt: skip
def test_every_rule_is_that_of_its_paper(shape, side, rule, convention, moments, corrects, data, seed):
    """Signs of singular vectors: with "keep" only steps before the second refresh can be compared."""
    rank, gap = data.draw(st.integers(1, min(shape))), data.draw(st.integers(1, 4))
    steps, scale = (gap if moments == "keep" else 3 * gap), data.draw(st.floats(0.1, 1.0))
    weight, given = np.random.default_rng(seed).standard_normal(shape), gradients(shape, steps, seed)
    kind, options = RULES[rule]
    reference = Reference(
        weight, rank, gap, scale, side, rule, sign_scale=0.3, authors=convention == "authors", moments=moments,
        corrects=corrects,
    )  # fmt: skip
    for gradient in given:
        reference.update(gradient)
    found = trained(
        lambda g: kind(g, lr=0.05, betas=(0.9, 0.99), weight_decay=0.1, convention=convention,
                       correct_bias=corrects, **{**EXACT, **options, "moments": moments}),
        weight, given, {"rank": rank, "update_proj_gap": gap, "scale": scale, "proj_type": side},
    )  # fmt: skip
    np.testing.assert_allclose(found, reference.weight, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rule", ["apollo", "apollo-mini"])
@given(shapes, st.integers(1, 3), seeds)
@settings(max_examples=15)
def test_apollo_scales_the_gradient_itself(rule, shape, rank, seed):
    weight, given = np.random.default_rng(seed).standard_normal(shape), gradients(shape, 5, seed)
    mode = 0 if side_of(shape, "std") == "left" else 1
    kind, _ = ALL[rule]
    parameter = nn.Parameter(torch.from_numpy(weight.copy()))
    group = {"params": [parameter], "rank": rank, "update_proj_gap": 2, "scale": 4.0}
    optimizer = kind([group], lr=0.05, betas=(0.9, 0.99), weight_decay=0.1)
    plan = optimizer.plans[parameter]
    seeds = {step: bases._seed(plan, step) for step in (0, 2, 4)}
    drawn = {
        step: bases._random(plan, mode, s, torch.float64, torch.device("cpu")).numpy() for step, s in seeds.items()
    }
    reference = Reference(weight, rank, 2, 4.0, "std", rule, bases=drawn.__getitem__)
    for gradient in given:
        reference.update(gradient)
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), reference.weight, rtol=1e-7, atol=1e-9)
    assert set(optimizer.state[parameter]) == {"step", "drawn", "exp_avg", "exp_avg_sq", "limiter"}  # no basis


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("side", ["std", "reverse_std", "full"])
@pytest.mark.parametrize("shape", [(70, 50), (50, 70)])
def test_rounding_has_no_sign(shape, side, dtype):
    """Of a few tokens' gradient the subspace holds all, and columns of nothing else than rounding are not descended."""
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((shape[0], 12)) * np.geomspace(1, 0.1, 12) @ rng.standard_normal((12, shape[1]))
    whole, moved = torch.from_numpy(whole).to(dtype), []
    for scale in (1.0, 0.0):
        parameter = nn.Parameter(torch.zeros(shape, dtype=dtype))
        group = {"params": [parameter], "rank": 20, "proj_type": side, "update_proj_gap": 2}
        optimizer = Frugal([group], lr=0.1, refresh="exact", residual_scale=scale)
        for share in (1.0, 0.5, 2.0):
            parameter.grad = share * whole
            optimizer.step()
        moved.append(parameter.detach().clone())
    assert torch.equal(*moved)
    assert float(moved[0].abs().max()) > 0.01
    parameter.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    before, optimizer.param_groups[0]["residual_scale"] = parameter.detach().clone(), 1.0
    optimizer.step()
    assert float(((parameter - before).abs() > 0.01).float().mean()) > 0.95  # of what is there all has one


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@given(shapes, sides, seeds)
@settings(max_examples=15)
def test_full_rank_sgd_is_sgd(momentum, shape, side, seed):
    """One basis: momentum is linear, so it may be taken in any coordinates."""
    weight, given = np.random.default_rng(seed).standard_normal(shape), gradients(shape, 6, seed)
    rank = shape[0 if side_of(shape, side) == "left" else 1]
    if rank > min(shape):
        return
    group = {"rank": rank, "update_proj_gap": 3, "proj_type": side}
    found = trained(lambda g: GaLoreSGD(g, lr=0.1, momentum=momentum, refresh="exact"), weight, given, group)
    expected = trained(lambda g: torch.optim.SGD(g, lr=0.1, momentum=momentum), weight, given, {})
    np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("kind", [GaLoreAdamW, FiraAdamW, Apollo, Frugal])
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), seeds)
@settings(max_examples=10)
def test_without_a_rank_they_are_torch_adamw(kind, shape, seed):
    weight, given = np.random.default_rng(seed).standard_normal(shape), gradients((*shape,), 6, seed)
    options = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.2}
    found = trained(lambda g: kind(g, **options), weight, given, {})
    expected = trained(lambda g: torch.optim.AdamW(g, **options), weight, given, {})
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("beta1", [None, 0.9])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("shape", [(6,), (5, 4)])
def test_without_a_rank_adafactor_is_that_of_transformers(beta1, relative, shape):
    from transformers import Adafactor

    weight, given = np.random.default_rng(0).standard_normal(shape), gradients(shape, 8, 0)
    options = {"lr": None if relative else 0.1, "relative_step": relative, "beta1": beta1, "weight_decay": 0.1}
    found = trained(lambda g: GaLoreAdafactor(g, **options), weight, given, {})
    expected = trained(lambda g: Adafactor(g, **options), weight, given, {})
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("side", ["full", "tucker"])
def test_two_sides_are_projected_at_once(side):
    """One step of momentum-free descent goes along U U^T G V V^T."""
    rng = np.random.default_rng(0)
    weight, gradient = rng.standard_normal((2, 6, 5))
    group = {"rank": 2, "proj_type": side, "scale": 1.0}
    found = trained(lambda g: GaLoreSGD(g, lr=1.0, refresh="exact"), weight, [gradient], group)
    u, _, v = np.linalg.svd(gradient)
    expected = weight - u[:, :2] @ u[:, :2].T @ gradient @ v[:2].T @ v[:2]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_kernels_are_projected_as_matrices_or_in_their_channels():
    rng = np.random.default_rng(0)
    weight, gradient = rng.standard_normal((2, 6, 5, 3, 3))
    found = trained(lambda g: GaLoreSGD(g, lr=1.0, refresh="exact"), weight, [gradient], {"rank": 2})
    u = np.linalg.svd(gradient.reshape(6, 45))[0][:, :2]
    np.testing.assert_allclose(found, weight - (u @ u.T @ gradient.reshape(6, 45)).reshape(weight.shape), atol=1e-12)
    tucker = {"rank": 2, "proj_type": "tucker"}
    found = trained(lambda g: GaLoreSGD(g, lr=1.0, refresh="exact"), weight, [gradient], tucker)
    v = np.linalg.svd(gradient.transpose(1, 0, 2, 3).reshape(5, 54))[0][:, :2]
    expected = weight - np.einsum("ai,bi,bcyx,cj,dj->adyx", u, u, gradient, v, v)
    np.testing.assert_allclose(found, expected, atol=1e-12)


# ---- what the originals get wrong


def layer(*shape: int, dtype=torch.float32, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)))


def with_gradient(parameter: nn.Parameter, seed: int) -> None:
    parameter.grad = layer(*parameter.shape, dtype=parameter.dtype, seed=seed).detach()


KINDS = {
    "galore": GaLoreAdamW,
    "galore-8": None,
    "fira": FiraAdamW,
    "apollo": Apollo,
    "mini": ApolloMini,
    "frugal": Frugal,
    "sgd": lambda groups, **more: GaLoreSGD(groups, momentum=0.9, **more),
    "adafactor": lambda groups, **more: GaLoreAdafactor(groups, beta1=0.9, **more),
}
del KINDS["galore-8"]
each_kind = pytest.mark.parametrize("kind", KINDS)


def model_and_optimizer(kind: str, dtype=torch.float32, **options):
    large = (70, 64, 4200) if options.get("state") == "8bit" else (12, 8, 5)  # smaller ones are not in 8 bits
    parameters = [layer(*large[:2], dtype=dtype), layer(*large[1::-1], dtype=dtype, seed=1)]
    parameters.append(layer(large[2], dtype=dtype, seed=2))
    rank = 60 if options.get("state") == "8bit" else 3
    groups = [{"params": parameters[:2], "rank": rank, "update_proj_gap": 4}, {"params": parameters[2:]}]
    return parameters, KINDS[kind](groups, **options)


def steps(parameters, optimizer, first: int, count: int) -> None:
    for step in range(first, first + count):
        for index, parameter in enumerate(parameters):
            with_gradient(parameter, 100 * step + index)
        optimizer.step()


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"state": "8bit"},
        {"state": "8bit", "codec": "dynamic", "convention": "authors"},
        {"state": "bf16", "projector": "bf16"},
        {"stochastic_rounding": True},
        {"moments": "reset"},
    ],
)
def test_a_run_resumed_from_a_file_goes_on_bit_for_bit(kind, dtype, options):
    """Also through weights_only, which takes tensors alone."""
    if options.get("stochastic_rounding") and dtype is not torch.bfloat16:
        return
    if options.get("projector") and kind in ("apollo", "mini"):
        options = {"state": "bf16"}
    parameters, optimizer = model_and_optimizer(kind, dtype, **options)
    steps(parameters, optimizer, 0, 6)
    file = io.BytesIO()
    torch.save([parameters, optimizer.state_dict()], file)
    steps(parameters, optimizer, 6, 7)
    others, other = model_and_optimizer(kind, dtype, **options)
    saved, state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    other.load_state_dict(state)
    with torch.no_grad():
        for ours, theirs in zip(others, saved, strict=True):
            ours.copy_(theirs)
    steps(others, other, 6, 7)
    for one, two in zip(parameters, others, strict=True):
        assert torch.equal(one, two)
        assert list(optimizer.state[one]) == list(other.state[two])
        for name, value in optimizer.state[one].items():
            assert torch.equal(value, other.state[two][name]), name
            assert value.dtype == other.state[two][name].dtype, name


@each_kind
def test_a_copy_goes_on_as_the_original(kind):
    parameters, optimizer = model_and_optimizer(kind)
    steps(parameters, optimizer, 0, 3)
    others, other = copy.deepcopy((parameters, optimizer))
    steps(parameters, optimizer, 3, 6)
    steps(others, other, 3, 6)
    assert all(torch.equal(one, two) for one, two in zip(parameters, others, strict=True))


@pytest.mark.parametrize("refresh", ["exact", "randomized", "warm", "random"])
@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (30, 30)])
def test_states_hold_no_byte_more_than_their_numbers(refresh, shape):
    """r (2 l + k) numbers: galore-torch keeps views, and with them the whole orthogonal factor alive."""
    parameter = layer(*shape)
    optimizer = GaLoreAdamW([{"params": [parameter], "rank": 5, "update_proj_gap": 2}], refresh=refresh)
    for seed in range(5):
        with_gradient(parameter, seed)
        optimizer.step()
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for name, tensor in optimizer.state[parameter].items() if name != "step"}  # fmt: skip
    assert sum(held.values()) == 4 * 5 * (2 * max(shape) + min(shape))


@each_kind
def test_the_gradient_is_left_as_it_is(kind):
    parameters, optimizer = model_and_optimizer(kind)
    steps(parameters, optimizer, 0, 3)
    for index, parameter in enumerate(parameters):
        assert torch.equal(parameter.grad, layer(*parameter.shape, seed=200 + index))


def test_a_closure_is_called_with_gradients_enabled():
    parameter = layer(6, 4)
    optimizer = GaLoreAdamW([{"params": [parameter], "rank": 2}])

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == pytest.approx(float(layer(6, 4).detach().square().sum()))
    assert parameter.square().sum() < layer(6, 4).square().sum()


@pytest.mark.parametrize("named", [True, False])
def test_a_step_without_any_gradient_is_refused(named):
    model = torch.nn.Linear(5, 4)
    ours = [("first", model.weight), ("second", model.bias)] if named else list(model.parameters())
    optimizer = GaLoreAdamW([{"params": ours[:1], "rank": 2}, {"params": ours[1:]}])
    with pytest.raises(ValueError, match=rf"has a gradient \(the first is {'first' if named else 'parameter 0 of'}"):
        optimizer.step()
    model(torch.ones(1, 5)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="call backward"):
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))


def test_parameters_without_a_gradient_are_left_alone():
    parameters, optimizer = model_and_optimizer("galore")
    with_gradient(parameters[0], 3)
    optimizer.step()
    assert not torch.equal(parameters[0], layer(12, 8))
    assert torch.equal(parameters[1], layer(8, 12, seed=1))
    assert not optimizer.state[parameters[1]]
    optimizer.zero_grad()
    before = parameters[0].clone()
    with_gradient(parameters[1], 3)
    optimizer.step()
    assert torch.equal(parameters[0], before)


@each_kind
def test_a_first_gradient_of_zero_does_not_choose_the_subspace(kind):
    """galore-torch takes the first unit vectors then, and keeps them for the whole gap."""
    parameters, optimizer = model_and_optimizer(kind)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(parameters[0], layer(12, 8))
    others, other = model_and_optimizer(kind)
    steps(parameters[:2], optimizer, 0, 5)
    steps(others[:2], other, 0, 5)
    assert torch.equal(parameters[0], others[0])


def test_a_later_gradient_of_zero_keeps_the_subspace():
    parameters, optimizer = model_and_optimizer("galore", stagger=False)
    steps(parameters, optimizer, 0, 4)
    before = optimizer.state[parameters[0]]["P1"].clone()
    parameters[0].grad = torch.zeros_like(parameters[0])
    optimizer.step()  # the fifth, at which a refresh is due
    assert torch.equal(optimizer.state[parameters[0]]["P1"], before)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_a_gradient_of_zero_does_not_silence_the_residual(variant):
    """In the authors' code the norm is 0 then, and may grow by 1 % of it."""
    parameter = layer(12, 8)
    optimizer = FiraAdamW([{"params": [parameter], "rank": 2}], lr=0.0, variant=variant)
    norms = []
    for seed in (1, 2, None, 3):
        if seed is None:
            parameter.grad = torch.zeros_like(parameter)
        else:
            with_gradient(parameter, seed)
        optimizer.step()
        norms.append(float(optimizer.state[parameter]["limiter"]))
    assert norms[2] == norms[1] > 0
    assert norms[3] > 0.5 * norms[1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_is_refused_before_anything_is_changed(bad):
    parameters, optimizer = model_and_optimizer("galore", stagger=False)
    steps(parameters, optimizer, 0, 4)
    for index, parameter in enumerate(parameters):
        with_gradient(parameter, index)
    parameters[1].grad[2, 3] = bad
    before = copy.deepcopy((parameters, optimizer.state_dict()["state"]))
    with pytest.raises(
        ValueError, match=r"the gradient of parameter 1 of group 0 is not finite, and its subspace is due"
    ):
        optimizer.step()
    assert all(torch.equal(one, two) for one, two in zip(parameters, before[0], strict=True))
    torch.testing.assert_close(optimizer.state_dict()["state"], before[1], rtol=0, atol=0)


@pytest.mark.parametrize("group", [{"rank": 2}, {}])
def test_sparse_gradients_are_refused_by_name(group):
    embedding = nn.Embedding(10, 8, sparse=True)
    optimizer = GaLoreAdamW([{"params": list(embedding.named_parameters()), **group}])
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"the gradient of weight is sparse: take nn.Embedding\(sparse=False\)"):
        optimizer.step()


# ---- random bases, and kernels of few channels


@pytest.mark.parametrize("kind", ["galore", "fira", "frugal", "apollo", "mini"])
def test_random_bases_drawn_again_are_those_that_are_kept(kind):
    found = []
    for projector in ("seed", "fp32"):
        parameter = layer(40, 24)
        group = {"params": [parameter], "rank": 4, "update_proj_gap": 3, "scale": 1.0}
        optimizer = KINDS[kind]([group], lr=0.05, refresh="random", projector=projector, moments="keep")
        steps([parameter], optimizer, 0, 5)
        basis = optimizer.bases(parameter, torch.float32)[1]
        found.append((parameter.detach(), basis.mT @ basis))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    if kind in ("apollo", "mini"):  # entries of variance 1 / r
        assert found[0][1].trace() == pytest.approx(24, rel=0.3)
    else:
        torch.testing.assert_close(found[0][1], torch.eye(4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 1, 3, 3), (16, 2, 1, 1), (2, 16, 1, 1), (12, 8)])
def test_a_kernel_of_few_channels_has_few_directions_in_each_mode(shape):
    """A 3 x 3 kernel of 64 channels, each for itself, has 9; more are not asked for."""
    parameter, rank = layer(*shape, dtype=torch.float64), min(9 if len(shape) > 2 else 8, max(shape[:2]))
    rank = 2 if shape[-1] == 1 else rank
    before, gradient = parameter.detach().clone(), layer(*shape, dtype=torch.float64, seed=1).detach()
    optimizer = GaLoreSGD([{"params": [parameter], "rank": rank, "proj_type": "tucker", "scale": 1.0}], lr=1.0)
    parameter.grad = gradient
    optimizer.step()
    torch.testing.assert_close(parameter, before - gradient, rtol=0, atol=1e-12)  # nothing is lost
    with pytest.raises(ValueError, match=rf"rank = {rank + 1} of parameter 0 .*<= {rank}"):
        GaLoreSGD([{"params": [layer(*shape)], "rank": rank + 1, "proj_type": "tucker"}])


# ---- refreshes and moments


def test_refreshes_are_spread_over_the_gap_after_the_first():
    parameters = [layer(8, 6, seed=seed) for seed in range(4)]
    optimizer = GaLoreAdamW([{"params": parameters, "rank": 2, "update_proj_gap": 8}])
    found = []
    for step in range(17):
        before = [optimizer.state[p].get("P1") for p in parameters]
        steps(parameters, optimizer, step, 1)
        found.append([old is not optimizer.state[p]["P1"] for p, old in zip(parameters, before, strict=True)])
    assert found[0] == [True] * 4
    assert [[step for step in range(1, 17) if found[step][index]] for index in range(4)] == [
        [8, 16],
        [6, 14],
        [4, 12],
        [2, 10],
    ]


def test_turned_moments_are_those_that_the_new_subspace_would_have_seen():
    """If it lies in the span of the old one's: the first moment is linear in the gradient."""
    parameter = layer(9, 5, dtype=torch.float64)
    group = {"params": [parameter], "rank": 5, "update_proj_gap": 3}
    optimizer = GaLoreAdamW([group], refresh="exact", lr=0.0)
    mean = torch.zeros(9, 5, dtype=torch.float64)
    for seed in range(8):
        with_gradient(parameter, seed)
        mean.lerp_(parameter.grad, 0.1)
        optimizer.step()
        state = optimizer.state[parameter]
        torch.testing.assert_close(state["exp_avg"], mean @ state["P1"], rtol=0, atol=1e-12)
        assert (state["exp_avg_sq"] >= 0).all()


def test_means_of_a_factored_second_moment_are_those_of_the_turned_one():
    parameter = layer(9, 5, dtype=torch.float64)
    group = {"params": [parameter], "rank": 3, "update_proj_gap": 4}
    optimizer = GaLoreAdafactor([group], refresh="exact", relative_step=False, lr=0.0)
    steps([parameter], optimizer, 0, 4)
    state = optimizer.state[parameter]
    row, column, before = (state[name].numpy().copy() for name in ("exp_avg_sq_row", "exp_avg_sq_col", "P1"))
    steps([parameter], optimizer, 4, 1)
    after, core = state["P1"].numpy(), (parameter.grad @ state["P1"]).numpy()
    turned = np.outer(row, column) / row.mean() @ ((after.T @ before) ** 2).T
    squares, share = core**2 + 1e-30, 5**-0.8
    np.testing.assert_allclose(state["exp_avg_sq_row"], (1 - share) * turned.mean(1) + share * squares.mean(1))
    np.testing.assert_allclose(state["exp_avg_sq_col"], (1 - share) * turned.mean(0) + share * squares.mean(0))


def test_begun_again_moments_are_those_of_a_new_optimizer():
    options = {"moments": "reset", "stagger": False, "refresh": "exact"}
    parameter = layer(9, 5)
    optimizer = GaLoreAdamW([{"params": [parameter], "rank": 2, "update_proj_gap": 3}], **options)
    steps([parameter], optimizer, 0, 3)
    fresh = nn.Parameter(parameter.detach().clone())
    other = GaLoreAdamW([{"params": [fresh], "rank": 2, "update_proj_gap": 3}], **options)
    steps([parameter], optimizer, 3, 3)
    steps([fresh], other, 3, 3)
    torch.testing.assert_close(parameter, fresh, rtol=1e-6, atol=1e-7)
    assert not torch.equal(parameter, layer(9, 5))


def test_lazy_gaps_double_when_the_leading_direction_stays():
    still, moving = layer(8, 6), layer(8, 6, seed=1)
    group = {"params": [still, moving], "rank": 2, "update_proj_gap": 2}
    optimizer = GaLoreAdamW([group], refresh="exact", lazy=True, stagger=False, lr=0.0)
    spike = torch.zeros(8, 6)
    spike[0, 0] = 100.0
    for seed in range(24):
        with_gradient(still, seed)
        still.grad += spike
        moving.grad = torch.roll(spike, seed, 1) + layer(8, 6, seed=seed).detach()
        optimizer.step()
    assert int(optimizer.state[still]["gap"]) >= 4
    assert int(optimizer.state[moving]["gap"]) == 2


@pytest.mark.parametrize("projector", ["bf16", "int8"])
def test_bases_in_few_bits_lose_few_digits(projector):
    parameter, exact = layer(40, 24), layer(40, 24)
    ours = GaLoreAdamW([{"params": [parameter], "rank": 6}], projector=projector, refresh="exact", lr=0.01)
    full = GaLoreAdamW([{"params": [exact], "rank": 6}], refresh="exact", lr=0.01)
    steps([parameter], ours, 0, 1)
    steps([exact], full, 0, 1)
    assert ours.state[parameter]["P1"].element_size() == {"bf16": 2, "int8": 1}[projector]
    change, expected = parameter - layer(40, 24), exact - layer(40, 24)
    assert 1e-5 < torch.linalg.norm(change - expected) / torch.linalg.norm(expected) < 0.05


# ---- 8 bits


@pytest.mark.parametrize("convention", ["torch", "authors"])
@pytest.mark.parametrize("codec", ["power", "dynamic"])
@pytest.mark.parametrize("kind", ["galore", "fira", "apollo"])
def test_moments_of_a_byte_step_as_those_of_four(kind, codec, convention):
    """The first step is exact, since it is made from moments that are not coded yet."""
    steps_made = []
    for state in ("fp32", "8bit"):
        parameters, optimizer = [layer(96, 80), layer(5000, seed=2)], None
        groups = [{"params": parameters[:1], "rank": 48, "update_proj_gap": 3}, {"params": parameters[1:]}]
        optimizer = KINDS[kind](groups, lr=0.01, state=state, codec=codec, convention=convention, weight_decay=0.1)
        made = []
        for step in range(8):
            steps(parameters, optimizer, step, 1)
            made.append([parameter.detach().clone() for parameter in parameters])
        steps_made.append(made)
        for parameter in parameters:
            assert optimizer.state[parameter]["exp_avg"].element_size() == {"fp32": 4, "8bit": 1}[state]
    for index, begin in enumerate((layer(96, 80), layer(5000, seed=2))):
        first, last = ([made[step][index] - begin.detach() for made in steps_made] for step in (0, -1))
        torch.testing.assert_close(*first, rtol=1e-5, atol=1e-7)
        assert 1e-5 < torch.linalg.norm(last[0] - last[1]) / torch.linalg.norm(last[0]) < 0.1


def test_states_of_a_byte_hold_a_byte_and_a_scale_for_each_block():
    parameter = layer(96, 80)
    optimizer = GaLoreAdamW([{"params": [parameter], "rank": 48}], state="8bit")
    steps([parameter], optimizer, 0, 3)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in optimizer.state[parameter].values()}
    blocks = -(-48 * 96 // 256)
    assert sum(held.values()) == 4 + 4 * 80 * 48 + 2 * (48 * 96 + 4 * blocks)


# ---- half precision


def test_rounding_at_random_keeps_steps_that_the_nearest_loses():
    """lr = 1e-4 against a spacing of 2^-7 at 1: without it a bfloat16 weight of 1 never moves."""
    moved = []
    for stochastic in (False, True):
        parameter = nn.Parameter(torch.ones(64, 32, dtype=torch.bfloat16))
        optimizer = GaLoreAdamW([{"params": [parameter], "rank": 32, "scale": 1.0}], lr=1e-4, refresh="exact",
                                stochastic_rounding=stochastic)  # fmt: skip
        for _ in range(20):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        moved.append(float((1 - parameter.detach().float()).mean()))
    assert moved[0] == 0

    assert 1e-4 < moved[1] < 5e-3


@pytest.mark.parametrize("state", ["bf16", "8bit"])
def test_second_moments_in_few_bits_follow_gradients_that_shrink(state):
    """A step changes V by a thousandth: rounded to the nearest bfloat16 it would stay ten times too large for ever."""
    gradient = layer(128, 64, seed=1).detach()
    found = []
    for precision in ("fp32", state):
        parameter = layer(128, 64)
        group = {"params": [parameter], "rank": 64}
        optimizer = GaLoreAdamW([group], lr=0.0, betas=(0.9, 0.99), refresh="exact", moments="keep", state=precision)
        for step in range(500):
            parameter.grad = gradient * (1.0 if step < 50 else 0.1)
            optimizer.step()
        found.append(read(optimizer.state[parameter], "exp_avg_sq", optimizer.param_groups[0]).sqrt())
    torch.testing.assert_close(found[1].norm(), found[0].norm(), rtol=0.02, atol=0)
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 0.03


@pytest.mark.parametrize("convention", ["torch", "authors"])
def test_adafactor_decays_before_its_update_as_its_authors_do(convention):
    parameter, gradient = layer(6, 5), layer(6, 5, seed=1).detach()
    options = {"lr": 0.1, "relative_step": False, "scale_parameter": False, "convention": convention}
    plain, decayed = nn.Parameter(parameter.detach().clone()), nn.Parameter(parameter.detach().clone())
    for one, decay in ((plain, 0.0), (decayed, 0.5)):
        one.grad = gradient
        GaLoreAdafactor([one], weight_decay=decay, **options).step()
    torch.testing.assert_close(decayed, plain - 0.05 * parameter)


def test_the_rate_of_adafactor_goes_on_where_its_moments_begin_again():
    """Otherwise a warm-up begins again at every refresh, and never ends."""
    parameter = layer(12, 8)
    group = {"params": [parameter], "rank": 8, "update_proj_gap": 2, "scale": 1.0}
    options = {"refresh": "exact", "moments": "reset", "warmup_init": True, "scale_parameter": False}
    optimizer = GaLoreAdafactor([group], **options)
    for step in range(6):
        before = parameter.detach().clone()
        parameter.grad = torch.ones(12, 8) + 0.1 * layer(12, 8, seed=1).detach()
        optimizer.step()
        found = float((before - parameter.detach()).norm())
        assert found == pytest.approx(1e-6 * (step + 1) * 96**0.5, rel=0.2)  # clipped to a mean square of 1


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_a_warm_up_that_begins_with_a_rate_of_zero_limits_as_any_other(variant):
    """Norms are compared with the bias correction, which is there at lr = 0, too."""
    limits = []
    for lr in (0.0, 1e-3):
        parameter = layer(12, 8)
        optimizer = FiraAdamW([{"params": [parameter], "rank": 3}], lr=lr, variant=variant)
        steps([parameter], optimizer, 0, 1)
        limits.append(float(optimizer.state[parameter]["limiter"]))
    assert limits[0] == pytest.approx(limits[1], rel=1e-6)
