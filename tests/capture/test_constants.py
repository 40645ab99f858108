"""Constant folding: what is constant, and its values, whole and in boxes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxpar.capture import capture
from fxpar.capture.constants import Constants


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("kept", torch.arange(4.0))
        self.register_buffer("moving", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.moving.add_(1)
        rows = torch.arange(5)[:, None] * 2
        table = torch.where(rows > 3, self.kept, -self.kept).unsqueeze(0).expand(2, 5, 4)
        noise = torch.rand(4)
        return self.linear(x) + table + (table + self.moving) + noise + (rows * 2).sum()


def test_what_is_constant() -> None:
    program = capture(Net(), (torch.randn(2, 5, 4),))
    constants = Constants(program)
    names = {node.name for node in constants.nodes}
    assert {"kept", "arange", "unsqueeze", "mul", "where", "expand", "sum_1"} <= names
    assert not names & {"moving", "x", "linear_weight", "linear", "rand", "add_1", "copy"}


def test_values_and_boxes() -> None:
    program = capture(Net(), (torch.randn(2, 5, 4),))
    constants = Constants(program)
    node = next(node for node in constants.nodes if node.name == "expand")
    kept = torch.arange(4.0)
    rows = torch.arange(5)[:, None] * 2
    expected = torch.where(rows > 3, kept, -kept).expand(2, 5, 4)
    for box in [(0, 2), (0, 5), (0, 4)], [(1, 2), (1, 3), (0, 4)], [(0, 1), (4, 5), (2, 3)]:
        block = constants.block(node, box)
        assert torch.equal(block, expected[tuple(slice(*bounds) for bounds in box)])
    assert torch.equal(constants.value(node), expected)
    assert constants.value(node) is constants.value(node)


def test_equal_computations_have_equal_keys() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            one, two, three = (torch.arange(4) * factor for factor in (2, 2, 3))
            return x + one + two + three

    constants = Constants(capture(Twice(), (torch.randn(4),)))
    one, two, three = (constants.key(node) for node in constants.nodes if node.name.startswith("mul"))
    assert one == two != three


def test_no_value_on_meta() -> None:
    with torch.device("meta"):
        model = Net()
    constants = Constants(capture(model, (torch.empty(2, 5, 4, device="meta"),)))
    node = next(node for node in constants.nodes if node.name == "expand")
    with pytest.raises(KeyError, match="`kept` has no value"):
        constants.value(node)
