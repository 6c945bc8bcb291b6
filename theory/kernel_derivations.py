"""sympy derives kernels at infinite and finite width, and random projections of them. Each function returns 0 = claim.

Symbols: Theta = |df/dtheta|^2 the tangent kernel of one example, n_l the width of hidden layer l = 1, ..., L, c the
cosine between inputs, G the gradient of a layer, A the Gaussian projection of its inputs to k dimensions.
"""

from collections.abc import Sequence
from itertools import combinations_with_replacement, pairwise

import sympy as sp

from theory.two_sides import claim, zero


def _mean(expression: sp.Expr, normals: Sequence[sp.Symbol]) -> sp.Expr:
    """The expectation of a polynomial in independent N(0, 1), monomial by monomial: E z^k = (k - 1)!! for even k."""
    terms = sp.Poly(expression, *normals).terms()
    even = [(powers, factor) for powers, factor in terms if all(power % 2 == 0 for power in powers)]
    return sp.expand(sum(factor * sp.prod([sp.factorial2(power - 1) for power in powers]) for powers, factor in even))


def arc_cosine() -> list[sp.Expr]:
    """k_0 and k_1 of cos t from the Gaussian integrals 2 E 1[u > 0] 1[v > 0] and 2 E relu(u) relu(v). Two zeros.

    In polar coordinates u = R cos s, v = R cos(s - t), R^2/2 standard exponential; both are positive for s from
    t - pi/2 to pi/2, 0 < t < pi (Cho & Saul 2009, eqs. 3 to 6).
    """
    s, radius, angle = sp.symbols("s R t", positive=True)
    both = (s, angle - sp.pi / 2, sp.pi / 2)
    density = sp.exp(-(radius**2) / 2) * radius / (2 * sp.pi)
    found = []
    for power, turn in ((0, sp.Integer(1)), (2, sp.cos(s) * sp.cos(s - angle))):
        around = sp.integrate(sp.expand_trig(turn), both)
        found.append(2 * sp.integrate(density * radius**power, (radius, 0, sp.oo)) * around)
    claimed = [sp.pi - angle, sp.sin(angle) + (sp.pi - angle) * sp.cos(angle)]
    return [zero(f - claim(c / sp.pi)) for f, c in zip(found, claimed, strict=True)]


def arc_cosine_slopes() -> list[sp.Expr]:
    """k_1' = k_0, k_1'' = 1/(pi sqrt(1 - c^2)) and k_1(1) = k_0(1) = 1. Four zeros.

    The first is why the NTK recursion multiplies by k_0 what the NNGP sends through k_1.
    """
    zeroth, first = _arc_cosines(c := sp.Symbol("c", real=True))
    return [
        zero(first.diff(c) - claim(zeroth)),
        zero(first.diff(c, 2) - claim(1 / (sp.pi * sp.sqrt(1 - c**2)))),
        first.subs(c, 1) - claim(sp.Integer(1)),
        zeroth.subs(c, 1) - claim(sp.Integer(1)),
    ]


def arc_cosine_expansion() -> sp.Expr:
    """1 - k_1(1 - e) minus e - 2 sqrt 2/(3 pi) e^{3/2}, up to e^2: zero. The derivative in q = sqrt e is expanded."""
    root = sp.Symbol("q", positive=True)
    _, first = _arc_cosines(1 - root**2)
    slope = sp.series(sp.simplify((1 - first).diff(root) / root), root, 0, 2).removeO()
    claimed = claim(root**2 - 2 * sp.sqrt(2) / (3 * sp.pi) * root**3)
    return zero(slope * root - claimed.diff(root))


def _arc_cosines(c: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """k_0 and k_1 in terms of the cosine, with t = acos c in `arc_cosine`."""
    rest = sp.pi - sp.acos(c)
    return rest / sp.pi, (sp.sqrt(1 - c**2) + rest * c) / sp.pi


def erf_moments() -> list[sp.Expr]:
    """E phi'(u) phi'(v) for phi = erf from its Gaussian integral, and, by Price's theorem, of what it is the slope.

    4/pi ((1 + 2 l)(1 + 2 r) - 4 c^2)^{-1/2} for variances l, r and covariance c, the derivative in c of
    E phi(u) phi(v) = 2/pi asin(2 c/sqrt((1 + 2 l)(1 + 2 r))), which is 0 at c = 0 (Williams 1997, eq. 11). Three
    zeros; both slopes are positive and compared by their squares.
    """
    p, q, s, width = sp.symbols("p q s w", positive=True)
    y, z = sp.symbols("y z", real=True)  # u = p z, v = q z + s y
    exponent = sp.Poly(z**2 / 2 + y**2 / 2 + (p * z) ** 2 + (q * z + s * y) ** 2, y, z)
    a, b, d = (exponent.coeff_monomial(m) for m in (y**2, y * z, z**2))
    gauss = sp.integrate(sp.exp(-width * y**2), (y, -sp.oo, sp.oo))  # square completed: first over y, then over z
    mean = 4 / sp.pi * gauss.subs(width, a) * gauss.subs(width, d - b**2 / (4 * a)) / (2 * sp.pi)
    left, right, cross = sp.symbols("l r c", positive=True)
    norms = (1 + 2 * left) * (1 + 2 * right)
    slopes = 4 / sp.pi / sp.sqrt(norms - 4 * cross**2)
    product = 2 / sp.pi * sp.asin(2 * cross / sp.sqrt(norms))
    here = {left: p**2, right: q**2 + s**2, cross: p * q}
    return [
        sp.simplify(mean**2 - claim(slopes**2).subs(here)),
        sp.simplify(product.diff(cross) ** 2 - claim(slopes**2)),
        product.subs(cross, 0),
    ]


def gram_moments() -> list[sp.Expr]:
    """What a Gaussian factor of m rows, symbolic, does to (tr B)^2 and tr B^2 of B = M M^T in expectation. Two zeros.

    tr W B W^T = sum_i q_ii and tr (W B W^T)^2 = sum_ij q_ij^2 with q_ij = w_i^T B w_j and m independent rows w_i: so
    m^2 [[1, 2/m], [1/m, 1 + 1/m]]. B is diagonal in a basis that Gaussian rows do not see, and both are symmetric
    quadratic forms of its eigenvalues, of which there are two: size 2 has all of them.
    """
    m, b = sp.Symbol("m", positive=True), sp.symbols("b_1:3")
    rows = [sp.Matrix(sp.symbols(f"{name}_1:3")) for name in "vw"]
    own, mixed = ((rows[0].T * sp.diag(*b) * row)[0] for row in rows)
    normals = [entry for row in rows for entry in row]
    mean, square, cross = (_mean(of, normals) for of in (own, own**2, mixed**2))
    trace, trace_square = sum(b) ** 2, sum(entry**2 for entry in b)
    return [
        zero(m * square + m * (m - 1) * mean**2 - claim(m**2 * (trace + 2 / m * trace_square))),
        zero(m * square + m * (m - 1) * cross - claim(m**2 * (trace / m + (1 + 1 / m) * trace_square))),
    ]


def linear_second_moment(depth: int) -> sp.Expr:
    """E Theta^2 by the layers' moments minus its closed form, of a linear network of any widths n_1, ..., n_L: zero.

    Theta = sum_p |A_p|^2 |B_p|^2, A_p = W_{p-1} ... W_1 x, B_p = W_{L+1} ... W_{p+1}. In the pair p <= q, layers
    outside p, ..., q - 1 add E|W v|^4/(n^2 |v|^4) = 1 + 2/n, those inside E|M|_F^4 of the product M between, by
    `gram_moments` from B = I_{n_p}. The closed form is in `ntk.linear_second_moment`.
    """
    n = sp.symbols(f"n_1:{depth + 1}", positive=True)
    return sp.cancel(sp.together(_by_layers(n) - claim(_closed(n))))


def linear_second_moment_of(widths: tuple[int, ...]) -> list[sp.Expr]:
    """E Theta, E Theta^2 of Theta = |df/dW|^2 by Wick's theorem in every weight, minus L + 1 and `_closed`. Two zeros.

    In units of |x|^2/n_0, with x turned to the first unit vector: of W_1 only the first column is seen.
    """
    signal, weights = sp.ones(1, 1), []
    for layer, (below, above) in enumerate(pairwise([1, *widths, 1])):
        weight = sp.Matrix(above, below, sp.symbols(f"w{layer}_:{above * below}"))
        weights.extend(weight)
        signal = (weight * signal).expand()
    kernel = sp.expand(sum(sp.diff(signal[0], weight) ** 2 for weight in weights)) / sp.prod(widths)
    square = _mean(kernel**2, weights) - claim(_closed(tuple(map(sp.Integer, widths))))
    return [_mean(kernel, weights) - claim(sp.Integer(len(widths) + 1)), square]


def linear_variance(depth: int) -> list[sp.Expr]:
    """Var Theta to first order: sum_l (2 (L+1)^2 - 4 l (L+1-l))/n_l, and for equal n 2 L (L+1)(2L+1)/(3n). Zeros.

    The mean squared at infinite width, the slope in each 1/n_l, and their sum.
    """
    small = sp.symbols(f"h_1:{depth + 1}", positive=True)  # 1/n_l
    moment = _by_layers([1 / h for h in small])
    nothing = dict.fromkeys(small, 0)
    slopes = [sp.expand(moment).diff(h).subs(nothing) for h in small]
    claimed = [2 * (depth + 1) ** 2 - 4 * layer * (depth + 1 - layer) for layer in range(1, depth + 1)]
    each = [slope - claim(sp.Integer(c)) for slope, c in zip(slopes, claimed, strict=True)]
    equal = sum(slopes) - claim(sp.Rational(2 * depth * (depth + 1) * (2 * depth + 1), 3))
    return [moment.subs(nothing) - claim(sp.Integer((depth + 1) ** 2)), *each, equal]


def _by_layers(n: Sequence[sp.Expr]) -> sp.Expr:
    """sum_pq of the product of the layers' factors, in units of |x|^4/n_0^2."""
    depth, moment = len(n), sp.Integer(0)
    for p, q in combinations_with_replacement(range(depth + 1), 2):
        outside = sp.prod([1 + 2 / size for layer, size in enumerate(n) if not p <= layer < q])
        trace, square = sp.Integer(1), 1 / n[p] if q > p else sp.Integer(0)
        for size in n[p + 1 : q]:
            trace, square = trace + 2 / size * square, trace / size + (1 + 1 / size) * square
        moment += (1 if p == q else 2) * outside * trace
    return moment


def _closed(n: Sequence[sp.Expr]) -> sp.Expr:
    """The same, as `ntk.linear_second_moment` has it."""
    depth = len(n)
    inside = sum(sp.prod([(s - 1) / (s + 2) for s in n[i:j]]) for i in range(depth) for j in range(i + 1, depth + 1))
    return sp.prod([1 + 2 / s for s in n]) * (sp.Rational((depth + 1) * (depth + 3), 3) + sp.Rational(4, 3) * inside)


def projection_moments(size: int, rank: int) -> list[sp.Expr]:
    """Mean and variance of <G A^T, G' A^T>, A of rank x size entries N(0, 1/k), k = rank, by Wick. Two zeros.

    tr M and (|M|_F^2 + tr M^2)/k with M = G^T G': that is what LoRA's first step sees of a kernel, its B at zero.
    """
    left, right = (sp.Matrix(2, size, sp.symbols(f"{name}_:{2 * size}")) for name in ("g", "h"))
    normals = sp.symbols(f"a_:{rank * size}")
    projection = sp.Matrix(rank, size, normals) / sp.sqrt(rank)
    seen = sp.expand(sp.trace((left * projection.T).T * (right * projection.T)))
    between = left.T * right
    mean = _mean(seen, normals)
    variance = _mean(seen**2, normals) - mean**2
    claimed = (sp.trace(between.T * between) + sp.trace(between**2)) / rank
    return [sp.expand(mean - claim(sp.trace(between))), sp.expand(variance - claim(claimed))]


def johnson_lindenstrauss() -> list[sp.Expr]:
    """P(|A x|^2 off 1 by eps) <= 2 e^{-k (eps^2 - eps^3)/4}, |x| = 1: the steps of Chernoff's bound. Nine zeros.

    E e^{t z^2} = (1 - 2 t)^{-1/2}; for 1 +- eps, t = +-eps/(2 (1 +- eps)) is stationary in -t (1 +- eps)
    - ln(1 - 2 t)/2, with (ln(1 +- eps) -+ eps)/2 there; how far that is below -(eps^2 - eps^3)/4
    starts at 0 and grows at eps^2 (1 + 3 eps)/(4 (1 + eps)) and eps^2 (5 - 3 eps)/(4 (1 - eps)), for 0 < eps < 1.
    """
    z, t = sp.symbols("z t", real=True)
    shrunk, eps = sp.symbols("p epsilon", positive=True)  # p = 1 - 2 t
    grown = sp.integrate(sp.exp(-shrunk * z**2 / 2) / sp.sqrt(2 * sp.pi), (z, -sp.oo, sp.oo))
    differences = [zero(grown - claim(1 / sp.sqrt(shrunk)))]
    slopes = (eps**2 * (1 + 3 * eps) / (4 * (1 + eps)), eps**2 * (5 - 3 * eps) / (4 * (1 - eps)))
    for sign, slope in zip((1, -1), slopes, strict=True):
        exponent = -t * (1 + sign * eps) + sp.log(grown.subs(shrunk, 1 - 2 * t))
        best = claim(sign * eps / (2 * (1 + sign * eps)))
        value = (sp.log(1 + sign * eps) - sign * eps) / 2
        slack = -value - (eps**2 - eps**3) / 4
        reached = sp.simplify(sp.exp(2 * (exponent.subs(t, best) - claim(value))))  # 1 whatever the branch of the log
        differences += [zero(exponent.diff(t).subs(t, best)), zero(reached - 1)]
        differences += [slack.subs(eps, 0), zero(slack.diff(eps) - claim(slope))]
    return differences
