"""compress: the narrow network trains like the wide one, for every shape, and refuses what it cannot compress."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import null_space

from lowdim import Narrow, compress, principal_angles
from lowdim.narrow import invariant_spaces
from sims.dynamics import gradient_descent, gradients, product, rollout
from sims.losses import Factorization
from sims.start import orthogonal, problem_start, problem_target, to_torch
from tests.strategies import problems
from theory.invariants import invariant_bases

seeds = st.integers(0, 2**16)


def semi_orthogonal(dims: tuple[int, ...], rank: int, seed: int = 0) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    rng = np.random.default_rng(seed)
    scales = tuple(0.3 + 0.2 * layer for layer in range(len(dims) - 1))
    signal = rng.standard_normal((dims[-1], rank)) @ rng.standard_normal((rank, dims[0]))
    return orthogonal(dims, scales, rng), signal / np.linalg.norm(signal, 2)


@given(problems())
def test_cores_live_on_the_theorems_active_subspaces(p):
    target = problem_target(p)
    bases = invariant_bases(problem_start(p), target, p.rank)
    narrow = compress(to_torch(*problem_start(p)), torch.from_numpy(target), p.rank)
    for found, basis in ((narrow.right, bases[0]), (narrow.left, bases[-1])):
        active = torch.from_numpy(np.ascontiguousarray(basis[:, : 2 * p.rank]))
        assert found.shape == active.shape
        assert (
            principal_angles(found, active).max() < 1e-7
        )  # the span's conditioning: draws are generic, not orthogonal
    for eps, core in zip(p.eps, narrow.cores, strict=True):
        np.testing.assert_allclose(core.T @ core, eps**2 * np.eye(2 * p.rank), atol=1e-12)


SHAPES = [  # layer dimensions, and those of the invariant subspaces for a signal of rank 4
    ((60, 60, 60, 60), (8, 8, 8, 8)),
    ((60, 60, 60, 20), (12, 12, 12, 8)),
    ((60, 60, 60, 4), (8, 8, 8, 4)),
    ((20, 60, 60, 60), (8, 12, 12, 12)),
    ((60, 30, 30, 60), (12, 8, 8, 12)),
    ((20, 60, 60, 20), (20, 40, 40, 20)),
    ((90, 60, 60, 60), (12, 8, 8, 8)),
    ((60, 60, 60), (8, 8, 8)),
    ((60, 80, 60, 60), (28, 48, 28, 28)),
]


@pytest.mark.parametrize(("dims", "expected"), SHAPES)
def test_dimensions_of_the_invariant_subspaces(dims, expected):
    weights, signal = semi_orthogonal(dims, 4)
    narrow = compress(to_torch(*weights), torch.from_numpy(signal), 4)
    assert (narrow.right.shape[1], *(len(core) for core in narrow.cores)) == expected


@pytest.mark.parametrize(("dims", "expected"), SHAPES)
def test_narrow_run_is_the_wide_run_seen_from_inside_for_every_shape(dims, expected):
    """E - E_C never changes inside the subspaces; outside them no gradient ever enters (measured: 1e-15)."""
    weights, signal = semi_orthogonal(dims, 4)
    narrow = compress(to_torch(*weights), torch.from_numpy(signal), 4)
    left, right = narrow.left.numpy(), narrow.right.numpy()
    wide = rollout(gradient_descent(Factorization(signal), 0.2, 0.1), weights, 40)
    cores = tuple(core.numpy() for core in narrow.cores)
    small = rollout(gradient_descent(Factorization(left.T @ signal @ right), 0.2, 0.1), cores, 40)
    for full, core in zip(wide, small, strict=True):
        np.testing.assert_allclose(left.T @ product(full) @ right, product(core), atol=1e-13)
        np.testing.assert_allclose(
            left @ (left.T @ product(full)) @ right @ right.T, left @ product(core) @ right.T, atol=1e-13
        )


@given(st.lists(st.integers(6, 12), min_size=3, max_size=5).map(tuple), st.integers(1, 2), seeds)
def test_subspaces_are_invariant_under_every_layer_and_its_transpose(dims, rank, seed):
    weights, signal = semi_orthogonal(dims, rank, seed)
    u, _, v = np.linalg.svd(signal)
    spaces = invariant_spaces(to_torch(*weights), *to_torch(v[:rank].T, u[:, :rank]))
    for weight, (before, after) in zip(to_torch(*weights), pairwise(spaces), strict=True):
        for space, image in ((after, weight @ before), (before, weight.mT @ after)):
            np.testing.assert_allclose(space.T @ space, np.eye(space.shape[1]), atol=1e-12)
            np.testing.assert_allclose(space @ (space.T @ image), image, atol=1e-6)  # what counts as new: sqrt(eps)


@given(problems())
def test_one_qr_gives_what_intersecting_null_spaces_gives(p):
    """The authors' construction as an oracle: the complement of ker(V_r^T) and ker(U_r^T W_1), both from grad_1."""
    start, loss = problem_start(p), Factorization(problem_target(p))
    left, _, right = np.linalg.svd(gradients(Factorization(problem_target(p)), start)[0])
    idle = null_space(np.vstack([right[: p.rank], left[:, : p.rank].T @ start[0]]))
    signal = -loss.gradient(product(start))
    narrow = compress(to_torch(*start), torch.from_numpy(signal), p.rank)
    assert idle.shape[1] == p.idle
    np.testing.assert_allclose(idle.T @ narrow.right.numpy(), 0, atol=1e-7)


def test_where_the_start_lines_up_with_the_target_the_target_is_the_signal_to_give():
    """What the docstring warns of: from 0.9 I, the gradient of a symmetric target leads with other directions."""
    start = (0.9 * torch.eye(20, dtype=torch.float64),) * 3
    target = torch.diag(torch.tensor([0.0] * 18 + [0.8, 1.0], dtype=torch.float64))
    spans = [compress(start, signal, 2).right for signal in (target, target - from_torch_product(start))]
    angles = [principal_angles(span, target[:, 18:]).max() for span in spans]
    assert angles[0] < 1e-12
    assert angles[1] > 1


def test_first_gradient_and_target_give_the_same_subspaces_from_a_generic_start():
    """G = E(0) - Phi has full rank, but its leading singular vectors span the same closure (the authors' route)."""
    weights, target = semi_orthogonal((40,) * 4, 3)
    torch_weights, signal = to_torch(*weights), torch.from_numpy(target)
    from_target = compress(torch_weights, signal, 3)
    from_gradient = compress(torch_weights, signal - from_torch_product(torch_weights), 3)
    assert principal_angles(from_target.right, from_gradient.right).max() < 1e-10
    assert principal_angles(from_target.left, from_gradient.left).max() < 1e-10


def from_torch_product(weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.linalg.multi_dot(tuple(reversed(weights)))


def test_randomized_compression_agrees_with_the_exact_one():
    weights, signal = semi_orthogonal((40,) * 4, 3)
    exact, fast = (compress(to_torch(*weights), torch.from_numpy(signal), 3, method=m) for m in ("exact", "randomized"))
    assert principal_angles(exact.right, fast.right).max() < 1e-10


def test_narrow_keeps_its_factors_and_densifies_on_request():
    generator = torch.Generator().manual_seed(0)
    left, core, right = (torch.randn(*shape, generator=generator) for shape in ((5, 2), (2, 3), (4, 3)))
    narrow, inputs = Narrow(left, (core,), right), torch.randn(7, 4, generator=generator)
    torch.testing.assert_close(narrow.product(), left @ core @ right.T)
    torch.testing.assert_close(narrow(inputs), inputs @ narrow.product().T)
    assert [tuple(factor.shape) for factor in narrow.factors] == [(3, 4), (2, 3), (5, 2)]


def test_cores_train_with_autograd_and_carry_no_graph_of_the_wide_network():
    weights, signal = semi_orthogonal((30,) * 4, 2)
    wide = tuple(torch.nn.Parameter(weight) for weight in to_torch(*weights))
    narrow = compress(wide, torch.from_numpy(signal), 2)
    cores = [core.requires_grad_() for core in narrow.cores]
    assert all(core.is_leaf for core in cores)
    optimizer = torch.optim.SGD(cores, lr=0.2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = 0.5 * (narrow.product() - torch.from_numpy(signal)).square().sum()
        loss.backward()
        optimizer.step()
    assert loss < 1e-3


def test_a_wide_step_in_torch_optim_is_our_step():
    """The gradient descent that the theorem is about is the one that engineers run."""
    weights, signal = semi_orthogonal((20,) * 4, 2)
    leaves = [weight.requires_grad_() for weight in to_torch(*weights)]
    optimizer = torch.optim.SGD(leaves, lr=0.1, weight_decay=0.05)
    (0.5 * (from_torch_product(tuple(leaves)) - torch.from_numpy(signal)).square().sum()).backward()
    optimizer.step()
    for ours, theirs in zip(gradient_descent(Factorization(signal), 0.1, 0.05)(weights), leaves, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-14)


WEIGHTS = to_torch(*orthogonal((8,) * 4, (0.1,) * 3, np.random.default_rng(0)))
SIGNAL = torch.ones(8, 8, dtype=torch.float64)
GAUSSIAN = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 8)))


@pytest.mark.parametrize(
    ("weights", "signal", "rank", "message"),
    [
        (WEIGHTS, SIGNAL, 4, r"rank = 4: 2 rank = 8 .* narrowest hidden layer, 8; take rank <= 3"),
        (WEIGHTS, SIGNAL, 0, r"rank = 0 of a \(8, 8\) matrix"),
        (WEIGHTS[:1], SIGNAL, 1, r"shapes \[\(8, 8\)\]: give at least two matrices"),
        ((WEIGHTS[0][0], *WEIGHTS[1:]), SIGNAL, 1, r"give at least two matrices"),
        ((WEIGHTS[0][:5], *WEIGHTS[1:]), SIGNAL, 1, r"do not chain: W_l must be \(d_l, d_\{l-1\}\), W_1 first"),
        (WEIGHTS, SIGNAL[:5], 1, r"signal of shape \(5, 8\): the product is \(8, 8\)"),
        (WEIGHTS, SIGNAL.float(), 1, r"one device and one dtype, float32 or float64"),
        (tuple(w.half() for w in WEIGHTS), SIGNAL.half(), 1, r"float32 or float64; convert them first"),
        (tuple(w.long() for w in WEIGHTS), SIGNAL.long(), 1, r"float32 or float64; convert them first"),
        (WEIGHTS, 0 * SIGNAL, 1, r"the signal is zero"),
        (WEIGHTS, SIGNAL / 0, 1, r"NaN or infinity"),
        ((WEIGHTS[0], GAUSSIAN, WEIGHTS[2]), SIGNAL, 1, r"layer 2 is not .* start it with torch.nn.init.orthogonal_"),
        ((WEIGHTS[0], 0 * GAUSSIAN, WEIGHTS[2]), SIGNAL, 1, r"layer 2 is not"),
        ((WEIGHTS[0], GAUSSIAN / 0, WEIGHTS[2]), SIGNAL, 1, r"layer 2 is not"),
    ],
)
def test_impossible_compressions_are_refused(weights, signal, rank, message):
    with pytest.raises(ValueError, match=message):
        compress(weights, signal, rank)


def test_a_warm_start_is_for_subspaces_that_move_not_for_compression():
    with pytest.raises(ValueError, match="method = 'warm': take 'exact' or 'randomized'"):
        compress(WEIGHTS, SIGNAL, 1, method="warm")


@pytest.mark.parametrize("width", [8, 300, 2000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_row_that_is_one_percent_off_is_refused_up_to_width_2000(width, dtype):
    weights, signal = semi_orthogonal((width,) * 4, 1)
    weights[1][0] *= 1.01
    with pytest.raises(ValueError, match="layer 2 is not a multiple"):
        compress(tuple(w.to(dtype) for w in to_torch(*weights)), torch.from_numpy(signal).to(dtype), 1)


def test_layers_drawn_in_single_precision_compress_as_they_are_and_cast_to_double():
    """What torch.nn.init.orthogonal_ gives, with its rounding of 1e-7, which must not count as new directions."""
    generator = torch.Generator().manual_seed(0)
    single = tuple(0.1 * torch.nn.init.orthogonal_(torch.empty(200, 200), generator=generator) for _ in range(3))
    signal = torch.randn(200, 3, generator=generator) @ torch.randn(3, 200, generator=generator)
    for weights, target in ((single, signal), (tuple(w.double() for w in single), signal.double())):
        assert [tuple(core.shape) for core in compress(weights, target, 3).cores] == [(6, 6)] * 3


@given(st.floats(1e-9, 3e-6), st.integers(0, 20), st.sampled_from([torch.float32, torch.float64]))
def test_subspaces_stop_growing_for_layers_that_are_almost_orthogonal(noise, seed, dtype):
    """A start that is neither exact nor far off once made the sweeps go on for ever."""
    weights, signal = semi_orthogonal((12,) * 4, 2, seed)
    rng = np.random.default_rng(seed)
    noisy = [torch.from_numpy(w + noise * rng.standard_normal(w.shape)).to(dtype) for w in weights]
    narrow = compress(tuple(noisy), torch.from_numpy(signal).to(dtype), 2)
    for factor in (narrow.left, narrow.right):
        np.testing.assert_allclose(factor.T @ factor, np.eye(factor.shape[1]), atol=100 * torch.finfo(dtype).eps)


def test_a_signal_that_would_fill_wide_layers_is_refused():
    weights, signal = semi_orthogonal((10, 20, 20, 10), 3)
    with pytest.raises(
        ValueError, match=r"fill the hidden layers of widths \[20, 20\], so nothing would become narrower"
    ):
        compress(to_torch(*weights), torch.from_numpy(signal), 3)
