"""Guards of torch.export as conditions on axes."""

from __future__ import annotations

import pytest
import sympy
from torch.utils._sympy.functions import FloorDiv, Max, Mod, ToFloat

from fxpar.capture.guards import Bounds, Guard

B, S = (sympy.Symbol(name, integer=True, positive=True) for name in ("s1", "s2"))
NAMES = {"s1": "batch", "s2": "sequence"}
BOUNDS: dict[str, Bounds] = {"batch": (2, None), "sequence": (2, 64)}


def text_of(expression: sympy.Basic) -> str | None:
    found = Guard(expression, "model.py:3").condition(NAMES, BOUNDS)
    assert found is None or found.place == "model.py:3"
    return None if found is None else found.text


@pytest.mark.parametrize(
    "expression",
    [
        sympy.Eq(B * S, S * B),
        sympy.Ne(S, 1),
        sympy.Ne(S, 65),
        S <= 64,
        S - 1 >= 1,
        B * S >= 4,
        sympy.Ne(B * S, 3),
        B * (S - 1) > 1,
        S < 3 * S * B,
    ],
)
def test_what_always_holds_is_left_out(expression: sympy.Basic) -> None:
    assert text_of(expression) is None


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (sympy.Ne(S, 24), "sequence != 24"),
        (B <= S, "batch <= sequence"),
        (B * S < 500, "batch * sequence < 500"),
        (sympy.Eq(Mod(S, 8), 0), "sequence % 8 == 0"),
        (FloorDiv(S, 3) < 20, "sequence // 3 < 20"),
        (Max(B, S) < 100, "max(batch, sequence) < 100"),
        (0.5 * ToFloat(S) > 6.5, "0.5 * float(sequence) > 6.5"),
        (B <= 64, "batch <= 64"),
        (S <= 63, "sequence <= 63"),
    ],
)
def test_what_may_not_hold_is_said_of_axes(expression: sympy.Basic, text: str) -> None:
    assert text_of(expression) == text


def test_what_cannot_be_said() -> None:
    with pytest.raises(ValueError, match="is no condition"):
        text_of(sympy.sin(S) < 0.5)
    with pytest.raises(KeyError):
        Guard(sympy.Symbol("u0") < 3).condition(NAMES, BOUNDS)
