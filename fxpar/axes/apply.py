"""Applying an equation to a node: unify what its operands share, and make the dims of its outputs."""

from __future__ import annotations

from itertools import zip_longest
from math import prod

from torch import fx

from fxpar.axes.equation import ANY, Equation, Operand, Slot
from fxpar.axes.factor import Dim, fresh, resolve, size_of
from fxpar.axes.links import WHOLE, Dims, Links, Piece, Pieces, Role
from fxpar.axes.oprule import OpRule
from fxpar.axes.schema import arguments
from fxpar.axes.unify import unify
from fxpar.errors import RuleError


class Binding:
    """The roles of one application of an equation and the dims found for them."""

    def __init__(self) -> None:
        self.dims: dict[str, Dim] = {}
        self.whole = 0

    def sizes(self, node: fx.Node, sizes: dict[str, tuple[str, ...]]) -> None:
        """Let roles have the sizes that arguments give them."""
        for name, roles in sizes.items():
            given = arguments(node)[name]
            lengths = [given] * len(roles) if isinstance(given, int) else list(given)
            for role, length in zip(reversed(roles), reversed(lengths)):
                self.dims[role] = fresh(length)

    def bind(self, slot: Slot, dim: Dim) -> None:
        """Let a plain slot stand for a dim; size 1 is broadcast where the role is larger elsewhere."""
        if slot == ANY:
            return
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
        known = prod(size_of(self.dims.get(role, ())) for role in slot)
        unknown = [role for role in slot if not self.dims.get(role)]
        if size_of(dim) % known or (not unknown and size_of(dim) != known):
            raise ValueError(f"{size_of(dim)} is not ({' '.join(slot)}) with {known}")
        for role in unknown:
            self.dims[role] = fresh(size_of(dim) // known if role is unknown[-1] else 1)
        unify(tuple(term for role in slot for term in self.dims[role]), dim)

    def pieces(self, slot: Slot, dim: Dim | None = None) -> Pieces:
        """The pieces of a dim that a slot describes; `dim` is what stands there if the slot is `_`."""
        if slot == ANY and dim is not None:
            self.whole += 1
            return piece(f"!{self.whole}", dim)
        return tuple((role, self.dims[role]) for role in slot if self.dims[role])


def apply(
    rule: OpRule,
    node: fx.Node,
    operands: list[tuple[fx.Node, Dims] | None],
    outputs: tuple[tuple[int, ...], ...],
) -> Links | None:
    """Link a node by its rule's equation; None if none of them has the ranks of the call.

    `operands` are the op's tensor arguments with their dims, None where absent; `outputs` are the shapes of the
    outputs. Raises RuleError where the equation does not fit the call.
    """
    try:
        equation = _choose(rule, node, operands, outputs)
        if equation is None:
            return None
        return _apply(rule, node, equation, operands, outputs)
    except ValueError as error:
        shapes = [tuple(size_of(d) for d in operand[1]) if operand else None for operand in operands]
        raise RuleError(
            f"`{rule.op}`: {error}",
            place=rule.place,
            details=[f"{node.name} in {node.meta.get('module') or 'the model'}: {shapes}"],
        ) from None


def _apply(
    rule: OpRule,
    node: fx.Node,
    equation: Equation,
    operands: list[tuple[fx.Node, Dims] | None],
    outputs: tuple[tuple[int, ...], ...],
) -> Links:
    given = [(o, slots) for o, slots in zip(operands, _fit(equation, operands)) if o is not None]
    binding = Binding()
    binding.sizes(node, rule.sizes)
    for groups in (False, True):
        for (_, dims), slots in given:
            for slot, dim in zip(slots, dims):
                if (len(slot) > 1) == groups:
                    (binding.bind_product if groups else binding.bind)(slot, dim)
    ins = tuple(
        tuple(binding.pieces(slot, dim) if size_of(dim) != 1 else () for slot, dim in zip(slots, dims))
        for (_, dims), slots in given
    )
    outs = tuple(
        tuple(binding.pieces(slot, fresh(size)) for slot, size in zip(operand.expand(len(shape)), shape))
        for operand, shape in zip(equation.outputs, outputs)
    )
    roles = {role: rule.role("..." if role.startswith("...") else role) for role in binding.dims}
    roles |= {f"!{number}": Role(WHOLE) for number in range(1, binding.whole + 1)}
    nodes = tuple(operand[0] for operand, _ in given)
    return Links(nodes, ins, outs, roles, rule.kind, linear=rule.linear, rule=rule.source, sizes=rule.sizes)


def _choose(
    rule: OpRule,
    node: fx.Node,
    operands: list[tuple[fx.Node, Dims] | None],
    outputs: tuple[tuple[int, ...], ...],
) -> Equation | None:
    """The first of the rule's equations that has the call's arguments and ranks, and roles for the sizes it gives."""
    for equation in rule.equations:
        if equation.when is not None and not _is(arguments(node).get(equation.when[0]), equation.when[1]):
            continue
        try:
            _fit(equation, operands)
            if len(outputs) != len(equation.outputs):
                raise ValueError(f"{len(outputs)} outputs for an equation of {len(equation.outputs)}")
            for operand, shape in zip(equation.outputs, outputs):
                operand.expand(len(shape))
            _fit_sizes(rule, node, equation)
            return equation
        except ValueError:
            continue
    return None


def _is(value: object, wanted: bool | int) -> bool:
    """Whether an argument has a value; 1 is not true."""
    return type(value) is type(wanted) and value == wanted


def _fit(equation: Equation, operands: list[tuple[fx.Node, Dims] | None]) -> list[tuple[Slot, ...]]:
    if len(operands) > len(equation.inputs) and any(operands[len(equation.inputs) :]):
        raise ValueError(f"{len(operands)} tensors for an equation of {len(equation.inputs)}")
    slots = []
    for expected, operand in zip_longest(equation.inputs, operands[: len(equation.inputs)]):
        if operand is None and not expected.optional:
            raise ValueError(f"operand `{expected}` is missing")
        slots.append(expected.expand(len(operand[1])) if operand else ())
    return slots


def _fit_sizes(rule: OpRule, node: fx.Node, equation: Equation) -> None:
    """Check that a list of sizes has an entry for just those of its roles that stand in the equation."""
    for name, roles in rule.sizes.items():
        given = arguments(node)[name]
        wanted = {role for role in roles if role in equation.roles}
        if not isinstance(given, int) and wanted != set(roles[len(roles) - len(given) :]):
            raise ValueError(f"`{name}` has {len(given)} sizes")


def pointwise(count: int) -> Equation:
    """The equation of an op on up to `count` tensors broadcast against each other; others may be numbers."""
    dots = (("...",),)
    return Equation((Operand(dots, optional=True),) * count, (Operand(dots),))


def dims_of(pieces: tuple[Pieces, ...]) -> Dims:
    """The dims of a tensor, from its pieces."""
    return tuple(resolve(tuple(term for _, dim in dim_pieces for term in dim)) for dim_pieces in pieces)


def piece(role: str, dim: Dim) -> tuple[Piece, ...]:
    """A dim that plays one role; nothing for size 1."""
    return ((role, dim),) if size_of(dim) != 1 else ()
