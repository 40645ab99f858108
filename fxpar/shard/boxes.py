"""Which elements of a whole tensor a rank holds: runs along each dim, boxes of the tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from fxpar.axes.factor import Factor
from fxpar.axes.links import Dims
from fxpar.axes.runs import dim_runs
from fxpar.shard.placement import Placements, shards_of


@dataclass(frozen=True)
class Box:
    """A block of a tensor: where it lies in the whole, where in the rank's own tensor, and its sizes."""

    offset: tuple[int, ...]
    local: tuple[int, ...]
    sizes: tuple[int, ...]


def boxes(
    dims: Dims, placements: Placements, sizes: Mapping[str, int], coordinate: Mapping[str, int]
) -> list[Box]:
    """The boxes of the rank at `coordinate`, of a value with these resolved dims and placements.

    Where a factor does not divide, the last ranks' tensors end in padding, which is in no box. A rank that has
    nothing but padding has one box of size 0.
    """
    per_dim = [dim_runs(dims[i], _chosen(placements, i, sizes, coordinate)) for i in range(len(dims))]
    return [
        Box(tuple(r[0] for r in spot), tuple(r[1] for r in spot), tuple(r[2] for r in spot))
        for spot in product(*per_dim)
    ]


def _chosen(
    placements: Placements, dim: int, sizes: Mapping[str, int], coordinate: Mapping[str, int]
) -> dict[Factor, tuple[int, int]]:
    """(number of parts, the rank's part) for every split factor of a dim."""
    chosen = {}
    for factor, mesh_dims in shards_of(placements, dim).items():
        parts, index = 1, 0
        for mesh_dim in mesh_dims:
            parts, index = parts * sizes[mesh_dim], index * sizes[mesh_dim] + coordinate.get(mesh_dim, 0)
        chosen[factor] = (parts, index)
    return chosen
