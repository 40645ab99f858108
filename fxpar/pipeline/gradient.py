"""Which values of a graph get a gradient, and which of them are made of parameters alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxpar.pipeline.cost import is_parameter


def learning(graph: fx.Graph) -> set[fx.Node]:
    """The nodes through which a gradient flows to a parameter, or to what a stage received with a gradient."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        origin = is_parameter(node) or _is_received(node) or not found.isdisjoint(node.all_input_nodes)
        if origin and node.meta.get("grad", True) and _is_floating(node.meta.get("val")):
            found.add(node)
    return found


def weights(graph: fx.Graph) -> set[fx.Node]:
    """The parameters, and what depends on parameters alone, such as a transposed weight."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        sources = node.all_input_nodes
        if is_parameter(node) or (node.op == "call_function" and sources and found.issuperset(sources)):
            found.add(node)
    return found


def _is_received(node: fx.Node) -> bool:
    return node.op == "placeholder" and node.meta["kind"] == "received"


def _is_floating(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_is_floating(item) for item in value)
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())
