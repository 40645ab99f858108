"""The own gradient of an autograd.Function survives the capture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fxpar.capture import capture, run
from fxpar.capture.functions import FunctionCall
from fxpar.errors import CaptureError


class Scaled(torch.autograd.Function):
    """The identity with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class Pair(torch.autograd.Function):
    """Two outputs and a None between, two inputs in a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, flag: bool, y: Tensor) -> tuple[Tensor, None, Tensor]:
        ctx.save_for_backward(x, y)
        return x * y, None, x + y if flag else x - y

    @staticmethod
    def backward(ctx: Any, one: Tensor, _: None, two: Tensor) -> tuple[Tensor, None, Tensor]:
        x, y = ctx.saved_tensors
        return 3 * one * y + two, None, one * x - two


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return gradient


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        y = Scaled.apply(self.linear(x), 5.0)
        one, nothing, two = Pair.apply(y, False, x)
        assert nothing is None
        return one * two


def test_own_gradients() -> None:
    model = Model()
    program = capture(model, (torch.randn(3, 4, dtype=torch.float64),))
    x = torch.randn(3, 4, dtype=torch.float64)
    (got,), expected = run(program, {"x": x}), model(x)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(expected.pow(2).sum(), parameters)
    torch.testing.assert_close(
        torch.autograd.grad(got.pow(2).sum(), parameters), wanted, rtol=1e-12, atol=1e-12
    )


def test_the_node_names_the_function() -> None:
    graph = capture(Model(), (torch.randn(3, 4, dtype=torch.float64),)).graph
    calls = [node.target for node in graph.nodes if isinstance(node.target, FunctionCall)]
    assert calls == [FunctionCall(Scaled), FunctionCall(Pair)]
    assert calls[0].path == f"{__name__}:Scaled"
    assert "%Scaled" in str(graph)


def test_apply_is_put_back() -> None:
    before = torch.autograd.Function.__dict__["apply"]
    capture(Model(), (torch.randn(3, 4, dtype=torch.float64),))
    assert torch.autograd.Function.__dict__["apply"] is before


class Checkpointed(Model):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.linear, x, use_reentrant=True)


class InPlace(Model):
    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(self.linear(x))


class Noisy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x * torch.rand_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return gradient


class Random(Model):
    def forward(self, x: Tensor) -> Tensor:
        return Noisy.apply(self.linear(x))


def test_random_numbers_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"autograd.Function `Noisy` draws random numbers"):
        capture(Random(), (torch.randn(3, 4, dtype=torch.float64),))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Checkpointed, "autograd.Function `CheckpointFunction` is called with a Linear"),
        (InPlace, "autograd.Function `Doubled` changes its inputs"),
    ],
)
def test_refusals_name_the_function(model: type[nn.Module], message: str) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        capture(model(), (torch.randn(3, 4, dtype=torch.float64),))
    assert "its own gradient cannot be kept" in str(caught.value)
