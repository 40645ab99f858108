"""Numbers as reports write them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from fxpar.report.number import amount, count, percent


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (33, "33"),
        (1.25, "1.25"),
        (9999, "9999"),
        (12345, "12.35 k"),
        (2.5e9, "2.5 G"),
        (7e16, "7e+04 T"),
    ],
)
def test_amounts(number: float, text: str) -> None:
    assert amount(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(2e-3, "2 m"), (5e-5, "50 µ"), (-20000, "-20 k"), (4e-9, "0.004 µ")]
)
def test_amounts_that_are_small_or_negative(number: float, text: str) -> None:
    assert amount(number) == text


def test_counts_and_shares() -> None:
    assert [count(number) for number in (4, Fraction(9, 2), Fraction(16, 3), 10, 0)] == [
        "4",
        "4.5",
        "5.33",
        "10",
        "0",
    ]
    assert percent(Fraction(3, 8)) == "37.5 %"
