"""Constant folding on demand: the values that depend on no input and no parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from fxpar.capture.node import is_op, tensors_of
from fxpar.capture.program import Program

#: First and last+1 position along each dimension.
Box = Sequence[tuple[int, int]]


class Constants:
    """The constant nodes of a graph, and their values.

    Constant is what is made of buffers that the model does not update, of constants and of creation ops, and is not
    random. Values that are asked for are kept; those in between are not.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes: dict[fx.Node, None] = {}
        """The constant nodes, in the order of the graph."""
        self._keys: dict[Any, int] = {}
        self._key_of: dict[fx.Node, int] = {}
        self._values: dict[int, Any] = {}
        updated = _updated(program.graph)
        for node in program.graph.nodes:
            if node.name not in updated and self._is_constant(node):
                self.nodes[node] = None
                self._key_of[node] = self._key(node)

    def __contains__(self, node: object) -> bool:
        return node in self.nodes

    def key(self, node: fx.Node) -> int:
        """A number that is equal for constant nodes that compute the same in the same way."""
        return self._key_of[node]

    def value(self, node: fx.Node) -> Any:
        """The value of a constant node.

        Raises KeyError for a node that is not constant or whose buffers have no value (they lie on meta).
        """
        key = self._key_of[node]
        if key not in self._values:
            self._values[key] = self._evaluate(node)
        return self._values[key]

    def block(self, node: fx.Node, box: Box) -> torch.Tensor:
        """A box of a constant tensor, without making the whole of it where broadcasts and pointwise ops made it."""
        inner = None if _is_whole(node, box) else _inner(node, box)
        if inner is None:
            value: torch.Tensor = self.value(node)[tuple(slice(*bounds) for bounds in box)]
            return value
        values = {argument: self.block(argument, part) for argument, part in inner.items()}
        if is_op(node, _aten.unsqueeze):
            return values[node.args[0]].unsqueeze(int(node.args[1]) % len(box))  # type: ignore[index, arg-type]
        result: torch.Tensor = (
            next(iter(values.values())) if is_op(node, _aten.expand) else _call(node, values)
        )
        return result.expand([stop - start for start, stop in box])

    def sources(self, node: fx.Node, box: Box) -> list[torch.Tensor]:
        """The blocks that `block` begins with: it gives the same for boxes of one size whose sources are equal."""
        inner = None if _is_whole(node, box) else _inner(node, box)
        if inner is None:
            return [self.block(node, box)]
        return [source for argument, part in inner.items() for source in self.sources(argument, part)]

    def _is_constant(self, node: fx.Node) -> bool:
        if node.op == "placeholder":
            return node.meta["kind"] in ("buffer", "constant")
        if node.op != "call_function" or "update" in node.meta:
            return False
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        return not random and all(argument in self.nodes for argument in node.all_input_nodes)

    def _key(self, node: fx.Node) -> int:
        parts = (node.args, tuple(node.kwargs.items())) if node.op == "call_function" else node.name
        described = str(fx.map_arg(parts, lambda argument: f"%{self._key_of[argument]}"))
        return self._keys.setdefault((node.target, described), len(self._keys))

    def _evaluate(self, node: fx.Node) -> Any:
        values: dict[fx.Node, Any] = {}
        for step in self._needed(node):
            known = self._values.get(self._key_of[step])
            if known is None:
                known = self._tensor(step) if step.op == "placeholder" else _call(step, values)
            values[step] = known
        return values[node]

    def _needed(self, node: fx.Node) -> list[fx.Node]:
        """What has to be computed for a node, itself last, in the order of the graph."""
        needed, waiting = set(), [node]
        while waiting:
            step = waiting.pop()
            if step not in needed:
                needed.add(step)
                waiting += [] if self._key_of[step] in self._values else step.all_input_nodes
        return [step for step in self.nodes if step in needed]

    def _tensor(self, node: fx.Node) -> torch.Tensor:
        tensor = self.program.tensors[node.meta["name"]]
        if tensor.is_meta:
            raise KeyError(f"`{node.meta['name']}` has no value: it lies on the meta device")
        return tensor.detach()


def _call(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    arguments: Any = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    assert callable(node.target)
    with torch.no_grad():
        return node.target(*arguments[0], **arguments[1])


def _updated(graph: fx.Graph) -> set[str]:
    """The names of the placeholders that some op changes: by an update, or silently, as batch norm does."""
    names = set()
    for node in graph.nodes:
        if "update" in node.meta:
            names.add(node.args[0].name)
        elif node.target in (torch.ops.aten.batch_norm.default, torch.ops.aten.instance_norm.default):
            names |= {statistic.name for statistic in node.args[3:5] if isinstance(statistic, fx.Node)}
    return names


def _is_whole(node: fx.Node, box: Box) -> bool:
    return all(start == 0 and stop == size for (start, stop), size in zip(box, node.meta["val"].shape))


def _aligned(node: fx.Node, box: Box) -> Box:
    """The box of an operand that is broadcast against the box of the result."""
    shape = node.meta["val"].shape
    tail = list(box)[len(box) - len(shape) :]
    return [(0, 1) if size == 1 else bounds for bounds, size in zip(tail, shape)]


_aten = torch.ops.aten
_POINTWISE = (_aten.__and__, _aten.__or__, _aten.to, _aten.where, _aten.masked_fill, _aten.logical_not)


def _is_pointwise(node: fx.Node) -> bool:
    if node.op != "call_function" or len(tensors_of(node.meta.get("val"))) != 1:
        return False
    tagged = torch.Tag.pointwise in getattr(node.target, "tags", ())
    return tagged or getattr(node.target, "overloadpacket", None) in _POINTWISE


def _inner(node: fx.Node, box: Box) -> dict[fx.Node, Box] | None:
    """For each operand the box that a box of the result is made from; None for an op that mixes positions."""
    if is_op(node, _aten.unsqueeze):
        dim = int(node.args[1]) % len(box)  # type: ignore[arg-type]
        return {node.all_input_nodes[0]: [bounds for index, bounds in enumerate(box) if index != dim]}
    if is_op(node, _aten.expand) or _is_pointwise(node):
        return {argument: _aligned(argument, box) for argument in node.all_input_nodes}
    return None
