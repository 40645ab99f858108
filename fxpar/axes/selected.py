"""Weights that the model selects: rows of a stack of weights, one for each number that it computes.

    weight  [experts, out, in]         a parameter, or made of parameters alone
    ids     [rows]                     computed from parameters and inputs: the best experts of each token
    weight[ids]  [rows, out, in]       a selected weight: it is a weight to what consumes it

What is looked up by inputs alone is no selected weight but an embedding.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from fxpar.axes.infer import Inference
from fxpar.axes.links import Links
from fxpar.axes.schema import op_name

LOOKUPS = ("aten.index.Tensor", "aten.index_select.default")


def selected(found: Inference) -> set[fx.Node]:
    """Every selection from a weight by numbers that depend on parameters and inputs, and what is a view of one."""
    parameters = _from(found, "parameter")
    inputs = _from(found, "input")
    chosen: set[fx.Node] = set()
    for node, links in found.links.items():
        if _selects(node, links, parameters, inputs, chosen) or (
            _only_views(links) and all(operand in chosen for operand in links.operands)
        ):
            chosen.add(node)
    return chosen


def _selects(
    node: fx.Node,
    links: Links,
    parameters: Collection[fx.Node],
    inputs: Collection[fx.Node],
    chosen: Collection[fx.Node],
) -> bool:
    if op_name(node) not in LOOKUPS or len(links.operands) < 2:
        return False
    source, *ids = links.operands
    weight = source in chosen or (source in parameters and source not in inputs)
    return weight and all(i in parameters and i in inputs and not i.meta.get("grad") for i in ids)


def _only_views(links: Links) -> bool:
    """Whether a call only rearranges or casts its one operand."""
    pointwise = links.linear and all(role.startswith("...") for role in links.roles)
    return len(links.operands) == 1 and (links.kind == "view" or pointwise)


def _from(found: Inference, kind: str) -> set[fx.Node]:
    """The placeholders of a kind, and every node that depends on one."""
    reached: set[fx.Node] = set()
    for node in found.dims:
        if node.meta.get("kind") == kind or any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    return reached
