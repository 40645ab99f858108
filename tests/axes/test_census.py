"""The census of axes, of a model whose axes can be counted by hand."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from fxpar.api import infer_axes
from fxpar.axes.census import Census
from fxpar.errors import ModelError
from fxpar.plan import Plan


class Block(nn.Module):
    """Attention of 6 heads of 2, and a feed-forward of 20."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.qkv = nn.Linear(12, 36, bias=False)
        self.out = nn.Linear(12, 12, bias=False)
        self.up = nn.Linear(12, 20)
        self.down = nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        b, s, h = x.shape
        q, k, v = (part.view(b, s, 6, 2).transpose(1, 2) for part in self.qkv(self.norm(x)).split(h, dim=-1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, s, h))
        return x + self.down(self.up(x).relu())


class Model(nn.Module):
    """Two blocks between a tied embedding and head; a temperature; an op that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 12)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(12, 64, bias=False)
        self.head.weight = self.embedding.weight
        self.temperature = nn.Parameter(torch.ones(3))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x) * torch.trapezoid(self.temperature)


@pytest.fixture(scope="module")
def census() -> Census:
    with torch.device("meta"):
        return infer_axes(Model(), kwargs={"tokens": torch.zeros(4, 8, dtype=torch.int64)})


def test_rows(census: Census) -> None:
    rows = {row.axis: row for row in census.rows}
    heads, ffn, vocab, sequence = (rows[axis] for axis in ("heads", "ffn", "vocab", "sequence"))
    assert (heads.sizes, heads.instances, heads.parameters, heads.bytes) == (
        (6,),
        2,
        4,
        2 * (36 + 12) * 12 * 4,
    )
    assert (ffn.sizes, ffn.instances, ffn.parameters, ffn.bytes) == ((20,), 2, 6, 2 * (2 * 12 * 20 + 20) * 4)
    assert (vocab.sizes, vocab.instances, vocab.parameters, vocab.bytes) == ((64,), 1, 1, 64 * 12 * 4)
    assert (sequence.sizes, sequence.parameters, sequence.bytes) == ((8,), 0, 0)
    assert heads.divides == (1, 2, 3, 6)
    assert ffn.divides == (1, 2, 4, 5, 10, 20)
    assert heads.rule.startswith("rules/axes.yaml:")
    assert heads.fits


def test_dims_in_factor_notation(census: Census) -> None:
    assert census.dims("blocks.0.qkv.weight") == (
        "cat[(heads depth), (heads depth), (heads depth)]",
        "hidden",
    )
    assert census.dims("blocks.1.down.weight") == ("hidden", "ffn")
    assert census.dims("head.weight") == census.dims("embedding.weight") == ("vocab", "hidden")
    assert census.dims("tokens") == ("batch", "sequence")


def test_a_name_that_the_model_does_not_have(census: Census) -> None:
    with pytest.raises(ModelError) as caught:
        census.dims("blocks.0.qkv.weigth")
    assert str(caught.value) == (
        "the model has no tensor `blocks.0.qkv.weigth`\n  did you mean `blocks.0.qkv.weight`?"
    )


def test_what_no_rule_knows(census: Census) -> None:
    assert [(row.op, row.calls, row.module) for row in census.ops] == [("aten.trapezoid.dx", 1, "")]
    assert census.ops[0].source.startswith("test_census.py:")
    assert [(row.name, row.shape, row.bytes) for row in census.nowhere] == [("temperature", (3,), 12)]


def test_the_text(census: Census) -> None:
    first, *lines = census.text().splitlines()
    assert first.split() == ["axis", "size", "instances", "parameters", "bytes", "mesh", "sizes", "rule"]
    heads = next(line for line in lines if line.startswith("heads"))
    assert heads.split()[:-1] == ["heads", "6", "2", "4", "4.5", "KiB", "1", "2", "3", "6"]
    assert "ops without an equation (they need their operands whole)" in lines
    assert any(line.startswith("  aten.trapezoid.dx  1x  the model (test_census.py:") for line in lines)
    assert lines[-2:] == ["parameters on no axis", "  temperature  [3]  12 B"]


def test_the_json(census: Census) -> None:
    data = json.loads(census.to_json())
    assert [*data] == ["axes", "ops_without_equation", "parameters_on_no_axis", "dims"]
    heads = next(row for row in data["axes"] if row["axis"] == "heads")
    assert heads["divides"] == [1, 2, 3, 6]
    assert data["dims"]["blocks.0.up.bias"] == ["ffn"]
    assert data["parameters_on_no_axis"] == [{"name": "temperature", "shape": [3], "bytes": 12}]


def test_a_plan_says_what_each_axis_is_divided_over() -> None:
    with torch.device("meta"):
        found = infer_axes(
            Model(), [torch.zeros(4, 8, dtype=torch.int64)], plan=Plan(tp=4, cp=2, dp=2, microbatches=2)
        )
    rows = {row.axis: row for row in found.rows}
    assert rows["heads"].over == {"tp": 4}
    assert not rows["heads"].fits
    assert rows["sequence"].over == {"cp": 2, "tp?": 4}
    assert rows["batch"].over == {"dp": 2, "mb": 2}
    assert rows["batch"].fits
    assert rows["hidden"].over == {}
    lines = found.text().splitlines()
    assert "  tp=4 does not divide  " in next(line for line in lines if line.startswith("heads"))
    assert "  cp=2 tp?=4  " in next(line for line in lines if line.startswith("sequence"))


def test_a_model_without_axes() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    text = infer_axes(Scale(), [torch.ones(())]).text()
    assert text == "no axis was found\n\nparameters on no axis\n  scale  []  4 B"
