"""Tensors in as few dims as their parts need."""

from __future__ import annotations

import pytest

from fxpar.checkpoint.geometry import Geometry, geometry
from fxpar.checkpoint.index import Part

WHOLE = (Part((0, 0, 0), (8, 3, 4), (0, 0, 0)),)


def test_rows_are_a_list_of_bytes() -> None:
    rows = (Part((4, 0, 0), (4, 3, 4), (0, 0, 0)),)
    found = geometry((8, 3, 4), 32, (WHOLE, rows))
    assert found == Geometry((48,), 8, ((Part((0,), (48,), (0,)),), (Part((24,), (24,), (0,)),)))


def test_a_cut_within_keeps_the_dims_before_it() -> None:
    columns = (Part((0, 1, 0), (8, 1, 4), (0, 0, 0)),)
    found = geometry((8, 3, 4), 32, (WHOLE, columns))
    assert found.shape == (8, 6)
    assert found.unit == 8
    assert found.holders[1] == (Part((0, 2), (8, 2), (0, 0)),)


def test_units_fit_all_edges() -> None:
    odd = (Part((0, 0), (4, 3), (0, 0)),)
    assert geometry((4, 8), 16, (odd,)).unit == 2
    assert geometry((4, 8), 32, (odd,)).unit == 4
    assert geometry((4, 8), 8, (odd,)).unit == 1


def test_scalars_and_empty_tensors() -> None:
    assert geometry((), 32, ((Part((), (), ()),),)) == Geometry((1,), 4, ((Part((0,), (1,), (0,)),),))
    assert geometry((0, 4), 32, ((Part((0, 0), (0, 4), (0, 0)),),)).bytes == 0


def test_less_than_a_byte() -> None:
    rows = (Part((2, 0), (2, 3), (0, 0)),)
    assert geometry((4, 3), 4, (rows,)) == Geometry((6,), 1, ((Part((3,), (3,), (0,)),),))
    with pytest.raises(ValueError, match="elements of 4 bits can be cut at whole bytes only"):
        geometry((4, 3), 4, ((Part((1, 0), (3, 3), (0, 0)),),))


def test_parts_that_stand_twice() -> None:
    first, second = (Part((0,), (8,), (0,)),), (Part((8,), (8,), (0,)), Part((0,), (8,), (8,)))
    found = geometry((16,), 8, (first, second, first))
    assert found.repeated(2) == {(1, 1), (2, 0)}
    assert found.repeated(3) == {(1, 1), (2, 0)}
