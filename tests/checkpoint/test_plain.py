"""Plain values go through JSON and come back the same, kind and all; what cannot is named by its place."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxpar.checkpoint.plain import decoded, encoded
from fxpar.errors import CheckpointError

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.dictionaries(st.integers(), st.integers()).map(Counter)
        | st.dictionaries(st.text(), inner).map(OrderedDict)
    ),
    max_leaves=10,
)


def through(value: Any) -> Any:
    """A value that was written and read."""
    problems: list[str] = []
    text = json.dumps(encoded(value, "it", problems), allow_nan=False)
    assert problems == []
    return decoded(json.loads(text))


@given(VALUES)
def test_values_come_back(value: Any) -> None:
    assert repr(through(value)) == repr(value)


def test_no_number_comes_back() -> None:
    assert math.isnan(through(float("nan")))
    assert through({"!tuple": [1]}) == {"!tuple": [1]}


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.complex64,
    ],
)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_tensors_of_one_element_come_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    for value in (1, 0) if dtype == torch.bool else (1, 1 / 3, 2**8 - 1):
        tensor = torch.full(
            shape, value if dtype.is_floating_point or dtype.is_complex else int(value), dtype=dtype
        )
        again = through(tensor)
        assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(again, tensor)
    if dtype.is_floating_point:
        assert through(torch.full(shape, -math.inf, dtype=dtype)).item() == -math.inf


def test_all_that_json_cannot_hold_is_named() -> None:
    problems: list[str] = []
    encoded({"a": [1, max], "b": {2: {3}}, "c": torch.ones(2, 3)}, "group 0", problems)
    assert problems == [
        "group 0['a'][1] is a builtin_function_or_method",
        "group 0['b'][2] is a set",
        "group 0['c'] is a Tensor [2, 3]",
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"!set": [1]}, "`!set` is no kind of value"),
        (
            {"!tensor": ["float32", [1000000000000], 1.0]},
            r"it has the shape \[1000000000000\], and is one number",
        ),
        ({"!tensor": ["float32", [1] * 65, 1.0]}, "and is one number"),
        ({"!float": "one"}, "could not convert string to float"),
        ({"!tensor": ["float33", [], 1]}, "no value: module 'torch' has no attribute 'float33'"),
        ({"!tensor": ["float32"]}, "not enough values to unpack"),
    ],
)
def test_damaged_values(data: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        decoded(data)
