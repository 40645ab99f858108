"""What a file says, where it says it, and the exact text of every error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxpar.errors import PlanError, RuleError
from fxpar.yamlfile import Node, load, parse

WORDS = {
    "x": "x",
    "on": "on",
    "2026-01-01": "2026-01-01",
    "1_000": "1_000",
    "12:30": "12:30",
    "0": 0,
    "-12": -12,
    "1.5": 1.5,
    ".5": 0.5,
    "1e-3": 1e-3,
    "true": True,
    "false": False,
    "null": None,
    "~": None,
    "": None,
    "'3'": "3",
    '"true"': "true",
    "[a, 1]": ["a", 1],
    "{a: 1}": {"a": 1},
}


@pytest.mark.parametrize(("word", "value"), WORDS.items())
def test_words(word: str, value: object) -> None:
    plain = parse(f"key: {word}", "f", PlanError).plain()
    assert plain == {"key": value}
    assert type(plain["key"]) is type(value)


def test_blocks_and_emptiness() -> None:
    assert parse("a: |\n  one\n  two\n", "f", PlanError).plain() == {"a": "one\ntwo\n"}
    assert parse("# nothing\n", "f", PlanError).plain() is None


def test_everything_has_a_place() -> None:
    fields = parse("a: 1\nrows:\n  - heads: tp\n    seq: 'x'\n", "f.yaml", PlanError).mapping()
    row = fields["rows"].list()[0].mapping()
    assert str(fields.keys_at["rows"].place) == "f.yaml:2:1"
    assert str(row.place) == "f.yaml:3:5"
    assert str(row["seq"].place) == "f.yaml:4:10"
    assert row["seq"].place.text == "    seq: 'x'"


def test_typed_values() -> None:
    fields = parse("t: x\ni: 3\nn: 1\nf: true\nl: [a, b]\none: a\n", "f", PlanError).mapping()
    assert fields["t"].text() == fields["t"].choice({"x", "y"}) == "x"
    assert fields["i"].integer(minimum=3) == 3
    assert fields["n"].number() == 1.0
    assert fields["f"].flag() is True
    assert [node.text() for node in fields["l"].list()] == ["a", "b"]
    assert [node.text() for node in fields["l"].one_or_more()] == ["a", "b"]
    assert [node.text() for node in fields["one"].one_or_more()] == ["a"]
    assert fields.get("absent") is None
    assert "absent" not in fields


def test_place_inside_a_text() -> None:
    fields = parse("""plain: b h s\nquoted:   "b h s"\nescaped: "b\\x20h s"\n""", "f", PlanError).mapping()
    assert fields["plain"].place_at(2).column == 10
    assert fields["quoted"].place_at(2).column == 14
    assert fields["escaped"].place_at(2) == fields["escaped"].place


ILL_FORMED = {
    "twice": ("a: 1\na: 2\n", "f:2:1: key `a` stands twice\n  2 | a: 2\n    | ^\n  first in line 1"),
    "anchor": ("a: &x 1\n", "f:1:4: anchor `&x` is refused\n  1 | a: &x 1\n    |    ^"),
    "alias": ("a: *x\n", "f:1:4: an alias is refused\n  1 | a: *x\n    |    ^"),
    "tag": (
        "a: !!python/name:os.system\n",
        "f:1:4: tag `tag:yaml.org,2002:python/name:os.system` is refused\n"
        "  1 | a: !!python/name:os.system\n    |    ^",
    ),
    "key": ("[a]: 1\n", "f:1:1: a key must be a text\n  1 | [a]: 1\n    | ^"),
    "syntax": ("a: b: c\n", "f:1:5: mapping values are not allowed here\n  1 | a: b: c\n    |     ^"),
    "bracket": (
        "a: [1\nb: 2\n",
        "f:2:2: expected ',' or ']', but got ':'\n  2 | b: 2\n    |  ^\n"
        "  while parsing a flow sequence, from line 1",
    ),
    "quote": (
        "a: 'x\n",
        "f:2:1: found unexpected end of stream\n  while scanning a quoted scalar, from line 1",
    ),
    "documents": (
        "a: 1\n---\nb: 2\n",
        "f:2:1: but found another document\n  2 | ---\n    | ^\n"
        "  expected a single document in the stream, from line 1",
    ),
    "character": ("a: 1\nb: \x01\n", "f:2:4: the character U+0001 is refused"),
}


@pytest.mark.parametrize(("text", "message"), ILL_FORMED.values(), ids=ILL_FORMED)
def test_ill_formed(text: str, message: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse(text, "f", RuleError)
    assert str(caught.value) == message


def field(take: Callable[[Node], object]) -> Callable[[Node], object]:
    return lambda root: take(root.mapping()["a"])


MISUSED: dict[str, tuple[str, Callable[[Node], object], str]] = {
    "unknown key": (
        "heads: tp\nsequense: cp\n",
        lambda root: root.mapping({"sequence", "heads"}),
        "f:2:1: unknown key `sequense`\n  2 | sequense: cp\n    | ^\n"
        "  did you mean `sequence`?\n  allowed: heads, sequence",
    ),
    "far key": (
        "q: 1\n",
        lambda root: root.mapping({"heads"}),
        "f:1:1: unknown key `q`\n  1 | q: 1\n    | ^\n  allowed: heads",
    ),
    "missing key": (
        "a: 1\n",
        lambda root: root.mapping({"a", "b"}, required=["b"]),
        "f:1:1: key `b` is missing\n  1 | a: 1\n    | ^",
    ),
    "absent field": (
        "a: {c: 1}\n",
        lambda root: root.mapping()["a"].mapping()["b"],
        "f:1:4: key `b` is missing\n  1 | a: {c: 1}\n    |    ^",
    ),
    "text": (
        "a: 3\n",
        field(Node.text),
        "f:1:4: wants a text, has the number 3\n  1 | a: 3\n    |    ^\n  quotes make it a text",
    ),
    "text of a list": (
        "a: [b]\n",
        field(Node.text),
        "f:1:4: wants a text, has a list\n  1 | a: [b]\n    |    ^",
    ),
    "integer": (
        "a: x\n",
        field(Node.integer),
        "f:1:4: wants an integer, has the text `x`\n  1 | a: x\n    |    ^",
    ),
    "integer of a flag": (
        "a: true\n",
        field(Node.integer),
        "f:1:4: wants an integer, has true\n  1 | a: true\n    |    ^",
    ),
    "minimum": (
        "a: 0\n",
        field(lambda node: node.integer(minimum=1)),
        "f:1:4: wants an integer of at least 1, has 0\n  1 | a: 0\n    |    ^",
    ),
    "number": (
        "a: x\n",
        field(Node.number),
        "f:1:4: wants a number, has the text `x`\n  1 | a: x\n    |    ^",
    ),
    "flag": (
        "a: yes\n",
        field(Node.flag),
        "f:1:4: wants true or false, has the text `yes`\n  1 | a: yes\n    |    ^",
    ),
    "choice": (
        "a: zigzagg\n",
        field(lambda node: node.choice({"zigzag", "ring"})),
        "f:1:4: unknown value `zigzagg`\n  1 | a: zigzagg\n    |    ^\n"
        "  did you mean `zigzag`?\n  allowed: ring, zigzag",
    ),
    "list": (
        "a: {b: 1}\n",
        field(Node.list),
        "f:1:4: wants a list, has a mapping\n  1 | a: {b: 1}\n    |    ^",
    ),
    "mapping": ("", Node.mapping, "f:1:1: wants a mapping, has nothing"),
}


@pytest.mark.parametrize(("text", "take", "message"), MISUSED.values(), ids=MISUSED)
def test_misused(text: str, take: Callable[[Node], object], message: str) -> None:
    root = parse(text, "f", PlanError)
    with pytest.raises(PlanError) as caught:
        take(root)
    assert str(caught.value) == message


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("\ufeffa: 1\n", encoding="utf-8")
    assert load(path, PlanError).plain() == {"a": 1}
    assert str(load(path, PlanError, name="plan.yaml").place) == "plan.yaml:1:1"
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(PlanError) as caught:
        load(path, PlanError, name="plan.yaml")
    assert str(caught.value) == "plan.yaml: is not UTF-8: invalid start byte at byte 3"
    with pytest.raises(RuleError) as absent:
        load(tmp_path / "none.yaml", RuleError, name="none.yaml")
    assert str(absent.value) == "none.yaml: cannot be read: No such file or directory"


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#? \n\t,0~%\x85\x01é", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(PlanError):
        parse(text, "f", PlanError).plain()
