"""The table of `rules/print.yaml`: op -> the form in which a call of it is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fxpar import yamlfile
from fxpar.errors import RuleError

_CALL = re.compile(r"(?P<callee>[\w.{}]+)\((?P<items>.*)\)")
_FIELD = re.compile(r"\{(\*\*|\*|\.\.\.)?(\w+)\}")
#: Subscripts and arguments that are more than a list of arguments; `fxpar.emit.special` writes them.
SPECIAL = ("slice", "select", "index", "cross_entropy")


@dataclass(frozen=True)
class Field:
    """One `{...}` of a form: an argument's position or the name of a special, and how it is written."""

    spread: str
    position: int
    special: str = ""


@dataclass(frozen=True)
class Piece:
    """Fields with the text around them: `dim={1}` is `("dim=", "")` around one field."""

    texts: tuple[str, ...]
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Form:
    """How a call is written: one piece, or, with `callee`, a call whose arguments are `items`."""

    callee: Piece | None
    items: tuple[Piece, ...]

    def fields(self) -> tuple[Field, ...]:
        """Return every field of the form."""
        pieces = (*self.items, self.callee) if self.callee else self.items
        return tuple(field for piece in pieces for field in piece.fields)


@cache
def forms() -> dict[str, Form]:
    """Read the table that fxpar ships. Raises RuleError where it is malformed."""
    return read(_shipped())


def read(path: Path) -> dict[str, Form]:
    """Read a table of forms by op name. Raises RuleError where it is malformed."""
    fields = yamlfile.load(path, RuleError, f"rules/{path.name}").mapping()
    return {op: _form(node) for op, node in fields.items()}


def _shipped() -> Path:
    package = Path(__file__).parents[1]
    inside, beside = package / "rules" / "print.yaml", package.parent / "rules" / "print.yaml"
    return inside if inside.exists() else beside


def _form(node: yamlfile.Node) -> Form:
    text = node.text()
    if found := _CALL.fullmatch(text):
        items = tuple(_piece(node, item) for item in found["items"].split(", ") if item)
        return Form(_piece(node, found["callee"]), items)
    return Form(None, (_piece(node, text),))


def _piece(node: yamlfile.Node, text: str) -> Piece:
    parts = _FIELD.split(text)
    fields = tuple(_field(node, spread or "", name) for spread, name in zip(parts[1::3], parts[2::3]))
    texts = tuple(parts[::3])
    if any("{" in part or "}" in part for part in texts):
        raise node.wrong(f"`{text}` has a brace that is no field")
    return Piece(texts, fields)


def _field(node: yamlfile.Node, spread: str, name: str) -> Field:
    if name.isdigit():
        return Field(spread, int(name))
    if name not in SPECIAL:
        raise node.wrong(f"unknown field `{name}`", *yamlfile.suggest(name, SPECIAL))
    return Field("", -1, name)
