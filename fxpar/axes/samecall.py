"""Joint graphs in one spelling, to tell whether two are the same computation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from fxpar.axes.schema import arguments, op_name
from fxpar.capture.joint import Joint
from fxpar.capture.node import tensors_of

#: Target, positional and named arguments.
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
#: The call that stands for each node.
Calls = Mapping[fx.Node, Call]
#: A node, the number of its output, a dim -> the length of that dim.
Size = Callable[[fx.Node, int, int], int]
_SPLITS = tuple(
    f"aten.{name}" for name in ("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split")
)
#: Ops that keep the flat order of the elements: only the sizes of the result count.
_VIEWS = tuple(
    f"aten.{name}"
    for name in ("view", "reshape", "_unsafe_view", "unflatten", "flatten", "view_as", "reshape_as")
)


def written(joint: Joint, calls: Calls, size: Size | None = None) -> list[tuple[Any, ...]]:
    """Every call in order, with numbers for nodes, then what goes in and out.

    `size` gives the lengths of dims where they are others than in the graph.
    """
    numbers = {node: f"%{number}" for number, node in enumerate(joint.graph.nodes)}
    ends = [
        tuple(numbers[node] if node else "" for node in nodes)
        for nodes in (joint.ins, joint.out_gradients, joint.outs, joint.in_gradients)
    ]
    return [*(_line(node, call, numbers, size or _size) for node, call in calls.items()), *ends]


def _size(node: fx.Node, output: int, dim: int) -> int:
    return int(tensors_of(node.meta["val"])[output].shape[dim])


def _line(node: fx.Node, call: Call, numbers: Mapping[fx.Node, str], size: Size) -> tuple[Any, ...]:
    target, args, kwargs = call
    if str(getattr(target, "overloadpacket", target)) in _SPLITS:
        return (numbers[node], "split", *_split(node, numbers, size))
    if str(getattr(target, "overloadpacket", target)) in _VIEWS:
        sizes = [size(node, 0, dim) for dim in range(node.meta["val"].dim())]
        return (numbers[node], "view", numbers[node.all_input_nodes[0]], *sizes)
    if op_name(node) == "aten.slice.Tensor":
        return (numbers[node], "slice", *_slice(node, call, numbers, size))
    args, kwargs = fx.map_arg((args, kwargs), numbers.__getitem__)
    return (numbers[node], str(target), repr(args), repr(sorted(kwargs.items())))


def _split(node: fx.Node, numbers: Mapping[fx.Node, str], size: Size) -> tuple[Any, ...]:
    """However a dim is split, it is the sizes of the parts that count."""
    (source,) = node.all_input_nodes
    dim = int(arguments(node).get("dim", 0)) % source.meta["val"].dim()
    parts = len(tensors_of(node.meta["val"]))
    return (numbers[source], dim, *(size(node, part, dim) for part in range(parts)))


def _slice(node: fx.Node, call: Call, numbers: Mapping[fx.Node, str], size: Size) -> tuple[Any, ...]:
    """Bounds as they are counted from the start, none beyond the end."""
    (source,) = node.all_input_nodes
    given = dict(zip(("self", "dim", "start", "end", "step"), call[1])) | call[2]
    dim = int(given.get("dim", 0)) % source.meta["val"].dim()
    bounds = slice(given.get("start"), given.get("end"), given.get("step", 1))
    return (numbers[source], dim, *bounds.indices(size(source, 0, dim)))
