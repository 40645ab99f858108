"""A stage as a module, straight from its graph: what simulation and tests run in place of emitted code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from fxpar.capture.interpret import call
from fxpar.pipeline.stages import GIVEN, Stage


class StageModule(nn.Module):
    """Runs the graph of a stage; parameters and buffers keep the model's names.

    `tensors` holds the stage's parameters, buffers and constants by original name, and is not copied. `forward` takes
    the received values in order and the batch inputs by name, ignores inputs that the stage does not need, and returns
    the tuple of values to send or, on the last stage, of the model's outputs.
    """

    def __init__(self, stage: Stage, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._graph = stage.graph
        self._received = [value.name for value in stage.received]
        self._tensors: dict[str, torch.Tensor] = {}
        for node in stage.graph.find_nodes(op="placeholder"):
            if node.meta["kind"] not in (*GIVEN, "received"):
                self._hold(node, tensors[node.meta["name"]])

    def _hold(self, node: fx.Node, tensor: torch.Tensor) -> None:
        *path, leaf = node.meta["name"].split(".")
        module: nn.Module = self
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        if node.meta["kind"] == "parameter":
            learns = node.meta.get("grad", tensor.is_floating_point())
            tensor = (
                tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=learns)
            )
            module.register_parameter(leaf, tensor)
        else:
            module.register_buffer(leaf, tensor)
        self._tensors[node.name] = tensor

    def forward(self, *received: torch.Tensor, **inputs: Any) -> tuple[Any, ...]:
        """Run the stage on one microbatch."""
        given: dict[str, Any] = {**self._tensors, **inputs, **dict(zip(self._received, received))}
        device = next((value.device for value in given.values() if isinstance(value, torch.Tensor)), None)
        values: dict[fx.Node, Any] = {}
        for node in self._graph.nodes:
            if node.op == "placeholder":
                values[node] = given[node.name]
            elif node.op == "call_function":
                values[node] = call(node, values, device)
        results: Any = map_arg(self._graph.output_node().args[0], values.__getitem__)
        return tuple(results)
