"""Gradients that become low-rank: what theory says of them, against a descent that knows no eigenvalue."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sims.dynamics import rollout
from sims.low_rank_gradients import Family, batch, descent, entangled, generic, spread_out
from sims.start import haar
from theory.low_rank_gradients import (
    course,
    curvature,
    kept,
    lemma_bound,
    sample_ranks,
    slowest,
    stable_rank,
    stable_rank_bound,
)

seeds = st.integers(0, 2**16)
shares = st.floats(0.02, 1.99)  # of 1 / lam_max: up to the largest step that converges
SLACK = 1 + 1e-7
"""Of bounds: G_t has 16 digits of G_0, and `lasting` leaves eight of its own."""


@st.composite
def families(draw, samples=(1, 4), singular=()):
    """Generic ones and a start; of the B_i (C_i) of a singular side all lack the same one or two directions."""
    shape, rng = draw(st.tuples(st.integers(2, 6), st.integers(2, 6))), np.random.default_rng(draw(seeds))
    family = generic(shape, draw(st.integers(*samples)), draw(st.floats(1.5, 50)), rng)
    sides = {"lefts": family.lefts, "rights": family.rights}
    for name in singular:
        size = sides[name].shape[1]
        frame = haar(size, size - draw(st.integers(1, size - 1)), rng)
        sides[name] = frame @ (frame.T @ sides[name] @ frame) @ frame.T
        sides[name] = (sides[name] + sides[name].mT) / 2
    return Family(family.constant, **sides), rng.standard_normal(shape)


def largest(family):
    return np.linalg.eigvalsh(curvature(family.lefts, family.rights))[-1]


def simulated(family, start, lr, steps):
    """G_0, ..., G_steps."""
    return np.array([family(weight) for weight in rollout(descent(family, lr), start, steps)])


def lasting(gradients):
    """How many of them are above 1e-8 of the first."""
    sizes = np.linalg.norm(gradients, axis=(1, 2))
    return int(np.append(np.flatnonzero(sizes < 1e-8 * sizes[0]), len(sizes))[0])


def ranks(gradients):
    """Their stable ranks, as long as they have digits."""
    return np.array([stable_rank(gradient) for gradient in gradients[: lasting(gradients)]])


@given(families(), seeds)
def test_curvature_is_the_hessian(found, seed):
    family, start = found
    moved = np.random.default_rng(seed).standard_normal(start.shape)
    pulled = family(start) - family(start + moved)
    np.testing.assert_allclose(curvature(family.lefts, family.rights) @ moved.T.ravel(), pulled.T.ravel(), atol=1e-13)


@given(families(), st.floats(0.02, 2.2), st.integers(1, 60))
def test_descent_follows_the_eigenvectors_at_any_step_even_where_it_diverges(found, share, steps):
    family, start = found
    lr = share / largest(family)
    gradients = simulated(family, start, lr, steps)
    expected = course(gradients[0], family.lefts, family.rights, lr, np.arange(steps + 1))
    scale = np.abs(gradients).max() + np.abs(start).max()
    np.testing.assert_allclose(gradients, expected, rtol=0, atol=1e-11 * scale)


@given(families(singular=("lefts",)) | families(singular=("rights",)) | families(singular=("lefts", "rights")), shares)
def test_the_part_in_the_null_space_is_kept_exactly_and_is_that_of_the_constant(found, share):
    family, start = found
    gradients = simulated(family, start, share / largest(family), 50)
    sides, size = (family.lefts, family.rights), np.abs(gradients[0]).max()
    expected = kept(gradients[0], *sides)
    assert np.linalg.norm(expected) > 1e-3 * np.linalg.norm(gradients[0])
    np.testing.assert_allclose(kept(family.constant, *sides), expected, rtol=0, atol=1e-12 * size)
    for gradient in gradients[1:]:
        np.testing.assert_allclose(kept(gradient, *sides), expected, rtol=0, atol=1e-12 * size)


@given(families(), shares)
def test_without_a_null_space_nothing_is_kept(found, share):
    family, start = found
    np.testing.assert_array_equal(kept(family(start), family.lefts, family.rights), 0 * start)


@st.composite
def batches(draw):
    """f_i of rank N' < n, positive definite B_i, and labels."""
    rows, cols = draw(st.integers(2, 6)), draw(st.integers(2, 6))
    rank, rng = draw(st.integers(1, cols - 1)), np.random.default_rng(draw(seeds))
    features = rng.standard_normal((cols, rank)) @ rng.standard_normal((rank, rank + draw(st.integers(0, 3))))
    lefts = np.array([spread_out(rows, 3.0, rng) for _ in features.T])
    return features, batch(features, lefts, rng.standard_normal((rows, features.shape[1]))), rng


@given(batches(), shares)
def test_gradients_of_samples_have_at_most_their_rank_and_no_part_in_the_null_space(found, share):
    features, family, rng = found
    start = rng.standard_normal((len(family.lefts[0]), len(features)))
    gradients = simulated(family, start, share / largest(family), 30)
    rank, missing = sample_ranks(features)
    assert rank + missing == len(features)
    size = np.abs(gradients[0]).max() + np.abs(start).max() * np.square(features).max()
    for gradient in gradients:
        np.testing.assert_allclose(kept(gradient, family.lefts, family.rights), 0 * start, rtol=0, atol=1e-11 * size)
        assert np.linalg.matrix_rank(gradient, tol=1e-10 * size) <= rank


@given(batches())
def test_a_part_of_the_constant_beside_the_samples_remains_and_bounds_the_stable_rank(found):
    """Cor. 3.4 with a G^par that is not zero: sr -> sr(A (I - F F^+)) <= n - N'."""
    features, family, rng = found
    constant = rng.standard_normal(family.constant.shape)
    beside = constant - constant @ features @ np.linalg.pinv(features)
    slow = slowest(constant, family.lefts, family.rights)
    np.testing.assert_allclose(slow.part, beside, rtol=0, atol=1e-10)
    assert slow.rate <= 1e-12
    assert slow.slant < 1e-7
    assert stable_rank(slow.part) <= sample_ranks(features)[1] * SLACK
    rates = slow.others
    assume(rates[0] > 1e-3 * rates[-1])
    end = course(constant, family.lefts, family.rights, 1 / rates[-1], np.array([40_000]))[0]
    assert stable_rank(end) == pytest.approx(stable_rank(beside), rel=1e-9)


@given(st.integers(2, 8), st.floats(0.02, 1.99), seeds)
def test_the_stable_rank_of_gradients_of_orthonormal_samples_never_falls(cols, share, seed):
    """Cor. 3.4 would have min(N', n - N') = 1 for large t; it is sr(G_0), which is N' = n - 1 here."""
    rng = np.random.default_rng(seed)
    features = haar(cols, cols - 1, rng)
    family = batch(features, np.array([np.eye(cols)] * (cols - 1)), haar(cols, cols - 1, rng))
    gradients = simulated(family, np.zeros((cols, cols)), share * (cols - 1), 4)
    np.testing.assert_allclose(ranks(gradients), cols - 1, rtol=1e-6)


@settings(max_examples=60)
@given(families(samples=(1, 1)) | families(samples=(1, 1), singular=("rights",)), shares, st.integers(1, 80))
def test_lemma_3_3_holds_for_one_sample_at_every_step_size(found, share, steps):
    family, start = found
    sides, lr = (family.lefts, family.rights), share / largest(family)
    gradients = simulated(family, start, lr, steps)
    slow = slowest(gradients[0], *sides)
    assert slow.slant < 1e-7
    assume(lr * slow.rate < 0.99)
    bound = lemma_bound(gradients[0], *sides, lr, np.arange(steps + 1))
    ours = stable_rank_bound(gradients[0], *sides, lr, np.arange(steps + 1))
    np.testing.assert_allclose(ours, np.minimum(bound, min(start.shape)), rtol=1e-5)  # the same
    found = ranks(gradients)
    assert (found <= bound[: len(found)] * SLACK).all()


@given(st.floats(0.01, 0.99), st.integers(0, 100))
def test_lemma_3_3_is_attained(lr, step):
    """B = diag(1/2, 1), C = I, G_0 = I: sr is 1 + q^2t."""
    sides = np.diag([0.5, 1.0])[None], np.eye(2)[None]
    bound = lemma_bound(np.eye(2), *sides, lr, np.array([step]))[0]
    assert bound == pytest.approx(1 + ((1 - lr) / (1 - lr / 2)) ** (2 * step), rel=1e-12)
    assert stable_rank(course(np.eye(2), *sides, lr, np.array([step]))[0]) == pytest.approx(bound, rel=1e-12)


@settings(max_examples=30)
@given(families(samples=(1, 1)))
def test_the_stable_rank_falls_to_one_for_one_sample_without_equal_eigenvalues(found):
    """Cor. 3.5: V_1 has one dimension and a product in it; after as many steps as the lemma takes."""
    family, start = found
    first, sides = family(start), (family.lefts, family.rights)
    slow = slowest(first, *sides)
    lr = 1 / slow.others[-1]
    rate = np.log((1 - lr * slow.rate) / (1 - lr * slow.others[0]))
    assume(rate > 1e-4 and np.linalg.norm(slow.part) > 1e-3 * np.linalg.norm(first))
    steps = np.array([int(20 / rate)])
    assert 1 <= stable_rank(course(first, *sides, lr, steps)[0]) <= lemma_bound(first, *sides, lr, steps)[0] < 1 + 1e-6
    assert stable_rank(first) > 1 + 1e-6


def test_the_published_rate_is_too_fast_from_a_step_of_two_over_lam_2_plus_lam_max_on():
    sides = np.diag([0.01, 0.5, 1.0])[None], np.eye(3)[None]
    for lr, holds in ((1.33, True), (1.36, False), (1.9, False)):  # 4/3; 2 is G_0's |G - G^par|_F^2
        steps = np.arange(6, 14)
        found = ranks(course(np.eye(3), *sides, lr, steps))
        rates = 1 - lr * np.array([0.01, 0.5])
        published = 1 + (rates[1] / rates[0]) ** (2 * steps) * 2
        assert (found <= published * (1 + 1e-15)).all() == holds
        assert (found <= lemma_bound(np.eye(3), *sides, lr, steps) * (1 + 1e-15)).all()


@given(st.floats(0.01, 8 / 19), st.integers(1, 30))
def test_lemma_3_3_is_false_for_four_samples_at_every_step(lr, steps):
    """sr = 1 + ((3 + 2x) / (6 - x))^2, as derived, and more than the lemma's bound while that has digits."""
    family = entangled()
    gradients, sides = simulated(family, np.zeros((2, 2)), lr, steps), (family.lefts, family.rights)
    times = np.arange(steps + 1)
    x = ((1 - 1.5 * lr) / (1 - lr / 4)) ** times
    found, bound = ranks(gradients), lemma_bound(gradients[0], *sides, lr, times)
    np.testing.assert_allclose(found, 1 + ((3 + 2 * x) / (6 - x)) ** 2, rtol=1e-9)
    assert (found > bound)[x > 1e-9].all()
    assert found[0] == pytest.approx(2)
    assert bound[0] == pytest.approx(25 / 18)
    np.testing.assert_allclose(stable_rank_bound(gradients[0], *sides, lr, times), found, rtol=1e-9)  # attained
    slow = slowest(gradients[0], *sides)
    assert slow.slant == pytest.approx(5**-0.5)
    assert stable_rank(slow.part) == pytest.approx(5 / 4)


def test_it_is_false_for_one_sample_too_if_both_sides_are_singular():
    sides, start = (np.diag([1.0, 0.0])[None], np.diag([1.0, 0.0])[None]), np.array([[-1.0, 1.0], [1.0, 1.0]])
    slow = slowest(start, *sides)
    assert slow.slant > 0.1
    assert stable_rank(start) == pytest.approx(2)
    assert lemma_bound(start, *sides, 0.1, np.array([0]))[0] < 1.6
    assert stable_rank_bound(start, *sides, 0.1, np.array([0]))[0] == 2


@settings(max_examples=60)
@given(families() | families(singular=("lefts", "rights")), shares, st.integers(1, 80))
def test_our_bound_holds_for_all_samples_sides_and_steps(found, share, steps):
    family, start = found
    sides, lr = (family.lefts, family.rights), share / largest(family)
    gradients = simulated(family, start, lr, steps)
    assume(lr * slowest(gradients[0], *sides).rate < 0.99)
    bound = stable_rank_bound(gradients[0], *sides, lr, np.arange(steps + 1))
    found = ranks(gradients)
    assert (found <= bound[: len(found)] * SLACK).all()
    assert (bound <= min(start.shape)).all()


@given(families())
def test_our_bound_ends_at_the_stable_rank_of_the_slowest_part(found):
    family, start = found
    first, sides = family(start), (family.lefts, family.rights)
    slow = slowest(first, *sides)
    lr = 1 / slow.others[-1]
    rate = np.log((1 - lr * slow.rate) / (1 - lr * slow.others[0]))
    assume(rate > 1e-5 and np.linalg.norm(slow.part) > 1e-3 * np.linalg.norm(first))
    end = stable_rank_bound(first, *sides, lr, np.array([int(40 / rate)]))[0]
    assert end == pytest.approx(stable_rank(slow.part), rel=1e-9)


def test_the_limit_is_that_of_the_slowest_direction_whatever_the_start():
    rng, family = np.random.default_rng(0), entangled()
    for start in rng.standard_normal((5, 2, 2)):
        end = course(start, family.lefts, family.rights, 0.4, np.array([200]))[0]
        assert stable_rank(end) == pytest.approx(5 / 4, rel=1e-9)


@given(st.integers(1, 6), st.integers(1, 6), seeds)
def test_stable_rank_lies_between_one_and_the_rank_and_is_that_of_flat_spectra(rows, cols, seed):
    rng = np.random.default_rng(seed)
    matrix, least = rng.standard_normal((rows, cols)), min(rows, cols)
    assert 1 <= stable_rank(matrix) <= least * SLACK
    assert stable_rank(1e-200 * matrix) == pytest.approx(stable_rank(matrix))
    assert stable_rank(haar(rows, cols, rng)) == pytest.approx(least)


ONE, UP = np.eye(2)[None], np.array([[[1.0, 1.0], [0.0, 1.0]]])
STEPS = np.arange(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stable_rank(np.zeros((2, 2))), "zero or not finite"),
        (lambda: stable_rank(np.full((2, 2), np.nan)), "zero or not finite"),
        (lambda: curvature(UP, ONE), "B_i: .*give symmetric positive semidefinite"),
        (lambda: curvature(ONE, -ONE), "C_i: least eigenvalue -1"),
        (lambda: course(np.eye(2), ONE, ONE, 0.1, -STEPS), "take steps >= 0"),
        (lambda: slowest(np.zeros((2, 2)), ONE, ONE), "start = 0"),
        (lambda: lemma_bound(np.eye(2), ONE, ONE, 1.0, STEPS), "take 0 < lr < 1 / 1"),
        (lambda: stable_rank_bound(np.eye(2), ONE, ONE, 0.0, STEPS), "lr = 0.0"),
        (lambda: spread_out(2, 0.5, np.random.default_rng(0)), "condition >= 1"),
    ],
)
def test_what_is_out_of_range_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
