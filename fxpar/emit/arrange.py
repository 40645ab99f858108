"""The plan of a module's text: its layers, their classes, and what stands between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from torch import fx

from fxpar.emit.classes import Classes, LayerClass
from fxpar.emit.layers import Key, Layer, candidates, find_layers, members, nests
from fxpar.emit.order import live, together
from fxpar.emit.sizes import shows

#: A call of a layer with its class, or a run of nodes of no layer.
Item: TypeAlias = tuple[Layer, LayerClass] | list[fx.Node]


def arrange(graph: fx.Graph, modules: Mapping[str, str], classes: Classes) -> list[Item]:
    """Return the calls of layers, and the nodes between them, in an order in which they can run.

    Layers that have layers in them and no two of which are alike are taken apart, and so is a layer that would need
    two classes because its calls are not alike, or whose arguments do not show the sizes in it.
    """
    siblings = candidates(modules)
    nodes = live(graph)
    refused: set[str] = set()
    while True:
        ordered, keys = together(nodes, find_layers(nodes, siblings, refused))
        if unseen := {key.path for key, inside in members(keys, ordered) if not _shows_sizes(key, inside)}:
            refused |= unseen
            continue
        classes.clear()
        items = list(_items(ordered, keys, classes))
        wrong = set(_uneven(items)) | set(_unlike(items, siblings))
        if not wrong:
            return items
        refused |= wrong


def _shows_sizes(key: Key, nodes: list[fx.Node]) -> bool:
    """Whether the sizes in the code of a layer can be read off its arguments."""
    layer = Layer(key, nodes)
    layer.connect()
    return shows(layer.inputs, layer.nodes)


def used(items: Sequence[Item], graph: fx.Graph) -> set[fx.Node]:
    """Return every value that an item or the output uses."""
    nodes = [node for item in items for node in (item[0].nodes if isinstance(item, tuple) else item)]
    return {value for node in [*nodes, graph.output_node()] for value in node.all_input_nodes}


def _items(nodes: Sequence[fx.Node], keys: Mapping[fx.Node, Key], classes: Classes) -> Iterator[Item]:
    runs: list[list[fx.Node]] = []
    for node in nodes:
        if runs and keys.get(runs[-1][-1]) == keys.get(node):
            runs[-1].append(node)
        else:
            runs.append([node])
    for run in runs:
        if key := keys.get(run[0]):
            layer = Layer(key, run)
            layer.connect()
            yield layer, classes.add(layer)
        else:
            yield run


def _uneven(items: Sequence[Item]) -> Iterator[str]:
    """Yield the layers whose calls are of different classes."""
    kinds: dict[str, LayerClass] = {}
    for item in items:
        if isinstance(item, tuple):
            layer, kind = item
            if kinds.setdefault(layer.key.path, kind) is not kind:
                yield layer.key.path


def _unlike(items: Sequence[Item], siblings: Mapping[str, int]) -> Iterator[str]:
    """Yield the containers of layers that all differ, where there are layers in those layers."""
    found: dict[str, list[tuple[Layer, LayerClass]]] = {}
    for item in items:
        if isinstance(item, tuple):
            found.setdefault(item[0].key.container, []).append(item)
    for container, layers in found.items():
        kinds = {kind.name for _, kind in layers}
        nested = any(nests(layer.key.path, siblings) for layer, _ in layers)
        if nested and len(layers) > 1 and len(kinds) == len(layers):
            yield container
