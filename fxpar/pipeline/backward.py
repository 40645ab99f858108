"""What the backward run costs, in both of its halves: gradients of what a stage is given, and of its parameters."""

from __future__ import annotations

from collections.abc import Set

from torch import fx

from fxpar.pipeline.cost import FLOPS, FLOPS_PER_BYTE, flops, is_view, node_cost, op_name, value_bytes
from fxpar.pipeline.gradient import learning, weights
from fxpar.pipeline.saved import kept_bytes, saved
from fxpar.pipeline.spec import StageCosts
from fxpar.pipeline.storage import Storages

#: Flops of attention's backward run for each one of its forward run: it makes the scores again, and four products.
#: Dao, FlashAttention-2, arXiv:2307.08691, section 4.1.
ATTENTION = 2.5

#: How often a parameter's gradient is moved once it is made: both summands of the microbatches are read, one written.
ACCUMULATED = 3


class Costing:
    """The costs of the nodes of a graph, in flops, memory traffic converted."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.learning: Set[fx.Node] = learning(graph)
        self.weights: Set[fx.Node] = weights(graph)
        self.storages = Storages(graph)
        self.saved = {node: saved(node, self.learning, self.storages) for node in graph.nodes}

    def total(self, node: fx.Node) -> int:
        """The cost of a node's forward and backward run together."""
        return self.forward(node) + sum(self.backward(node))

    def forward(self, node: fx.Node) -> int:
        """The cost of a node's forward run; it also writes what is kept besides values of the graph."""
        written = sum(each for each in self.saved[node] if isinstance(each, int))
        return node_cost(node) + FLOPS_PER_BYTE * written

    def backward(self, node: fx.Node) -> tuple[int, int]:
        """The cost of the gradients of a node's operands: of those that data went into, and of parameters.

        A product of matrices costs one product for each operand; every other op costs memory traffic: the gradient of
        its result, what was saved, and the gradient that it makes. A parameter's gradient is added to that of the
        microbatches before.
        """
        if node.op != "call_function" or node not in self.learning or is_view(node):
            return 0, 0
        given = weight = 0
        for source in node.all_input_nodes:
            if source in self.learning and source in self.weights:
                weight += self._gradient(node, source, ACCUMULATED)
            elif source in self.learning:
                given += self._gradient(node, source, 0)
        if op_name(node) not in FLOPS:
            given += int(ATTENTION * flops(node))
        return given, weight

    def _gradient(self, node: fx.Node, source: fx.Node, more: int) -> int:
        made = value_bytes(source.meta.get("val"))
        moved = value_bytes(node.meta.get("val")) + made + more * made + self._read(node, source)
        return (flops(node) if op_name(node) in FLOPS else 0) + FLOPS_PER_BYTE * moved

    def _read(self, node: fx.Node, source: fx.Node) -> int:
        """The bytes of what was saved for the gradient of an operand: of a product the other operand."""
        product = op_name(node) in FLOPS
        return sum(
            value_bytes(each.meta.get("val")) if isinstance(each, fx.Node) else each
            for each in self.saved[node]
            if not (product and each is source)
        )

    def run(self) -> StageCosts:
        """The costs of a stage's runs of one microbatch, and the bytes that it keeps between them."""
        both = [self.backward(node) for node in self.graph.nodes]
        return StageCosts(
            forward=sum(self.forward(node) for node in self.graph.nodes),
            input=sum(given for given, _ in both),
            weight=sum(weight for _, weight in both),
            kept_bytes=kept_bytes(self.saved.values(), self.storages),
        )


def run_costs(graph: fx.Graph) -> StageCosts:
    """The costs of a stage's forward run and of both halves of its backward run, and the bytes kept between them."""
    return Costing(graph).run()
