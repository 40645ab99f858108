"""Values keep their places, and what is written is read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxpar import settings
from fxpar.errors import PlanError
from fxpar.settings import Given
from fxpar.yamlfile import parse

WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=0x24F), max_size=6)
SCALARS = WORDS | st.booleans() | st.none() | st.integers(-99, 99)
TREES = st.dictionaries(
    WORDS.filter(bool),
    SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(WORDS.filter(bool), SCALARS, max_size=3),
)


@given(TREES)
def test_what_is_written_is_read_back(tree: dict[str, object]) -> None:
    text = settings.dump(tree)
    assert (parse(text, "f", PlanError).plain() or {}) == tree
    assert settings.dump(tree) == text


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("tp", "key: tp"),
        ("tp?", 'key: "tp?"'),
        ("model.layers.0", "key: model.layers.0"),
        ("12", 'key: "12"'),
        ("true", 'key: "true"'),
        ("", 'key: ""'),
        ("- a", 'key: "- a"'),
        (["cp", "tp?"], 'key: [cp, "tp?"]'),
        ([], "key: []"),
        ({}, "key: {}"),
        ({"a": None}, "key:\n  a: null"),
        (True, "key: true"),
    ],
)
def test_words(value: object, line: str) -> None:
    assert settings.dump({"key": value}) == f"{line}\n"


def test_a_value_given_in_python_says_so() -> None:
    node = settings.node({"heads": ["cp", "tp"]}, "splits", {})
    assert str(node.mapping()["heads"].list()[1].place) == "Plan(splits=...)"
    assert settings.node(Path("rules"), "rules", {}).value == "rules"
    assert settings.node(3j, "tp", {}).value == "3j"


def test_a_value_has_the_place_of_what_holds_it() -> None:
    read = parse("splits:\n  heads: [cp, tp]\n", "plan.yaml", PlanError).mapping()["splits"]
    places = dict(settings.places(read, "splits"))
    rows = settings.node({"heads": ["cp", "tp", "dp"]}, "splits", places).mapping()
    assert str(rows.keys_at["heads"].place) == "plan.yaml:2:3"
    assert [str(word.place) for word in rows["heads"].list()] == [
        "plan.yaml:2:11",
        "plan.yaml:2:15",
        "plan.yaml:2:10",
    ]


def test_an_option_has_no_line() -> None:
    assert str(PlanError("is wrong", place=Given("--set tp=0"))) == "--set tp=0: is wrong"
