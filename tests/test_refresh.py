"""refresh: the network goes on where the wide one would be, in subspaces that also hold the signal.

Tolerance: rounding, 1e-12 on numbers of order 1 after 40 steps, as in test_theorem.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowdim import Narrow, compress, principal_angles, refresh
from sims.dynamics import gradient_descent, product, rollout
from sims.losses import Completion, Factorization
from sims.start import haar, observed, orthogonal, to_numpy, to_torch

WIDTH, RANK = 24, 2
SCALES = (0.3, 0.25, 0.2)
seeds = st.integers(0, 2**16)


def drawn(seed: int, width: int = WIDTH) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """A start, and a target of rank 2."""
    rng = np.random.default_rng(seed)
    target = haar(width, RANK, rng) * np.array([1.5, 1.0]) @ haar(width, RANK, rng).T
    return orthogonal((width,) * 4, SCALES, rng), target


def trained(narrow: Narrow, target: np.ndarray, steps: int) -> Narrow:
    """The cores after so many steps towards the target, left and right frozen."""
    small = Factorization(target).inside(narrow.left.numpy(), narrow.right.numpy())
    *_, cores = rollout(gradient_descent(small, 0.1), to_numpy(*narrow.cores), steps)
    return Narrow(narrow.left, to_torch(*cores), narrow.right)


def partly_trained(seed: int) -> tuple[tuple[np.ndarray, ...], np.ndarray, Narrow]:
    """A network whose subspaces hold one of the target's two directions, after 100 steps on all of it."""
    start, target = drawn(seed)
    narrow = compress(to_torch(*start), torch.from_numpy(target), 1)
    return start, target, trained(narrow, target, 100)


def spaces(weights: tuple[np.ndarray, ...], right: torch.Tensor) -> list[np.ndarray]:
    """S_0, W_1 S_0, ..., orthonormal."""
    found = [right.numpy()]
    for weight in weights:
        found.append(np.linalg.qr(weight @ found[-1])[0])
    return found


def lifted(weights: tuple[np.ndarray, ...], narrow: Narrow) -> tuple[np.ndarray, ...]:
    """The wide layers that the cores stand for: W_l, changed inside the subspaces alone."""
    inside = pairwise(spaces(weights, narrow.right))
    return tuple(
        weight + after @ (core.numpy() - after.T @ weight @ before) @ before.T
        for weight, core, (before, after) in zip(weights, narrow.cores, inside, strict=True)
    )


def sine(inner: torch.Tensor, outer: torch.Tensor) -> float:
    """Of the largest angle by which the span of `inner` leaves that of `outer`."""
    return float(principal_angles(outer, inner).max().sin())


@given(seeds)
def test_after_a_refresh_the_narrow_run_is_the_wide_one_seen_from_inside(seed):
    start, target, narrow = partly_trained(seed)
    wide = lifted(start, narrow)
    fresh = refresh(narrow, to_torch(*start), torch.from_numpy(target), RANK)
    left, right = fresh.left.numpy(), fresh.right.numpy()
    full = rollout(gradient_descent(Factorization(target), 0.1, 0.05), wide, 40)
    small = Factorization(left.T @ target @ right)
    cores = rollout(gradient_descent(small, 0.1, 0.05), to_numpy(*fresh.cores), 40)
    for weights, inner in zip(full, cores, strict=True):
        np.testing.assert_allclose(left.T @ product(weights) @ right, product(inner), atol=1e-12)
        np.testing.assert_allclose(left.T @ product(weights), product(inner) @ right.T, atol=1e-12)  # nothing leaks


@given(seeds)
def test_a_refresh_at_the_start_is_compress_with_the_larger_space(seed):
    start, target = drawn(seed)
    weights, signal = to_torch(*start), torch.from_numpy(target)
    parts = [torch.from_numpy(target @ np.outer(row, row)) for row in np.linalg.svd(target)[2][:RANK]]
    fresh = refresh(compress(weights, parts[0], 1), weights, parts[1], 1)
    whole = compress(weights, signal, RANK)
    assert max(sine(fresh.right, whole.right), sine(fresh.left, whole.left)) < 1e-7  # the span's conditioning
    runs = [trained(narrow, target, 40).product() for narrow in (fresh, whole)]
    np.testing.assert_allclose(*runs, atol=1e-12)


@given(seeds, st.integers(1, 2), st.sampled_from([None, 1, 2]))
def test_the_product_is_kept_up_to_the_idle_part(seed, rank, keep):
    """In spectral norm: prod eps for all old subspaces, and what was not kept of the product otherwise."""
    start, target, narrow = partly_trained(seed)
    noise = np.random.default_rng(seed).standard_normal(target.shape)
    fresh = refresh(narrow, to_torch(*start), torch.from_numpy(target + 0.1 * noise), rank, keep=keep)
    before, after = narrow.product().numpy(), fresh.product().numpy()
    lost = np.linalg.svd(before, compute_uv=False)[keep] if keep is not None and keep < 2 else 0.0
    assert np.linalg.norm(after - before, 2) <= np.prod(SCALES) + lost + 1e-12
    assert np.linalg.norm(before, 2) > 10 * np.prod(SCALES)  # so that losing it would show


@given(seeds, st.integers(1, 3))
def test_new_subspaces_hold_the_old_ones_and_the_signal_and_are_chained_by_the_start(seed, rank):
    start, _, narrow = partly_trained(seed)
    rng = np.random.default_rng([seed, 1])  # not the start's own stream: the signal is new
    signal = haar(WIDTH, rank, rng) @ haar(WIDTH, rank, rng).T
    fresh = refresh(narrow, to_torch(*start), torch.from_numpy(signal), rank)
    left, _, right = np.linalg.svd(signal)
    for held, space in (
        (narrow.right, fresh.right),
        (narrow.left, fresh.left),
        (torch.from_numpy(right[:rank].T.copy()), fresh.right),
        (torch.from_numpy(left[:, :rank].copy()), fresh.left),
    ):
        assert sine(held, space) < 1e-9
        np.testing.assert_allclose(space.T @ space, np.eye(space.shape[1]), atol=1e-12)
    last = spaces(start, fresh.right)[-1]
    assert fresh.right.shape == (WIDTH, 2 + 2 * rank)
    assert sine(torch.from_numpy(last), fresh.left) < 1e-9


@given(seeds)
def test_what_the_subspaces_hold_already_adds_nothing(seed):
    """A part of the old signal leaves the old subspaces as they are, instead of directions made of rounding."""
    start, target, narrow = partly_trained(seed)
    fresh = refresh(narrow, to_torch(*start), torch.from_numpy(target), RANK)
    again = refresh(fresh, to_torch(*start), torch.from_numpy(target), RANK)
    assert again.right.shape == fresh.right.shape
    assert sine(again.right, fresh.right) < 1e-9


@given(seeds, st.integers(1, 2), st.integers(1, 3))
def test_with_keep_the_cores_stay_as_wide_and_hold_the_products_leading_directions(seed, rank, keep):
    start, target = drawn(seed)
    known = observed(target.shape, 0.6, np.random.default_rng(seed))
    loss = Completion(target, known.astype(float))
    narrow = compress(to_torch(*start), torch.from_numpy(-loss.gradient(product(start))), 2)
    for _ in range(3):
        *_, factors = rollout(gradient_descent(loss, (0.0, 0.1, 0.1, 0.1, 0.0)), to_numpy(*narrow.factors), 10)
        narrow = Narrow(narrow.left, to_torch(*factors[1:-1]), narrow.right)
        end = narrow.product().numpy()
        signal = torch.from_numpy(end - loss.gradient(end) / 0.6)
        fresh = refresh(narrow, to_torch(*start), signal, rank, keep=keep)
        (width,) = {side for core in fresh.cores for side in core.shape}
        assert 2 * keep <= width <= 2 * (keep + rank)  # the signal is partly what is kept
        left, sigma, right = np.linalg.svd(end)
        if sigma[keep - 1] > 1.001 * sigma[keep]:
            assert sine(torch.from_numpy(right[:keep].T.copy()), fresh.right) < 1e-7
            assert sine(torch.from_numpy(left[:, :keep].copy()), fresh.left) < 1e-7
        narrow = fresh


@given(seeds)
def test_refreshing_again_with_the_same_signal_changes_nothing_but_the_idle_part(seed):
    start, target, narrow = partly_trained(seed)
    for _ in range(3):
        before = narrow.product()
        narrow = refresh(narrow, to_torch(*start), torch.from_numpy(target), RANK)
        assert np.linalg.norm(narrow.product() - before, 2) <= np.prod(SCALES) + 1e-12


def test_refreshing_closes_most_of_the_gap_of_a_network_that_missed_half_of_the_target():
    start, target, narrow = partly_trained(0)
    fresh = refresh(narrow, to_torch(*start), torch.from_numpy(target), RANK)
    stale, renewed = (trained(n, target, 600).product().numpy() - target for n in (narrow, fresh))
    assert np.linalg.norm(stale) > 0.6
    assert np.linalg.norm(renewed) < 0.05


def test_randomized_refresh_agrees_with_the_exact_one():
    start, _, narrow = partly_trained(0)
    arguments = narrow, to_torch(*start), torch.from_numpy(drawn(5)[1]), RANK
    exact, fast = (refresh(*arguments, method=method) for method in ("exact", "randomized"))
    np.testing.assert_allclose(fast.product(), exact.product(), atol=1e-12)


def test_a_one_percent_error_in_what_was_learned_is_caught():
    start, target, narrow = partly_trained(0)
    wrong = Narrow(narrow.left, tuple(1.01 * core for core in narrow.cores), narrow.right)
    found, expected = (refresh(n, to_torch(*start), torch.from_numpy(target), RANK).product() for n in (wrong, narrow))
    assert (found - expected).norm() > 1e6 * 1e-12


START, TARGET, NARROW = partly_trained(1)
WEIGHTS, SIGNAL = to_torch(*START), torch.from_numpy(TARGET)
OTHERS = to_torch(*drawn(2)[0])
NOISE = torch.from_numpy(np.random.default_rng(3).standard_normal((WIDTH, WIDTH)))
TALL = to_torch(*orthogonal((24, 24, 24, 12), SCALES, np.random.default_rng(0)))
TALL_SIGNAL = torch.from_numpy(np.random.default_rng(0).standard_normal((12, 24)))
TURNED = torch.linalg.qr(NARROW.left + 0.1 * SIGNAL[:, :2]).Q
FOREIGN = r"narrow is not from these weights, or its left and right have been trained: give both as made"


@pytest.mark.parametrize(
    ("narrow", "weights", "signal", "rank", "options", "message"),
    [
        (Narrow(TURNED, NARROW.cores, NARROW.right), WEIGHTS, SIGNAL, 2, {}, FOREIGN),
        (Narrow(NARROW.left, NARROW.cores, TURNED), WEIGHTS, SIGNAL, 2, {}, FOREIGN),
        (NARROW, OTHERS, SIGNAL, 2, {}, FOREIGN),
        (compress(TALL, TALL_SIGNAL, 1), TALL, TALL_SIGNAL, 1, {}, r"only square layers can be refreshed; compress"),
        (
            NARROW,
            WEIGHTS,
            NOISE,
            11,
            {},
            r"rank = 11, keep = None: cores of 24 would fill the layers of 24; take less",
        ),
        (NARROW, WEIGHTS, NOISE, 11, {"keep": 2}, r"rank = 11, keep = 2: cores of 24 would fill the layers of 24"),
        (NARROW, WEIGHTS, SIGNAL, 12, {}, r"rank = 12: 2 rank = 24 does not fit below the narrowest hidden layer, 24"),
        (NARROW, WEIGHTS, SIGNAL, 0, {}, r"rank = 0 of a \(24, 24\) matrix"),
        (NARROW, WEIGHTS, SIGNAL, 2, {"keep": 0}, r"rank = 0 of a \(2, 2\) matrix: take 1 <= rank <= 2"),
        (NARROW, WEIGHTS, SIGNAL, 2, {"keep": 3}, r"rank = 3 of a \(2, 2\) matrix: take 1 <= rank <= 2"),
        (NARROW, WEIGHTS, 0 * SIGNAL, 2, {}, r"the signal is zero"),
        (NARROW, WEIGHTS, SIGNAL[:5], 2, {}, r"signal of shape \(5, 24\): the product is \(24, 24\)"),
        (NARROW, WEIGHTS, SIGNAL.float(), 2, {}, r"one device and one dtype"),
        (NARROW, WEIGHTS, SIGNAL, 2, {"method": "warm"}, r"method = 'warm': take 'exact' or 'randomized'"),
    ],
)
def test_impossible_refreshes_are_refused(narrow, weights, signal, rank, options, message):
    with pytest.raises(ValueError, match=message):
        refresh(narrow, weights, signal, rank, **options)
