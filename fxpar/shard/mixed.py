"""Mixed splits: concatenations of which only some parts have the factor that is split.

    rows of a fused weight   cat[(heads d), d, d]     one head of keys and values for all queries
    a rank's own rows        its heads' queries, and all of the keys and values

The parts without the factor are Replicate: the same on every rank, with a gradient in parts. As gradients are linear
in what comes back, one product makes all of it, and only these rows of the weight's gradient are summed once a step.
Nothing converts a mixed value: what does not take it apart, or as it is, forbids that it is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import fx

from fxpar.axes.factor import Factor, holds_partly
from fxpar.shard.hoist import hoist
from fxpar.shard.lazy import settle
from fxpar.shard.padding import zeroed
from fxpar.shard.placement import Placement, Shard
from fxpar.shard.problem import Problem
from fxpar.shard.replicate import replicate
from fxpar.shard.walk import Decision, walk


def decide(problem: Problem, mesh_dim: str) -> Decision:
    """Decide every node for one mesh dim, with as many mixed splits as nothing has to convert."""
    unmixed: frozenset[Factor] = frozenset()
    while True:
        decision = walk(problem, mesh_dim, unmixed)
        if mesh_dim not in problem.timed:
            replicate(problem, decision)
            hoist(problem, decision)
        settle(problem, decision)
        misused = frozenset(_misused(problem, decision))
        if not misused:
            decision.zeroed = zeroed(problem, decision)
            return decision
        unmixed |= misused


def _misused(problem: Problem, decision: Decision) -> Iterator[Factor]:
    """The factors of mixed splits that some consumer wants otherwise, or that it alone wants so."""
    for node, operand, want in _edges(problem, decision):
        state = decision.state(operand)
        if state != want or node.op == "output":
            yield from _mixed(problem, operand, (state, want))


def _edges(problem: Problem, decision: Decision) -> Iterator[tuple[fx.Node, fx.Node, Placement]]:
    """Every use of a value, with the placement that is wanted of it."""
    for node, wants in decision.wants.items():
        for operand, want in zip(problem.found.links[node].operands, wants):
            yield node, operand, want
    output = problem.graph.output_node()
    for operand in output.all_input_nodes:
        yield output, operand, decision.state(operand)


def _mixed(problem: Problem, node: fx.Node, states: Iterable[Placement]) -> Iterator[Factor]:
    for state in states:
        if isinstance(state, Shard) and holds_partly(problem.found.of(node)[state.dim], state.factor):
            yield state.factor
