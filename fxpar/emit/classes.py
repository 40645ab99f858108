"""The classes of layers: layers whose text is the same share one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from fxpar.emit import describe
from fxpar.emit.access import access
from fxpar.emit.body import Body, Context
from fxpar.emit.layers import Layer
from fxpar.emit.literals import literal, sequence, string
from fxpar.emit.names import Names, class_name
from fxpar.emit.text import Expression, Statement, call, flat, keyword


@dataclass
class LayerClass:
    """One class: the layer whose nodes it was written from, all layers that share it, its tensors."""

    name: str
    layers: list[Layer]
    tensors: list[fx.Node]
    uses_groups: bool
    arguments: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """The paths of the modules that are of this class, each once."""
        return list(dict.fromkeys(layer.key.path for layer in self.layers))


class Classes:
    """Sorts layers into classes by their text."""

    def __init__(
        self,
        context: Context,
        modules: Mapping[str, str],
        placeholders: Sequence[fx.Node],
        persistent: frozenset[str],
        taken: Sequence[str],
    ) -> None:
        self.context = context
        self.modules = modules
        self.persistent = persistent
        self.taken = (*taken, *context.reserved)
        self.held: dict[str, list[fx.Node]] = {}
        for node in placeholders:
            parts = node.meta["name"].split(".")
            for length in range(1, len(parts)):
                self.held.setdefault(".".join(parts[:length]), []).append(node)
        self.clear()

    def clear(self) -> None:
        """Forget all classes."""
        self.names = Names(self.taken)
        self.found: dict[tuple[str, ...], LayerClass] = {}

    def add(self, layer: Layer) -> LayerClass:
        """Return the class of a layer; a new one if its text is new."""
        tensors = self.held.get(layer.key.path, [])
        body = self.body(layer, [f"argument_{i}" for i, _ in enumerate([*layer.inputs, *layer.numbers])])
        kind = self.modules.get(layer.key.path, "")
        declared = [flat(self.declaration(node, layer.key.path).expression) for node in tensors]
        code = [statement.prefix + flat(statement.expression) for statement in body]
        text = (kind, *declared, "", *code)
        if text not in self.found:
            name = self.names.number(class_name(kind or layer.key.path))
            uses_groups = any("self.groups." in line for line in code)
            self.found[text] = LayerClass(name, [], tensors, uses_groups)
        self.found[text].layers.append(layer)
        return self.found[text]

    def by_path(self) -> dict[str, LayerClass]:
        """Return the class of every layer by the layer's path."""
        return {path: kind for kind in self.found.values() for path in kind.paths}

    def body(self, layer: Layer, arguments: Sequence[str]) -> list[Statement]:
        """Return the statements of a layer's function with the given names of its inputs and numbers."""
        return self.written(layer, arguments).with_device(layer.inputs)

    def written(self, layer: Layer, arguments: Sequence[str]) -> Body:
        """Return a layer's function, in whose `scope` every value has its text."""
        path = layer.key.path
        held = self.held.get(path, [])
        scope = {node: access("self", node.meta["name"].removeprefix(f"{path}.")) for node in held}
        scope |= dict(zip(layer.inputs, arguments))
        body = Body(self.context, scope, Names([*arguments, *self.context.reserved]), path)
        body.calls.numbers = dict(zip(layer.numbers, arguments[len(layer.inputs) :]))
        body.extend(layer.nodes)
        body.give_back(layer.outputs, always_tuple=False)
        return body

    def declaration(self, node: fx.Node, path: str = "") -> Statement:
        """Return the statement that makes a parameter or buffer in the module at `path`."""
        name, value = node.meta["name"], node.meta["val"]
        shape = sequence(tuple(str(size) for size in value.shape), is_tuple=True)
        inner = string(name.removeprefix(f"{path}.") if path else name)
        items: list[Expression] = ["self", inner, flat(shape), literal(value.dtype), "device"]
        if node.meta["kind"] == "parameter":
            if not node.meta.get("grad", True):
                items.append(keyword("requires_grad", "False"))
            return Statement(call("parameter", *items), note=describe.tensor(node))
        if name not in self.persistent:
            items.append(keyword("persistent", "False"))
        return Statement(call("buffer", *items), note=describe.tensor(node))


def first_tensor_dtype(placeholders: Sequence[fx.Node]) -> torch.dtype | None:
    """Return the dtype of the first floating-point parameter, else of the first floating-point value."""
    kinds = sorted(placeholders, key=lambda node: node.meta.get("kind") != "parameter")
    values = (node.meta.get("val") for node in kinds)
    found = (value.dtype for value in values if isinstance(value, torch.Tensor))
    return next((dtype for dtype in found if dtype.is_floating_point), None)
