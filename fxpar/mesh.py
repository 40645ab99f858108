"""The device mesh: named dimensions, and the arithmetic between ranks and coordinates. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

#: Every mesh dim, outermost first: neighbours in the last one are neighbours in rank.
MESH_DIMS = ("pp", "dp", "ep", "cp", "tp")

#: Joins the names of several mesh dims into the name of the group that spans them, outermost first.
JOIN = "+"


@dataclass(frozen=True)
class Mesh:
    """A grid of ranks. `sizes` maps each mesh dim to its size, outermost first; rank order is row-major."""

    sizes: Mapping[str, int]

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of the mesh dims, outermost first."""
        return tuple(self.sizes)

    @property
    def world(self) -> int:
        """The number of ranks."""
        return prod(self.sizes.values())

    def size(self, group: str) -> int:
        """The number of ranks in a group such as `tp` or `dp+cp`; an absent mesh dim counts one."""
        return prod(self.sizes.get(dim, 1) for dim in group.split(JOIN))

    def coordinate(self, rank: int) -> dict[str, int]:
        """The position of a rank along every mesh dim."""
        position = {}
        for dim, size in reversed(tuple(self.sizes.items())):
            rank, position[dim] = divmod(rank, size)
        return {dim: position[dim] for dim in self.sizes}

    def rank(self, coordinate: Mapping[str, int]) -> int:
        """The rank at a coordinate; mesh dims that are not named count as zero."""
        rank = 0
        for dim, size in self.sizes.items():
            rank = rank * size + coordinate.get(dim, 0)
        return rank

    def index(self, rank: int, group: str) -> int:
        """The position of a rank inside its group, in the order in which `members` lists them."""
        position, index = self.coordinate(rank), 0
        for dim in group.split(JOIN):
            index = index * self.sizes.get(dim, 1) + position.get(dim, 0)
        return index

    def members(self, rank: int, group: str) -> tuple[int, ...]:
        """The ranks that share a group with `rank`: all that differ from it only along the group's dims."""
        dims = [dim for dim in group.split(JOIN) if dim in self.sizes]
        base = self.coordinate(rank)
        spots = product(*(range(self.sizes[dim]) for dim in dims))
        return tuple(self.rank(base | dict(zip(dims, spot))) for spot in spots)

    def groups(self, group: str) -> Iterator[tuple[int, ...]]:
        """Every distinct group of that kind, in the order of their first rank."""
        seen = set()
        for rank in range(self.world):
            members = self.members(rank, group)
            if members not in seen:
                seen.add(members)
                yield members


def joined(dims: Sequence[str]) -> str:
    """The name of the group that spans several mesh dims, in the order given."""
    return JOIN.join(dims)


class GroupName(str):
    """The name of a kind of group (`tp`, `dp+cp`) as an argument in a graph, told apart from other strings."""

    __slots__ = ()


class OpNumber(int):
    """The number of a random op in a graph, told apart from other numbers: layers of one shape differ only in these."""

    __slots__ = ()


class LeafNumber(int):
    """The number of an opaque module in a graph, told apart from other numbers, as those of random ops."""

    __slots__ = ()


class GroupIndex(str):
    """As an argument in a graph: the index of the rank inside its group of that kind."""

    __slots__ = ()
