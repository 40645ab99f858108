"""Bring the nodes of each layer together without changing what the graph computes."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

import networkx as nx
import torch
from torch import fx

from fxpar.emit.layers import Key

Unit: TypeAlias = Key | fx.Node


def live(graph: fx.Graph) -> list[fx.Node]:
    """Return the calls that an output depends on or that change something, in the order of the graph."""
    needed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in needed or (node.op == "call_function" and _acts(node)):
            needed |= {node, *node.all_input_nodes}
    return [node for node in graph.nodes if node in needed and node.op == "call_function"]


def together(
    nodes: Sequence[fx.Node], keys: Mapping[fx.Node, Key]
) -> tuple[list[fx.Node], dict[fx.Node, Key]]:
    """Return the nodes in an order in which each layer's are contiguous, and the layer of each node.

    A node of no layer that lies between two nodes of one becomes part of it. A layer that still cannot be
    contiguous, because another one lies between its nodes, is given up. Besides the flow of values, nodes that share
    memory with one that is written keep their order, and so do random ones.
    """
    edges = [*_flow(nodes), *_effects(nodes)]
    keys = dict(keys)
    while True:
        units: dict[fx.Node, Unit] = {node: keys.get(node, node) for node in nodes}
        knots = [knot for knot in nx.strongly_connected_components(_contract(units, edges)) if len(knot) > 1]
        if not knots:
            return _sorted(nodes, units, edges), keys
        for knot in knots:
            _untie(knot, keys)


def _untie(knot: set[Unit], keys: dict[fx.Node, Key]) -> None:
    """Give the loose nodes of a knot to its only layer; with several layers in it, give those up."""
    layers = [unit for unit in knot if isinstance(unit, Key)]
    if len(layers) == 1:
        keys |= {unit: layers[0] for unit in knot if isinstance(unit, fx.Node)}
        return
    for node in [node for node, key in keys.items() if key in knot]:
        del keys[node]


def _contract(units: Mapping[fx.Node, Unit], edges: Sequence[tuple[fx.Node, fx.Node]]) -> nx.DiGraph:
    contracted = nx.DiGraph()
    contracted.add_nodes_from(units.values())
    contracted.add_edges_from((units[a], units[b]) for a, b in edges if units[a] != units[b])
    return contracted


def _sorted(
    nodes: Sequence[fx.Node], units: Mapping[fx.Node, Unit], edges: Sequence[tuple[fx.Node, fx.Node]]
) -> list[fx.Node]:
    """Sort by the contracted edges; of what is ready, what stood first goes first, a layer by its last node."""
    contents: dict[Unit, list[fx.Node]] = {}
    place: dict[Unit, int] = {}
    for position, node in enumerate(nodes):
        contents.setdefault(units[node], []).append(node)
        place[units[node]] = position
    graph = _contract(units, edges)
    waiting = {unit: graph.in_degree(unit) for unit in contents}
    ready = [(place[unit], unit) for unit, count in waiting.items() if not count]
    heapq.heapify(ready)
    ordered: list[fx.Node] = []
    while ready:
        _, unit = heapq.heappop(ready)
        ordered += contents[unit]
        for after in graph.successors(unit):
            waiting[after] -= 1
            if not waiting[after]:
                heapq.heappush(ready, (place[after], after))
    return ordered


def _flow(nodes: Sequence[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    known = set(nodes)
    for node in nodes:
        yield from ((value, node) for value in node.all_input_nodes if value in known)


def _effects(nodes: Sequence[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield the pairs that keep their order though no value flows between them."""
    randoms = [node for node in nodes if _is_random(node)]
    yield from pairwise(randoms)
    writers = [node for node in nodes if _writes(node)]
    if not writers:
        return
    memory = _memory(nodes)
    place = {node: position for position, node in enumerate(nodes)}
    for writer in writers:
        written = {memory[value] for value in writer.all_input_nodes}
        for node in nodes:
            if node is not writer and written & {memory[value] for value in (node, *node.all_input_nodes)}:
                yield (node, writer) if place[node] < place[writer] else (writer, node)


def _memory(nodes: Sequence[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Return a representative per value: equal for values that may share memory."""
    parent: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        for value in node.all_input_nodes:
            parent.setdefault(value, value)
        parent[node] = node
        for value in _aliased(node):
            parent[_root(parent, value)] = _root(parent, node)
    return {node: _root(parent, node) for node in parent}


def _root(parent: Mapping[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    while parent[node] is not node:
        node = parent[node]
    return node


def _aliased(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the inputs that an op's result may be a view of."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        yield from node.all_input_nodes
        return
    for position, argument in enumerate(schema.arguments):
        value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None and isinstance(value, fx.Node):
            yield value


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _acts(node: fx.Node) -> bool:
    """Whether a call matters beyond its result."""
    schema = getattr(node.target, "_schema", None)
    return _writes(node) or _is_random(node) or (schema is not None and not schema.returns)
