"""Bytes of tensors."""

from __future__ import annotations

import pytest

from fxpar.checkpoint import dtypes
from fxpar.checkpoint.weights import DTYPES


@pytest.mark.parametrize(
    ("code", "shape", "size"),
    [("F32", (2, 3), 24), ("BOOL", (), 1), ("F4", (3, 2), 3), ("F6_E2M3", (4,), 3), ("C64", (0, 5), 0)],
)
def test_bytes(code: str, shape: tuple[int, ...], size: int) -> None:
    assert dtypes.size(code, shape) == size


def test_an_end_within_a_byte() -> None:
    with pytest.raises(ValueError, match=r"F4 \[3\] ends within a byte"):
        dtypes.size("F4", (3,))


def test_bits_are_those_of_torch() -> None:
    assert {code: dtypes.BITS[code] for code in DTYPES} == {c: 8 * d.itemsize for c, d in DTYPES.items()}
