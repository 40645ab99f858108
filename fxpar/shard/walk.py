"""The forward walk: for one mesh dim, which role each op is split on, and what it wants of its operands.

Only nodes that depend on parameters and inputs are decided here; `shard/lazy.py` decides the others, backwards.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import fx

from fxpar.axes.factor import Factor, count, holds_partly, leaves, resolve
from fxpar.axes.links import FREE, SUM, WHOLE, Links
from fxpar.axes.schema import op_name
from fxpar.capture.functions import FunctionCall
from fxpar.shard.lower import LOWERINGS, lowering_of
from fxpar.shard.partial import stays_partial
from fxpar.shard.placement import INVARIANT, PARTIAL, REPLICATE, Placement, Shard
from fxpar.shard.problem import Problem
from fxpar.shard.split import Split
from fxpar.shard.uneven import allows


@dataclass
class Decision:
    """What was decided for one mesh dim."""

    mesh_dim: str
    states: dict[fx.Node, tuple[Placement, ...]] = field(default_factory=dict)
    """The placement of every output of every node."""
    wants: dict[fx.Node, tuple[Placement, ...]] = field(default_factory=dict)
    """The placement that a node wants of each of its operands (in the order of its links)."""
    splits: dict[fx.Node, Split] = field(default_factory=dict)
    zeroed: set[fx.Node] = field(default_factory=set)
    """Nodes whose value has to have zeros in its padding."""
    unmixed: Collection[Factor] = ()
    """Factors on which nothing is split that has them in some parts of a concatenation only."""

    def state(self, node: fx.Node) -> Placement:
        """The placement of a node with one output."""
        return self.states[node][0]


def walk(problem: Problem, mesh_dim: str, unmixed: Collection[Factor] = ()) -> Decision:
    """Decide every node that is not lazy, in one pass in graph order. For `unmixed` see `Decision`."""
    decision = Decision(mesh_dim, unmixed=unmixed)
    for node in problem.calls():
        if node in problem.lazy:
            continue
        if op_name(node) == "operator.getitem":
            decision.states[node] = (decision.states[node.args[0]][node.args[1]],)  # type: ignore[index]
        else:
            _decide(problem, decision, node, problem.found.links[node])
    return decision


def _decide(problem: Problem, decision: Decision, node: fx.Node, links: Links) -> None:
    states = [None if n in problem.lazy else decision.state(n) for n in links.operands]
    outputs = len(links.outs)
    partial = stays_partial(problem, node, states, timed=decision.mesh_dim in problem.timed)
    if partial:
        decision.wants[node] = partial
        decision.states[node] = (PARTIAL,) * outputs
        return
    carries = links.kind == "view"
    split = (_carried if carries else _chosen)(problem, decision, node, links, states)
    if split is None:
        whole = REPLICATE if {*states} - {None} == {REPLICATE} else INVARIANT
        decision.wants[node] = (whole,) * len(states)
        decision.states[node] = (whole,) * outputs
    else:
        apply_split(decision, node, links, split)


def apply_split(decision: Decision, node: fx.Node, links: Links, split: Split) -> None:
    """Record that a node is split, with what follows for its operands and outputs."""
    decision.splits[node] = split
    meaning = links.roles[split.role].meaning
    decision.wants[node] = wanted(links, split, meaning)
    decision.states[node] = produced(node, links, split, meaning)


def wanted(links: Links, split: Split, meaning: str) -> tuple[Placement, ...]:
    """What a split node wants of each operand."""
    wants: list[Placement] = [
        PARTIAL if meaning == SUM and i in links.terms else REPLICATE for i in range(len(links.ins))
    ]
    for index, dim, piece in links.sites(split.role):
        if split.factor in leaves(piece):
            wants[index] = Shard(dim, split.factor)
    return tuple(wants)


def produced(node: fx.Node, links: Links, split: Split, meaning: str) -> tuple[Placement, ...]:
    """The placement of each output of a split node.

    Parts of a concatenation that do not have the factor are the same on every rank, and feed split work.
    """
    rest: Placement = PARTIAL if meaning == SUM else INVARIANT
    if meaning == FREE and split.factor in links.mixed(split.role):
        rest = REPLICATE
    elif meaning not in (FREE, SUM):
        rest = LOWERINGS[meaning].output(node, split.role)
    outs = [rest] * len(links.outs)
    for index, dim, piece in links.sites(split.role, outputs=True):
        if split.factor in leaves(piece):
            outs[index] = Shard(dim, split.factor)
    return tuple(outs)


def _carried(
    problem: Problem, decision: Decision, node: fx.Node, links: Links, states: list[Placement | None]
) -> Split | None:
    """A view never starts a split: it goes on with the first one that an operand has, if it can."""
    for index, state in enumerate(states):
        if isinstance(state, Shard):
            split = role_at(links, index, state)
            if split is not None and may(problem, decision, node, links, split):
                return split
    return None


def may(problem: Problem, decision: Decision, node: fx.Node, links: Links, split: Split) -> bool:
    """Whether the factor of a split divides, or the node can do with one that does not; and so of a mixed split."""
    if not (_serves(problem, links, split) and _leads(problem, links, split)):
        return False
    uneven = problem.is_uneven(split.factor, decision.mesh_dim)
    if split.factor in links.factors(split.role):
        return not uneven or allows(node, links, split)
    own = isinstance(node.target, FunctionCall) or lowering_of(node) is not None
    return not (uneven or own or decision.mesh_dim in problem.timed or split.factor in decision.unmixed)


def _serves(problem: Problem, links: Links, split: Split) -> bool:
    """Whether the op's rule gives its lowering to the axis of the factor."""
    lowered = links.roles[split.role].meaning in LOWERINGS
    return not lowered or not links.axes or problem.naming.axis(split.factor) in links.axes


def _leads(problem: Problem, links: Links, split: Split) -> bool:
    """Whether a role that wants contiguous shares has nothing whole before the factor that is to be split."""
    meaning = links.roles[split.role].meaning
    if meaning not in LOWERINGS or not LOWERINGS[meaning].leading(split.role):
        return True
    dim = links.first(split.role)
    before = list(dim[: dim.index(split.factor)]) if split.factor in dim else list(dim)
    return all(isinstance(term, Factor) and term in problem.given for term in before)


def role_at(links: Links, operand: int, state: Shard, *, output: bool = False) -> Split | None:
    """The split that goes with an operand (or an output) being split as `state`; None if the node cannot."""
    tensor, factor = (links.outs if output else links.ins)[operand], state.factor
    for role, piece in tensor[state.dim] if state.dim < len(tensor) else ():
        dim = resolve(piece)
        if (count(dim, factor) == 1 or holds_partly(dim, factor)) and links.roles[role].meaning != WHOLE:
            return Split(role, factor) if factor in [*links.factors(role), *links.mixed(role)] else None
    return None


def _chosen(
    problem: Problem, decision: Decision, node: fx.Node, links: Links, states: list[Placement | None]
) -> Split | None:
    """The split of highest precedence: by row of the table, then one that an operand already has, then by role."""
    best: tuple[int, int, int] | None = None
    chosen = None
    for position, (name, role) in enumerate(links.roles.items()):
        if links.kind != "op" or (role.meaning not in (FREE, SUM, WHOLE) and role.meaning not in LOWERINGS):
            continue
        for factor in [*links.factors(name), *links.mixed(name)]:
            row = problem.rank(factor, decision.mesh_dim)
            if row is None or not may(problem, decision, node, links, Split(name, factor)):
                continue
            key = (row, 0 if _present(links, name, factor, states) else 1, position)
            if best is None or key < best:
                best, chosen = key, Split(name, factor)
    return chosen


def _present(links: Links, role: str, factor: Factor, states: list[Placement | None]) -> bool:
    return any(states[index] == Shard(dim, factor) for index, dim, _ in links.sites(role))
