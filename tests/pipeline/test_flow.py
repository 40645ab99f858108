"""What flows along random graphs, and what in-place ops and random ops mean for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pipeline_graphs import Random, graphs
from torch import Tensor, fx, nn

from fxpar.capture import capture
from fxpar.pipeline.check import check
from fxpar.pipeline.cost import value_bytes
from fxpar.pipeline.cut import Cuts
from fxpar.pipeline.flow import CARRIED, CHEAP, WEIGHT, Flow, analyse
from fxpar.pipeline.module import StageModule
from fxpar.pipeline.stages import build


def used_after(flow: Flow, node: fx.Node, position: int) -> bool:
    return any(user.op == "output" or flow.place[user] >= position for user in node.users)


@given(graphs())
def test_live_values(subject: Random) -> None:
    flow = analyse(subject.graph)
    live_bytes = flow.live_bytes()
    assert len(live_bytes) == len(flow.line)
    for position in range(len(flow.line)):
        before = [n for n in flow.kind if flow.kind[n] == CARRIED and flow.place[n] < position]
        expected = [node for node in before if used_after(flow, node, position)]
        assert flow.live(position) == expected
        assert live_bytes[position] == sum(value_bytes(node.meta["val"]) for node in expected)


@given(graphs(), st.data())
def test_any_cuts_give_the_same_numbers(subject: Random, data: st.DataObject) -> None:
    flow = analyse(subject.graph)
    free = [position for position in range(1, len(flow.line)) if position not in flow.barred]
    positions = tuple(sorted(data.draw(st.sets(st.sampled_from(free))))) if free else ()
    stages = build(Cuts(flow, positions, (0,) * (len(positions) + 1), ()))
    check(subject.graph, stages)
    values: tuple[Tensor, ...] = ()
    for stage in stages:
        values = StageModule(stage, subject.tensors)(*values, **subject.inputs)
        arrived = {x.untyped_storage().data_ptr() for x in subject.tensors.values()}
        assert len(stage.sent) in (len(values), 0)
        if stage is not stages[-1]:
            assert all(x.is_contiguous() and x.untyped_storage().data_ptr() not in arrived for x in values)
    torch.testing.assert_close(values, subject.expected(), rtol=1e-12, atol=1e-12)


class Model(nn.Module):
    """A function of a weight, a buffer and an input."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("state", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def flow_of(function: Callable[..., Tensor]) -> Flow:
    return analyse(capture(Model(function), [torch.ones(3)]).graph)


def kinds(flow: Flow) -> dict[str, str]:
    return {node.name: kind for node, kind in flow.kind.items() if node.op == "call_function"}


def test_kinds() -> None:
    flow = flow_of(lambda m, x: (m.weight.exp() * x.sin()).cos() + torch.arange(3).neg())
    assert kinds(flow) == {
        "exp": WEIGHT,
        "sin": CHEAP,
        "mul": CARRIED,
        "cos": CARRIED,
        "arange": CHEAP,
        "neg": CHEAP,
        "add": CARRIED,
    }


def test_random_values_are_made_once() -> None:
    flow = flow_of(lambda m, x: m.weight * torch.rand(3) * x)
    assert kinds(flow)["rand"] == CARRIED


def test_the_final_change_of_a_buffer_runs_with_its_value() -> None:
    def function(model: Model, x: Tensor) -> Tensor:
        y = x * model.weight
        with torch.no_grad():
            model.state.copy_(y * 2)
        return y.sin().cos()

    flow = flow_of(function)
    assert [node.name for node in flow.line][-2:] == ["sin", "cos"]
    changed = next(node for node in flow.kind if "copy_" in str(node.target))
    assert flow.place[changed] < len(flow.line) - 2


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh memory", "carried memory"])
def test_no_cut_inside_a_change_in_place(fresh: bool) -> None:
    """memory -> z -> memory.add_(z) -> memory.cos(): a cut may lie before the cosine only."""
    aten, graph = torch.ops.aten, fx.Graph()
    x, w = graph.placeholder("x"), graph.placeholder("w")
    for node, kind in ((x, "input"), (w, "parameter")):
        node.meta = {"kind": kind, "name": node.name}
    memory = (
        graph.call_function(aten.zeros_like.default, (x,))
        if fresh
        else graph.call_function(aten.mul.Tensor, (x, w))
    )
    z = graph.call_function(aten.add.Tensor, (w, memory))
    graph.call_function(aten.add_.Tensor, (memory, z))
    graph.output((graph.call_function(aten.cos.default, (memory,)),))
    for node in graph.nodes:
        node.meta["val"] = torch.ones(3)
    assert analyse(graph).barred == {1, 2}
    stages = build(Cuts(analyse(graph), (3,), (0, 0), ()))
    check(graph, stages)
    tensors = {"w": torch.full((3,), 2.0)}
    sent = StageModule(stages[0], tensors)(x=torch.full((3,), 3.0))
    (result,) = StageModule(stages[1], {})(*sent)
    torch.testing.assert_close(result, torch.full((3,), 2.0 if fresh else 14.0).cos())
