"""Sums of several terms, in the order in which they cost least: what products leave Partial is added first.

    (x + attention) + feed_forward   ->   (attention + feed_forward) + x

Both products over split heads and channels are sums to be completed, and so is their sum: the ranks meet once instead
of twice. Where the terms stand so already, and where there is one product only, nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import fx

from fxpar.axes.links import SUM
from fxpar.axes.oprule import OpRule
from fxpar.axes.schema import op_name

ADD = torch.ops.aten.add.Tensor


def ordered_sums(graph: fx.Graph, rules: Mapping[str, OpRule]) -> fx.Graph:
    """The graph itself, or a copy in which terms of sums have changed places. Shapes and names stay."""
    if not any(_order(nodes, rules) for nodes in _sums(graph)):
        return graph
    copy = fx.Graph()
    result = copy.graph_copy(graph, {})
    copy.output(result)
    copy.output_node().meta = dict(graph.output_node().meta)
    for nodes in list(_sums(copy)):
        terms = _order(nodes, rules)
        if terms:
            _rebuild(nodes, terms)
    copy.lint()
    return copy


def _sums(graph: fx.Graph) -> Iterator[list[fx.Node]]:
    """The additions of each sum of three terms or more, in order; the last one is the whole sum."""
    for node in graph.nodes:
        if _is_addition(node) and not (len(node.users) == 1 and _continues(next(iter(node.users)), node)):
            found = [*_inner(node), node]
            if len(found) > 1:
                yield found


def _inner(node: fx.Node) -> Iterator[fx.Node]:
    for term in node.all_input_nodes:
        if len(term.users) == 1 and _continues(node, term):
            yield from _inner(term)
            yield term


def _continues(node: fx.Node, term: fx.Node) -> bool:
    """Whether a sum goes on with a term that is a sum itself, in the same call of the same module."""
    same = all(node.meta.get(key) == term.meta.get(key) for key in ("module", "call", "grad"))
    return same and _is_addition(node) and _is_addition(term)


def _is_addition(node: fx.Node) -> bool:
    """Whether a node adds two different tensors of one shape and dtype."""
    if node.op != "call_function" or node.target != ADD or node.kwargs or len(node.all_input_nodes) != 2:
        return False
    values = [each.meta["val"] for each in (node, *node.all_input_nodes)]
    return len({(tuple(value.shape), value.dtype) for value in values}) == 1


def _order(nodes: list[fx.Node], rules: Mapping[str, OpRule]) -> list[fx.Node]:
    """The terms of a sum with its products first; nothing where that changes nothing."""
    terms = [term for node in nodes for term in node.all_input_nodes if term not in nodes]
    if len({*terms}) < len(terms):
        return []
    products = [term for term in terms if _is_product(term, rules)]
    pure = {*products}
    for node in nodes:
        pure |= {node} if pure.issuperset(node.all_input_nodes) else set()
    apart = [each for node in nodes if node not in pure for each in node.all_input_nodes if each in pure]
    return [*products, *(term for term in terms if term not in products)] if len(apart) > 1 else []


def _is_product(node: fx.Node, rules: Mapping[str, OpRule]) -> bool:
    """Whether a value that only the sum uses is made of a product, by ops that leave sums to be completed."""
    while node.op == "call_function" and len(node.users) == 1:
        rule = rules.get(op_name(node))
        if rule is None:
            return False
        if SUM in rule.meanings.values() or rule.shape == "einsum":
            return True
        if len(node.all_input_nodes) != 1 or not (rule.linear or rule.kind == "view" or rule.shape):
            return False
        node = node.all_input_nodes[0]
    return False


def _rebuild(nodes: list[fx.Node], terms: list[fx.Node]) -> None:
    """Let additions, each of which has one user, add these terms from left to right."""
    root = nodes[-1]
    total = terms[0]
    for node, term in zip(nodes, terms[1:], strict=True):
        if node is not root:
            root.prepend(node)
        node.args = (total, term)
        total = node
