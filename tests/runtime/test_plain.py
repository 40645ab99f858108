"""Plain values through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from fxpar.capture.tree import same
from fxpar.runtime.plain import from_json, to_json
from fxpar.size import Size


@pytest.mark.parametrize(
    "value", [None, True, 3, 2.5, "sequence", torch.float32, torch.device("cpu"), 1 + 2j, float("inf")]
)
def test_values_come_back(value: Any) -> None:
    found = from_json(json.loads(json.dumps(to_json(value))), {})
    assert same(found, value)


def test_sizes_come_back_as_those_of_the_example() -> None:
    found = from_json(json.loads(json.dumps(to_json(Size(15, "sequence - 1")))), {"sequence": 16})
    assert found == 15
    assert found.at({"sequence": 8}) == 7
