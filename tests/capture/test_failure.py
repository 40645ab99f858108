"""The error for what cannot be captured says where it is, and how to go on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxpar.capture import capture
from fxpar.errors import CaptureError


class Branch(nn.Module):
    """Looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y if y.sum() > 0 else -y


class Layer(nn.Module):
    def __init__(self, inner: type[nn.Module] = Branch) -> None:
        super().__init__()
        self.inner = inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Mixed(Model):
    """The second layer has another class at the same place."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[1] = Layer(nn.Identity)


@pytest.mark.parametrize(("kind", "pattern"), [(Model, "layers.*.inner"), (Mixed, "layers.0.inner")])
def test_the_innermost_module_and_its_option(kind: type[nn.Module], pattern: str) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(kind(), (torch.randn(3, 4),))
    first, _, why, remedy = str(caught.value).splitlines()
    assert first.startswith(f"`{kind.__name__}` cannot be captured: test_failure.py:")
    assert why == "  the line depends on the values of a tensor, which one graph cannot follow"
    assert remedy == f"  choose another implementation of the module, or keep it whole: --opaque '{pattern}'"
    program = capture(kind(), (torch.randn(3, 4),), opaque=[pattern])
    assert program.leaves.paths[0] == "layers.0.inner"


def test_the_model_itself() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Branch(), (torch.randn(3, 4),))
    assert str(caught.value).splitlines()[2:] == [
        "  the line depends on the values of a tensor, which one graph cannot follow",
        "  it is in the forward of the model itself, which cannot be kept whole",
        "  leave out the input that it looks at (`labels`: compute the loss outside), or rewrite the line",
    ]
