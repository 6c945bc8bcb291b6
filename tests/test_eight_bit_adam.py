"""Adam on moments of 8 bits, and states that come from bitsandbytes and go back to it."""

import math
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowdim.optimizers import GaLoreAdamW
from lowdim.quantization import CODECS, Dynamic, Moments, Quantized, adam8bit_, from_bitsandbytes, to_bitsandbytes
from lowdim.quantization.moments import _walk

DEVICE = os.environ.get("LOWDIM_TEST_DEVICE", "cuda")  # cpu tries the test itself
BETAS, EPS = (0.9, 0.99), 1e-6
ALL = {**CODECS, "dynamic root": replace(CODECS["dynamic"], root=True)}
THEIRS = replace(
    CODECS["dynamic"], first=Dynamic(True, grid=True), second=Dynamic(False, grid=True)
)  # as bitsandbytes codes on a CPU
each_codec = pytest.mark.parametrize("codec", ALL.values(), ids=ALL.keys())
State = tuple[Quantized, Quantized]


def gradients(shape: tuple[int, ...], steps: int = 1, seed: int = 0) -> list[torch.Tensor]:
    """Each element of its own size, over about two decades."""
    draws = torch.Generator().manual_seed(seed)
    size = torch.randn(shape, generator=draws).exp()
    return [size * torch.randn(shape, generator=draws) for _ in range(steps)]


def trained(codec: Moments, shape: tuple[int, ...], steps: int = 5) -> State:
    state = codec.zeros(torch.empty(shape))
    for step, gradient in enumerate(gradients(shape, steps, seed=1), 1):
        adam8bit_(torch.empty(shape), gradient, *state, step, betas=BETAS, eps=EPS, codec=codec)
    return state


def copied(state: State) -> State:
    first, second = (Quantized(q.codes.clone(), q.scales.clone()) for q in state)
    return first, second


def equal(one: State, other: State) -> bool:
    return all(torch.equal(a, b) for p, q in zip(one, other, strict=True) for a, b in zip(p, q, strict=True))


def walked(codec: Moments, values: torch.Tensor, step: int) -> Quantized:
    """The second moment's codes in this step."""
    found = codec.second.zeros(values)
    whole = torch.nn.functional.pad(values.reshape(-1), (0, -values.numel() % 256)).view(-1, 256)
    codes = torch.zeros_like(whole, dtype=torch.uint8)
    offset = _walk(step, values.device) if codec.walk else 0.5
    codec.second.pack(codes, found.scales.view(-1, 1), whole, whole.clone(), offset)
    return found._replace(codes=codes.view(-1)[: values.numel()].view(values.shape))


def unchunked(codec: Moments, state: State, gradient: torch.Tensor, step: int) -> tuple[torch.Tensor, State]:
    """The equations, on whole tensors."""
    m, v = codec.decode(*state)
    m = (m * BETAS[0]).add(gradient, alpha=1 - BETAS[0])
    v = (v * BETAS[1]).addcmul(gradient, gradient, value=1 - BETAS[1])
    first, second = 1 - BETAS[0] ** step, 1 - BETAS[1] ** step
    update = m / (v.sqrt() * (first / math.sqrt(second)) + first * EPS)
    return update, (codec.first.encode(m), walked(codec, v.sqrt() if codec.root else v, step))


@each_codec
@pytest.mark.parametrize("shape", [(), (0,), (5,), (256,), (70, 11), (3, 7, 50), (100_001,)])
def test_a_step_in_chunks_is_the_step_on_whole_tensors_to_the_last_bit(codec, shape):
    state, (gradient,) = trained(codec, shape), gradients(shape, seed=2)
    expected = unchunked(codec, state, gradient, 6)
    for chunk in (256, 1024, 2**20):
        found, update = copied(state), torch.empty(shape)
        adam8bit_(update, gradient, *found, 6, betas=BETAS, eps=EPS, codec=codec, chunk=chunk)
        assert torch.equal(update, expected[0])
        assert equal(found, expected[1])


@each_codec
def test_an_update_is_that_of_torchs_adam_from_the_decoded_moments(codec):
    """In float64, so that only our rounding is left; the old states count as exact."""
    state, (gradient,) = trained(codec, (40, 50)), gradients((40, 50), seed=2)
    mean, square = (moment.double() for moment in codec.decode(*state))
    parameter = torch.zeros(40, 50, dtype=torch.float64, requires_grad=True)
    parameter.grad = gradient.double()
    adam = torch.optim.Adam([parameter], lr=1.0, betas=BETAS, eps=EPS)
    adam.state[parameter] = {"step": torch.tensor(5.0), "exp_avg": mean, "exp_avg_sq": square}
    adam.step()
    update = torch.empty(40, 50)
    adam8bit_(update, gradient, *state, 6, betas=BETAS, eps=EPS, codec=codec)
    torch.testing.assert_close(update.double(), -parameter.detach(), rtol=2e-6, atol=2e-6)
    for ours, exact in zip(codec.decode(*state), (mean, square), strict=True):
        assert float((ours - exact).norm() / exact.norm()) < 0.02


def distance(codec: Moments, steps: int) -> float:
    """The largest relative error of an update (Frobenius), against float Adam on the same gradients."""
    parameter = torch.zeros(60, 70, requires_grad=True)
    adam, state, found = torch.optim.Adam([parameter], lr=1.0, betas=BETAS, eps=EPS), codec.zeros(parameter), []
    for step, gradient in enumerate(gradients((60, 70), steps), 1):
        before, parameter.grad, update = parameter.detach().clone(), gradient, torch.empty(60, 70)
        adam.step()
        adam8bit_(update, gradient, *state, step, betas=BETAS, eps=EPS, codec=codec)
        exact = before - parameter.detach()
        found.append(float((update - exact).norm() / exact.norm()))
    return max(found)


def test_fifty_steps_stay_with_float_adam_and_the_power_law_nearest():
    """Measured: 0.059, 0.081 with the dynamic map of the root, 0.094 with that of V; 0 before anything is coded."""
    found = {name: distance(codec, 50) for name, codec in ALL.items()}
    assert found["power"] < 0.065 < 0.075 < found["dynamic root"] < 0.088 < found["dynamic"] < 0.1
    assert max(distance(codec, 1) for codec in ALL.values()) < 1e-6


def test_rounding_walks_up_as_often_as_the_fraction_says():
    """Mean codes of 610 steps, a Fibonacci number, where the golden ratio's multiples are evenest."""
    values = gradients((512,))[0].abs()
    codes = torch.stack([walked(CODECS["power"], values, step).codes.double() for step in range(7, 617)])
    scales = values.view(2, 256).amax(1).repeat_interleave(256)
    y = 255 * (values.double() / scales) ** 0.25
    assert (codes.mean(0) - y).abs().max() < 0.006  # 2 / 610, and the edges
    assert (codes - y).abs().max() < 1
    assert (codes.min(0).values < codes.max(0).values).double().mean() > 0.98  # all but the largest move


def behind(codec: Moments) -> float:
    """Median of sqrt(V) over float Adam's where gradients, in every other place, shrank tenfold 4 / (1 - b2) ago."""
    draws, shrunk, b2 = torch.Generator().manual_seed(0), torch.arange(512) % 2 == 0, 0.998
    state, exact, update = codec.zeros(shrunk.float()), torch.zeros(512), torch.empty(512)
    for step in range(1, 4001):
        gradient = torch.randn(512, generator=draws)
        gradient[shrunk] *= 0.1 if step > 2000 else 1
        exact.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        adam8bit_(update, gradient, *state, step, betas=(0.9, b2), codec=codec)
    return float((codec.decode(*state)[1] / exact).sqrt()[shrunk].median())


def test_second_moments_follow_gradients_that_shrink_and_rounded_to_the_nearest_do_not():
    assert behind(CODECS["power"]) == pytest.approx(1, abs=0.1)
    assert behind(replace(CODECS["power"], walk=False)) > 3
    assert behind(CODECS["dynamic"]) > 3  # as in bitsandbytes


def test_an_effective_eps_is_eps_before_bias_correction():
    """galore-torch's step, as its equations have it."""
    codec, (gradient,) = CODECS["power"], gradients((500,), seed=2)
    state = trained(codec, (500,))
    m, v = codec.decode(*state)
    m, v = BETAS[0] * m + (1 - BETAS[0]) * gradient, BETAS[1] * v + (1 - BETAS[1]) * gradient.square()
    second, eps = math.sqrt(1 - BETAS[1] ** 6), 1e-2
    update = torch.empty(500)
    adam8bit_(update, gradient, *state, 6, betas=BETAS, eps=eps / second, codec=codec)
    torch.testing.assert_close(update, m / (v.sqrt() + eps) * second / (1 - BETAS[0] ** 6))


@each_codec
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_update_and_gradient_of_any_dtype_and_stride_or_in_place(codec, dtype):
    state, gradient = trained(codec, (30, 41)), gradients((30, 41), seed=2)[0].to(dtype)
    update, expected = unchunked(codec, state, gradient.float(), 6)
    calls = [(torch.empty_like(gradient), gradient), (torch.empty(41, 30, dtype=dtype).mT, gradient.mT.clone().mT)]
    for out, source in [*calls, *((same, same) for same in (gradient.clone(), gradient.mT.clone().mT))]:
        found = copied(state)
        adam8bit_(out, source, *found, 6, betas=BETAS, eps=EPS, codec=codec)
        assert torch.equal(out, update.to(dtype))
        assert equal(found, expected)


class Born(TorchDispatchMode):
    """The bytes of every storage that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        before = {where(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and where(tensor) not in before:
                self.bytes.append(tensor.untyped_storage().nbytes())
        return results


def where(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize(("name", "more"), [("power", 0), ("dynamic", 1)])
def test_scratch_is_half_a_megabyte_for_any_size(name, more):
    """Three float32 chunks, and the look-ups of "dynamic"; the rest is a number for a block."""
    chunk = 4 * 160 * 256
    for size in (2**17, 2**20):
        state, gradient, update = CODECS[name].zeros(torch.empty(size)), torch.ones(size), torch.empty(size)
        with Born() as born:
            adam8bit_(update, gradient, *state, 1, codec=CODECS[name])
        assert max(born.bytes) == 3 * chunk < 2**19
        others = max(count for count in born.bytes if count < 3 * chunk)
        assert others == chunk if more else others < chunk / 100


def their_adam(shape: tuple[int, ...], steps: int, seed: int = 0) -> tuple[Any, torch.Tensor]:
    """bitsandbytes' optimizer after so many steps, and its parameter."""
    optim = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes (extra `bench`)").optim
    parameter = torch.nn.Parameter(torch.zeros(shape))
    adam = optim.Adam8bit([parameter], lr=1e-2, betas=BETAS, eps=EPS)
    for gradient in gradients(shape, steps, seed):
        parameter.grad = gradient
        adam.step()
    return adam, parameter


def test_with_its_grid_bitsandbytes_takes_the_same_steps_to_the_last_bit_of_the_states():
    shape = (77, 101)  # 7777 elements; from 4096 on they have 8 bits
    adam, parameter = their_adam(shape, 3)
    state = from_bitsandbytes(adam.state[parameter], THEIRS)
    for step, gradient in enumerate(gradients(shape, 10, seed=4), 4):
        before, parameter.grad, update = parameter.detach().clone(), gradient, torch.empty(shape)
        adam.step()
        adam8bit_(update, gradient, *state, step, betas=BETAS, eps=EPS, codec=THEIRS)
        assert equal(state, from_bitsandbytes(adam.state[parameter], THEIRS))
        torch.testing.assert_close(1e-2 * update, before - parameter.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrapped", [True, False])
def test_states_from_bitsandbytes_and_back_are_the_same_bits_and_it_trains_on(wrapped):
    adam, parameter = their_adam((90, 50), 4)
    saved = adam.state_dict()
    entry = saved["state"][0] if wrapped else adam.state[parameter]
    given = to_bitsandbytes(*from_bitsandbytes(entry, CODECS["dynamic"]), entry["step"], CODECS["dynamic"])
    assert given.keys() == adam.state[parameter].keys()
    for key, value in adam.state[parameter].items():
        assert torch.equal(torch.as_tensor(given[key]), torch.as_tensor(value)), key
    other, copy = their_adam((90, 50), 0)
    copy.data.copy_(parameter.detach())
    other.load_state_dict({"state": {0: given}, "param_groups": saved["param_groups"]})
    for gradient in gradients((90, 50), 3, seed=5):
        for optimizer, trained_ in ((adam, parameter), (other, copy)):
            trained_.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(copy, parameter)


def test_a_run_of_bitsandbytes_goes_on_in_our_optimizer_and_back():
    """Of one step after each change: their CPU kernel finds other codes, on its grid."""
    shape, more = (90, 50), {"lr": 1e-2, "betas": BETAS, "eps": EPS}
    adam, parameter = their_adam(shape, 4)
    weight = torch.nn.Parameter(parameter.detach().clone())
    ours = GaLoreAdamW([weight], **more, state="8bit", codec="dynamic")
    found = from_bitsandbytes(adam.state[parameter], CODECS["dynamic"])
    names = ("exp_avg", "exp_avg_sq")
    state = {"step": torch.tensor(4.0)}
    for name, moment in zip(names, found, strict=True):
        state |= {name: moment.codes, f"{name}_scales": moment.scales}
    ours.state[weight] = state
    other, third = their_adam(shape, 0)
    steps = gradients(shape, 2, seed=6)
    for gradient, pair in zip(steps, ((adam, parameter), (other, third)), strict=True):
        theirs, their_weight = pair
        if theirs is other:
            moments = [Quantized(state[name], state[f"{name}_scales"]) for name in names]
            entry = to_bitsandbytes(*moments, int(ours.state[weight]["step"]), CODECS["dynamic"])
            third.data.copy_(weight.detach())
            other.load_state_dict({"state": {0: entry}, "param_groups": other.state_dict()["param_groups"]})
        before = weight.detach().clone()
        for optimizer, one in ((ours, weight), (theirs, their_weight)):
            one.grad = gradient.clone()
            optimizer.step()
        state = ours.state[weight]
        torch.testing.assert_close(weight, their_weight, rtol=0, atol=1e-6)
        assert float((weight - before).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["power", "dynamic root"])
def test_states_from_bitsandbytes_in_another_codec_are_as_near_as_its_law(name):
    codec, (adam, parameter) = ALL[name], their_adam((90, 50), 4)
    mean, square = CODECS["dynamic"].decode(*from_bitsandbytes(adam.state[parameter], CODECS["dynamic"]))
    state = from_bitsandbytes(adam.state[parameter], codec)
    for ours, theirs in zip(codec.decode(*state), (mean, square), strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 0.02
    assert not torch.equal(ours, theirs)
    back = from_bitsandbytes(to_bitsandbytes(*state, 4, codec), CODECS["dynamic"])
    for ours, theirs in zip(CODECS["dynamic"].decode(*back), (mean, square), strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 0.03


def test_small_parameters_of_bitsandbytes_are_float32_and_taken_too():
    adam, parameter = their_adam((60,), 4)
    entry = adam.state[parameter]
    assert entry["state1"].dtype == torch.float32
    for ours, theirs in zip(
        CODECS["power"].decode(*from_bitsandbytes(entry, CODECS["power"])),
        (entry["state1"], entry["state2"]),
        strict=True,
    ):
        assert 0 < float((ours - theirs).norm() / theirs.norm()) < 0.02


@each_codec
@given(shape=st.sampled_from([(7,), (300,), (0,)]))
def test_states_are_plain_tensors_that_torch_loads_without_pickle(codec, shape, tmp_path_factory):
    state = trained(codec, shape)
    path = tmp_path_factory.mktemp("states") / "state.pt"
    torch.save({"first": tuple(state[0]), "second": tuple(state[1])}, path)
    loaded = torch.load(path, weights_only=True)
    assert equal(state, (Quantized(*loaded["first"]), Quantized(*loaded["second"])))


@pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device")
@each_codec
def test_a_gpu_takes_the_same_step(codec):
    """But for roots that it rounds differently: a code in a thousand may be next to the CPU's."""
    state, (gradient,) = trained(codec, (300, 401)), gradients((300, 401), seed=2)
    there = [Quantized(q.codes.to(DEVICE), q.scales.to(DEVICE)) for q in copied(state)]
    update, other = torch.empty(300, 401), torch.empty(300, 401, device=DEVICE)
    adam8bit_(update, gradient, *state, 6, betas=BETAS, eps=EPS, codec=codec)
    adam8bit_(other, gradient.to(DEVICE), *there, 6, betas=BETAS, eps=EPS, codec=codec, chunk=2**22)
    torch.testing.assert_close(other.cpu(), update, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(state, there, strict=True):
        torch.testing.assert_close(theirs.scales.cpu(), ours.scales, rtol=1e-6, atol=0)
        assert float((theirs.codes.cpu() != ours.codes).float().mean()) < 1e-3


G, STATE = torch.ones(300), CODECS["power"].zeros(torch.ones(300))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 0}, "step = 0: the first step is 1"),
        ({"betas": (0.9, 1.0)}, r"betas = \(0.9, 1.0\), eps = 1e-08: take 0 <= beta < 1"),
        ({"eps": -1.0}, "eps = -1.0"),
        ({"eps": math.nan}, "eps = nan"),
        ({"gradient": G.int()}, "torch.int32 and torch.float32: give dense floating-point tensors"),
        ({"gradient": G.to_sparse()}, "torch.sparse_coo"),
        ({"update": G[:299]}, r"an update of shape \(299,\) .* for a gradient of shape \(300,\)"),
        ({"update": G.to("meta")}, "on meta for a gradient"),
        ({"first": STATE[1]}, "codes of torch.uint8"),
        ({"second": STATE[0]}, "codes of torch.int8"),
        ({"chunk": 1000}, "chunk = 1000: take a positive multiple of 256"),
    ],
)
def test_impossible_steps_are_refused(changes, message):
    arguments: dict[str, Any] = {"update": G.clone(), "gradient": G, "first": STATE[0], "second": STATE[1], "step": 1}
    with pytest.raises(ValueError, match=message):
        adam8bit_(**(arguments | changes))


def test_states_that_are_not_of_bitsandbytes_adam_are_refused():
    with pytest.raises(ValueError, match=r"no state1, state2 among \['exp_avg'\]: give one parameter's state"):
        from_bitsandbytes({"exp_avg": G}, CODECS["power"])
    entry = to_bitsandbytes(*STATE, 1, CODECS["power"])
    with pytest.raises(ValueError, match="qmap2 is not bitsandbytes' dynamic map"):
        from_bitsandbytes({**entry, "qmap2": entry["qmap1"]}, CODECS["power"])
    with pytest.raises(ValueError, match=r"scales of torch.float32, shape \(1,\)"):
        from_bitsandbytes({**entry, "absmax1": torch.ones(1)}, CODECS["power"])
    with pytest.raises(ValueError, match=r"codes of torch.int8"):
        to_bitsandbytes(*STATE, 1, CODECS["dynamic"])
