"""Ops are brought into one form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxpar.capture import capture


class Net(nn.Module):
    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


FORMS: list[tuple[Callable[[Tensor], Tensor], list[str]]] = [
    (lambda x: x.to(torch.float32) + x.float(), ["aten.add.Tensor(x, x)"]),
    (lambda x: x.to("cpu", torch.float64), ["aten.to.dtype(x, torch.float64)"]),
    (lambda x: x.type_as(torch.zeros(1).double()), ["aten.to.dtype(x, torch.float64)"]),
    (lambda x: x.view(-1, 2), ["aten.reshape.default(x, [6, 2])"]),
    (lambda x: x.t().reshape(-1), ["aten.t.default(x)", "aten.reshape.default(t, [12])"]),
    (
        lambda x: x.unsqueeze(0).expand(2, -1, -1),
        ["aten.unsqueeze.default(x, 0)", "aten.expand.default(unsqueeze, [2, 3, 4])"],
    ),
    (lambda x: x.view_as(torch.zeros(12)), ["aten.reshape.default(x, [12])"]),
    (lambda x: x.new_zeros(3), ["aten.zeros.default([3])"]),
    (lambda x: x.new_full((3,), 2), ["aten.full.default([3], 2)"]),
    (lambda x: x + torch.arange(4, device="cpu"), ["aten.arange.default(4)", "aten.add.Tensor(x, arange)"]),
    (
        lambda x: x * torch.zeros_like(x, device="cpu"),
        ["aten.zeros_like.default(x)", "aten.mul.Tensor(x, zeros_like)"],
    ),
    (lambda x: x.detach() + 1, ["aten.add.Tensor(x, 1)"]),
    (lambda x: nn.functional.dropout(x, 0.5, training=False) + 1, ["aten.add.Tensor(x, 1)"]),
    (lambda x: sum([x, x * 2]), ["aten.mul.Tensor(x, 2)", "aten.add.Tensor(x, mul)"]),
    (lambda x: x.long() + 0.0, ["aten.to.dtype(x, torch.int64)", "aten.add.Tensor(to, 0.0)"]),
    (lambda x: (x * 2, x + 1)[1], ["aten.add.Tensor(x, 1)"]),
    (
        lambda x: nn.functional.mse_loss(x, x + 1),
        ["aten.add.Tensor(x, 1)", "aten.mse_loss.default(x, add)"],
    ),
    (
        lambda x: torch.stack(torch.broadcast_tensors(x, x[0])),
        [
            "aten.select.int(x, 0, 0)",
            "aten.expand.default(select, [3, 4])",
            "aten.stack.default([x, expand])",
        ],
    ),
]


@pytest.mark.parametrize(("body", "ops"), FORMS)
def test_forms(body: Callable[[Tensor], Tensor], ops: list[str]) -> None:
    graph = capture(Net(body), (torch.randn(3, 4),)).graph
    texts = [
        f"{node.target}({', '.join(str(argument) for argument in node.args)})"
        for node in graph.nodes
        if node.op == "call_function"
    ]
    assert texts == ops


def test_a_cast_of_bits_stays() -> None:
    graph = capture(Net(lambda x: x.view(torch.int32)), (torch.randn(3, 4),)).graph
    assert "aten.view.dtype" in str(graph)
