"""Run a captured graph op by op: the reference for tests and for what later passes make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import fx

from fxpar.capture.program import Program

#: Runs one node on the values of its arguments, on a device.
Call: TypeAlias = Callable[[fx.Node, Mapping[fx.Node, Any], torch.device | None], Any]


def call(node: fx.Node, values: Mapping[fx.Node, Any], device: torch.device | None = None) -> Any:
    """Run one node on the values of its arguments; ops that create a tensor create it on `device`."""
    arguments: Any = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    args, kwargs = arguments
    if node.meta.get("creates") and device is not None:
        kwargs = {**kwargs, "device": device}
    assert callable(node.target)
    return node.target(*args, **kwargs)


def run(
    program: Program,
    inputs: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor] | None = None,
    *,
    call: Call = call,
) -> list[Any]:
    """Interpret the graph and return its flat outputs, with gradients where the tensors require them.

    `inputs` are the arguments of `forward` by name. `tensors` replaces some of the program's tensors by name. Buffers
    that the model updates are changed in place. `call` is what runs a node. Raises ModelError where the inputs do not
    fit.
    """
    flat = program.flat_inputs(inputs)
    held = {**program.tensors, **(tensors or {})}
    device = next((tensor.device for tensor in flat.values()), torch.device("cpu"))
    values: dict[fx.Node, Any] = {}
    last = _last_users(program.graph)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = flat[node.name] if node.meta["kind"] == "input" else held[node.meta["name"]]
        elif node.op == "output":
            return list(fx.map_arg(node.args[0], values.__getitem__))
        else:
            values[node] = call(node, values, device)
        for done in last.get(node, ()):
            del values[done]
    return []


def _last_users(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for argument in node.all_input_nodes:
            last[argument] = node
    done: dict[fx.Node, list[fx.Node]] = {}
    for value, user in last.items():
        done.setdefault(user, []).append(value)
    return done
