"""Tensors and their parts in as few dims as tell the parts apart, and in units of whole bytes.

Dims along which nobody cuts belong to the dim before them, so that a cut by rows is a cut of a list of bytes:

    F32 [8, 3, 4], cut along dim 0   ->  [384] bytes
    F32 [8, 3, 4], cut along dim 1   ->  [8, 48] bytes

The last dim counts units of 8, 4, 2 or 1 bytes, the largest of which all edges are multiples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, prod

from fxpar.checkpoint.index import Part

#: The parts of a tensor that one file holds.
Parts = tuple[Part, ...]
#: Bytes of the largest unit.
WIDEST = 8


@dataclass(frozen=True)
class Geometry:
    """A whole tensor (`shape`, the last dim in units of `unit` bytes) and the parts of each holder in the same dims."""

    shape: tuple[int, ...]
    unit: int
    holders: tuple[Parts, ...]

    @property
    def bytes(self) -> int:
        """The bytes of the whole tensor."""
        return prod(self.shape) * self.unit

    def repeated(self, taken: int) -> frozenset[tuple[int, int]]:
        """The parts (holder, number) that a holder before has too, and all beyond the first `taken` holders."""
        seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
        found = set()
        for holder, parts in enumerate(self.holders):
            for number, (offsets, sizes, _) in enumerate(parts):
                if (offsets, sizes) in seen or holder >= taken:
                    found.add((holder, number))
                seen.add((offsets, sizes))
        return frozenset(found)


@lru_cache(maxsize=128)
def geometry(shape: tuple[int, ...], bits: int, holders: tuple[Parts, ...]) -> Geometry:
    """The geometry of a tensor of elements of `bits` bits.

    Raises ValueError if an edge of a part lies within a byte.
    """
    if prod(shape) == 0:
        return Geometry((0,), 1, tuple(() for _ in holders))
    held = [[part for part in parts if prod(part.sizes)] for parts in holders]
    if not shape:
        shape, held = (1,), [[Part((0,), (1,), (0,)) for _ in parts] for parts in held]
    for dim in reversed(range(1, len(shape))):
        if all(_full(part, dim, shape[dim]) for parts in held for part in parts):
            held = [[_merged(part, dim, shape[dim]) for part in parts] for parts in held]
            shape = (*shape[: dim - 1], shape[dim - 1] * shape[dim], *shape[dim + 1 :])
    factor, divisor = _scale(shape[-1], [part for parts in held for part in parts], bits)
    return Geometry(
        (*shape[:-1], shape[-1] * bits // 8 // factor),
        factor,
        tuple(tuple(_scaled(part, bits, divisor) for part in parts) for parts in held),
    )


def _full(part: Part, dim: int, size: int) -> bool:
    return part.offsets[dim] == 0 and part.sizes[dim] == size and part.local[dim] == 0


def _merged(part: Part, dim: int, size: int) -> Part:
    """The part with a dim that it has all of joined to the dim before."""
    offsets, sizes, local = (
        (*numbers[: dim - 1], numbers[dim - 1] * size, *numbers[dim + 1 :]) for numbers in part
    )
    return Part(offsets, sizes, local)


def _scale(size: int, parts: Sequence[Part], bits: int) -> tuple[int, int]:
    """The unit in bytes and in bits."""
    edges = {size, *(numbers[-1] for part in parts for numbers in part)}
    if any(edge * bits % 8 for edge in edges):
        raise ValueError(f"elements of {bits} bits can be cut at whole bytes only")
    unit = gcd(WIDEST, *(edge * bits // 8 for edge in edges))
    return unit, unit * 8


def _scaled(part: Part, bits: int, unit: int) -> Part:
    offsets, sizes, local = ((*numbers[:-1], numbers[-1] * bits // unit) for numbers in part)
    return Part(offsets, sizes, local)
