"""Tied tensors under any of their names."""

from __future__ import annotations

import pytest
import torch

from fxpar.checkpoint.untied import Untied
from fxpar.checkpoint.weights import Box, TensorWeights
from fxpar.errors import CheckpointError

TIES = {"head": "table", "last": "table"}
TABLE = torch.arange(6.0).view(3, 2)


@pytest.mark.parametrize("name", ["table", "head", "last"])
def test_any_name_will_do(name: str) -> None:
    weights = Untied(TensorWeights({name: TABLE}), TIES)
    assert weights.key("table") == name
    assert weights.shape("table") == (3, 2)
    assert weights.read("table", [Box((1, 0), (1, 2))]).tolist() == [[2, 3]]


def test_several_names_of_one_tensor() -> None:
    """Not a number is the same as itself."""
    same = torch.full((3, 2), torch.nan)
    weights = Untied(TensorWeights({"head": same.clone(), "table": same, "last": same.t().clone().t()}), TIES)
    assert weights.read("table").isnan().all()


@pytest.mark.parametrize("other", [TABLE + 1, TABLE.double(), TABLE[:2], torch.tensor(0.0)])
def test_names_of_different_tensors(other: torch.Tensor) -> None:
    weights = Untied(TensorWeights({"last": TABLE, "head": other}), TIES)
    said = "`(last|head)` and `(last|head)` are one tensor of the model, and differ in the weights"
    with pytest.raises(CheckpointError, match=said):
        weights.read("table")
    changed = TABLE.clone()
    changed[2] = 7
    weights = Untied(TensorWeights({"table": TABLE, "head": changed}), TIES)
    assert weights.read("table", [Box((0, 0), (2, 2))]).tolist() == [[0, 1], [2, 3]]
    with pytest.raises(CheckpointError, match="`table` and `head` are one tensor"):
        weights.read("table", [Box((2, 0), (1, 2))])
