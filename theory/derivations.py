"""sympy derives, from the loss, the formulas that the rest of theory computes with. Each function returns 0 = claim.

Symbols: W_l factors, E = W_L ... W_1, Phi target, A_l active and rho_l idle blocks, eta step, lam weight decay.
"""

from functools import reduce

import sympy as sp

ETA, LAM = sp.symbols("eta lam", positive=True)


def _chain(factors: list[sp.Matrix], size: int) -> sp.Matrix:
    """F_n ... F_1, the identity if there are none."""
    return reduce(lambda product, factor: factor * product, factors, sp.eye(size))


def gradient_of_product_loss(depth: int, size: int = 2) -> list[sp.Matrix]:
    """d(1/2 |E - Phi|_F^2 + lam/2 sum |W_l|_F^2)/dW_l minus its closed form, for each l: zero matrices.

    The closed form is (W_L ... W_{l+1})^T (E - Phi) (W_{l-1} ... W_1)^T + lam W_l. The derivative is taken entry by
    entry of size x size matrices of independent symbols.
    """
    weights = [sp.Matrix(size, size, sp.symbols(f"w{layer}_:{size * size}")) for layer in range(depth)]
    target = sp.Matrix(size, size, sp.symbols(f"phi_:{size * size}"))
    residual = _chain(weights, size) - target
    loss = sum(entry**2 for entry in residual) / 2 + LAM / 2 * sum(entry**2 for weight in weights for entry in weight)
    differences = []
    for layer, weight in enumerate(weights):
        above, below = _chain(weights[layer + 1 :], size), _chain(weights[:layer], size)
        closed_form = above.T * residual * below.T + LAM * weight
        derivative = weight.applyfunc(lambda entry: sp.diff(loss, entry))
        differences.append((derivative - closed_form).expand())
    return differences


def rho_step(depth: int) -> list[sp.Expr]:
    """One gradient step on the idle part of the loss minus the rho recursion, for each layer: zeros.

    On the idle block, W_l = rho_l I_m and Phi = 0: the loss is m/2 prod rho_l^2 + lam m/2 sum rho_l^2. Moving rho_l
    moves m equal diagonal entries, so each entry feels 1/m of the derivative.
    """
    scales = sp.symbols(f"rho_1:{depth + 1}", positive=True)
    m = sp.Symbol("m", positive=True)
    loss = m / 2 * sp.prod([scale**2 for scale in scales]) + LAM * m / 2 * sum(scale**2 for scale in scales)
    differences = []
    for scale in scales:
        step = scale - ETA * sp.diff(loss, scale) / m
        others = sp.prod([other**2 for other in scales if other != scale])
        differences.append(sp.expand(step - scale * (1 - ETA * LAM - ETA * others)))
    return differences


def induction_step(depth: int) -> list[tuple[sp.MatrixExpr, sp.MatrixExpr, sp.MatrixExpr, sp.MatrixExpr]]:
    """The four blocks of W_l(t+1) minus the theorem's, for each layer, for symbolic block sizes k = 2r and m = d - 2r.

    Assume V_{l+1}^T W_l(t) V_l = diag(A_l, rho_l I_m) for all l. The V_l cancel between neighbours and, since the idle
    inputs lie in ker Phi and the idle outputs in ker Phi^T by their construction, V_{L+1}^T Phi V_1 = diag(P, 0). So
    one step of gradient descent can be written in these coordinates; it must give diag(A_l - eta lam A_l
    - eta (A_L...A_{l+1})^T (A_L...A_1 - P) (A_{l-1}...A_1)^T, rho_l (1 - eta lam - eta prod_{k != l} rho_k^2) I_m).
    """
    k, m = sp.symbols("k m", integer=True, positive=True)
    scales = sp.symbols(f"rho_1:{depth + 1}", real=True)
    cores = [sp.MatrixSymbol(f"A_{layer}", k, k) for layer in range(1, depth + 1)]
    small_target = sp.MatrixSymbol("P", k, k)
    weights = [sp.BlockDiagMatrix(core, scale * sp.Identity(m)) for core, scale in zip(cores, scales, strict=True)]
    idle_steps = []
    for layer, scale in enumerate(scales):
        others = sp.prod([other**2 for index, other in enumerate(scales) if index != layer])
        idle_steps.append(scale * (1 - ETA * LAM - ETA * others) * sp.Identity(m))
    stepped = _stepped(weights, sp.BlockDiagMatrix(small_target, sp.ZeroMatrix(m, m)))
    return _differences(stepped, _descended(cores, small_target), idle_steps)


def invariant_family_step(depth: int) -> list[tuple[sp.MatrixExpr, sp.MatrixExpr, sp.MatrixExpr, sp.MatrixExpr]]:
    """As `induction_step`, for layers of any shapes: k_0, ..., k_L and m_0, ..., m_L are all different symbols.

    Assume W_l(t) = diag(A_l, C_l) in the bases [S_l, T_l] of an invariant family, A_l of shape k_l x k_{l-1} and C_l
    of m_l x m_{l-1}, and Phi = diag(P, 0). One step of gradient descent must give diag of a step of the A_l on
    1/2 |A_L ... A_1 - P|^2 and of a step of the C_l on 1/2 |C_L ... C_1|^2. At t = 0 the assumption is the definition
    of the family: W_l(0) S_{l-1} in S_l and W_l(0)^T S_l in S_{l-1} leave nothing off the diagonal.
    """
    k = sp.symbols(f"k_:{depth + 1}", integer=True, positive=True)
    m = sp.symbols(f"m_:{depth + 1}", integer=True, positive=True)
    cores = [sp.MatrixSymbol(f"A_{layer}", k[layer], k[layer - 1]) for layer in range(1, depth + 1)]
    idle = [sp.MatrixSymbol(f"C_{layer}", m[layer], m[layer - 1]) for layer in range(1, depth + 1)]
    small_target, nothing = sp.MatrixSymbol("P", k[-1], k[0]), sp.ZeroMatrix(m[-1], m[0])
    weights = [sp.BlockDiagMatrix(core, rest) for core, rest in zip(cores, idle, strict=True)]
    stepped = _stepped(weights, sp.BlockDiagMatrix(small_target, nothing))
    return _differences(stepped, _descended(cores, small_target), _descended(idle, nothing))


def _stepped(weights: list[sp.MatrixExpr], target: sp.MatrixExpr) -> list[sp.MatrixExpr]:
    """Each block matrix W_l after one step of gradient descent with decay, its blocks multiplied out."""

    def product(factors: list[sp.MatrixExpr], size: sp.Expr) -> sp.MatrixExpr:
        return reduce(lambda below, factor: sp.block_collapse(factor * below), factors, sp.Identity(size))

    residual = sp.block_collapse(product(weights, weights[0].cols) - target)
    stepped = []
    for layer, weight in enumerate(weights):
        above, below = product(weights[layer + 1 :], weight.rows), product(weights[:layer], weights[0].cols)
        gradient = sp.block_collapse(above.T * residual * below.T)
        stepped.append(sp.block_collapse((1 - ETA * LAM) * weight - ETA * gradient))
    return stepped


def _descended(cores: list[sp.MatrixExpr], target: sp.MatrixExpr) -> list[sp.MatrixExpr]:
    """The claim: A_l - eta lam A_l - eta (A_L ... A_{l+1})^T (A_L ... A_1 - target) (A_{l-1} ... A_1)^T for each l."""

    def product(factors: list[sp.MatrixExpr], size: sp.Expr) -> sp.MatrixExpr:
        return reduce(lambda below, factor: factor * below, factors, sp.Identity(size))

    residual = product(cores, cores[0].cols) - target
    moved = []
    for layer, core in enumerate(cores):
        above, below = product(cores[layer + 1 :], core.rows), product(cores[:layer], cores[0].cols)
        moved.append((1 - ETA * LAM) * core - ETA * above.T * residual * below.T)
    return moved


def _differences(
    stepped: list[sp.MatrixExpr], active: list[sp.MatrixExpr], idle: list[sp.MatrixExpr]
) -> list[tuple[sp.MatrixExpr, sp.MatrixExpr, sp.MatrixExpr, sp.MatrixExpr]]:
    """The four blocks of each stepped layer minus diag(active, idle)."""
    differences = []
    for found, core, rest in zip(stepped, active, idle, strict=True):
        blocks = [found.blocks[row, col] for row in range(2) for col in range(2)]
        claimed = [core, sp.ZeroMatrix(core.rows, rest.cols), sp.ZeroMatrix(rest.rows, core.cols), rest]
        differences.append(tuple(_simplified(f - c) for f, c in zip(blocks, claimed, strict=True)))
    return differences


def escape_time(depth: int) -> sp.Expr:
    """The time of db/dt = sigma b^(L-1) from eps to infinity, for L = 2 to sqrt(sigma), minus the formula: zero.

    That is gradient flow of one component with b^L << sigma, all layers at b; one step is eta of time.
    """
    b, sigma, eps = sp.symbols("b sigma epsilon", positive=True)
    end = sp.sqrt(sigma) if depth == 2 else sp.oo
    steps = sp.integrate(1 / (ETA * sigma * b ** (depth - 1)), (b, eps, end))
    if depth == 2:
        return sp.simplify(sp.expand_log(steps - sp.log(sp.sqrt(sigma) / eps) / (ETA * sigma)))
    return sp.simplify(steps - 1 / ((depth - 2) * ETA * sigma * eps ** (depth - 2)))


def linear_response(depth: int) -> sp.Expr:
    """What tau adds to prod_l b_l in one step from eps_l, to first order in eta and tau, minus the formula: zero.

    The formula is sum_l prod_{k != l} eps_k^2.
    """
    scales = sp.symbols(f"epsilon_1:{depth + 1}", positive=True)
    tau = sp.Symbol("tau", positive=True)
    stepped = [eps - ETA * sp.diff((sp.prod(scales) - tau) ** 2 / 2, eps) for eps in scales]
    change = sp.diff(sp.prod(stepped), ETA, tau).subs(ETA, 0)
    claimed = sum(sp.prod([other**2 for other in scales if other != eps]) for eps in scales)
    return sp.expand(change - claimed)


def tail(depth: int) -> sp.Expr:
    """|E - E_C|_F^2 minus m prod rho_l^2, for symbolic blocks: zero.

    In the coordinates of `induction_step`, E = diag(A_L ... A_1, prod rho_l I_m) and E_C = diag(A_L ... A_1, 0).
    """
    k, m = sp.symbols("k m", integer=True, positive=True)
    scales = sp.symbols(f"rho_1:{depth + 1}", real=True)
    cores = [sp.MatrixSymbol(f"A_{layer}", k, k) for layer in range(1, depth + 1)]
    active = reduce(lambda below, core: core * below, cores)
    whole = sp.BlockDiagMatrix(active, sp.prod(scales) * sp.Identity(m))
    difference = sp.block_collapse(whole - sp.BlockDiagMatrix(active, sp.ZeroMatrix(m, m)))
    factored = [block.as_coeff_mmul() for block in difference.blocks if not block.is_ZeroMatrix]
    squares = [coefficient**2 * sp.trace((matrix.T * matrix).doit()) for coefficient, matrix in factored]
    return sp.simplify(sum(squares) - m * sp.prod([scale**2 for scale in scales]))


def balance_drift() -> sp.MatrixExpr:
    """One step's W_{l+1}^T W_{l+1} - W_l W_l^T minus the claimed drift, for neighbours in any network: zero.

    With B = W_{l-1} ... W_1, A = W_L ... W_{l+2} and G = dl/dE, the gradients are g_l = (A W_{l+1})^T G B^T and
    g_{l+1} = A^T G (W_l B)^T; of any shapes, and G may come from any loss of the product.
    """
    d = sp.symbols("d_0 d_1 d_2 d_3 d_4", integer=True, positive=True)
    lower, upper = sp.MatrixSymbol("W_l", d[2], d[1]), sp.MatrixSymbol("W_m", d[3], d[2])
    below, above = sp.MatrixSymbol("B", d[1], d[0]), sp.MatrixSymbol("A", d[4], d[3])
    residual = sp.MatrixSymbol("G", d[4], d[0])
    g_lower, g_upper = (above * upper).T * residual * below.T, above.T * residual * (lower * below).T
    shrink = 1 - ETA * LAM
    stepped_lower, stepped_upper = shrink * lower - ETA * g_lower, shrink * upper - ETA * g_upper
    balance = stepped_upper.T * stepped_upper - stepped_lower * stepped_lower.T
    claimed = shrink**2 * (upper.T * upper - lower * lower.T) + ETA**2 * (g_upper.T * g_upper - g_lower * g_lower.T)
    return _simplified(balance - claimed)


def _simplified(expression: sp.MatrixExpr) -> sp.MatrixExpr:
    return sp.simplify(sp.expand(expression.doit()).doit())
