"""sympy derives what low-rank gradients follow from, and where published bounds fail. Each function returns 0 = claim.

Symbols: those of `low_rank_gradients` and `subspace_descent`; G(W) = A - mean_i B_i W C_i.
"""

import sympy as sp

from theory.two_sides import claim, zero

ETA, LAM = sp.symbols("eta lam", positive=True)


def _symmetric(name: str, size: int) -> sp.Matrix:
    return sp.Matrix(size, size, lambda i, j: sp.Symbol(f"{name}_{min(i, j)}{max(i, j)}", real=True))


def _matrix(name: str, rows: int, cols: int) -> sp.Matrix:
    return sp.Matrix(rows, cols, sp.symbols(f"{name}_:{rows * cols}", real=True))


def _pull(weight: sp.Matrix, samples: int) -> sp.Matrix:
    """mean_i B_i W C_i with symbols for B_i and C_i."""
    rows, cols = weight.shape
    return (
        sum(
            (_symmetric(f"b{i}", rows) * weight * _symmetric(f"c{i}", cols) for i in range(samples)),
            sp.zeros(rows, cols),
        )
        / samples
    )


def descent_step(rows: int = 2, cols: int = 2, samples: int = 2) -> list[sp.MatrixBase]:
    """G = A - mean B W C from its loss, G_{t+1} = G - eta mean B G C, and vec(mean B G C) = S vec G. Zero matrices.

    S = mean C_i kron B_i, vec stacks columns (Zhao et al. 2024, arXiv 2403.03507).
    """
    weight, constant = _matrix("w", rows, cols), _matrix("a", rows, cols)
    loss = sp.trace(weight.T * _pull(weight, samples)) / 2 - sp.trace(constant.T * weight)
    gradient = -sp.Matrix(rows, cols, lambda i, j: loss.diff(weight[i, j]))
    following = constant - _pull(weight + ETA * gradient, samples)
    pairs = [(_symmetric(f"c{i}", cols), _symmetric(f"b{i}", rows)) for i in range(samples)]
    hessian = sum((sp.kronecker_product(*pair) for pair in pairs), sp.zeros(rows * cols, rows * cols)) / samples
    return [
        (gradient - claim(constant - _pull(weight, samples))).expand(),
        (following - claim(gradient - ETA * _pull(gradient, samples))).expand(),
        (_pull(gradient, samples).vec() - claim(hessian * gradient.vec())).expand(),
    ]


def subspace_step() -> list[sp.Expr]:
    """R_{t+1} = R - eta P^T B P R Q^T C Q for W <- W + eta P R Q^T, R = P^T G Q, for matrices of any sizes. Two zeros.

    Symbols that do not commute stand for the matrices; P and Q are any. G itself moves by -eta B P R Q^T C.
    """
    a, b, c, w = sp.symbols("A B C W", commutative=False)
    p, q, p_t, q_t = sp.symbols("P Q P^T Q^T", commutative=False)
    gradient = a - b * w * c
    seen = p_t * gradient * q
    change = gradient.subs(w, w + ETA * p * seen * q_t) - gradient
    inside = ETA * (p_t * b * p) * seen * (q_t * c * q)
    return [sp.expand(change + claim(ETA * b * p * seen * q_t * c)), sp.expand(p_t * change * q + claim(inside))]


def gathered() -> list[sp.Expr]:
    """What t steps of one mode add to the weight and take from the loss. Four zeros.

    eta sum_{s < t} (1 - eta lam)^s = (1 - (1 - eta lam)^t) / lam; the excess r^2 / 2 lam falls by
    r^2 (1 - (1 - eta lam)^{2t}) / 2 lam, that is eta r^2 / 2 times the sum over 2t powers.
    """
    t, s = sp.symbols("t s", integer=True, positive=True)
    r, q = sp.symbols("r q", positive=True)  # q = 1 - eta lam
    eta = (1 - q) / LAM
    powers = sp.Sum(q**s, (s, 0, t - 1)).doit().args[1].args[0]  # of its two cases that of q != 1
    gained = claim((1 - q**t) / LAM)
    lost = claim(r**2 * (1 - q ** (2 * t)) / (2 * LAM))
    x = sp.Symbol("x", real=True)  # the loss lam x^2 / 2 - a x, r = a - lam x
    a = sp.Symbol("a", real=True)
    loss = LAM * x**2 / 2 - a * x
    above = claim((a - LAM * x) ** 2 / (2 * LAM))
    return [
        zero(sp.simplify(eta * powers - gained)),
        zero(r**2 / (2 * LAM) - (q**t * r) ** 2 / (2 * LAM) - lost),
        zero(sp.simplify(eta * r**2 / 2 * powers.subs(t, 2 * t) - lost)),
        zero(loss - loss.subs(x, sp.solve(loss.diff(x), x)[0]) - above),
    ]


def what_stays(rows: int = 2, cols: int = 2) -> list[sp.Expr]:
    """Along W + x p q^T the loss is a parabola, least at x = R / k, R = p^T G q, k = p^T B p q^T C q. Three zeros.

    So what stays of one sample's G_0 is G_0 - B p (R / k) q^T C, in which R is 0, and the loss falls by R^2 / 2 k.
    """
    weight, constant, x = _matrix("w", rows, cols), _matrix("a", rows, cols), sp.Symbol("x", real=True)
    left, right = _matrix("p", rows, 1), _matrix("q", cols, 1)
    ends = _symmetric("b0", rows) * left, right.T * _symmetric("c0", cols)

    def loss(at: sp.Matrix) -> sp.Expr:
        return sp.expand(sp.trace(at.T * _pull(at, 1)) / 2 - sp.trace(constant.T * at))

    seen = (left.T * (constant - _pull(weight, 1)) * right)[0]
    bend = (left.T * ends[0])[0] * (ends[1] * right)[0]
    parabola = claim(-x * seen + x**2 * bend / 2)
    r, k = sp.symbols("R k", positive=True)
    scalar = -x * r + x**2 * k / 2
    best = sp.solve(scalar.diff(x), x)[0]
    return [
        sp.expand(loss(weight + x * left * right.T) - loss(weight) - parabola),
        best - claim(r / k),
        zero(scalar.subs(x, best) + claim(r**2 / (2 * k))),
    ]


def changes() -> list[sp.Expr | sp.MatrixBase]:
    """C' kron B' - C kron B has two terms, and Theorem 3.8 needs both: zeros.

    For a scalar, G = a - B W C, B = C = l (2 D - W): |B|, |C| -> l D, their Lipschitz constant times D, as W -> D. Then
    kappa = B C = l^2 D^2, but R grows by the factor 1 + eta l^2 D^2, which is 1 - eta (kappa - 2 l^2 D^2): the bound
    where the paper's proof ends, attained; its statement, 1 - eta (kappa - l^2 D^2) = 1, is false (Zhao et al. 2024,
    arXiv 2403.03507).
    """
    sides = [_symmetric(name, 2) for name in ("c", "b", "e", "d")]
    (right, left, new_right, new_left), kron = sides, sp.kronecker_product
    split = kron(new_right, claim(new_left - left)) + kron(claim(new_right - right), left)
    w, small, scale, radius = sp.symbols("w R l D", positive=True)
    side = scale * (2 * radius - w)
    pulled = side * w * side
    moved = small + pulled - pulled.subs(w, w + ETA * small)  # R_{t+1}, with A = R + B W C
    return [
        (kron(new_right, new_left) - kron(right, left) - split).expand(),
        zero((side**2).subs(w, radius) - claim(scale**2 * radius**2)),
        zero(moved.diff(small).subs({small: 0, w: radius}) - claim(1 + ETA * scale**2 * radius**2)),
    ]


def entangled() -> list[sp.Expr | sp.MatrixBase]:
    """Four samples of 2 x 2 for which Lemma 3.3 fails at every t, from G_0 = I, 0 < eta <= 8/19. Zeros.

    B_i, C_i as in `sims.low_rank_gradients.entangled`. S has the eigenvalues 1/4, 11/8, 3/2, 19/8; V_1 is diag(1, 2),
    G^par = diag(3, 6) / 5 of spectral norm 6/5 > |I|_2, and with x = ((1 - 3 eta / 2) / (1 - eta / 4))^t

        sr(G_t) = 1 + ((3 + 2 x) / (6 - x))^2 >= 5/4 + 5 x / 12,    the lemma's bound = 5/4 + 5 y^2 / 36,

    where y = ((1 - 11 eta / 8) / (1 - eta / 4))^t: 2 against 25/18 at t = 0, and larger ever after, since y^2 <= x;
    `stable_rank_bound`, with the slant 1 / 5^(1/2), is sr(G_t). Of the last step,
    (1 - 3 eta / 2) (1 - eta / 4) - (1 - 11 eta / 8)^2 = eta (64 - 97 eta) / 64 >= 0, and 8/19 < 64/97.
    """
    swap, sign, one = sp.Matrix([[0, 1], [1, 0]]), sp.diag(1, -1), sp.eye(2)
    rights = [one + swap, one - swap, one + sign, sp.Rational(7, 4) * one - sign]
    pairs = zip(rights, [rights[i] for i in (1, 0, 3, 2)], strict=True)
    hessian = sum((sp.kronecker_product(*pair) for pair in pairs), sp.zeros(4, 4)) / 4
    x, y = sp.symbols("x y", positive=True)
    modes = {  # in units of (1 - eta / 4)^t, and orthogonal
        sp.Rational(1, 4): claim(sp.diag(3, 6) / 5),
        sp.Rational(3, 2): claim(sp.diag(2, -1) / 5),
    }
    slow, fast = modes.values()
    others = {sp.Rational(11, 8): swap, sp.Rational(19, 8): sp.Matrix([[0, 1], [-1, 0]])}
    spectrum = [hessian * mode.vec() - claim(rate) * mode.vec() for rate, mode in (modes | others).items()]
    squares = [entry**2 for entry in (slow + x * fast).diagonal()]  # the second is the larger one for x <= 1
    ours, limit = 1 + squares[0] / squares[1], 1 + slow[0, 0] ** 2 / slow[1, 1] ** 2
    total, rest, slant = (slow.T * slow).trace(), (fast.T * fast).trace(), 1 / sp.sqrt(5)
    bound = limit + y**2 * rest / slow[1, 1] ** 2
    slower = (1 - sp.Rational(3, 2) * ETA) * (1 - ETA / 4) - (1 - sp.Rational(11, 8) * ETA) ** 2
    return [
        *spectrum,
        slow + fast - one,
        zero(ours - claim(1 + ((3 + 2 * x) / (6 - x)) ** 2)),
        zero(ours - (total + x**2 * rest) / (slow[1, 1] - x * sp.sqrt(rest) * claim(slant)) ** 2),
        zero(slant - sp.sqrt(1 - slow[1, 1] ** 2 / total)),  # of the second unit vectors with V_1
        zero(bound - claim(sp.Rational(5, 4) + 5 * y**2 / 36)),
        zero(ours.diff(x).subs(x, 0) - claim(sp.Rational(5, 12))),
        zero(slower - claim(ETA * (64 - 97 * ETA) / 64)),
    ]
