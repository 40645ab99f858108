"""Mesh dims larger than the factor that they split: such a dim falls into pieces, and the next axis takes the rest.

    tp = 16 over 8 heads of keys and values, each with 4 queries:  (heads 8)@tp1 (groups 4)@tp2, tp = tp1 x tp2 = 8 x 2

Keys and values are then replicated over tp2, and the gradients of what makes them are summed there. Every other row of
the table that says tp takes both pieces, in this order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fxpar.axes.factor import Factor
from fxpar.axes.naming import Naming
from fxpar.mesh import Mesh
from fxpar.shard.table import Row, Table


def cut_mesh(mesh: Mesh, table: Table, naming: Naming) -> tuple[Mesh, Table]:
    """The mesh and the table in which dims that are too large for an axis are cut into pieces."""
    pieces = {dim: found for dim, size in mesh.sizes.items() if (found := _pieces(dim, size, table, naming))}
    sizes: dict[str, int] = {}
    for dim, size in mesh.sizes.items():
        sizes.update(dict(zip(names(dim), pieces[dim][1:])) if dim in pieces else {dim: size})
    rows: dict[str, Row] = {}
    for axis, row in table.items():
        extension = naming.extensions.get(axis)
        cut = [dim for dim in row.over if dim in pieces and pieces[dim][0] == axis]
        if not cut or extension is None:
            rows[axis] = _renamed(row, pieces)
            continue
        rows[axis] = _renamed(row, pieces, keep=0)
        rows[extension] = replace(_renamed(row, pieces, keep=1), axis=extension)
    return Mesh(sizes), rows


def names(dim: str) -> tuple[str, str]:
    """The names of the two pieces of a mesh dim."""
    return f"{dim}1", f"{dim}2"


def _pieces(dim: str, size: int, table: Table, naming: Naming) -> tuple[str, int, int] | None:
    """(axis, the part that it takes, the rest) if an axis with an extension is smaller than the mesh dim."""
    for axis, row in table.items():
        extension = naming.extensions.get(axis)
        if dim not in row.over or extension is None or size == 1:
            continue
        mine, others = _sizes(naming, axis), _sizes(naming, extension)
        small = {n for n in mine if n < size}
        if (
            len(small) == 1
            and (n := small.pop())
            and size % n == 0
            and all(g % (size // n) == 0 for g in others)
        ):
            return (axis, n, size // n) if others and all(m % n == 0 for m in mine) else None
    return None


def _sizes(naming: Naming, axis: str) -> set[int]:
    return {f.size for f in _factors(naming, axis)}


def _factors(naming: Naming, axis: str) -> list[Factor]:
    return [f for f, rule in naming.rules.items() if rule.axis == axis and f.bound is None and not f.locked]


def _renamed(row: Row, pieces: Mapping[str, tuple[str, int, int]], keep: int | None = None) -> Row:
    """A row with its mesh dims replaced by their pieces, by all of them or by one."""
    over: list[str] = []
    for dim in row.over:
        found = names(dim) if dim in pieces else (dim,)
        over += found if keep is None or dim not in pieces else found[keep : keep + 1]
    optional, uneven = (
        frozenset(p for dim in marked for p in (names(dim) if dim in pieces else (dim,)))
        for marked in (row.optional, row.uneven)
    )
    return replace(row, over=tuple(over), optional=optional, uneven=uneven)
