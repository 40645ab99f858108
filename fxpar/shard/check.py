"""Validity of a sharded graph: it is run on fake tensors, and every value must have the shape that was promised.

A call on fake tensors is determined by its op, its literals and the sizes, strides, dtype and device of its tensors.
Layers of one shape make the same calls, so each distinct one is run once.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from fxpar.axes.schema import op_name
from fxpar.errors import ShardError

if TYPE_CHECKING:
    from fxpar.shard.sharded import Sharded


def check(sharded: Sharded) -> None:
    """Raise ShardError where an op on local operands does not give the local shape that its dims promise."""
    runs = Runs(_mode(sharded.graph))
    for node in sharded.graph.nodes:
        if node.op == "call_function" and not op_name(node).startswith("fxpar."):
            _check(node, runs)


def _mode(graph: fx.Graph) -> FakeTensorMode:
    values = (node.meta.get("val") for node in graph.nodes)
    return next((v.fake_mode for v in values if hasattr(v, "fake_mode")), FakeTensorMode())


class Runs:
    """Runs calls on fake tensors, each distinct call once."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self.shapes: dict[Hashable, Any] = {}
        """Distinct call -> the shapes of its outputs."""

    def run(self, node: fx.Node) -> Any:
        """The shapes that a node's op gives on the values of its operands; raises what the op raises."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        key = (node.target, _key(args), _key(kwargs))
        if key not in self.shapes:
            with self.mode, torch.no_grad():
                made = node.target(*args, **kwargs)  # type: ignore[operator]
            self.shapes[key] = _shapes(made)
        return self.shapes[key]


def _key(value: Any) -> Hashable:
    """What an op on fake tensors can tell of an argument; a literal with its type, since 1, 1.0 and True are equal."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.stride(), value.storage_offset(), value.dtype, value.device)
    if isinstance(value, (list, tuple)):
        return (type(value), *map(_key, value))
    if isinstance(value, dict):
        return tuple((name, _key(each)) for name, each in value.items())
    if isinstance(value, slice):
        return (slice, _key((value.start, value.stop, value.step)))
    return (type(value), value)


def _check(node: fx.Node, runs: Runs) -> None:
    try:
        made = runs.run(node)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise _wrong(node, str(error).splitlines()[0]) from error
    if made != _shapes(node.meta["val"]):
        raise _wrong(node, f"it gives {made}, promised was {_shapes(node.meta['val'])}")


def _shapes(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_shapes(v) for v in value]
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _wrong(node: fx.Node, what: str) -> ShardError:
    shapes = [_shapes(n.meta["val"]) for n in node.all_input_nodes]
    return ShardError(
        f"`{op_name(node)}` does not run on a rank's slices: {what}",
        details=[
            f"{node.meta.get('module') or 'the model'} ({node.meta.get('source')})",
            f"operands of {shapes}",
        ],
    )
