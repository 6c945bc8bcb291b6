"""Leading subspaces against numpy's SVD and scipy's angles."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from lowdim import leading_subspace, principal_angles
from sims.start import haar

seeds = st.integers(0, 2**16)


def with_spectrum(rows: int, cols: int, spectrum: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return haar(rows, len(spectrum), rng) * spectrum @ haar(cols, len(spectrum), rng).T


def sine(found: torch.Tensor, exact: np.ndarray) -> float:
    """Of the largest angle between the two spans."""
    return float(np.linalg.norm(exact - found.numpy() @ (found.numpy().T @ exact), 2))


@given(st.integers(2, 30), st.integers(2, 30), st.data(), seeds)
def test_exact_is_the_span_of_the_leading_left_singular_vectors(rows, cols, data, seed):
    size = min(rows, cols)
    rank = data.draw(st.integers(1, size))
    matrix = with_spectrum(rows, cols, np.linspace(2, 1, size), seed)
    found = leading_subspace(torch.from_numpy(matrix), rank)
    assert found.shape == (rows, rank)
    np.testing.assert_allclose(found.T @ found, np.eye(rank), atol=1e-13)
    assert sine(found, np.linalg.svd(matrix)[0][:, :rank]) < 1e-12 * size  # rounding over a gap of 1/size


@given(st.integers(2, 12), st.integers(2, 12), st.sampled_from(["exact", "randomized", "warm"]), st.data(), seeds)
def test_the_right_side_is_the_left_one_of_the_transpose(rows, cols, method, data, seed):
    matrix = torch.from_numpy(with_spectrum(rows, cols, np.geomspace(1, 0.1, min(rows, cols)), seed))
    rank = data.draw(st.integers(1, min(rows, cols)))
    start = matrix.mT[:, :rank] if method == "warm" else None
    right = leading_subspace(matrix, rank, side="right", method=method, start=start)
    left = leading_subspace(matrix.mT, rank, method=method, start=start)
    assert right.shape == (cols, rank)
    np.testing.assert_allclose((right * left).sum(0).abs(), np.ones(rank), atol=1e-9)


@given(st.integers(1, 6), st.integers(1, 3), seeds)
def test_warm_keeps_the_directions_of_its_start(rank, passes, seed):
    """Singular vectors, each with a sign of its own and in another order than by size, are a fixed point."""
    rng = np.random.default_rng(seed)
    matrix = torch.from_numpy(with_spectrum(12, 9, np.geomspace(1, 0.5, 9), seed))
    shuffled = torch.linalg.svd(matrix).U[:, rng.permutation(rank)] * torch.from_numpy(rng.choice([-1.0, 1.0], rank))
    found = leading_subspace(matrix, rank, method="warm", start=shuffled, passes=passes)
    np.testing.assert_allclose(found, shuffled, atol=1e-10)


@given(st.integers(25, 60), st.integers(25, 60), st.integers(1, 8), st.integers(1, 3), st.floats(0.1, 0.9), seeds)
def test_randomized_reaches_the_accuracy_that_its_docstring_promises(rows, cols, rank, passes, ratio, seed):
    """sin <= C (sigma_{rank+11} / sigma_rank)^(2 passes + 1), C of order the condition of a random matrix: 100."""
    spectrum = ratio ** np.arange(min(rows, cols))
    matrix = with_spectrum(rows, cols, spectrum, seed)
    exact = np.linalg.svd(matrix)[0][:, :rank]
    found = leading_subspace(torch.from_numpy(matrix), rank, method="randomized", passes=passes)
    np.testing.assert_allclose(found.T @ found, np.eye(rank), atol=1e-12)
    assert sine(found, exact) <= 100 * (spectrum[rank + 10] / spectrum[rank - 1]) ** (2 * passes + 1) + 1e-12 / (
        1 - ratio
    )


def test_randomized_needs_its_power_iterations():
    """On a slow spectrum one pass must be worse than four: the parameter does something."""
    matrix = torch.from_numpy(with_spectrum(60, 60, 0.95 ** np.arange(60), 0))
    exact = np.linalg.svd(matrix.numpy())[0][:, :5]
    errors = [sine(leading_subspace(matrix, 5, method="randomized", passes=passes), exact) for passes in (1, 4)]
    assert errors[1] < errors[0] / 5


@given(st.integers(6, 20), st.integers(6, 20), st.integers(1, 3), seeds)
def test_randomized_is_exact_on_a_matrix_of_low_rank(rows, cols, rank, seed):
    matrix = with_spectrum(rows, cols, np.linspace(2, 1, rank), seed)
    found = leading_subspace(torch.from_numpy(matrix), rank, method="randomized")
    assert sine(found, np.linalg.svd(matrix)[0][:, :rank]) < 1e-12


@given(st.integers(1, 5), seeds)
def test_warm_start_improves_by_the_gap_to_the_power_of_twice_the_passes(rank, seed):
    spectrum = np.concatenate([np.linspace(2, 1, rank), 0.3 * np.ones(20 - rank)])
    matrix = with_spectrum(20, 25, spectrum, seed)
    exact = np.linalg.svd(matrix)[0][:, :rank]
    start = exact + 1e-3 * np.random.default_rng(seed).standard_normal(exact.shape)
    before = sine(torch.linalg.qr(torch.from_numpy(start)).Q, exact)
    found = leading_subspace(torch.from_numpy(matrix), rank, method="warm", start=torch.from_numpy(start), passes=1)
    assert sine(found, exact) <= 1.1 * 0.3**2 * before
    assert sine(found, exact) > 0.001 * before  # it is an iteration, not a hidden exact SVD


def test_default_random_directions_are_the_same_in_every_process_and_leave_the_global_generator_alone():
    matrix = torch.randn(40, 30, generator=torch.Generator().manual_seed(3))
    state = torch.random.get_rng_state()
    first = leading_subspace(matrix, 4, method="randomized")
    assert torch.equal(state, torch.random.get_rng_state())
    with torch.random.fork_rng():
        torch.manual_seed(5)  # another process, or another run
        torch.testing.assert_close(first, leading_subspace(matrix, 4, method="randomized"), rtol=0, atol=0)
    other = leading_subspace(matrix, 4, method="randomized", generator=torch.Generator().manual_seed(1))
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["exact", "randomized", "warm"])
def test_basis_has_the_dtype_of_the_matrix(dtype, method):
    matrix = torch.from_numpy(with_spectrum(20, 12, np.array([3.0, 2.0]), 0)).to(dtype)
    start = matrix[:, :2] if method == "warm" else None
    found = leading_subspace(matrix, 2, method=method, start=start)
    assert found.dtype == dtype
    exact = np.linalg.svd(matrix.double().numpy())[0][:, :2]
    assert sine(found.double(), exact) < 20 * torch.finfo(dtype).eps


@given(st.integers(1, 15), st.integers(1, 6), st.integers(1, 6), seeds, st.sampled_from([1e-9, 1e-4, 1.0]))
def test_principal_angles_agree_with_scipy_for_small_and_large_angles(rows, k, m, seed, size):
    rng = np.random.default_rng(seed)
    k, m = min(k, rows), min(m, rows)
    shared = rng.standard_normal((rows, max(k, m)))
    a, b = shared[:, :k], shared[:, :m] + size * rng.standard_normal((rows, m))
    found = principal_angles(torch.from_numpy(a), torch.from_numpy(b))
    assert found.shape == (min(k, m),)
    conditioning = max(np.linalg.cond(a), np.linalg.cond(b))
    np.testing.assert_allclose(found, subspace_angles(a, b)[::-1], atol=1e-14 * conditioning)


def test_tiny_angles_keep_their_digits():
    """An arccos alone rounds every angle below 1e-8 to 0 or to 1.5e-8."""
    a = torch.eye(3, dtype=torch.float64)[:, :1]
    for angle in (1e-3, 1e-9, 1e-12):
        b = torch.tensor([[np.cos(angle)], [np.sin(angle)], [0.0]])
        assert principal_angles(a, b).item() == pytest.approx(angle, rel=1e-3)


MATRIX = torch.eye(4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, r"rank = 0 of a \(4, 3\) matrix: take 1 <= rank <= 3"),
        ({"rank": 4}, r"take 1 <= rank <= 3"),
        ({"rank": 1, "method": "fast"}, r"method = 'fast': take 'exact', 'randomized' or 'warm'"),
        ({"rank": 1, "method": "warm"}, r"method = 'warm' with start = None"),
        ({"rank": 1, "start": MATRIX[:, :1]}, r"method = 'exact' with start = given: 'warm' alone needs one"),
        ({"rank": 1, "method": "warm", "start": MATRIX[:, :1] / 0}, r"'warm' needs a finite"),
        ({"rank": 2, "method": "warm", "start": MATRIX[:, :1]}, r"'warm' needs a finite \(4, 2\), rows by rank"),
        ({"rank": 1, "method": "randomized", "passes": 0}, r"passes = 0: take at least one"),
        ({"rank": 1, "matrix": MATRIX[0]}, r"give a floating-point matrix"),
        ({"rank": 1, "matrix": MATRIX.int()}, r"torch.int32 tensor of shape \(4, 3\)"),
        ({"rank": 1, "matrix": MATRIX / 0}, r"holds NaN or infinity: find the step that made it"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    matrix = arguments.pop("matrix", MATRIX)
    with pytest.raises(ValueError, match=message):
        leading_subspace(matrix, **arguments)


@pytest.mark.parametrize(
    ("basis", "other", "message"),
    [
        (torch.eye(3), torch.eye(4), "give two with equally many rows"),
        (torch.eye(3), torch.ones(3, 4), "no more columns than rows"),
        (torch.ones(3), torch.ones(3), "give two with equally many rows"),
        (torch.eye(3), torch.eye(3).double(), "of one dtype"),
        (torch.eye(3), torch.eye(3) / 0, "finite ones of one dtype"),
    ],
)
def test_angles_need_bases_of_the_same_space(basis, other, message):
    with pytest.raises(ValueError, match=message):
        principal_angles(basis, other)


@pytest.mark.parametrize("method", ["exact", "randomized", "warm"])
def test_basis_keeps_no_bigger_storage_alive(method):
    matrix = torch.randn(60, 50, generator=torch.Generator().manual_seed(0))
    basis = leading_subspace(matrix, 3, method=method, start=matrix[:, :3] if method == "warm" else None)
    assert basis.untyped_storage().nbytes() == 60 * 3 * 4
    assert basis.is_contiguous()


def test_angles_of_half_precision_bases_are_computed_in_single():
    basis = torch.eye(4, 2).bfloat16()
    assert principal_angles(basis, basis.flip(0)).tolist() == pytest.approx([np.pi / 2] * 2)


@pytest.mark.parametrize("size", [2.0**-100, 2.0**-70, 2.0**70, 2.0**100])
@pytest.mark.parametrize("side", ["left", "right"])
def test_warm_starts_do_not_depend_on_the_size_of_the_matrix(size, side):
    """Gradients of 1e21 and 1e-21 have no squares in float32; the basis is the same to the last bit."""
    draws = torch.Generator().manual_seed(0)
    matrix, start = torch.randn(9, 9, generator=draws), torch.randn(9, 3, generator=draws)
    found = [leading_subspace(size * matrix, 3, side=side, method="warm", start=start) for size in (1.0, size)]
    assert torch.equal(*found)
