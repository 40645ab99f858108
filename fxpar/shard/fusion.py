"""Fusions: rules that several ops are one op. The grammar stands at the top of `rules/fusions/fusions.yaml`."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from fxpar import yamlfile
from fxpar.errors import Place, RuleError

FIELDS = ("fusion", "ops", "shapes", "dtypes", "into")
REQUIRED = ("fusion", "ops", "shapes", "into")
WORDS: dict[str, Any] = {"none": None, "true": True, "false": False}
ANY = "_"


@dataclass(frozen=True)
class Name:
    """A value that a rule names; `_` is any."""

    text: str


@dataclass(frozen=True)
class Call:
    """A call of an op: arguments by position and by name."""

    op: str
    args: tuple[Term, ...]
    kwargs: Mapping[str, Term]


#: A part of a rule: a call, a name, a list of terms, or a number, text, bool or None that is itself.
Term: TypeAlias = "Call | Name | tuple[Term, ...] | bool | int | float | str | None"


@dataclass(frozen=True)
class Fusion:
    """One rule: the ops, the tensors in them with their shapes and dtypes (any, where there are none), the one op."""

    name: str
    place: Place
    ops: Call
    shapes: Mapping[str, tuple[str, ...]]
    dtypes: frozenset[torch.dtype]
    into: Call
    target: Any


def load(folders: Iterable[Path]) -> list[Fusion]:
    """Read every `fusions/*.yaml` of the folders of rules. Raises RuleError for a malformed one."""
    found = []
    for folder in folders:
        for path in sorted((folder / "fusions").glob("*.yaml")):
            entries = yamlfile.load(path, RuleError, f"{folder.name}/fusions/{path.name}").list()
            found += [_read(entry) for entry in entries]
    return found


def _read(entry: yamlfile.Node) -> Fusion:
    fields = entry.mapping(FIELDS, required=REQUIRED)
    ops, into = _call(fields["ops"]), _call(fields["into"])
    tensors = fields["shapes"].mapping(set(_names(ops)))
    shapes = {name: tuple(size.text() for size in dims.one_or_more()) for name, dims in tensors.items()}
    known = {*_names(ops), *(size for dims in shapes.values() for size in dims)}
    for name in _names(into):
        if name not in known:
            raise fields["into"].wrong(f"`{name}` stands nowhere in `ops`", *yamlfile.suggest(name, known))
    dtypes = frozenset(map(_dtype, fields["dtypes"].one_or_more())) if "dtypes" in fields else frozenset()
    title = fields["fusion"]
    return Fusion(title.text(), title.place, ops, shapes, dtypes, into, _target(fields["into"], into))


def _call(node: yamlfile.Node) -> Call:
    try:
        term = _term(ast.parse(node.text(), mode="eval").body)
    except (SyntaxError, ValueError) as error:
        raise node.wrong(f"cannot be read: {error}", "write calls, such as `mul(x, add(y, 1.0))`") from error
    if not isinstance(term, Call):
        raise node.wrong("is no call of an op", "write calls, such as `mul(x, add(y, 1.0))`")
    return term


def _term(tree: ast.expr) -> Term:
    match tree:
        case ast.Call(func=func, args=args, keywords=keywords) if all(word.arg for word in keywords):
            named = {str(word.arg): _term(word.value) for word in keywords}
            return Call(ast.unparse(func), tuple(map(_term, args)), named)
        case ast.Name(id=word):
            return WORDS[word] if word in WORDS else Name(word)
        case ast.List(elts=items):
            return tuple(map(_term, items))
        case ast.Constant() | ast.UnaryOp():
            value: Term = ast.literal_eval(tree)
            return value
    raise ValueError(f"`{ast.unparse(tree)}` is neither a call, a name, a list nor a number")


def _names(term: Term) -> Iterator[str]:
    if isinstance(term, Name):
        yield term.text
    parts = (*term.args, *term.kwargs.values()) if isinstance(term, Call) else term
    for part in parts if isinstance(parts, tuple) else ():
        yield from _names(part)


def _target(node: yamlfile.Node, into: Call) -> Any:
    space, _, rest = into.op.partition(".")
    name, _, overload = rest.partition(".")
    found = getattr(getattr(getattr(torch.ops, space, None), name, None), overload or "-", None)
    if found is None:
        raise node.wrong(f"torch has no op `{into.op}`", "write it whole, such as `aten.gelu.default`")
    return found


def _dtype(node: yamlfile.Node) -> torch.dtype:
    found = getattr(torch, node.text(), None)
    if not isinstance(found, torch.dtype):
        raise node.wrong(f"torch has no dtype `{node.text()}`")
    return found
