"""Sums of gradients are made once for a value instead of once for each of its slices.

    before   x --slice--> a --sum_gradient--> split work        after    x --sum_gradient--> a, b --> split work
             x --slice--> b --sum_gradient--> split work

Views whose every use wants them Replicate become Replicate themselves, if together they hold no less than what they are
views of. Then that is converted: in one collective, and where it is a Partial sum, in the one that completes it.
"""

from __future__ import annotations

from math import prod

import torch
from torch import fx

from fxpar.axes.links import Links
from fxpar.shard.placement import INVARIANT, REPLICATE
from fxpar.shard.problem import Problem
from fxpar.shard.replicate import Uses, uses_of
from fxpar.shard.walk import Decision


def hoist(problem: Problem, decision: Decision) -> None:
    """Change the decisions for such views, in place."""
    uses = uses_of(problem, decision)
    for node in reversed(list(decision.states)):
        views = [user for user in dict(uses[node]) if _may_move(problem, decision, uses, user)]
        if not views or sum(map(_elements, views)) < _elements(node):
            continue
        for view in views:
            decision.states[view] = (REPLICATE,) * len(decision.states[view])
            if view in decision.wants:
                decision.wants[view] = (REPLICATE,)
        uses[node] = [(user, REPLICATE if user in views else want) for user, want in uses[node]]


def _may_move(problem: Problem, decision: Decision, uses: Uses, node: fx.Node) -> bool:
    """Whether a node is a view of one Invariant value with a gradient, and all that use it want it Replicate."""
    if node not in decision.states or not node.meta.get("grad") or not uses[node]:
        return False
    links = problem.found.links.get(node)
    if links is not None and (not _is_view(node, links) or node in decision.splits):
        return False
    invariant = {*decision.states[node], *decision.wants.get(node, ())} == {INVARIANT}
    return invariant and all(want is REPLICATE for _, want in uses[node])


def _is_view(node: fx.Node, links: Links) -> bool:
    """Whether an op only arranges the elements of one value; as a conversion to the dtype that it has does."""
    if len(links.operands) != 1:
        return False
    same = not isinstance(node.meta["val"], (list, tuple)) and links.linear
    return links.kind == "view" or (same and node.meta["val"].dtype == links.operands[0].meta["val"].dtype)


def _elements(node: fx.Node) -> int:
    value = node.meta["val"]
    values = value if isinstance(value, (list, tuple)) else [value]
    return sum(prod(v.shape) for v in values if isinstance(v, torch.Tensor))
