"""What a node costs to run, and what a value or a parameter weighs: the numbers that stages are balanced by."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import torch
from torch import fx

from fxpar.pipeline.effects import aliased, written

#: The flops that an accelerator does in the time in which it moves one byte to or from its memory, roughly.
FLOPS_PER_BYTE = 16

#: What a byte of parameters adds to the cost of the stage that holds it: it tells apart what is equal else.
FLOPS_PER_PARAMETER_BYTE = 1

#: Ops that read of their first operand no more than they give back.
LOOKUPS = frozenset({"embedding", "gather", "index", "index_select", "take_along_dim"})


def size(dim: Any) -> int:
    """A dimension as a number; of a symbolic one that of the example inputs."""
    return dim if isinstance(dim, int) else int(dim.node.hint)


def shape(value: torch.Tensor) -> tuple[int, ...]:
    """The shape of a fake tensor in numbers."""
    return tuple(size(dim) for dim in value.shape)


def value_bytes(value: Any) -> int:
    """The bytes of a value: of a tensor, or of all tensors in a tuple or list; other values weigh nothing."""
    if isinstance(value, torch.Tensor):
        return prod(shape(value)) * value.element_size()
    if isinstance(value, tuple | list):
        return sum(value_bytes(item) for item in value)
    return 0


def parameter_bytes(graph: fx.Graph) -> int:
    """The bytes of all parameters of a graph."""
    return sum(
        value_bytes(node.meta["val"]) for node in graph.find_nodes(op="placeholder") if is_parameter(node)
    )


def is_parameter(node: fx.Node) -> bool:
    """Whether a node is a parameter's placeholder."""
    return node.op == "placeholder" and node.meta["kind"] == "parameter"


def operands(node: fx.Node) -> Iterator[torch.Tensor]:
    """The tensors that a node is given, once for each value."""
    for source in node.all_input_nodes:
        if isinstance(source.meta.get("val"), torch.Tensor):
            yield source.meta["val"]


def _matmul(node: fx.Node, lhs: int = 0) -> int:
    inner = shape(_operand(node, lhs))[-1]
    return 2 * _elements(node) * inner


def _attention(node: fx.Node) -> int:
    query, key = _operand(node, 0), _operand(node, 1)
    return 2 * (prod(shape(query)) + _elements(node)) * shape(key)[-2]


def _convolution(node: fx.Node) -> int:
    weight = shape(_operand(node, 1))
    elements = prod(shape(_operand(node, 0))) if _is_transposed(node) else _elements(node)
    return 2 * elements * prod(weight[1:])


def _is_transposed(node: fx.Node) -> bool:
    name = op_name(node)
    return "transpose" in name or (name == "convolution" and bool(node.args[6]))


def _einsum(node: fx.Node) -> int:
    letters: dict[str, int] = {}
    for term, value in zip(str(node.args[0]).split("->")[0].split(","), operands(node)):
        sizes = reversed(shape(value))
        letters |= dict(zip(reversed(term.strip()), sizes)) if "." not in term else {}
    return 2 * max(prod(letters.values()), _elements(node))


#: Flops of the forward run by op name; what is not listed costs the bytes that it touches.
FLOPS: dict[str, Callable[[fx.Node], int]] = {
    "linear": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "matmul": _matmul,
    "mv": _matmul,
    "dot": _matmul,
    "_grouped_mm": _matmul,
    "grouped_mm_fallback": _matmul,
    "grouped_mm": _matmul,
    "expert_linear": _matmul,
    "addmm": lambda node: _matmul(node, 1),
    "baddbmm": lambda node: _matmul(node, 1),
    "einsum": _einsum,
    "convolution": _convolution,
    **{f"conv{dims}d": _convolution for dims in (1, 2, 3)},
    **{f"conv_transpose{dims}d": _convolution for dims in (1, 2, 3)},
}


def flops(node: fx.Node) -> int:
    """The floating-point operations of a node's forward run: two for each multiplication and addition.

    Products of matrices, convolutions and attention are counted from the shapes in `meta['val']`; all else counts 0.
    """
    name = op_name(node)
    if name in FLOPS:
        return FLOPS[name](node)
    return _attention(node) if "attention" in name and _takes_heads(node) else 0


def touched_bytes(node: fx.Node) -> int:
    """The bytes that a node reads and writes; a view touches none, a look-up reads what it returns."""
    if node.op != "call_function" or is_view(node):
        return 0
    out = value_bytes(node.meta.get("val"))
    read = [value_bytes(value) for value in operands(node)]
    if op_name(node) in LOOKUPS and read:
        read[0] = min(read[0], out)
    return sum(read) + out


def node_cost(node: fx.Node) -> int:
    """The cost of a node in flops, memory traffic converted."""
    return flops(node) + FLOPS_PER_BYTE * touched_bytes(node)


def is_view(node: fx.Node) -> bool:
    """Whether a node may give a view of an operand, and changes nothing; one of another dtype is none."""
    source = aliased(node)
    if source is None or written(node):
        return False
    dtypes = {getattr(each.meta.get("val"), "dtype", None) for each in (node, source)}
    return len(dtypes - {None}) < 2


def op_name(node: fx.Node) -> str:
    """The name of a node's op, without namespace and overload; an item of a tuple has none."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).split("::")[-1]
    return getattr(target, "__name__", "") if target is not operator.getitem else ""


def _operand(node: fx.Node, index: int) -> torch.Tensor:
    source = node.args[index]
    assert isinstance(source, fx.Node)
    value = source.meta["val"]
    assert isinstance(value, torch.Tensor)
    return value


def _elements(node: fx.Node) -> int:
    value = node.meta["val"]
    first = value[0] if isinstance(value, tuple | list) else value
    return prod(shape(first))


def _takes_heads(node: fx.Node) -> bool:
    values = [source.meta.get("val") for source in node.args[:3] if isinstance(source, fx.Node)]
    return len(values) == 3 and all(isinstance(value, torch.Tensor) and value.dim() >= 3 for value in values)
