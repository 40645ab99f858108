"""Hooks on gradients, and gradients inside of forward, are refused: a graph of forward would lose them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxpar.capture.capture import capture
from fxpar.errors import CaptureError


class Model(nn.Module):
    def __init__(self, act: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.up, self.down, self.act = nn.Linear(4, 8), nn.Linear(8, 4), act

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.down(self.act(self.up(x)))
        return made


def reversed_gradient(x: Tensor) -> Tensor:
    x.register_hook(lambda gradient: -gradient)
    return x


def penalized(x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(x.square().sum(), x, create_graph=True)
    return gradient


@pytest.mark.parametrize(
    ("act", "what", "remedy"),
    [
        (reversed_gradient, "`Model` puts a hook on a gradient in forward", "torch.autograd.Function"),
        (penalized, "`Model` takes a gradient in forward", "outside of the model"),
    ],
)
def test_in_forward(act: Callable[[Tensor], Tensor], what: str, remedy: str) -> None:
    before = Tensor.register_hook, torch.autograd.grad
    with pytest.raises(CaptureError) as error:
        capture(Model(act), [torch.ones(2, 4)])
    first, second = str(error.value).splitlines()
    assert first.startswith(f"{what}: test_hooks.py:")
    assert remedy in second
    assert (Tensor.register_hook, torch.autograd.grad) == before


def test_before_forward() -> None:
    model = Model()
    model.up.weight.register_hook(lambda gradient: gradient)
    model.down.bias.register_post_accumulate_grad_hook(lambda _: None)
    model.down.register_full_backward_hook(lambda *_: None)
    with pytest.raises(CaptureError) as error:
        capture(model, [torch.ones(2, 4)])
    assert str(error.value) == (
        "`Model` has hooks on gradients, which no graph of its forward shows\n"
        "  the parameter `up.weight`\n"
        "  the parameter `down.bias`\n"
        "  the module `down`\n"
        "  remove them, and do what they do after the step"
    )


def test_hooks_on_forward_are_captured() -> None:
    model = Model()
    model.up.register_forward_hook(lambda *given: given[-1] * 2)
    assert "aten.mul.Tensor" in str(capture(model, [torch.ones(2, 4)]).graph)
