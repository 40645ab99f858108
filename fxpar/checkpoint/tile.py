"""A tensor in tiles of bounded bytes, and where each lies in the files that hold parts of the tensor.

A tile is a range along one dim, with fixed indices before it and all of the dims behind it:

    whole tensor     file a    file b        two tiles, by rows; columns lie in two files. In each of them a tile's
    +-------+        +---+     +---+         rows follow each other: one run of bytes, which is read or written at
    | 0   0 |        | 0 |     | 0 |         once and copied to or from the columns of the tile in memory.
    +-------+        +---+     +---+
    | 1   1 |        | 1 |     | 1 |
    +-------+        +---+     +---+
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

from fxpar.checkpoint.cover import local
from fxpar.checkpoint.geometry import Geometry, Parts

#: Bytes of a tile at most.
BYTES = 4 << 20
#: A tensor of at most so many tiles keeps those that have at most so many runs.
FEW, RUNS = 4, 64
Slices = tuple[slice, ...]


class Move(NamedTuple):
    """What of a tile is what of a run, and which of the holder's parts it is of."""

    tile: Slices
    run: Slices
    part: int


class Run(NamedTuple):
    """Adjacent bytes of a holder's local tensor: the first of them, how many, their shape in units, what they are.

    `place` is the byte of the tile from which on the same bytes lie there in the same order, or None.
    """

    start: int
    bytes: int
    shape: tuple[int, ...]
    moves: tuple[Move, ...]
    place: int | None


class Tile(NamedTuple):
    """A tile: its shape in units, its bytes, and its runs in each holder."""

    shape: tuple[int, ...]
    bytes: int
    holders: tuple[tuple[Run, ...], ...]


class Tiling:
    """The tiles of a tensor."""

    def __init__(self, geometry: Geometry, most: int) -> None:
        """`most` is the bytes of a tile, at least those of a unit."""
        self.geometry = geometry
        shape = geometry.shape
        self.dim = next(dim for dim in range(len(shape)) if self._inner(dim) <= most)
        self.height = max(1, most // self._inner(self.dim)) if geometry.bytes else 1
        self.across = -(-shape[self.dim] // self.height)
        self.count = prod(shape[: self.dim]) * self.across
        self._locals = [local(parts) if parts else () for parts in geometry.holders]
        self._kept: dict[int, Tile] = {}

    def _inner(self, dim: int) -> int:
        """Bytes that one index along a dim stands for."""
        return prod(self.geometry.shape[dim + 1 :]) * self.geometry.unit

    def tile(self, number: int) -> Tile:
        """The tile with a number below `count`; small tensors that are cut alike share theirs."""
        found = self._kept.get(number)
        if found is None:
            found = self._tile(number)
            if self.count <= FEW and sum(map(len, found.holders)) <= RUNS:
                self._kept[number] = found
        return found

    def _tile(self, number: int) -> Tile:
        origin = self._origin(number)
        rows = min(self.height, self.geometry.shape[self.dim] - origin[self.dim])
        inner = self.geometry.shape[self.dim + 1 :]
        sizes = (*(1 for _ in range(self.dim)), rows, *inner)
        area = _Area(origin, sizes, self.dim, self.geometry.unit)
        runs = tuple(
            tuple(_runs(area, parts, whole)) for parts, whole in zip(self.geometry.holders, self._locals)
        )
        return Tile((rows, *inner), rows * self._inner(self.dim), runs)

    def _origin(self, number: int) -> tuple[int, ...]:
        """The index of the first element of a tile."""
        outer, step = divmod(number, self.across)
        shape = self.geometry.shape
        return (*_index(outer, shape[: self.dim]), step * self.height, *(0 for _ in shape[self.dim + 1 :]))

    def byte(self, number: int, inside: Sequence[int]) -> int:
        """The byte of the whole tensor at an index of a tile."""
        origin = self._origin(number)
        index = [*origin[: self.dim], *_added(origin[self.dim :], inside)]
        return _linear(index, self.geometry.shape) * self.geometry.unit


@lru_cache(maxsize=64)
def tiling(geometry: Geometry, most: int) -> Tiling:
    """The tiles of at most so many bytes of a tensor."""
    return Tiling(geometry, most)


class _Area(NamedTuple):
    """Where a tile lies in the whole tensor: its range is along `dim`."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dim: int
    unit: int


class _Piece(NamedTuple):
    """What a part and a tile have in common: offset in the tile and in the local tensor, and sizes, by dim."""

    tile: tuple[int, ...]
    local: tuple[int, ...]
    sizes: tuple[int, ...]
    part: int


def _runs(area: _Area, parts: Parts, whole: tuple[int, ...]) -> Iterator[Run]:
    """The runs in a local tensor of shape `whole` that a tile is in."""
    bands: dict[tuple[int, ...], list[_Piece]] = {}
    for piece in _pieces(area, parts):
        key = (*piece.local[: area.dim + 1], piece.sizes[area.dim])
        bands.setdefault(key, []).append(piece)
    width = prod(whole[area.dim + 1 :])
    group: list[_Piece] = []
    for key in sorted(bands):
        band = bands[key]
        if sum(prod(piece.sizes[area.dim + 1 :]) for piece in band) != width:
            yield from (run for piece in band for run in _scattered(area, piece, whole))
        elif group and _follows(group[-1], band[0], area.dim):
            group += band
        else:
            if group:
                yield _run(area, group, whole)
            group = band
    if group:
        yield _run(area, group, whole)


def _pieces(area: _Area, parts: Parts) -> Iterator[_Piece]:
    for number, part in enumerate(parts):
        starts = tuple(map(max, area.offsets, part.offsets))
        stops = [
            min(a + size, b + width)
            for a, size, b, width in zip(area.offsets, area.sizes, part.offsets, part.sizes)
        ]
        sizes = tuple(stop - start for start, stop in zip(starts, stops))
        if all(size > 0 for size in sizes):
            inside = tuple(start - offset for start, offset in zip(starts, area.offsets))
            place = tuple(at + start - offset for at, start, offset in zip(part.local, starts, part.offsets))
            yield _Piece(inside, place, sizes, number)


def _follows(before: _Piece, after: _Piece, dim: int) -> bool:
    """Whether the rows of a piece begin where those of another one end."""
    return (
        before.local[:dim] == after.local[:dim] and before.local[dim] + before.sizes[dim] == after.local[dim]
    )


def _run(area: _Area, pieces: Sequence[_Piece], whole: tuple[int, ...]) -> Run:
    """The run that pieces fill, which are all of adjacent rows."""
    dim = area.dim
    first = pieces[0].local[dim]
    rows = pieces[-1].local[dim] + pieces[-1].sizes[dim] - first
    shape = (rows, *whole[dim + 1 :])
    origin = (*pieces[0].local[:dim], first, *(0 for _ in whole[dim + 1 :]))
    return _made(area, pieces, origin, shape, whole)


def _scattered(area: _Area, piece: _Piece, whole: tuple[int, ...]) -> Iterator[Run]:
    """The runs of a piece that has only some of each row, while others have not the rest of the same rows."""
    dim, rank = area.dim, len(whole)
    last = next(d for d in range(dim, rank) if piece.sizes[d + 1 :] == whole[d + 1 :])
    for steps in product(*(range(size) for size in piece.sizes[dim:last])):
        shift = (*(0 for _ in range(dim)), *steps, *(0 for _ in range(rank - last)))
        sizes = (*(1 for _ in range(last)), *piece.sizes[last:])
        moved = _Piece(_added(piece.tile, shift), _added(piece.local, shift), sizes, piece.part)
        yield _made(area, [moved], moved.local, sizes[dim:], whole)


def _made(
    area: _Area,
    pieces: Sequence[_Piece],
    origin: tuple[int, ...],
    shape: tuple[int, ...],
    whole: tuple[int, ...],
) -> Run:
    """The run of a shape that begins at an index of the local tensor."""
    dim = area.dim
    start = _linear(origin, whole)
    moves = tuple(_move(piece, origin, dim) for piece in pieces)
    place = _place(area, pieces[0]) if len(pieces) == 1 else None
    return Run(start * area.unit, prod(shape) * area.unit, shape, moves, place)


def _move(piece: _Piece, origin: tuple[int, ...], dim: int) -> Move:
    inside, local, sizes = piece.tile[dim:], piece.local[dim:], piece.sizes[dim:]
    return Move(
        tuple(slice(at, at + size) for at, size in zip(inside, sizes)),
        tuple(slice(at - first, at - first + size) for at, first, size in zip(local, origin[dim:], sizes)),
        piece.part,
    )


def _place(area: _Area, piece: _Piece) -> int | None:
    """The byte of the tile at which a piece begins if it is all of a run of bytes there."""
    cut = next((d for d, size in enumerate(piece.sizes) if size != 1), len(piece.sizes) - 1)
    if piece.sizes[cut + 1 :] != area.sizes[cut + 1 :]:
        return None
    return _linear(piece.tile, area.sizes) * area.unit


def _index(number: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The index of an element by its number in row-major order."""
    index: list[int] = []
    for size in reversed(shape):
        number, at = divmod(number, size)
        index.append(at)
    return tuple(reversed(index))


def _linear(index: Sequence[int], shape: Sequence[int]) -> int:
    """The number of an element in row-major order."""
    number = 0
    for size, at in zip(shape, index):
        number = number * size + at
    return number


def _added(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip(a, b))
