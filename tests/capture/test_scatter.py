"""What a base is after its view was overwritten, as text."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxpar.capture import capture, run


class Net(nn.Module):
    def __init__(self, body: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        base = x + 1
        self.body(base, y)
        return base


def all_of_it(base: Tensor, y: Tensor) -> None:
    base[:] = y


def halves(base: Tensor, y: Tensor) -> None:
    base[:, :3] = y[:, 1:4]
    base[:, 3:] = y[:, :1]


def shifted(base: Tensor, y: Tensor) -> None:
    base[:, 1:] = y[:, :-1]
    base[:, 0] = y[:, 3]


def middle(base: Tensor, y: Tensor) -> None:
    base.narrow(1, -3, 2).copy_(y[:, :2])


def transposed(base: Tensor, y: Tensor) -> None:
    base.t().copy_(y.t())


def overlapping(base: Tensor, y: Tensor) -> None:
    base[:, 0:3] = y[:, 0:3]
    base[:, 1:4] = y[:, 0:3]


def alternating(base: Tensor, y: Tensor) -> None:
    base[:, 1::2] = y[:, :2]


CASES = [
    (
        alternating,
        ["add = x, 1", "slice_1 = y, 1, 0, 2", "slice_scatter = add, slice_1, 1, 1, 9223372036854775807, 2"],
    ),
    (all_of_it, []),
    (halves, ["slice_1 = y, 1, 1, 4", "slice_2 = y, 1, 0, 1", "cat = [slice_1, slice_2], 1"]),
    (
        shifted,
        [
            "slice_1 = y, 1, 0, -1",
            "select = y, 1, 3",
            "unsqueeze = select, 1",
            "cat = [unsqueeze, slice_1], 1",
        ],
    ),
    (
        middle,
        [
            "add = x, 1",
            "slice_1 = y, 1, 0, 2",
            "slice_2 = add, 1, 0, 1",
            "slice_3 = add, 1, 3, 4",
            "cat = [slice_2, slice_1, slice_3], 1",
        ],
    ),
    (transposed, ["t = y", "t_1 = t"]),
]


def captured(body: Callable[[Tensor, Tensor], None]) -> list[str]:
    graph = capture(Net(body), (torch.randn(3, 4), torch.randn(3, 4))).graph
    calls = [node for node in graph.nodes if node.op == "call_function"]
    return [f"{node.name} = {', '.join(str(argument) for argument in node.args)}" for node in calls]


@pytest.mark.parametrize(("body", "text"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_pieces(body: Callable[[Tensor, Tensor], None], text: list[str]) -> None:
    assert captured(body) == text


@pytest.mark.parametrize("body", [*(body for body, _ in CASES), overlapping], ids=lambda body: body.__name__)
def test_values(body: Callable[[Tensor, Tensor], None]) -> None:
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    program = capture(Net(body), (x, y))
    assert torch.equal(run(program, {"x": x, "y": y})[0], Net(body)(x, y))
