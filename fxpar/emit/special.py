"""The fields of forms that are more than a list of arguments: subscripts, and the reduction of a loss by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fxpar.emit.literals import OPEN
from fxpar.emit.text import Expression, flat, keyword
from fxpar.size import Size

#: Writes one argument.
Writer = Callable[[Any], Expression]

_REDUCTIONS = ("none", "mean", "sum")


def special(name: str, values: Sequence[Any], write: Writer) -> list[Expression]:
    """Return what a special field stands for, from all of the op's arguments in the schema's order."""
    return list(_SPECIALS[name](values, write))


def _slice(values: Sequence[Any], write: Writer) -> Sequence[Expression]:
    _, dim, start, end, step = values
    first = "" if start is None or is_number(start, 0) else flat(write(start))
    last = "" if end is None or (isinstance(end, int) and end >= OPEN) else flat(write(end))
    stride = "" if is_number(step, 1) else f":{flat(write(step))}"
    if " " in first + last:
        first, last = first and f"{first} ", last and f" {last}"
    return [_at(dim, f"{first}:{last}{stride}")]


def is_number(value: object, number: int) -> bool:
    """Say whether a value is this number at all sizes: a size is not, though it may be in the example."""
    return value == number and not isinstance(value, Size)


def _select(values: Sequence[Any], write: Writer) -> Sequence[Expression]:
    _, dim, index = values
    return [_at(dim, flat(write(index)))]


def _at(dim: int, subscript: str) -> str:
    """Put a subscript at a dimension: `:, :, 3` for dimension 2, `..., 3` for dimension -1."""
    places = [":"] * dim if dim >= 0 else ["..."]
    return ", ".join([*places, subscript, *[":"] * max(0, -dim - 1)])


def _index(values: Sequence[Any], write: Writer) -> Sequence[Expression]:
    _, indices = values
    return [", ".join(":" if index is None else flat(write(index)) for index in indices)]


def _cross_entropy(values: Sequence[Any], write: Writer) -> Sequence[Expression]:
    _, _, weight, reduction, ignore, smoothing = values
    found: list[Expression] = []
    if weight is not None:
        found.append(keyword("weight", write(weight)))
    if ignore != -100:
        found.append(keyword("ignore_index", write(ignore)))
    if reduction != 1:
        found.append(keyword("reduction", write(_REDUCTIONS[reduction])))
    if smoothing != 0.0:
        found.append(keyword("label_smoothing", write(smoothing)))
    return found


def allowed(name: str, values: Sequence[Any]) -> bool:
    """Say whether a subscript does what the op does; the op's own name is written where it does not."""
    if name == "slice":
        return _bounds(values[2:4]) and values[4] >= 1
    if name == "select":
        return isinstance(values[2], int)
    if name == "index":
        return any(_is_index(index) for index in values[1])
    return True


def _bounds(bounds: Sequence[Any]) -> bool:
    return all(bound is None or isinstance(bound, int | fx.Node) for bound in bounds)


def _is_index(index: Any) -> bool:
    return isinstance(index, fx.Node) and isinstance(index.meta.get("val"), torch.Tensor)


_SPECIALS: dict[str, Callable[[Sequence[Any], Writer], Sequence[Expression]]] = {
    "slice": _slice,
    "select": _select,
    "index": _index,
    "cross_entropy": _cross_entropy,
}
