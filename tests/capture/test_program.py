"""The inputs of a captured program."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxpar.capture import Program, capture
from fxpar.errors import ModelError


class Net(nn.Module):
    def forward(self, x: Tensor, pair: tuple[Tensor, int], scale: float | None = None) -> Tensor:
        return x * pair[0] * pair[1] * (scale or 1.0)


@pytest.fixture
def program() -> Program:
    return capture(Net(), (torch.ones(2, 3), (torch.ones(3), 2)), {"scale": 0.5})


def test_flat_inputs(program: Program) -> None:
    x, y = torch.zeros(2, 3), torch.zeros(3)
    flat = program.flat_inputs({"x": x, "pair": (y, 2), "scale": 0.5})
    assert list(flat) == ["x", "pair_0"]
    assert flat["x"] is x
    assert flat["pair_0"] is y


def test_all_that_does_not_fit_is_named(program: Program) -> None:
    with pytest.raises(ModelError) as caught:
        program.flat_inputs({"x": torch.zeros(2, 4), "pair": (torch.zeros(3).long(), 2.0), "other": None})
    assert str(caught.value).splitlines() == [
        "the inputs do not fit the captured graph",
        "  `other` is not an input of the captured graph",
        "  `x` was float32[2, 3] at capture and is float32[2, 4] now",
        "  `pair.0` was float32[3] at capture and is int64[3] now",
        "  `pair.1` was 2 at capture and is 2.0 now",
        "  `scale` was 0.5 at capture and is None now",
    ]


def test_placeholder(program: Program) -> None:
    assert program.placeholder("pair.0").name == "pair_0"
    with pytest.raises(KeyError):
        program.placeholder("nothing")
