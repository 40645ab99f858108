"""The proof that boxes are a whole tensor: each element lies in exactly one of them.

dim 0 is cut at the edges of all boxes, and in each slab the boxes that cross it are looked at along the next dim:

+-------+---+      slab 0: two boxes, side by side along dim 1
|   a   | b |
+---+---+---+      slab 1: c, and no box from its right edge on: a fault
| c |
+---+
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import NamedTuple

from fxpar.checkpoint.box import Box
from fxpar.checkpoint.index import Part


class Fault(NamedTuple):
    """A box of the whole that no given box holds, or (`twice`) that several hold."""

    twice: bool
    box: Box

    def grown(self, size: int) -> Fault:
        """The fault with its first size enlarged."""
        offsets, sizes = self.box
        return Fault(self.twice, Box(offsets, (sizes[0] + size, *sizes[1:])))


@lru_cache(maxsize=256)
def faults(shape: tuple[int, ...], boxes: tuple[Box, ...]) -> tuple[Fault, ...]:
    """Where boxes that lie inside a shape do not cover it exactly once; empty ones are of no account."""
    if prod(shape) == 0:
        return ()
    return tuple(_walk(shape, [box for box in boxes if prod(box.sizes)]))


def _walk(shape: tuple[int, ...], boxes: Sequence[Box]) -> list[Fault]:
    """The faults of boxes that all reach across the dims before these."""
    if not boxes:
        return [Fault(False, Box.whole(shape))]
    if not shape:
        return [Fault(True, Box((), ()))] if len(boxes) > 1 else []
    found: list[Fault] = []
    before: dict[tuple[object, ...], int] = {}
    for start, stop, inner in _slabs(shape[0], boxes):
        here = {}
        for twice, (offsets, sizes) in _walk(shape[1:], inner):
            fault = Fault(twice, Box((start, *offsets), (stop - start, *sizes)))
            number = before.get(_tail(fault), len(found))
            if number == len(found):
                found.append(fault)
            else:  # The same fault as in the slab before.
                found[number] = found[number].grown(stop - start)
            here[_tail(fault)] = number
        before = here
    return found


def _slabs(size: int, boxes: Sequence[Box]) -> Iterable[tuple[int, int, list[Box]]]:
    """The ranges between edges along the first dim, and the rest of each box that crosses them."""
    edges = sorted({0, size, *(b.offsets[0] for b in boxes), *(b.offsets[0] + b.sizes[0] for b in boxes)})
    waiting = sorted(boxes, key=lambda box: box.offsets[0], reverse=True)
    crossing: list[Box] = []
    for start, stop in pairwise(edges):
        crossing = [box for box in crossing if box.offsets[0] + box.sizes[0] > start]
        while waiting and waiting[-1].offsets[0] == start:
            crossing.append(waiting.pop())
        yield start, stop, [Box(box.offsets[1:], box.sizes[1:]) for box in crossing]


def _tail(fault: Fault) -> tuple[object, ...]:
    return fault.twice, fault.box.offsets[1:], fault.box.sizes[1:]


def inside(shape: Sequence[int], part: Part) -> bool:
    """Whether a part is whole numbers and lies inside of a tensor of that shape."""
    if not len(part.offsets) == len(part.sizes) == len(part.local) == len(shape):
        return False
    numbers = (*part.offsets, *part.sizes, *part.local)
    return all(type(number) is int and number >= 0 for number in numbers) and all(
        start + size <= whole for start, size, whole in zip(part.offsets, part.sizes, shape)
    )


def local(parts: Sequence[Part]) -> tuple[int, ...]:
    """The shape of the tensor that parts make up in a file."""
    rank = len(parts[0].sizes)
    return tuple(max(part.local[dim] + part.sizes[dim] for part in parts) for dim in range(rank))
