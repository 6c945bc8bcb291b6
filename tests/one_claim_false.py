"""Makes the claims of a derivation false by 1 %, one at a time."""

from types import ModuleType

import pytest
import sympy as sp


def unnoticed(monkeypatch: pytest.MonkeyPatch, module: ModuleType, function: str, arguments: tuple = ()) -> list[int]:
    """Which claims of the function, in the order of its calls of `claim`, leave all it returns 0 when 1 % too large."""
    return [
        which
        for which in range(_run(monkeypatch, module, function, arguments, None)[1])
        if _run(monkeypatch, module, function, arguments, which)[0]
    ]


def _run(monkeypatch, module, function, arguments, which: int | None) -> tuple[bool, int]:
    """Whether all that is returned is 0 with claim `which` false, and how many claims there were."""
    made = 0

    def false(formula):
        nonlocal made
        made += 1
        return formula * sp.Rational(101, 100) if made - 1 == which else formula

    with monkeypatch.context() as patch:
        patch.setattr(module, "claim", false)
        returned = getattr(module, function)(*arguments)
    assert made, f"{function} claims nothing"
    return all(_is_zero(entry) for entry in (returned if isinstance(returned, list) else [returned])), made


def _is_zero(entry) -> bool:
    return entry == 0 or bool(getattr(entry, "is_ZeroMatrix", False) or getattr(entry, "is_zero_matrix", False))
