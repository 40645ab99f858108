"""The table of splits: which axis goes over which mesh dims.

    heads: tp               # must divide
    sequence: [cp, "tp?"]   # in this order; `?`: an instance that does not divide stays whole
    vocab: tp~              # `~`: one that does not divide is split unevenly, the last ranks hold less

Rows stand in the order of precedence: where an op could split several axes over one mesh dim, the first row wins.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fxpar import yamlfile
from fxpar.errors import Place, PlanError


@dataclass(frozen=True)
class Row:
    """One row: an axis, and the mesh dims that it is divided over, outermost first."""

    axis: str
    over: tuple[str, ...]
    optional: frozenset[str]
    place: Place
    uneven: frozenset[str] = frozenset()

    @property
    def words(self) -> dict[str, str]:
        """Each mesh dim as it is written in the row, with its mark."""
        marks = dict.fromkeys(self.optional, OPTIONAL) | dict.fromkeys(self.uneven, UNEVEN)
        return {name: f"{name}{marks.get(name, '')}" for name in self.over}

    @property
    def source(self) -> str:
        """Where the row stands, as `splits/default.yaml:3`."""
        return f"{self.place.file}:{self.place.line}"


#: Marks behind a mesh dim: what does not divide stays whole, or is split unevenly.
OPTIONAL, UNEVEN = "?", "~"

Table = Mapping[str, Row]


def read(node: yamlfile.Node, axes: Collection[str], mesh_dims: Collection[str]) -> dict[str, Row]:
    """Read a mapping of axes to mesh dims. Unknown axes and mesh dims are errors."""
    rows = {}
    for axis, value in node.mapping(axes).items():
        words = [] if value.value is None else [(item, item.text()) for item in value.one_or_more()]
        names = [plain(word) for _, word in words]
        for (item, _), name in zip(words, names):
            if name not in mesh_dims:
                raise item.wrong(f"`{name}` is no mesh dim", *yamlfile.suggest(name, mesh_dims))
            if names.count(name) > 1:
                raise item.wrong(f"`{name}` stands twice in the row of `{axis}`")
        optional, uneven = (
            frozenset(word[:-1] for _, word in words if word.endswith(mark)) for mark in (OPTIONAL, UNEVEN)
        )
        rows[axis] = Row(axis, tuple(names), optional, value.place, uneven)
    return rows


def plain(word: str) -> str:
    """The mesh dim of a word of a row, without its mark."""
    return word[:-1] if word.endswith((OPTIONAL, UNEVEN)) else word


def rank_of(table: Table, axis: str | None, mesh_dim: str) -> int | None:
    """The precedence of an axis on a mesh dim, 0 first; None where the table does not give it to that mesh dim."""
    if axis is None or axis not in table or mesh_dim not in table[axis].over:
        return None
    return list(table).index(axis)


def check_known(table: Table, named: Collection[str]) -> None:
    """Raise PlanError for a row whose axis no rule ever names."""
    for axis, row in table.items():
        if axis not in named:
            raise PlanError(
                f"no rule names an axis `{axis}`", place=row.place, details=yamlfile.suggest(axis, named)
            )
