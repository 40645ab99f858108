"""Making one partition of those at several sizes: integers that differ become expressions of the dynamic axes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from math import gcd, lcm
from typing import Any

import torch
from torch import fx

from fxpar.dynamic.fit import Fit
from fxpar.errors import ShardError
from fxpar.size import Polynomial, Size

#: What a partition says in words; nothing is computed from it.
SAID = ("dims", "words", "placement", "rule", "notes", "source")
#: What a partition says of the example alone.
OF_THE_EXAMPLE = ("hash", "costs")
_NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.])")


class Merge:
    """Merges what stands in one partition with what stands in the same place of the others."""

    def __init__(self, fit: Fit) -> None:
        self._fit = fit
        self._where = ""
        self._in_words = False
        self._polynomials: dict[Polynomial, None] = {}
        self._nodes: list[dict[fx.Node, fx.Node]] = []

    def graphs(self, first: fx.Graph, others: Sequence[fx.Graph]) -> None:
        """Let the first graph hold sizes where the others have other integers.

        Every node gets `meta["sizes"]`, the shapes of its value; words in its `meta` say sizes alike. Raises ShardError
        where the graphs differ in anything else.
        """
        rows = [list(graph.nodes) for graph in (first, *others)]
        self._nodes = [{} for _ in others]
        for position, node in enumerate(rows[0]):
            self._where = _place(node)
            same = [row[position] if position < len(row) else None for row in rows[1:]]
            for other, known in zip(same, self._nodes):
                if other is None or (other.op, other.name) != (node.op, node.name):
                    raise self._different(node.name, other.name if other is not None else "nothing")
                known[other] = node
            self._node(node, [other for other in same if other is not None])
        if any(len(row) != len(rows[0]) for row in rows):
            raise self._different(f"{len(rows[0])} ops", f"{max(map(len, rows[1:]))}")

    def data(self, first: Any, others: Sequence[Any]) -> Any:
        """Plain data (dataclasses, tuples, dicts, texts, numbers) with sizes where the others differ."""
        if is_dataclass(first) and not isinstance(first, type):
            changes = {
                each.name: (self._said if each.name in SAID else self._value)(
                    getattr(first, each.name), [getattr(other, each.name) for other in others]
                )
                for each in fields(first)
                if each.name not in OF_THE_EXAMPLE
            }
            return replace(first, **changes)
        return self._value(first, others)

    def multiples(self) -> dict[str, int]:
        """What each axis has to be a multiple of, so that all sizes that were met are whole numbers."""
        found: dict[str, int] = dict.fromkeys(self._fit.points[0], 1)
        for polynomial in self._polynomials:
            for monomial, coefficient in polynomial.terms.items():
                if len(monomial) == 1 and monomial[0][1] == 1:
                    axis = monomial[0][0]
                    found[axis] = lcm(found[axis], coefficient.denominator)
        for polynomial in self._polynomials:
            for monomial, coefficient in polynomial.terms.items():
                rest = coefficient.denominator
                for axis, power in monomial:
                    for _ in range(power):
                        rest //= gcd(rest, found[axis])
                if rest > 1 and monomial:
                    found[monomial[-1][0]] *= rest
        return found

    def _node(self, node: fx.Node, others: Sequence[fx.Node]) -> None:
        if node.target is not None and any(other.target != node.target for other in others):
            raise self._different(str(node.target), str(others[0].target))
        if node.op == "placeholder":
            if any(other.meta["kind"] != node.meta["kind"] for other in others):
                raise self._different(node.meta["kind"], others[0].meta["kind"])
        elif node.op == "output":
            self._value(node.args, [other.args for other in others])
        else:
            node.args = self._value(node.args, [other.args for other in others])
            node.kwargs = self._value(dict(node.kwargs), [dict(other.kwargs) for other in others])
        vals = [_shapes(each.meta.get("val")) for each in (node, *others)]
        node.meta["sizes"] = self._value(vals[0], vals[1:])
        for key in SAID:
            if key in node.meta:
                node.meta[key] = self._said(node.meta[key], [other.meta.get(key) for other in others])

    def _value(self, first: Any, others: Sequence[Any]) -> Any:
        if is_dataclass(first) and not isinstance(first, type):
            return self.data(first, others)
        if any(type(other) is not type(first) for other in others):
            raise self._different(first, others[0])
        if isinstance(first, fx.Node):
            if any(known.get(other) is not first for known, other in zip(self._nodes, others)):
                raise self._different(first, others[0])
            return first
        if type(first) is int:
            return first if all(other == first for other in others) else self._size([first, *others])
        if isinstance(first, list | tuple):
            if any(len(other) != len(first) for other in others):
                raise self._different(first, others[0])
            kind = tuple if isinstance(first, torch.Size) else type(first)
            return kind(self._value(*_aligned(item, others, i)) for i, item in enumerate(first))
        if isinstance(first, Mapping):
            if any(list(other) != list(first) for other in others):
                raise self._different(list(first), list(others[0]))
            return {key: self._value(item, [other[key] for other in others]) for key, item in first.items()}
        if isinstance(first, slice):
            parts = [(each.start, each.stop, each.step) for each in (first, *others)]
            return slice(*self._value(parts[0], parts[1:]))
        if type(first) is str and self._in_words:
            return self._words(first, others)
        if any(other != first and (other == other or first == first) for other in others):
            raise self._different(first, others[0])
        return first

    def _said(self, first: Any, others: Sequence[Any]) -> Any:
        """Words for people: those of the example where they cannot be made one."""
        self._in_words = True
        try:
            return self._value(first, others)
        except ShardError:
            return first
        finally:
            self._in_words = False

    def _words(self, first: str, others: Sequence[str]) -> str:
        """A text in which numbers differ: they become expressions."""
        if all(other == first for other in others):
            return first
        numbers = [[int(found) for found in _NUMBER.findall(text)] for text in (first, *others)]
        if len({_NUMBER.sub("0", text) for text in (first, *others)}) > 1:
            raise self._different(first, others[0])
        merged = iter(self._value(numbers[0], numbers[1:]))
        return _NUMBER.sub(lambda _: _word(next(merged)), first)

    def _size(self, values: list[int]) -> Size:
        size = self._fit.size(values)
        if size is None:
            points = "; ".join(
                f"{value} at {', '.join(f'{axis} {size}' for axis, size in point.items())}"
                for value, point in zip(values, self._fit.points)
            )
            raise ShardError(
                f"a size does not follow from those of the dynamic axes{self._where}",
                details=[
                    f"it is {points}",
                    "leave an axis out of `dynamic`, or give an example of other sizes",
                ],
            )
        self._polynomials[size.polynomial] = None
        return size

    def _different(self, one: Any, other: Any) -> ShardError:
        return ShardError(
            f"the partition is another one at other sizes of the dynamic axes{self._where}",
            details=[
                f"`{one}` in the example, `{other}` elsewhere",
                "leave an axis out of `dynamic`, or give an example of other sizes",
            ],
        )


def _aligned(item: Any, others: Sequence[Any], position: int) -> tuple[Any, list[Any]]:
    return item, [other[position] for other in others]


def _word(value: int) -> str:
    return str(value.polynomial) if isinstance(value, Size) else str(value)


def _place(node: fx.Node) -> str:
    if not node.meta.get("module") and not node.meta.get("source"):
        return ""
    return f": {node.name} of {node.meta.get('module') or 'the model'} ({node.meta.get('source')})"


def _shapes(value: Any) -> Any:
    """The shapes of the tensors in a value, in its structure; other things give None."""
    if isinstance(value, torch.Tensor):
        return tuple(int(size) for size in value.shape)
    if isinstance(value, list | tuple):
        return [_shapes(item) for item in value]
    return None
