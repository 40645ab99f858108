"""What the backward run costs, in both of its halves."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from pipeline_models import case
from torch import Tensor, nn

from fxpar.capture import capture
from fxpar.pipeline.backward import ACCUMULATED, ATTENTION, Costing, run_costs
from fxpar.pipeline.cost import FLOPS_PER_BYTE, flops, op_name
from fxpar.pipeline.spec import StageCosts, StageSpec


def costs(model: nn.Module, *inputs: Tensor) -> dict[str, tuple[int, int]]:
    """The backward costs of a model's ops by name."""
    graph = capture(model, list(inputs)).graph
    costing = Costing(graph)
    return {op_name(node): costing.backward(node) for node in graph.nodes if node.op == "call_function"}


def test_a_product_costs_one_for_each_operand() -> None:
    x, hidden, weight = 4 * 6 * 8, 4 * 6 * 16, 4 * 8 * 16  # bytes
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16, bias=False), nn.Tanh())
    found = costs(model, torch.zeros(6, 8))
    product = 2 * 6 * 8 * 16
    assert found["linear"] == (
        product + FLOPS_PER_BYTE * (hidden + x + weight),
        product + FLOPS_PER_BYTE * (hidden + x + (1 + ACCUMULATED) * weight),
    )
    assert found["tanh"] == (FLOPS_PER_BYTE * 3 * hidden, 0)
    assert found["layer_norm"][0] == 0 < found["layer_norm"][1]


def test_what_learns_nothing_costs_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    model[0].requires_grad_(False)
    graph = capture(model, [torch.zeros(6, 8)]).graph
    first, second = (node for node in graph.nodes if node.op == "call_function")
    costing = Costing(graph)
    assert costing.backward(first) == (0, 0)
    given, weight = costing.backward(second)
    assert given == 0 < weight


class Head(nn.Module):
    """An embedding, attention without parameters, and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(100, 8), nn.Linear(8, 100, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids).unsqueeze(1)
        y = F.scaled_dot_product_attention(x, x, x).squeeze(1)
        return F.cross_entropy(self.head(y).flatten(0, 1), ids.flatten())


def test_embedding_attention_and_loss() -> None:
    ids = torch.zeros(2, 6, dtype=torch.int64)
    found = costs(Head(), ids)
    rows, table, logits = 4 * 12 * 8, 4 * 100 * 8, 4 * 12 * 100
    assert found["embedding"] == (0, FLOPS_PER_BYTE * (rows + (1 + ACCUMULATED) * table + 8 * 12))
    assert found["cross_entropy_loss"] == (FLOPS_PER_BYTE * (4 + 2 * logits + 8 * 12), 0)
    graph = capture(Head(), [ids]).graph
    attention = next(node for node in graph.nodes if "attention" in op_name(node))
    products = ATTENTION * flops(attention)
    assert products < found["scaled_dot_product_attention"][0] < products + FLOPS_PER_BYTE * 20 * rows


@pytest.mark.parametrize("name", ["gpt", "llama", "t5"])
def test_stages_cost_what_the_graph_costs(name: str) -> None:
    """But for what several stages compute, and for values that are copied to be sent."""
    subject = case(name)
    (whole,) = subject.stages(1)
    parts = [stage.costs for stage in subject.stages(3)]
    for half in ("forward", "input", "weight"):
        total = sum(getattr(part, half) for part in parts)
        assert getattr(whole.costs, half) <= total <= 1.2 * getattr(whole.costs, half)
    assert whole.costs == run_costs(whole.graph)


def test_costs_go_through_json() -> None:
    stages = case("gpt").stages(2)
    for stage in stages:
        spec = stage.spec()
        assert StageSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
        assert spec.costs.total == spec.costs.forward + spec.costs.input + spec.costs.weight > 0
    without = {key: value for key, value in stages[0].spec().to_json().items() if key != "costs"}
    assert StageSpec.from_json(without).costs == StageCosts()
