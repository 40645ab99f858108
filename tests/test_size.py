"""Sizes as expressions: arithmetic, what is written, and that it is read back."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxpar.size import Polynomial, Size, parse

TEXTS = [
    "sequence",
    "sequence // 2",
    "2 * batch * sequence // 3",
    "sequence - 1",
    "batch * sequence * sequence",
    "(sequence + 1) // 2",
    "1 - sequence",
    "-batch",
    "0",
    "7",
]


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_written_is_read_back(text: str) -> None:
    assert str(parse(str(parse(text)))) == str(parse(text))
    sizes = {"batch": 6, "sequence": 12}
    assert parse(text).at(sizes) == parse(str(parse(text))).at(sizes)


def test_how_it_is_written() -> None:
    assert str(parse("sequence*batch//8*2")) == "batch * sequence // 4"
    assert str(parse("1 + sequence")) == "sequence + 1"
    assert str(parse("1 - sequence")) == "-sequence + 1"
    assert str(parse("sequence - sequence")) == "0"
    assert str(parse("(sequence + 1) // 2")) == "(sequence + 1) // 2"


@pytest.mark.parametrize("text", ["a % 2", "min(a, 2)", "a // b", "a //", "'a'", "1.5"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse(text)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(-9, 9), st.integers(1, 9))
def test_arithmetic(batch: int, sequence: int, number: int, divisor: int) -> None:
    sizes = {"batch": batch, "sequence": sequence}
    b, s, n = Polynomial.of("batch"), Polynomial.of("sequence"), Polynomial.of(number)
    assert ((b + n) * s).at(sizes) == (batch + number) * sequence
    assert parse(f"sequence * batch // {divisor}").at(sizes) == Fraction(batch * sequence, divisor)


def test_other_variables() -> None:
    found = parse("batch * sequence").rescaled(
        {"batch": ("b", Fraction(1)), "sequence": ("half", Fraction(1, 2))}
    )
    assert str(found) == "2 * b * half"


def test_a_size_is_an_integer() -> None:
    size = Size(32, "batch * sequence // 8")
    assert size == 32
    assert size.at({"batch": 8, "sequence": 4}) == 4
    assert size.polynomial.axes == ("batch", "sequence")
    assert copy.deepcopy(size).polynomial == size.polynomial
