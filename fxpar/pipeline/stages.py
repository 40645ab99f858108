"""Building a graph for each stage: its own nodes, what it computes again, what it receives, sends and passes on.

stage 0            stage 1              stage 2
t5 bias -+-------> relayed -----------> used           a value goes through the stages between
         `-> used  `-> used                            its gradients are summed where it is passed on
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxpar.errors import PipelineError
from fxpar.pipeline.backward import run_costs
from fxpar.pipeline.cost import is_parameter, parameter_bytes, shape
from fxpar.pipeline.cut import Cuts
from fxpar.pipeline.effects import is_fresh, written
from fxpar.pipeline.flow import CARRIED, Flow, closure
from fxpar.pipeline.gradient import learning
from fxpar.pipeline.spec import StageCosts, StageSpec, ValueSpec

#: Kinds of placeholders that are given from outside for each microbatch.
GIVEN = ("input", "prepared")


@dataclass(frozen=True)
class Value:
    """A tensor that travels: the node's name in the whole graph, a fake tensor, and whether a gradient comes back."""

    name: str
    val: torch.Tensor = field(compare=False)
    requires_grad: bool

    def spec(self) -> ValueSpec:
        """The value without its tensor."""
        dtype = str(self.val.dtype).removeprefix("torch.")
        return ValueSpec(self.name, shape(self.val), dtype, self.requires_grad)


@dataclass
class Stage:
    """A piece of a graph that one pipeline rank runs.

    `graph` is a flat graph of the same kind. Its placeholders are, in this order, the parameters, buffers and
    constants that it uses, the `received` values (meta kind `received`), and the inputs that it needs (`inputs`, by
    placeholder name). Its result is the tuple of the `sent` values, or on the last stage the model's outputs. Nothing
    that it sends is a view of what it received. `computes` names the model's outputs that are made here. `rank` is the
    rank along `pp` that runs the stage, `shared` maps each parameter that other ranks hold too to all that hold it:
    their gradients have to be summed.
    """

    index: int
    count: int
    graph: fx.Graph
    received: tuple[Value, ...]
    sent: tuple[Value, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    computes: tuple[str, ...]
    cost: int
    loss: Value | None = None
    shared: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    rank: int = 0
    costs: StageCosts = field(default_factory=StageCosts)

    @property
    def parameter_bytes(self) -> int:
        """The bytes of the parameters that the stage holds."""
        return parameter_bytes(self.graph)

    def parameters(self) -> tuple[str, ...]:
        """The original names of the parameters that the stage holds."""
        nodes = self.graph.find_nodes(op="placeholder")
        return tuple(node.meta["name"] for node in nodes if is_parameter(node))

    def spec(self) -> StageSpec:
        """What the runtime has to know of the stage."""
        received = tuple(value.spec() for value in self.received)
        sent = tuple(value.spec() for value in self.sent)
        loss, shared = self.loss.spec() if self.loss else None, dict(self.shared)
        given = (received, sent, self.inputs, self.outputs, loss, shared)
        return StageSpec(self.index, self.count, *given, rank=self.rank, costs=self.costs)


def build(
    cuts: Cuts, outputs: Sequence[str] = (), loss: str | None = None, ranks: Sequence[int] = ()
) -> list[Stage]:
    """Build the stages that `cuts` describes.

    `ranks` are those along `pp` that run the stages (default: one each, in order). `outputs` names the graph's flat
    outputs (default: their positions), `loss` is the name of the loss among them. A placeholder without any user stays
    with the one before it, so that every parameter is held somewhere. Raises `PipelineError` if there is no such output
    or it is not a single floating-point number.
    """
    flow = cuts.flow
    results = _results(flow.graph)
    names = tuple(outputs) or tuple(str(index) for index in range(len(results)))
    homes = [_home(flow, cuts, index) for index in range(cuts.stages)]
    _update_everywhere(flow, homes)
    _place_unused(flow.graph, homes)
    ranks = ranks or range(cuts.stages)
    shared = _shared(homes, ranks)
    gradients = learning(flow.graph)
    value = _loss(flow.graph, names, loss, gradients) if loss is not None else None
    return [
        _stage(cuts, index, rank, homes[index], gradients, names, value, shared)
        for index, rank in enumerate(ranks)
    ]


def _results(graph: fx.Graph) -> tuple[Any, ...]:
    results = graph.output_node().args[0]
    assert isinstance(results, tuple | list)
    return tuple(results)


def _loss(graph: fx.Graph, names: tuple[str, ...], loss: str, gradients: set[fx.Node]) -> Value:
    results = dict(zip(names, _results(graph)))
    node = results.get(loss)
    if loss not in results:
        raise PipelineError(
            f"the model has no output `{loss}` to be its loss", details=[f"it has {', '.join(names)}"]
        )
    val = node.meta["val"] if isinstance(node, fx.Node) else None
    if not isinstance(val, torch.Tensor) or not val.is_floating_point() or shape(val) != ():
        given = f"{val.dtype} of shape {list(shape(val))}" if isinstance(val, torch.Tensor) else str(node)
        raise PipelineError(
            f"output `{loss}` is no loss: it is {given}", details=["a loss is one floating-point number"]
        )
    assert isinstance(node, fx.Node)
    return Value(loss, val, node in gradients)


def _home(flow: Flow, cuts: Cuts, index: int) -> set[fx.Node]:
    """All nodes that a stage runs or is given, but for received values."""

    def here(node: fx.Node) -> bool:
        return bisect_right(cuts.positions, flow.place[node]) == index

    own = {node for node in flow.kind if flow.kind[node] == CARRIED and here(node)}
    effects = {node for node in flow.effects if here(node)}
    ends = [flow.graph.output_node()] if index == cuts.stages - 1 else []
    return own | effects | closure(flow, [*own, *effects, *ends])


def _update_everywhere(flow: Flow, homes: list[set[fx.Node]]) -> None:
    """Let every stage that holds a buffer update its own copy."""
    for effect in flow.effects:
        for home in homes:
            if not home.isdisjoint(written(effect)):
                home |= {effect, *closure(flow, [effect])}


def _place_unused(graph: fx.Graph, homes: list[set[fx.Node]]) -> None:
    home = homes[0]
    for node in graph.find_nodes(op="placeholder"):
        users = [other for other in homes if node in other]
        home = users[0] if users else home
        if not users and node.meta["kind"] not in GIVEN:
            home.add(node)


def _shared(homes: list[set[fx.Node]], ranks: Sequence[int]) -> dict[fx.Node, tuple[int, ...]]:
    """The parameters that several ranks hold; two stages on one rank have one of it."""
    parameters = {node for home in homes for node in home if is_parameter(node)}
    holders = {
        node: tuple(sorted({rank for rank, home in zip(ranks, homes) if node in home})) for node in parameters
    }
    ordered = sorted(parameters, key=lambda node: str(node.meta["name"]))
    return {node: holders[node] for node in ordered if len(holders[node]) > 1}


def _stage(
    cuts: Cuts,
    index: int,
    rank: int,
    home: set[fx.Node],
    gradients: set[fx.Node],
    names: tuple[str, ...],
    loss: Value | None,
    shared: Mapping[fx.Node, tuple[int, ...]],
) -> Stage:
    flow, last = cuts.flow, index == cuts.stages - 1
    received = flow.live(cuts.positions[index - 1]) if index else []
    sent = [] if last else flow.live(cuts.positions[index])
    writer = _Writer(flow.graph, home, received, gradients)
    writer.finish(_results(flow.graph) if last else tuple(sent), keep=last)
    results = zip(names, _results(flow.graph))
    return Stage(
        index=index,
        count=cuts.stages,
        graph=writer.graph,
        received=tuple(_value(node, gradients) for node in received),
        sent=tuple(_value(node, gradients) for node in sent),
        inputs=tuple(node.name for node in writer.given),
        outputs=names,
        computes=tuple(name for name, node in results if isinstance(node, fx.Node) and node in home),
        cost=cuts.costs[index],
        loss=loss,
        shared={node.meta["name"]: holders for node, holders in shared.items() if node in home},
        rank=rank,
        costs=run_costs(writer.graph),
    )


def _value(node: fx.Node, gradients: set[fx.Node]) -> Value:
    return Value(node.name, _contiguous(node), node in gradients)


def _contiguous(node: fx.Node) -> torch.Tensor:
    """The value of a node as it arrives after travelling: without gaps."""
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor)
    if value.is_contiguous():
        return value
    with torch.no_grad():
        return value.clone(memory_format=torch.contiguous_format)


class _Writer:
    """Writes the graph of one stage; node names are those of the whole graph."""

    def __init__(
        self, whole: fx.Graph, home: set[fx.Node], received: list[fx.Node], gradients: set[fx.Node]
    ) -> None:
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}
        self.received = set(received)
        self.gradients = gradients
        placeholders = [node for node in whole.nodes if node.op == "placeholder" and node in home]
        self.given = [node for node in placeholders if node.meta["kind"] in GIVEN]
        for node in placeholders:
            if node not in self.given:
                self._copy(node)
        for node in received:
            self._receive(node)
        for node in self.given:
            self._copy(node)
        for node in whole.nodes:
            if node in home and node.op != "placeholder":
                self._copy(node)

    def _copy(self, node: fx.Node) -> None:
        self.copies[node] = self.graph.node_copy(node, self.copies.__getitem__)

    def _receive(self, node: fx.Node) -> None:
        copy = self.graph.create_node("placeholder", node.name, name=node.name)
        copy.meta = {**node.meta, "kind": "received", "name": node.name, "val": _contiguous(node)}
        copy.meta["grad"] = node in self.gradients
        self.copies[node] = copy

    def finish(self, results: tuple[Any, ...], keep: bool) -> None:
        """Write the output: values to send on, each a tensor of its own, or the model's outputs, kept as they are."""
        outputs = tuple(self._result(node, keep) if isinstance(node, fx.Node) else node for node in results)
        self.graph.output(outputs)
        self.graph.lint()

    def _result(self, node: fx.Node, keep: bool) -> fx.Node:
        """A result of the stage: cloned if it was received or, unless it is `keep`, may be a view; without gaps."""
        copy = self.copies[node]
        if node not in self.received and keep:
            return copy
        if node not in self.received and is_fresh(node) and node in self.gradients:
            return self._append(torch.ops.aten.contiguous.default, copy, {}, f"{node.name}_sent")
        if node not in self.gradients and not keep:
            copy = self._append(torch.ops.aten.detach.default, copy, {}, f"{node.name}_detached")
        memory = {"memory_format": torch.contiguous_format}
        return self._append(torch.ops.aten.clone.default, copy, memory, f"{node.name}_sent")

    def _append(self, target: Any, source: fx.Node, kwargs: dict[str, Any], name: str) -> fx.Node:
        copy = self.graph.create_node("call_function", target, (source,), kwargs, name=name)
        copy.meta = {key: value for key, value in source.meta.items() if key not in ("kind", "name")}
        copy.meta |= {"added": True, "module": "", "call": 0}
        if isinstance(source.meta.get("val"), torch.Tensor):
            copy.meta["val"] = _contiguous(source)
        return copy
