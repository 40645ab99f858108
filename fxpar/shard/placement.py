"""Placements: what the ranks of one mesh dim hold of one value.

    Invariant   the same on every rank; its gradient is the same and complete
    Replicate   the same, feeding split work; its gradient is partial and must be summed
    Shard       each rank its slice along one factor of one dim; its gradient likewise
    Partial     summands; its gradient is the same and complete

Names and states follow torch's `spmd_types`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import TypeAlias

from fxpar.axes.factor import Cat, Dim, Factor
from fxpar.axes.links import Dims
from fxpar.axes.runs import cut_size


class State(Enum):
    """A placement that names no dim."""

    INVARIANT = "I"
    REPLICATE = "R"
    PARTIAL = "P"

    def __repr__(self) -> str:
        return self.value


INVARIANT, REPLICATE, PARTIAL = State.INVARIANT, State.REPLICATE, State.PARTIAL


@dataclass(frozen=True)
class Shard:
    """Rank k of the mesh dim holds the k-th part of `factor` where it stands in dim number `dim`."""

    dim: int
    factor: Factor

    def __repr__(self) -> str:
        return f"S({self.dim}, {self.factor!r})"


Placement: TypeAlias = State | Shard
#: The placements of one value by mesh dim; a mesh dim that is absent holds it Invariant.
Placements: TypeAlias = Mapping[str, Placement]


def shards_of(placements: Placements, dim: int) -> dict[Factor, list[str]]:
    """The factors along which a dim is split, with the mesh dims that split them."""
    found: dict[Factor, list[str]] = {}
    for mesh_dim, placement in placements.items():
        if isinstance(placement, Shard) and placement.dim == dim:
            found.setdefault(placement.factor, []).append(mesh_dim)
    return found


def cuts_of(placements: Placements, dim: int, sizes: Mapping[str, int]) -> dict[Factor, int]:
    """Into how many parts each split factor of a dim goes."""
    return {f: prod(sizes[m] for m in dims) for f, dims in shards_of(placements, dim).items()}


def local_shape(dims: Dims, placements: Placements, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that one rank holds of a value with these resolved dims."""
    return tuple(cut_size(dim, cuts_of(placements, i, sizes)) for i, dim in enumerate(dims))


def layout(dim: Dim, factor: Factor, cuts: Mapping[Factor, int]) -> list[int]:
    """How the ranks' slices of a dim interleave when `factor` is gathered: [outer, inner] for each segment.

    The dim's local length is the sum of outer * inner; gathered it is (outer, ranks, inner), segment after segment.
    Where the factor does not divide, the length of the gathered dim follows (see `fxpar.runtime.layout`). `cuts`
    counts the split factor itself too.
    """
    found = _layout(dim, factor, cuts)
    if factor.size % cuts.get(factor, 1) == 0:
        return found
    return [*found, cut_size(dim, {other: parts for other, parts in cuts.items() if other is not factor})]


def _layout(dim: Dim, factor: Factor, cuts: Mapping[Factor, int]) -> list[int]:
    outer = 1
    for position, term in enumerate(dim):
        if term is factor:
            return [outer, cut_size(dim[position:], cuts)]
        if isinstance(term, Cat) and any(factor in _flat(part) for part in term.parts):
            inner = cut_size(dim[position + 1 :], cuts)
            segments = [
                n * (inner if k % 2 else 1)
                for part in term.parts
                for k, n in enumerate(_layout(part, factor, cuts))
            ]
            return segments * outer
        outer *= cut_size((term,), cuts)
    raise ValueError("the factor does not stand in the dim")


def _flat(dim: Dim) -> set[Factor]:
    found: set[Factor] = set()
    for term in dim:
        found |= {term} if isinstance(term, Factor) else {f for part in term.parts for f in _flat(part)}
    return found
