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
    inputs lie in ker Phi and the idle outputs in ker Phi^T by their construction, V_{L+1}^T Phi V_1 = diag(P, 0). So one step of gradient descent can be written in these coordinates; it must give
    diag(A_l - eta lam A_l - eta (A_L...A_{l+1})^T (A_L...A_1 - P) (A_{l-1}...A_1)^T, rho_l (1 - eta lam - eta prod_{k != l} rho_k^2) I_m).
    """  # noqa: E501
    k, m = sp.symbols("k m", integer=True, positive=True)
    scales = sp.symbols(f"rho_1:{depth + 1}", real=True)
    cores = [sp.MatrixSymbol(f"A_{layer}", k, k) for layer in range(1, depth + 1)]
    small_target = sp.MatrixSymbol("P", k, k)
    weights = [sp.BlockDiagMatrix(core, scale * sp.Identity(m)) for core, scale in zip(cores, scales, strict=True)]
    target = sp.BlockDiagMatrix(small_target, sp.ZeroMatrix(m, m))

    def product(factors: list[sp.MatrixExpr], size: sp.Expr) -> sp.MatrixExpr:
        return reduce(lambda below, factor: sp.block_collapse(factor * below), factors, sp.Identity(size))

    residual = sp.block_collapse(product(weights, k + m) - target)
    small_residual = product(cores, k) - small_target
    differences = []
    for layer, weight in enumerate(weights):
        above, below = product(weights[layer + 1 :], k + m), product(weights[:layer], k + m)
        gradient = sp.block_collapse(above.T * residual * below.T)
        stepped = sp.block_collapse((1 - ETA * LAM) * weight - ETA * gradient)
        core_step = (1 - ETA * LAM) * cores[layer] - ETA * (
            product(cores[layer + 1 :], k).T * small_residual * product(cores[:layer], k).T
        )
        others = sp.prod([scale**2 for other, scale in enumerate(scales) if other != layer])
        idle_step = scales[layer] * (1 - ETA * LAM - ETA * others) * sp.Identity(m)
        claimed = [core_step, sp.ZeroMatrix(k, m), sp.ZeroMatrix(m, k), idle_step]
        found = [stepped.blocks[row, col] for row in range(2) for col in range(2)]
        differences.append(tuple(_simplified(f - c) for f, c in zip(found, claimed, strict=True)))
    return differences


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
