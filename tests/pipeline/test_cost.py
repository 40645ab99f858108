"""What nodes cost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxpar.capture import capture
from fxpar.pipeline.cost import flops, node_cost, parameter_bytes, touched_bytes, value_bytes


class Apply(nn.Module):
    """A function of tensors as a model."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors) * self.scale


def nodes(function: Callable[..., Tensor], *shapes: tuple[int, ...]):
    """The nodes of a function's ops, without the multiplication behind it."""
    tensors = [torch.zeros(shape) for shape in shapes]
    graph = capture(Apply(function), tensors).graph
    return [node for node in graph.nodes if node.op == "call_function"][:-1]


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (F.linear, [(2, 3, 4), (5, 4)], 2 * 2 * 3 * 4 * 5),
        (torch.matmul, [(2, 3, 4), (4, 5)], 2 * 2 * 3 * 4 * 5),
        (torch.bmm, [(2, 3, 4), (2, 4, 5)], 2 * 2 * 3 * 4 * 5),
        (torch.addmm, [(5,), (3, 4), (4, 5)], 2 * 3 * 4 * 5),
        (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)], 2 * 2 * 3 * 4 * 5),
        (lambda a, b: torch.einsum("bij,kj->bik", a, b), [(2, 3, 4), (5, 4)], 2 * 2 * 3 * 4 * 5),
        (
            F.scaled_dot_product_attention,
            [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)],
            2 * 2 * 3 * 5 * 7 * (8 + 6),
        ),
        (F.conv1d, [(2, 4, 9), (6, 4, 3)], 2 * (2 * 6 * 7) * (4 * 3)),
        (lambda x, w: F.conv2d(x, w, groups=2), [(1, 4, 5, 5), (6, 2, 3, 3)], 2 * (6 * 9) * (2 * 9)),
        (F.conv_transpose1d, [(2, 4, 9), (4, 6, 3)], 2 * (2 * 4 * 9) * (6 * 3)),
        (torch.tanh, [(2, 3)], 0),
    ],
)
def test_flops(function: Callable[..., Tensor], shapes: list[tuple[int, ...]], expected: int) -> None:
    assert sum(flops(node) for node in nodes(function, *shapes)) == expected


def test_bytes() -> None:
    (tanh,) = nodes(torch.tanh, (2, 3))
    assert touched_bytes(tanh) == 2 * 24
    assert node_cost(tanh) == 16 * 48
    (view,) = nodes(lambda x: x.view(3, 2), (2, 3))
    assert node_cost(view) == 0
    (cast,) = nodes(lambda x: x.to(torch.float64), (2, 3))
    assert touched_bytes(cast) == 24 + 48
    table = torch.zeros(100, 4)
    lookup = nodes(lambda x: F.embedding(torch.zeros(3, dtype=torch.int64), table) + x, (4,))[-2]
    assert touched_bytes(lookup) == 3 * 16 + 3 * 8 + 3 * 16
    assert value_bytes((torch.zeros(3), [torch.zeros(2, dtype=torch.bool)], 4)) == 14


def test_parameters() -> None:
    graph = capture(nn.Linear(3, 4), [torch.zeros(2, 3)]).graph
    assert parameter_bytes(graph) == 4 * (12 + 4)
