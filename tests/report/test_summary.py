"""What is said of a partition: only what is split, and what is not split by anything."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fxpar
from fxpar.report.summary import summary, text


class Wide(nn.Module):
    """Two linear layers: a batch and an inner width, but no heads, no sequence and no vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.down(torch.relu(self.up(x)))
        return made


def of(plan: fxpar.Plan) -> dict[str, Any]:
    return summary(fxpar.partition(Wide(), plan, inputs=(torch.zeros(4, 8),)))


def test_rows_of_axes_that_the_model_has() -> None:
    data = of(fxpar.Plan(tp=2, dp=2))
    assert data["axes"] == [
        {"axis": "ffn", "over": ["tp"], "parameters": 3},
        {"axis": "batch", "over": ["dp"], "parameters": 0},
    ]
    assert data["notes"] == []


def test_a_mesh_dim_that_splits_nothing_is_noted() -> None:
    data = of(fxpar.Plan(cp=2, pp=2))
    assert data["axes"] == []
    assert text(data).endswith(
        "notes\n"
        "  cp 2 splits nothing: its ranks all do the same work\n"
        "    the model has no sequence that can be split; `fxpar axes` prints what it has"
    )


def test_dynamic_axes_and_their_sizes() -> None:
    data = of(fxpar.Plan(dp=2, dynamic=["batch"]))
    assert "dynamic\n  batch  a multiple of 2 (dp 2), at least 2\n" in text(data)
    assert data["dynamic"][0]["multiple"] == 2
    assert of(fxpar.Plan(dp=2))["dynamic"] == []
