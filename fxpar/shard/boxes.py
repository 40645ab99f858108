"""Which elements of a whole tensor a rank holds: runs along each dim, boxes of the tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from fxpar.axes.cut import cut_size, part_size
from fxpar.axes.factor import Cat, Dim, Factor, Term, size_of
from fxpar.axes.links import Dims
from fxpar.shard.placement import Placements, shards_of

#: (start in the whole dim, start on the rank, length) of consecutive indexes; a rank's runs stand in local order.
Run = tuple[int, int, int]


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


def dim_runs(dim: Dim, chosen: Mapping[Factor, tuple[int, int]]) -> list[Run]:
    """The runs of a resolved dim that are left when each split factor keeps one of its parts."""
    cuts = {factor: parts for factor, (parts, _) in chosen.items()}
    runs: list[Run] = [(0, 0, 1)]
    inner = local = 1
    for term in reversed(dim):
        whole = runs == [(0, 0, inner)] and local == inner
        mine = _term_runs(term, chosen)
        if whole:
            runs = [(start * inner, at * inner, length * inner) for start, at, length in mine]
        else:
            indexes = [(start + k, at + k) for start, at, length in mine for k in range(length)]
            runs = [
                (i * inner + start, j * local + at, length) for i, j in indexes for start, at, length in runs
            ]
        inner, local = inner * term.size, local * cut_size((term,), cuts)
    return _joined(runs) or [(inner, 0, 0)]


def _term_runs(term: Term, chosen: Mapping[Factor, tuple[int, int]]) -> list[Run]:
    if isinstance(term, Cat):
        return _cat_runs(term, chosen)
    parts, index = chosen.get(term, (1, 0))
    length = part_size(term, parts)
    return [(index * length, 0, max(0, min(length, term.size - index * length)))]


def _cat_runs(cat: Cat, chosen: Mapping[Factor, tuple[int, int]]) -> list[Run]:
    cuts = {factor: parts for factor, (parts, _) in chosen.items()}
    runs, start, local = [], 0, 0
    for part in cat.parts:
        runs += [(start + s, local + at, length) for s, at, length in dim_runs(part, chosen)]
        start, local = start + size_of(part), local + cut_size(part, cuts)
    return runs


def _joined(runs: list[Run]) -> list[Run]:
    """Runs that follow each other in the whole and on the rank become one; empty ones go."""
    out: list[Run] = []
    for start, at, length in runs:
        if out and (out[-1][0] + out[-1][2], out[-1][1] + out[-1][2]) == (start, at):
            out[-1] = (out[-1][0], out[-1][1], out[-1][2] + length)
        elif length:
            out.append((start, at, length))
    return out
