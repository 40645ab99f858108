"""Regions without gradients and with autocast: inlined exactly, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxpar.capture import Program, capture, run
from fxpar.errors import CaptureError

Body = Callable[[nn.Module, Tensor], Tensor]


class Model(nn.Module):
    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.first = nn.Linear(4, 4, dtype=torch.float64)
        self.second = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, self.first(x))


def no_grad(model: nn.Module, y: Tensor) -> Tensor:
    with torch.no_grad():
        table = model.second.weight.sum() * y
    return y * table


def nested(model: nn.Module, y: Tensor) -> Tensor:
    with torch.no_grad():
        z = model.second(y)
        with torch.enable_grad():
            w = model.second(z)
        v = w * y
    return w * v


def all_of_it(model: nn.Module, y: Tensor) -> Tensor:
    with torch.no_grad():
        table = y.exp()
        low, high = table.split(2, -1)
    return model.second(torch.cat([high, low], -1)) + y


def inference_table(model: nn.Module, y: Tensor) -> Tensor:
    with torch.inference_mode():
        table = model.second.weight * 2
    return y @ table.clone()


def data(model: nn.Module, y: Tensor) -> Tensor:
    return y * model.second.weight.data.sum() + y.data


def autocast_off(model: nn.Module, y: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        z = model.second(y)
    return z * y


def detached(model: nn.Module, y: Tensor) -> Tensor:
    return y * y.detach() + model.second(y.detach())


def compare(model: Model, program: Program, x: Tensor) -> None:
    (got,) = run(program, {"x": x})
    expected = model(x)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(expected.pow(2).sum(), parameters, allow_unused=True)
    found = torch.autograd.grad(got.pow(2).sum(), parameters, allow_unused=True)
    for one, other in zip(found, wanted):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "body", [no_grad, nested, all_of_it, data, autocast_off, detached], ids=lambda body: body.__name__
)
def test_gradients_of_regions(body: Body) -> None:
    model = Model(body)
    program = capture(model, (torch.randn(3, 4, dtype=torch.float64),))
    compare(model, program, torch.randn(3, 4, dtype=torch.float64))
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("wrap_with" in target or "_assert" in target for target in targets)


def test_inference_mode_stops_gradients() -> None:
    model = Model(inference_table)
    program = capture(model, (torch.randn(3, 4, dtype=torch.float64),))
    x = torch.randn(3, 4, dtype=torch.float64)
    (got,) = run(program, {"x": x})
    torch.testing.assert_close(got, model.first(x) @ (model.second.weight * 2), rtol=1e-12, atol=1e-12)
    assert torch.autograd.grad(got.sum(), model.second.weight, allow_unused=True) == (None,)
    with torch.inference_mode():
        assert torch.zeros(1).is_inference()


def test_a_region_without_gradients_is_marked() -> None:
    program = capture(Model(no_grad), (torch.randn(3, 4, dtype=torch.float64),))
    grad = {node.name: node.meta["grad"] for node in program.graph.nodes if node.op != "output"}
    assert grad["linear"]
    assert grad["mul_1"]
    assert not grad["detach"]
    assert not grad["sum_1"]
    assert not grad["mul"]


def autocast_on(model: nn.Module, y: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model.second(y.float())


def branches(_: nn.Module, y: Tensor) -> Tensor:
    return torch.cond(y.sum() > 0, lambda z: z * 2, lambda z: z + 2, (y,))


def test_autocast_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"autocast is switched on in the model \(test_flat.py:") as caught:
        capture(Model(autocast_on).float(), (torch.randn(3, 4),))
    assert "cast explicitly there" in str(caught.value)
    with torch.autocast("cpu"), pytest.raises(CaptureError, match="capture runs under autocast"):
        capture(Model(no_grad), (torch.randn(3, 4, dtype=torch.float64),))


def test_control_flow_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"`cond` in the model .* cannot be part of one flat graph"):
        capture(Model(branches), (torch.randn(3, 4, dtype=torch.float64),))


def test_ties_have_one_placeholder() -> None:
    model = Model(detached)
    model.second.weight = model.first.weight
    program = capture(model, (torch.randn(3, 4, dtype=torch.float64),))
    assert program.ties == {"second.weight": "first.weight"}
    assert list(program.tensors) == ["first.weight", "first.bias", "second.bias"]
    assert program.placeholder("second.weight").name == "first_weight"
    assert "second.weight" not in program.persistent
    compare(model, program, torch.randn(3, 4, dtype=torch.float64))
