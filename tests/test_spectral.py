"""spectral: the narrow network on the signal's singular subspaces; and the parameter groups of both narrow networks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowdim import Narrow, compress, spectral
from sims.dynamics import discrepant, gradient_descent
from sims.losses import Factorization
from sims.start import haar, orthogonal, to_numpy, to_torch

seeds = st.integers(0, 2**16)
shapes = st.tuples(st.integers(3, 12), st.integers(3, 12))


def signal_of(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Singular values 2, ..., 1, all different."""
    rng, size = np.random.default_rng(seed), min(shape)
    return haar(shape[0], size, rng) * np.linspace(2, 1, size) @ haar(shape[1], size, rng).T


@given(shapes, st.integers(1, 3), st.integers(2, 5), st.floats(0.05, 1.5), seeds)
def test_product_is_the_scale_to_the_depth_times_the_paired_singular_vectors(shape, rank, depth, scale, seed):
    signal = signal_of(shape, seed)
    narrow = spectral(torch.from_numpy(signal), rank, depth, scale)
    left, _, right = np.linalg.svd(signal)
    expected = scale**depth * left[:, :rank] @ right[:rank]
    np.testing.assert_allclose(narrow.product(), expected, atol=1e-12 * max(1, scale**depth))
    assert len(narrow.factors) == depth
    for core in narrow.cores:
        np.testing.assert_array_equal(core, scale * np.eye(rank))


@given(shapes, st.integers(1, 3), seeds)
def test_vectors_are_paired_so_that_the_signal_is_positive_between_them(shape, rank, seed):
    """With a pair of opposite signs the product starts towards minus that part of the signal, and stalls at zero."""
    signal = signal_of(shape, seed)
    narrow = spectral(torch.from_numpy(signal), rank, 3, 0.5)
    left, right = narrow.left.numpy() / 0.5, narrow.right.numpy() / 0.5
    inner = left.T @ signal @ right
    np.testing.assert_allclose(inner, np.diag(np.linspace(2, 1, min(shape))[:rank]), atol=1e-12)
    for basis in (left, right):
        np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-12)


@given(seeds, st.sampled_from([torch.float32, torch.float64]))
def test_randomized_agrees_with_exact_on_a_signal_of_low_rank_and_keeps_its_dtype(seed, dtype):
    rng = np.random.default_rng(seed)
    signal = torch.from_numpy(haar(30, 3, rng) * np.array([3.0, 2.0, 1.0]) @ haar(25, 3, rng).T).to(dtype)
    exact, fast = (spectral(signal, 3, 3, 0.1, method=method) for method in ("exact", "randomized"))
    assert {factor.dtype for factor in (*exact.factors, *fast.factors)} == {dtype}
    np.testing.assert_allclose(exact.product(), fast.product(), atol=100 * torch.finfo(dtype).eps)


def test_the_wider_rank_that_the_paper_takes_learns_the_target():
    signal = torch.from_numpy(haar(20, 2, np.random.default_rng(0)) @ haar(20, 2, np.random.default_rng(1)).T)
    narrow = spectral(signal, 4, 3, 0.1)
    loss = Factorization(signal.numpy())
    weights = to_numpy(*narrow.factors)
    for _ in range(1000):
        weights = gradient_descent(loss, discrepant(0.1, 2.0, 3))(weights)
    assert loss.value(weights[2] @ weights[1] @ weights[0]) < 1e-5


def networks(seed: int) -> tuple[Narrow, Narrow, np.ndarray]:
    """One of each kind, and their target."""
    rng = np.random.default_rng(seed)
    target = haar(14, 2, rng) * np.array([1.5, 1.0]) @ haar(14, 2, rng).T
    start = to_torch(*orthogonal((14,) * 4, (0.4, 0.5, 0.6), rng))
    signal = torch.from_numpy(target)
    return spectral(signal, 3, 4, 0.5), compress(start, signal, 2), target


@given(seeds, st.sampled_from([0.0, 0.01, 1.0, 3.0]), st.sampled_from([0, 1]))
def test_torch_sgd_on_the_groups_is_gradient_descent_with_discrepant_rates(seed, outer, kind):
    *both, target = networks(seed)
    narrow = both[kind]
    ours = tuple(factor.copy() for factor in to_numpy(*narrow.factors))
    optimizer = torch.optim.SGD(narrow.parameter_groups(0.05, outer))
    step = gradient_descent(Factorization(target), discrepant(0.05, outer, len(ours)))
    for _ in range(20):
        optimizer.zero_grad()
        (0.5 * (narrow.product() - torch.from_numpy(target)).square().sum()).backward()
        optimizer.step()
        ours = step(ours)
    for found, expected in zip(narrow.factors, ours, strict=True):
        np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-12)
    moved = (narrow.left.detach() - networks(seed)[kind].left).norm()
    assert moved > 0 if outer else moved == 0


def test_groups_switch_gradients_on_for_what_trains_and_off_for_what_does_not():
    narrow, *_ = networks(0)
    assert [group["lr"] for group in narrow.parameter_groups(0.1, 5.0)] == [0.1, 0.5]
    assert all(factor.requires_grad for factor in (narrow.left, *narrow.cores, narrow.right))
    (group,) = narrow.parameter_groups(0.1, 0.0)
    assert [id(parameter) for parameter in group["params"]] == [id(core) for core in narrow.cores]
    assert not narrow.left.requires_grad
    assert not narrow.right.requires_grad


@pytest.mark.parametrize(
    ("lr", "outer"),
    [(0.0, 1.0), (-0.1, 1.0), (math.inf, 1.0), (math.nan, 1.0), (0.1, -1.0), (0.1, math.inf), (0.1, math.nan)],
)
def test_impossible_rates_are_refused(lr, outer):
    with pytest.raises(ValueError, match=r"lr = .*, outer = .*: take a finite lr > 0 and a finite outer >= 0"):
        networks(0)[0].parameter_groups(lr, outer)


SIGNAL = torch.from_numpy(signal_of((8, 6), 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SIGNAL, 2, 1, 0.1), r"depth = 1, scale = 0.1: take depth >= 2 and a finite scale > 0"),
        ((SIGNAL, 2, 3, 0.0), r"scale = 0.0: take depth >= 2 and a finite scale > 0"),
        ((SIGNAL, 2, 3, -1.0), r"scale = -1.0: take"),
        ((SIGNAL, 2, 3, math.inf), r"scale = inf: take"),
        ((SIGNAL, 2, 3, math.nan), r"scale = nan: take"),
        ((SIGNAL, 0, 3, 0.1), r"rank = 0 of a \(8, 6\) matrix: take 1 <= rank <= 6"),
        ((SIGNAL, 7, 3, 0.1), r"rank = 7 of a \(8, 6\) matrix: take 1 <= rank <= 6"),
        ((SIGNAL[0], 1, 3, 0.1), r"give a floating-point matrix"),
        ((0 * SIGNAL, 2, 3, 0.1), r"the signal is zero, so there is nothing to learn"),
        ((SIGNAL / 0, 2, 3, 0.1), r"NaN or infinity"),
        ((SIGNAL.half(), 2, 3, 0.1), r"a signal of torch.float16: give float32 or float64"),
        ((SIGNAL.long(), 2, 3, 0.1), r"a signal of torch.int64: give float32 or float64"),
    ],
)
def test_impossible_spectral_starts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        spectral(*arguments)


def test_a_warm_start_is_no_method_of_spectral():
    with pytest.raises(ValueError, match="method = 'warm': take 'exact' or 'randomized'"):
        spectral(SIGNAL, 2, 3, 0.1, method="warm")
