"""Expressions break into lines as `ruff format` breaks them."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fxpar.emit.literals import sequence
from fxpar.emit.text import WIDTH, Expression, Statement, call, comment, flat, keyword

NAMES = st.integers(1, 45).map(lambda length: "x" * length)


def expressions() -> st.SearchStrategy[Expression]:
    """Calls of names, lists and tuples, nested."""

    def nested(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        items = st.lists(inner, min_size=1, max_size=5).map(tuple)
        return st.one_of(
            items.map(sequence),
            items.map(lambda found: sequence(found, is_tuple=True)),
            st.tuples(NAMES, items).map(lambda found: call(found[0], *found[1])),
        )

    return st.recursive(NAMES, nested, max_leaves=12)


@st.composite
def statements(draw: st.DrawFn) -> Statement:
    items = draw(st.lists(expressions(), min_size=1, max_size=5))
    last = keyword("dim", items[-1])
    note = draw(st.integers(0, 60).map(lambda length: "n" * length))
    targets = ", ".join(
        draw(st.lists(st.integers(1, 20).map(lambda length: "y" * length), min_size=1, max_size=3))
    )
    return Statement(call(draw(NAMES), *items[:-1], last), targets=targets, note=note)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(statements(), min_size=20, max_size=40))
def test_layout_is_ruffs(found: list[Statement]) -> None:
    lines = ["def f():", *(line for statement in found for line in statement.lines("    "))]
    text = "\n".join(lines) + "\n"
    run = [sys.executable, "-m", "ruff", "format", "--diff", "--isolated", "--line-length", str(WIDTH), "-"]
    result = subprocess.run(run, input=text, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_note_goes_above_where_there_is_no_room() -> None:
    expression = call("f", "a" * 90)
    assert list(Statement(expression, "x", note="[2, 3]").lines("")) == [f"x = f({'a' * 90})  # [2, 3]"]
    assert list(Statement(expression, "x", note="[2, 3, 4, 5]").lines("")) == [
        "# [2, 3, 4, 5]",
        f"x = f({'a' * 90})",
    ]


def test_comments_are_wrapped() -> None:
    lines = list(comment("word " * 40, "    "))
    assert len(lines) == 2
    assert all(line.startswith("    # word") and len(line) <= WIDTH for line in lines)


def test_tuple_of_one_keeps_its_comma() -> None:
    assert flat(sequence(("x",), is_tuple=True)) == "(x,)"
    assert flat(keyword("y", sequence(("x",), is_tuple=True))) == "y=(x,)"
