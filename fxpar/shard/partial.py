"""What stays Partial: sums that are completed later, where that costs no more.

P -> linear op                            P
P + P                                     P
P + bias of the selected experts          P, the bias on the first rank alone
P * weights of the selected experts       P, where the weights are few as against what they weigh

Over time nothing is ever completed, so that more has to stay:

P + what all microbatches have            P, of which each microbatch adds an equal share
P * what all microbatches have            P
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from fxpar.axes.links import Links
from fxpar.shard.placement import PARTIAL, REPLICATE, Placement, Shard
from fxpar.shard.problem import Problem

#: A factor of a product is moved rather than the product, if it has at most this part of its elements.
SMALL = 1 / 2


def stays_partial(
    problem: Problem, node: fx.Node, states: Sequence[Placement | None], *, timed: bool
) -> tuple[Placement, ...] | None:
    """What a node wants of its operands if it is made of what is Partial; None if that has to be completed first.

    What others need too is completed for them; then this node is better made of what is complete. So is what falls into
    parts: one sum instead of one for each.
    """
    links = problem.found.links[node]
    partial = [i for i, state in enumerate(states) if state is PARTIAL]
    if partial and timed:
        return _over_time(node, links, states, partial)
    shared = len(links.outs) > 1 or any(len(links.operands[i].users) > 1 for i in partial)
    if not partial or shared:
        return None
    if len(partial) == len(states):
        if links.terms and len(states) > 1:
            same = len({tuple(n.meta["val"].shape) for n in links.operands}) == 1
            return (PARTIAL,) * len(states) if same else None
        return (PARTIAL,) * len(states) if links.linear and _not_narrower(node, links) else None
    if len(partial) == 1 and _not_narrower(node, links):
        return _term(problem, node, links, partial[0]) or _product(problem, node, links, partial[0])
    return None


def _over_time(
    node: fx.Node, links: Links, states: Sequence[Placement | None], partial: Sequence[int]
) -> tuple[Placement, ...] | None:
    """The same over time, where what is not Partial has to be whole: of parameters, or of whole inputs."""
    if any(isinstance(state, Shard) for state in states) or not _not_narrower(node, links):
        return None
    complete = len(partial) == len(states) and not links.numbers
    if links.linear and complete:
        return (PARTIAL,) * len(states)
    if len(links.terms) == len(states) and (complete or _has_shares(node, links)):
        return (PARTIAL,) * len(states)
    if len(partial) == 1 and partial[0] in links.products:
        return tuple(PARTIAL if i == partial[0] else REPLICATE for i in range(len(states)))
    return None


def _has_shares(node: fx.Node, links: Links) -> bool:
    """Whether a sum is one of real or complex numbers only: integers have no equal shares."""
    values = [node.meta["val"], *(operand.meta["val"] for operand in links.operands)]
    return all(value.is_floating_point() or value.is_complex() for value in values)


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
