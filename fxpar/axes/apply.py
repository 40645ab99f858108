"""Applying an equation to a node: unify what its operands share, and make the dims of its outputs."""

from __future__ import annotations

from math import prod

from torch import fx

from fxpar.axes.equation import Equation, Operand, Slot
from fxpar.axes.factor import Dim, fresh, resolve, size_of
from fxpar.axes.links import Dims, Links, Piece, Pieces
from fxpar.axes.oprule import OpRule
from fxpar.axes.unify import unify
from fxpar.errors import RuleError


class Binding:
    """The roles of one application of an equation and the dims found for them."""

    def __init__(self) -> None:
        self.dims: dict[str, Dim] = {}

    def bind(self, slot: Slot, dim: Dim) -> None:
        """Let a plain slot stand for a dim; size 1 is broadcast where the role is larger elsewhere."""
        if slot and size_of(dim) != 1:
            known = self.dims.get(slot[0], ())
            if not known:
                self.dims[slot[0]] = dim
            else:
                unify(known, dim)
        elif slot:
            self.dims.setdefault(slot[0], ())

    def bind_product(self, slot: Slot, dim: Dim) -> None:
        """Let `(h g)` stand for a dim; at most one of its roles may be of unknown size. Size 1 is broadcast."""
        if size_of(dim) == 1:
            for role in slot:
                self.dims.setdefault(role, ())
            return
        known = prod(size_of(self.dims[role]) for role in slot if role in self.dims)
        unknown = [role for role in slot if role not in self.dims]
        if size_of(dim) % known or (not unknown and size_of(dim) != known):
            raise ValueError(f"{size_of(dim)} is not ({' '.join(slot)}) with {known}")
        for role in unknown:
            self.dims[role] = fresh(size_of(dim) // known if role is unknown[-1] else 1)
        unify(tuple(term for role in slot for term in self.dims[role]), dim)

    def pieces(self, slot: Slot) -> Pieces:
        """The pieces of a dim that a slot describes."""
        return tuple((role, self.dims[role]) for role in slot if self.dims[role])


def apply(
    rule: OpRule, node: fx.Node, operands: list[tuple[fx.Node, Dims] | None], outputs: list[int]
) -> Links:
    """Link a node by its rule's equation.

    `operands` are the op's tensor arguments with their dims, None where absent; `outputs` are the ranks of the
    outputs. Raises RuleError where the equation does not fit the call.
    """
    try:
        return _apply(rule, _choose(rule, operands, outputs), operands, outputs)
    except ValueError as error:
        shapes = [tuple(size_of(d) for d in operand[1]) if operand else None for operand in operands]
        raise RuleError(
            f"`{rule.op}`: {error}",
            place=rule.place,
            details=[f"{node.name} in {node.meta.get('module')}: {shapes}"],
        ) from None


def _apply(
    rule: OpRule, equation: Equation, operands: list[tuple[fx.Node, Dims] | None], outputs: list[int]
) -> Links:
    given = [(o, slots) for o, slots in zip(operands, _fit(equation, operands)) if o is not None]
    binding = Binding()
    for groups in (False, True):
        for (_, dims), slots in given:
            for slot, dim in zip(slots, dims):
                if (len(slot) > 1) == groups:
                    (binding.bind_product if groups else binding.bind)(slot, dim)
    ins = tuple(
        tuple(binding.pieces(slot) if size_of(dim) != 1 else () for slot, dim in zip(slots, dims))
        for (_, dims), slots in given
    )
    outs = tuple(
        tuple(binding.pieces(slot) for slot in operand.expand(rank))
        for operand, rank in zip(equation.outputs, outputs)
    )
    roles = {role: rule.role("..." if role.startswith("...") else role) for role in binding.dims}
    return Links(tuple(o[0] for o, _ in given), ins, outs, roles, linear=rule.linear, rule=rule.source)


def _choose(rule: OpRule, operands: list[tuple[fx.Node, Dims] | None], outputs: list[int]) -> Equation:
    """The first of the rule's equations that has the call's ranks."""
    problem = ValueError("no equation")
    for equation in rule.equations:
        try:
            _fit(equation, operands)
            for operand, rank in zip(equation.outputs, outputs):
                operand.expand(rank)
            return equation
        except ValueError as error:
            problem = error
    raise problem


def _fit(equation: Equation, operands: list[tuple[fx.Node, Dims] | None]) -> list[tuple[Slot, ...]]:
    if len(operands) > len(equation.inputs) and any(operands[len(equation.inputs) :]):
        raise ValueError(f"{len(operands)} tensors for an equation of {len(equation.inputs)}")
    slots = []
    for expected, operand in zip(equation.inputs, operands):
        if operand is None and not expected.optional:
            raise ValueError(f"operand `{expected}` is missing")
        slots.append(expected.expand(len(operand[1])) if operand else ())
    return slots


def pointwise(count: int) -> Equation:
    """The equation of an op on `count` tensors broadcast against each other."""
    dots = Operand((("...",),))
    return Equation((dots,) * count, (dots,))


def dims_of(pieces: tuple[Pieces, ...]) -> Dims:
    """The dims of a tensor, from its pieces."""
    return tuple(resolve(tuple(term for _, dim in dim_pieces for term in dim)) for dim_pieces in pieces)


def piece(role: str, dim: Dim) -> tuple[Piece, ...]:
    """A dim that plays one role; nothing for size 1."""
    return ((role, dim),) if size_of(dim) != 1 else ()
