"""In which layers of a model a tensor is used, so that a checkpoint may be cut into other stages without the model."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import fx

#: A module path up to its first number: what is repeated.
_LAYER = re.compile(r"(?:[^.]+\.)*?\d+(?=\.|$)")


def layers(graph: fx.Graph) -> Mapping[str, tuple[int, ...]]:
    """The numbers of the layers that use each tensor, from 0 in the order of the graph.

    A layer is what stands under one module path up to its first number (`model.layers.3`). What stands before, between
    and behind such layers is a layer of its own if it uses a tensor: embeddings, a head. Tensors that are used at no
    op of a layer have none and are not in the result.
    """
    found: dict[str, dict[int, None]] = {}
    numbers: dict[str, int] = {}
    for node in graph.nodes:
        used = [
            n.meta["name"]
            for n in node.all_input_nodes
            if n.op == "placeholder" and n.meta["kind"] != "input"
        ]
        if used:
            number = numbers.setdefault(_key(node, numbers), len(numbers))
            for name in used:
                found.setdefault(name, {})[number] = None
    return {name: tuple(sorted(at)) for name, at in found.items()}


def _key(node: fx.Node, numbers: dict[str, int]) -> str:
    """What tells layers apart: a path, or for what stands outside the number of those before it."""
    match = _LAYER.match(node.meta.get("module") or "")
    if match:
        return match.group()
    last = next(reversed(numbers), "")
    return last if last.startswith("-") else f"-{len(numbers)}"
