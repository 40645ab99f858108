"""Example inputs in words."""

from __future__ import annotations

import pytest
import torch

from fxpar.capture.example import GRAMMAR, Example, InputSpec, from_texts, from_value, parse_input
from fxpar.errors import ModelError


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("input_ids:int64[2,128]<32000", InputSpec("input_ids", torch.int64, (2, 128), 32000)),
        ("x:float32[3]", InputSpec("x", torch.float32, (3,))),
        (" batch.x : bfloat16 [ 3 , 4 ]", InputSpec("batch.x", torch.bfloat16, (3, 4))),
        ("scale:float64[]", InputSpec("scale", torch.float64, ())),
        ("mask:bool[2,2]", InputSpec("mask", torch.bool, (2, 2))),
    ],
)
def test_parse(text: str, spec: InputSpec) -> None:
    assert parse_input(text) == spec
    tensor = spec.tensor()
    assert (tensor.dtype, tuple(tensor.shape)) == (spec.dtype, spec.sizes)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x", "it is not of the form"),
        ("x:float32", "it is not of the form"),
        ("x:float32[2]!", "it is not of the form"),
        (":float32[2]", "the name is missing"),
        ("x:float31[2]", "`float31` is no dtype; it may be float64, "),
        ("x:float32[2,a]", "`a` is no size"),
        ("x:float32[-2]", "`-2` is no size"),
        ("x:int64[2]<many", "`many` is no bound"),
        ("x:int64[2]<0", "the bound has to be at least 1"),
        ("x:float32[2]<3", "`<HIGH` is for integers only"),
    ],
)
def test_what_is_malformed(text: str, why: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse_input(text)
    assert str(caught.value).startswith(f"input `{text}`: {why}")
    assert str(caught.value).endswith(GRAMMAR)


def test_values_depend_on_seed_and_name_alone() -> None:
    one, two = (from_texts(["a:int64[64]<9", "b:float32[4]"]).kwargs for _ in range(2))
    assert torch.equal(one["a"], two["a"])
    assert torch.equal(one["b"], from_texts(["b:float32[4]"]).kwargs["b"])
    assert not torch.equal(one["b"], from_texts(["c:float32[4]"]).kwargs["c"])
    assert not torch.equal(one["b"], from_texts(["b:float32[4]"], seed=1).kwargs["b"])
    assert set(one["a"].tolist()) == set(range(9))


def test_a_name_comes_once() -> None:
    with pytest.raises(ModelError, match="`x` is given twice"):
        from_texts(["x:int64[1]", "x:int64[2]"])


def test_example_inputs() -> None:
    x = torch.ones(1)
    assert from_value({"x": x}, "m") == Example(kwargs={"x": x})
    assert from_value((x, 1), "m") == Example(args=(x, 1))
    assert from_value(lambda: [x], "m") == Example(args=(x,))
    assert from_value(x, "m").args[0] is x
    with pytest.raises(ModelError, match="m: `example_inputs` is a str"):
        from_value("x", "m")
