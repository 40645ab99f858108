"""Conditions on sizes."""

from __future__ import annotations

import pytest

from fxpar.condition import Condition

SIZES = {"batch": 4, "sequence": 16}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("batch * sequence < 500", True),
        ("sequence % 8 == 0", True),
        ("sequence // 3 != 5", False),
        ("batch <= sequence", True),
        ("-batch + 2 * sequence >= 29", False),
        ("sequence ** 2 > 255", True),
        ("max(batch, sequence, 20) == 20", True),
        ("min(batch, sequence) == 5", False),
        ("sequence / 3 < 5.4", True),
        ("0.5 * float(sequence) > 8.5", False),
        ("int(float(sequence) ** 0.5) == 4", True),
        ("(batch & 1) == 1", False),
        ("(batch & 5 ^ 4 | 1) == 1", True),
        ("batch == 4 and not sequence == 4 or sequence == 1", True),
    ],
)
def test_what_holds(text: str, holds: bool) -> None:
    assert Condition(text).holds(SIZES) is holds


def test_the_axes_of_a_condition() -> None:
    assert Condition("max(sequence, batch) < 3 * batch").axes == ("batch", "sequence")


@pytest.mark.parametrize(
    "text", ["batch <", "heads == 2", "batch.bit_length() > 3", "open('x')", "'a' == 'b'"]
)
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(ValueError, match="is no condition"):
        Condition(text).holds(SIZES)
