"""Opaque modules: one node each, exact with gradients, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxpar.capture import capture, run
from fxpar.capture.leaves import Leaves
from fxpar.errors import CaptureError


class Loop(nn.Module):
    """A loop as long as its input says; a nested output with what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("scale", torch.full((4,), 1.5))

    def forward(self, x: Tensor, flags: list[Any], *, power: int) -> dict[str, Any]:
        y = x
        while y.norm() > 1:
            y = torch.tanh(self.linear(y)) / 2
        return {"y": y**power * self.scale, "none": None, "sum": x.sum() * flags[0]}


class Model(nn.Module):
    """A layer, and an opaque module that is called twice."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)
        self.inner = inner or Loop()

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if not isinstance(self.inner, Loop):
            return self.inner(x)
        first = self.inner(x, [2.0, None], power=2)
        assert first["none"] is None
        return self.inner(first["y"], [first["sum"]], power=3)["y"] + first["sum"]


def test_exact_with_gradients() -> None:
    torch.manual_seed(0)
    model = Model().double()
    program = capture(model, (torch.randn(3, 4, dtype=torch.float64),), opaque=["inn*"])
    calls = [node for node in program.graph.nodes if isinstance(node.target, Leaves)]
    assert [node.meta["module"] for node in calls] == ["inner", "inner"]
    assert program.leaves.paths == ("inner",)
    x = torch.randn(3, 4, dtype=torch.float64)
    (got,), wanted = run(program, {"x": x}), model(x)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), parameters),
        torch.autograd.grad(wanted.sum(), parameters),
        rtol=1e-12,
        atol=1e-12,
    )


def test_the_model_is_left_as_it_was() -> None:
    model = Model()
    capture(model, (torch.randn(3, 4),), opaque=["inner"])
    assert "forward" not in vars(model.inner)
    assert not model.inner.linear.weight.is_meta


class Of(nn.Module):
    """A module that does one thing, with a buffer."""

    def __init__(self, body: Callable[[Of, Tensor], Any]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


REFUSED: dict[str, tuple[Callable[[Of, Tensor], Any], str]] = {
    "sizes": (
        lambda _, x: x[x > 0].sum(0, keepdim=True).expand(int((x > 0).sum()) + 1),
        "gives outputs whose sizes",
    ),
    "buffer": (lambda self, x: self.count.add_(x.sum(0)) + x, "changes its inputs or buffers in place"),
    "input": (lambda _, x: x.mul_(2), "changes its inputs or buffers in place"),
    "random": (lambda _, x: nn.functional.dropout(x, 0.5), "draws random numbers"),
    "wrong": (lambda _, x: x @ x, "does not run on drawn numbers\n  RuntimeError: mat1 and mat2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    body, message = REFUSED[name]
    with pytest.raises(CaptureError) as caught:
        capture(Model(Of(body)), (torch.randn(3, 4),), opaque=["inner"])
    assert f"opaque module `inner` {message}" in str(caught.value)


def test_unknown_paths() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Model(), (torch.randn(3, 4),), opaque=["iner"])
    assert str(caught.value) == "no module of `Model` is `iner`\n  did you mean `inner`?"


def test_arguments_that_no_text_can_hold() -> None:
    class Outer(Model):
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, {"a": x}, power=2)["y"]

    with pytest.raises(CaptureError, match="opaque module `inner` is called with a dict"):
        capture(Outer(), (torch.randn(3, 4),), opaque=["inner"])
