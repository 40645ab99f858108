"""Values that are no graph nodes, as Python text."""

from __future__ import annotations

import math
from typing import Any

import torch

from fxpar.emit.text import Bracket, Expression, call
from fxpar.errors import EmitError
from fxpar.mesh import JOIN, GroupIndex, GroupName

#: Bounds of a slice at or above this mean "to the end".
OPEN = 2**63 - 1


def literal(value: Any) -> Expression:
    """Return Python text for None, a number, string, dtype, layout, memory format, op, or group.

    Raises EmitError for anything else.
    """
    if isinstance(value, GroupName):
        return f"self.groups.{value.replace(JOIN, '_')}"
    if isinstance(value, GroupIndex):
        return f"self.groups.index({string(value)})"
    if isinstance(value, torch._ops.OpOverload):
        return f"torch.ops.{value}"
    if isinstance(value, bool | None):
        return repr(value)
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, float):
        return _real(value)
    if isinstance(value, complex):
        return call("complex", _real(value.real), _real(value.imag))
    if isinstance(value, str):
        return string(value)
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return str(value)
    raise EmitError(f"a {type(value).__name__} cannot be written into a module: {value!r}")


def sequence(items: tuple[Expression, ...], *, is_tuple: bool = False) -> Bracket:
    """Return a list, or a tuple."""
    return Bracket("(", items, ")") if is_tuple else Bracket("[", items, "]")


def string(value: str) -> str:
    """Return a text in double quotes, as ruff quotes it."""
    quoted = repr(value)
    if quoted[0] == "'" and '"' not in quoted:
        return f'"{quoted[1:-1]}"'
    return quoted


def _real(value: float) -> str:
    return repr(value).replace("e+", "e") if math.isfinite(value) else f'float("{value}")'
