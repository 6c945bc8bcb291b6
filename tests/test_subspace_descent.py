"""Descent on projected gradients: rates inside the subspace, what stays outside, and what refreshing promises."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sims.dynamics import rollout
from sims.low_rank_gradients import batch, generic, inside, leading, projected
from sims.start import haar
from theory.low_rank_gradients import curvature, kept
from theory.subspace_descent import (
    contraction,
    excess,
    kappa,
    refresh_contraction,
    stays,
    subspace_course,
    variation,
)

seeds = st.integers(0, 2**16)
sides = st.sampled_from(["left", "right", "both"])


@st.composite
def problems(draw, samples=(1, 4), most=50.0):
    """A family, a start and a rank below both sizes."""
    shape, rng = draw(st.tuples(st.integers(2, 6), st.integers(2, 6))), np.random.default_rng(draw(seeds))
    family = generic(shape, draw(st.integers(*samples)), draw(st.floats(1.5, most)), rng)
    return family, rng.standard_normal(shape), draw(st.integers(1, min(shape) - 1))


def spectrum(lefts, rights):
    return np.linalg.eigvalsh(curvature(lefts, rights))


def seen(family, left, right):
    """B^_i and C^_i."""
    found = (frame.T @ side @ frame for side, frame in ((family.lefts, left), (family.rights, right)))
    return tuple((side + side.mT) / 2 for side in found)


def never_refreshed(family, start, rank, side, share, steps):
    """The states, P, Q and eta, which is a share of 1 / lam_max(S^)."""
    first = projected(family, 0.0, rank, 1, refresh="never", side=side)(inside(start))  # only finds the frames
    lr = share / spectrum(*seen(family, first.left, first.right))[-1]
    states = [*rollout(projected(family, lr, rank, 1, refresh="never", side=side), inside(start), steps)]
    return [family(state.weight) for state in states], first.left, first.right, lr


def inner(gradients, left, right):
    return np.linalg.norm(left.T @ np.array(gradients) @ right, axis=(1, 2))


@settings(max_examples=60)
@given(problems(), sides, st.floats(0.02, 2.2), st.integers(1, 60))
def test_the_whole_gradient_is_predicted_under_fixed_subspaces(found, side, share, steps):
    """Up to eta = 2.2 / lam_max(S^), where it diverges."""
    family, start, rank = found
    gradients, left, right, lr = never_refreshed(family, start, rank, side, share, steps)
    expected = subspace_course(gradients[0], family.lefts, family.rights, left, right, lr, np.arange(steps + 1))
    scale = np.abs(gradients).max() + np.abs(start).max()
    np.testing.assert_allclose(gradients, expected, rtol=0, atol=1e-10 * scale)


@settings(max_examples=60)
@given(problems(), sides, st.floats(0.02, 1.99), st.integers(1, 60))
def test_the_projected_gradient_never_shrinks_less_than_theorem_3_8_says(found, side, share, steps):
    family, start, rank = found
    gradients, left, right, lr = never_refreshed(family, start, rank, side, share, steps)
    sizes, rates = inner(gradients, left, right), spectrum(*seen(family, left, right))
    least = kappa(family.lefts, family.rights, left, right)
    assert 0 < least <= rates[0] * (1 + 1e-12)
    bounds = [contraction(value, rates[-1], lr) for value in (least, rates[0])]
    assert bounds[1] <= bounds[0] * (1 + 1e-12)
    assert (sizes[1:] <= bounds[1] * sizes[:-1] * (1 + 1e-9) + 1e-13 * sizes[0]).all()


@settings(max_examples=20)
@given(problems(samples=(1, 1), most=5.0), sides, st.floats(0.2, 1.0))
def test_one_sample_attains_its_rate(found, side, share):
    """kappa = lam_min(S^), whose mode is all that is left after enough steps."""
    family, start, rank = found
    gradients, left, right, lr = never_refreshed(family, start, rank, side, share, 250)
    sizes, rates = inner(gradients, left, right), spectrum(*seen(family, left, right))
    least = kappa(family.lefts, family.rights, left, right)
    assert least == pytest.approx(rates[0], rel=1e-10)
    weight = np.linalg.norm(kept_share(family, gradients[0], left, right))
    assume(weight > 1e-3)
    last = np.flatnonzero(sizes > 1e-6 * sizes[0])[-1]
    second = 1 - lr * rates[1] if len(rates) > 1 else 0.0
    bound = contraction(least, rates[-1], lr)
    assume(last > 2 and abs(second / bound) ** last < 1e-3 * weight)
    assert sizes[last] / sizes[last - 1] == pytest.approx(bound, rel=1e-5)


def kept_share(family, gradient, left, right):
    """The share of R_0 in the slowest mode of S^."""
    _, vectors = np.linalg.eigh(curvature(*seen(family, left, right)))
    first = (left.T @ gradient @ right).T.ravel()
    return vectors[:, :1].T @ first / np.linalg.norm(first)


def test_the_published_factor_is_too_small_from_a_step_of_two_over_kappa_plus_lam_max_on():
    """B = diag(1/5, 1): |R| falls by 1 - eta kappa for eta = 5/3 and by eta - 1 = .9 > .62 for eta = 1.9."""
    left, right = np.diag([0.2, 1.0])[None], np.eye(1)[None]
    for lr, holds in ((5 / 3, True), (1.7, False), (1.9, False)):
        course = subspace_course(np.ones((2, 1)), left, right, np.eye(2), np.eye(1), lr, np.array([50, 51]))
        sizes = np.linalg.norm(course, axis=(1, 2))
        assert (sizes[1] <= (1 - 0.2 * lr) * sizes[0] * (1 + 1e-6)) == holds
        assert sizes[1] / sizes[0] == pytest.approx(contraction(0.2, 1.0, lr), rel=1e-3)


@settings(max_examples=20)
@given(problems(most=3.0), sides)
def test_convergence_is_inside_the_subspace_only(found, side):
    """R -> 0, while G -> `stays`, of which P and Q see nothing."""
    family, start, rank = found
    gradients, left, right, _ = never_refreshed(family, start, rank, side, 1.0, 400)
    expected = stays(gradients[0], family.lefts, family.rights, left, right)
    size = np.linalg.norm(gradients[0])
    assert inner(gradients, left, right)[-1] < 1e-9 * size
    np.testing.assert_allclose(gradients[-1], expected, rtol=0, atol=1e-9 * size)
    assert np.linalg.norm(expected) > 1e-3 * size
    assert np.abs(left.T @ expected @ right).max() < 1e-12 * size


@given(problems(samples=(1, 1)), seeds)
def test_what_stays_of_one_sample_is_an_oblique_projection_in_closed_form(found, seed):
    family, start, rank = found
    rng, (b,), (c,) = np.random.default_rng(seed), family.lefts, family.rights
    left, right = haar(len(b), rank, rng), haar(len(c), rank, rng)
    first = family(start)
    ends = b @ left @ np.linalg.inv(left.T @ b @ left), np.linalg.inv(right.T @ c @ right) @ right.T @ c
    expected = first - ends[0] @ left.T @ first @ right @ ends[1]
    found = stays(first, family.lefts, family.rights, left, right)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    twice = stays(found, family.lefts, family.rights, left, right)
    np.testing.assert_allclose(twice, found, rtol=0, atol=1e-10 * np.abs(found).max())


def test_the_gradient_that_stays_can_be_longer_than_the_first():
    """G_0 = P: it is all inside, and the least loss there has a gradient tan(angle between P and B P) as long."""
    b, left = np.array([[1.0, 5.0], [5.0, 26.0]]), np.array([[1.0], [0.0]])
    found = stays(left, b[None], np.eye(1)[None], left, np.eye(1))
    np.testing.assert_allclose(found, [[0.0], [-5.0]], atol=1e-14)


@settings(max_examples=40)
@given(problems(), sides, st.floats(0.05, 1.9), st.integers(1, 50))
def test_the_loss_falls_by_what_it_is_above_the_least_in_the_subspace(found, side, share, steps):
    """However the gradient grows; the loss is evaluated at the weights, as a function."""
    family, start, rank = found
    gradients, left, right, lr = never_refreshed(family, start, rank, side, share, steps)
    *_, end = rollout(projected(family, lr, rank, 1, refresh="never", side=side), inside(start), steps)

    def loss(weight):
        return (np.sum(weight * (family.constant - family(weight))) / 2) - np.sum(family.constant * weight)

    whole = [excess(gradient, family.lefts, family.rights) for gradient in (gradients[0], gradients[-1])]
    within = [excess(left.T @ g @ right, *seen(family, left, right)) for g in (gradients[0], gradients[-1])]
    fallen, scale = loss(start) - loss(end.weight), abs(loss(start)) + whole[0]
    assert whole[0] - whole[1] == pytest.approx(fallen, abs=1e-10 * scale)
    assert within[0] - within[1] == pytest.approx(fallen, abs=1e-10 * scale)
    assert fallen > 0
    left_over = excess(stays(gradients[0], family.lefts, family.rights, left, right), family.lefts, family.rights)
    assert whole[0] - within[0] == pytest.approx(left_over, abs=1e-9 * scale)


class Wandering:
    """G(W) = A(W) - mean_i B_i(W) W C_i(W), B_i = B + u K_i sin<E_i, W>, C_i alike, A(W) = A + v sin W."""

    def __init__(self, shape, samples, rng, strength):
        self.fixed = generic(shape, samples, 3.0, rng)
        lefts, rights = ([haar(size, size, rng) for _ in range(samples)] for size in shape)
        self.turned = [strength * (k + k.T) / 4 for k in lefts], [strength * (k + k.T) / 4 for k in rights]
        self.phases = [haar(*shape, rng) / math.sqrt(min(shape)) for _ in range(samples)]  # |E_i|_F = 1
        self.strength = strength

    def at(self, weight):
        """A, B_i and C_i."""
        waves = [np.sin(np.sum(phase * weight)) for phase in self.phases]
        lefts, rights = (np.array([wave * k for wave, k in zip(waves, ks, strict=True)]) for ks in self.turned)
        constant = self.fixed.constant + self.strength * np.sin(weight)
        return constant, self.fixed.lefts + lefts, self.fixed.rights + rights

    def __call__(self, weight):
        constant, lefts, rights = self.at(weight)
        return constant - np.mean(lefts @ weight @ rights, axis=0)

    def variation(self, radius):
        """L_A = strength, |sin'| <= 1; L_B = L_C = max |K_i|_2, and 1 + that bounds |B_i| and |C_i|."""
        most = [max(np.linalg.norm(k, 2) for k in turned) for turned in self.turned]
        return variation(self.strength, (most[0], 1 + most[0]), (most[1], 1 + most[1]), radius)


@settings(max_examples=40)
@given(st.tuples(st.integers(2, 5), st.integers(2, 5)), st.integers(1, 3), seeds, st.floats(0.0, 0.3), sides)
def test_theorem_3_8_holds_when_everything_depends_on_the_weight(shape, samples, seed, strength, side):
    rng = np.random.default_rng(seed)
    slope = Wandering(shape, samples, rng, strength)
    lr, rank = 0.3, min(shape) - 1
    step = projected(slope, lr, rank, 1, refresh="never", side=side)
    states = [*rollout(step, inside(rng.standard_normal(shape)), 40)][1:]
    left, right = states[0].left, states[0].right
    radius = max(np.linalg.norm(state.weight) for state in states)
    sizes = inner([slope(state.weight) for state in states], left, right)
    assume(sizes.min() > 1e-9 * sizes.max())
    for state, before, after in zip(states, sizes, sizes[1:], strict=False):
        _, *moved = slope.at(state.weight)
        within = [frame.T @ found @ frame for frame, found in zip((left, right), moved, strict=True)]
        least = np.mean(np.prod([np.linalg.eigvalsh(found)[:, 0] for found in within], axis=0))
        assume(least > 0 and min(np.linalg.eigvalsh(found).min() for found in moved) > 0)
        largest = np.mean(np.prod([np.linalg.norm(found, 2, axis=(1, 2)) for found in moved], axis=0))
        assert after <= contraction(least, largest, lr, slope.variation(radius)) * before * (1 + 1e-9)


def test_the_statement_of_theorem_3_8_without_the_factor_two_of_its_proof_is_false():
    """B = C = l (2 D - W), W -> D: R grows; by the statement it cannot, and by the proof by just as much."""
    scale, radius, lr = 0.5, 2.0, 0.1
    weight = radius - 1e-6

    def pulled(w):
        return (scale * (2 * radius - w)) ** 2 * w

    residual = 1e-7
    moved = residual + pulled(weight) - pulled(weight + lr * residual)
    proof = variation(0.0, (scale, scale * radius), (scale, scale * radius), radius)
    assert proof == 2 * scale**2 * radius**2
    least = scale**2 * radius**2
    assert moved / residual == pytest.approx(1 + lr * least, rel=1e-5)
    assert moved / residual == pytest.approx(contraction(least, least, lr, proof), rel=1e-5)
    assert moved / residual > 1.05 * contraction(least, least, lr, proof / 2)


@given(st.integers(3, 6), st.integers(2, 6), seeds)
def test_kappa_of_samples_is_zero_while_the_projected_gradient_falls(cols, more, seed):
    """C_i = f_i f_i^T is singular on two columns or more: the theorem is silent, S^ is not."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((cols, cols + more))
    family = batch(features, np.array([np.eye(3)] * features.shape[1]), rng.standard_normal((3, features.shape[1])))
    left, right = haar(3, 2, rng), haar(cols, 2, rng)
    assert abs(kappa(family.lefts, family.rights, left, right)) < 1e-12
    assert spectrum(*seen(family, left, right))[0] > 1e-9


@settings(max_examples=40)
@given(problems(), sides, st.sampled_from(["svd", "random"]), st.floats(0.1, 2.0), st.integers(1, 20), seeds)
def test_each_refresh_multiplies_the_excess_at_most_by_its_factor(found, side, refresh, share, gap, seed):
    family, start, rank = found
    rates = spectrum(family.lefts, family.rights)
    lr, rng = share / rates[-1], np.random.default_rng(seed) if refresh == "random" else None
    step = projected(family, lr, rank, gap, refresh=refresh, side=side, rng=rng)
    states = [*rollout(step, inside(start), 6 * gap)]
    for index in range(0, 6 * gap, gap):
        frames, gradient = states[index + 1], family(states[index].weight)
        part = np.linalg.norm(frames.left.T @ gradient @ frames.right) ** 2 / np.linalg.norm(gradient) ** 2
        if refresh == "svd":
            assert part >= rank / min(gradient.shape) * (1 - 1e-12)
        ends = [excess(family(states[i].weight), family.lefts, family.rights) for i in (index, index + gap)]
        factor = refresh_contraction(rates[0], rates[-1], lr, gap, part)
        assert 0 <= factor <= 1
        assert ends[1] <= factor * ends[0] * (1 + 1e-9) + 1e-20


def test_the_factor_is_attained_where_one_eigenvalue_is_all_there_is():
    """B = 1, C = I, r = 1 of n equal directions: the excess falls to 1 - (1 - (1 - eta)^2T) / n of itself."""
    family, start = generic((4, 4), 1, 1.0, np.random.default_rng(0)), np.zeros((4, 4))
    first = haar(4, 4, np.random.default_rng(1))
    family = type(family)(first, family.lefts, family.rights)
    *_, end = rollout(projected(family, 0.3, 1, 5), inside(start), 5)
    ends = [excess(gradient, family.lefts, family.rights) for gradient in (first, family(end.weight))]
    assert ends[1] / ends[0] == pytest.approx(refresh_contraction(1.0, 1.0, 0.3, 5, 1 / 4), rel=1e-12)


def test_random_subspaces_hold_their_share_of_the_gradient_on_average():
    rng = np.random.default_rng(0)
    gradient = rng.standard_normal((7, 5)) * np.geomspace(1, 0.01, 5)
    parts = [np.linalg.norm(haar(7, 2, rng).T @ gradient) ** 2 for _ in range(4000)] / np.linalg.norm(gradient) ** 2
    assert abs(parts.mean() - 2 / 7) < 4 * parts.std() / math.sqrt(len(parts))


def test_refreshing_reaches_the_solution_where_a_fixed_subspace_does_not():
    family, start = generic((6, 5), 2, 5.0, np.random.default_rng(3)), np.zeros((6, 5))
    lr = 1 / spectrum(family.lefts, family.rights)[-1]
    found = {}
    for refresh in ("svd", "random", "never"):
        rng = np.random.default_rng(4) if refresh == "random" else None
        *_, end = rollout(projected(family, lr, 1, 3, refresh=refresh, rng=rng), inside(start), 3000)
        found[refresh] = np.linalg.norm(family(end.weight)) / np.linalg.norm(family(start))
    assert found["svd"] < 1e-9
    assert found["random"] < 1e-6
    assert found["never"] > 0.1


def test_frames_change_at_multiples_of_the_gap_alone_and_on_the_projected_side_alone():
    family = generic((4, 3), 1, 4.0, np.random.default_rng(0))
    states = [*rollout(projected(family, 0.5, 2, 3), inside(np.zeros((4, 3))), 7)]
    changed = [not np.array_equal(one.left, two.left) for one, two in pairwise(states)]
    assert changed == [True, False, False, True, False, False, True]
    assert all(np.array_equal(state.right, np.eye(3)) for state in states)
    np.testing.assert_array_equal(states[1].left, leading(family(states[0].weight), 2))
    u, _, _ = np.linalg.svd(family(states[0].weight))
    np.testing.assert_allclose(states[1].left @ states[1].left.T, u[:, :2] @ u[:, :2].T, atol=1e-12)


ONE, NULL = np.eye(2)[None], np.diag([1.0, 0.0])[None]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kappa(ONE, ONE, 2 * np.eye(2), np.eye(2)), "left: its columns are not orthonormal"),
        (lambda: stays(np.eye(2), ONE, ONE, np.eye(2), np.ones((2, 1))), "right: its columns"),
        (lambda: variation(-1.0, (0.0, 0.0), (0.0, 0.0), 1.0), "are >= 0"),
        (lambda: contraction(2.0, 1.0, 0.1), "take 0 <= least <= largest"),
        (lambda: contraction(0.5, 1.0, 0.0), "lr = 0.0"),
        (lambda: subspace_course(np.eye(2), ONE, ONE, np.eye(2), np.eye(2), 0.1, -np.ones(1, int)), "steps >= 0"),
        (lambda: excess(np.eye(2), NULL, ONE), "part in the null space of S"),
        (lambda: refresh_contraction(0.0, 1.0, 0.1, 1, 0.5), "take 0 < least"),
        (lambda: refresh_contraction(0.5, 1.0, 2.1, 1, 0.5), "0 < lr <= 2 / largest"),
        (lambda: refresh_contraction(0.5, 1.0, 0.1, 0, 0.5), "gap >= 1"),
        (lambda: refresh_contraction(0.5, 1.0, 0.1, 1, 1.1), "a share of at most 1"),
        (lambda: projected(ONE[0].__matmul__, 0.1, 1, 0), "gap = 0"),
        (lambda: projected(ONE[0].__matmul__, 0.1, 1, 1, refresh="random"), "an rng for 'random' alone"),
        (lambda: projected(ONE[0].__matmul__, 0.1, 3, 1)(inside(ONE[0])), "rank = 3"),
    ],
)
def test_what_is_out_of_range_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_singular_projected_curvature_keeps_its_part_of_the_projected_gradient():
    first = np.array([[1.0, 2.0], [3.0, 4.0]])
    course = subspace_course(first, NULL, ONE, np.eye(2), np.eye(2), 0.5, np.array([0, 100]))
    np.testing.assert_array_equal(course[0], first)
    np.testing.assert_allclose(course[1], stays(first, NULL, ONE, np.eye(2), np.eye(2)), atol=1e-14)
    np.testing.assert_allclose(course[1], kept(first, NULL, ONE), atol=1e-14)
