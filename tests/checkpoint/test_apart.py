"""Boxes that files have in part are cut until they are the same or apart."""

from __future__ import annotations

from fxpar.checkpoint.apart import apart
from fxpar.checkpoint.box import Box
from fxpar.checkpoint.cover import faults
from fxpar.checkpoint.index import Part


def test_rows_that_several_files_have() -> None:
    files = {
        "a": (Part((0, 0), (4, 3), (0, 0)), Part((8, 0), (4, 3), (4, 0))),
        "b": (Part((4, 0), (8, 3), (0, 0)),),
    }
    made = apart((12, 3), files)
    assert made["a"] == files["a"]
    assert made["b"] == (Part((4, 0), (4, 3), (0, 0)), Part((8, 0), (4, 3), (4, 0)))
    boxes = {Box(part.offsets, part.sizes) for parts in made.values() for part in parts}
    assert list(faults((12, 3), tuple(boxes))) == []


def test_what_does_not_overlap_stays() -> None:
    files = {"a": (Part((0,), (4,), (0,)),), "b": (Part((4,), (2,), (0,)),), "c": (Part((6,), (0,), (0,)),)}
    assert apart((6,), files) == files
