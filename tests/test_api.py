"""The public functions, on models that are named by texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fxpar
from fxpar.api import infer_axes

MODEL = """\
import pytest
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6))

example_inputs = (torch.zeros(4, 6),)
"""


def test_axes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    text = f"{path}:build"
    assert infer_axes(text).dims("input") == ("batch", "6")
    assert infer_axes(text, inputs=["input:float32[8,2,6]"]).dims("input") == ("batch", "2", "6")
    assert infer_axes(text, [torch.zeros(2, 6)]).rows[0].sizes == (2,)


def test_rules_of_ones_own_come_first(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "axes.yaml").write_text("- axis: middle\n  seen: [linear.out, linear.in]\n")
    found = infer_axes(f"{tmp_path}/model.py:build", rules=[tmp_path])
    assert found.dims("0.weight") == ("middle", "6")
    assert found.rows[0].rule == f"{tmp_path.name}/axes.yaml:1"


def test_errors_are_one_class() -> None:
    with pytest.raises(fxpar.FxparError, match="wants an integer of at least 1"):
        fxpar.Plan(tp=0)
