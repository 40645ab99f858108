"""The backward walk: values that depend on parameters alone, or on inputs alone, are placed as they are consumed.

parameter    Shard where a consumer wants a slice; else Replicate where every use is by split work (its gradient is
             then summed once a step); else Invariant. Whole over time: every microbatch has all of it
buffer       whole; the slice of the op that changes it in place, where there is one
input        whole; a value made from inputs is sliced as early as every consumer wants the same slice
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from torch import fx

from fxpar.axes.links import FREE, Links
from fxpar.axes.schema import op_name
from fxpar.capture.clean import moves_buffers
from fxpar.shard.lower import LOWERINGS
from fxpar.shard.placement import INVARIANT, REPLICATE, Placement, Shard
from fxpar.shard.problem import Problem
from fxpar.shard.split import Split
from fxpar.shard.walk import Decision, apply_split, may, role_at


def settle(problem: Problem, decision: Decision) -> None:
    """Decide every lazy node of the graph, last one first."""
    demands: dict[tuple[fx.Node, int], list[Placement]] = defaultdict(list)
    for node in problem.calls():
        if node not in problem.lazy and node in problem.found.links:
            _demand(demands, problem.found.links[node].operands, decision.wants[node])
    for node in problem.graph.output_node().all_input_nodes:
        demands[node, 0].append(INVARIANT)
    for node in reversed(problem.graph.nodes):
        if node in problem.lazy:
            _settle(problem, decision, node, demands)


def _demand(
    demands: dict[tuple[fx.Node, int], list[Placement]],
    operands: Sequence[fx.Node],
    wants: Sequence[Placement],
) -> None:
    for operand, want in zip(operands, wants):
        if op_name(operand) == "operator.getitem":
            demands[operand.args[0], operand.args[1]].append(want)  # type: ignore[index]
        demands[operand, 0].append(want)


def _settle(
    problem: Problem, decision: Decision, node: fx.Node, demands: dict[tuple[fx.Node, int], list[Placement]]
) -> None:
    if op_name(node) == "operator.getitem":
        return
    if node.op == "placeholder":
        timed = decision.mesh_dim in problem.timed
        decision.states[node] = (_placeholder(node, demands[node, 0], timed),)
        return
    links = problem.found.links[node]
    wants = [demands[node, index] for index in range(len(links.outs))]
    split = _common(links, wants)
    if split is not None and may(problem, decision, node, links, split):
        apply_split(decision, node, links, split)
    else:
        state = _unsplit(node, [want for each in wants for want in each])
        decision.states[node] = (state,) * len(links.outs)
        decision.wants[node] = (state,) * len(links.operands)
    for user in node.users:
        if op_name(user) == "operator.getitem":
            decision.states[user] = (decision.states[node][user.args[1]],)  # type: ignore[index]
    _demand(demands, links.operands, decision.wants[node])


def _placeholder(node: fx.Node, wants: list[Placement], timed: bool) -> Placement:
    if node.meta["kind"] != "parameter" and not any(moves_buffers(user) for user in node.users):
        return INVARIANT
    shards = [want for want in wants if isinstance(want, Shard)]
    return shards[0] if shards and not timed else _unsplit(node, wants)


def _unsplit(node: fx.Node, wants: list[Placement]) -> Placement:
    """Replicate where a gradient flows and every use is by split work; else Invariant."""
    split_work = wants and all(want is REPLICATE or isinstance(want, Shard) for want in wants)
    return REPLICATE if node.meta.get("grad") and split_work else INVARIANT


def _common(links: Links, wants: list[list[Placement]]) -> Split | None:
    """The split that gives every consumer just the slice that it wants, if there is one."""
    found: Split | None = None
    if links.kind not in ("op", "view"):
        return None
    for index, each in enumerate(wants):
        if not each:
            continue
        first = each[0]
        if not isinstance(first, Shard) or any(want != first for want in each):
            return None
        split = role_at(links, index, first, output=True)
        if split is None or not _local(links, split.role) or (found is not None and split != found):
            return None
        found = split
    return found


def _local(links: Links, role: str) -> bool:
    """Whether each slice is made of the same slices of the operands, or of operands that have nothing of the role."""
    meaning = links.roles[role].meaning
    return meaning == FREE or (meaning in LOWERINGS and not any(links.sites(role)))
