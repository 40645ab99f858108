"""Boxes of a tensor that several files have in part, cut so that they are the same in all of them. No torch here.

rows 12 to 24 in one file, 16 to 24 in another      12 to 16 and 16 to 24 in the first
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from math import prod

from fxpar.checkpoint.index import Part

Files = Mapping[str, tuple[Part, ...]]


def apart(shape: Sequence[int], files: Files) -> dict[str, tuple[Part, ...]]:
    """The same parts; where boxes of different files overlap, each cut along the edges of all."""
    boxes = {(part.offsets, part.sizes) for parts in files.values() for part in parts}
    if sum(prod(sizes) for _, sizes in boxes) == prod(shape):
        return dict(files)
    edges = [
        sorted({edge for at, size in boxes for edge in (at[dim], at[dim] + size[dim])})
        for dim in range(len(shape))
    ]
    return {
        file: tuple(piece for part in parts for piece in _cut(part, edges)) for file, parts in files.items()
    }


def _cut(part: Part, edges: Sequence[Sequence[int]]) -> list[Part]:
    """A part, cut along the edges that go through it."""
    if 0 in part.sizes:
        return [part]
    ranges = []
    for start, size, some in zip(part.offsets, part.sizes, edges):
        ranges.append(list(pairwise([edge for edge in some if start <= edge <= start + size])))
    return [
        Part(
            tuple(first for first, _ in place),
            tuple(last - first for first, last in place),
            tuple(at + first - start for (first, _), at, start in zip(place, part.local, part.offsets)),
        )
        for place in product(*ranges)
    ]
