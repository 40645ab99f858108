"""How the ranks' parts of one dimension make up the whole.

A layout lists (outer, inner) for each segment of the dimension. A rank's part of a segment is (outer, inner),
row-major; the whole segment is (outer, ranks, inner); segments stand one after another:

    fused [q|k] of 2 ranks, [1, 2, 1, 1]      part 0: q0 q1 k0     part 1: q2 q3 k1     whole: q0 q1 q2 q3 k0 k1
    minor factor,           [2, 1]            part 0: a0 b0        part 1: a1 b1        whole: a0 a1 b0 b1

An empty layout is one contiguous piece a rank. Where the whole does not divide, its length stands at the end: parts
are then rounded up, and the last ones end in padding, which no whole has:

    7 over 3 ranks,   [1, 3, 7]               parts: a0 a1 a2   a3 a4 a5   a6 0 0      whole: a0 ... a6

What is in the padding of a part is not looked at; in the parts that are made here it is zero. `dim` is never negative
here, and sizes may be symbolic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch


def gathered(stacked: torch.Tensor, dim: int, layout: Sequence[int]) -> torch.Tensor:
    """The whole from all parts, stacked along a first dimension; `dim` is counted without that one."""
    pieces = []
    for start, outer, inner in _segments(layout, stacked.shape[dim + 1]):
        piece = _unflattened(stacked.narrow(dim + 1, start, outer * inner), dim + 1, outer, inner)
        piece = piece.movedim(0, dim + 1)
        if is_uneven(layout):
            piece = piece.flatten(dim + 1, dim + 2).narrow(dim + 1, 0, _real(layout, inner))
            pieces.append(piece.flatten(dim, dim + 1))
        else:
            pieces.append(piece.flatten(dim, dim + 2))
    return _concatenated(pieces, dim)


def scattered(whole: torch.Tensor, dim: int, layout: Sequence[int], ranks: int) -> torch.Tensor:
    """All parts of a whole, stacked along a new first dimension."""
    pieces = [
        piece.movedim(dim + 1, 0).flatten(dim + 1, dim + 2) for piece in _pieces(whole, dim, layout, ranks)
    ]
    return _concatenated(pieces, dim + 1)


def part(whole: torch.Tensor, dim: int, layout: Sequence[int], ranks: int, index: int) -> torch.Tensor:
    """One rank's part of a whole, as a new tensor."""
    pieces = [
        piece.select(dim + 1, index).flatten(dim, dim + 1) for piece in _pieces(whole, dim, layout, ranks)
    ]
    own = _concatenated(pieces, dim)
    return own if len(pieces) > 1 else own.clone(memory_format=torch.contiguous_format)


def padded(own: torch.Tensor, dim: int, layout: Sequence[int], ranks: int, index: int) -> torch.Tensor:
    """A whole that has one rank's part in its place, and zeros elsewhere."""
    if is_uneven(layout):
        alone = own.unsqueeze(0)
        zeros = torch.zeros_like(alone)
        return gathered(torch.cat([*[zeros] * index, alone, *[zeros] * (ranks - 1 - index)]), dim, layout)
    shape = list(own.shape)
    shape[dim] *= ranks
    whole = own.new_zeros(shape)
    segments = _segments(layout, own.shape[dim])
    for piece, (start, outer, inner) in zip(_pieces(whole, dim, layout, ranks), segments):
        local = _unflattened(own.narrow(dim, start, outer * inner), dim, outer, inner)
        piece.select(dim + 1, index).copy_(local)
    return whole


def valid(length: int, layout: Sequence[int], index: int, device: torch.device) -> torch.Tensor:
    """Which elements of one rank's part, of this length, are none of the padding."""
    pieces = []
    for _, outer, inner in _segments(layout, length):
        here = torch.arange(index * inner, (index + 1) * inner, device=device)
        whole = _real(layout, inner) if is_uneven(layout) else (index + 1) * inner
        pieces.append((here < whole).repeat(outer))
    return _concatenated(pieces, 0)


def is_uneven(layout: Sequence[int]) -> bool:
    """Whether a layout says the length of the whole, since parts may end in padding."""
    return len(layout) % 2 == 1


def part_length(length: int, layout: Sequence[int], ranks: int) -> int:
    """The length of a part, of the length of the whole. Raises RuntimeError if the layout does not fit."""
    if is_uneven(layout):
        part = sum(outer * inner for outer, inner in zip(layout[:-1:2], layout[1::2]))
        fits = length == layout[-1] and length <= part * ranks
        ensure(fits, lambda: f"{ranks} parts of layout {list(layout)} are no whole of {length}")
        return part
    ensure(length % ranks == 0, lambda: f"{length} does not divide over {ranks} ranks")
    check(length // ranks, layout)
    return length // ranks


def check(length: int, layout: Sequence[int]) -> None:
    """Raise RuntimeError unless the layout is one of parts of this length."""
    if layout:
        total = sum(outer * inner for outer, inner in zip(layout[::2], layout[1::2]))
        ensure(length == total, lambda: f"layout {list(layout)} is of length {total}, the part has {length}")


def ensure(condition: bool, message: Callable[[], str]) -> None:
    """Raise RuntimeError with the message unless the condition holds; a symbolic one becomes a guard."""
    torch._check(condition, message)  # type: ignore[no-untyped-call]


def _segments(layout: Sequence[int], length: int) -> Iterator[tuple[int, int, int]]:
    """(start, outer, inner) of each segment of a part."""
    check(length, layout)
    start = 0
    for outer, inner in zip(layout[::2], layout[1::2]) if layout else [(1, length)]:
        yield start, outer, inner
        start += outer * inner


def _pieces(whole: torch.Tensor, dim: int, layout: Sequence[int], ranks: int) -> Iterator[torch.Tensor]:
    """Views of each segment of a whole, with `dim` as (outer, ranks, inner); copies where they end in padding."""
    length = part_length(whole.shape[dim], layout, ranks)
    if is_uneven(layout):
        yield from _padded_pieces(whole, dim, layout, ranks)
        return
    for start, outer, inner in _segments(layout, length):
        yield _unflattened(whole.narrow(dim, start * ranks, outer * ranks * inner), dim, outer, ranks, inner)


def _padded_pieces(
    whole: torch.Tensor, dim: int, layout: Sequence[int], ranks: int
) -> Iterator[torch.Tensor]:
    start, behind = 0, whole.dim() - 1 - dim
    for outer, inner in zip(layout[:-1:2], layout[1::2]):
        real = _real(layout, inner)
        piece = _unflattened(whole.narrow(dim, start, outer * real), dim, outer, real)
        piece = torch.nn.functional.pad(piece, [0, 0] * behind + [0, ranks * inner - real])
        yield _unflattened(piece, dim + 1, ranks, inner)
        start += outer * real


def _real(layout: Sequence[int], inner: int) -> int:
    """What the whole has for `inner` of every part: the split factor is as long in all segments."""
    part = sum(outer * each for outer, each in zip(layout[:-1:2], layout[1::2]))
    return inner * layout[-1] // part


def _concatenated(pieces: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    return torch.cat(list(pieces), dim) if len(pieces) > 1 else pieces[0].contiguous()


def _unflattened(x: torch.Tensor, dim: int, *sizes: int) -> torch.Tensor:
    return x.unflatten(dim, sizes)  # type: ignore[no-untyped-call, no-any-return]
