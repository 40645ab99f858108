"""Python text laid out as `ruff format` would: expressions that break into lines, statements, comments."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

WIDTH = 110
STEP = "    "


@dataclass(frozen=True)
class Bracket:
    """`open items close`: a call with its callee in `open`, or a list or tuple, which always breaks item by item."""

    open: str
    items: tuple[Expression, ...]
    close: str

    @property
    def is_literal(self) -> bool:
        """Whether it is a list or a tuple, rather than a call."""
        return self.open.rpartition("=")[2] in ("[", "(")


Expression: TypeAlias = str | Bracket


def call(callee: str, *items: Expression) -> Bracket:
    """Return the call of a callee."""
    return Bracket(f"{callee}(", items, ")")


def keyword(name: str, value: Expression) -> Expression:
    """Return `name=value`."""
    if isinstance(value, Bracket):
        return Bracket(f"{name}={value.open}", value.items, value.close)
    return f"{name}={value}"


def flat(expression: Expression) -> str:
    """Return an expression on one line."""
    if isinstance(expression, str):
        return expression
    inner = ", ".join(flat(item) for item in expression.items)
    one = len(expression.items) == 1 and expression.is_literal and expression.close == ")"
    return f"{expression.open}{inner}{',' if one else ''}{expression.close}"


def layout(prefix: str, expression: Expression, suffix: str, indent: str) -> Iterator[str]:
    """Yield the lines of `prefix expression suffix`: in one line, with indented arguments, or item by item."""
    line = f"{indent}{prefix}{flat(expression)}{suffix}"
    if len(line) <= WIDTH or isinstance(expression, str) or not expression.items:
        yield line
        return
    inner = indent + STEP
    arguments = inner + ", ".join(flat(item) for item in expression.items)
    yield f"{indent}{prefix}{expression.open}"
    if len(arguments) <= WIDTH and not expression.is_literal:
        yield arguments
    else:
        for item in expression.items:
            yield from layout("", item, ",", inner)
    yield f"{indent}{expression.close}{suffix}"


def comment(text: str, indent: str) -> Iterator[str]:
    """Yield a text as comment lines of at most `WIDTH` columns."""
    mark = f"{indent}# "
    for line in textwrap.wrap(text, WIDTH - len(mark), break_long_words=True, break_on_hyphens=False):
        yield mark + line


@dataclass(frozen=True)
class Statement:
    """`targets = expression  # note`; without targets the bare expression, with `return ` as `head` a return.

    `above` are comments on lines of their own. `numbers` fill, one by one, the `SLOT`s of the expression: what
    may count up from one repetition of a statement to the next.
    """

    expression: Expression
    targets: str = ""
    head: str = ""
    note: str = ""
    above: tuple[str, ...] = ()
    numbers: tuple[int, ...] = field(default=())

    @property
    def prefix(self) -> str:
        """All that stands before the expression."""
        return f"{self.targets} = " if self.targets else self.head

    def lines(self, indent: str) -> Iterator[str]:
        """Yield the statement's lines."""
        for text in self.above:
            yield from comment(text, indent)
        lines = list(layout(self.prefix, self.expression, "", indent))
        if self.note and len(lines) == 1 and len(lines[0]) + len(self.note) + 4 <= WIDTH:
            lines = [f"{lines[0]}  # {self.note}"]
        elif self.note:
            yield from comment(self.note, indent)
        yield from lines
