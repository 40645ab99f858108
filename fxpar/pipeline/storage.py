"""Whose memory each value lies in when torch runs a graph: of the ops that may give a view, which do.

A `reshape` of a transposed value is a copy, one of a value without gaps is not; the schema says of both that they may
be views. That depends on strides, which are followed here: a sharded graph has shapes alone.
"""

from __future__ import annotations

import operator
from typing import Any, TypeAlias

import torch
from torch import fx
from torch.fx.node import map_arg

from fxpar.pipeline.cost import op_name, shape
from fxpar.pipeline.effects import aliased, written

#: A tensor without data that has strides, or a tuple of some; other values are themselves.
Layout: TypeAlias = Any

#: Ops that lay out their result as their first operand, besides those on elements.
FOLLOWING = frozenset({"clone", "scaled_dot_product_attention"})


class Storages:
    """The memory of the values of a graph: `owner` is the node that made it, `layout` has shapes and strides."""

    def __init__(self, graph: fx.Graph) -> None:
        self.owner: dict[fx.Node, fx.Node] = {}
        self.layout: dict[fx.Node, Layout] = {}
        for node in graph.nodes:
            if node.op != "output":
                self._add(node)

    def _add(self, node: fx.Node) -> None:
        source = aliased(node)
        self.owner[node] = node
        if source is None:
            self.layout[node] = self._new(node)
        elif node.target is operator.getitem:
            whole = self.layout[source]
            known = isinstance(whole, tuple | list) and isinstance(node.args[1], int)
            self.layout[node] = whole[node.args[1]] if known else _empty(node.meta.get("val"))
            if aliased(source) is not None:
                self.owner[node] = self.owner[source]
        else:
            self.layout[node] = self.layout[source] if written(node) else self._viewed(node)
            if _memory(self.layout[node]) == _memory(self.layout[source]):
                self.owner[node] = self.owner[source]

    def _new(self, node: fx.Node) -> Layout:
        """The layout of new memory: without gaps, or as that of an operand of the same shape."""
        val = node.meta.get("val")
        if not isinstance(val, torch.Tensor):
            return _empty(val)
        follows = torch.Tag.pointwise in getattr(node.target, "tags", ()) or op_name(node) in FOLLOWING
        for source in node.all_input_nodes if follows else ():
            layout = self.layout[source]
            if isinstance(layout, torch.Tensor) and tuple(layout.shape) == shape(val):
                return torch.empty_like(layout, dtype=val.dtype)
        return _empty(val)

    def _viewed(self, node: fx.Node) -> Layout:
        args, kwargs = map_arg((node.args, node.kwargs), self.layout.__getitem__)
        try:
            return node.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, TypeError, ValueError):
            return _empty(node.meta.get("val"))


def _memory(layout: Layout) -> int | None:
    first = layout[0] if isinstance(layout, tuple | list) and layout else layout
    return first.untyped_storage()._cdata if isinstance(first, torch.Tensor) else None


def _empty(val: Any) -> Layout:
    if isinstance(val, torch.Tensor):
        return _meta(shape(val), val.dtype)
    return tuple(_empty(item) for item in val) if isinstance(val, tuple | list) else val


def _meta(sizes: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")
