"""What the shard pass works on: a captured graph, its axes, the mesh and the table of splits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from torch import fx

from fxpar.axes.factor import Factor
from fxpar.axes.infer import Inference
from fxpar.axes.naming import Naming
from fxpar.shard.table import Table, rank_of


@dataclass
class Problem:
    """The shard pass's input.

    `sizes` maps every mesh dim that can split something to its size, outermost first; sizes of 1 are left out.
    `given` maps a factor to the mesh dims it is split over (after factors were refined so that each mesh dim has its
    own).
    """

    graph: fx.Graph
    found: Inference
    naming: Naming
    table: Table
    sizes: Mapping[str, int]
    lazy: set[fx.Node] = field(default_factory=set)
    """Nodes that depend on parameters alone or on inputs alone: their placement follows their consumers."""
    selected: Collection[fx.Node] = ()
    """Weights that the model selects; they are among the lazy nodes."""
    given: dict[Factor, str] = field(default_factory=dict)
    timed: frozenset[str] = frozenset()
    """Mesh dims that are steps in time (microbatches), not ranks."""

    def rank(self, factor: Factor, mesh_dim: str) -> int | None:
        """The precedence with which a factor may be split over a mesh dim; None if it may not."""
        if self.given.get(factor) != mesh_dim:
            return None
        return rank_of(self.table, self.naming.axis(factor), mesh_dim)

    def is_uneven(self, factor: Factor, mesh_dim: str) -> bool:
        """Whether the parts of a factor over a mesh dim are not all as long."""
        return factor.size % self.sizes[mesh_dim] != 0

    def calls(self) -> Iterator[fx.Node]:
        """The call nodes, in order."""
        return (node for node in self.graph.nodes if node.op == "call_function")


def lazy_nodes(graph: fx.Graph, selected: Collection[fx.Node] = ()) -> set[fx.Node]:
    """Placeholders and calls that do not depend on both a parameter and an input, and selected weights."""
    parameters, inputs, lazy = set(), set(), set()
    for node in graph.nodes:
        kind = node.meta.get("kind") if node.op == "placeholder" else ""
        if kind == "parameter" or any(n in parameters for n in node.all_input_nodes):
            parameters.add(node)
        if kind == "input" or any(n in inputs for n in node.all_input_nodes):
            inputs.add(node)
        if node.op != "output" and (node in selected or not (node in parameters and node in inputs)):
            lazy.add(node)
    return lazy
