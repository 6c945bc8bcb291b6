"""sympy derives what lazy training keeps and what rich training prefers. Each function returns 0 = claim.

Symbols: lam an eigenvalue of the tangent kernel Theta, r the residual, eta step, t = eta times steps, D the depth of a
diagonal network beta = w_+^D - w_-^D, alpha the scale of its start, or of the output of a lazy network.
"""

import sympy as sp

from theory.two_sides import claim, drift, zero

ETA, T, LAM, ALPHA = sp.symbols("eta t lam alpha", positive=True)


def linearised_step(examples: int = 2, parameters: int = 3) -> sp.Matrix:
    """r after a gradient step on |f_0 + J theta - y|^2/2 minus (I - eta J J^T) r: a zero matrix."""
    slopes = sp.Matrix(examples, parameters, sp.symbols(f"j_:{examples * parameters}"))
    theta, start = sp.Matrix(sp.symbols(f"theta_:{parameters}")), sp.Matrix(sp.symbols(f"r_:{examples}"))
    residual = start + slopes * theta  # start: f_0 - y
    loss = sum(entry**2 for entry in residual) / 2
    stepped = theta - ETA * sp.Matrix([loss.diff(entry) for entry in theta])
    kernel = slopes * slopes.T
    return (start + slopes * stepped - claim((sp.eye(examples) - ETA * kernel) * residual)).expand()


def linearised_modes() -> list[sp.Expr]:
    """A mode of descent by rsolve, its limit at t = eta k, and by how much it misses it to first order. Seven zeros.

    r_k = (1 - eta lam)^k r_0, that is e^{-lam t} r_0 minus eta t lam^2/2 of it. Parameters move by sqrt(lam) times what
    is gathered, (1 - (1 - eta lam)^k)/lam r_0 by descent and (1 - e^{-lam t})/lam r_0 by flow.
    """
    k, time = sp.Symbol("k", integer=True, nonnegative=True), sp.Symbol("tau", positive=True)
    start, r = sp.Symbol("r_0", positive=True), sp.Function("r")
    shrunk = claim((1 - ETA * LAM) ** k * start)
    found = sp.rsolve(r(k + 1) - (1 - ETA * LAM) * r(k), r(k), {r(0): start})
    path = sp.exp(T / ETA * sp.log(1 - ETA * LAM))  # (1 - eta lam)^(t/eta)
    flow = claim(sp.exp(-LAM * T))
    first = sp.limit(sp.series(sp.log(path), ETA, 0, 2).removeO().diff(ETA), ETA, 0)
    pull = sp.sqrt(LAM)  # the singular value of J
    by_descent = claim(pull * start * (1 - (1 - ETA * LAM) ** k) / LAM)
    by_flow = claim(pull * start * (1 - sp.exp(-LAM * T)) / LAM)
    moved = pull * sp.integrate(start * sp.exp(-LAM * time), (time, 0, T))
    return [
        zero(found - shrunk),
        zero(sp.limit((1 - LAM * T / k) ** k, k, sp.oo) - flow),
        zero(first - claim(-T * LAM**2 / 2)),
        zero(sp.powsimp(sp.expand(by_descent.subs(k, k + 1) - by_descent - ETA * pull * (1 - ETA * LAM) ** k * start))),
        by_descent.subs(k, 0),
        zero(moved - by_flow),
        by_flow.subs(T, 0),
    ]


def two_layer_drift(width: int = 2, inputs: int = 2) -> sp.Expr:
    """Of f = a.W x/sqrt(n n_0) under any loss, (Theta^2)' minus 4 |x|^2/n_0 (f^2)'/n along gradient flow: zero.

    Theta = |df/dtheta|^2 of that one example; integrated, Theta_t^2 = Theta_0^2 + 4 |x|^2/n_0 (f_t^2 - f_0^2)/n.
    """
    x = sp.Matrix(sp.symbols(f"x_:{inputs}", real=True))
    lower = sp.Matrix(width, inputs, sp.symbols(f"w_:{width * inputs}", real=True))
    upper = sp.Matrix(1, width, sp.symbols(f"a_:{width}", real=True))
    weights = [*lower, *upper]
    f = sp.expand((upper * lower * x)[0]) / sp.sqrt(width * inputs)
    kernel = sum(f.diff(weight) ** 2 for weight in weights)
    slope = sp.Symbol("p", real=True)  # dl/df, so that the loss's gradient is that of p f
    claimed = claim(4 * sum(entry**2 for entry in x) / inputs / width) * drift(f**2, slope * f, weights)
    return sp.expand(drift(kernel**2, slope * f, weights) - claimed)


def lazy_scaling() -> list[sp.Expr]:
    """With the loss (alpha (f - f_0) - y)^2/(2 alpha^2), theta and theta_lin part by O(1/alpha^2). Two zeros a weight.

    f is any Taylor series to third order in two parameters. At theta_0 + u/alpha, u' for alpha -> infinity is the flow
    of the linearised model, whatever alpha; the next order drives u - u_lin by -(g u^T H u/2 + H u (g.u - y))/alpha
    (Chizat, Oyallon & Bach 2019, arXiv 1812.07956).
    """
    small, y = sp.symbols("epsilon y", positive=True)  # epsilon = 1/alpha
    delta, u = sp.symbols("delta_:2", real=True), sp.Matrix(sp.symbols("u_:2", real=True))
    g, h = sp.Matrix(sp.symbols("g_:2", real=True)), sp.Matrix(2, 2, sp.symbols("h_0 h_1 h_1 h_2", real=True))
    shift = sp.Matrix(delta)
    cubic = sum(c * delta[0] ** i * delta[1] ** (3 - i) for i, c in enumerate(sp.symbols("c_:4", real=True)))
    f = (g.T * shift + shift.T * h * shift / 2)[0] + cubic  # minus f_0
    loss = (f / small - y) ** 2 * small**2 / 2
    seen, bent = (g.T * u)[0], (u.T * h * u)[0] / 2
    bends = -(g * bent + h * u * (seen - y))
    differences = []
    for i, weight in enumerate(delta):
        rate = sp.expand(drift(weight, loss, [weight]).subs(dict(zip(delta, small * u, strict=True))) / small)
        differences.append(sp.expand(rate.coeff(small, 0) - claim(-g[i] * (seen - y))))
        differences.append(sp.expand(rate.coeff(small, 1) - claim(bends[i])))
    return differences


def sign_step(parameters: int = 2) -> list[sp.Expr]:
    """df(x)/deta of theta - eta sign(dl/dtheta), l a loss of f(x'), at eta = 0 minus -sign(chi) <g, sign g'>. Zeros.

    g and g' are the gradients of f at x and x', chi = dl/df(x') of either sign, so that l has the slope of chi f(x').
    The first step of sign descent follows <g, sign g'>, which is not symmetric (Malladi et al. 2023, arXiv 2210.05643).
    """
    at, other = (sp.symbols(f"{name}_:{parameters}", real=True) for name in ("g", "h"))
    theta = sp.symbols(f"theta_:{parameters}", real=True)
    differences = []
    for sign, chi in ((1, sp.Symbol("chi", positive=True)), (-1, sp.Symbol("chi", negative=True))):
        loss = chi * sum(slope * weight for slope, weight in zip(other, theta, strict=True))
        stepped = [weight - ETA * sp.sign(loss.diff(weight)) for weight in theta]
        change = sum(slope * weight for slope, weight in zip(at, stepped, strict=True)).diff(ETA)
        kernel = sum(slope * sp.sign(from_other) for slope, from_other in zip(at, other, strict=True))
        differences.append(sp.expand(change - claim(-sign * kernel)))
    return differences


def diagonal_conservation() -> list[sp.Expr]:
    """beta = w_+^D - w_-^D, any loss of beta: w_+ w_- stays for D = 2, w_+^{2-D} + w_-^{2-D} for others. Two zeros."""
    w = sp.symbols("w_+ w_-", positive=True)
    depth = sp.Symbol("D", positive=True)

    def moved(of: sp.Expr, layers: sp.Expr) -> sp.Expr:
        return drift(of, sp.Function("l")(w[0] ** layers - w[1] ** layers), w)

    powers = [weight ** (2 - depth) for weight in w]
    return [
        zero(moved(sp.log(w[0]), sp.Integer(2)) - claim(-moved(sp.log(w[1]), sp.Integer(2)))),
        zero(sp.powsimp(sp.expand(moved(powers[0], depth) - claim(-moved(powers[1], depth))))),
    ]


def diagonal_links() -> list[sp.Expr]:
    """w_+- from alpha along any g(t) = -dl/dbeta, as a function of the integral of g, and beta = w_+^D - w_-^D. Zeros.

    D = 2: w_+- = alpha e^{+-x/2}, x' = 4 g, beta = 2 alpha^2 sinh x. D > 2: w_+- = alpha (1 -+ z)^{-1/(D-2)},
    z' = D (D-2) alpha^{D-2} g, beta = alpha^D h(z), h = (1-z)^{-D/(D-2)} - (1+z)^{-D/(D-2)} (Woodworth et al. 2020,
    arXiv 2002.09277).
    """
    n, g = sp.symbols("n g", positive=True)  # n = D - 2
    depth, x, (less, more) = n + 2, sp.Symbol("x", real=True), sp.symbols("l m", positive=True)  # 1 - z, 1 + z
    differences = []
    for sign, shifted in ((1, less), (-1, more)):
        two, deep = ALPHA * sp.exp(sign * x / 2), ALPHA * shifted ** (-1 / n)
        differences.append(zero(two.diff(x) * claim(4 * g) - sign * 2 * two * g))
        moved = -sign * deep.diff(shifted) * claim(depth * n * ALPHA**n * g)  # d(1 -+ z) = -+ dz
        differences.append(zero(sp.powsimp(sp.expand_power_base(moved - sign * depth * deep ** (depth - 1) * g))))
    link = less ** (-depth / n) - more ** (-depth / n)
    beta = sp.expand_power_base((ALPHA * less ** (-1 / n)) ** depth - (ALPHA * more ** (-1 / n)) ** depth)
    two = (ALPHA * sp.exp(x / 2)) ** 2 - (ALPHA * sp.exp(-x / 2)) ** 2
    square = two.rewrite(sp.exp) - claim(2 * ALPHA**2 * sp.sinh(x)).rewrite(sp.exp)
    return [*differences, zero(square), zero(sp.powsimp(beta - claim(ALPHA**depth * link)))]


def diagonal_potential() -> list[sp.Expr]:
    """Q = alpha^2 sum q(beta/alpha^2), q = 2 - sqrt(4 + z^2) + z asinh(z/2): D = 2 minimises it. Four zeros.

    q' = asinh(z/2), so dQ/dbeta = (X^T nu)_i, the condition for min Q at X beta = y, is the link of `diagonal_links`;
    Q/ln(1/alpha^2) -> |beta|_1 for alpha -> 0, 4 alpha^2 Q -> |beta|_2^2 for alpha -> infinity (Woodworth et al.
    2020, arXiv 2002.09277).
    """
    z, beta = sp.symbols("z beta", positive=True)
    potential = claim(2 - sp.sqrt(4 + z**2) + z * sp.asinh(z / 2))
    slope = sp.simplify(potential.diff(z))
    whole = ALPHA**2 * potential.subs(z, beta / ALPHA**2)
    rich = sp.limit((whole / sp.log(1 / ALPHA**2)).rewrite(sp.log), ALPHA, 0, "+")
    small = sp.series(potential, z, 0, 3).removeO().coeff(z, 2)  # beta/alpha^2 -> 0
    kkt = whole.diff(beta).subs(beta, 2 * ALPHA**2 * sp.sinh(z))
    return [zero(slope - sp.asinh(z / 2)), zero(kkt.rewrite(sp.log) - z), zero(rich - beta), 4 * small - 1]


def commuting_flow() -> list[sp.Expr]:
    """X = U U^T from alpha^2 I, commuting A_i, any loss of the <A_i, X>: ln(X/alpha^2) = sum_i nu_i A_i. Zeros.

    In the common eigenbasis, x_k = u_k^2 with (ln x_k)' = sum_i nu_i' a_ik, nu_i' = -4 dl/d<A_i, X>, whatever k; and
    that is the condition of min sum x ln(x/alpha^2) - x, which over ln(1/alpha^2) is tr X for alpha -> 0
    (Gunasekar et al. 2017, arXiv 1705.09280). Two A_i, three directions.
    """
    u, x = sp.symbols("u_:3", positive=True), sp.Symbol("x", positive=True)
    spectra = sp.Matrix(2, 3, sp.symbols("a_:6", real=True))
    seen = spectra * sp.Matrix([entry**2 for entry in u])
    outputs = sp.symbols("y_:2", real=True)
    loss = sp.Function("l")(*outputs)
    slopes = [loss.diff(output).subs(dict(zip(outputs, seen, strict=True))) for output in outputs]
    differences = []
    for k, entry in enumerate(u):
        pull = sum(slope * row.diff(entry) for slope, row in zip(slopes, seen, strict=True))
        rate = sp.log(entry**2).diff(entry) * -pull
        differences.append(zero(rate - claim(sum(-4 * s * spectra[i, k] for i, s in enumerate(slopes)))))
    entropy = x * sp.log(x / ALPHA**2) - x
    limit = sp.limit(entropy / sp.log(1 / ALPHA**2), ALPHA, 0, "+")
    return [*differences, zero(entropy.diff(x) - claim(sp.log(x / ALPHA**2))), limit - claim(x)]
