"""The proof that boxes are a whole tensor, against counting elements."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxpar.checkpoint.box import Box
from fxpar.checkpoint.cover import Fault, faults, inside, local
from fxpar.checkpoint.index import Part


def box(offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Box:
    return Box(offsets, sizes)


@pytest.mark.parametrize(
    ("shape", "boxes", "wanted"),
    [
        ((4,), [box((0,), (2,)), box((2,), (2,))], []),
        ((6,), [box((0,), (2,)), box((4,), (2,))], [Fault(False, box((2,), (2,)))]),
        ((4,), [box((0,), (3,)), box((2,), (2,))], [Fault(True, box((2,), (1,)))]),
        ((4, 4), [box((0, 0), (4, 2))], [Fault(False, box((0, 2), (4, 2)))]),
        ((4, 4), [box((0, 0), (2, 4)), box((2, 0), (2, 3))], [Fault(False, box((2, 3), (2, 1)))]),
        ((), [box((), ())], []),
        ((), [], [Fault(False, box((), ()))]),
        ((), [box((), ()), box((), ())], [Fault(True, box((), ()))]),
        ((0, 3), [], []),
        ((2,), [box((0,), (2,)), box((1,), (0,))], []),
    ],
)
def test_faults(shape: tuple[int, ...], boxes: list[Box], wanted: list[Fault]) -> None:
    assert list(faults(shape, tuple(boxes))) == wanted


def test_one_fault_across_slabs() -> None:
    """Edges of other boxes do not cut a fault into pieces."""
    held = tuple(Box((row, 0), (1, 2)) for row in range(4))
    assert faults((4, 3), held) == (Fault(False, Box((0, 2), (4, 1))),)


@settings(deadline=None)
@given(st.data())
def test_faults_are_the_elements_that_are_not_there_once(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple))
    given_boxes = []
    for _ in range(data.draw(st.integers(0, 6))):
        offsets = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
        sizes = tuple(data.draw(st.integers(0, size - at)) for size, at in zip(shape, offsets))
        given_boxes.append(Box(offsets, sizes))
    count = np.zeros(shape, int)
    for each in given_boxes:
        count[each.slices] += 1
    told = np.ones(shape, int)
    for twice, each in faults(shape, tuple(given_boxes)):
        assert (count[each.slices] > 1).all() if twice else (count[each.slices] == 0).all()
        told[each.slices] = 2 if twice else 0
    assert (np.minimum(count, 2) == told).all()


def test_many_boxes() -> None:
    """A grid of 4096 boxes is proved at once; each is looked at a few times, not against all others."""
    grid = tuple(Box((8 * row, 8 * column), (8, 8)) for row, column in product(range(64), range(64)))
    assert faults((512, 512), grid) == ()
    assert faults((512, 512), grid[:-1]) == (Fault(False, Box((504, 504), (8, 8))),)
    assert prod((512, 512)) == sum(prod(each.sizes) for each in grid)


def test_parts() -> None:
    assert inside((4, 4), Part((0, 2), (4, 2), (0, 0)))
    assert not inside((4, 4), Part((0, 3), (4, 2), (0, 0)))
    assert not inside((4, 4), Part((0,), (4,), (0,)))
    assert not inside((4,), Part((True,), (1,), (0,)))
    assert local([Part((0, 2), (4, 2), (0, 0)), Part((0, 6), (4, 2), (0, 2))]) == (4, 4)
