"""The out-of-place counterparts of in-place ops: `aten.add_.Tensor` -> `aten.add.Tensor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from fxpar.capture.node import aten, emit, is_op, where
from fxpar.errors import CaptureError

_RENAMED = {
    aten.bernoulli_.float: aten.bernoulli.p,
    aten.normal_.default: aten.normal_functional.default,
}


def written(node: fx.Node) -> fx.Node | None:
    """The argument that an op changes in place, None for the ops that change nothing.

    Raises CaptureError for an op that changes several arguments, or one that is no plain argument (`out=`).
    """
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return None
    changed = [
        index
        for index, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if changed != [0] or not isinstance(node.args[0], fx.Node):
        raise _refusal(node)
    return node.args[0]


def out_of_place(graph: fx.Graph, node: fx.Node, args: Any, kwargs: Mapping[str, Any]) -> fx.Node:
    """Append what an in-place op computes, with the dtype and the sizes of the tensor that it changed."""
    changed, *rest = args
    if is_op(node, aten.copy_) or is_op(node, aten.fill_.Tensor):
        value = rest[0]
    elif is_op(node, aten.fill_.Scalar, aten.zero_):
        value = emit(graph, aten.full_like.default, (changed, rest[0] if rest else 0), like=node)
    else:
        value = emit(graph, _counterpart(node), (*args, *_defaults(node, len(args))), dict(kwargs), like=node)
    return _fitted(graph, value, changed, node)


def _defaults(node: fx.Node, given: int) -> list[Any]:
    """The positional arguments that a call leaves to the in-place op's schema; its counterpart may have others."""
    target: Any = node.target
    left = [argument for argument in target._schema.arguments[given:] if not argument.kwarg_only]
    return [] if any(a.name in node.kwargs for a in left) else [argument.default_value for argument in left]


def _fitted(graph: fx.Graph, value: fx.Node, changed: fx.Node, node: fx.Node) -> fx.Node:
    wanted, got = changed.meta["val"], value.meta["val"]
    if got.dtype != wanted.dtype:
        value = emit(graph, aten.to.dtype, (value, wanted.dtype), like=node)
    if got.shape != wanted.shape:
        value = emit(graph, aten.expand.default, (value, list(wanted.shape)), like=node)
    return value


def _counterpart(node: fx.Node) -> Any:
    target: Any = node.target
    if target in _RENAMED:
        return _RENAMED[target]
    name = target._schema.name.split("::")[1]
    packet = getattr(aten, name.removesuffix("_"), None)
    overload = getattr(packet, target._overloadname, None)
    if not name.endswith("_") or overload is None or torch.Tag.inplace_view in target.tags:
        if is_op(node, aten.detach_):
            return aten.detach.default
        raise _refusal(node)
    return overload


def _refusal(node: fx.Node) -> CaptureError:
    return CaptureError(
        f"in-place op `{node.target}` in {where(node)} has no out-of-place counterpart in the graph",
        details=["write it out of place there"],
    )
