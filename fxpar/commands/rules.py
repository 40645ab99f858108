"""`fxpar rules`: the rules that are read, and their proof."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click

from fxpar.commands import _options as options
from fxpar.commands._data import DataCommand, data
from fxpar.errors import FxparError, Place, RuleError

if TYPE_CHECKING:
    from fxpar.axes.naming import NamingRule
    from fxpar.axes.oprule import OpRule
    from fxpar.axes.proof import Proof
    from fxpar.rulebook import Rulebook
    from fxpar.shard.table import Row

TABLES = {"default": True, "whole_sequence": False}
FOUND_WRONG = 1


@click.group()
def command() -> None:
    """List the rules, or prove them."""


@command.command(
    "list",
    cls=DataCommand,
    epilog="""\b
Examples:
  fxpar rules list
  fxpar rules list --rules my_rules --json
""",
)
@options.rules
@options.as_json
def list_rules(rules: Sequence[str], as_json: bool) -> None:
    """List every op with its equation or handler, every name of an axis, and the tables of splits."""
    from fxpar.axes.columns import aligned
    from fxpar.rulebook import Rulebook

    tables = _tables(Rulebook.load(rules))
    if as_json:
        data(json.dumps(tables, indent=2))
        return
    blocks = [f"{title}\n{aligned([*map(_cells, entries)], '  ')}" for title, entries in tables.items()]
    data("\n\n".join(blocks))


@command.command(
    "test",
    cls=DataCommand,
    epilog="""\b
Examples:
  fxpar rules test
  fxpar rules test 'aten.linear.*' aten.matmul.default
  fxpar rules test --rules my_rules --json
""",
)
@click.argument("ops", nargs=-1)
@options.rules
@options.as_json
def test_rules(ops: Sequence[str], rules: Sequence[str], as_json: bool) -> int:
    """Prove the rules of OPS (patterns; all without any): each op on parts against the whole op.

    Outputs and input gradients are compared in float64 for every role that may be split. The exit status is 1 where
    a rule is wrong or not proved.
    """
    from fxpar.rulebook import Rulebook

    entries = []
    for rule in _chosen(Rulebook.load(rules), ops):
        entry = _proved(rule)
        entries.append(entry)
        if not as_json:
            data(_line(entry))
    proved = sum(entry["ok"] for entry in entries)
    data(json.dumps(entries, indent=2) if as_json else f"{proved} of {len(entries)} rules proved")
    return FOUND_WRONG if proved < len(entries) else 0


def _tables(book: Rulebook) -> dict[str, list[dict[str, Any]]]:
    """Everything that is listed, by the title of its table."""
    tables = {"ops": [_op(rule) for rule in book.ops.values()], "axes": [_axis(rule) for rule in book.names]}
    for name, sequence_parallel in TABLES.items():
        tables[f"splits/{name}"] = [_row(row) for row in book.default_table(sequence_parallel).values()]
    return tables


def _op(rule: OpRule) -> dict[str, Any]:
    said = {"shape": rule.shape} if rule.shape else {"equation": " | ".join(map(str, rule.equations))}
    return {"op": rule.op, "rule": _at(rule.place), **said}


def _axis(rule: NamingRule) -> dict[str, Any]:
    conditions = {"seen": rule.seen, "any": rule.any, "unseen": rule.unseen, "at_least": rule.at_least}
    said = {
        name: list(c) if isinstance(c, tuple) else c for name, c in conditions.items() if c not in ((), 1)
    }
    return {"axis": rule.axis, "rule": _at(rule.place), **said}


def _row(row: Row) -> dict[str, Any]:
    over = [f"{name}?" if name in row.optional else name for name in row.over]
    return {"axis": row.axis, "rule": _at(row.place), "over": over}


def _at(place: Place) -> str:
    return f"{place.file}:{place.line}"


def _cells(entry: dict[str, Any]) -> list[str]:
    """One line of a table: what it is about, the rule, and what the rule says."""
    (_, about), (_, rule), *rest = entry.items()
    said = (" ".join(value) if isinstance(value, list) else str(value) for _, value in rest)
    return [about, rule, "  ".join(f"{key}: {text}" for (key, _), text in zip(rest, said))]


def _chosen(book: Rulebook, patterns: Sequence[str]) -> Iterator[OpRule]:
    """The rules of the ops that fit a pattern. Raises RuleError for a pattern that fits none."""
    for pattern in patterns:
        if not any(fnmatchcase(op, pattern) for op in book.ops):
            near = get_close_matches(pattern, book.ops, n=1)
            raise RuleError(
                f"no op with a rule is `{pattern}`", details=[f"did you mean `{op}`?" for op in near]
            )
    for op, rule in book.ops.items():
        if not patterns or any(fnmatchcase(op, pattern) for pattern in patterns):
            yield rule


def _proved(rule: OpRule) -> dict[str, Any]:
    """What became of the proof of one rule."""
    from fxpar.axes.proof import prove

    entry: dict[str, Any] = {"op": rule.op, "rule": _at(rule.place)}
    try:
        proof: Proof = prove(rule)
    except FxparError as error:
        return {**entry, "ok": False, "error": str(error)}
    return {**entry, "ok": True, "roles": proof.roles, "samples": proof.samples, "worst": proof.worst}


def _line(entry: dict[str, Any]) -> str:
    if not entry["ok"]:
        error = str(entry["error"]).replace("\n", "\n  ")
        return f"FAILED {entry['op']}\n  {error}"
    roles = ", ".join(entry["roles"]) or "whole"
    return f"ok {entry['op']}: {roles}; {entry['samples']} samples, worst error {entry['worst']:.1e}"
