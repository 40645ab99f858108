"""Microbatches: what is made of a whole batch before it is cut into pieces.

A sharded graph in which a mesh dim of time splits the batch falls into two: `prepare` runs once a step on the whole
batch (shifted labels, masks, the count of targets), the rest once for each microbatch.

    inputs --prepare--> values --cut into m pieces--> the rest, m times
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from fxpar.axes.schema import op_name
from fxpar.shard.position import placeholder


@dataclass(frozen=True)
class Prepared:
    """A value that each microbatch is given: cut along `dim` by `layout` (as of fxpar.slice), or whole (dim None)."""

    name: str
    dim: int | None = None
    layout: tuple[int, ...] = ()


@dataclass
class Batch:
    """The two graphs. `prepare` returns the tuple of values in the order of `prepared`."""

    prepare: fx.Graph
    rest: fx.Graph
    prepared: tuple[Prepared, ...]


def cut_batch(graph: fx.Graph, mesh_dim: str) -> Batch:
    """Cut a sharded graph at the slices over a mesh dim of time. The graph itself stays as it is."""
    cuts = [node for node in graph.nodes if _is_cut(node, mesh_dim)]
    late = _dependent(graph, [n for n in graph.find_nodes(op="placeholder") if _is_late(n)] + cuts)
    inputs = [n for n in graph.find_nodes(op="placeholder") if n.meta["kind"] == "input"]
    early = [n for n in _dependent(graph, inputs) if n not in late and n.op != "output"]
    given = cuts + [n for n in early if _used_by(n, late, cuts)]
    times = Counter(node.all_input_nodes[0] if node in cuts else node for node in given)
    prepared = tuple(_prepared(node, mesh_dim, times) for node in given)
    prepare = _only(graph, [node.args[0] if node in cuts else node for node in given])
    return Batch(prepare, _rest(graph, dict(zip(given, prepared))), prepared)


def _is_cut(node: fx.Node, mesh_dim: str) -> bool:
    return op_name(node) == "fxpar.slice.default" and node.args[3] == mesh_dim


def _is_stored(node: fx.Node) -> bool:
    return node.op == "placeholder" and node.meta["kind"] != "input"


def _is_late(node: fx.Node) -> bool:
    return node.meta["kind"] in ("parameter", "prepared")


def _dependent(graph: fx.Graph, roots: Iterable[fx.Node]) -> dict[fx.Node, None]:
    found = dict.fromkeys(roots)
    for node in graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found[node] = None
    return found


def _used_by(node: fx.Node, late: dict[fx.Node, None], cuts: list[fx.Node]) -> bool:
    """Whether what runs for each microbatch needs the node's value as a whole: a tensor, or the seed of the step."""
    return isinstance(node.meta["val"], torch.Tensor | int) and any(
        user.op == "output" or (user in late and user not in cuts) for user in node.users
    )


def _prepared(node: fx.Node, mesh_dim: str, times: Mapping[fx.Node, int]) -> Prepared:
    """A value under its own name; a cut under the cut's name where the value itself may be at hand as well."""
    if not _is_cut(node, mesh_dim):
        return Prepared(node.name)
    (source,), (dim, layout) = node.all_input_nodes, node.args[1:3]
    alone = times[source] == 1 and not _is_stored(source)
    return Prepared(source.name if alone else node.name, dim, tuple(layout))  # type: ignore[arg-type]


def _only(graph: fx.Graph, results: list[fx.Node]) -> fx.Graph:
    """The part of a graph that computes some of its values."""
    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    needed = _needed(results)
    for node in graph.nodes:
        if node in needed or (node.op == "placeholder" and node.meta["kind"] == "input"):
            env[node] = new.node_copy(node, env.__getitem__)
            env[node].meta = {**node.meta, "module": "", "call": 0}
    new.output(tuple(env[node] for node in results))
    return new


def _needed(results: Iterable[fx.Node]) -> set[fx.Node]:
    needed, todo = set(), list(results)
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo += node.all_input_nodes
    return needed


def _rest(graph: fx.Graph, given: dict[fx.Node, Prepared]) -> fx.Graph:
    """The graph of one microbatch: prepared values are placeholders, behind all others."""
    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in filter(_is_stored, graph.nodes):
        env[node] = new.node_copy(node)
    for node, value in given.items():
        env[node] = placeholder(new, value.name)
        env[node].meta = {**node.meta, "kind": "prepared", "name": value.name, "module": ""}
    for node in graph.nodes:
        if (
            node not in env
            and all(source in env for source in node.all_input_nodes)
            and node.op != "placeholder"
        ):
            env[node] = new.node_copy(node, env.__getitem__)
    new.eliminate_dead_code(
        is_impure_node=lambda node: node.op in ("placeholder", "output") or "update" in node.meta
    )
    new.lint()
    return new
