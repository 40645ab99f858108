"""What stays Partial: sums that are completed later, where that costs no more.

P -> linear op                            P
P + P                                     P
P + bias of the selected experts          P, the bias on the first rank alone
P * weights of the selected experts       P, where the weights are few as against what they weigh
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from fxpar.axes.links import Links
from fxpar.shard.placement import PARTIAL, REPLICATE, Placement
from fxpar.shard.problem import Problem

#: A factor of a product is moved rather than the product, if it has at most this part of its elements.
SMALL = 1 / 2


def stays_partial(
    problem: Problem, node: fx.Node, states: Sequence[Placement | None], *, timed: bool
) -> tuple[Placement, ...] | None:
    """What a node wants of its operands if it is made of what is Partial; None if that has to be completed first.

    What others need too is completed for them; then this node is better made of what is complete. So is what falls into
    parts: one sum instead of one for each. Over time nothing is ever completed.
    """
    links = problem.found.links[node]
    partial = [i for i, state in enumerate(states) if state is PARTIAL]
    shared = len(links.outs) > 1 or any(len(links.operands[i].users) > 1 for i in partial)
    if not partial or (shared and not timed):
        return None
    if len(partial) == len(states):
        if links.terms and len(states) > 1:
            same = len({tuple(n.meta["val"].shape) for n in links.operands}) == 1
            return (PARTIAL,) * len(states) if same else None
        return (PARTIAL,) * len(states) if links.linear and _not_narrower(node, links) else None
    if len(partial) == 1 and not timed and _not_narrower(node, links):
        return _term(problem, node, links, partial[0]) or _product(problem, node, links, partial[0])
    return None


def _term(problem: Problem, node: fx.Node, links: Links, partial: int) -> tuple[Placement, ...] | None:
    """A sum with selected weights, which every rank can have whole."""
    others = [n for i, n in enumerate(links.operands) if i != partial]
    if len(links.terms) < len(links.operands) or not all(n in problem.selected for n in others):
        return None
    return (PARTIAL,) * len(links.operands) if _as_large(node, links.operands[partial]) else None


def _product(problem: Problem, node: fx.Node, links: Links, partial: int) -> tuple[Placement, ...] | None:
    """A product with computed factors of few elements: these are gathered, and their gradients summed."""
    few = node.meta["val"].numel() * SMALL
    others = [n for i, n in enumerate(links.operands) if i != partial]
    if partial not in links.products or any(n in problem.lazy or n.meta["val"].numel() > few for n in others):
        return None
    wants = tuple(PARTIAL if i == partial else REPLICATE for i in range(len(links.operands)))
    return wants if _as_large(node, links.operands[partial]) else None


def _as_large(node: fx.Node, operand: fx.Node) -> bool:
    return bool(node.meta["val"].numel() == operand.meta["val"].numel())


def _not_narrower(node: fx.Node, links: Links) -> bool:
    value = node.meta["val"]
    dtype = value[0].dtype if isinstance(value, (list, tuple)) else value.dtype
    return bool(dtype.itemsize >= links.operands[0].meta["val"].dtype.itemsize)
