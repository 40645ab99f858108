"""Statements that repeat with counting numbers, as loops.

    hidden = self.layers[0](hidden, cos)
    hidden = self.layers[1](hidden, cos)       for layer in self.layers[0:80]:
    ...                                            hidden = layer(hidden, cos)

A number that may count is a slot in the text of a statement; see `slot` and `text_slot`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fxpar.emit.text import STEP, Bracket, Expression, Statement, flat

#: The longest sequence of statements that is looked for as the body of a loop.
LONGEST = 12
#: A slot, a slot inside of a string, and the place where that string becomes an f-string.
SLOT, TEXT_SLOT, PREFIX = "\x00", "\x01", "\x02"
_SLOTS = re.compile(f"[{SLOT}{TEXT_SLOT}]")
_LAYER = re.compile(rf"(?P<container>[\w.\[\]]+)\[{SLOT}\]\(")


def fold(
    statements: Sequence[Statement], children: Mapping[str, Sequence[int]], indent: str
) -> Iterator[str]:
    """Yield the lines of statements, with loops where they repeat.

    `children` has the numbers of all children of a container of layers, by its text (`self.model.layers`).
    """
    at = 0
    while at < len(statements):
        period, count = _repetition(statements, at)
        block = statements[at : at + period]
        if count == 1:
            yield from fill(block[0], [str(number) for number in block[0].numbers]).lines(indent)
            at += 1
            continue
        yield from _loop(block, statements[at + period : at + 2 * period], count, children, indent)
        at += period * count


def fill(statement: Statement, values: Sequence[str]) -> Statement:
    """Put values, as text, into the slots of a statement."""
    given = iter(values)

    def put(found: re.Match[str]) -> str:
        value = next(given)
        return value if found[0] == SLOT or value.isdigit() else f"{{{value}}}"

    prefix = "" if all(value.isdigit() for value in values) else "f"

    def filled(expression: Expression) -> Expression:
        if isinstance(expression, str):
            return _SLOTS.sub(put, expression).replace(PREFIX, prefix)
        start = _SLOTS.sub(put, expression.open).replace(PREFIX, prefix)
        return Bracket(start, tuple(filled(item) for item in expression.items), expression.close)

    return replace(statement, expression=filled(statement.expression), numbers=())


def _repetition(statements: Sequence[Statement], at: int) -> tuple[int, int]:
    """Return the length and the number of repetitions that cover most of what follows; the shortest of those."""
    best, covered = (1, 1), 1
    for period in range(1, min(LONGEST, (len(statements) - at) // 2) + 1):
        count = _count(statements, at, period)
        if count > 1 and period * count > covered:
            best, covered = (period, count), period * count
    return best


def _count(statements: Sequence[Statement], at: int, period: int) -> int:
    """Return how often the `period` statements follow each other, each number going on by the same step."""
    first = statements[at : at + period]
    if not any(statement.numbers for statement in first):
        return 1
    second = statements[at + period : at + 2 * period]
    if not _alike(first, second):
        return 1
    steps, count = _steps(first, second), 2
    while True:
        start = at + period * count
        before, after = statements[start - period : start], statements[start : start + period]
        if not _alike(before, after) or _steps(before, after) != steps:
            return count
        count += 1


def _alike(first: Sequence[Statement], second: Sequence[Statement]) -> bool:
    return len(first) == len(second) and all(
        replace(a, numbers=b.numbers) == b for a, b in zip(first, second)
    )


def _numbers(block: Sequence[Statement]) -> list[int]:
    return [number for statement in block for number in statement.numbers]


def _steps(first: Sequence[Statement], second: Sequence[Statement]) -> list[int]:
    return [after - before for before, after in zip(_numbers(first), _numbers(second))]


def _loop(
    block: Sequence[Statement],
    following: Sequence[Statement],
    count: int,
    children: Mapping[str, Sequence[int]],
    indent: str,
) -> Iterator[str]:
    steps = _steps(block, following)
    found = next((match for one in block if (match := _LAYER.match(flat(one.expression)))), None)
    if found and steps == [1]:
        container, (first,) = found["container"], _numbers(block)
        whole = list(children.get(container, ())) == list(range(first, first + count))
        layers = container if whole else f"{container}[{first}:{first + count}]"
        yield f"{indent}for layer in {layers}:"
        for statement in block:
            yield from _on_layer(statement, f"{container}[{SLOT}]").lines(indent + STEP)
        return
    start, step = next(((number, step) for number, step in zip(_numbers(block), steps) if step), (0, 0))
    if set(steps) - {0, step}:
        start, step = 0, 1
    yield f"{indent}for {_range(start, step, count)}:"
    values = iter(_counted(number, each, start, step) for number, each in zip(_numbers(block), steps))
    for statement in block:
        yield from fill(statement, [next(values) for _ in statement.numbers]).lines(indent + STEP)


def _on_layer(statement: Statement, layer: str) -> Statement:
    expression = statement.expression
    if not statement.numbers or not isinstance(expression, Bracket):
        return statement
    called = Bracket(expression.open.replace(layer, "layer"), expression.items, expression.close)
    return replace(statement, expression=called, numbers=())


def _range(start: int, step: int, count: int) -> str:
    if not step:
        return f"_ in range({count})"
    stop = start + step * count
    bounds = [start, stop] if start or step != 1 else [stop]
    return f"i in range({', '.join(map(str, [*bounds, step] if step != 1 else bounds))})"


def _counted(number: int, each: int, start: int, step: int) -> str:
    """Return the text of a number that is `number` where `i` is `start`, and grows by `each` as `i` does by `step`."""
    if not each:
        return str(number)
    factor = each // step
    counted = "i" if factor == 1 else f"{factor} * i"
    rest = number - factor * start
    return f"{counted} {'+' if rest > 0 else '-'} {abs(rest)}" if rest else counted
