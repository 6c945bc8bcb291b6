"""sympy derives the modes and conservation laws of gradient flow in linear networks. Each function returns 0 = claim.

Symbols: w_l scalar layers, a = w_N ... w_1, s its target, lam = w_2^2 - w_1^2 the imbalance, W_l matrices, P their
product. That the flow keeps W_{l+1}^T W_{l+1} - W_l W_l^T is `derivations.balance_drift`, to first order in its eta.
"""

import sympy as sp

from theory.two_sides import claim, drift, zero

T, S, LAM = sp.symbols("t s lam", positive=True)


def logistic() -> list[sp.Expr]:
    """From L = (s - w_2 w_1)^2/2, balanced: a' = 2 a (s - a); a = s e^{2st}/(e^{2st} - 1 + s/a_0) solves it from a_0.

    Four zeros: the reduced rate, the equation, the start, and a = s/2 at ln(s/a_0 - 1)/(2 s) (Saxe et al. 2014,
    arXiv 1312.6120).
    """
    w = sp.symbols("w_1:3", positive=True)
    a, start = sp.symbols("a a_0", positive=True)
    rate = drift(w[0] * w[1], (S - w[0] * w[1]) ** 2 / 2, w).subs(dict.fromkeys(w, sp.sqrt(a)))
    mode = claim(S * sp.exp(2 * S * T) / (sp.exp(2 * S * T) - 1 + S / start))
    half = mode.subs(T, claim(sp.log(S / start - 1) / (2 * S)))
    return [
        zero(rate - claim(2 * a * (S - a))),
        zero(mode.diff(T) - rate.subs(a, mode)),
        zero(mode.subs(T, 0) - start),
        zero(half - S / 2),
    ]


def imbalance() -> list[sp.Expr]:
    """Two scalar layers: (w_2^2)' = (w_1^2)' for any loss l(w_1 w_2), and |da/dw|^4 = lam^2 + 4 a^2. Two zeros."""
    w = sp.symbols("w_1:3", real=True)
    a, lam = w[0] * w[1], w[1] ** 2 - w[0] ** 2
    loss = sp.Function("l")(a)
    kernel = sum(sp.diff(a, weight) ** 2 for weight in w)
    return [
        zero(drift(w[1] ** 2, loss, w) - claim(drift(w[0] ** 2, loss, w))),
        zero(kernel**2 - claim(lam**2 + 4 * a**2)),
    ]


def logistic_lag() -> list[sp.Expr]:
    """The part of first order in eta of descent's modes at t = eta times steps, from one step of w. Three zeros.

    a <- w_1 w_2 after a step agrees to eta^2 with the flow of a' = F_0 + eta F_1, F_1 = a (s - a)(3 a - s). So the lag
    e(a), along a' = F_0, obeys F_0 de/da = F_0' e + F_1, e(a_0) = 0; its closed form is in `modes.logistic_lag`.
    """
    a, start, eta = sp.symbols("a a_0 eta", positive=True)
    w = sp.symbols("w_1:3", positive=True)
    stepped = [weight - eta * sp.diff((S - w[0] * w[1]) ** 2 / 2, weight) for weight in w]
    moved = sp.expand(sp.prod(stepped)).subs(dict.fromkeys(w, sp.sqrt(a)))
    flow = 2 * a * (S - a)
    second = moved.coeff(eta, 2) - flow * flow.diff(a) / 2  # a(t + eta) has eta^2 (F_1 + F_0 F_0' / 2)
    lag = claim(-a * (S - a) / 2 * (sp.log(a / start) + 2 * sp.log((S - a) / (S - start))))
    equation = flow * lag.diff(a) - flow.diff(a) * lag - a * (S - a) * (3 * a - S)
    return [zero(second - claim(a * (S - a) * (3 * a - S))), zero(equation), zero(lag.subs(a, start))]


def unbalanced_mode() -> list[sp.Expr]:
    """With a = (lam/2) sinh theta, a' = sqrt(lam^2 + 4 a^2)(s - a) is theta' = 2 s - lam sinh theta, solved. Zeros.

    The rate from the loss; theta' by the chain rule; 2 y' = lam^2 + 4 s y - y^2 for y = lam e^theta; and its solution
    y = (y_0 (p + q E) + lam^2 g)/(q + p E + y_0 g) with its start: R^2 = lam^2 + 4 s^2, E = e^{-Rt}, g = (1 - E)/R,
    p, q = 1 +- 2 s/R.
    """
    w = sp.symbols("w_1:3", positive=True)
    theta, start = sp.Symbol("theta", real=True), sp.Symbol("y_0", positive=True)
    a, kernel = w[0] * w[1], w[0] ** 2 + w[1] ** 2
    product = LAM * sp.sinh(theta) / 2
    theta_rate = LAM * sp.cosh(theta) * (S - product) / product.diff(theta)  # sqrt(lam^2 + 4 a^2) = lam cosh theta
    y_rate = (LAM * sp.exp(theta)).diff(theta) * theta_rate.rewrite(sp.exp)
    fixed, decay = sp.symbols("R E", positive=True)
    p, q, gathered = 1 + 2 * S / fixed, 1 - 2 * S / fixed, (1 - decay) / fixed
    square = fixed**2 - 4 * S**2
    y = claim((start * (p + q * decay) + square * gathered) / (q + p * decay + start * gathered))

    def riccati(of: sp.Expr, imbalance_squared: sp.Expr) -> sp.Expr:
        return (imbalance_squared + 4 * S * of - of**2) / 2

    return [
        zero(drift(a, (S - a) ** 2 / 2, w) - claim(kernel * (S - a))),
        zero(theta_rate - claim(2 * S - LAM * sp.sinh(theta))),
        zero(y_rate - claim(riccati(LAM * sp.exp(theta), LAM**2))),
        sp.cancel(-fixed * decay * y.diff(decay) - riccati(y, square)),
        sp.cancel(y.subs(decay, 1) - start),
    ]


def scalar_depth(depth: int) -> list[sp.Expr]:
    """N scalars: (w_l^2)' = (w_1^2)' for any loss of the product; balanced, a' = N a^{2 - 2/N} (s - a). N zeros.

    Arora et al. 2018, arXiv 1802.06509.
    """
    w = sp.symbols(f"w_1:{depth + 1}", positive=True)
    a, product = sp.Symbol("a", positive=True), sp.prod(w)
    loss = sp.Function("l")(product)
    drifts = [zero(drift(other**2, loss, w) - claim(drift(w[0] ** 2, loss, w))) for other in w[1:]]
    rate = drift(product, (S - product) ** 2 / 2, w).subs(dict.fromkeys(w, a ** sp.Rational(1, depth)))
    return [*drifts, zero(rate - claim(depth * a ** (2 - sp.Rational(2, depth)) * (S - a)))]


def riccati_form() -> list[sp.MatrixExpr]:
    """Flow of |S - W_2 W_1|_F^2/2 minus F Q - Q Q^T Q/2, of any shapes: what vanishes if W_2^T W_2 - W_1 W_1^T = lam I.

    Q = [W_1^T; W_2], F = [[-lam/2 I, S^T], [S, lam/2 I]] (Fukumizu 1998 and Braun et al. 2022 for lam = 0, Dominé
    et al. 2024, arXiv 2409.14623, for any). With
    B = W_2^T W_2 - W_1 W_1^T - lam I the two blocks are -W_1^T B/2 and W_2 B/2; the returned differences are zero.
    """
    n, h, m = sp.symbols("n h m", integer=True, positive=True)
    lower, upper, target = sp.MatrixSymbol("W_1", h, n), sp.MatrixSymbol("W_2", m, h), sp.MatrixSymbol("S", m, n)
    residual = target - upper * lower  # minus the gradient of the product
    gram = lower * lower.T + upper.T * upper
    balance = upper.T * upper - lower * lower.T - LAM * sp.Identity(h)
    top = -LAM / 2 * lower.T + target.T * upper - lower.T * gram / 2
    bottom = target * lower.T + LAM / 2 * upper - upper * gram / 2
    found = [(upper.T * residual).T - top, residual * lower.T - bottom]
    claimed = [claim(-lower.T * balance / 2), claim(upper * balance / 2)]
    return [sp.expand((f - c).doit()).doit() for f, c in zip(found, claimed, strict=True)]


def riccati_solution() -> list[sp.Expr]:
    """M = Q Q^T of Q' = F Q - Q Q^T Q/2 is e^{Ft} Q_0 [I + Q_0^T J Q_0]^-1 Q_0^T e^{Ft}, J = int_0^t e^{2Fs} ds. Zeros.

    M' = F M + M F - M^2, M(0) = Q_0 Q_0^T, for any matrices: P = e^{Ft} Q_0 has P' = F P, and the inverse K of
    I + Q_0^T J Q_0 has K' = -K (P^T P) K. Then J for an eigenvalue f of F, and J(0) = 0, which makes K = I.
    """
    drive, target = sp.symbols("F M", commutative=False)
    p, k, p_t = (sp.Function(name, commutative=False)(T) for name in ("P", "K", "P_T"))
    rules = {p.diff(T): drive * p, p_t.diff(T): p_t * drive, k.diff(T): -k * p_t * p * k}
    equation = drive * target + target * drive - target**2
    solution = claim(p * k * p_t)
    f, s = sp.symbols("f s", positive=True)
    integral = claim((sp.exp(2 * f * T) - 1) / (2 * f))
    return [
        sp.expand(solution.diff(T).subs(rules) - equation.subs(target, solution)),
        zero(sp.integrate(sp.exp(2 * f * s), (s, 0, T)) - integral),
        integral.subs(T, 0),
    ]


def end_to_end(depth: int, size: int = 2) -> sp.Matrix:
    """P' of a balanced linear network minus its closed form, in singular coordinates of P: a zero matrix.

    W_l = diag(sigma_i^{1/N}), G = dl/dP of any loss. Entry ij of P' is -c_ij G_ij with c_ii = N sigma_i^{2 - 2/N} and
    c_ij = (sigma_i^2 - sigma_j^2)/(sigma_i^{2/N} - sigma_j^{2/N}) (Arora et al. 2018, arXiv 1802.06509, theorem 1).
    """
    roots = sp.symbols(f"x_:{size}", positive=True)  # sigma_i^{1/N}
    gradient = sp.Matrix(size, size, sp.symbols(f"g_:{size * size}", real=True))
    layer, rate = sp.diag(*roots), sp.zeros(size)
    for below in range(depth):
        above = depth - 1 - below
        rate -= layer**above * (layer**above * gradient * layer**below) * layer**below

    def factor(x: sp.Symbol, y: sp.Symbol) -> sp.Expr:
        return depth * x ** (2 * depth - 2) if x == y else (x ** (2 * depth) - y ** (2 * depth)) / (x**2 - y**2)

    closed = sp.Matrix(size, size, lambda i, j: -claim(factor(roots[i], roots[j])) * gradient[i, j])
    return (rate - closed).applyfunc(sp.cancel)


def singular_value_rate() -> sp.Expr:
    """sigma_1' = u_1^T P' v_1, from det(P P^T - sigma^2 I) = 0 at P = diag(sigma_1, sigma_2) for any P': zero.

    With `end_to_end`, sigma_1' = -N sigma_1^{2 - 2/N} u_1^T G v_1 (Arora et al. 2019, arXiv 1905.13655, theorem 3).
    """
    sigma = sp.symbols("sigma_1:3", positive=True)
    step, square = sp.symbols("epsilon mu", positive=True)
    motion = sp.Matrix(2, 2, sp.symbols("p_:4", real=True))
    moved = sp.diag(*sigma) + step * motion
    vanishing = (moved * moved.T - square * sp.eye(2)).det()
    rate = -(sp.diff(vanishing, step) / sp.diff(vanishing, square)).subs({step: 0, square: sigma[0] ** 2})
    return zero(rate / (2 * sigma[0]) - claim(motion[0, 0]))
