"""The invariant family for any shapes and starts, clause by clause, against simulation and against exact arithmetic.

Tolerance: rounding, 1e-12 on numbers of order 1; random shapes measure up to 6e-15, and 1 % errors show at 1e-3.
"""

from fractions import Fraction
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sims.dynamics import gradient_descent, product, rollout
from sims.losses import Factorization
from sims.start import haar, orthogonal
from theory.invariants import rho
from theory.problem import Problem
from theory.subspaces import (
    invariant_subspaces,
    passing,
    passing_scales,
    predicted_run,
    reduced_run,
    reduced_start,
    seen_from,
)

ATOL = 1e-12
LR, DECAY, STEPS = 0.02, 0.1, 40
seeds = st.integers(0, 2**16)

SHAPES = [  # layer dimensions, those of the family for rank 4, and how many idle directions pass through all layers
    ((60, 60, 60, 60), (8, 8, 8, 8), 52),
    ((60, 60, 60, 20), (12, 12, 12, 8), 12),
    ((60, 60, 60, 4), (8, 8, 8, 4), 0),
    ((20, 60, 60, 60), (8, 12, 12, 12), 12),
    ((60, 30, 30, 60), (12, 8, 8, 12), 22),
    ((20, 60, 60, 20), (20, 40, 40, 20), 0),
    ((30, 40, 50, 50), (8, 12, 16, 16), 22),
    ((40, 60, 40), (28, 48, 28), 12),
    ((40, 30, 40, 30, 40), (22, 18, 28, 18, 22), 12),
]


def low_rank(dims, rank, rng):
    return haar(dims[-1], rank, rng) * np.linspace(3, 2, rank) @ haar(dims[0], rank, rng).T


def semi_orthogonal(dims, rank, seed=0):
    rng = np.random.default_rng(seed)
    return orthogonal(dims, tuple(rng.uniform(0.2, 1.1, len(dims) - 1)), rng), low_rank(dims, rank, rng)


def gaussian(dims, rank, seed=0):
    rng = np.random.default_rng(seed)
    start = tuple(0.5 * rng.standard_normal((b, a)) / np.sqrt(a) for a, b in pairwise(dims))
    return start, low_rank(dims, rank, rng)


@st.composite
def mixed(draw):
    """Layers of any shapes, each Haar, Gaussian, of low rank or zero, and a target of rank 1 or 2."""
    dims = tuple(draw(st.lists(st.integers(2, 10), min_size=3, max_size=6)))
    rng = np.random.default_rng(draw(seeds))
    start = []
    for cols, rows in pairwise(dims):
        kind = draw(st.sampled_from(["haar", "haar", "gaussian", "low rank", "zero"]))
        low = rng.standard_normal((rows, 1)) @ rng.standard_normal((1, cols)) / cols
        layers = {"haar": haar(rows, cols, rng), "gaussian": rng.standard_normal((rows, cols)) / cols, "low rank": low}
        start.append(rng.uniform(0.3, 1) * layers.get(kind, np.zeros((rows, cols))))
    return tuple(start), low_rank(dims, draw(st.integers(1, 2)), rng)


def sizes(spaces):
    return tuple(space.shape[1] for space in spaces)


def simulate(start, target, steps=STEPS):
    return rollout(gradient_descent(Factorization(target), LR, DECAY), start, steps)


def leak(spaces, start, target):
    """The largest entry by which the bases miss orthonormality, the layers the next subspace, or the target its own."""
    inside = [space @ space.T for space in spaces]
    misses = [space.T @ space - np.eye(space.shape[1]) for space in spaces]
    misses += [target - inside[-1] @ target @ inside[0]]
    for weight, (before, after) in zip(start, pairwise(inside), strict=True):
        misses += [(weight @ before - after @ weight @ before), (weight.T @ after - before @ weight.T @ after)]
    return max(np.abs(miss).max(initial=0) for miss in misses)


@pytest.mark.parametrize(("dims", "expected", "through"), SHAPES)
def test_dimensions_of_the_family_and_of_what_passes_by(dims, expected, through):
    start, target = semi_orthogonal(dims, 4)
    spaces = invariant_subspaces(start, target)
    assert sizes(spaces) == expected
    assert sizes(passing(start, spaces)[0]) == (through,) * len(dims)


def test_two_narrow_ends_saturate_even_for_rank_one_and_a_gaussian_start_fills_the_space():
    start, target = semi_orthogonal((20, 60, 60, 20), 1)
    assert sizes(invariant_subspaces(start, target)) == (20, 40, 40, 20)
    assert sizes(invariant_subspaces(*gaussian((60, 60, 60, 60), 4))) == (60, 60, 60, 60)


@pytest.mark.parametrize(("dims", "draw"), [(s[0], semi_orthogonal) for s in SHAPES] + [((60, 60, 60, 60), gaussian)])
def test_the_reduced_run_is_the_full_run_seen_from_inside(dims, draw):
    start, target = draw(dims, 4)
    spaces = invariant_subspaces(start, target)
    cores = reduced_run(reduced_start(start, spaces), spaces[-1].T @ target @ spaces[0], LR, DECAY)
    for weights, core in zip(simulate(start, target), cores, strict=False):
        for found, expected in zip(seen_from(spaces, weights), core, strict=True):
            np.testing.assert_allclose(found, expected, atol=ATOL)


@pytest.mark.parametrize(("dims", "expected", "through"), SHAPES)
def test_all_weights_are_predicted_for_every_shape(dims, expected, through):
    start, target = semi_orthogonal(dims, 4)
    for weights, predicted in zip(simulate(start, target), predicted_run(start, target, LR, DECAY), strict=False):
        for found, weight in zip(weights, predicted, strict=True):
            np.testing.assert_allclose(found, weight, atol=ATOL)


@given(mixed())
def test_the_family_is_invariant_and_its_run_exact_for_any_start(drawn):
    start, target = drawn
    spaces = invariant_subspaces(start, target)
    assert leak(spaces, start, target) <= ATOL
    cores = reduced_run(reduced_start(start, spaces), spaces[-1].T @ target @ spaces[0], LR, DECAY)
    for weights, core in zip(simulate(start, target), cores, strict=False):
        for found, expected in zip(seen_from(spaces, weights), core, strict=True):
            np.testing.assert_allclose(found, expected, atol=ATOL)


@given(st.lists(st.integers(1, 14), min_size=3, max_size=7).map(tuple), st.integers(1, 2), seeds)
def test_haar_layers_of_any_shapes_split_into_trained_passing_and_dead_directions(dims, rank, seed):
    start, target = semi_orthogonal(dims, min(rank, dims[0], dims[-1]), seed)
    *_, last = simulate(start, target)
    predicted = next(islice(predicted_run(start, target, LR, DECAY), STEPS, None))
    for found, weight in zip(last, predicted, strict=True):
        np.testing.assert_allclose(found, weight, atol=ATOL)


@pytest.mark.parametrize(("dims", "expected", "through"), SHAPES)
def test_full_loss_is_the_reduced_loss_plus_half_the_passing_directions_times_their_squared_scale(
    dims, expected, through
):
    start, target = semi_orthogonal(dims, 4)
    spaces = invariant_subspaces(start, target)
    bases, scales = passing(start, spaces)
    small = spaces[-1].T @ target @ spaces[0]
    runs = zip(
        simulate(start, target),
        reduced_run(reduced_start(start, spaces), small, LR, DECAY),
        passing_scales(scales, LR, DECAY),
        strict=False,
    )
    for weights, cores, now in runs:
        tail = bases[0].shape[1] / 2 * np.prod(now) ** 2
        reduced = Factorization(small).value(product(cores))
        np.testing.assert_allclose(Factorization(target).value(product(weights)), reduced + tail, rtol=1e-12)


def test_square_layers_give_the_theorem():
    problem = Problem(width=12, spectrum=(3.0, 2.0), scales=(1.0, 0.9, 0.8), lr=LR, decay=DECAY)
    rng = np.random.default_rng(0)
    start, target = orthogonal((12,) * 4, problem.eps, rng), low_rank((12, 12), 2, rng)
    bases, scales = passing(start, invariant_subspaces(start, target))
    assert bases[0].shape[1] == problem.idle
    found = np.array(list(islice(passing_scales(scales, LR, DECAY), STEPS + 1)))
    np.testing.assert_allclose(found, rho(problem, STEPS), atol=ATOL)


def exact_dimensions(start, target):
    """Dimensions of the family in rational arithmetic: words in the W_l and W_l^T, by elimination without rounding."""
    spans = [{} for _ in range(len(start) + 1)]  # layer -> pivot -> row whose first non-zero entry, 1, is at the pivot
    waiting = [(0, row) for row in target] + [(len(start), column) for column in zip(*target, strict=True)]
    while waiting:
        at, vector = waiting.pop()
        rest = list(vector)
        for pivot in range(len(rest)):
            if rest[pivot] and pivot in spans[at]:
                rest = [a - rest[pivot] * b for a, b in zip(rest, spans[at][pivot], strict=True)]
        pivot = next((index for index, entry in enumerate(rest) if entry), None)
        if pivot is None:
            continue
        spans[at][pivot] = rest = [entry / rest[pivot] for entry in rest]
        if at < len(start):
            waiting.append((at + 1, [sum(map(Fraction.__mul__, row, rest)) for row in start[at]]))
        if at > 0:
            waiting.append(
                (at - 1, [sum(map(Fraction.__mul__, row, rest)) for row in zip(*start[at - 1], strict=True)])
            )
    return tuple(map(len, spans))


def rational(rows, cols, kind, rng):
    """A rational rows x cols matrix: part of a product of reflections I - 2 v v^T / v^T v, or small integers."""
    if kind == "integers":
        return [[Fraction(int(entry)) for entry in row] for row in rng.integers(-2, 3, (rows, cols))]
    size = max(rows, cols)
    whole = np.array([[Fraction(int(i == j)) for j in range(size)] for i in range(size)])
    for _ in range(2):
        v = np.array([Fraction(int(entry)) for entry in rng.integers(1, 4, size)])
        whole = whole - np.outer(v, v @ whole) * 2 / (v @ v)
    return whole[:rows, :cols].tolist()


@given(
    st.lists(st.integers(1, 5), min_size=3, max_size=5),
    st.lists(st.sampled_from(["reflections", "reflections", "integers"]), min_size=4, max_size=4),
    seeds,
)
def test_the_family_is_the_smallest_one_as_exact_arithmetic_finds_it(dims, kinds, seed):
    """Reflections share directions that they leave alone, so families of all sizes come up."""
    rng = np.random.default_rng(seed)
    start = [rational(rows, cols, kind, rng) for (cols, rows), kind in zip(pairwise(dims), kinds, strict=False)]
    left, right = ([Fraction(int(entry)) for entry in rng.integers(-2, 3, dim)] for dim in (dims[-1], dims[0]))
    left[0], right[-1] = Fraction(1), Fraction(1)
    target = [[a * b for b in right] for a in left]
    floats = [np.array(matrix, dtype=float) for matrix in (*start, target)]
    assert sizes(invariant_subspaces(tuple(floats[:-1]), floats[-1])) == exact_dimensions(start, target)


def test_equal_principal_angles_make_semi_orthogonal_layers_that_do_not_split():
    """Two layers 4 -> 8 -> 4 with W_2 W_1 = cos(0.6) times orthogonal: one angle, four times, seen by rank 1 once."""
    rng = np.random.default_rng(0)
    turns = [haar(n, n, rng) for n in (4, 8, 4)]
    first = np.vstack([np.eye(4), np.zeros((4, 4))])
    second = np.hstack([np.cos(0.6) * np.eye(4), np.sin(0.6) * np.eye(4)])
    start = (turns[1] @ first @ turns[0].T, turns[2] @ second @ turns[1].T)
    target = low_rank((4, 8, 4), 1, rng)
    spaces = invariant_subspaces(start, target)
    assert leak(spaces, start, target) <= ATOL
    assert sizes(spaces) == (2, 4, 2)
    with pytest.raises(ValueError, match=r"layer 2 stretches the idle directions .* start from Haar"):
        passing(start, spaces)


@pytest.mark.parametrize(
    ("start", "target", "message"),
    [
        ((np.eye(3), np.eye(4)), np.eye(4), r"layers of shapes \[\(3, 3\), \(4, 4\)\] do not multiply to .* W_1 comes"),
        ((), np.eye(4), "do not multiply"),
        ((np.eye(3), np.full((3, 3), np.nan)), np.eye(3), "not finite; give finite matrices"),
        ((np.eye(3), np.eye(3)), np.zeros((3, 3)), "the target is 0"),
    ],
)
def test_impossible_starts_and_targets_are_refused(start, target, message):
    with pytest.raises(ValueError, match=message):
        invariant_subspaces(start, target)


@pytest.mark.parametrize("change", [{"lr": 1.01 * LR}, {"decay": 1.01 * DECAY}])
def test_a_one_percent_error_in_the_prediction_is_caught(change):
    """In each of the three parts: the trained one, the passing one, and the dead ends, which only know the decay."""
    start, target = semi_orthogonal((16, 12, 10, 14), 1)
    spaces = invariant_subspaces(start, target)
    bases, _ = passing(start, spaces)
    *_, last = simulate(start, target)
    wrong = next(islice(predicted_run(start, target, **({"lr": LR, "decay": DECAY} | change)), STEPS, None))
    for family in (spaces, bases):
        pairs = zip(seen_from(family, last), seen_from(family, wrong), strict=True)
        assert max(np.abs(a - b).max() for a, b in pairs) > 1e6 * ATOL
    if "decay" in change:
        dead = tuple(np.eye(len(s)) - s @ s.T - p @ p.T for s, p in zip(spaces, bases, strict=True))
        assert max(np.abs(x).max() for x in seen_from(dead, tuple(map(np.subtract, last, wrong)))) > 1e6 * ATOL
