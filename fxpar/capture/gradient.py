"""Which values a gradient flows through; where the model switched gradients off, the graph says so by `detach`."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxpar.capture.clean import replace
from fxpar.capture.node import aten, is_op, tensors_of
from fxpar.errors import CaptureError

#: Ops whose floating-point result carries no gradient of their operand.
_STOPS = (
    aten.detach,
    aten.zeros_like,
    aten.ones_like,
    aten.full_like,
    aten.empty_like,
    aten.rand_like,
    aten.randn_like,
    aten.new_zeros,
    aten.new_ones,
    aten.new_full,
    aten.new_empty,
    aten.bernoulli,
    aten.histc,
)


def mark_gradients(graph: fx.Graph, trainable: frozenset[str]) -> None:
    """Set `meta["grad"]` on every node; `trainable` names the parameters that require a gradient.

    An operand with a gradient that enters a region without gradients gets one `detach`. Raises CaptureError where an
    in-place change that is hidden from autograd overwrote a value that carries a gradient.
    """
    detached: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "placeholder":
            node.meta["grad"] = node.meta["kind"] == "parameter" and node.meta["name"] in trainable
        elif node.op == "call_function":
            if node.meta.get("no_grad") and not is_op(node, aten.detach):
                _detach_operands(node, detached)
            node.meta["grad"] = _flows(node)
    for node in list(graph.nodes):
        _refuse_hidden(node)
        if is_op(node, aten.detach) and not node.args[0].meta["grad"]:
            replace(node, node.args[0])


def _flows(node: fx.Node) -> bool:
    if node.meta.get("no_grad") or is_op(node, *_STOPS) or "update" in node.meta:
        return False
    tensors = tensors_of(node.meta.get("val"))
    real = any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors)
    return real and any(argument.meta["grad"] for argument in node.all_input_nodes)


def _detach_operands(node: fx.Node, detached: dict[fx.Node, fx.Node]) -> None:
    def cut(argument: fx.Node) -> fx.Node:
        if not argument.meta["grad"]:
            return argument
        if argument not in detached:
            detached[argument] = _detach(argument, node)
        return detached[argument]

    arguments: Any = fx.map_arg((node.args, node.kwargs), cut)
    node.args, node.kwargs = arguments


def _detach(value: fx.Node, user: fx.Node) -> fx.Node:
    with user.graph.inserting_before(user):
        made = user.graph.call_function(aten.detach.default, (value,))
    made.meta = dict(user.meta) | {"val": value.meta["val"], "grad": False}
    made.meta.pop("update", None)
    return made


def _refuse_hidden(node: fx.Node) -> None:
    for before, place in node.meta.get("hides", ()):
        if before.meta["grad"]:
            raise CaptureError(
                f"a value that carries a gradient is changed in place, hidden from autograd, in {place}",
                details=["change a copy of it there (`x.detach().clone()`), or do it with gradients"],
            )
