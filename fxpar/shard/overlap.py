"""Overlaps: what ranks have of a tensor alike although the tensor is split over them.

cat[(heads 8 d 4), d, d] over 2 ranks    own rows [0, 16) of the heads, and [16, 24) that both have
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from fxpar.axes.factor import Cat, Dim, Factor, holds_partly, leaves
from fxpar.axes.links import Dims
from fxpar.axes.runs import cut_size
from fxpar.shard.placement import Placements, Shard, cuts_of

#: (start, length) along a dim of a rank's own tensor.
Span = tuple[int, int]


@dataclass(frozen=True)
class Overlap:
    """The spans of a dim of a rank's own tensor that all ranks along a mesh dim have alike.

    Their gradients are in parts, those of the rest are complete.
    """

    mesh_dim: str
    dim: int
    spans: tuple[Span, ...]


def overlaps(dims: Dims, placements: Placements, sizes: Mapping[str, int]) -> tuple[Overlap, ...]:
    """The overlaps of a tensor with these resolved dims and placements, by mesh dim."""
    return tuple(
        Overlap(
            mesh_dim, state.dim, spans(dims[state.dim], state.factor, cuts_of(placements, state.dim, sizes))
        )
        for mesh_dim, state in placements.items()
        if isinstance(state, Shard) and holds_partly(dims[state.dim], state.factor)
    )


def common(shape: Sequence[int], split: Sequence[str], found: Sequence[Overlap]) -> int:
    """How many elements of a tensor that is split over some mesh dims every rank has; `shape` is a rank's."""
    if len(found) < len(split) or len({(each.dim, each.spans) for each in found}) != 1:
        return 0
    alike = sum(length for _, length in found[0].spans)
    return alike * prod(size for dim, size in enumerate(shape) if dim != found[0].dim)


def spans(dim: Dim, factor: Factor, cuts: Mapping[Factor, int]) -> tuple[Span, ...]:
    """The spans of a rank's part of a resolved dim that do not have the factor; `cuts` are as in `cut_size`."""
    found: list[Span] = []
    start = 0
    for overlapping, length in _runs(dim, factor, cuts):
        if overlapping and found and sum(found[-1]) == start:
            found[-1] = (found[-1][0], found[-1][1] + length)
        elif overlapping:
            found.append((start, length))
        start += length
    return tuple(found)


def _runs(dim: Dim, factor: Factor, cuts: Mapping[Factor, int]) -> Iterator[tuple[bool, int]]:
    """(whether all ranks have it, length) of consecutive runs of a rank's part of a dim."""
    if not holds_partly(dim, factor):
        yield factor not in leaves(dim), cut_size(dim, cuts)
        return
    at, cat = next((i, t) for i, t in enumerate(dim) if isinstance(t, Cat) and factor in leaves((t,)))
    for _ in range(cut_size(dim[:at], cuts)):
        for part in cat.parts:
            yield from _runs((*part, *dim[at + 1 :]), factor, cuts)


def sum_text(overlap: Overlap) -> str:
    """What an overlap adds to the mesh dims that a gradient is summed over: `tp (dim 0: 16 to 23)`."""
    ranges = ", ".join(f"{start} to {start + length - 1}" for start, length in overlap.spans)
    return f"{overlap.mesh_dim} (dim {overlap.dim}: {ranges})"
