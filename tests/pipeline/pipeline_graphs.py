"""Random small graphs, with parameters, masks, views, tuples and results of several ages."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, fx

from fxpar.capture.interpret import call

aten = torch.ops.aten
SIZE = 4

#: Ops of one operand or two, each from [4, 4] to [4, 4].
OPS = (
    aten.sin.default,
    aten.t.default,
    aten.detach.default,
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.mm.default,
)


@dataclass
class Random:
    """A graph, its tensors by name, and inputs."""

    graph: fx.Graph
    tensors: dict[str, Tensor]
    inputs: dict[str, Tensor]

    def expected(self) -> tuple[Tensor, ...]:
        """The results of the whole graph."""
        values: dict[fx.Node, object] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                values[node] = {**self.tensors, **self.inputs}[node.name]
            elif node.op == "call_function":
                values[node] = call(node, values)
        return tuple(values[node] for node in self.graph.output_node().args[0])


@st.composite
def graphs(draw: st.DrawFn) -> Random:
    """A graph of 1 to 14 ops over two parameters and an input, with 1 to 3 outputs."""
    graph, values = fx.Graph(), []
    for name, kind in (("p", "parameter"), ("q", "parameter"), ("x", "input")):
        values.append(graph.placeholder(name))
        values[-1].meta = {"kind": kind, "name": name}
    for _ in range(draw(st.integers(1, 14))):
        values.append(_node(draw, graph, values))
    graph.output(tuple(draw(st.lists(st.sampled_from(values[3:]), min_size=1, max_size=3))))
    for node in graph.nodes:
        pair = (torch.empty(SIZE // 2, SIZE, device="meta"),) * 2
        node.meta["val"] = (
            pair if node.target is aten.split.Tensor else torch.empty(SIZE, SIZE, device="meta")
        )
    random = torch.Generator().manual_seed(0)
    tensors = [torch.randn(SIZE, SIZE, generator=random, dtype=torch.float64) for _ in range(3)]
    return Random(graph, {"p": tensors[0], "q": tensors[1]}, {"x": tensors[2]})


def _node(draw: st.DrawFn, graph: fx.Graph, values: list[fx.Node]) -> fx.Node:
    one, other = draw(st.sampled_from(values)), draw(st.sampled_from(values))
    target = draw(st.sampled_from((*OPS, aten.split.Tensor)))
    if target is aten.split.Tensor:
        parts = graph.call_function(target, (one, SIZE // 2))
        items = [graph.call_function(operator.getitem, (parts, index)) for index in (1, 0)]
        return graph.call_function(aten.cat.default, (items,))
    return graph.call_function(target, (one, other) if target in OPS[3:] else (one,))
