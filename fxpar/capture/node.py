"""Small helpers for the nodes of captured graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

aten = torch.ops.aten


def is_op(node: fx.Node, *targets: Any) -> bool:
    """Whether a node calls one of some overloads or packets (`aten.to` stands for each of its overloads)."""
    if node.op != "call_function":
        return False
    target = node.target
    return target in targets or getattr(target, "overloadpacket", None) in targets


def emit(
    graph: fx.Graph, target: Any, args: Sequence[Any], kwargs: dict[str, Any] | None = None, *, like: fx.Node
) -> fx.Node:
    """Append a node at the graph's insert point: `val` from running it on fakes, the rest of `meta` as in `like`."""
    node = graph.call_function(target, tuple(args), kwargs or {})
    node.meta = {key: value for key, value in like.meta.items() if key != "val"}
    node.meta["val"] = evaluate(node)
    return node


def evaluate(node: fx.Node) -> Any:
    """Run a node on the fake values of its arguments."""
    values = fx.map_arg((node.args, node.kwargs), lambda argument: argument.meta["val"])
    mode = next((leaf.fake_mode for leaf in pytree.tree_leaves(values) if hasattr(leaf, "fake_mode")), None)
    args, kwargs = values
    assert callable(node.target)
    with torch.no_grad():
        if mode is None:
            return node.target(*args, **kwargs)
        with mode:
            return node.target(*args, **kwargs)


def where(node: fx.Node) -> str:
    """The module path and the source line of a node, for messages."""
    place = node.meta.get("source") or "unknown line"
    path = node.meta.get("module") or "the model"
    return f"{path} ({place})"


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors in a node's `val`."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
