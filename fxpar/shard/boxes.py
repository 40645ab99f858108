"""Which elements of a whole tensor a rank holds: runs along each dim, boxes of the tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from fxpar.axes.factor import Cat, Dim, Factor, Term, size_of
from fxpar.axes.links import Dims
from fxpar.shard.placement import Placements, shards_of

#: (start, length) of consecutive indexes of a whole dim; a rank's runs stand in local order.
Run = tuple[int, int]


@dataclass(frozen=True)
class Box:
    """A block of a tensor: where it lies in the whole, where in the rank's own tensor, and its sizes."""

    offset: tuple[int, ...]
    local: tuple[int, ...]
    sizes: tuple[int, ...]


def boxes(
    dims: Dims, placements: Placements, sizes: Mapping[str, int], coordinate: Mapping[str, int]
) -> list[Box]:
    """The boxes of the rank at `coordinate`, of a value with these resolved dims and placements."""
    per_dim = [
        _placed(dim_runs(dims[i], _chosen(placements, i, sizes, coordinate))) for i in range(len(dims))
    ]
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


def _placed(runs: list[Run]) -> list[tuple[int, int, int]]:
    """(start in the whole, start on the rank, length) of each run."""
    out, local = [], 0
    for start, length in runs:
        out.append((start, local, length))
        local += length
    return out


def dim_runs(dim: Dim, chosen: Mapping[Factor, tuple[int, int]]) -> list[Run]:
    """The runs of a resolved dim that are left when each split factor keeps one of its parts."""
    runs: list[Run] = [(0, 1)]
    inner = 1
    for term in reversed(dim):
        whole = runs == [(0, inner)]
        mine = _term_runs(term, chosen)
        if whole:
            runs = [(start * inner, length * inner) for start, length in mine]
        else:
            indexes = [i for start, length in mine for i in range(start, start + length)]
            runs = [(i * inner + start, length) for i in indexes for start, length in runs]
        inner *= term.size
    return _joined(runs)


def _term_runs(term: Term, chosen: Mapping[Factor, tuple[int, int]]) -> list[Run]:
    if isinstance(term, Cat):
        runs, start = [], 0
        for part in term.parts:
            runs += [(start + s, length) for s, length in dim_runs(part, chosen)]
            start += size_of(part)
        return runs
    parts, index = chosen.get(term, (1, 0))
    length = term.size // parts
    return [(index * length, length)]


def _joined(runs: list[Run]) -> list[Run]:
    """Runs that follow each other become one."""
    out: list[Run] = []
    for start, length in runs:
        if out and out[-1][0] + out[-1][1] == start:
            out[-1] = (out[-1][0], out[-1][1] + length)
        else:
            out.append((start, length))
    return out
