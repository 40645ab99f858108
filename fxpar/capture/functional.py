"""In-place ops become their out-of-place counterparts; later uses of what they changed are rewired.

    y = x.add_(1)                     y = x + 1,              later uses of x are uses of y
    v = x[:, 0]; v.fill_(0)           w = full_like(v, 0),    x' = cat([w[:, None], x[:, 1:]], 1)
    v = x[:, 1:]; x.mul_(2); f(v)     x' = x * 2,             f(x'[:, 1:])
    buffer.add_(1)                    b = buffer + 1,         copy_(buffer, b) at the end of the graph

Which values share memory is read off the storages of their fakes. Writing through a view changes its base by the
inverse of the view; other views of the base are made again from the new base where they are used next.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxpar.capture.node import aten, emit, is_op, tensors_of, where
from fxpar.capture.scatter import base_after
from fxpar.capture.writes import out_of_place, written
from fxpar.errors import CaptureError

_COPIES = (aten.lift_fresh_copy, aten.clone)


def functional(graph: fx.Graph) -> fx.Graph:
    """The graph without in-place ops, save the final `copy_` to buffers that the model updates.

    Raises CaptureError where a parameter or constant is changed, where the op has no counterpart, or where the
    change would be visible through memory in a way that this cannot follow.
    """
    if not any(written(node) for node in graph.nodes):
        return graph
    return _Rewriter().run(graph)


@dataclass
class _Rewriter:
    graph: fx.Graph = field(default_factory=fx.Graph)
    version: dict[fx.Node, Any] = field(default_factory=dict)
    """The new node that holds the current value of an old one."""
    first: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """The new node that held the first value of an old one."""
    parent: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """The old node that a view is a view of."""
    same: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """The result of an in-place op is the tensor that it changed."""
    families: dict[int, list[fx.Node]] = field(default_factory=dict)
    """All tensors on one storage."""
    stale: set[fx.Node] = field(default_factory=set)
    updated: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """The placeholder of a buffer that was changed -> the op that changed it."""

    def run(self, graph: fx.Graph) -> fx.Graph:
        for node in graph.nodes:
            if node.op == "output":
                outputs = fx.map_arg(node.args, self.read)
                self._store_buffers()
                self.graph.output(outputs[0])
            elif written(node):
                self._write(node)
            else:
                self._copy(node)
        return self.graph

    def read(self, node: fx.Node) -> Any:
        """The current value of an old node, made again from its base if that has changed since."""
        node = self.same.get(node, node)
        if node in self.stale:
            self.version[node] = self._replay(node)
            self.stale.discard(node)
        return self.version[node]

    def _copy(self, node: fx.Node) -> None:
        new = self.graph.node_copy(node, self.read)
        new.meta = dict(node.meta)
        self.version[node] = self.first[node] = new
        for tensor in tensors_of(node.meta.get("val")):
            family = self.families.setdefault(_storage(tensor), [])
            if node not in family:
                family.append(node)
        base = _base(node)
        if base is not None:
            self.parent[node] = self.same.get(base, base)

    def _replay(self, node: fx.Node) -> fx.Node:
        if node not in self.parent:
            raise CaptureError(
                f"`{node.target}` in {where(node)} shares memory with a tensor that is changed in place"
            )
        self.read(self.parent[node])
        arguments = fx.map_arg((node.args, node.kwargs), self.read)
        args, kwargs = arguments
        if is_op(node, aten.view.default):
            # The new base may have other strides than the one that was viewed.
            return emit(self.graph, aten.reshape.default, (args[0], list(node.meta["val"].shape)), like=node)
        return emit(self.graph, node.target, args, kwargs, like=node)

    def _write(self, node: fx.Node) -> None:
        changed = written(node)
        assert changed is not None
        old = self.same.get(changed, changed)
        value = out_of_place(self.graph, node, fx.map_arg(node.args, self.read), node.kwargs)
        if node.meta.get("no_grad"):
            value = emit(self.graph, aten.detach.default, (value,), like=node)
        self._set(old, value, node)
        self.same[node] = old

    def _set(self, old: fx.Node, value: fx.Node, op: fx.Node) -> None:
        """Let `value` be what `old` is from now on, and carry the change up to the base of the view."""
        path = {old}
        while old in self.parent:
            base = self.parent[old]
            before = self.read(base)
            updated = base_after(self.graph, old, before, value, op)
            _note_hidden(before, updated, op, hidden=is_op(old, aten.detach))
            self.version[old] = value
            old, value = base, updated
            path.add(old)
        self._root(old, op)
        _note_hidden(self.version[old], value, op, hidden=False)
        self.version[old] = value
        storages = {_storage(tensor) for tensor in tensors_of(old.meta["val"])}
        for storage in storages:
            self.stale |= {other for other in self.families.get(storage, []) if other not in path}

    def _root(self, node: fx.Node, op: fx.Node) -> None:
        kind = node.meta.get("kind")
        if kind in ("parameter", "constant"):
            remedy = {
                "parameter": "update it outside of forward",
                "constant": "register it as a buffer of the module",
            }[kind]
            what = f"{kind} `{node.meta['name']}` is changed in place by `{op.target}` in {where(op)}"
            raise CaptureError(what, details=[remedy])
        if kind == "buffer":
            self.updated[node] = op

    def _store_buffers(self) -> None:
        for old, op in self.updated.items():
            copy = emit(self.graph, aten.copy_.default, (self.first[old], self.read(old)), like=op)
            copy.meta["no_grad"] = True
            copy.meta["update"] = old.meta["name"]


def _note_hidden(before: fx.Node, after: fx.Node, op: fx.Node, *, hidden: bool) -> None:
    """Note that what was changed may carry no gradient, if the change itself is hidden from autograd."""
    if hidden or op.meta.get("no_grad"):
        after.meta["hides"] = [*after.meta.get("hides", ()), (before, where(op))]


def _base(node: fx.Node) -> fx.Node | None:
    """The argument whose memory a node's tensor lies in, if any."""
    if node.op != "call_function" or is_op(node, *_COPIES):
        return None
    value = node.meta.get("val")
    mine = {_storage(tensor) for tensor in tensors_of(value)}
    for argument in node.all_input_nodes:
        if mine & {_storage(tensor) for tensor in tensors_of(argument.meta.get("val"))}:
            if node.target is operator.getitem and _base(argument) is None:
                return None
            return argument
    return None


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
