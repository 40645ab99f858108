"""Constant indexes of one row become slices; all others stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxpar.capture.capture import capture
from fxpar.capture.interpret import run


class Takes(nn.Module):
    """Something is taken from what a weight makes."""

    def __init__(self, take: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(30, dtype=torch.float64).view(5, 6))
        self.take = take

    def forward(self, x: Tensor) -> Tensor:
        return self.take(x @ self.weight)


@pytest.mark.parametrize(
    ("take", "sliced"),
    [
        (lambda x: x[..., [-2]], True),
        (lambda x: x[[3]], True),
        (lambda x: x[:, [0]] + x[:, [-1]], True),
        (lambda x: x[..., torch.tensor([4])], True),
        (lambda x: x[..., [1, 2]], False),
        (lambda x: x[[1], [2]], False),
        (lambda x: x[:, x[0].argsort()[:1]], False),
        (lambda x: x[:, torch.tensor([[1]])], False),
    ],
)
def test_one_row_is_a_slice(take: Callable[[Tensor], Tensor], sliced: bool) -> None:
    model, x = Takes(take), torch.randn(4, 5, dtype=torch.float64)
    program = capture(model, (x,))
    targets = {str(node.target) for node in program.graph.nodes}
    assert ("aten.index.Tensor" not in targets) is sliced
    constants = [n for n in program.graph.find_nodes(op="placeholder") if n.meta["kind"] == "constant"]
    assert not (sliced and constants)
    assert {n.meta["name"] for n in constants} <= set(program.tensors)
    weights = {"weight": model.weight.detach().clone().requires_grad_()}
    (found,) = run(program, {"x": x}, weights)
    wanted = model(x)
    assert torch.equal(found, wanted)
    found.sum().backward()
    wanted.sum().backward()
    assert torch.equal(weights["weight"].grad, model.weight.grad)
