"""Running a captured graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxpar.capture import capture, run


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, None, Tensor]:
        return self.linear(x) + torch.arange(4), None, x


def test_other_tensors() -> None:
    net = Net()
    x = torch.randn(2, 4)
    program = capture(net, (x,))
    weight = torch.eye(4, requires_grad=True)
    sums, nothing, same = run(program, {"x": x}, {"linear.weight": weight, "linear.bias": torch.zeros(4)})
    assert torch.equal(sums, x + torch.arange(4))
    assert nothing is None
    assert same is x
    sums.sum().backward()
    assert weight.grad is not None
    assert net.linear.weight.grad is None


def test_tensors_are_created_where_the_inputs_are() -> None:
    program = capture(Net(), (torch.randn(2, 4),))
    tensors = {name: tensor.to("meta") for name, tensor in program.tensors.items()}
    (sums, *_) = run(program, {"x": torch.empty(2, 4, device="meta")}, tensors)
    assert sums.is_meta
