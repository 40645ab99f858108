"""Polynomials from values, and the sizes at which these are taken."""

from __future__ import annotations

from math import gcd

import pytest

from fxpar.capture.program import DynamicAxis, Program
from fxpar.dynamic import choice
from fxpar.dynamic.fit import Fit
from fxpar.errors import PlanError
from fxpar.size import parse

POINTS = [
    {"batch": 4, "sequence": 16},
    {"batch": 12, "sequence": 80},
    {"batch": 28, "sequence": 176},
]


@pytest.mark.parametrize(
    "text",
    [
        "batch",
        "sequence // 2",
        "batch * sequence // 8",
        "sequence * sequence",
        "sequence - 1",
        "2 * sequence - 1",
        "batch * sequence + batch",
        "(sequence + 4) // 4",
    ],
)
def test_the_polynomial_behind_values_is_found(text: str) -> None:
    found = Fit(POINTS, 8).size([int(parse(text).at(point)) for point in POINTS])
    assert found is not None
    assert str(found.polynomial) == str(parse(text))
    assert int(found) == int(parse(text).at(POINTS[0]))


@pytest.mark.parametrize("values", [(16, 64, 64), (1, 2, 3), (5, 26, 58), (5, 12, 28)])
def test_other_values_have_none(values: tuple[int, ...]) -> None:
    """A minimum, a count, a part that no number of ranks makes."""
    assert Fit(POINTS, 8).size(values) is None


def test_values_of_two_polynomials_have_none() -> None:
    alike = [{"batch": 4, "sequence": 16}, {"batch": 12, "sequence": 48}, {"batch": 20, "sequence": 80}]
    assert Fit(alike, 4).size([1, 3, 5]) is None


def program() -> Program:
    from torch import fx
    from torch.utils import _pytree as pytree

    return Program(fx.Graph(), {}, (), pytree.tree_flatten(())[1], ())


@pytest.mark.parametrize("parts", [1, 2, 4, 8, 6])
@pytest.mark.parametrize(("size", "most"), [(64, 64), (16, 64), (16, None), (17, 512), (4096, 4096)])
def test_other_sizes_divide_as_the_example_does(parts: int, size: int, most: int | None) -> None:
    axes = [DynamicAxis("batch", (("x", 0),), 8, 2), DynamicAxis("sequence", (("x", 1),), size, 2, most)]
    found = choice.choose(program(), axes, dict.fromkeys(["batch", "sequence"], parts))
    ratios = {found[i][a.name] / a.size for i in range(choice.COUNT) for a in axes} | {1.0}
    assert len(ratios) == choice.COUNT * len(axes) + 1
    assert choice.is_general([{axis.name: axis.size for axis in axes}, *found])
    for sizes in found:
        for axis in axes:
            assert gcd(sizes[axis.name], parts) == gcd(axis.size, parts)
            assert axis.most is None or sizes[axis.name] <= axis.most


def test_the_last_sizes_are_large_enough_or_as_large_as_may_be() -> None:
    axes = [DynamicAxis("sequence", (("x", 1),), 16, 2)]
    assert choice.choose(program(), axes, {"sequence": 2}, {"sequence": 8194})[-1]["sequence"] >= 8194
    bounded = [DynamicAxis("sequence", (("x", 1),), 16, 2, 64)]
    assert choice.choose(program(), bounded, {"sequence": 2}, {"sequence": 8194})[-1]["sequence"] == 64


def test_an_axis_without_other_sizes() -> None:
    with pytest.raises(PlanError) as error:
        choice.choose(program(), [DynamicAxis("sequence", (("x", 1),), 8, 2, 8)], {"sequence": 8})
    assert str(error.value) == (
        "axis `sequence` cannot be dynamic: it has too few sizes beside 8\n"
        "  it has to be a multiple of 8 as in the example, and at most 8\n"
        "  leave it out of `dynamic`"
    )
