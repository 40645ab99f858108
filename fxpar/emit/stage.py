"""The `forward` of a module: the nodes between the layers, and the calls of the layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import fx

from fxpar.emit import describe
from fxpar.emit.access import access
from fxpar.emit.arrange import Item
from fxpar.emit.body import Body, Context
from fxpar.emit.carry import HIDDEN, carried, gathered
from fxpar.emit.classes import LayerClass
from fxpar.emit.fold import SLOT
from fxpar.emit.layers import Layer
from fxpar.emit.names import RESERVED, Names, wishes
from fxpar.emit.sizes import LocalSizes
from fxpar.emit.text import Bracket, Statement, call

HELD = ("parameter", "buffer", "constant")


def written(
    context: Context,
    items: Sequence[Item],
    held: Sequence[fx.Node],
    given: Sequence[fx.Node],
    outputs: Sequence[object],
) -> Body:
    """Return a `forward` that takes `given` and returns the tuple of `outputs`; `held` are the module's own tensors.

    In its `scope` every value outside of layers has its text. Calls of layers have the layer's number in a slot.
    """
    reserved = RESERVED | set(context.reserved)
    names = Names([*reserved, *(node.name for node in given)])
    renamed = {node: names.give(node.name) for node in given if node.name in reserved}
    scope = {node: access("self", node.meta["name"]) for node in held}
    scope |= {node: renamed.get(node, node.name) for node in given}
    fixed = carried(items, names)
    fixed |= {node: renamed[node] for node in fixed if node in renamed}
    stage = _Stage(context, scope, names, fixed, gathered(items, fixed))
    # Sizes are read before anything else, where an argument still has the name that it is given by.
    stage.sizes = stage.calls.sizes = LocalSizes({**scope, **{node: node.name for node in renamed}}, names)
    stage.renames = [Statement(node.name, name) for node, name in renamed.items()]
    for item in items:
        if isinstance(item, tuple):
            stage.call_layer(*item)
        else:
            stage.extend(item)
    stage.give_back(outputs, always_tuple=True)
    return stage


class _Stage(Body):
    """Collects the statements. A value in `gathered` goes, by its name there, into a list of its like."""

    def __init__(
        self,
        context: Context,
        scope: Mapping[fx.Node, str],
        names: Names,
        fixed: Mapping[fx.Node, str],
        gathered: Mapping[fx.Node, str],
    ) -> None:
        super().__init__(context, scope, names, fixed=fixed)
        self.gathered = gathered
        self.elements: dict[str, tuple[str, str]] = {}

    def call_layer(self, layer: Layer, kind: LayerClass) -> None:
        """Add the call of a layer; the first call of its class names the arguments of the class's function."""
        container, _, number = layer.key.path.rpartition(".")
        arguments = [self.scope[value] for value in layer.inputs]
        if not kind.arguments:
            names = Names(self.context.reserved)
            wished = [self.argument(value) for value in layer.inputs] + ["number"] * len(layer.numbers)
            kind.arguments = [names.give(wish) for wish in wished]
        found = wishes(layer.nodes, layer.key.path)
        targets = [self.target(node, found[node]) for node in layer.outputs]
        items = (*arguments, *[SLOT] * len(layer.numbers))
        expression = Bracket(f"{access('self', container)}[{SLOT}](", items, ")")
        usual, sizes = self.context.usual, self.sizes
        note = ", ".join(describe.value(node, usual, sizes) for node in layer.outputs)
        numbers = (int(number), *layer.numbers)
        self.statements.append(Statement(expression, ", ".join(targets), note=note, numbers=numbers))
        for node in layer.outputs:
            if node in self.gathered:
                element, together = self.elements[self.gathered[node]]
                self.statements.append(Statement(call(f"{together}.append", element)))
        self.module = None

    def argument(self, value: fx.Node) -> str:
        """Return a name for an argument of a layer: that of the value it first gets, without a counting number."""
        if value.meta.get("kind") in HELD:
            return ".".join(str(value.meta["name"]).split(".")[-2:])
        return HIDDEN if value in self.fixed else re.sub(r"_\d+$|\W.*", "", self.scope[value])

    def target(self, node: fx.Node, wish: str) -> str:
        """Name a result of a layer; the first of a list starts the list."""
        if node not in self.gathered:
            self.scope[node] = self.fixed.get(node) or self.names.give(wish)
            return self.scope[node]
        key = self.gathered[node]
        if key not in self.elements:
            self.elements[key] = (self.names.give(wish), self.names.give(f"all_{wish}"))
            self.statements.append(Statement("[]", self.elements[key][1]))
        element, together = self.elements[key]
        values = self.calls.lists.setdefault(together, [])
        self.scope[node] = f"{together}[{len(values)}]"
        values.append(node)
        return element
