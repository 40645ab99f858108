"""The rewrite: a new graph with local sizes, in which every operand comes in the placement that its op wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import fx

from fxpar.axes.factor import Dim, Factor, resolve, text
from fxpar.axes.links import Dims
from fxpar.axes.local import localize
from fxpar.axes.runs import cut_size
from fxpar.axes.schema import op_name
from fxpar.capture.clean import moves_buffers
from fxpar.errors import MixingError, ShardError
from fxpar.mesh import OpNumber
from fxpar.shard.convert import SHARE, Step, normal, order, step, zeros
from fxpar.shard.draw import Draw, Part
from fxpar.shard.fakes import Fakes
from fxpar.shard.lower import lowering_of
from fxpar.shard.lower.base import Site
from fxpar.shard.lower.random import is_random
from fxpar.shard.placement import INVARIANT, PARTIAL, REPLICATE, Placement, Shard, local_shape, shards_of
from fxpar.shard.position import SEED, STEP_SEED, Positions, placeholder
from fxpar.shard.problem import Problem
from fxpar.shard.walk import Decision

Held = dict[str, Placement]


class Rewrite:
    """Builds the sharded graph from the decisions for every mesh dim."""

    def __init__(self, problem: Problem, decisions: Mapping[str, Decision]) -> None:
        self.problem = problem
        self.decisions = decisions
        self.graph = fx.Graph()
        self.positions = Positions(self.graph, problem.found)
        self.env: dict[fx.Node, fx.Node] = {}
        self.converted: dict[tuple[fx.Node, frozenset[tuple[str, Placement]] | str], fx.Node] = {}
        self._shared: dict[object, fx.Node] = {}
        self.draws: list[Draw] = []
        """Every random op."""
        self._fakes = Fakes()
        self._dims: dict[tuple[fx.Node, int], Dims] = {}
        self._held: dict[tuple[fx.Node, int], Held] = {}

    def run(self) -> fx.Graph:
        """Rewrite every node in order, then the outputs."""
        for node in self.problem.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "call_function":
                self._call(node)
            else:
                self._output(node)
        self.graph.eliminate_dead_code(
            is_impure_node=lambda n: (
                n.op in ("placeholder", "output") or "update" in n.meta or moves_buffers(n)
            )
        )
        self.graph.lint()
        return self.graph

    def held(self, node: fx.Node, index: int = 0) -> Held:
        """The placements of a node's output, without mesh dims over which it is Invariant."""
        if (node, index) not in self._held:
            grad, decided = bool(node.meta.get("grad")), self.decisions.items()
            states = {m: normal(d.states[node][index], grad) for m, d in decided if node in d.states}
            self._held[node, index] = {m: s for m, s in states.items() if s is not INVARIANT}
        return self._held[node, index]

    def dims(self, node: fx.Node, index: int = 0) -> Dims:
        """The resolved dims of one output of a node."""
        if (node, index) not in self._dims:
            self._dims[node, index] = tuple(resolve(dim) for dim in self.problem.found.dims[node][index])
        return self._dims[node, index]

    def whole(self, old: fx.Node, consumer: fx.Node) -> fx.Node:
        """The new node that holds a value Invariant over every mesh dim; made again where that needs no collective."""
        if old not in self.problem.lazy or old.meta.get("grad") or is_random(old) or not self.held(old):
            return self._convert(old, {}, consumer)
        key = (old, frozenset[tuple[str, Placement]]())
        if key not in self.converted:
            operands = {n: self.whole(n, consumer) for n in old.all_input_nodes}
            args, kwargs = fx.node.map_arg((old.args, old.kwargs), operands.__getitem__)
            new = self.graph.create_node("call_function", old.target, args, kwargs, name=old.name)
            new.meta = dict(old.meta)
            self._describe(new, old, {})
            self.converted[key] = new
        return self.converted[key]

    def draw(
        self,
        site: Site,
        target: Any,
        first: tuple[Any, ...],
        rest: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> fx.Node:
        """Append a call that draws from the stream of its placement, and note it."""
        stream = (self._seed(site), OpNumber(len(self.draws) + 1), site.coordinates)
        new = self.call(target, (*first, *stream, *rest), dict(options or {}), site.node)
        wants = {m: d.wants[site.node] for m, d in self.decisions.items()}
        olds = {
            operand: (old, self._part(old, {m: want[i] for m, want in wants.items()}))
            for i, (operand, old) in enumerate(zip(site.operands, site.links.operands))
        }
        outputs = range(len(self.problem.found.dims[site.node]))
        parts = tuple(self._part(site.node, self.held(site.node, i), i) for i in outputs)
        self.draws.append(Draw(site.node, new, olds, parts))
        return new

    def _seed(self, site: Site) -> fx.Node:
        """The seed of a microbatch, or of the step for a value that is no part of a batch: there it is the same."""
        seed, timed = self.positions.seed(SEED), self.problem.timed & self.problem.sizes.keys()
        if not timed:
            return seed
        step_seed = self.positions.seed(STEP_SEED)
        return seed if any(isinstance(site.held.get(m), Shard) for m in timed) else step_seed

    def _part(self, node: fx.Node, held: Mapping[str, Placement], index: int = 0) -> Part:
        return Part(self.dims(node, index), held, self.problem.sizes)

    def shared(self, key: object, make: Callable[[fx.Graph], fx.Node]) -> fx.Node:
        """A value that depends on nothing, made once at the head of the graph for all that ask with this key."""
        if key not in self._shared:
            with self.positions.at_head():
                self._shared[key] = make(self.graph)
        return self._shared[key]

    def call(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], like: fx.Node, val: Any = None
    ) -> fx.Node:
        """Append a call that stands for the old node `like`; `val` where it is no tensor of the shape of `like`."""
        new = self.graph.create_node("call_function", target, args, kwargs, name=like.name)
        new.meta = {
            k: v
            for k, v in like.meta.items()
            if k in ("module", "source", "call", "grad", "creates", "update")
        }
        new.meta["val"] = val if val is not None else self._local_val(like)
        self._describe(new, like)
        return new

    def _placeholder(self, node: fx.Node) -> None:
        new = placeholder(self.graph, node.name)
        new.meta = dict(node.meta)
        if isinstance(node.meta["val"], torch.Tensor):
            new.meta["val"] = self._local_val(node)
            self._describe(new, node)
        self.env[node] = self.positions.head = new

    def _call(self, node: fx.Node) -> None:
        if op_name(node) == "operator.getitem":
            self.env[node] = self.call(node.target, (self.env[node.args[0]], node.args[1]), {}, node)  # type: ignore[index]
            return
        links = self.problem.found.links[node]
        operands = tuple(
            self._convert(operand, {m: d.wants[node][i] for m, d in self.decisions.items()}, node)
            for i, operand in enumerate(links.operands)
        )
        splits = {m: d.splits[node] for m, d in self.decisions.items() if node in d.splits}
        site = Site(
            self, node, operands, splits, self.held(node), links, self.problem.sizes, self.problem.timed
        )
        lowering = lowering_of(node)
        self.env[node] = (lowering.rewrite(site) if lowering else None) or self._plain(node, operands)

    def _plain(self, node: fx.Node, operands: tuple[fx.Node, ...]) -> fx.Node:
        """The same op on local operands, with local sizes."""
        self._check_inside(node)
        over = self._shares(node)
        target, args, kwargs = localize(
            node,
            self.problem.found,
            self._local_dim,
            lambda dim: self._length(node, dim),
            shares=prod(self.problem.sizes[m] for m in over),
        )
        remaining = iter(operands)
        args, kwargs = fx.node.map_arg((args, kwargs), lambda _: next(remaining))
        new = self.call(target, args, kwargs, node)
        if over:
            new.meta["shares"] = over
        return new

    def _shares(self, node: fx.Node) -> tuple[str, ...]:
        """The mesh dims of time over which a node that adds numbers makes shares of a sum."""
        if not self.problem.found.links[node].numbers:
            return ()
        return tuple(
            m for m in self.decisions if m in self.problem.timed and self.held(node).get(m) is PARTIAL
        )

    def _check_inside(self, node: fx.Node) -> None:
        """Raise ShardError for a Function that does something else on slices than on the whole."""
        inner, cuts = self.problem.found.inner.get(node), self._cuts(node)
        if inner is not None and cuts and not inner.agrees(cuts):
            raise ShardError(
                f"autograd.Function `{node.target.__name__}` computes something else on slices",  # type: ignore[union-attr]
                details=[
                    f"{node.meta.get('module') or 'the model'} ({node.meta.get('source')})",
                    "it reads the sizes of its inputs: keep the axis whole in `splits`",
                ],
            )

    def _local_dim(self, node: fx.Node, index: int, dim: int) -> int:
        return local_shape(self.dims(node, index), self.held(node, index), self.problem.sizes)[dim]

    def _length(self, node: fx.Node, dim: Dim) -> int:
        """The local length of a part of a dim that the node's split cuts."""
        return cut_size(resolve(dim), self._cuts(node))

    def _cuts(self, node: fx.Node) -> dict[Factor, int]:
        """The factors that a node is split on, and into how many parts each."""
        return {
            d.splits[node].factor: self.problem.sizes[m]
            for m, d in self.decisions.items()
            if node in d.splits
        }

    def _local_val(self, node: fx.Node) -> Any:
        value = node.meta["val"]
        if isinstance(value, (list, tuple)):
            return type(value)(self._resized(node, v, i) for i, v in enumerate(value))
        return self._resized(node, value, 0)

    def _resized(self, node: fx.Node, value: Any, index: int) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        shape = local_shape(self.dims(node, index), self.held(node, index), self.problem.sizes)
        return self._fakes.like(value, shape)

    def _output(self, node: fx.Node) -> None:
        """Scalars and Partial outputs are completed; split ones stay, their placement is in `meta['held']`."""
        outputs = []
        for old in node.args[0]:  # type: ignore[union-attr]
            outputs.append(self._complete(old, node) if isinstance(old, fx.Node) else old)
        self.graph.output(tuple(outputs))

    def _complete(self, old: fx.Node, consumer: fx.Node) -> fx.Node:
        keep = {m: s for m, s in self.held(old).items() if isinstance(s, Shard) or m in self.problem.timed}
        return self._convert(old, keep, consumer)

    def _convert(self, old: fx.Node, wants: Mapping[str, Placement], consumer: fx.Node) -> fx.Node:
        """The value of an old node in the placement that a consumer wants, made once for all that want the same."""
        grad = bool(old.meta.get("grad"))
        held, new = self.held(old), self._zeroed(old, consumer)
        targets = {m: normal(wants.get(m, INVARIANT), grad) for m in self.decisions}
        changes = {m: (held.get(m, INVARIANT), t) for m, t in targets.items() if held.get(m, INVARIANT) != t}
        via = {m: state for m in changes if (state := self._on_the_way(old, m, *changes[m])) is not None}
        if via:
            new, held = self._convert(old, {**targets, **via}, consumer), _varying({**targets, **via})
            changes = {m: (state, targets[m]) for m, state in via.items()}
        for mesh_dims in order(self.dims(old), changes, self.problem.sizes, self.problem.timed):
            change = step(self.dims(old), held, mesh_dims, targets, self.problem.sizes, self.problem.timed)
            held = _varying({**held, **{m: targets[m] for m in mesh_dims}})
            if change.mesh_dims[0] in self.problem.timed and self._in_time(change, consumer, grad):
                continue
            key = (old, frozenset(held.items()))
            if key not in self.converted:
                self.converted[key] = self._insert(change, new, old, held, consumer)
            new = self.converted[key]
        return new

    def _zeroed(self, old: fx.Node, consumer: fx.Node) -> fx.Node:
        """The value of an old node as it is held, with zeros in its padding where it has to have them."""
        new, held = self.env[old], self.held(old)
        for mesh_dim in [m for m, d in self.decisions.items() if old in d.zeroed]:
            key = (old, mesh_dim)
            if key not in self.converted:
                self.converted[key] = self._insert(
                    zeros(self.dims(old), held, mesh_dim, self.problem.sizes), new, old, held, consumer
                )
            new = self.converted[key]
        return new

    def _on_the_way(
        self, old: fx.Node, mesh_dim: str, source: Placement, target: Placement
    ) -> Placement | None:
        """What a sum is completed to for another consumer, if this one is better served from there than by a sum.

        A sum that one consumer wants as slices, or Invariant, and another one whole, is made once.
        """
        if source is not PARTIAL or isinstance(target, Shard) or mesh_dim in self.problem.timed:
            return None
        wants = self._wanted(old, mesh_dim)
        slices = [want for want in wants if isinstance(want, Shard)]
        if slices:
            return slices[0]
        return INVARIANT if target is not INVARIANT and INVARIANT in wants else None

    def _wanted(self, old: fx.Node, mesh_dim: str) -> list[Placement]:
        """The placements that the consumers of a value want of it over a mesh dim."""
        decision = self.decisions[mesh_dim]
        found: list[Placement] = [INVARIANT for user in old.users if user.op == "output"]
        for user in old.users:
            links = self.problem.found.links.get(user)
            wants = zip(links.operands, decision.wants[user]) if links else ()
            found += [want for operand, want in wants if operand is old]
        return found

    def _in_time(self, change: Step, consumer: fx.Node, grad: bool) -> bool:
        """Whether a step over a mesh dim of time is none: only slices of inputs and equal shares of terms are steps."""
        whole = change.source in (INVARIANT, REPLICATE)
        if whole and change.target in (INVARIANT, REPLICATE):
            return True
        if (whole and change.target is PARTIAL) or (isinstance(change.target, Shard) and not grad):
            return False
        raise MixingError(
            f"microbatches mix at `{op_name(consumer)}`: it needs the whole batch",
            details=[
                f"{consumer.meta.get('module') or 'the model'} ({consumer.meta.get('source')})",
                "use one microbatch",
            ],
        )

    def _insert(self, change: Step, new: fx.Node, old: fx.Node, held: Held, consumer: fx.Node) -> fx.Node:
        with self.positions.place(new, old, consumer, change.source is PARTIAL) as module:
            made = self.graph.call_function(change.operator, (new, *change.arguments))
        shape = local_shape(self.dims(old), held, self.problem.sizes)
        made.meta = {
            "val": self._fakes.like(new.meta["val"], shape),
            "grad": old.meta.get("grad"),
            "module": module,
        }
        made.meta["source"] = old.meta.get("source", "")
        made.meta["call"] = old.meta.get("call", 0)
        made.meta["rule"] = self._rule(change, old, consumer)
        if change.operator is SHARE:
            made.meta["shares"] = change.mesh_dims
        self._describe(made, old, held)
        return made

    def _rule(self, change: Step, old: fx.Node, consumer: fx.Node) -> str:
        """The row of the table that asked for a conversion: what its target, else its source, is split by."""
        decision = self.decisions[change.mesh_dims[0]]
        for node in (consumer, old):
            factor = decision.splits[node].factor if node in decision.splits else None
            axis = self.problem.naming.axis(factor) if factor else None
            if axis and axis in self.problem.table:
                return self.problem.table[axis].source
        return ""

    def _describe(self, new: fx.Node, old: fx.Node, held: Held | None = None) -> None:
        """Note dims and placements in words, for comments and for `explain`."""
        if not isinstance(new.meta["val"], torch.Tensor):
            return
        held = self.held(old) if held is None else held
        dims = self.dims(old)
        new.meta["dims"] = tuple(text(dim, self.problem.naming.word) for dim in dims)
        new.meta["held"] = held
        words = [f"{self._word(s)} over {m}" for m, s in held.items() if m not in self.problem.timed]
        if words:
            new.meta["placement"] = ", ".join(words)
        rows = [self.problem.naming.axis(f) for i in range(len(dims)) for f in shards_of(held, i)]
        if rows and "rule" not in new.meta:
            new.meta["rule"] = ", ".join(dict.fromkeys(self.problem.table[r].source for r in rows if r))

    def _word(self, placement: Placement) -> str:
        if isinstance(placement, Shard):
            return f"Shard({placement.dim}, {self.problem.naming.word(placement.factor)})"
        return placement.name.capitalize()


def _varying(held: Mapping[str, Placement]) -> Held:
    """The placements of a value without mesh dims over which it is Invariant."""
    return {m: state for m, state in held.items() if state is not INVARIANT}
