"""compress_haar: the compression of random orthogonal layers that nobody had to draw."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from lowdim import Narrow, compress, principal_angles
from lowdim import haar as module
from lowdim.haar import compress_haar
from sims.start import haar
from theory.invariants import rho
from theory.problem import Problem

LR = 0.3


def low_rank(rows: int, cols: int, rank: int, rng: np.random.Generator) -> np.ndarray:
    """Singular values from 1 down to 0.5."""
    return haar(rows, rank, rng) * np.linspace(1, 0.5, rank) @ haar(cols, rank, rng).T


def complement(frame: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """The frame and `count` more orthonormal columns, uniform beside it."""
    beside = rng.standard_normal((len(frame), count))
    beside -= frame @ (frame.T @ beside)
    return np.hstack([frame, np.linalg.qr(beside)[0]])


def widened(narrow: Narrow, scale: float, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Semi-orthogonal layers, hidden width min(d_0, d_L), whose compression this narrow network is."""
    width, kept = min(len(narrow.left), len(narrow.right)), narrow.left.shape[1]
    ends = [complement(end.numpy(), width - kept, rng) for end in (narrow.right, narrow.left)]
    hidden = [haar(width, width, rng) for _ in narrow.cores[1:]]
    return tuple(torch.from_numpy(scale * b @ a.T) for a, b in pairwise([ends[0], *hidden, ends[1]]))


def descend(factors: tuple[torch.Tensor, ...], loss, steps: int, keep: tuple[torch.Tensor, ...] = ()) -> list:
    """The products along torch.optim.SGD on all factors (below `keep` = left, right, if they are given)."""
    leaves = [factor.clone().requires_grad_() for factor in factors]
    optimizer, products = torch.optim.SGD(leaves, lr=LR), []
    for _ in range(steps + 1):
        product = torch.linalg.multi_dot(leaves[::-1])
        product = keep[0] @ product @ keep[1].mT if keep else product
        products.append(product.detach())
        optimizer.zero_grad()
        loss(product).backward()
        optimizer.step()
    return products


def regression(frozen: np.ndarray, target: np.ndarray, inputs: np.ndarray):
    """1/2 |(W_0 + E) X - (W_0 + Phi) X|^2, through the outputs, as a layer's loss is."""
    frozen, target, inputs = (torch.from_numpy(array) for array in (frozen, target, inputs))
    return lambda product: 0.5 * ((frozen + product) @ inputs - (frozen + target) @ inputs).square().sum()


def first_gradient(loss, shape: tuple[int, int]) -> torch.Tensor:
    product = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(loss(product), product)[0]


shapes = st.tuples(st.integers(5, 12), st.integers(5, 12))
starts = st.sampled_from([(2, 1e-6, 250), (2, 0.1, 100), (3, 0.03, 500), (4, 0.15, 400), (5, 0.3, 300)])


@settings(max_examples=15)
@given(shapes, st.integers(1, 2), starts, st.integers(0, 2**16))
def test_narrow_run_is_the_wide_run_of_a_layer_with_white_inputs_but_for_the_idle_block(shape, rank, start, seed):
    """|E_wide - E_narrow|_F = sqrt(min(m, n) - 2 rank) rho(t)^L, square or not: nothing else separates them."""
    rng, (depth, scale, steps) = np.random.default_rng(seed), start
    white = haar(shape[1], 2 * shape[1], rng)  # X X^T = I
    loss = regression(rng.standard_normal(shape), low_rank(*shape, rank, rng), white)
    signal = -first_gradient(loss, shape)
    narrow = compress_haar(signal, rank, depth, scale, generator=torch.Generator().manual_seed(seed))
    wide = widened(narrow, scale, rng)
    runs = descend(wide, loss, steps), descend(narrow.cores, loss, steps, (narrow.left, narrow.right))
    idle = min(shape) - 2 * rank
    decay = rho(Problem(min(shape), (1.0,) * rank, depth, (scale,) * depth, LR), steps)[:, 0]
    for whole, small, size in zip(*runs, decay, strict=True):
        assert float(torch.linalg.norm(whole - small)) == pytest.approx(idle**0.5 * size**depth, abs=1e-10)
    assert float(torch.linalg.norm(runs[1][-1] - signal)) < 0.1 * float(torch.linalg.norm(signal))  # it has learned


@given(shapes, st.integers(1, 2), st.sampled_from(["exact", "randomized"]), st.integers(0, 2**16))
def test_compress_finds_the_same_subspaces_in_the_widened_draw(shape, rank, method, seed):
    rng = np.random.default_rng(seed)
    signal = torch.from_numpy(low_rank(*shape, rank, rng))
    drawn = compress_haar(signal, rank, 3, 0.2, generator=torch.Generator().manual_seed(seed), method=method)
    found = compress(widened(drawn, 0.2, rng), signal, rank)
    for ours, theirs in ((drawn.left, found.left), (drawn.right, found.right)):
        assert ours.shape == theirs.shape == (len(ours), 2 * rank)
        assert principal_angles(ours, theirs).max() < 1e-6
    np.testing.assert_allclose(drawn.product(), found.product(), atol=1e-9)


def wide_draw(signal: torch.Tensor, rank: int, rng: np.random.Generator) -> Narrow:
    """Layers drawn wide: Haar if square, else uniform among those whose long side's null space misses the signal."""
    u, _, v = np.linalg.svd(signal.numpy())
    rows, cols = signal.shape
    if rows == cols:
        first = haar(rows, rows, rng)
    elif cols > rows:
        first = haar(rows, rows, rng) @ complement(v[:rank].T, rows - rank, rng).T
    else:
        first = (haar(cols, cols, rng) @ complement(u[:, :rank], cols - rank, rng).T).T
    others = [haar(min(rows, cols), min(rows, cols), rng)]
    layers = [*others, first] if rows > cols else [first, *others]
    return compress(tuple(torch.from_numpy(layer) for layer in layers), signal, rank)


@pytest.mark.parametrize("shape", [(6, 6), (6, 20), (20, 6)])
def test_the_law_is_that_of_compressing_layers_that_are_drawn_wide(shape):
    """Entries of the product at the start, seen from fixed and from singular directions (Kolmogorov-Smirnov)."""
    rng, draws, rank = np.random.default_rng(5), torch.Generator().manual_seed(6), 2
    signal = torch.from_numpy(low_rank(*shape, rank, rng))
    left, _, right = torch.linalg.svd(signal, full_matrices=False)

    def seen(narrow: Narrow) -> list[float]:
        product = narrow.product()
        ends = left[:, 0], right[0]
        return [
            float(value)
            for value in (
                product[0, 0],
                ends[0] @ product @ ends[1],
                ends[0] @ product[:, 0],
                product[0] @ ends[1],
                left[:, 1] @ product @ right[0],
                (ends[0] @ product).norm(),
                (product @ ends[1]).norm(),
                product[:, 0].norm(),
                product[0].norm(),
            )
        ]

    ours = [seen(compress_haar(signal, rank, 2, 1.0, generator=draws)) for _ in range(600)]
    theirs = [seen(wide_draw(signal, rank, rng)) for _ in range(600)]
    for mine, other in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        if np.ptp(mine + other) > 1e-9:  # the norms are 1 where the direction cannot leave the subspace
            assert ks_2samp(mine, other).pvalue > 1e-3


def gap(target: np.ndarray, inputs: np.ndarray, rank: int, depth: int, scale: float, steps: int) -> float:
    """max_t |E_wide - E_narrow|_F."""
    rng = np.random.default_rng(0)
    loss = regression(np.zeros_like(target), target, inputs)
    signal = -first_gradient(loss, target.shape)
    narrow = compress_haar(signal, rank, depth, scale, generator=torch.Generator().manual_seed(0))
    wide = descend(widened(narrow, scale, rng), loss, steps)
    small = descend(narrow.cores, loss, steps, (narrow.left, narrow.right))
    return max(float(torch.linalg.norm(a - b)) for a, b in zip(wide, small, strict=True))


@pytest.mark.parametrize("size", [1e-3, 1e-2, 1e-1])
def test_a_tail_beyond_the_rank_costs_less_than_its_own_norm_until_it_escapes(size):
    """|E_wide - E_narrow| < |tail| + idle: what holds for gradients not of low rank (measured: 0.03 to 0.1)."""
    rng, depth, scale, steps = np.random.default_rng(1), 3, 0.03, 300
    target = low_rank(10, 10, 2, rng)
    u, _, v = np.linalg.svd(target)
    tail = size * u[:, 2:] @ v[2:]
    cost = gap(target + tail, np.eye(10), 2, depth, scale, steps) - 6**0.5 * scale**depth
    assert 1e-3 * np.linalg.norm(tail) < cost < 0.2 * np.linalg.norm(tail)


def test_correlated_inputs_make_the_narrow_run_an_approximation():
    """dloss/dE = (E - Phi) X X^T leaves the subspaces unless X X^T keeps them: then left and right must train too."""
    rng = np.random.default_rng(2)
    target = low_rank(10, 10, 2, rng)
    slanted = haar(10, 10, rng) * np.linspace(0.5, 1.3, 10)
    assert gap(target, np.eye(10), 2, 3, 0.03, 300) < 1e-4  # the idle block
    assert 1e-2 < gap(target, slanted, 2, 3, 0.03, 300) < 1


@pytest.mark.parametrize("flipped", [[0], [1], [0, 1]])
def test_the_signs_that_a_library_gives_singular_vectors_do_not_matter(monkeypatch, flipped):
    """LAPACK's and a GPU's differ."""

    def drawn() -> Narrow:
        return compress_haar(SIGNAL, 2, 3, 0.1, generator=torch.Generator().manual_seed(3))

    def others(*arguments):
        pairs = [vectors.clone() for vectors in honest(*arguments)]
        for vectors in pairs:
            vectors[:, flipped] *= -1
        return pairs

    expected, honest = drawn(), module.leading_pairs
    monkeypatch.setattr(module, "leading_pairs", others)
    assert torch.equal(drawn().left, expected.left)
    assert torch.equal(drawn().right, expected.right)


def test_draws_follow_the_generator_and_nothing_else():
    signal = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    one, same, other = (
        compress_haar(signal, 2, 3, 0.1, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one.left, same.left)
    assert not torch.allclose(one.left, other.left)
    for core in one.cores:
        torch.testing.assert_close(core, 0.1 * torch.eye(4))
    for end in (one.left, one.right):
        torch.testing.assert_close(end.mT @ end, torch.eye(4), atol=1e-6, rtol=0)
    assert len({core.data_ptr() for core in one.cores}) == 3  # each trains on its own


SIGNAL = torch.ones(6, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 4}, r"rank = 4: 2 rank = 8 directions do not fit into a \(6, 9\) signal; take 1 <= rank <= 3"),
        ({"rank": 0}, "take 1 <= rank <= 3"),
        ({"depth": 1}, "depth = 1, scale = 0.1: take depth >= 2"),
        ({"scale": 0.0}, "scale = 0.0: take depth >= 2 and a finite scale > 0"),
        ({"signal": 0 * SIGNAL}, "the signal is zero"),
        ({"signal": SIGNAL / 0}, "NaN or infinity"),
        ({"signal": SIGNAL.half()}, "give float32 or float64"),
        ({"method": "warm"}, "take 'exact' or 'randomized'"),
    ],
)
def test_impossible_draws_are_refused(changes, message):
    arguments = {"signal": SIGNAL, "rank": 2, "depth": 3, "scale": 0.1, "generator": torch.Generator()}
    with pytest.raises(ValueError, match=message):
        compress_haar(**(arguments | changes))
