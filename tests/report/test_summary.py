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


def test_what_is_said_of_each_stage() -> None:
    data = of(fxpar.Plan(pp=2, cut={"at": ["down"]}))
    first, second = data["stages"]
    assert (first["rank"], first["chunk"], second["rank"], second["chunk"]) == (0, 0, 1, 0)
    assert first["live_bytes"] == 4 * (8 + 24)  # of a microbatch of one sample: x, and what relu gives
    assert set(first["costs"]) == {"forward", "input", "weight", "kept_bytes"}
    assert text(data).endswith(
        f"stages (the slowest is {data['imbalance']:.0%} above the mean)\n"
        "  stage  modules  parameters  on a rank  flops  live   sent\n"
        "  0      up       216         864 B      384    128 B  96 B\n"
        "  1      down     200         800 B      384    96 B"
    )


def test_several_stages_of_a_rank() -> None:
    row = {"modules": ["h.0"], "layers": 1, "parameters": 8, "bytes_per_rank": 32, "flops_per_rank": 64}
    row |= {"live_bytes": 16, "sent_bytes": 8}
    places = [(0, 0, 0), (1, 1, 0), (2, 1, 1), (3, 0, 1)]
    stages = [row | dict(zip(("stage", "rank", "chunk"), place)) for place in places]
    data = of(fxpar.Plan()) | {"stages": stages, "imbalance": 0.25, "rank_imbalance": 0.125}
    assert text(data).endswith(
        "stages (the slowest is 25% above the mean, the slowest rank 12%)\n"
        "  stage  rank  chunk  modules  layers  parameters  on a rank  flops  live  sent\n"
        "  0      0     0      h.0      1       8           32 B       64     16 B  8 B\n"
        "  1      1     0      h.0      1       8           32 B       64     16 B  8 B\n"
        "  2      1     1      h.0      1       8           32 B       64     16 B  8 B\n"
        "  3      0     1      h.0      1       8           32 B       64     16 B  8 B"
    )
