"""Leaves: their names, and when two are the same."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from torch.utils import _pytree as pytree
from transformers.modeling_outputs import BaseModelOutput

from fxpar.capture.tree import flatten, leaf_names, plain, same


class Point(NamedTuple):
    x: Any
    y: Any


@dataclass
class Unknown:
    a: Any
    b: Any


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (1, ["in"]),
        ([1, (2, None)], ["in.0", "in.1.0", "in.1.1"]),
        ({"b": 1, "a": [2]}, ["in.b", "in.a.0"]),
        (OrderedDict(z=1, a=2), ["in.z", "in.a"]),
        (Point(1, [2, 3]), ["in.x", "in.y.0", "in.y.1"]),
        (
            BaseModelOutput(last_hidden_state=1, attentions=(2, 3)),
            ["in.last_hidden_state", "in.attentions.0", "in.attentions.1"],
        ),
        (plain(Unknown(1, {"k": Unknown(2, 3)})), ["in.a", "in.b.k.a", "in.b.k.b"]),
        ([], []),
    ],
)
def test_names(value: Any, names: list[str]) -> None:
    assert [name for name, _ in flatten("in", value)] == names


def test_the_root_needs_no_prefix() -> None:
    assert list(leaf_names(pytree.tree_structure({"loss": 1, "rest": (2,)}))) == ["loss", "rest.0"]


def test_what_is_the_same() -> None:
    assert same(float("nan"), float("nan"))
    assert not same(1, True)
    assert not same(1, 1.0)
    assert not same("1", "2")
