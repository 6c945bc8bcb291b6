"""Approximately low-rank targets: when the tail escapes, what it does until then, and a bound that the truth obeys.

The truth is the full d x d simulation minus the theorem's network for the leading components.
"""

import math
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from sims.dynamics import gradient_descent, product, rollout
from sims.losses import Factorization
from sims.start import haar, orthogonal
from theory.approximate import certificate, choose_rank, escape_time, linear_response, truncated_run
from theory.invariants import invariant_bases, predicted_weights
from theory.problem import Problem

FLOOR = 1e-12


@dataclass(frozen=True, eq=False)
class Tailed:
    start: tuple[np.ndarray, ...]
    target: np.ndarray
    rank: int
    lr: float
    steps: int
    eps: tuple[float, ...]
    decay: float = 0.0

    @property
    def sigma(self):
        return np.linalg.svd(self.target, compute_uv=False)

    @property
    def tail(self):
        return float(np.linalg.norm(self.sigma[self.rank :]))

    def escape(self, component):
        return float(escape_time(self.sigma[component], self.eps, self.lr, len(self.start)))

    def certificate(self, **options):
        return certificate(self.start, self.target, self.rank, self.lr, self.steps, self.decay, **options)

    def truth(self):
        """|E - E_r|_F at t = 0, ..., steps."""
        step = gradient_descent(Factorization(self.target), self.lr, self.decay)
        reduced = truncated_run(self.start, self.target, self.rank, self.lr, self.decay)
        full = rollout(step, self.start, self.steps)
        return np.array([np.linalg.norm(product(w) - r) for w, r in zip(full, reduced, strict=False)])


KINDS = ["low rank plus decay", "low rank plus noise", "geometric"]


def tailed(width, rank, depth, kind, size, scales, fraction, stability, last, seed, decay=0.0):
    """size: tail over sigma_r. last: which component's escape sets the horizon, `fraction` of it."""
    rng = np.random.default_rng(seed)
    left, right = haar(width, width, rng), haar(width, width, rng)
    sigma = np.sort(rng.uniform(1, 4, rank))[::-1]
    if kind == "low rank plus decay":
        target = left * np.r_[sigma, sigma[-1] * size * 0.7 ** np.arange(width - rank)] @ right.T
    elif kind == "low rank plus noise":
        noise = rng.standard_normal((width, width))
        target = left[:, :rank] * sigma @ right[:, :rank].T + size * sigma[-1] * noise / np.linalg.norm(noise, 2)
    else:
        target = left * 4 * rng.uniform(0.4, 0.8) ** np.arange(width) @ right.T
    lr = stability / (depth * np.linalg.norm(target, 2) ** (2 - 2 / depth))
    start = orthogonal((width,) * (depth + 1), scales, rng)
    problem = Tailed(start, target, rank, lr, 1, scales, decay)
    return replace(problem, steps=int(np.clip(fraction * problem.escape(rank - 1 + last), 20, 500)))


@st.composite
def problems(draw, kinds=tuple(KINDS), largest=0.0):
    """Ranks far below d / 2, so that neither the reduced nor the enlarged network is the full one."""
    rank, depth = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    low = {2: -2.0, 3: -1.3, 4: -1.0}[depth]
    scale = 10 ** draw(st.floats(low, -0.3))
    shares = draw(st.one_of(st.just([1.0] * depth), st.lists(st.floats(0.6, 1), min_size=depth, max_size=depth)))
    return tailed(
        draw(st.integers(6 * rank, 24)),
        rank,
        depth,
        draw(st.sampled_from(kinds)),
        10 ** draw(st.floats(-6, largest)),
        tuple(scale * share for share in shares),
        draw(st.floats(0.1, 2)),
        draw(st.floats(0.05, 0.4)),
        draw(st.integers(0, 1)),
        draw(st.integers(0, 2**16)),
        draw(st.sampled_from([0.0, 0.01])),
    )


def half_time(sigma, eps, lr, depth):
    """The first step at which b^L >= sigma / 2 in the recursion b <- b - eta (b^L - sigma) b^(L-1), b(0) = eps."""
    scale, step = eps, 0
    while scale**depth < sigma / 2:
        scale, step = scale - lr * (scale**depth - sigma) * scale ** (depth - 1), step + 1
    return step


@pytest.mark.parametrize(("depth", "scales"), [(2, (1e-2, 1e-4, 1e-6)), (3, (1e-1, 1e-2, 1e-3)), (4, (0.2, 0.1, 0.03))])
def test_escape_time_is_exact_for_small_scales(depth, scales):
    """The first step at half the value, over T: within 1 % at the smallest scale, and within 30 % at the largest."""
    sigma, lr = 2.0, 1e-3 if depth == 2 else 1e-2
    ratios = [half_time(sigma, eps, lr, depth) / float(escape_time(sigma, eps, lr, depth)) for eps in scales]
    assert abs(ratios[-1] - 1) <= 0.01
    assert abs(ratios[0] - 1) <= 0.3


@given(st.floats(0.1, 10), st.floats(1e-3, 0.1), st.integers(2, 5))
def test_escape_time_is_the_integral_of_the_flow(sigma, eps, depth):
    end = math.sqrt(sigma) if depth == 2 else np.inf
    time, _ = quad(lambda x: math.exp(-x * (depth - 2)) / sigma, math.log(eps), math.log(end) if depth == 2 else np.inf)
    assert float(escape_time(sigma, eps, 0.5, depth)) == pytest.approx(time / 0.5, rel=1e-6)


@given(st.integers(2, 4), st.floats(0.01, 0.5))
def test_larger_components_escape_first_and_nothing_never(depth, eps):
    times = escape_time(np.array([3.0, 1.0, 0.1, 0.01, 1e-4, 1e-9, 0.0]), (eps, *[eps / 2] * (depth - 1)), 0.1, depth)
    assert (np.diff(times[:-1]) > 0).all()
    assert times[-1] == np.inf


@settings(max_examples=30)
@given(problems(kinds=KINDS[:2], largest=-1.0))
def test_before_anything_escapes_the_difference_is_the_linear_response(p):
    """To a tenth of the first escape, ratios measure 0.98 to 1.14: b has grown to 1.1 eps by then, rho shrunk less."""
    early = min(p.steps, int(0.1 * p.escape(0)))
    p = replace(p, steps=max(early, 1), decay=0.0)
    predicted = linear_response(p.tail, p.eps, p.lr, len(p.start), p.steps)
    np.testing.assert_allclose(p.truth(), predicted, rtol=0.2, atol=1e-14)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_once_the_leading_components_are_learned_the_linear_response_is_an_order_of_magnitude(depth):
    """A twentieth to twice of it, until a tenth of the tail's escape; 0.1 to 1.7 on random problems."""
    for seed in range(4):
        scale = {2: 0.02, 3: 0.1, 4: 0.3}[depth]
        p = tailed(18, 1 + seed % 3, depth, KINDS[seed % 2], 1e-3, (scale,) * depth, 1.0, 0.3, 0, seed)
        p = replace(p, steps=int(6 * p.escape(p.rank - 1)))
        *_, learned = islice(truncated_run(p.start, p.target, p.rank, p.lr), p.steps + 1)
        assert np.linalg.norm(learned - p.target) <= 0.05 * np.linalg.norm(p.target)
        assert p.steps <= 0.1 * p.escape(p.rank)
        ratio = p.truth()[-1] / linear_response(p.tail, p.eps, p.lr, depth, p.steps)[-1]
        assert 0.05 <= ratio <= 2


@settings(max_examples=40)
@given(problems())
def test_the_truth_never_exceeds_the_certificate(p):
    assert (p.truth() <= p.certificate()).all()


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_for_small_tails_the_certificate_needs_no_margin(depth):
    """Its sum is an upper bound to first order: small tails obey it without a margin."""
    for seed in range(6):
        scale = {2: 0.02, 3: 0.1, 4: 0.2}[depth]
        p = tailed(18, 1 + seed % 3, depth, KINDS[seed % 2], 1e-3, (scale,) * depth, 1.5, 0.3, 0, seed)
        assert (p.truth() <= p.certificate(margin=1.0)).all()


def test_the_certificate_is_not_vacuous():
    """Half of the bounds are within 10 times the truth at the last step, for tails up to a tenth of sigma_r."""
    shares = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        depth, size = 2 + seed % 3, 10 ** rng.uniform(-5, -1)
        scales = ({2: 0.02, 3: 0.1, 4: 0.2}[depth],) * depth
        p = tailed(20, 1 + seed % 2, depth, KINDS[seed // 3 % 2], size, scales, 1.5, 0.3, 0, seed)
        shares.append(p.certificate()[-1] / p.truth()[-1])
    assert np.median(shares) <= 10


@settings(max_examples=30)
@given(problems(), st.booleans())
def test_without_a_tail_the_certificate_is_rounding_and_the_truncated_run_is_the_theorem(p, decays):
    left, sigma, right = np.linalg.svd(p.target)
    exact = left[:, : p.rank] * sigma[: p.rank] @ right[: p.rank]
    p = replace(p, target=exact, decay=0.01 * decays, steps=min(p.steps, 100))
    assert (p.truth() <= FLOOR * sigma[0]).all()
    assert (p.certificate() <= 10 * FLOOR * sigma[0]).all()


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_rank_that_is_too_small_is_flagged(depth):
    """Components 4, 3, 2 and a tail of 1e-3: ranks 1 and 2 miss one that escapes, and the certificate says so."""
    rng = np.random.default_rng(depth)
    left, right = haar(20, 20, rng), haar(20, 20, rng)
    target = left * np.r_[4.0, 3.0, 2.0, 1e-3 * 0.8 ** np.arange(17)] @ right.T
    scales = ({2: 0.01, 3: 0.1, 4: 0.2}[depth],) * depth
    p = Tailed(orthogonal((20,) * (depth + 1), scales, rng), target, 3, 0.2 / (depth * 4 ** (2 - 2 / depth)), 1, scales)
    p = replace(p, steps=int(1.5 * p.escape(2)))
    bounds = [replace(p, rank=rank).certificate()[-1] / np.linalg.norm(target) for rank in (1, 2, 3)]
    truths = [replace(p, rank=rank).truth()[-1] / np.linalg.norm(target) for rank in (1, 2, 3)]
    assert min(bounds[:2]) > 0.1
    assert min(truths[:2]) > 0.1
    assert bounds[2] < 1e-3


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_rank_that_is_chosen_has_a_small_certificate(depth):
    """A gap after component 3: choose_rank stops there, and the bound at the horizon is below 5 % of |Phi|."""
    for seed in range(4):
        scale = {2: 0.02, 3: 0.1, 4: 0.2}[depth]
        p = tailed(20, 3, depth, KINDS[seed % 2], 1e-2, (scale,) * depth, 1.3, 0.3, 0, seed)
        rank = choose_rank(p.target, p.steps, eps=p.eps, lr=p.lr, depth=depth)
        assert rank == 3
        assert p.escape(rank) > 2 * p.steps >= p.escape(rank - 1)
        assert p.certificate()[-1] <= 0.05 * np.linalg.norm(p.target)


@settings(max_examples=30)
@given(problems(kinds=("geometric",)), st.floats(1, 4))
def test_the_chosen_rank_is_the_smallest_whose_next_component_escapes_late(p, safety):
    try:
        rank = choose_rank(p.target, p.steps, eps=p.eps, lr=p.lr, depth=len(p.start), safety=safety)
    except ValueError:
        rank = (len(p.target) - 1) // 2 + 1
    else:
        assert p.escape(rank) > safety * p.steps
    assert rank == 1 or p.escape(rank - 1) <= safety * p.steps


def test_truncated_run_is_the_theorems_network():
    problem = Problem(width=12, spectrum=(3.0, 2.0), scales=(1.0, 0.9, 0.8), lr=0.02, decay=0.1)
    rng = np.random.default_rng(0)
    start = orthogonal((12,) * 4, problem.eps, rng)
    target = haar(12, 2, rng) * np.array(problem.spectrum) @ haar(12, 2, rng).T
    predicted = predicted_weights(problem, invariant_bases(start, target, 2), target, 30)
    for found, weights in zip(truncated_run(start, target, 2, 0.02, 0.1), predicted, strict=False):
        np.testing.assert_allclose(found, product(weights), atol=FLOOR)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": np.full((8, 8), np.nan)}, "not finite; give a finite matrix"),
        ({"target": np.zeros((8, 8))}, "the target is 0"),
        ({"target": np.ones((8, 6))}, r"target of shape \(8, 6\): .* give d x d"),
        ({"horizon": 0}, "horizon = 0, safety = 2.0: take at least one step"),
        ({"safety": 0.5}, "a finite safety >= 1"),
        ({"eps": 0.0}, "eps = 0.0: take a finite eps > 0"),
        ({"eps": (0.1, 0.1)}, r"depth = 3 with eps = \(0.1, 0.1\)"),
        ({"lr": -1.0}, "lr = -1.0: take a finite lr > 0"),
        ({"depth": 1}, "depth = 1"),
    ],
)
def test_impossible_choices_are_refused(change, message):
    given = {"target": np.diag(0.5 ** np.arange(8)), "horizon": 10, "eps": 0.1, "lr": 0.01, "depth": 3} | change
    with pytest.raises(ValueError, match=message):
        choose_rank(given.pop("target"), given.pop("horizon"), **given)


@pytest.mark.parametrize("depth", [2, 3])
def test_the_horizon_and_the_scale_that_a_refusal_names_are_the_limits(depth):
    target, lr, eps, horizon = np.diag(0.9 ** np.arange(8)), 0.01, 0.1, 10_000
    with pytest.raises(ValueError, match=r"component 4 of size 0.729 escapes") as refused:
        choose_rank(target, horizon, eps=eps, lr=lr, depth=depth)
    words = str(refused.value).split()
    enough, small = float(words[words.index("<") + 1]), float(words[-1])
    assert choose_rank(target, int(0.98 * enough), eps=eps, lr=lr, depth=depth) <= 3
    assert choose_rank(target, horizon, eps=0.98 * small, lr=lr, depth=depth) <= 3
    for wrong in ({"horizon": math.ceil(1.02 * enough), "eps": eps}, {"horizon": horizon, "eps": 1.02 * small}):
        with pytest.raises(ValueError, match="no rank below half the width"):
            choose_rank(target, wrong["horizon"], eps=wrong["eps"], lr=lr, depth=depth)


def test_a_step_at_which_the_networks_diverge_is_reported():
    p = tailed(12, 1, 3, KINDS[0], 0.1, (0.1,) * 3, 1.0, 0.3, 0, 0)
    with pytest.raises(FloatingPointError, match=r"the networks diverge at lr = 3\.0; take a smaller one"):
        replace(p, lr=3.0, steps=200).certificate()


def test_errors_of_a_percent_in_the_truncated_run_are_caught_by_the_truth():
    p = tailed(12, 2, 3, KINDS[0], 1e-9, (0.3, 0.2, 0.3), 1.0, 0.3, 0, 0, decay=0.01)
    assert p.truth().max() <= p.certificate().max() <= 1e-7
    ends = [next(islice(truncated_run(p.start, p.target, 2, lr, 0.01), 60, None)) for lr in (p.lr, 1.01 * p.lr)]
    assert np.linalg.norm(ends[1] - ends[0]) > 1e-4
