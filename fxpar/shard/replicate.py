"""Replicating where it is free: a region that only feeds split work is computed by every rank, if its inputs are there.

    before   x --gather--> q_proj (split)          x also, as slices, --> k_proj --> ... --gather--> attention
    after    x --gather--> q_proj and k_proj       k is Replicate: no activation is moved for it

Its output would have to be gathered (or its gradient summed) for every consumer; its inputs are gathered anyway, for
others. So the region runs on what is gathered, and its parameters' gradients are summed once a step. This is what key
and value projections with fewer heads than ranks need, shared parts of keys, and routers.

A region may also bring its inputs itself, where that moves less: tokens are gathered before they are repeated for each
of their experts, and those that are looked up before they are sorted.
"""

from __future__ import annotations

from collections import defaultdict

from torch import fx

from fxpar.axes.schema import op_name
from fxpar.shard.placement import INVARIANT, PARTIAL, REPLICATE, Placement, Shard
from fxpar.shard.problem import Problem
from fxpar.shard.walk import Decision

#: For each value its consumers, with the placement that each wants of it.
Uses = dict[fx.Node, list[tuple[fx.Node, Placement]]]


def replicate(problem: Problem, decision: Decision) -> None:
    """Change the decisions for such regions, in place."""
    region = _region(problem, decision)
    for node in region:
        decision.states[node] = (REPLICATE,) * len(decision.states[node])
        if node in decision.wants:
            decision.wants[node] = (REPLICATE,) * len(decision.wants[node])
        decision.splits.pop(node, None)


def _region(problem: Problem, decision: Decision) -> set[fx.Node]:
    """The nodes that become Replicate: all that may, without those that cannot stay.

    One that leaves is looked at as the reason for others to leave, so that the work grows with the graph and no more.
    """
    uses = uses_of(problem, decision)
    region = {node for node in decision.states if _may(decision, node)}
    links = _Neighbours(problem, uses, region)
    cold, suspects = set(region), set(region)
    while cold or suspects:
        left: set[fx.Node] = set()
        while cold := {node for node in cold & region if not _feeds_split_work(decision, uses, region, node)}:
            region -= cold
            left |= cold
            cold = links.producers(cold)
        suspects = (suspects | links.siblings(left)) & region
        unfed = {node for node in suspects if not _is_fed(problem, decision, uses, region, node)}
        region -= unfed
        cold, suspects = links.producers(unfed), links.siblings(unfed)
    return region


class _Neighbours:
    """Which nodes have to be asked again when others leave the region."""

    def __init__(self, problem: Problem, uses: Uses, region: set[fx.Node]) -> None:
        self._operands: dict[fx.Node, set[fx.Node]] = defaultdict(set)
        self._takers: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for value, each in uses.items():
            for user, _ in each:
                self._operands[user].add(value)
        for node in region:
            self._operands[node].update(node.all_input_nodes)
            for operand in _operands(problem, node):
                self._takers[operand].append(node)

    def producers(self, nodes: set[fx.Node]) -> set[fx.Node]:
        """The values that the nodes use: whether they feed split work depends on the nodes."""
        return {value for node in nodes for value in self._operands[node]}

    def siblings(self, nodes: set[fx.Node]) -> set[fx.Node]:
        """What uses the nodes, or a value that they use: whether it is fed depends on the nodes."""
        return {taker for value in nodes | self.producers(nodes) for taker in self._takers[value]}


def uses_of(problem: Problem, decision: Decision) -> Uses:
    """Every use of every value."""
    uses: Uses = defaultdict(list)
    for node, wants in decision.wants.items():
        for operand, want in zip(problem.found.links[node].operands, wants):
            uses[operand].append((node, want))
    for node in decision.states:
        if op_name(node) == "operator.getitem":
            uses[node.args[0]].append((node, decision.states[node][0]))  # type: ignore[index]
    for node in problem.lazy:
        for operand in node.all_input_nodes:
            uses[operand].append((node, REPLICATE))
    for node in problem.graph.output_node().all_input_nodes:
        uses[node].append((problem.graph.output_node(), INVARIANT))
    return uses


def _may(decision: Decision, node: fx.Node) -> bool:
    """Whether a node is neither Partial nor the end of a split role."""
    states = decision.states[node]
    if PARTIAL in states:
        return False
    return node not in decision.splits or all(isinstance(state, Shard) for state in states)


def _feeds_split_work(decision: Decision, uses: Uses, region: set[fx.Node], node: fx.Node) -> bool:
    """Whether every use is in the region, or by split work that does not take the value as it is.

    One of several outputs is taken as it is, in whichever dim that one is split.
    """
    state = decision.states[node][0]
    return bool(uses[node]) and all(
        user in region
        or (
            op_name(user) != "operator.getitem"
            and (want is REPLICATE or (isinstance(want, Shard) and want != state))
        )
        for user, want in uses[node]
    )


def _is_fed(problem: Problem, decision: Decision, uses: Uses, region: set[fx.Node], node: fx.Node) -> bool:
    """Whether every operand is there as a whole: from the region, for another consumer, or independent of data."""
    return all(
        operand in problem.lazy
        or operand in region
        or decision.states[operand] == (REPLICATE,)
        or any(
            _brings(problem, decision, region, user, operand) if user in region else want is REPLICATE
            for user, want in uses[operand]
        )
        for operand in _operands(problem, node)
    )


def _operands(problem: Problem, node: fx.Node) -> tuple[fx.Node, ...]:
    links = problem.found.links.get(node)
    return links.operands if links else tuple(node.all_input_nodes)


def _brings(
    problem: Problem, decision: Decision, region: set[fx.Node], user: fx.Node, operand: fx.Node
) -> bool:
    """Whether a node of the region has its operand gathered itself, which moves no more than gathering the node.

    It wants the operand whole anyway, being split along indexes alone; or it is a view that repeats elements, or one of
    several views.
    """
    links = problem.found.links.get(user)
    if links is None:
        return False
    wants = list(zip(links.operands, decision.wants[user]))
    split = [n for n, want in wants if isinstance(want, Shard)]
    if any(n is operand and want is REPLICATE for n, want in wants):
        return bool(split) and not any(n.meta.get("grad") for n in split)
    if links.kind != "view" or len(links.operands) != 1 or len(links.outs) != 1:
        return False
    more = user.meta["val"].numel() - operand.meta["val"].numel()
    return more > 0 or (more == 0 and sum(other in region for other in operand.users) > 1)
