"""The sizes of one call: what the dynamic axes are in its inputs, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from fxpar.size import Size, parse

if TYPE_CHECKING:
    from fxpar.condition import Condition
    from fxpar.runtime.manifest import AxisSpec, InputSpec

T = TypeVar("T")
#: The keys under which a manifest has lists of sizes.
_KEYS = ("shape", "layout")


def written(data: Any) -> Any:
    """Plain data with every size as a text, for JSON."""
    if isinstance(data, Size):
        return str(data.polynomial)
    if isinstance(data, Mapping):
        return {key: written(value) for key, value in data.items()}
    return [written(item) for item in data] if isinstance(data, list | tuple) else data


def read(data: Any, example: Mapping[str, int]) -> Any:
    """What `written` wrote, with sizes again, which are those of the example."""
    if isinstance(data, Mapping):
        return {
            key: [_size(item, example) for item in value] if key in _KEYS else read(value, example)
            for key, value in data.items()
        }
    return [read(item, example) for item in data] if isinstance(data, list) else data


def _size(item: Any, example: Mapping[str, int]) -> int:
    if not isinstance(item, str):
        return int(item)
    return Size(int(parse(item).at(example)), item)


def at(data: T, sizes: Mapping[str, int]) -> T:
    """The same data where the axes have these sizes: every size is a plain number."""
    found: Any = data
    if isinstance(data, Size):
        found = data.at(sizes)
    elif is_dataclass(data) and not isinstance(data, type):
        found = replace(data, **{each.name: at(getattr(data, each.name), sizes) for each in fields(data)})
    elif isinstance(data, list | tuple):
        found = type(data)(at(item, sizes) for item in data)
    elif isinstance(data, Mapping):
        found = {key: at(value, sizes) for key, value in data.items()}
    return found  # type: ignore[no-any-return]


def bind(
    axes: Sequence[AxisSpec],
    inputs: Sequence[InputSpec],
    given: Mapping[str, Any],
    conditions: Sequence[Condition] = (),
) -> tuple[dict[str, int], list[str]]:
    """The size of every dynamic axis in the inputs of a call, where it is first met, and what is wrong with these."""
    found: dict[str, int] = {}
    for spec, dim, name in _places(inputs):
        value = given.get(spec.name)
        if not isinstance(value, Tensor) or value.dim() != len(spec.shape):
            continue
        found.setdefault(name, int(value.shape[dim]))
    errors = [wrong for axis in axes for wrong in _wrong(axis, found.get(axis.name))]
    sizes = {axis.name: found.get(axis.name, axis.size) for axis in axes}
    asked = [] if errors else [each for each in conditions if not each.holds(sizes)]
    return sizes, errors + [_asked(each, sizes) for each in asked]


def _places(inputs: Sequence[InputSpec]) -> Iterator[tuple[InputSpec, int, str]]:
    """The dims of inputs that are the size of an axis."""
    for spec in inputs:
        for dim, size in enumerate(spec.shape):
            if isinstance(size, Size):
                yield spec, dim, str(size.polynomial)


def _asked(condition: Condition, sizes: Mapping[str, int]) -> str:
    """What is wrong with sizes for which the model goes another way than in the example."""
    found = ", ".join(f"{axis} = {sizes[axis]}" for axis in condition.axes)
    at = f" ({condition.place})" if condition.place else ""
    return f"{found}: the model goes the same way only where {condition.text}{at}"


def _wrong(axis: AxisSpec, length: int | None) -> Iterator[str]:
    if length is None:
        return
    if length < axis.least:
        yield f"{axis.name} = {length}: it has to be at least {axis.least}"
    elif axis.most is not None and length > axis.most:
        yield f"{axis.name} = {length}: it may be at most {axis.most}, {axis.reason}"
    elif length % (multiple := axis.multiple // axis.dealt):
        below = length - length % multiple
        near = " or ".join(str(n) for n in (below, below + multiple) if n >= axis.least)
        over = f" ({axis.split})" if axis.split else ""
        yield f"{axis.name} = {length} does not divide over {multiple} parts{over}; {near} would do"


def dealt(axes: Sequence[AxisSpec], sizes: Mapping[str, int], microbatches: int) -> list[dict[str, int]]:
    """The sizes by which the shapes of each microbatch follow: those of a batch of microbatches like it.

    An axis that does not divide is dealt out as evenly as can be, larger parts first. There are fewer microbatches
    where there is not enough for each.

        10 samples in 4 microbatches: 3, 3, 2, 2, whose shapes are those of 12 and of 8 samples
    """
    uneven = [axis for axis in axes if axis.dealt > 1 and sizes[axis.name] % axis.multiple]
    if not uneven:
        return [dict(sizes)] * microbatches
    units = {axis.name: sizes[axis.name] * axis.dealt // axis.multiple for axis in uneven}
    count = min(microbatches, *units.values())
    made = []
    for number in range(count):
        parts = {name: total // count + (number < total % count) for name, total in units.items()}
        made.append({**sizes, **{axis.name: parts[axis.name] * axis.multiple for axis in uneven}})
    return made
