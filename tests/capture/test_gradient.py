"""Which values carry a gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxpar.capture import capture


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        frozen = self.frozen(x).exp()
        y = self.linear(frozen)
        values, indices = y.topk(2)
        zeros = torch.zeros_like(y).cos()
        stopped = y.detach().sin()
        chosen = (y > 0).float().tanh()
        return (values.sum() + indices.sum() + zeros + stopped + chosen).sigmoid()


def test_marks() -> None:
    nodes = capture(Net(), (torch.randn(3, 4),)).graph.nodes
    grad = {node.name: node.meta["grad"] for node in nodes if node.op != "output"}
    flowing = {name for name, flows in grad.items() if flows}
    assert {"linear_weight", "linear_bias", "linear_1", "topk", "getitem", "sum_1", "sigmoid"} <= flowing
    still = {
        "x",
        "frozen_weight",
        "linear",
        "exp",
        "getitem_1",
        "sum_2",
        "zeros_like",
        "cos",
        "detach",
        "sin",
    }
    assert not flowing & (still | {"gt", "to", "tanh"})


def test_a_model_without_gradients_has_none() -> None:
    program = capture(Net().requires_grad_(False), (torch.randn(3, 4),))
    assert not any(node.meta.get("grad") for node in program.graph.nodes)
    assert "detach" not in str(program.graph)
