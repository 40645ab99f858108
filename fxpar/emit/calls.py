"""One call of an op as Python text: by its form, or by its full name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxpar.emit.callee import callee, op_name
from fxpar.emit.forms import Field, Form, Piece, forms
from fxpar.emit.layers import counted
from fxpar.emit.literals import literal, sequence
from fxpar.emit.sizes import LocalSizes
from fxpar.emit.special import allowed, special
from fxpar.emit.text import WIDTH, Bracket, Expression, flat, keyword
from fxpar.size import Size

#: Arguments that change nothing for the dense tensors of a graph, with the value that they may have beside None.
_NEUTRAL = {"layout": torch.strided, "pin_memory": False}
#: Arguments that choose a kernel, not a result; left out where the op has a default for them.
_IGNORED = ("cudnn_enable", "cudnn_enabled")
#: Where the device of new tensors stands in emitted code: a local variable, taken from an input.
DEVICE = "device"


@dataclass(frozen=True)
class Argument:
    """An argument of a call as the schema has it."""

    name: str
    value: Any
    given: bool
    """Whether it differs from its default."""
    named: bool = False
    """Whether it can only be given by keyword."""
    tensor: bool = False
    """Whether the op takes a tensor there; it may be a number all the same."""


class Calls:
    """Writes calls. `name` gives the text of a node.

    `lists` are lists of values that the code has by name: an argument that is one of them is written so. `numbers`
    are the names of `counted` numbers.
    """

    def __init__(self, name: Callable[[fx.Node], Expression]) -> None:
        self.name = name
        self.lists: dict[str, list[fx.Node]] = {}
        self.numbers: dict[int, str] = {}
        self.sizes = LocalSizes()
        self.uses_device = False

    def write(self, node: fx.Node, room: int = WIDTH) -> Expression:
        """Return the call that a node stands for; `room` columns are there for what cannot be broken."""
        arguments = list(bind(node))
        form = forms().get(op_name(node.target))
        if form and _fits(form, arguments):
            written = self.formed(form, arguments)
            if isinstance(written, Bracket) or len(written) <= room:
                return written
        return Bracket(f"{callee(node.target).text}(", tuple(self.rest(arguments, False)), ")")

    def value(self, value: Any) -> Expression:
        """Return the text of one argument: a node, a literal, or a list of them."""
        if isinstance(value, fx.Node):
            return self.name(value)
        if isinstance(value, torch.device):
            self.uses_device = True
            return DEVICE
        if isinstance(value, list | tuple):
            is_tuple = isinstance(value, tuple) and not isinstance(
                value, fx.immutable_collections.immutable_list
            )
            return sequence(tuple(self.value(item) for item in value), is_tuple=is_tuple)
        if isinstance(value, Size):
            return self.sizes.write(value)
        if counted(value) and value in self.numbers:
            return self.numbers[value]
        if isinstance(value, slice):
            return Bracket("slice(", tuple(map(self.value, (value.start, value.stop, value.step))), ")")
        return literal(value)

    def whole(self, values: Sequence[Any]) -> str | None:
        """Return the name of the list that has exactly these values, if there is one."""
        return next((name for name, found in self.lists.items() if found == list(values)), None)

    def formed(self, form: Form, arguments: list[Argument]) -> Expression:
        """Return a call in its form."""
        if form.callee is None:
            return self.text(form.items[0], arguments)
        items = tuple(item for piece in form.items for item in self.items(piece, arguments))
        return Bracket(f"{self.text(form.callee, arguments)}(", items, ")")

    def text(self, piece: Piece, arguments: list[Argument]) -> str:
        """Return a piece on one line."""
        written = [
            f"({text})"
            if _is_size(field, arguments) and any(piece.texts) and not text.isidentifier()
            else text
            for field in piece.fields
            for text in map(flat, self.field(field, arguments))
        ]
        return "".join(text + item for text, item in zip(piece.texts, [*written, ""]))

    def items(self, piece: Piece, arguments: list[Argument]) -> Iterator[Expression]:
        """Yield the arguments that a piece between commas stands for."""
        if piece.texts == ("", ""):
            yield from self.field(piece.fields[0], arguments)
        elif len(piece.fields) == 1 and piece.texts[1] == "":
            (value,) = self.field(piece.fields[0], arguments)
            yield keyword(piece.texts[0].removesuffix("="), value)
        else:
            yield self.text(piece, arguments)

    def field(self, field: Field, arguments: list[Argument]) -> Iterator[Expression]:
        """Yield what a field stands for: one text, or any number of arguments."""
        if field.special:
            yield from special(field.special, [argument.value for argument in arguments], self.value)
        elif field.spread in ("*", "**"):
            yield from self.rest(arguments[field.position :], field.spread == "**")
        elif field.spread:
            values = arguments[field.position].value
            yield from map(self.value, values) if values else ["()"]
        else:
            yield self.value(arguments[field.position].value)

    def rest(self, arguments: list[Argument], named: bool) -> Iterator[Expression]:
        """Yield the arguments that are given, by position until one has to be named."""
        for argument in arguments:
            value = argument.value
            named = named or argument.named or isinstance(value, bool | float | None)
            if argument.given:
                text = self.value(value)
                yield keyword(argument.name, text) if named and argument.name else text
            named = named or not argument.given


def _is_size(field: Field, arguments: Sequence[Argument]) -> bool:
    """Whether a field is a size, which may be written with operators."""
    return not (field.special or field.spread) and isinstance(arguments[field.position].value, Size)


def bind(node: fx.Node) -> Iterator[Argument]:
    """Yield the arguments of a call by the op's schema; new tensors get a device even where none is given."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        yield from (Argument("", value, given=True) for value in node.args)
        yield from (Argument(name, value, given=True, named=True) for name, value in node.kwargs.items())
        return
    for position, argument in enumerate(schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        value = node.kwargs.get(argument.name, default)
        if position < len(node.args) and not argument.kwarg_only:
            value = node.args[position]
        if argument.name == "device" and node.meta.get("creates") and value is None:
            value = torch.device("cpu")
        given = not argument.has_default_value() or not _same(value, default)
        given = given and not (argument.name in _IGNORED and argument.has_default_value())
        given = given and not (argument.name in _NEUTRAL and value in (None, _NEUTRAL[argument.name]))
        is_tensor = str(argument.type) in ("Tensor", "Optional[Tensor]")
        yield Argument(argument.name, value, given, argument.kwarg_only, is_tensor)


def _same(value: Any, default: Any) -> bool:
    """Say whether a value is the default, type included: `True` is not `1`, and no size is a number."""
    varies = any(isinstance(leaf, Size) for leaf in pytree.tree_leaves(value))
    return not varies and type(value) is type(default) and bool(value == default)


def _fits(form: Form, arguments: list[Argument]) -> bool:
    """Say whether a form has a place for every argument that is given, and takes their kinds."""
    taken: set[int] = set()
    for field in form.fields():
        if field.special and not allowed(field.special, [argument.value for argument in arguments]):
            return False
        if field.special:
            taken |= set(range(len(arguments)))
        elif field.spread in ("*", "**"):
            taken |= set(range(field.position, len(arguments)))
        elif field.position >= len(arguments):
            return False
        else:
            taken.add(field.position)
    if arguments and arguments[0].tensor and not isinstance(arguments[0].value, fx.Node):
        return False
    return all(position in taken or not argument.given for position, argument in enumerate(arguments))
