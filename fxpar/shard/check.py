"""Validity of a sharded graph: it is run on fake tensors, and every value must have the shape that was promised."""

from __future__ import annotations

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
    mode = _mode(sharded.graph)
    for node in sharded.graph.nodes:
        if node.op == "call_function" and not op_name(node).startswith("fxpar."):
            _check(node, mode)


def _mode(graph: fx.Graph) -> FakeTensorMode:
    values = (node.meta.get("val") for node in graph.nodes)
    return next((v.fake_mode for v in values if hasattr(v, "fake_mode")), FakeTensorMode())


def _check(node: fx.Node, mode: FakeTensorMode) -> None:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    try:
        with mode, torch.no_grad():
            made = node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise _wrong(node, str(error).splitlines()[0]) from error
    if _shapes(made) != _shapes(node.meta["val"]):
        raise _wrong(node, f"it gives {_shapes(made)}, promised was {_shapes(node.meta['val'])}")


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
