"""Checksums of pieces are put together to that of the whole."""

from __future__ import annotations

import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxpar.checkpoint.crc import Sum, combine


@settings(deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_two_pieces(first: bytes, second: bytes) -> None:
    assert combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@settings(deadline=None)
@given(st.data())
def test_pieces_in_any_order(data: st.DataObject) -> None:
    text = data.draw(st.binary(max_size=200))
    edges = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=8))})
    pieces = data.draw(st.permutations(list(pairwise(edges))))
    total = Sum()
    for start, stop in pieces:
        total.add(start, stop - start, zlib.crc32(text[start:stop]))
    assert total.result(len(text)) == zlib.crc32(text)


def test_large_pieces() -> None:
    zeros = bytes(1 << 20)
    assert combine(7, zlib.crc32(zeros), len(zeros)) == zlib.crc32(zeros, 7)


def test_a_piece_that_is_missing() -> None:
    total = Sum()
    total.add(0, 4, 1)
    total.add(6, 2, 1)
    with pytest.raises(ValueError, match="the pieces are not the bytes 0 to 8"):
        total.result(8)
