"""Names of inputs as the model has them, random numbers that are made once for the batch, complex parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxpar

PLANS = [fxpar.Plan(), fxpar.Plan(tp=2, dp=2, microbatches=2), fxpar.Plan(pp=2, microbatches=4)]


class Model(nn.Module):
    def __init__(
        self, loss: Callable[[Model, Tensor, Tensor], Tensor] = lambda _, z, y: F.mse_loss(z, y)
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.loss = nn.Linear(6, 12), nn.Linear(12, 6), loss
        self.spectrum = nn.Parameter(torch.randn(6, dtype=torch.complex128))

    def forward(self, X: Tensor, größe: Tensor) -> Tensor:
        return self.loss(self, self.down(self.up(X).relu()), größe)


def spectral(m: Model, z: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(torch.fft.ifft(torch.fft.fft(z) * m.spectrum).real, y)


LOSSES: dict[str, Any] = {
    "plain": lambda _, z, y: F.mse_loss(z, y),
    "noise of a shape": lambda _, z, y: F.mse_loss(z + torch.randn(z.shape, dtype=z.dtype), y),
    "samples left out": lambda _, z, y: F.mse_loss(z * (torch.rand(z.shape[0], 1, dtype=z.dtype) > 0.3), y),
    "a number": lambda _, z, y: F.mse_loss(z, y) * torch.rand((), dtype=z.dtype),
    "weights left out": lambda m, z, y: F.mse_loss(F.linear(z, F.dropout(m.up.weight, 0.5)).sum(1), y[:, 0]),
    "in-batch negatives": lambda _, z, y: F.cross_entropy(z @ y.T, torch.arange(8)),
    "complex": spectral,
}


@pytest.mark.parametrize("plan", PLANS, ids=["one", "tp dp", "pp"])
@pytest.mark.parametrize("name", LOSSES)
def test_exact(name: str, plan: fxpar.Plan) -> None:
    x, y = torch.randn(2, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = Model(LOSSES[name]).double()
    report = fxpar.verify(model, kwargs={"X": x, "größe": y}, plan=plan, simulate=True)
    assert report.ok, str(report)
