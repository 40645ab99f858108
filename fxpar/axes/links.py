"""What one node of the graph says about the dims of its tensors.

A node links its operands' dims to its outputs' dims by roles. Splitting the node on a role is local work as far as
the role's meaning says: `free` (each rank its slice), `sum` (the output is Partial), `whole` (not possible), or the
name of a lowering.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import fx

from fxpar.axes.factor import Cat, Dim, Factor, Term, count, holds_partly, leaves, resolve
from fxpar.axes.unify import same

FREE, SUM, WHOLE = "free", "sum", "whole"

#: A part of one tensor dimension that plays one role there.
Piece: TypeAlias = tuple[str, Dim]
#: One tensor dimension: its pieces, major first; what plays no role is left out.
Pieces: TypeAlias = tuple[Piece, ...]
#: The dims of one tensor.
Dims: TypeAlias = tuple[Dim, ...]


@dataclass
class Role:
    """What splitting a node on this role means, and the name under which its factors are seen."""

    meaning: str = FREE
    seen: str = ""


@dataclass
class Links:
    """The roles of one node: `ins[i][d]` are the pieces of dim `d` of operand `i`, `outs` likewise."""

    operands: tuple[fx.Node, ...] = ()
    ins: tuple[tuple[Pieces, ...], ...] = ()
    outs: tuple[tuple[Pieces, ...], ...] = ()
    roles: dict[str, Role] = field(default_factory=dict)
    kind: str = "op"
    """`op` may start a split; `view` only carries what its operand has; `create` has no operand; `opaque` needs all
    operands whole."""
    linear: bool = False
    """The output of Partial operands is Partial."""
    terms: frozenset[int] = frozenset()
    """Operands that are added to a result that is summed over split roles: a bias."""
    numbers: tuple[str, ...] = ()
    """Arguments that are added likewise and are numbers: the 1 of `1 - x`."""
    neutral: bool = True
    """Zeros along a role that is summed over add nothing."""
    products: frozenset[int] = frozenset()
    """Operands in each of which alone the op is linear: the factors of a product."""
    rule: str = ""
    sizes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Arguments that are the sizes of roles: `groups` of a convolution, `normalized_shape` of a norm."""
    axes: tuple[str, ...] = ()
    """The axes for whose factors the lowerings are; all where there is none."""

    def sites(self, role: str, *, outputs: bool = False) -> Iterator[tuple[int, int, Dim]]:
        """Where a role stands: (operand or output index, dim index, its resolved piece)."""
        for index, tensor in enumerate(self.outs if outputs else self.ins):
            for dim, pieces in enumerate(tensor):
                for name, piece in pieces:
                    if name == role:
                        yield index, dim, resolve(piece)

    def first(self, role: str) -> Dim:
        """The resolved piece that plays a role, in the first operand that has it; else in the first output."""
        return next(dim for outputs in (False, True) for _, _, dim in self.sites(role, outputs=outputs))

    def factors(self, role: str) -> list[Factor]:
        """The factors that a role can be split on.

        Each stands exactly once in each dim that has the role, and no tensor has the role in two dims.
        """
        dims = self._dims(role) if self.roles[role].meaning != WHOLE else []
        return [
            factor
            for factor in (dict.fromkeys(leaves(dims[0])) if dims else ())
            if not factor.locked and all(count(dim, factor) == 1 for dim in dims)
        ]

    def mixed(self, role: str) -> list[Factor]:
        """The factors of a free role that stand in some parts of its concatenations only.

        Split on one of them, a node works on a slice of these parts and on the whole of the others. A view may take
        the parts apart or put them together; all other nodes have them in every tensor alike.
        """
        dims = self._dims(role) if self.roles[role].meaning == FREE else []
        if not any(isinstance(term, Cat) for dim in dims for term in dim):
            return []
        return [
            factor
            for factor in dict.fromkeys(f for dim in dims for f in leaves(dim))
            if not factor.locked
            and any(holds_partly(dim, factor) for dim in dims)
            and all(
                holds_partly(dim, factor)
                or (self.kind == "view" and (count(dim, factor) == 1 or factor not in leaves(dim)))
                for dim in dims
            )
        ]

    def _dims(self, role: str) -> list[Dim]:
        """The resolved dims that have a role, its pieces first; none where a tensor has it in two dims."""
        tensors = (*self.ins, *self.outs)
        places = [
            (i, pieces) for i, tensor in enumerate(tensors) for pieces in tensor if role in dict(pieces)
        ]
        if len({i for i, _ in places}) < len(places):
            return []
        parts = [resolve(dict(pieces)[role]) for _, pieces in places]
        return [*parts, *(resolve(tuple(t for _, piece in pieces for t in piece)) for _, pieces in places)]


def aligned(left: Dim, right: Dim) -> Iterator[tuple[int, int, Term]]:
    """Positions at which two resolved flat dims hold the same term, with equal products before it."""
    start = {before: index for index, before in enumerate(_prefixes(left))}
    for j, before in enumerate(_prefixes(right)):
        i = start.get(before)
        if i is not None and (left[i] is right[j] or same((left[i],), (right[j],))):
            yield i, j, right[j]


def _prefixes(dim: Dim) -> Iterator[int]:
    before = 1
    for term in dim:
        yield before
        before *= term.size
