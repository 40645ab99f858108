"""Texts in columns."""

from __future__ import annotations

import pytest

from fxpar.axes.columns import aligned, numbers, size_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (3 * 2**30, "3.0 GiB"),
        (2**51, "2048.0 TiB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert size_text(count) == text


def test_long_lists_of_numbers_are_cut() -> None:
    assert numbers([1, 2, 3]) == "1 2 3"
    assert numbers(range(1, 9)) == "1 2 3 4 5 6 7 8"
    assert numbers(range(1, 10)) == "1 2 3 4 5 6 ... 9"


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert aligned([["a", "long", "x"], ["wide", "b", ""]], "  ") == "  a     long  x\n  wide  b"
