"""YAML in which every key and value knows its place in the file, so that an error can point at it.

A strict part of YAML 1.2: keys are texts and stand once, a plain `on` or `2026-01-01` is text, the only
words with a meaning are `true`, `false`, `null` and `~`. Tags, anchors and aliases are refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn, TypeAlias, cast

import yaml

from fxpar.errors import FxparError, Place

#: What a file says, without places.
Plain: TypeAlias = "bool | int | float | str | list[Plain] | dict[str, Plain] | None"

#: The kind of error that the readers of one file raise: `RuleError`, `PlanError`, ...
ErrorClass: TypeAlias = type[FxparError]

WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}
BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
INTEGER = re.compile(r"[-+]?[0-9]+")
NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Node:
    """One value of a file: a scalar, a list of nodes, or a mapping as `Fields`; with its place."""

    value: bool | int | float | str | tuple[Node, ...] | Fields | None
    place: Place
    error: ErrorClass

    def wrong(self, what: str, *details: str) -> FxparError:
        """Return the file's kind of error at this place, to be raised."""
        return self.error(what, place=self.place, details=details)

    def text(self) -> str:
        """Return the value, which must be text. Numbers and `true` need quotes to be one."""
        if isinstance(self.value, str):
            return self.value
        scalar = isinstance(self.value, bool | int | float)
        raise self.wrong(f"wants a text, has {self.kind()}", *["quotes make it a text"] * scalar)

    def integer(self, minimum: int | None = None) -> int:
        """Return the value, which must be an integer and no smaller than `minimum`."""
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.wrong(f"wants an integer, has {self.kind()}")
        if minimum is not None and self.value < minimum:
            raise self.wrong(f"wants an integer of at least {minimum}, has {self.value}")
        return self.value

    def number(self) -> float:
        """Return the value, which must be an integer or a decimal number."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.wrong(f"wants a number, has {self.kind()}")
        return float(self.value)

    def flag(self) -> bool:
        """Return the value, which must be `true` or `false`."""
        if not isinstance(self.value, bool):
            raise self.wrong(f"wants true or false, has {self.kind()}")
        return self.value

    def choice(self, allowed: Collection[str]) -> str:
        """Return the value, which must be one of the texts of `allowed`."""
        value = self.text()
        if value not in allowed:
            raise self.wrong(f"unknown value `{value}`", *suggest(value, allowed))
        return value

    def list(self) -> tuple[Node, ...]:
        """Return the elements of the value, which must be a list."""
        if not isinstance(self.value, tuple):
            raise self.wrong(f"wants a list, has {self.kind()}")
        return self.value

    def one_or_more(self) -> tuple[Node, ...]:
        """Return the elements of a list, or the node itself if it is none: `tp` means `[tp]`."""
        return self.value if isinstance(self.value, tuple) else (self,)

    def mapping(self, allowed: Collection[str] | None = None, required: Collection[str] = ()) -> Fields:
        """Return the fields of the value, which must be a mapping.

        A key outside `allowed` is an error (None allows any), and so is a key of `required` that is absent.
        """
        if not isinstance(self.value, Fields):
            raise self.wrong(f"wants a mapping, has {self.kind()}")
        for key in self.value.keys_at.values():
            if allowed is not None and key.text() not in allowed:
                raise key.wrong(f"unknown key `{key.text()}`", *suggest(key.text(), allowed))
        for name in required:
            self.value[name]
        return self.value

    def place_at(self, offset: int) -> Place:
        """Return the place of a character inside a text that stands as it is on one line, else its start."""
        start = self.place.text.find(self.text(), self.place.column - 1)
        if start < 0:
            return self.place
        return Place(self.place.file, self.place.line, start + 1 + offset, self.place.text)

    def plain(self) -> Plain:
        """Return the value as Python data, without places."""
        if isinstance(self.value, Fields):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, tuple):
            return [node.plain() for node in self.value]
        return self.value

    def kind(self) -> str:
        """Say in words what the value is."""
        match self.value:
            case None:
                return "nothing"
            case bool():
                return str(self.value).lower()
            case int() | float():
                return f"the number {self.value}"
            case str():
                return f"the text `{self.value}`"
            case tuple():
                return "a list"
        return "a mapping"


class Fields(dict[str, Node]):
    """The fields of a mapping in file order. `[name]` of an absent key is an error, `get` gives None.

    `keys_at` has every key as a node of its own, for errors that are about the key.
    """

    def __init__(self, place: Place, error: ErrorClass) -> None:
        super().__init__()
        self.place = place
        self.error = error
        self.keys_at: dict[str, Node] = {}

    def __missing__(self, name: str) -> NoReturn:
        raise self.error(f"key `{name}` is missing", place=self.place)

    def add(self, key: Node, value: Node) -> None:
        """Add a field. Raises if the key stands there already."""
        name = key.text()
        if name in self:
            raise key.wrong(f"key `{name}` stands twice", f"first in line {self.keys_at[name].place.line}")
        self.keys_at[name] = key
        self[name] = value


def load(path: Path, error: ErrorClass, name: str | None = None) -> Node:
    """Read a YAML file. `name` stands for the file in messages; it is `path` unless given.

    Raises `error` where the file cannot be read, is no YAML, or uses what this reader refuses.
    """
    shown = name or str(path)
    try:
        return parse(path.read_text(encoding="utf-8-sig"), shown, error)
    except OSError as reason:
        raise error(f"{shown}: cannot be read: {reason.strerror}") from reason
    except UnicodeDecodeError as reason:
        raise error(f"{shown}: is not UTF-8: {reason.reason} at byte {reason.start}") from reason


def parse(text: str, name: str, error: ErrorClass) -> Node:
    """Read YAML from a text; `name` stands for the file in messages. Raises `error` as `load` does."""
    return _Reader(text, name, error).root()


def suggest(word: str, allowed: Collection[str]) -> Sequence[str]:
    """Return the lines that help with an unknown word: the nearest allowed one, and all of them."""
    near = get_close_matches(word, allowed, n=1)
    everything = ", ".join(sorted(allowed)) or "none"
    return [*(f"did you mean `{found}`?" for found in near), f"allowed: {everything}"]


class _Loader(yaml.BaseLoader):
    """PyYAML's reader of bare texts, without anchors, aliases and tags."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if what := self.refused(event):
            mark = cast("yaml.error.Mark", event.start_mark)
            raise yaml.MarkedYAMLError(problem=f"{what} is refused", problem_mark=mark)
        return super().compose_node(parent, index)

    def refused(self, event: yaml.NodeEvent) -> str:
        """Say what stands at a node that is refused there, or nothing."""
        if isinstance(event, yaml.AliasEvent):
            return "an alias"
        if event.anchor:
            return f"anchor `&{event.anchor}`"
        tag = getattr(event, "tag", None)
        return f"tag `{tag}`" if tag else ""


class _Reader:
    """One pass over one text."""

    def __init__(self, text: str, name: str, error: ErrorClass) -> None:
        self.text, self.name, self.error = text, name, error
        self.lines = BREAK.split(text)

    def root(self) -> Node:
        """Return the only document of the text; an empty one is a node without a value."""
        try:
            tree = yaml.compose(self.text, Loader=_Loader)
        except yaml.MarkedYAMLError as problem:
            raise self.unreadable(problem) from None
        except yaml.reader.ReaderError as problem:
            raise self.unprintable(int(problem.position)) from None
        return self.node(tree) if tree is not None else Node(None, self.place(0, 0), self.error)

    def unreadable(self, problem: yaml.MarkedYAMLError) -> FxparError:
        """Return the error for what PyYAML could not read: its words, where, and what it was amid."""
        mark, amid = problem.problem_mark or problem.context_mark, problem.context_mark
        what = problem.problem or problem.context or "is no YAML"
        details = [f"{problem.context}, from line {amid.line + 1}"] if problem.context and amid else []
        place = self.place(mark.line, mark.column) if mark else None
        return self.error(what, place=place, details=details)

    def unprintable(self, offset: int) -> FxparError:
        """Return the error for a character that no YAML file may have."""
        before = BREAK.split(self.text[:offset])
        place = Place(self.name, len(before), len(before[-1]) + 1)
        return self.error(f"the character U+{ord(self.text[offset]):04X} is refused", place=place)

    def place(self, line: int, column: int) -> Place:
        """Return the place of a line and a column that count from 0, as PyYAML's marks do."""
        return Place(self.name, line + 1, column + 1, self.lines[line] if line < len(self.lines) else "")

    def start(self, tree: yaml.Node) -> Place:
        """Return the place where a composed node starts."""
        return self.place(tree.start_mark.line, tree.start_mark.column)

    def node(self, tree: yaml.Node) -> Node:
        """Return a composed node with its place."""
        place = self.start(tree)
        if isinstance(tree, yaml.MappingNode):
            return Node(self.fields(tree, place), place, self.error)
        if isinstance(tree, yaml.SequenceNode):
            return Node(tuple(self.node(child) for child in tree.value), place, self.error)
        quoted = isinstance(tree, yaml.ScalarNode) and tree.style is not None
        return Node(tree.value if quoted else scalar(tree.value), place, self.error)

    def fields(self, tree: yaml.MappingNode, place: Place) -> Fields:
        """Return the fields of a mapping, each key once."""
        fields = Fields(place, self.error)
        for key, value in tree.value:
            at = self.start(key)
            if not isinstance(key, yaml.ScalarNode) or not key.value:
                raise self.error("a key must be a text", place=at)
            fields.add(Node(key.value, at, self.error), self.node(value))
        return fields


def scalar(word: str) -> bool | int | float | str | None:
    """Return what an unquoted word means: a word with a meaning, a number, or itself."""
    if word in WORDS:
        return WORDS[word]
    if INTEGER.fullmatch(word):
        return int(word)
    return float(word) if NUMBER.fullmatch(word) else word
