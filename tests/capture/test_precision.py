"""Inside of `Float64` nothing is rounded to less."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxpar.capture.precision import Float64, active

ENDS = torch.tensor([2, 6], dtype=torch.int32)
WEIGHT = torch.randn(2, 8, 8, dtype=torch.float64)

LESS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.float(),
    lambda x: x.half(),
    lambda x: x.bfloat16(),
    lambda x: x.to(torch.bfloat16),
    lambda x: x.to(dtype=torch.float32),
    lambda x: torch.softmax(x, -1, dtype=torch.float32),
    lambda x: torch._grouped_mm(x.bfloat16(), WEIGHT.bfloat16(), offs=ENDS),
    lambda x: F.grouped_mm(x.bfloat16(), WEIGHT.bfloat16(), offs=ENDS),
]


@pytest.mark.parametrize("number", range(len(LESS)))
def test_what_asks_for_less_gets_float64(number: int) -> None:
    x = torch.randn(6, 8, dtype=torch.float64)
    with Float64():
        assert active()
        assert LESS[number](x).dtype is torch.float64
    assert not active()


def test_grouped_products_are_those_of_torch() -> None:
    x = torch.randn(6, 8, dtype=torch.float64)
    with Float64():
        found = torch._grouped_mm(x, WEIGHT, ENDS)
    torch.testing.assert_close(found, torch.cat([x[:2] @ WEIGHT[0], x[2:] @ WEIGHT[1]]))


def test_what_asks_for_something_else_gets_it() -> None:
    with Float64():
        assert torch.ones(2, dtype=torch.int64).to(torch.bool).dtype is torch.bool
        assert torch.ones(2).dtype is torch.float32
