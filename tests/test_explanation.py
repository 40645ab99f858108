"""What is told of the things of a partition."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import fxpar
from fxpar.capture.capture import capture
from fxpar.errors import ModelError
from fxpar.explanation import explain, rule_of, to_text
from fxpar.passes import Partition, split


class Block(nn.Module):
    """A feed-forward that is normalised before and added."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class Model(nn.Module):
    """Two blocks and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(64, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, 64, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        logits = self.head(x)
        return {
            "loss": nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()),
            "logits": logits,
        }


@cache
def partition(**sizes: int) -> Partition:
    ids = torch.zeros(4, 6, dtype=torch.int64)
    return split(capture(Model(), (ids, ids.clone())), fxpar.Plan(**sizes))


def facts(name: str, **sizes: int) -> dict[str, Any]:
    """The facts of the only thing of that name."""
    (found,) = explain(partition(**sizes or {"tp": 2}), name)
    return found.plain()


@pytest.mark.parametrize(
    "name", ["blocks.0.up.weight", "blocks.1.norm.weight", "logits", "ids", "blocks.0.down", "head.weight"]
)
def test_text(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"explain_{name}.txt", to_text(explain(partition(tp=2, pp=2), name)) + "\n")


def test_a_parameter() -> None:
    told = facts("blocks.0.up.weight")
    assert told["kind"] == "parameter"
    assert told["dims"] == ("ffn", "hidden")
    assert (told["shape"], told["on a rank"]) == ([16, 8], [8, 8])
    assert told["rule"] == "rules/splits/default.yaml:3"
    assert told["source"].startswith("test_explanation.py:")


def test_a_tied_parameter_by_either_name() -> None:
    assert facts("head.weight")["name"] == facts("tokens.weight")["name"] == "tokens.weight"
    assert facts("tokens.weight")["also called"] == ["head.weight"]


def test_what_is_whole_names_the_rules_around_it() -> None:
    found = partition(dp=2)
    assert rule_of(found, "blocks.0.norm.weight").startswith(
        "no row of the table splits it; what it is used in"
    )
    assert rule_of(found, "blocks.0.norm.weight").endswith("rules/splits/default.yaml:6")
    assert facts("blocks.0.norm.weight", dp=2)["gradient"] == "summed over dp once a step"
    assert facts("blocks.0.norm.weight", tp=1)["rule"] == "no row of the table splits it"


def test_every_value_that_the_modules_get_from_others_can_be_asked_for() -> None:
    found = partition(tp=2, pp=2)
    calls = re.compile(r"^ +(\w+) = torch\.ops\.fxpar\.(\w+)", re.MULTILINE)
    kinds = {}
    for text in found.texts.values():
        for name, op in calls.findall(text):
            told = [each for each in explain(found, name) if each.facts["made by"] == f"fxpar.{op}.default"]
            assert told, name
            if told[0].facts["over"]:
                kinds[op] = told[0].kind
    assert kinds == {
        "embedding": "value",
        "cross_entropy": "value",
        "all_reduce": "collective",
        "sum_gradient": "collective",
        "keep_on_first": "collective",
    }


def test_a_module_stands_for_all_that_it_computes() -> None:
    found = explain(partition(tp=2), "blocks.0")
    assert len(found) > 1
    assert {each.facts["module"] for each in found} == {"blocks.0"}


def test_near_names() -> None:
    with pytest.raises(ModelError) as error:
        explain(partition(tp=2), "blocks.0.up.wieght")
    assert str(error.value).splitlines() == [
        "nothing is called `blocks.0.up.wieght`",
        "  did you mean `blocks.0.up.weight`?",
        "  did you mean `blocks.1.up.weight`?",
        "  did you mean `blocks.0.norm.weight`?",
        "  a name is that of a parameter, a buffer, an input, an output, a module, or a value in stage_*.py",
    ]
