"""Cutting a tensor into parts by a layout, and putting the parts together again, without any rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxpar.runtime import layout as layouts


def part(x: Tensor, dim: int, layout: Sequence[int], index: int, parts: int) -> Tensor:
    """Part `index` of `parts` of x along `dim`; `layout` lists [outer, inner] of each segment of one part."""
    if layouts.is_uneven(layout):
        return layouts.part(x, dim, layout, parts, index)
    pieces, start = [], 0
    for outer, inner in _pairs(layout):
        segment = x.narrow(dim, start, outer * parts * inner)
        pieces.append(
            _split(segment, dim, (outer, parts, inner)).select(dim + 1, index).flatten(dim, dim + 1)
        )
        start += outer * parts * inner
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def joined(pieces: Sequence[Tensor], dim: int, layout: Sequence[int]) -> Tensor:
    """The whole of which `part` makes these pieces."""
    if layouts.is_uneven(layout):
        return layouts.gathered(torch.stack(list(pieces)), dim, layout)
    segments, start = [], 0
    for outer, inner in _pairs(layout):
        taken = [_split(piece.narrow(dim, start, outer * inner), dim, (outer, inner)) for piece in pieces]
        segments.append(torch.stack(taken, dim + 1).flatten(dim, dim + 2))
        start += outer * inner
    return segments[0] if len(segments) == 1 else torch.cat(segments, dim)


def _pairs(layout: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(layout[::2], layout[1::2]))


def _split(x: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])
