"""The arguments of an op's node by the names of its schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx


def op_name(node: fx.Node) -> str:
    """The name of a call's target as rules write it: `aten.linear.default`, `operator.getitem`.

    A call of a `torch.autograd.Function` has the full name of that class.
    """
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    target = getattr(node.target, "function", node.target)
    module = getattr(target, "__module__", "").lstrip("_")
    return f"{module}.{getattr(target, '__name__', target)}"


def arguments(node: fx.Node) -> dict[str, Any]:
    """Every argument of an op call by name, defaults filled in; of a call of something else those with names."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return dict(node.kwargs)
    given = dict(node.kwargs)
    out = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args) and not argument.kwarg_only:
            out[argument.name] = node.args[position]
        elif argument.name in given:
            out[argument.name] = given[argument.name]
        else:
            out[argument.name] = argument.default_value
    return out


def tensor_arguments(node: fx.Node) -> Iterator[tuple[str, Any]]:
    """The arguments that can be tensors (`Tensor`, `Tensor?`), in the order of the schema, absent ones as None.

    Of a call of something else, the tensors by position.
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        yield from ((str(i), value) for i, value in enumerate(node.args) if isinstance(value, fx.Node))
        return
    values = arguments(node)
    for argument in node.target._schema.arguments:
        if str(argument.type) in ("Tensor", "Optional[Tensor]"):
            value = values[argument.name]
            yield argument.name, value if isinstance(value, fx.Node) else None


def shape(node: fx.Node) -> tuple[int, ...]:
    """The global shape of a node's one tensor."""
    return tuple(node.meta["val"].shape)
