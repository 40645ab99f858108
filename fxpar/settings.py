"""Values with places, wherever they were given: as a YAML file, in Python, or as an option. No torch here.

A setting is named by its path, `tp`, `splits.heads`, `splits.sequence.1`; what is known of its place is kept by path.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fxpar.errors import Place, PlanError
from fxpar.yamlfile import Fields, Node, Plain, scalar

#: Places by the path of a setting.
Places = Mapping[str, Place]

#: Words that stand in YAML as they are, unless they mean something else.
_BARE = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*")


class Given(Place):
    """Where a value was given that stands in no file: `Plan(tp=...)`, `--set tp=4`."""

    def __init__(self, text: str) -> None:
        super().__init__(text, 0)

    def __str__(self) -> str:
        return self.file


def node(value: Any, path: str, places: Places) -> Node:
    """Return a value given in Python as a node, each part at the place that is known for it or for what holds it."""
    place = _place(path, places)
    if isinstance(value, Mapping):
        fields = Fields(place, PlanError)
        for key, part in value.items():
            below = f"{path}.{key}"
            at = places.get(_key(below)) or _place(below, places)
            fields.add(Node(key, at, PlanError), node(part, below, places))
        return Node(fields, place, PlanError)
    if isinstance(value, Sequence) and not isinstance(value, str):
        parts = tuple(node(part, f"{path}.{i}", places) for i, part in enumerate(value))
        return Node(parts, place, PlanError)
    if isinstance(value, os.PathLike):
        return Node(os.fspath(value), place, PlanError)
    known = value is None or isinstance(value, bool | int | float | str)
    return Node(value if known else repr(value), place, PlanError)


def _place(path: str, places: Places) -> Place:
    part = path
    while part:
        if part in places:
            return places[part]
        part = part.rpartition(".")[0]
    return Given(f"Plan({path.partition('.')[0]}=...)")


def _key(path: str) -> str:
    """The path under which the place of a key is kept, beside that of its value."""
    return f"{path}.:"


def places(read: Node, path: str) -> Iterator[tuple[str, Place]]:
    """Yield every path below and at `path`, with its place in the file that was read."""
    yield path, read.place
    if isinstance(read.value, Fields):
        for key, part in read.value.items():
            yield _key(f"{path}.{key}"), read.value.keys_at[key].place
            yield from places(part, f"{path}.{key}")
    elif isinstance(read.value, tuple):
        for i, part in enumerate(read.value):
            yield from places(part, f"{path}.{i}")


def dump(fields: Mapping[str, Plain]) -> str:
    """Write a mapping as YAML: a line for each key, mappings indented below theirs, lists in brackets.

    The text is read back by `yamlfile` as the same values, and equal values give equal bytes.
    """
    return "".join(f"{line}\n" for line in _lines(fields))


def _lines(fields: Mapping[str, Plain]) -> Iterator[str]:
    for key, value in fields.items():
        if isinstance(value, dict) and value:
            yield f"{_word(key)}:"
            yield from (f"  {line}" for line in _lines(value))
        else:
            yield f"{_word(key)}: {_inline(value)}"


def _inline(value: Plain) -> str:
    if isinstance(value, str):
        return _word(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    return json.dumps(value)


def _word(word: str) -> str:
    """A text as YAML: bare where it then means itself, else quoted."""
    bare = _BARE.fullmatch(word) and isinstance(scalar(word), str)
    return word if bare else json.dumps(word, ensure_ascii=not word.isprintable())
