"""Factors that do not divide: every rank has a part of the same length, and the last ones end in padding.

    97 classes over 4 ranks    25 | 25 | 25 | 22 and 3 of padding

Padding may hold anything, as long as nothing else ever depends on it. An op that treats each index of a factor alone
(`free`) leaves it where it is. Others mix, forward where they reduce the factor, backward where they broadcast along
it, and need zeros there:

    sum over the factor      x.sum(-1), x @ w         operands with zeros in their padding
    broadcast along it       x @ w.T, x + b[:, None]  finite operands, and zeros in the padding of the gradient
    loss, embedding, mean    lowerings                see to it themselves

Parameters are loaded, and slices made, with zeros in their padding; what gathers a factor leaves the padding out, and
gives zeros for its gradient. Where neither is so, `zero_padding` is inserted. What none of this covers is not split:
its operands are gathered.
"""

from __future__ import annotations

from collections import defaultdict

from torch import fx

from fxpar.axes.links import FREE, SUM, Links
from fxpar.axes.schema import op_name
from fxpar.shard.placement import Placement, Shard
from fxpar.shard.problem import Problem
from fxpar.shard.split import Split
from fxpar.shard.uneven import broadcasts, is_multilinear
from fxpar.shard.walk import Decision

#: What is known of the padding of a value.
ANYTHING, FINITE, ZERO = range(3)


def zeroed(problem: Problem, decision: Decision) -> set[fx.Node]:
    """The nodes whose value, and its gradient, need zeros in their padding over the decision's mesh dim."""
    if not any(factor.size % problem.sizes[m] for factor, m in problem.given.items()):
        return set()
    padding = _Padding(problem, decision)
    padding.forward()
    padding.backward()
    return padding.found


class _Padding:
    def __init__(self, problem: Problem, decision: Decision) -> None:
        self.problem, self.decision = problem, decision
        self.found: set[fx.Node] = set()
        self.known: dict[fx.Node, int] = {}
        self.clean: set[fx.Node] = set()
        """Nodes whose gradient has zeros in its padding."""
        self.uses: dict[fx.Node, list[tuple[fx.Node, int]]] = defaultdict(list)
        for node in problem.calls():
            for index, operand in enumerate(self.links(node).operands):
                self.uses[operand].append((node, index))

    def links(self, node: fx.Node) -> Links:
        return self.problem.found.links.get(node) or Links()

    def forward(self) -> None:
        """What is known of each value, and which have to be zeroed for an op that mixes."""
        for node in self.problem.graph.nodes:
            if node.op == "placeholder":
                self.known[node] = ZERO
            elif op_name(node) == "operator.getitem":
                self.known[node] = self.known.get(node.args[0], ANYTHING)
            elif split := self._split(node):
                self.known[node] = self._after(node, split)

    def backward(self) -> None:
        """Which gradients are zero in their padding, and which have to be made so."""
        for node in reversed(self.problem.graph.nodes):
            if not self._is_uneven(node):
                continue
            split = self._split(node)
            if node not in self.found and not all(self._use_is_clean(node, user) for user in node.users):
                if not node.meta.get("grad"):
                    continue
                if node.op == "placeholder" or (split and broadcasts(self.links(node), split)):
                    self._zero(node)
                else:
                    continue
            self.clean.add(node)

    def _after(self, node: fx.Node, split: Split) -> int:
        links, found = self.links(node), []
        meaning = links.roles[split.role].meaning
        carrying = list(dict.fromkeys(i for i, _, _ in links.sites(split.role)))
        summed = meaning in (SUM, "mean")
        need = ZERO if summed else FINITE if meaning == FREE and broadcasts(links, split) else ANYTHING
        for index in carrying:
            operand = links.operands[index]
            known = self.known.get(operand, ANYTHING) if self._is_as_wanted(node, index) else ZERO
            alone = summed and len(carrying) == 1 and self._is_as_wanted(node, index)
            if known < need or alone:
                self._zero(operand)
                known = ZERO
            found.append(known)
        least = min(found, default=ANYTHING)
        if meaning != FREE:
            return ANYTHING
        if links.linear and len(carrying) == len(links.operands):
            return least
        return min(least, FINITE) if links.kind == "view" or is_multilinear(links) else ANYTHING

    def _zero(self, node: fx.Node) -> None:
        """Zero a value, of several results each."""
        parts = [user for user in node.users if op_name(user) == "operator.getitem"]
        for each in parts or [node]:
            self.found.add(each)
            self.known[each] = ZERO

    def _use_is_clean(self, node: fx.Node, user: fx.Node) -> bool:
        if user.op == "output":
            return True
        if op_name(user) == "operator.getitem":
            return user in self.clean or not self._is_uneven(user)
        return all(self._gives_zeros(user, i) for found, i in self.uses[node] if found is user)

    def _gives_zeros(self, user: fx.Node, index: int) -> bool:
        """Whether the gradient that an op gives its operand is zero in the padding."""
        if not self._is_as_wanted(user, index):
            return True
        split, links = self._split(user), self.links(user)
        if split is None:
            return False
        if links.roles[split.role].meaning != FREE or broadcasts(links, split):
            return True
        moves = links.kind == "view" or links.linear or bool(links.terms)
        return moves and user in self.clean

    def _is_as_wanted(self, node: fx.Node, index: int) -> bool:
        """Whether an operand comes without a conversion."""
        state = self.decision.states.get(self.links(node).operands[index], (None,))[0]
        return state == self.decision.wants[node][index]

    def _split(self, node: fx.Node) -> Split | None:
        split = self.decision.splits.get(node)
        return split if split and self.problem.is_uneven(split.factor, self.decision.mesh_dim) else None

    def _is_uneven(self, node: fx.Node) -> bool:
        return any(self._is_padded(state) for state in self.decision.states.get(node, ()))

    def _is_padded(self, state: Placement) -> bool:
        return isinstance(state, Shard) and self.problem.is_uneven(state.factor, self.decision.mesh_dim)
