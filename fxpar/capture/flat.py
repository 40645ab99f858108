"""From torch's exported program to one flat graph: tensors by original name, bodies inlined.

wrap_with_set_grad_enabled(False, body, x)  ->  the nodes of the body, each with `meta["no_grad"]`
wrap_with_autocast(..., enabled=False, ...)  ->  the nodes of the body
a placeholder for every name of a tied parameter  ->  one placeholder
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import InputKind, InputSpec

from fxpar.capture import leaves
from fxpar.capture.export import ROOT, Traced
from fxpar.capture.functions import restore
from fxpar.capture.node import is_op, where
from fxpar.capture.origin import line_of, module_of
from fxpar.errors import CaptureError

_KINDS = {
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
    InputKind.USER_INPUT: "input",
}


def flat_graph(traced: Traced, ties: Mapping[str, str]) -> fx.Graph:
    """The graph with bodies inlined, named placeholders, and `module`, `call`, `source`, `no_grad` on every node.

    Raises CaptureError for a control-flow operator, and for autocast that is switched on inside the model.
    """
    return _Flattener(traced, ties).run()


@dataclass
class _Flattener:
    traced: Traced
    ties: Mapping[str, str]
    graph: fx.Graph = field(default_factory=fx.Graph)
    placeholders: dict[str, fx.Node] = field(default_factory=dict)

    def run(self) -> fx.Graph:
        exported = self.traced.exported
        specs = {_spec_name(spec): spec for spec in exported.graph_signature.input_specs}
        names = iter([name for name, value in self.traced.inputs if isinstance(value, torch.Tensor)])
        values: dict[fx.Node, Any] = {}
        for node in exported.graph.nodes:
            if node.op == "placeholder":
                values[node] = self._placeholder(node, specs[node.name], names)
        results = self._body(exported.graph_module, values, grad=True)
        flat = iter(results)
        outputs = tuple(
            next(flat) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.traced.outputs
        )
        self.graph.output(outputs)
        for node in list(self.graph.nodes):
            if is_op(node, torch.ops.fxpar_capture.function):
                restore(node, self.traced.calls)
            elif is_op(node, torch.ops.fxpar_capture.leaf):
                leaves.restore(node, self.traced.leaf_calls)
        return self.graph

    def _placeholder(self, node: fx.Node, spec: InputSpec, names: Any) -> fx.Node:
        kind = _KINDS.get(spec.kind)
        if kind is None:
            raise CaptureError(f"the model takes a {spec.kind.name.lower()}, which a graph cannot hold")
        name = next(names) if kind == "input" else str(spec.target).removeprefix(f"{ROOT}.")
        name = self.ties.get(name, name)
        if kind != "input" and name in self.placeholders:
            return self.placeholders[name]
        made = self.graph.placeholder(name.replace(".", "_"))
        made.meta = {"val": node.meta["val"], "kind": kind, "name": name, "module": "", "source": ""}
        if kind != "input":
            made.meta["module"] = name.rpartition(".")[0]
            self.placeholders[name] = made
        return made

    def _body(self, owner: torch.nn.Module, values: dict[fx.Node, Any], *, grad: bool) -> list[Any]:
        graph: Any = owner.graph
        for node in graph.nodes:
            if node.op == "get_attr":
                values[node] = getattr(owner, str(node.target))
            elif node.op == "call_function":
                if node.target is torch._C._set_grad_enabled:
                    grad = bool(node.args[0])
                else:
                    values[node] = self._call(node, values, grad)
            elif node.op == "output":
                results: list[Any] = fx.map_arg(list(node.args[0]), lambda argument: values[argument])
                return results
        return []

    def _call(self, node: fx.Node, values: dict[fx.Node, Any], grad: bool) -> Any:
        target = node.target
        if target is operator.getitem and isinstance(values[node.args[0]], list):  # type: ignore[index]
            return values[node.args[0]][node.args[1]]  # type: ignore[index]
        if target is torch.ops.higher_order.wrap_with_set_grad_enabled:
            enabled, body, *operands = [_look_up(argument, values) for argument in node.args]
            return self._inline(body, operands, grad=bool(enabled))
        if target is torch.ops.higher_order.wrap_with_autocast:
            _, _, enabled, _, body, *operands = [_look_up(argument, values) for argument in node.args]
            if enabled:
                raise _autocast(next(inner for inner in body.graph.nodes if inner.op == "call_function"))
            return self._inline(body, operands, grad=grad)
        if isinstance(target, torch._ops.HigherOrderOperator):
            raise _control_flow(node)
        made = self.graph.node_copy(node, lambda argument: values[argument])
        made.meta = _origin(node) | {"val": node.meta.get("val"), "no_grad": not grad}
        return made

    def _inline(self, body: Any, operands: list[Any], *, grad: bool) -> list[Any]:
        inner = [node for node in body.graph.nodes if node.op == "placeholder"]
        return self._body(body, dict(zip(inner, operands)), grad=grad)


def _look_up(argument: Any, values: dict[fx.Node, Any]) -> Any:
    return values[argument] if isinstance(argument, fx.Node) else argument


def _spec_name(spec: InputSpec) -> str:
    return str(getattr(spec.arg, "name", ""))


def _origin(node: fx.Node) -> dict[str, Any]:
    module, call = module_of(node.meta.get("nn_module_stack"), ROOT)
    return {"module": module, "call": call, "source": line_of(node.meta.get("stack_trace"))}


def _located(node: fx.Node) -> str:
    node.meta |= _origin(node)
    return where(node)


def _autocast(node: fx.Node) -> CaptureError:
    return CaptureError(
        f"autocast is switched on in {_located(node)}",
        details=[
            "which ops it casts depends on the device, so that the graph would not say what is computed",
            "cast explicitly there, or build the model in the dtype it is to run in",
        ],
    )


def _control_flow(node: fx.Node) -> CaptureError:
    return CaptureError(
        f"`{node.target}` in {_located(node)} cannot be part of one flat graph",
        details=["choose another implementation of that module (for attention: sdpa or eager)"],
    )
