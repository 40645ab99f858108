"""The sizes of a call, and what is wrong with them."""

from __future__ import annotations

import json

import pytest
import torch

from fxpar.condition import Condition
from fxpar.runtime.manifest import AxisSpec, CutSpec, InputSpec
from fxpar.runtime.sizes import at, bind, read, written
from fxpar.size import Size

AXES = (
    AxisSpec("batch", 4, 2, "dp 2"),
    AxisSpec("sequence", 16, 4, "cp 2 x tp 2", 4, 64, "`positions.weight` has 64 rows (model.py:3)"),
)
B, S = Size(4, "batch"), Size(16, "sequence")
INPUTS = (InputSpec("ids", "ids", "int64", (B, S)), InputSpec("mask", "mask", "int64", (S, 3)))


@pytest.mark.parametrize(
    ("shape", "wrong"),
    [
        ((8, 32), []),
        ((4, 64), []),
        ((3, 32), ["batch = 3 does not divide over 2 parts (dp 2); 2 or 4 would do"]),
        ((4, 30), ["sequence = 30 does not divide over 4 parts (cp 2 x tp 2); 28 or 32 would do"]),
        ((4, 68), ["sequence = 68: it may be at most 64, `positions.weight` has 64 rows (model.py:3)"]),
        (
            (1, 2),
            ["batch = 1: it has to be at least 2", "sequence = 2: it has to be at least 4"],
        ),
    ],
)
def test_sizes_are_those_of_the_inputs(shape: tuple[int, int], wrong: list[str]) -> None:
    given = {"ids": torch.zeros(shape), "mask": torch.zeros(shape[1], 3)}
    assert bind(AXES, INPUTS, given) == ({"batch": shape[0], "sequence": shape[1]}, wrong)


def test_conditions_are_asked_of_sizes_that_fit() -> None:
    conditions = (Condition("batch * sequence < 500", "model.py:7"), Condition("sequence != 16"))
    given = {"ids": torch.zeros(16, 32), "mask": torch.zeros(32, 3)}
    assert bind(AXES, INPUTS, given, conditions)[1] == [
        "batch = 16, sequence = 32: the model goes the same way only where batch * sequence < 500 (model.py:7)"
    ]
    assert bind(AXES, INPUTS, {}, conditions)[1] == [
        "sequence = 16: the model goes the same way only where sequence != 16"
    ]
    wrong = bind(AXES, INPUTS, {"ids": torch.zeros(16, 30)}, conditions)[1]
    assert wrong == ["sequence = 30 does not divide over 4 parts (cp 2 x tp 2); 28 or 32 would do"]


def test_inputs_that_are_missing_count_as_the_example() -> None:
    assert bind(AXES, INPUTS, {})[0] == {"batch": 4, "sequence": 16}


def test_what_follows_from_the_sizes() -> None:
    cut = CutSpec("mb", 0, (1, Size(2, "batch // 2")))
    assert at(cut, {"batch": 8}) == CutSpec("mb", 0, (1, 4))
    assert at({"a": [cut, "text", None]}, {"batch": 12})["a"][0].layout == (1, 6)


def test_sizes_go_through_json() -> None:
    data = {"shape": [B, 3], "inner": [{"layout": [1, Size(32, "batch * sequence // 2")]}], "name": "batch"}
    text = json.dumps(written(data))
    assert '"batch * sequence // 2"' in text
    found = read(json.loads(text), {"batch": 4, "sequence": 16})
    assert found == {"shape": [4, 3], "inner": [{"layout": [1, 32]}], "name": "batch"}
    assert found["inner"][0]["layout"][1].at({"batch": 2, "sequence": 6}) == 6
