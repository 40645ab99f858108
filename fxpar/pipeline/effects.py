"""Which nodes share memory, and which write to it: what an in-place op means for the order of a graph."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import cache

import torch
from torch import fx


@cache
def _aliasing(op: object) -> tuple[bool, bool]:
    """Whether an op's schema says that it may give back memory of an operand, and that it writes to one."""
    schema = getattr(op, "_schema", None)
    infos = [argument.alias_info for argument in schema.arguments if argument.alias_info] if schema else []
    return bool(infos), any(info.is_write for info in infos)


def arguments(node: fx.Node) -> Iterator[tuple[torch.Argument, object]]:
    """The arguments of an op's node beside what its schema says of them; nothing for other nodes."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    positional = iter(node.args)
    for argument in node.target._schema.arguments:
        value = node.kwargs.get(argument.name) if argument.kwarg_only else next(positional, None)
        yield argument, node.kwargs.get(argument.name, value)


def written(node: fx.Node) -> list[fx.Node]:
    """The values that a node changes in place."""
    found: list[fx.Node] = []
    if not _aliasing(node.target)[1]:
        return found
    for argument, value in arguments(node):
        if isinstance(value, fx.Node) and argument.alias_info is not None and argument.alias_info.is_write:
            found.append(value)
    return found


def aliased(node: fx.Node) -> fx.Node | None:
    """The operand whose memory a node's output shares by its schema, or None if the output is new."""
    if node.target is operator.getitem:
        return node.all_input_nodes[0]
    if not _aliasing(node.target)[0]:
        return None
    for argument, value in arguments(node):
        if isinstance(value, fx.Node) and argument.alias_info is not None:
            return value
    return None


def owners(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """The node that made the memory of each value: itself, or the origin of the view that it is."""
    owner: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        source = aliased(node)
        owner[node] = node if source is None else owner[source]
    return owner


def is_random(node: fx.Node) -> bool:
    """Whether a node may give something else when it is run again."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def is_fresh(node: fx.Node) -> bool:
    """Whether a node's output is surely neither a view nor the very tensor of an operand.

    A composite op promises nothing: `dropout` in evaluation returns its operand, without saying so in its schema.
    """
    if not isinstance(node.target, torch._ops.OpOverload) or aliased(node) is not None:
        return False
    name = str(node.target.name())  # type: ignore[no-untyped-call]
    return not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")
