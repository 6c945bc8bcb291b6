"""sympy derives what theory computes with; and it would notice a wrong formula."""

import pytest
import sympy as sp

from theory import derivations


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_gradient_of_the_product_loss(depth):
    for difference in derivations.gradient_of_product_loss(depth):
        assert difference == sp.zeros(2, 2)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_rho_step_is_gradient_descent_on_the_idle_loss(depth):
    assert derivations.rho_step(depth) == [0] * depth


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_block_structure_survives_one_step_for_symbolic_blocks(depth):
    for blocks in derivations.induction_step(depth):
        assert [_is_zero(block) for block in blocks] == [True] * 4


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_an_invariant_family_survives_one_step_for_symbolic_blocks_that_differ_per_layer(depth):
    for blocks in derivations.invariant_family_step(depth):
        assert [_is_zero(block) for block in blocks] == [True] * 4


def test_a_wrong_step_of_the_cores_is_caught(monkeypatch):
    """Cores that claim the target 1.01 P differ in the active blocks, and only there."""
    honest = derivations._descended
    monkeypatch.setattr(derivations, "_descended", lambda cores, target: honest(cores, sp.Rational(101, 100) * target))
    for active, above, below, idle in derivations.invariant_family_step(3):
        assert not _is_zero(active)
        assert _is_zero(above)
        assert _is_zero(below)
        assert _is_zero(idle)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_escape_time_is_the_blow_up_time_of_one_component(depth):
    assert derivations.escape_time(depth) == 0


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_linear_response_is_the_first_order_of_one_step(depth):
    assert derivations.linear_response(depth) == 0


def test_a_wrong_blow_up_time_is_caught(monkeypatch):
    honest = sp.integrate
    monkeypatch.setattr(derivations.sp, "integrate", lambda *args: sp.Rational(101, 100) * honest(*args))
    assert [derivations.escape_time(depth) == 0 for depth in (2, 3)] == [False, False]


def _is_zero(block: sp.Expr) -> bool:
    return block == 0 or isinstance(block, sp.ZeroMatrix)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_tail_is_m_times_the_squared_idle_scales(depth):
    assert derivations.tail(depth) == 0


def test_first_order_terms_of_the_balance_cancel_for_any_neighbours():
    assert _is_zero(derivations.balance_drift())


def test_a_wrong_drift_is_caught(monkeypatch):
    monkeypatch.setattr(derivations, "_simplified", lambda e: sp.expand((e + derivations.ETA * e.args[0]).doit()))
    assert not _is_zero(derivations.balance_drift())


def test_a_one_percent_error_in_the_decay_is_caught(monkeypatch):
    """With lam' = 1.01 lam in the gradient step, the active and the idle blocks of each layer differ, and only they."""
    honest = sp.block_collapse

    def one_percent_more(expression):
        collapsed = honest(expression)
        return collapsed.subs(derivations.LAM, sp.Rational(101, 100) * derivations.LAM)

    monkeypatch.setattr(derivations.sp, "block_collapse", one_percent_more)
    for active, above, below, idle in derivations.induction_step(2) + derivations.invariant_family_step(2):
        assert not _is_zero(active)
        assert not _is_zero(idle)
        assert _is_zero(above)
        assert _is_zero(below)
