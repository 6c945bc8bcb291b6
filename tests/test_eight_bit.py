"""Codes of 8 bits: what they promise, and what bitsandbytes makes of the same numbers."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowdim.quantization import Codec, Dynamic, Power, Quantized
from lowdim.quantization.dynamic import dynamic_map

EXACT = "needs bitsandbytes (extra `bench`)"
LAWS = [Power(True), Power(False), Dynamic(True), Dynamic(False), Dynamic(True, grid=True), Dynamic(False, grid=True)]
NAMES = [f"{type(law).__name__} {law.signed}{' grid' * getattr(law, 'grid', False)}" for law in LAWS]
each_law = pytest.mark.parametrize("law", LAWS, ids=NAMES)
signs = st.booleans()
seeds = st.integers(0, 2**32 - 1)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def spread(count: int, decades: float, seed: int) -> torch.Tensor:
    """Gaussian values times 10^(uniform over so many decades), some of them 0."""
    draws = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=draws) * 10 ** (-decades * torch.rand(count, generator=draws))
    return values * (torch.rand(count, generator=draws) > 0.02)


anything = st.one_of(
    st.lists(floats, min_size=1, max_size=600).map(torch.tensor),
    st.builds(spread, st.integers(1, 3000), st.floats(0, 30), seeds),
    st.builds(lambda n, k, s: spread(n, 3, s) * 2.0**k, st.integers(1, 600), st.integers(-149, 120), seeds),
    st.builds(lambda n, s: spread(n, 0, s).round(), st.integers(1, 600), seeds),  # many ties
)


def like(law: Codec, values: torch.Tensor) -> torch.Tensor:
    return values if law.signed else values.abs()  # type: ignore[attr-defined]


def scaled(values: torch.Tensor, quantized: Quantized) -> torch.Tensor:
    """|x| / scale in float64; 0 in blocks of zeros."""
    scales = quantized.scales.double().repeat_interleave(256)[: values.numel()].view(values.shape)
    return (values.double() / scales.clamp(min=1e-300)).abs()


def same(one: Quantized, other: Quantized) -> bool:
    return torch.equal(one.codes, other.codes) and torch.equal(one.scales, other.scales)


@given(anything, signs)
def test_power_codes_are_rounded_fourth_roots_and_scales_are_the_largest_values(values, signed):
    law = Power(signed)
    values, found = like(law, values), law.encode(like(law, values))
    for block, scale in zip(values.split(256), found.scales, strict=True):
        assert scale == block.abs().max()
    y = law.top * scaled(values, found) ** 0.25
    codes = found.codes.double()
    assert ((codes.abs() - y).abs() <= 0.5 + 1e-4).all()  # 1e-4: a few float32 roundings of 255
    assert (codes * values.double() >= 0).all()
    assert codes.abs().max() == (127 if signed else 255) * bool(values.any())


@given(anything, signs)
def test_power_error_is_within_its_law_and_only_what_the_law_names_becomes_zero(values, signed):
    law = Power(signed)
    values, found = like(law, values), law.encode(like(law, values))
    decoded = law.decode(found).double()
    y = law.top * scaled(values, found) ** 0.25
    upper, lower = (1 + 0.5 / y) ** 4 - 1, 1 - (1 - 0.5 / y.clamp(min=0.5)) ** 4
    error = (decoded - values.double()) * values.sign()
    size, rounding = values.double().abs(), 2**-19
    tiny = 2.0**-148  # of the last subnormal numbers
    assert (error[size > 0] <= (size * (upper + rounding))[size > 0] + tiny).all()
    assert (-error <= size * (lower + rounding) + tiny).all()
    assert (found.codes[y > 0.5001] != 0).all()
    assert (decoded[y < 0.4999] == 0).all()


@given(anything, st.sampled_from([Power(True), Power(False), Dynamic(False)]))
def test_coding_what_was_decoded_changes_nothing(values, law):
    found = law.encode(like(law, values))
    smallest = found.scales > 1e-30  # where products with the map do not become subnormal
    again = law.encode(law.decode(found))
    assert torch.equal(again.scales, found.scales)
    assert torch.equal(*(q.codes[smallest.repeat_interleave(256)[: len(values)]] for q in (again, found)))


def test_the_signed_dynamic_map_shrinks_a_block_whose_largest_value_is_negative():
    """What its missing -1 costs, and the power law does not."""
    law, values = Dynamic(True), torch.tensor([-1.0, 0.5])
    assert law.decode(law.encode(values))[0] == pytest.approx(-0.99297, abs=1e-5)
    assert Power(True).decode(Power(True).encode(values))[0] == -1


@given(st.builds(spread, st.integers(1, 1000), st.floats(0, 6), seeds), st.integers(-20, 20), st.sampled_from(LAWS))
def test_scaling_by_powers_of_two_scales_the_scales(values, power, law):
    """The power law rounds square roots, so that its codes are equal for powers of 16, and else but for ties."""
    found, moved = law.encode(like(law, values)), law.encode(like(law, values) * 2.0**power)
    assert torch.equal(moved.scales, found.scales * 2.0**power)
    if isinstance(law, Dynamic) or power % 4 == 0:
        assert torch.equal(moved.codes, found.codes)
    else:
        y = law.top * scaled(like(law, values), found) ** 0.25
        assert ((moved.codes == found.codes) | ((y % 1 - 0.5).abs() < 1e-4)).all()
        assert (moved.codes.int() - found.codes.int()).abs().max() <= 1


@given(anything)
def test_signs_are_kept(values):
    law = Power(True)
    found, mirrored = law.encode(values), law.encode(-values)
    assert torch.equal(mirrored.codes, -found.codes)
    assert found.codes.int().abs().max() <= 127


@given(anything, signs)
def test_dynamic_codes_are_the_nearest_values_of_the_map(values, signed):
    law = Dynamic(signed)
    values = like(law, values) * (values.abs().max() > 1e-37)  # below, scales are taken for 1e-38
    found = law.encode(values)
    points = dynamic_map(signed, torch.device("cpu")).double()
    z = scaled(values, found) * values.sign()
    nearest = (z[:, None] - points).abs().min(1).values
    assert ((z - points[found.codes.long()]).abs() <= nearest + 2**-23 * z.abs()).all()


@pytest.mark.parametrize("signed", [True, False])
def test_of_two_equally_near_values_the_dynamic_map_takes_the_lower(signed):
    """Every boundary itself, and the float32 numbers next to it; nextafter is the oracle."""
    points = dynamic_map(signed, torch.device("cpu"))
    ties = (points[1:] + points[:-1]) / 2
    above, below = (torch.nextafter(ties, torch.full_like(ties, side)) for side in (2.0, -2.0))
    codes = [Dynamic(signed).encode(torch.cat([torch.ones(1), x])).codes[1:].int() for x in (below, ties, above)]
    expected = torch.arange(255, dtype=torch.int32)
    assert torch.equal(codes[0], expected)
    assert torch.equal(codes[1], expected)
    assert torch.equal(codes[2], expected + 1)


@cache
def bitsandbytes() -> Any:
    return pytest.importorskip("bitsandbytes", reason=EXACT)


@cache
def their_map(signed: bool) -> torch.Tensor:
    """Kept: their CPU kernel knows a map by its address."""
    return bitsandbytes().functional.create_dynamic_map(signed=signed)


def their_codes(values: torch.Tensor, signed: bool, kernel: str) -> Quantized:
    """By the CPU kernel or by the one in torch, which their other devices without an own one use."""
    bitsandbytes()
    call = torch.ops.bitsandbytes.quantize_blockwise.default
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
    map_ = their_map(signed)
    return Quantized(*(call.redispatch(keys, values, map_, 256) if kernel == "torch" else call(values, map_, 256)))


@pytest.mark.parametrize("signed", [True, False])
def test_bitsandbytes_has_the_same_map(signed):
    assert torch.equal(their_map(signed), dynamic_map(signed, torch.device("cpu")))


@pytest.mark.parametrize("kernel", ["torch", "cpu"])
@given(values=anything, signed=signs)
def test_bitsandbytes_finds_the_same_codes(kernel, values, signed):
    """To the last one. Its torch kernel has another law for a last block that is shorter: filled up here."""
    law = Dynamic(signed, grid=kernel == "cpu")
    values = like(law, values)
    if kernel == "torch":
        values = torch.nn.functional.pad(values, (0, -len(values) % 256))
    theirs = their_codes(values, signed, kernel)
    assert same(law.encode(values), theirs)
    decoded = torch.ops.bitsandbytes.dequantize_blockwise(*theirs, their_map(signed), 256, torch.float32)
    assert torch.equal(law.decode(theirs), decoded)


@pytest.mark.parametrize("kernel", ["torch", "cpu"])
@pytest.mark.parametrize("signed", [True, False])
def test_bitsandbytes_finds_the_same_codes_for_a_million_values(kernel, signed):
    for decades in (0, 1, 4, 8):
        law = Dynamic(signed, grid=kernel == "cpu")
        values = like(law, spread(2**20, decades, 5))
        assert same(law.encode(values), their_codes(values, signed, kernel))


def errors(law: Codec, values: torch.Tensor) -> tuple[float, float]:
    """Percent: relative Frobenius error, and mean relative error."""
    difference = (law.decode(law.encode(values)) - values).abs()
    return float(100 * difference.norm() / values.norm()), float(100 * (difference / values.abs()).mean())


@pytest.mark.parametrize(
    ("law", "frobenius", "mean"),
    [
        (Power(True), 1.06, 2.1),
        (Power(False), 0.53, 1.05),
        (Dynamic(True), 1.34, 2.8),
        (Dynamic(False), 0.66, 1.4),
        (Dynamic(True, grid=True), 1.34, 3.2),
    ],
)
def test_errors_on_log_normally_scaled_values(law, frobenius, mean):
    draws = torch.Generator().manual_seed(0)
    values = torch.randn(10**6, generator=draws) * torch.randn(10**6, generator=draws).exp()
    assert errors(law, like(law, values)) == pytest.approx((frobenius, mean), rel=0.02)


def test_codes_of_v_lose_one_in_a_hundred_and_codes_of_its_root_none():
    draws = torch.Generator().manual_seed(0)
    square = (torch.randn(10**6, generator=draws) * torch.randn(10**6, generator=draws).exp()).square()
    assert float((Dynamic(False).encode(square).codes == 0).float().mean()) == pytest.approx(0.011, rel=0.1)
    assert float((Dynamic(False).encode(square.sqrt()).codes == 0).float().mean()) < 1e-5
    assert Power(False).encode(square.sqrt()).codes.min() > 0
    grid = Dynamic(False, grid=True)
    assert (grid.decode(grid.encode(square)) / square).max() > 1e6  # bitsandbytes on a CPU: all below 1.5e-5 is that


@each_law
@pytest.mark.parametrize("shape", [(), (0,), (1,), (256,), (257,), (3, 0, 2), (3, 7, 11), (40, 50), (512,)])
def test_any_shape_and_chunk(law, shape):
    values = like(law, spread(math.prod(shape), 3, 1)).view(shape)
    found = law.encode(values)
    assert found.codes.shape == shape
    assert same(found, law.encode(values, chunk=256))
    assert same(found, Quantized(law.encode(values.reshape(-1)).codes.view(shape), found.scales))
    assert torch.equal(law.decode(found), law.decode(found, chunk=256))
    assert torch.count_nonzero(law.decode(law.zeros(values))) == 0
    assert {type(found.codes), type(found.scales)} == {torch.Tensor}
    count = math.prod(shape)
    bytes_held = sum(tensor.untyped_storage().nbytes() for tensor in found)
    assert found.nbytes == bytes_held == count + 4 * math.ceil(count / 256)


@each_law
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_any_floating_dtype_and_stride(law, dtype):
    values = like(law, spread(3000, 3, 2)).to(dtype).view(50, 60)
    found = law.encode(values.float())
    assert same(law.encode(values), found)
    for odd in (values.mT.contiguous().mT, values.repeat_interleave(2, 1)[:, ::2]):
        assert not odd.is_contiguous()
        assert same(law.encode(odd), found)
    expected = law.decode(found).to(dtype)
    for out in (torch.empty_like(values), torch.empty(60, 50, dtype=dtype).mT):
        assert law.decode(found, out) is out
        assert torch.equal(out, expected)
    reused = law.zeros(values)
    assert law.encode(values.clone().requires_grad_(), reused) is reused
    assert same(reused, found)


@each_law
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_visible_and_in_its_block(law, wrong):
    values = spread(700, 3, 3)
    clean = law.decode(law.encode(like(law, values)))
    values[300] = wrong
    found = law.decode(law.encode(like(law, values)))
    assert not torch.isfinite(found[300])
    assert torch.equal(found[:256], clean[:256])
    assert torch.equal(found[512:], clean[512:])


VALUES = torch.ones(300)
GIVEN = Power(True).encode(VALUES)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda law: law.encode(VALUES.int()), "values of dtype torch.int32: give a floating-point tensor"),
        (lambda law: law.encode(VALUES, chunk=100), "chunk = 100: take a positive multiple of 256"),
        (lambda law: law.decode(GIVEN, chunk=0), "chunk = 0: take a positive multiple of 256"),
        (lambda law: law.encode(VALUES[:299], GIVEN), r"shape \(300,\).* for a tensor of shape \(299,\)"),
        (lambda law: law.decode(GIVEN, torch.ones(30, 10)), r"for a tensor of shape \(30, 10\)"),
        (lambda law: law.decode(Power(False).encode(VALUES)), "codes of torch.uint8.* give torch.int8"),
        (lambda law: law.decode(GIVEN._replace(scales=torch.ones(3))), r"shape \(3,\).* give float32 \(2,\)"),
        (lambda law: law.decode(GIVEN._replace(scales=torch.ones(2).double())), "scales of torch.float64"),
        (lambda law: law.decode(Quantized(torch.ones(2, 9).char().mT, torch.ones(1))), "not contiguous"),
        (lambda law: law.decode(GIVEN, torch.ones(300, device="meta")), "on cpu for a tensor .* on meta"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Power(True))
