"""Cutting a tensor into parts by a layout, and putting the parts together again, without any rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxpar.runtime import layout as layouts_


def part(x: Tensor, dim: int, layout: Sequence[int], index: int, parts: int) -> Tensor:
    """Part `index` of `parts` of x along `dim`; `layout` lists [outer, inner] of each segment of one part."""
    if layouts_.is_uneven(layout):
        return layouts_.part(x, dim, layout, parts, index)
    pieces, start = [], 0
    for outer, inner in _pairs(layout):
        segment = x.narrow(dim, start, outer * parts * inner)
        pieces.append(
            _split(segment, dim, (outer, parts, inner)).select(dim + 1, index).flatten(dim, dim + 1)
        )
        start += outer * parts * inner
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def parts(x: Tensor, dim: int, layouts: Sequence[Sequence[int]]) -> list[Tensor]:
    """All parts of x along `dim`, each by a layout of its own: their inner sizes may differ."""
    if all(layout == layouts[0] for layout in layouts):
        return [part(x, dim, layouts[0], index, len(layouts)) for index in range(len(layouts))]
    pieces: list[list[Tensor]] = [[] for _ in layouts]
    start = 0
    for segments in zip(*map(_pairs, layouts)):
        outer, inners = segments[0][0], [inner for _, inner in segments]
        segment = _split(x.narrow(dim, start, outer * sum(inners)), dim, (outer, sum(inners)))
        for piece, taken in zip(pieces, torch.split(segment, inners, dim + 1)):
            piece.append(taken.flatten(dim, dim + 1))
        start += outer * sum(inners)
    return [piece[0] if len(piece) == 1 else torch.cat(piece, dim) for piece in pieces]


def joined(pieces: Sequence[Tensor], dim: int, layouts: Sequence[Sequence[int]]) -> Tensor:
    """The whole of which `parts` makes these pieces."""
    if layouts_.is_uneven(layouts[0]):
        return layouts_.gathered(torch.stack(list(pieces)), dim, layouts[0])
    segments, starts = [], [0] * len(pieces)
    for sizes in zip(*map(_pairs, layouts)):
        taken = []
        for number, (piece, (outer, inner)) in enumerate(zip(pieces, sizes)):
            taken.append(_split(piece.narrow(dim, starts[number], outer * inner), dim, (outer, inner)))
            starts[number] += outer * inner
        segments.append(torch.cat(taken, dim + 1).flatten(dim, dim + 1))
    return segments[0] if len(segments) == 1 else torch.cat(segments, dim)


def _pairs(layout: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(layout[::2], layout[1::2]))


def _split(x: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])
