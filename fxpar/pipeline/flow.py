"""What flows along a graph: which nodes stand in line, which are computed again where needed, and what is live.

The nodes in line each run in one stage. What depends on no parameter (masks, positions, rope tables) and what depends
on parameters alone (a transposed weight) never travels: each stage that needs it computes it again.

    batch -> [ mask ]----------------------------+----------------+
                                                 v                v
    weights -> embedding -> norm -> linear -> attention -> | -> attention -> loss      the line, cut at |
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise, takewhile

import torch
from torch import fx

from fxpar.pipeline.backward import Costing
from fxpar.pipeline.cost import FLOPS_PER_PARAMETER_BYTE, is_parameter, value_bytes
from fxpar.pipeline.effects import is_random, owners, written

#: What a value is made of: parameters and data (it is carried), parameters alone, or neither.
CARRIED, WEIGHT, CHEAP = "carried", "weight", "cheap"


@dataclass(frozen=True)
class Flow:
    """The analysis of a flat graph. A position `p` lies before `line[p]`."""

    graph: fx.Graph
    line: tuple[fx.Node, ...]
    """The carried nodes in order, without those that follow another: items of a tuple, final changes of buffers."""
    place: dict[fx.Node, int]
    """The index in `line` at which a node runs; for a node that is computed again, where the graph has it."""
    kind: dict[fx.Node, str]
    needs: dict[fx.Node, tuple[fx.Node, ...]]
    """The operands of a node, and the in-place ops before it that changed them."""
    effects: tuple[fx.Node, ...]
    """Nodes that change a buffer in place and depend on no parameter: each runs where the graph has it, used or not."""
    last_use: dict[fx.Node, int]
    """The last index at which a carried value is used; outputs are used at the end of the line."""
    barred: frozenset[int]
    """Positions at which no cut may lie: inside a sequence of in-place ops, or where no tensor would travel."""

    def live(self, position: int) -> list[fx.Node]:
        """The values that a cut at `position` sends on, in the order in which they were made."""
        return [n for n, last in self.last_use.items() if self.place[n] < position <= last]

    def live_bytes(self) -> list[int]:
        """The bytes of the live values at every position."""
        steps = [0] * (len(self.line) + 2)
        for node, last in self.last_use.items():
            if last > self.place[node]:
                steps[self.place[node] + 1] += value_bytes(node.meta["val"])
                steps[last + 1] -= value_bytes(node.meta["val"])
        return list(accumulate(steps[:-2]))

    def costs(self) -> list[int]:
        """The cost of each node in line, forward and backward, with the bytes of the parameters that it uses.

        A parameter that is used at several places of the line counts at each: they may get into different stages.
        """
        costing = Costing(self.graph)
        costs = [costing.total(node) for node in self.line]
        for node in self.graph.nodes:
            if is_parameter(node):
                for place in self._reached(node):
                    costs[place] += FLOPS_PER_PARAMETER_BYTE * value_bytes(node.meta["val"])
        return costs

    def uses(self) -> list[int]:
        """How many nodes before each position use parameters."""
        users = {p for n in self.graph.nodes if is_parameter(n) for p in self._reached(n)}
        return [0, *accumulate(int(place in users) for place in range(len(self.line)))]

    def _reached(self, source: fx.Node) -> set[int]:
        """The places at which a parameter is used, directly or through what depends on parameters alone."""
        places: set[int] = set()
        for user in source.users:
            if user.op == "call_function":
                places |= {self.place[user]} if self.kind[user] == CARRIED else self._reached(user)
        return places

    def depths(self) -> list[int]:
        """How many enclosing modules the nodes on both sides of each position have in common."""
        paths = [node.meta.get("module", "").split(".") for node in self.line]
        common = [sum(1 for _ in takewhile(lambda ab: ab[0] == ab[1], zip(a, b))) for a, b in pairwise(paths)]
        return [0, *common]


def analyse(graph: fx.Graph) -> Flow:
    """Find what stands in line, what is computed again, and what is live where."""
    owner = owners(graph)
    needs = _needs(graph, owner)
    kind = _kinds(graph, owner, needs)
    line = tuple(n for n in graph.nodes if kind.get(n) == CARRIED and not _follows(n, owner))
    place = _places(graph, line, owner)
    last_use = {
        n: max((_use(user, place, len(line)) for user in n.users), default=-1)
        for n in kind
        if _carried(n, kind)
    }
    barred = _barred_by_writes(kind, owner, place) | _barred_by_type(last_use, place)
    effects = tuple(n for n in kind if not _carried(n, kind) and _changes_state(n, owner))
    return Flow(graph, line, place, kind, needs, effects, last_use, frozenset(barred))


def _changes_state(node: fx.Node, owner: dict[fx.Node, fx.Node]) -> bool:
    return any(owner[target].op == "placeholder" for target in written(node))


def _follows(node: fx.Node, owner: dict[fx.Node, fx.Node]) -> bool:
    """Whether a node costs nothing and runs with what it takes its operand from: an item, a buffer's new value."""
    return node.target is operator.getitem or (not node.users and _changes_state(node, owner))


def _carried(node: fx.Node, kind: dict[fx.Node, str]) -> bool:
    return kind[node] == CARRIED


def _use(user: fx.Node, place: dict[fx.Node, int], end: int) -> int:
    return end if user.op == "output" else place[user]


def _needs(graph: fx.Graph, owner: dict[fx.Node, fx.Node]) -> dict[fx.Node, tuple[fx.Node, ...]]:
    writers: dict[fx.Node, list[fx.Node]] = {}
    needs = {}
    for node in graph.nodes:
        sources = node.all_input_nodes
        earlier = [writer for source in sources for writer in writers.get(owner[source], ())]
        needs[node] = tuple(dict.fromkeys([*sources, *earlier]))
        for target in written(node):
            writers.setdefault(owner[target], []).append(node)
    return needs


def _kinds(
    graph: fx.Graph, owner: dict[fx.Node, fx.Node], needs: dict[fx.Node, tuple[fx.Node, ...]]
) -> dict[fx.Node, str]:
    """The kind of every node but the output. Memory that a carried node writes to is carried from its start."""
    tainted: set[fx.Node] = set()
    while True:
        kind: dict[fx.Node, str] = {}
        for node in graph.nodes:
            if node.op != "output":
                touched = {owner[source] for source in (node, *node.all_input_nodes)}
                kind[node] = _kind(node, {kind[source] for source in needs[node]}, bool(touched & tainted))
        carried = (node for node in kind if kind[node] == CARRIED)
        found = {owner[target] for node in carried for target in written(node)} - tainted
        if not found:
            return kind
        tainted |= found


def _kind(node: fx.Node, sources: set[str], tainted: bool) -> str:
    if node.op == "placeholder":
        return WEIGHT if is_parameter(node) else CHEAP
    if tainted or is_random(node) or len(sources) > 1:
        return CARRIED
    return next(iter(sources), CHEAP)


def _places(graph: fx.Graph, line: tuple[fx.Node, ...], owner: dict[fx.Node, fx.Node]) -> dict[fx.Node, int]:
    place = {node: index for index, node in enumerate(line)}
    seen = 0
    for node in graph.nodes:
        if node in place:
            seen = place[node] + 1
            continue
        place[node] = min(seen, max(len(line) - 1, 0))
        if _follows(node, owner):
            makers = [place[source] for source in node.all_input_nodes if source.op != "placeholder"]
            place[node] = max(makers, default=place[node])
    return place


def _barred_by_writes(
    kind: dict[fx.Node, str], owner: dict[fx.Node, fx.Node], place: dict[fx.Node, int]
) -> set[int]:
    """Positions between the making of a value and its last change in place; for buffers, between any two uses."""
    barred: set[int] = set()
    carried = [node for node in kind if kind[node] == CARRIED]
    for memory in {owner[target] for node in carried for target in written(node)}:
        writers = [
            place[node] for node in carried if any(owner[target] is memory for target in written(node))
        ]
        if memory.op == "placeholder":
            uses = [place[node] for node in carried if any(owner[s] is memory for s in node.all_input_nodes)]
            barred |= set(range(min(uses) + 1, max(uses) + 1))
        else:
            barred |= set(range(place[memory] + 1, max(writers) + 1))
    return barred


def _barred_by_type(last_use: dict[fx.Node, int], place: dict[fx.Node, int]) -> set[int]:
    """Positions over which something lives that is no tensor; a tuple's items are values of their own."""
    barred: set[int] = set()
    for node, last in last_use.items():
        if not isinstance(node.meta.get("val"), torch.Tensor):
            barred |= set(range(place[node] + 1, last + 1))
    return barred


def closure(flow: Flow, nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """All that `nodes` need besides carried values: placeholders, and what has to be computed again."""
    found: set[fx.Node] = set()
    waiting = [source for node in nodes for source in flow.needs[node]]
    while waiting:
        node = waiting.pop()
        if flow.kind[node] != CARRIED and node not in found:
            found.add(node)
            waiting.extend(flow.needs[node])
    return found
