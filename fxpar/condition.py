"""Conditions on the sizes of the dynamic axes: what a model asks of them before it goes the way that was captured.

    batch * sequence < 500        sequence % 8 == 0        sequence != 24

No torch here.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
    ast.Mod: operator.mod,
    ast.FloorDiv: operator.floordiv,
    ast.Div: lambda one, two: Fraction(one) / Fraction(two),
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}
_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_CALLED: dict[str, Callable[..., Any]] = {"max": max, "min": min, "float": float, "int": int}


@dataclass(frozen=True)
class Condition:
    """A comparison of sizes as a Python expression of axes, and the line of the model that makes it."""

    text: str
    place: str = ""

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that it is about, by name. Raises ValueError for a text that is no condition."""
        names = {node.id for node in ast.walk(_parsed(self.text)) if isinstance(node, ast.Name)}
        return tuple(sorted(names - _CALLED.keys()))

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it is true where the axes have these sizes. Raises ValueError for a text that is no condition."""
        return bool(_value(_parsed(self.text), sizes))


@cache
def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"`{text}` is no condition") from error


def _value(node: ast.expr, sizes: Mapping[str, int]) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Name(id=name) if name in sizes:
            return sizes[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, sizes)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, sizes)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.BoolOp(op=op, values=values):
            every = all if isinstance(op, ast.And) else any
            return every(_value(value, sizes) for value in values)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARED:
            return _COMPARED[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _CALLED:
            return _CALLED[name](*(_value(each, sizes) for each in args))
    raise ValueError(f"`{ast.unparse(node)}` is no condition on sizes")
