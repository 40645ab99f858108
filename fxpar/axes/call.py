"""One call of an op whose dims depend on its arguments, as the handlers of `axes/shapes.py` see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import fx

from fxpar.axes.apply import piece
from fxpar.axes.factor import Dim, fresh
from fxpar.axes.links import FREE, WHOLE, Dims, Links, Pieces, Role
from fxpar.axes.oprule import OpRule


@dataclass(frozen=True)
class Call:
    """One call of an op: its arguments by name, its tensors with their dims, the shapes of its outputs."""

    node: fx.Node
    rule: OpRule
    arguments: dict[str, Any]
    operands: tuple[tuple[fx.Node, Dims], ...]
    shapes: tuple[tuple[int, ...], ...]
    part: Dim | None = None
    """The part of a tiled dim that a slice takes."""

    @property
    def rank(self) -> int:
        """The number of dimensions of the first operand."""
        return len(self.operands[0][1])

    def axis(self, name: str = "dim", rank: int | None = None) -> int:
        """An argument that names one dimension, as a non-negative number."""
        return int(self.arguments[name]) % max(1, self.rank if rank is None else rank)

    def axes(self, name: str = "dim") -> tuple[int, ...]:
        """An argument that names several dimensions; all of them where it is absent or empty."""
        value = self.arguments.get(name, self.arguments.get(f"{name}s"))
        if value is None or value == []:
            return tuple(range(self.rank))
        values = [value] if isinstance(value, int) else value
        return tuple(int(v) % max(1, self.rank) for v in values)

    def links(
        self,
        ins: Sequence[Sequence[Pieces]],
        outs: Sequence[Sequence[Pieces]],
        *,
        kind: str = "view",
        linear: bool = True,
        meanings: dict[str, str] | None = None,
    ) -> Links:
        """Assemble the links; roles that `meanings` does not name are free, those that start with `!` whole."""
        names = {name for tensor in (*ins, *outs) for pieces in tensor for name, _ in pieces}
        roles = {
            name: Role((meanings or {}).get(name, WHOLE if name.startswith("!") else FREE))
            for name in sorted(names)
        }
        for role in roles.values():
            role.seen = self.rule.seen.get("dim", "") if role.meaning != FREE else ""
        return Links(
            tuple(node for node, _ in self.operands),
            tuple(map(tuple, ins)),
            tuple(map(tuple, outs)),
            roles,
            kind,
            linear,
            rule=self.rule.source,
        )


#: Links a call.
Handler: TypeAlias = Callable[[Call], Links]


def kept_dims(dims: Dims, skip: Sequence[int] = ()) -> list[Pieces]:
    """Pieces of a tensor whose dim `i` plays the role `d<i>`; skipped dims play `!<i>`, which is whole."""
    return [piece(f"!{i}" if i in skip else f"d{i}", dim) for i, dim in enumerate(dims)]


def whole(size: int, index: int, within: tuple[int, ...] = ()) -> Pieces:
    """A dim that the op makes, which is never split; `within` are the lengths of the dims that it is a slice of."""
    return piece(f"!new{index}", fresh(size, within=within))


def opaque(call: Call) -> Links:
    """An op without an equation: it needs all of its operands whole."""
    outs = [[piece(f"!o{i}", fresh(size)) for i, size in enumerate(shape)] for shape in call.shapes]
    ins = [[piece(f"!{i}", dim) for i, dim in enumerate(dims)] for _, dims in call.operands]
    return call.links(ins, outs, kind="opaque", linear=False)
