"""Repeating statements become loops that do the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxpar.emit.fold import PREFIX, SLOT, TEXT_SLOT, fold
from fxpar.emit.text import Bracket, Statement, call


def layer(number: int, *counts: int, name: str = "x", argument: str = "x") -> Statement:
    expression = Bracket(f"self.layers[{SLOT}](", (argument, *[SLOT] * len(counts)), ")")
    return Statement(expression, name, numbers=(number, *counts))


def folded(*statements: Statement, children: list[int] | None = None) -> list[str]:
    return list(fold(statements, {"self.layers": children or []}, ""))


def test_run_of_layers() -> None:
    assert folded(*map(layer, range(2, 5))) == ["for layer in self.layers[2:5]:", "    x = layer(x)"]


def test_all_children() -> None:
    found = folded(*map(layer, range(4)), children=[0, 1, 2, 3])
    assert found == ["for layer in self.layers:", "    x = layer(x)"]


def test_one_layer_called_again() -> None:
    assert folded(*[layer(3)] * 5) == ["for _ in range(5):", "    x = self.layers[3](x)"]


def test_layers_in_turn() -> None:
    found = folded(*(layer(i, argument="xy"[i % 2]) for i in range(6)))
    assert found == ["for i in range(0, 6, 2):", "    x = self.layers[i](x)", "    x = self.layers[i + 1](y)"]


def test_other_numbers_count_too() -> None:
    found = folded(*(layer(i, 3 * i + 5) for i in range(1, 5)))
    assert found == ["for i in range(4):", "    x = self.layers[i + 1](x, 3 * i + 8)"]


def test_backwards() -> None:
    assert folded(layer(3), layer(2), layer(1)) == ["for i in range(3, 0, -1):", "    x = self.layers[i](x)"]


def test_results_are_gathered() -> None:
    append = Statement(call("found.append", "y"))
    block = [each for i in range(3) for each in (layer(i, name="x, y"), append)]
    assert folded(*block, children=[0, 1, 2]) == [
        "for layer in self.layers:",
        "    x, y = layer(x)",
        "    found.append(y)",
    ]


def test_numbers_in_texts() -> None:
    made = [Statement(call("make", f'{PREFIX}"layers.{TEXT_SLOT}"'), numbers=(i,)) for i in range(3)]
    assert folded(*made) == ["for i in range(3):", '    make(f"layers.{i}")']
    assert folded(made[2]) == ['make("layers.2")']


@pytest.mark.parametrize("statement", [Statement("f()", "x"), Statement("g", "y")])
def test_statements_without_numbers_stay(statement: Statement) -> None:
    assert folded(statement, statement) == [*statement.lines(""), *statement.lines("")]


class Recorder:
    """Notes which layers are called with what."""

    def __init__(self) -> None:
        self.layers = self
        self.calls: list[tuple[int, ...]] = []

    def __getitem__(self, index: int | slice) -> object:
        if isinstance(index, slice):
            return [self[number] for number in range(index.start, index.stop)]
        return lambda *arguments: self.calls.append((index, *arguments))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from("ab")), max_size=14))
def test_loops_do_the_same(calls: list[tuple[int, int, str]]) -> None:
    recorder, names = Recorder(), {"a": -1, "b": -2}
    statements = [layer(number, count, name="x", argument=name) for number, count, name in calls]
    exec("\n".join(fold(statements, {}, "")), {"self": recorder, **names})
    assert recorder.calls == [(number, names[name], count) for number, count, name in calls]
